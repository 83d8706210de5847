//! What the tests share: a raft that writes down what it is told, members on loopback sockets, raw HTTP on both
//! ends, and metrics one can wait for.

#![allow(dead_code, reason = "each test uses its part")]

pub mod authority;
pub mod memory;
pub mod raw;
pub mod recorder;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata},
};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotSink, SnapshotStatus, Transport,
    TransportConfig, net::Acceptor, serve_peers,
};

use self::recorder::TestRecorder;

pub const CLUSTER: ClusterId = ClusterId(0x5d94_8785_6336_506b);
/// Far longer than anything takes here; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits with a limit.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// What the transport told raft, besides messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    Unreachable(MemberId),
    Snapshot(MemberId, SnapshotStatus),
}

/// A raft that hands everything to the test.
pub struct TestRaft {
    messages: mpsc::UnboundedSender<Message>,
    reports: mpsc::UnboundedSender<Report>,
    pub removed: Mutex<Vec<MemberId>>,
    /// What `process` answers.
    pub answer: Mutex<Result<(), ProcessError>>,
    /// Closed, `process` waits.
    pub gate: Semaphore,
}

impl Raft for TestRaft {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        let _open = self.gate.acquire().await.unwrap();
        let _ = self.messages.send(message);
        self.answer.lock().unwrap().clone()
    }

    fn is_id_removed(&self, id: MemberId) -> bool {
        self.removed.lock().unwrap().contains(&id)
    }

    fn report_unreachable(&self, id: MemberId) {
        let _ = self.reports.send(Report::Unreachable(id));
    }

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        let _ = self.reports.send(Report::Snapshot(id, status));
    }
}

/// A transport with its peer port.
pub struct Member {
    pub id: MemberId,
    pub address: SocketAddr,
    pub transport: Transport<TestRaft>,
    pub raft: Arc<TestRaft>,
    pub recorder: TestRecorder,
    pub messages: mpsc::UnboundedReceiver<Message>,
    pub reports: mpsc::UnboundedReceiver<Report>,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

impl Member {
    pub async fn start(id: u64) -> Member {
        Member::start_with(id, |_| {}).await
    }

    pub async fn start_with(id: u64, configure: impl FnOnce(&mut TransportConfig)) -> Member {
        Member::start_full(id, configure, Arc::new(NoSnapshots)).await
    }

    pub async fn start_full(
        id: u64,
        configure: impl FnOnce(&mut TransportConfig),
        sink: Arc<dyn SnapshotSink>,
    ) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Member::start_on(id, address, listener, configure, sink)
    }

    /// On any network.
    pub fn start_on(
        id: u64,
        address: SocketAddr,
        acceptor: impl Acceptor,
        configure: impl FnOnce(&mut TransportConfig),
        sink: Arc<dyn SnapshotSink>,
    ) -> Member {
        let recorder = TestRecorder::default();
        let (messages, received) = mpsc::unbounded_channel();
        let (reports, reported) = mpsc::unbounded_channel();
        let raft = Arc::new(TestRaft {
            messages,
            reports,
            removed: Mutex::default(),
            answer: Mutex::new(Ok(())),
            gate: Semaphore::new(1000),
        });
        let mut config = TransportConfig::new(MemberId(id), CLUSTER, Arc::new(recorder.clone()));
        config.advertise_urls = vec![format!("http://{address}")];
        configure(&mut config);
        let transport = Transport::start(config, Arc::clone(&raft), sink).unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve_peers(
            acceptor,
            transport.clone(),
            fallback,
            shutdown.clone(),
        ));
        Member {
            id: MemberId(id),
            address,
            transport,
            raft,
            recorder,
            messages: received,
            reports: reported,
            shutdown,
            serving: Some(serving),
        }
    }

    pub fn urls(&self) -> Vec<String> {
        vec![format!("http://{}", self.address)]
    }

    pub fn add(&self, other: &Member) {
        self.transport.add_peer(other.id, &other.urls()).unwrap();
    }

    /// The next message raft gets.
    pub async fn message(&mut self) -> Message {
        soon("a message", self.messages.recv()).await.unwrap()
    }

    /// The next report raft gets.
    pub async fn report(&mut self) -> Report {
        soon("a report", self.reports.recv()).await.unwrap()
    }

    /// Waits until both streams from `other` have brought their first link heartbeat.
    pub async fn streams_up(&self, count: usize) {
        // Two bytes each, as this implementation writes them.
        let bytes = 2.0 * 2.0 * count as f64;
        self.recorder
            .until("etcd_network_peer_received_bytes_total{From=0}", |value| {
                value >= bytes
            })
            .await;
    }

    pub async fn stop(mut self) {
        soon("the transport to stop", self.transport.stop()).await;
        self.shutdown.cancel();
        soon("the port to close", self.serving.take().unwrap())
            .await
            .unwrap();
    }
}

/// Two members with their streams up.
pub async fn pair() -> (Member, Member) {
    let (a, b) = (Member::start(1).await, Member::start(2).await);
    a.add(&b);
    b.add(&a);
    a.streams_up(1).await;
    b.streams_up(1).await;
    (a, b)
}

async fn fallback(request: Request<Incoming>) -> Response<PeerBody> {
    let mut response = Response::new(PeerBody::from(format!(
        "fallback {}\n",
        request.uri().path()
    )));
    *response.status_mut() = StatusCode::IM_A_TEAPOT;
    response
}

pub fn message(kind: MessageType, from: u64, to: u64) -> Message {
    Message {
        msg_type: kind as i32,
        from,
        to,
        term: 5,
        ..Message::default()
    }
}

/// An append of one entry of `bytes` bytes at `index`.
pub fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let entry = Entry {
        term: 5,
        index,
        data: Bytes::from(vec![b'x'; bytes]),
        ..Entry::default()
    };
    Message {
        log_term: 5,
        index: index - 1,
        commit: index - 1,
        entries: vec![entry],
        ..message(MessageType::Append, from, to)
    }
}

pub fn snapshot(from: u64, to: u64, index: u64) -> Message {
    let metadata = Some(SnapshotMetadata {
        index,
        term: 5,
        ..SnapshotMetadata::default()
    });
    let snapshot = Snapshot {
        data: Bytes::from_static(b"{}"),
        metadata,
    };
    Message {
        snapshot: Some(Box::new(snapshot)),
        ..message(MessageType::Snapshot, from, to)
    }
}

/// A short read timeout, for what has to be waited for.
pub fn hurried(config: &mut TransportConfig) {
    config.read_timeout = Duration::from_millis(600);
    config.write_timeout = Duration::from_millis(600);
}
