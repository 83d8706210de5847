//! The public handle of a node.
//!
//! Cheap to clone; every call either pushes to the raft task's inbox or reads shared numbers. Depends on
//! nothing but the modules behind it. Invariant: no call blocks a thread, and every future ends when the
//! node does.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};
use transport_core::{
    MemberId,
    raftpb::{ConfChange, EntryType, Message},
};

use crate::{
    Leadership, NodeConfig, ProposeError, ReadError, StartError, StateMachine, Status, StepError,
    Storage, TransferError, Transport,
    driver::{Driver, Event, IsRemoved},
    inbox::{Inbox, ReadWaiter},
    metrics::Metrics,
    proposals::Proposal,
    recovery::{Initial, recover},
    shared::Shared,
    threads::{self, Running},
    wal::Metadata,
};

/// A running node; `R` is the state machine's response. When the last clone is dropped, it stops.
pub struct Node<R> {
    inner: Arc<Inner<R>>,
}

struct Inner<R> {
    shared: Arc<Shared<R>>,
    is_removed: IsRemoved,
    /// Until somebody joins it.
    running: Mutex<Option<Running>>,
}

impl<R> Clone for Node<R> {
    fn clone(&self) -> Self {
        Node {
            inner: self.inner.clone(),
        }
    }
}

