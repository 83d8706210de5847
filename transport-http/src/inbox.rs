//! What a peer sent and raft has not seen yet: one lane for proposals, one for everything else.
//!
//! Each lane has its own task that hands messages to [`Raft::process`] one after the other, because a proposal may
//! wait for as long as there is no leader. What raft takes without waiting, and nothing waits before it, passes by
//! the lane ([`Raft::try_process`]): the hop to another task is what a lone message's time is made of. Invariant: a
//! reader never waits here; what does not fit is dropped, counted by reason and logged once in a while, and a heartbeat
//! always fits.
//!
//! etcd: server/etcdserver/api/rafthttp/peer.go, `recvc` and `propc`.

use std::{iter, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    lane::{Budget, DropReason, Refused, SharedBudget},
    raftpb::{Message, MessageType},
};

use crate::{
    activity::Activity,
    environment::Environment,
    log_gate::LogGate,
    messages::Messages,
    metered_lane::MeteredLane,
    metrics::{PeerMetrics, Queue},
    raft::{ProcessError, Raft, Tried},
    reports::Reports,
};

/// How much a worker takes at once: what arrives meanwhile and is urgent waits behind no more than this.
pub(crate) const BATCH_BYTES: usize = 64 << 10;

/// For how many messages a worker keeps room while it waits.
const IDLE_BATCH: usize = 32;

/// Both lanes of one peer.
pub(crate) struct Inbox {
    peer: MemberId,
    receive: Intake,
    proposals: Intake,
    reports: Arc<dyn Reports>,
    metrics: Arc<PeerMetrics>,
    refused: LogGate,
    failed: LogGate,
}

/// Where a received message belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Receive,
    Proposal,
    Nowhere(DropReason),
}

impl Place {
    #[inline]
    fn of(message: &Message) -> Place {
        match message.kind() {
            None => Place::Nowhere(DropReason::UnknownType),
            Some(kind) if kind.is_local() => Place::Nowhere(DropReason::LocalType),
            Some(MessageType::Propose) => Place::Proposal,
            Some(_) => Place::Receive,
        }
    }
}

struct Intake {
    state: Mutex<State>,
    arrived: Notify,
    queue: Queue,
}

struct State {
    lane: MeteredLane,
    /// Whether the worker has messages that it took out.
    busy: bool,
}

impl Intake {
    fn new(budget: Budget, shared: SharedBudget, metrics: &PeerMetrics, queue: Queue) -> Self {
        Intake {
            state: Mutex::new(State {
                lane: MeteredLane::new(budget, shared, metrics.queue(queue)),
                busy: false,
            }),
            arrived: Notify::new(),
            queue,
        }
    }

    /// Whether everything that was ever pushed has been processed.
    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        !state.busy && state.lane.is_empty()
    }

    /// Takes messages in; what has no room is counted and goes to `refused`.
    fn push_all(&self, messages: impl Iterator<Item = Message>, refused: impl FnMut(Refused)) {
        let mut state = self.state.lock();
        let was_empty = state.lane.is_empty();
        let queued = state.lane.push_all(messages, refused);
        drop(state);
        if queued && was_empty {
            self.arrived.notify_one();
        }
    }

    fn dropped(&self, reason: DropReason, count: usize) {
        self.state.lock().lane.dropped(reason, count);
    }

    async fn take(&self, into: &mut Vec<Message>) {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.state.lock();
                state.busy = state.lane.drain(BATCH_BYTES, into) > 0;
                if state.busy {
                    return;
                }
            }
            // A batch may have been large, and the next one may be far off.
            into.shrink_to(IDLE_BATCH);
            arrived.await;
        }
    }
}

/// The messages a worker has taken; those raft did not get are counted when the worker ends.
struct Batch<'a> {
    /// Last first.
    messages: Vec<Message>,
    intake: &'a Intake,
    /// One is with raft, which may or may not have it.
    processing: bool,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let count = self.messages.len() + usize::from(self.processing);
        self.intake.dropped(DropReason::Stopped, count);
    }
}

