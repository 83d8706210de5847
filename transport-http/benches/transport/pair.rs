//! Two transports of ours, each a peer of the other.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Entry, Message, MessageType},
};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig, Tried,
    serve_peers,
};

use crate::load::{Carrier, Load};

const SENDER: u64 = 1;
const RECEIVER: u64 = 2;
/// Room for the largest window of the largest messages, which the default is just too small for.
const BULK_BYTES: usize = 128 << 20;

/// What both members know.
#[derive(Default)]
struct Shared {
    load: Load,
    data: Mutex<Bytes>,
    index: AtomicU64,
}

impl Shared {
    /// The append that continues the log.
    fn next(&self, data: Bytes) -> Message {
        let index = self.index.fetch_add(1, Relaxed);
        Message {
            msg_type: MessageType::Append as i32,
            from: SENDER,
            to: RECEIVER,
            term: 1,
            log_term: 1,
            index,
            commit: index,
            entries: vec![Entry {
                term: 1,
                index: index + 1,
                data,
                ..Entry::default()
            }],
            ..Message::default()
        }
    }
}

/// The raft of one of them.
struct Member {
    shared: Arc<Shared>,
    own: OnceLock<Transport<Member>>,
}

impl Member {
    fn step(&self, message: &Message) {
        let Some(own) = self.own.get() else { return };
        let load = &self.shared.load;
        if message.msg_type == MessageType::Append as i32 {
            load.arrived(1);
            if load.is_round_trip.load(Relaxed) {
                own.send(vec![Message {
                    msg_type: MessageType::AppendResponse as i32,
                    from: RECEIVER,
                    to: SENDER,
                    term: 1,
                    index: message.index + 1,
                    ..Message::default()
                }]);
            }
        } else if load.answered() {
            let data = self.shared.data.lock().clone();
            own.send(vec![self.shared.next(data)]);
        }
    }
}

impl Raft for Member {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        self.step(&message);
        Ok(())
    }

    fn try_process(&self, message: Message) -> Tried {
        self.step(&message);
        Tried::Done(Ok(()))
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
}

/// Both of them, connected.
pub struct Pair {
    shared: Arc<Shared>,
    sender: Transport<Member>,
}

impl Pair {
    pub async fn start() -> Result<Pair, String> {
        let shared = Arc::<Shared>::default();
        let mut members = Vec::new();
        for id in [SENDER, RECEIVER] {
            let raft = Arc::new(Member {
                shared: Arc::clone(&shared),
                own: OnceLock::new(),
            });
            let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
            let mut config = TransportConfig::new(MemberId(id), ClusterId(7), Arc::new(recorder));
            config.limits.stream.bulk_bytes = BULK_BYTES;
            config.limits.receive.bulk_bytes = BULK_BYTES;
            let transport = Transport::start(config, Arc::clone(&raft), Arc::new(NoSnapshots))
                .map_err(|error| error.to_string())?;
            let listener = TcpListener::bind("127.0.0.1:0")
                .await
                .map_err(|error| error.to_string())?;
            let url = listener.local_addr().map_err(|error| error.to_string())?;
            let other = |_| async { http::Response::new(PeerBody::empty()) };
            tokio::spawn(serve_peers(
                listener,
                transport.clone(),
                other,
                CancellationToken::new(),
            ));
            if raft.own.set(transport.clone()).is_err() {
                return Err("a member got two transports".into());
            }
            members.push((transport, format!("http://{url}")));
        }
        for (at, id) in [(0, RECEIVER), (1, SENDER)] {
            let url = members[1 - at].1.clone();
            members[at]
                .0
                .add_peer(MemberId(id), &[url])
                .map_err(|error| error.to_string())?;
        }
        while members
            .iter()
            .any(|(transport, _)| transport.active_peers() == 0)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Active after the first stream: give the others the same time as Go's have.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let sender = members.swap_remove(0).0;
        Ok(Pair { shared, sender })
    }
}

impl Carrier for Pair {
    fn load(&self) -> &Load {
        &self.shared.load
    }

    fn prepare(&self, size: usize) {
        *self.shared.data.lock() = vec![0; size].into();
    }

    async fn send(&self, messages: u64) {
        let data = self.shared.data.lock().clone();
        let batch = (0..messages).map(|_| self.shared.next(data.clone()));
        self.sender.send(batch.collect());
    }

    fn own_allocations(&self, messages: u64, batches: u64) -> u64 {
        // The entries of each message, the list of each batch.
        messages + batches
    }
}
