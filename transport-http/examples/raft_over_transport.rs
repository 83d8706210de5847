//! Three members of a raft cluster in one process, over loopback sockets: the `raft` crate decides, this crate
//! carries. They elect a leader, replicate 1000 entries, lose every connection at once, and recover.
//!
//! ```sh
//! cargo run --example raft_over_transport
//! ```
//!
//! What a user of `raft` has to write is `Mailbox` (received messages go to the task that owns the raft node) and
//! `Member::handle_ready` (messages that raft wants to send go to the transport). The rest is the demonstration.

use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use raft::{RawNode, storage::MemStorage};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use transport_core::{ClusterId, MemberId, raftpb};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig,
    serve_peers,
};

const MEMBERS: [u64; 3] = [1, 2, 3];
const TICK: Duration = Duration::from_millis(20);
const ELECTION_TICKS: usize = 10;
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What reaches the task that owns a raft node.
#[allow(clippy::large_enum_variant, reason = "nearly all are messages")]
enum Input {
    Received(raftpb::Message),
    Propose(u64),
    Unreachable(MemberId),
    Snapshot(MemberId, SnapshotStatus),
}

/// The transport's view of raft: an inbox.
struct Mailbox(mpsc::Sender<Input>);

impl Raft for Mailbox {
    async fn process(&self, message: raftpb::Message) -> Result<(), ProcessError> {
        self.0
            .send(Input::Received(message))
            .await
            .map_err(|_| ProcessError::Stopped)
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, id: MemberId) {
        // Must not block; raft bears a report that is lost in a full inbox.
        let _ = self.0.try_send(Input::Unreachable(id));
    }

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        let _ = self.0.try_send(Input::Snapshot(id, status));
    }
}

/// What a member shows of itself.
#[derive(Clone, Default)]
struct View {
    leader: u64,
    applied: BTreeSet<u64>,
}

/// A raft node and its way to the others.
struct Member {
    raft: RawNode<MemStorage>,
    transport: Transport<Mailbox>,
    view: watch::Sender<View>,
}

impl Member {
    fn new(
        id: u64,
        transport: Transport<Mailbox>,
        view: watch::Sender<View>,
    ) -> Result<Self, Error> {
        let config = raft::Config {
            id,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: 2,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let storage = MemStorage::new_with_conf_state((MEMBERS.to_vec(), vec![]));
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        Ok(Member {
            raft: RawNode::new(&config, storage, &logger)?,
            transport,
            view,
        })
    }

    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Input>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = ticks.tick() => {
                    self.raft.tick();
                }
                input = inbox.recv() => match input {
                    Some(input) => self.handle(input),
                    None => return Ok(()),
                },
            }
            // What else has arrived goes into the same Ready: one append then carries many proposals.
            while let Ok(input) = inbox.try_recv() {
                self.handle(input);
            }
            self.handle_ready()?;
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Received(message) => {
                // Kinds that raft-rs does not know have no counterpart; what raft refuses is dropped, as etcd does.
                if let Ok(message) = raft::eraftpb::Message::try_from(message) {
                    let _ = self.raft.step(message);
                }
            }
            Input::Propose(number) => {
                // Dropped when this is not the leader: the proposer looks at what was applied and tries again.
                let _ = self.raft.propose(Vec::new(), number.to_be_bytes().to_vec());
            }
            Input::Unreachable(id) => self.raft.report_unreachable(id.0),
            Input::Snapshot(id, status) => {
                let status = match status {
                    SnapshotStatus::Finish => raft::SnapshotStatus::Finish,
                    SnapshotStatus::Failure => raft::SnapshotStatus::Failure,
                };
                self.raft.report_snapshot(id.0, status);
            }
        }
    }

    fn handle_ready(&mut self) -> Result<(), Error> {
        while self.raft.has_ready() {
            let mut ready = self.raft.ready();
            self.send(ready.take_messages());
            self.apply(ready.take_committed_entries());
            let storage = self.raft.store().clone();
            storage.wl().append(ready.entries())?;
            if let Some(state) = ready.hs() {
                storage.wl().set_hardstate(state.clone());
            }
            // These may leave only once the above is durable, which in memory it is.
            self.send(ready.take_persisted_messages());
            let mut light = self.raft.advance(ready);
            if let Some(commit) = light.commit_index() {
                storage.wl().mut_hard_state().set_commit(commit);
            }
            self.send(light.take_messages());
            self.apply(light.take_committed_entries());
            self.raft.advance_apply();
        }
        let leader = self.raft.raft.leader_id;
        self.view
            .send_if_modified(|view| std::mem::replace(&mut view.leader, leader) != leader);
        Ok(())
    }

    /// The whole coupling of raft to the transport: convert (no payload is copied) and hand over, in order.
    fn send(&self, messages: Vec<raft::eraftpb::Message>) {
        self.transport
            .send(messages.into_iter().map(raftpb::Message::from).collect());
    }

    fn apply(&self, entries: Vec<raft::eraftpb::Entry>) {
        let numbers: Vec<u64> = entries
            .into_iter()
            .map(raftpb::Entry::from)
            .filter_map(|entry| Some(u64::from_be_bytes(entry.data.as_ref().try_into().ok()?)))
            .collect();
        if !numbers.is_empty() {
            self.view.send_modify(|view| view.applied.extend(numbers));
        }
    }
}