impl<R: Send + 'static> Node<R> {
    /// Starts a node from its log: an empty one joins a cluster, a bootstrapped one begins a new cluster, a
    /// replayed one goes on. The state machine must be the one that belongs to the log; what it lacks is
    /// replayed into it, also a snapshot that was received but not installed.
    ///
    /// raft itself runs as a task of the tokio runtime this is called in, which should be the one that serves
    /// the sockets, and in which no task may block.
    pub fn start<S, T>(
        config: NodeConfig,
        storage: Storage,
        mut machine: S,
        transport: Arc<T>,
    ) -> Result<Self, StartError>
    where
        S: StateMachine<Response = R>,
        T: Transport<S::Image>,
    {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let expected = Metadata {
            node_id: config.id,
            cluster_id: config.cluster_id,
        };
        if storage.metadata != expected {
            return Err(StartError::WrongMember {
                found: storage.metadata,
                expected,
            });
        }
        let Initial { log, applied } = recover(storage.contents, &mut machine)?;
        let metrics = Arc::new(Metrics::register(&*config.recorder));
        let inbox = Inbox::new(config.inbox_bytes_max);
        let limits = Limits {
            commit_gap_max: config.commit_gap_max,
            proposal_bytes_max: config.proposal_bytes_max,
            proposals_max: config.proposals_max,
            reads_max: config.reads_max,
        };
        let shared = Shared::new(config.id, metrics.clone(), inbox, limits);
        shared.applied(machine.applied().0);
        let is_removed: IsRemoved = {
            let transport = transport.clone();
            Arc::new(move |id| transport.is_removed(id))
        };
        let tick = config.tick;
        let driver = Driver::new(config, log, applied, is_removed.clone(), metrics)
            .map_err(|error| StartError::Config(error.to_string()))?;
        let shared = Arc::new(shared);
        let store = storage.store;
        let running = threads::spawn(&runtime, &shared, driver, tick, store, machine, transport)
            .inspect_err(|_| shared.close())?;
        Ok(Node {
            inner: Arc::new(Inner {
                shared,
                is_removed,
                running: Mutex::new(Some(running)),
            }),
        })
    }

    /// Proposes an entry and waits for its result. `id` must be the one the state machine will report the
    /// result under, unique among all proposals under way in the cluster.
    ///
    /// Waits for a leader if there is none, as etcd does. Set a deadline of your own: when it passes, it is
    /// open whether the entry will be applied.
    pub async fn propose(&self, id: u64, data: Bytes) -> Result<R, ProposeError> {
        self.submit(Proposal {
            id,
            kind: EntryType::Normal,
            data,
            room: None,
        })
        .await
    }

    /// Proposes a configuration change, under the change's own id; see [`propose`](Node::propose).
    pub async fn propose_conf_change(&self, change: ConfChange) -> Result<R, ProposeError> {
        if change.kind().is_none() {
            return Err(ProposeError::InvalidConfChange(change.change_type));
        }
        self.submit(Proposal {
            id: change.id,
            kind: EntryType::ConfChange,
            data: change.encode_gogo(),
            room: None,
        })
        .await
    }

    async fn submit(&self, mut proposal: Proposal) -> Result<R, ProposeError> {
        let shared = &self.inner.shared;
        let result = async {
            shared.admits_proposals()?;
            let _seat = shared
                .proposals
                .take(1)
                .ok_or(ProposeError::TooManyRequests)?;
            // An empty entry takes room as well.
            proposal.room = shared.proposal_bytes.take(proposal.data.len() + 1);
            if proposal.room.is_none() {
                return Err(ProposeError::TooManyRequests);
            }
            let (_registered, waiting) = shared.waiters.register(proposal.id)?;
            let _pending = Pending::new(&shared.metrics.proposals_pending);
            shared
                .inbox
                .proposal(proposal)
                .map_err(|_| ProposeError::Stopped)?;
            waiting.await.unwrap_or(Err(ProposeError::Stopped))
        }
        .await;
        if result.is_err() {
            shared.metrics.proposals_failed.increment(1);
        }
        result
    }

    /// An index that contains everything acknowledged, by any member, before this call; returned once it is
    /// applied here. All calls that wait share a question to the leader. Safe to repeat after any error.
    pub async fn read_index(&self) -> Result<u64, ReadError> {
        let shared = &self.inner.shared;
        let room = shared.reads.take(1).ok_or(ReadError::TooManyRequests)?;
        let (waiter, waiting) = ReadWaiter::new(room);
        shared.inbox.read(waiter).map_err(|_| ReadError::Stopped)?;
        waiting.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Waits until `index` is applied and visible to readers.
    pub async fn wait_applied(&self, index: u64) -> Result<(), ReadError> {
        let shared = &self.inner.shared;
        let room = shared.reads.take(1).ok_or(ReadError::TooManyRequests)?;
        let (waiter, waiting) = ReadWaiter::new(room);
        shared.when_applied(index, vec![waiter]);
        let result = waiting.await.unwrap_or(Err(ReadError::Stopped));
        result.map(|_| ())
    }

    /// Takes a message from another member. Waits only while the inbox has no room. A message that a rule
    /// drops later is `Ok`, as in etcd.
    ///
    /// Of a snapshot message the body must have arrived.
    pub async fn step(&self, message: Message) -> Result<(), StepError> {
        self.check(&message)?;
        self.inner.shared.inbox.message(message).await
    }

    /// As [`step`](Node::step), but [`StepError::Full`] instead of waiting.
    pub fn try_step(&self, message: Message) -> Result<(), StepError> {
        self.step_now(&mut Some(message))
    }

    /// As [`try_step`](Node::try_step), for a caller that wants to keep the message when there is no room: it is
    /// taken out only if it is delivered.
    pub fn step_now(&self, message: &mut Option<Message>) -> Result<(), StepError> {
        if let Some(message) = message {
            self.check(message)?;
        }
        self.inner.shared.inbox.try_message(message)
    }

    fn check(&self, message: &Message) -> Result<(), StepError> {
        let from = MemberId(message.from);
        if (self.inner.is_removed)(from) {
            return Err(StepError::Removed(from));
        }
        if message.to != self.inner.shared.id.0 {
            return Err(StepError::NotForUs(MemberId(message.to)));
        }
        Ok(())
    }

    /// Begins to move leadership to `to`; only the leader can. Whether it arrived shows in
    /// [`leadership`](Node::leadership); it is given up after an election timeout.
    pub async fn transfer_leadership(&self, to: MemberId) -> Result<(), TransferError> {
        let (reply, waiting) = oneshot::channel();
        self.event(Event::Transfer { to, reply });
        waiting.await.unwrap_or(Err(TransferError::Stopped))
    }

    /// Messages to that member were lost.
    pub fn report_unreachable(&self, id: MemberId) {
        self.inner.shared.inbox.remark(Event::Unreachable(id));
    }

    /// How sending a snapshot to that member ended.
    pub fn report_snapshot(&self, id: MemberId, ok: bool) {
        self.event(Event::SnapshotReport { to: id, ok });
    }

    /// Has a snapshot taken that contains everything up to `index`, as soon as the state machine has that
    /// durable, however few entries came since the last one.
    pub fn force_snapshot(&self, index: u64) {
        self.event(Event::ForceSnapshot { index });
    }

    /// Brings the first election nearer by that many ticks, never beyond one tick before the shortest
    /// timeout. For a starting member that has met its peers: etcd advances by all but two ticks.
    pub fn advance_election(&self, ticks: usize) {
        self.inner
            .shared
            .inbox
            .remark(Event::AdvanceElection { ticks });
    }

    /// The node's numbers, without waiting for anything.
    pub fn status(&self) -> Status {
        self.inner.shared.status()
    }

    /// Who leads, and every change of it.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.shared.leadership.subscribe()
    }

    /// How far each member's log is known to match the leader's; empty at other members. At most a tick old.
    pub fn progress(&self) -> Vec<(MemberId, u64)> {
        self.inner.shared.progress.lock().clone()
    }

    /// Resolves with the reason when the node cannot go on: the disk failed, or a thread panicked. The
    /// process should end then, without trying again. Pending for ever otherwise.
    pub async fn fatal(&self) -> Arc<str> {
        let mut fatal = self.inner.shared.watch_fatal();
        loop {
            if let Some(reason) = fatal.borrow_and_update().clone() {
                return reason;
            }
            if fatal.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Stops the node and waits until its threads are gone; what they had under way is written first.
    pub async fn stop(&self) {
        self.inner.shared.close();
        let Some(running) = self.inner.running.lock().take() else {
            return;
        };
        // Panics are caught and reported inside.
        let _ = running.raft.await;
        let joined = tokio::task::spawn_blocking(move || {
            for thread in running.threads {
                let _ = thread.join();
            }
        });
        let _ = joined.await;
    }

    fn event(&self, event: Event) {
        // A node that stopped needs no news.
        let _ = self.inner.shared.inbox.event(event);
    }
}

impl<R> Drop for Inner<R> {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl<R> fmt::Debug for Node<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.inner.shared.id)
            .finish_non_exhaustive()
    }
}