impl Inbox {
    pub(crate) fn new(env: &Environment, peer: MemberId, metrics: Arc<PeerMetrics>) -> Self {
        let config = &env.config;
        let intake = |budget, queue| Intake::new(budget, config.budget.clone(), &metrics, queue);
        Inbox {
            peer,
            receive: intake(config.limits.receive, Queue::Receive),
            proposals: intake(config.limits.proposal, Queue::Proposal),
            reports: Arc::clone(&env.reports),
            refused: LogGate::default(),
            failed: LogGate::default(),
            metrics,
        }
    }

    /// Takes messages of one stream in, or drops them. While nothing waits, those that raft takes at once do not
    /// wait either; `activity` only chooses the words of the log line.
    pub(crate) fn push_all(&self, messages: &mut Vec<Message>, activity: &Activity) {
        let mut messages = Messages::from(messages);
        let mut back = None;
        if messages.first().is_some() && self.receive.is_idle() {
            back = self.hand_over(&mut messages);
        }
        while let Some(place) = back.as_ref().or(messages.first()).map(Place::of) {
            let rest = iter::from_fn(|| messages.next_if(|next| Place::of(next) == place));
            let run = back.take().into_iter().chain(rest);
            let refused = |back: Refused| self.not_taken(&back, place, activity);
            match place {
                Place::Receive => self.receive.push_all(run, refused),
                Place::Proposal => self.proposals.push_all(run, refused),
                Place::Nowhere(reason) => run.for_each(|message| {
                    self.receive.dropped(reason, 1);
                    refused(Refused { message, reason });
                }),
            }
        }
    }

    /// Hands messages to raft for as long as it takes them at once; the one it gives back, if any. Those before it
    /// are processed, so the order of the stream is kept.
    fn hand_over(&self, messages: &mut Messages<'_>) -> Option<Message> {
        while let Some(message) = messages.next_if(|next| Place::of(next) == Place::Receive) {
            match self.reports.try_process(message) {
                Tried::Done(outcome) => {
                    outcome.unwrap_or_else(|error| self.not_processed(&self.receive, &error))
                }
                Tried::Busy(back) => return Some(back),
            }
        }
        None
    }

    #[cold]
    fn not_taken(&self, back: &Refused, place: Place, activity: &Activity) {
        let intake = match place {
            Place::Proposal => &self.proposals,
            Place::Receive | Place::Nowhere(_) => &self.receive,
        };
        self.metrics.received_failures.increment(1);
        if let Some(held_back) = self.refused.open() {
            tracing::warn!(
                "message-type" = ?back.message.kind(),
                "remote-peer-id" = %self.peer,
                "remote-peer-active" = activity.is_active(),
                queue = intake.queue.name(),
                reason = %back.reason,
                "held-back" = held_back,
                "dropped received Raft message"
            );
        }
    }

    /// Nothing came for a while: gives back what a burst needed.
    pub(crate) fn shrink(&self) {
        for intake in [&self.receive, &self.proposals] {
            intake.state.lock().lane.shrink();
        }
    }

    /// A message came while the peer is paused.
    pub(crate) fn drop_paused(&self) {
        self.receive.dropped(DropReason::Paused, 1);
    }

    /// Hands messages other than proposals to raft until cancelled.
    pub(crate) async fn work_receive<R: Raft>(
        self: Arc<Self>,
        raft: Arc<R>,
        cancel: CancellationToken,
    ) {
        self.work(&self.receive, &*raft, cancel).await;
    }

    /// Hands proposals to raft until cancelled.
    pub(crate) async fn work_proposals<R: Raft>(
        self: Arc<Self>,
        raft: Arc<R>,
        cancel: CancellationToken,
    ) {
        self.work(&self.proposals, &*raft, cancel).await;
    }