/// A member as the demonstration handles it.
struct Running {
    id: u64,
    transport: Transport<Mailbox>,
    inbox: mpsc::Sender<Input>,
    view: watch::Receiver<View>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    listener: std::net::TcpListener,
    port: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Running {
    async fn start(id: u64) -> Result<Running, Error> {
        let listener = TcpListener::bind("127.0.0.1:0").await?.into_std()?;
        let mut config = TransportConfig::new(
            MemberId(id),
            ClusterId(0xfeed),
            Arc::new(metrics::NoopRecorder),
        );
        config.advertise_urls = vec![url(listener.local_addr()?)];
        config.read_timeout = Duration::from_secs(1);
        let (inbox, received) = mpsc::channel(4096);
        let transport = Transport::start(
            config,
            Arc::new(Mailbox(inbox.clone())),
            Arc::new(NoSnapshots),
        )?;
        let (view, seen) = watch::channel(View::default());
        let stop = CancellationToken::new();
        let member = Member::new(id, transport.clone(), view)?;
        let task = tokio::spawn(member.run(received, stop.clone()));
        let mut running = Running {
            id,
            transport,
            inbox,
            view: seen,
            stop,
            task,
            listener,
            port: None,
        };
        running.open_port()?;
        Ok(running)
    }

    fn open_port(&mut self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener.try_clone()?)?;
        let closing = CancellationToken::new();
        let serving = tokio::spawn(serve_peers(
            listener,
            self.transport.clone(),
            not_found,
            closing.clone(),
        ));
        self.port = Some((closing, serving));
        Ok(())
    }

    /// Closes every connection the others have opened: their streams, which carry what this member sends.
    async fn close_port(&mut self) -> Result<(), Error> {
        if let Some((closing, serving)) = self.port.take() {
            closing.cancel();
            serving.await?;
        }
        Ok(())
    }

    async fn shut_down(mut self) -> Result<(), Error> {
        self.stop.cancel();
        self.task.await??;
        self.transport.stop().await;
        if let Some((closing, serving)) = self.port.take() {
            closing.cancel();
            serving.await?;
        }
        Ok(())
    }
}

async fn not_found(_: Request<Incoming>) -> Response<PeerBody> {
    let mut response = Response::new(PeerBody::empty());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

/// Waits until all members agree on a leader.
async fn elected(members: &mut [Running]) -> Result<u64, Error> {
    let agreeing = async {
        loop {
            let leader = members[0]
                .view
                .wait_for(|view| view.leader != 0)
                .await?
                .leader;
            let mut agreed = true;
            for member in members.iter_mut() {
                // One that follows somebody else will soon follow this leader, or the leader will change.
                let same = member.view.wait_for(|view| view.leader == leader);
                agreed &= timeout(TICK * ELECTION_TICKS as u32, same).await.is_ok();
            }
            if agreed {
                return Ok(leader);
            }
        }
    };
    timeout(PATIENCE, agreeing).await?
}

/// Proposes `numbers` at the leader until every member has applied them all.
async fn replicate(members: &mut [Running], numbers: std::ops::Range<u64>) -> Result<(), Error> {
    let replicating = async {
        loop {
            let leader = elected(members).await?;
            let Some(proposer) = members.iter().find(|member| member.id == leader) else {
                continue;
            };
            let missing: Vec<u64> = {
                let view = proposer.view.borrow();
                numbers
                    .clone()
                    .filter(|number| !view.applied.contains(number))
                    .collect()
            };
            for number in missing {
                proposer.inbox.send(Input::Propose(number)).await?;
            }
            let mut complete = true;
            for member in members.iter_mut() {
                let all = member
                    .view
                    .wait_for(|view| numbers.clone().all(|number| view.applied.contains(&number)));
                // A proposal may be lost when the leader changes: look again after a while.
                complete &= timeout(Duration::from_secs(2), all).await.is_ok();
            }
            if complete {
                return Ok(());
            }
        }
    };
    timeout(PATIENCE, replicating).await?
}

/// The demonstration; `say` is told what happens. Returns how many entries every member has at the end.
pub async fn demonstrate(say: impl Fn(String)) -> Result<usize, Error> {
    let mut members = Vec::new();
    for id in MEMBERS {
        members.push(Running::start(id).await?);
    }
    let urls: Vec<(u64, String)> = members
        .iter()
        .map(|member| Ok((member.id, url(member.listener.local_addr()?))))
        .collect::<io::Result<_>>()?;
    for member in &members {
        for (id, url) in urls.iter().filter(|(id, _)| *id != member.id) {
            member
                .transport
                .add_peer(MemberId(*id), std::slice::from_ref(url))?;
        }
    }
    let leader = elected(&mut members).await?;
    say(format!("{} leads", MemberId(leader)));
    replicate(&mut members, 0..1000).await?;
    say("1000 entries are on every member".to_owned());

    for member in &mut members {
        member.close_port().await?;
    }
    for member in &mut members {
        // With check_quorum a leader that hears nobody steps down; its followers' elections find nobody.
        timeout(PATIENCE, member.view.wait_for(|view| view.leader == 0)).await??;
    }
    say("every connection is cut; nobody leads".to_owned());

    for member in &mut members {
        member.open_port()?;
    }
    replicate(&mut members, 1000..1500).await?;
    let leader = elected(&mut members).await?;
    say(format!(
        "the streams are back: {} leads, and 500 more entries are on every member",
        MemberId(leader)
    ));

    let entries = members
        .iter()
        .map(|member| member.view.borrow().applied.len())
        .min()
        .unwrap_or(0);
    for member in members {
        member.shut_down().await?;
    }
    Ok(entries)
}

#[tokio::main]
#[allow(dead_code, reason = "the test of this crate calls `demonstrate`")]
async fn main() -> Result<(), Error> {
    let entries = demonstrate(|event| println!("{event}")).await?;
    println!("{entries} entries");
    Ok(())
}