/// Bounds that handles check by themselves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub commit_gap_max: u64,
    pub proposal_bytes_max: usize,
    pub proposals_max: usize,
    pub reads_max: usize,
}

/// Counts a proposal while it waits.
struct Pending<'a>(&'a metrics::Gauge);

impl<'a> Pending<'a> {
    fn new(gauge: &'a metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Pending(gauge)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

impl<R> Shared<R> {
    /// etcd: server/etcdserver/v3_server.go, `processInternalRaftRequestOnce`.
    fn admits_proposals(&self) -> Result<(), ProposeError> {
        let numbers = &self.numbers;
        let committed = numbers.committed.load(Ordering::Relaxed);
        let applied = numbers.applied.load(Ordering::Relaxed);
        let behind = committed.saturating_sub(applied) > self.limits.commit_gap_max;
        if behind || numbers.backlogged.load(Ordering::Relaxed) {
            return Err(ProposeError::TooManyRequests);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_are_refused_when_too_much_is_committed_and_not_applied() {
        let limits = Limits {
            commit_gap_max: 5_000,
            proposal_bytes_max: 1,
            proposals_max: 1,
            reads_max: 1,
        };
        let metrics = Arc::new(Metrics::register(&metrics::NoopRecorder));
        let shared: Shared<()> = Shared::new(MemberId(1), metrics, Inbox::new(1), limits);
        let numbers = &shared.numbers;
        numbers.applied.store(70, Ordering::Relaxed);
        let refused = Err(ProposeError::TooManyRequests);
        for (committed, backlogged, verdict) in [
            (70, false, Ok(())),
            (5_070, false, Ok(())),
            (5_071, false, refused.clone()),
            (70, true, refused),
        ] {
            numbers.committed.store(committed, Ordering::Relaxed);
            numbers.backlogged.store(backlogged, Ordering::Relaxed);
            assert_eq!(shared.admits_proposals(), verdict, "{committed}");
        }
    }
}
