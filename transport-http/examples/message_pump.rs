//! A bare message pump between two processes: no raft, only messages that go and come.
//!
//! Start it twice, with the ids and URLs exchanged:
//!
//! ```sh
//! cargo run -p transport-http --example message_pump -- 1 http://127.0.0.1:7001 2 http://127.0.0.1:7002 1000
//! cargo run -p transport-http --example message_pump -- 2 http://127.0.0.1:7002 1 http://127.0.0.1:7001 1000
//! ```
//!
//! Each sends the other so many appends, which the other acknowledges, and ends once all of its own are acknowledged
//! and the other one has said the same. The order in which the two are started does not matter: the transport dials
//! until somebody answers. It may drop messages, when a connection breaks or a queue is full, and never sends one
//! again by itself: whoever uses it repeats what is not acknowledged, as raft does and as the pump does here.

use std::{env, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Entry, Message, MessageType},
};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig,
    serve_peers,
};

/// How many may be on their way unacknowledged.
const WINDOW: u64 = 256;
/// When nothing was acknowledged for so long, what is open is sent again.
const REPEAT: Duration = Duration::from_millis(200);
/// Gives up after so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an end still answers after it is done: its last acknowledgement may be lost.
const LINGER: Duration = Duration::from_millis(600);
/// Any number will do that both ends agree on; a member of another cluster is refused.
const CLUSTER: ClusterId = ClusterId(0x7075_6d70);

/// What the transport calls. `process` is the only one a pump needs.
struct Inbox(mpsc::Sender<Message>);

impl Raft for Inbox {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        // Waiting here is back-pressure: the peer's queue fills, then newer messages are dropped and counted.
        self.0
            .send(message)
            .await
            .map_err(|_| ProcessError::Stopped)
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
}

/// One end of the pump.
struct Pump {
    local: u64,
    remote: u64,
    transport: Transport<Inbox>,
    /// How many appends each end sends.
    count: u64,
    /// Ours that were sent, and that the other end has.
    sent: u64,
    acknowledged: u64,
    /// Theirs that we have, without a gap.
    received: u64,
    remote_is_done: bool,
}

impl Pump {
    async fn run(&mut self, mut inbox: mpsc::Receiver<Message>) -> Result<(), &'static str> {
        let mut repeat = interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = 0;
        while !(self.is_done() && self.remote_is_done) {
            tokio::select! {
                message = inbox.recv() => self.handle(message.ok_or("the transport has stopped")?),
                _ = repeat.tick() => {
                    if self.acknowledged == before {
                        self.sent = self.acknowledged;
                    }
                    before = self.acknowledged;
                    self.tell();
                }
            }
            self.fill_window();
        }
        self.tell();
        let until = Instant::now() + LINGER;
        loop {
            tokio::select! {
                Some(message) = inbox.recv() => self.handle(message),
                () = sleep_until(until) => return Ok(()),
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message.kind() {
            Some(MessageType::Append) => {
                // What is behind a gap will come again.
                if message.index == self.received {
                    self.received += message.entries.len() as u64;
                }
                self.tell();
            }
            Some(MessageType::AppendResponse) => {
                self.acknowledged = self.acknowledged.max(message.index);
                self.remote_is_done |= message.commit == self.count;
            }
            _ => {}
        }
    }

    fn fill_window(&mut self) {
        let upto = self.count.min(self.acknowledged + WINDOW);
        self.sent = self.sent.max(self.acknowledged);
        let messages: Vec<Message> = (self.sent..upto)
            .map(|index| Message {
                index,
                entries: vec![Entry {
                    term: 1,
                    index: index + 1,
                    data: Bytes::from(format!("message {} of {}", index + 1, self.local)),
                    ..Entry::default()
                }],
                ..self.message(MessageType::Append)
            })
            .collect();
        self.sent = upto;
        // Never waits. A batch given at once leaves in one piece.
        self.transport.send(messages);
    }

    /// Says how far we have come in both directions.
    fn tell(&self) {
        self.transport.send(vec![Message {
            index: self.received,
            commit: self.acknowledged,
            ..self.message(MessageType::AppendResponse)
        }]);
    }

    fn is_done(&self) -> bool {
        self.acknowledged == self.count && self.received == self.count
    }

    fn message(&self, kind: MessageType) -> Message {
        Message {
            msg_type: kind as i32,
            from: self.local,
            to: self.remote,
            term: 1,
            ..Message::default()
        }
    }
}

/// What is asked for outside of `/raft`; a real member answers `/members` and `/version` here.
async fn not_found(_: Request<Incoming>) -> Response<PeerBody> {
    let mut response = Response::new(PeerBody::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// Pumps until everything has arrived on both sides; says what was done.
///
/// The arguments are the id and URL of this end, those of the other one, and how many messages each sends.
pub async fn pump(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let [local, local_url, remote, remote_url, count] = arguments else {
        return Err("usage: message_pump ID URL ID_OF_THE_OTHER URL_OF_THE_OTHER COUNT".into());
    };
    let (local, remote): (u64, u64) = (local.parse()?, remote.parse()?);
    let address = local_url
        .strip_prefix("http://")
        .ok_or("URLs begin with http://")?;
    let listener = TcpListener::bind(address).await?;

    let (sender, inbox) = mpsc::channel(1024);
    let config = TransportConfig::new(MemberId(local), CLUSTER, Arc::new(metrics::NoopRecorder));
    let transport = Transport::start(config, Arc::new(Inbox(sender)), Arc::new(NoSnapshots))?;
    let closing = CancellationToken::new();
    let port = tokio::spawn(serve_peers(
        listener,
        transport.clone(),
        not_found,
        closing.clone(),
    ));
    transport.add_peer(MemberId(remote), std::slice::from_ref(remote_url))?;

    let begun = Instant::now();
    let mut pump = Pump {
        local,
        remote,
        transport: transport.clone(),
        count: count.parse()?,
        sent: 0,
        acknowledged: 0,
        received: 0,
        remote_is_done: false,
    };
    let outcome = timeout(PATIENCE, pump.run(inbox)).await;

    // In this order: the streams end properly, then the port closes.
    transport.stop().await;
    closing.cancel();
    port.await?;
    outcome.map_err(|_| "gave up: the other end does not answer")??;
    Ok(format!(
        "{local}: {} sent and acknowledged, {} received, in {:?}",
        pump.acknowledged,
        pump.received,
        begun.elapsed()
    ))
}

#[tokio::main]
#[allow(dead_code, reason = "the test of this example calls `pump`")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    println!("{}", pump(&arguments).await?);
    Ok(())
}