    async fn work<R: Raft>(&self, intake: &Intake, raft: &R, cancel: CancellationToken) {
        let mut batch = Batch {
            messages: Vec::new(),
            intake,
            processing: false,
        };
        let working = async {
            loop {
                intake.take(&mut batch.messages).await;
                batch.messages.reverse();
                while let Some(message) = batch.messages.pop() {
                    batch.processing = true;
                    let processed = raft.process(message).await;
                    batch.processing = false;
                    if let Err(error) = processed {
                        self.not_processed(intake, &error);
                    }
                }
                // A raft that is never busy must not keep the other tasks of this thread waiting.
                tokio::task::coop::consume_budget().await;
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = working => {}
        }
        intake.state.lock().lane.stop();
    }

    fn not_processed(&self, intake: &Intake, error: &ProcessError) {
        if *error == ProcessError::Stopped {
            return intake.dropped(DropReason::Stopped, 1);
        }
        intake.dropped(DropReason::Refused, 1);
        if let Some(held_back) = self.failed.open() {
            tracing::warn!(
                "remote-peer-id" = %self.peer,
                error = %error,
                "held-back" = held_back,
                "failed to process Raft message"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::{error::CriticalError, metrics::Metrics, raft::SnapshotStatus};

    /// Takes as many messages at once as it has room.
    #[derive(Default)]
    struct Rooms {
        free: Mutex<usize>,
        taken: Mutex<Vec<u64>>,
    }

    impl Reports for Rooms {
        fn try_process(&self, message: Message) -> Tried {
            let mut free = self.free.lock();
            if *free == 0 {
                return Tried::Busy(message);
            }
            *free -= 1;
            self.taken.lock().push(message.index);
            Tried::Done(Ok(()))
        }

        fn report_unreachable(&self, _: MemberId) {}
        fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
        fn critical(&self, _: CriticalError) {}
    }

    #[test]
    fn what_raft_takes_at_once_never_overtakes_what_waits() {
        let recorder = Arc::new(metrics::NoopRecorder);
        let (local, peer) = (MemberId(1), MemberId(2));
        let metrics = Arc::new(Metrics::new(recorder, local).peer(peer));
        let activity = Activity::new(local, peer, Arc::clone(&metrics));
        let rooms = Arc::new(Rooms::default());
        let intake =
            |queue| Intake::new(Budget::default(), SharedBudget::default(), &metrics, queue);
        let inbox = Inbox {
            peer,
            receive: intake(Queue::Receive),
            proposals: intake(Queue::Proposal),
            reports: Arc::clone(&rooms) as _,
            refused: LogGate::default(),
            failed: LogGate::default(),
            metrics: Arc::clone(&metrics),
        };
        let push = |kind: MessageType, indexes: std::ops::Range<u64>| {
            let message = |index| Message {
                msg_type: kind as i32,
                index,
                ..Message::default()
            };
            inbox.push_all(&mut indexes.map(message).collect(), &activity);
        };
        let mut queued = Vec::new();
        *rooms.free.lock() = 2;
        push(MessageType::Append, 0..4);
        assert_eq!(*rooms.taken.lock(), [0, 1], "the others wait");
        *rooms.free.lock() = 9;
        push(MessageType::Append, 4..5);
        assert_eq!(rooms.taken.lock().len(), 2, "behind those");
        assert!(inbox.receive.take(&mut queued).now_or_never().is_some());
        push(MessageType::Append, 5..6);
        assert_eq!(rooms.taken.lock().len(), 2, "the worker still has them");
        assert!(inbox.receive.take(&mut queued).now_or_never().is_some());
        assert!(inbox.receive.take(&mut queued).now_or_never().is_none());
        push(MessageType::Append, 6..7);
        push(MessageType::Propose, 7..8);
        assert_eq!(*rooms.taken.lock(), [0, 1, 6], "nothing waits any more");
        let queued: Vec<u64> = queued.iter().map(|message| message.index).collect();
        assert_eq!(queued, [2, 3, 4, 5]);
        assert!(!inbox.proposals.is_idle(), "a proposal may have to wait");
    }
}
