//! What a peer sent and raft has not seen yet: one lane for proposals, one for everything else.
//!
//! Each lane has its own task that hands messages to [`Raft::process`] one after the other, because a proposal may
//! wait for as long as there is no leader. Invariant: a reader never waits here; what does not fit is dropped,
//! counted by reason and logged once in a while, and a heartbeat always fits.
//!
//! etcd: server/etcdserver/api/rafthttp/peer.go, `recvc` and `propc`.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    lane::{Budget, DropReason, Pushed, SharedBudget},
    raftpb::{Message, MessageType},
};

use crate::{
    config::TransportConfig,
    log_gate::LogGate,
    metered_lane::MeteredLane,
    metrics::{PeerMetrics, Queue},
    raft::{ProcessError, Raft},
};

/// How much a worker takes at once: what arrives meanwhile and is urgent waits behind no more than this.
pub(crate) const BATCH_BYTES: usize = 64 << 10;

/// Both lanes of one peer.
pub(crate) struct Inbox {
    peer: MemberId,
    receive: Intake,
    proposals: Intake,
    metrics: Arc<PeerMetrics>,
    refused: LogGate,
}

struct Intake {
    lane: Mutex<MeteredLane>,
    arrived: Notify,
    queue: Queue,
}

impl Intake {
    fn new(budget: Budget, shared: SharedBudget, metrics: &PeerMetrics, queue: Queue) -> Self {
        Intake {
            lane: Mutex::new(MeteredLane::new(budget, shared, metrics.queue(queue))),
            arrived: Notify::new(),
            queue,
        }
    }

    fn push(&self, message: Message) -> Result<(), DropReason> {
        let mut lane = self.lane.lock();
        let was_empty = lane.is_empty();
        let pushed = lane.push(message);
        drop(lane);
        match pushed {
            Ok(Pushed::Queued) if was_empty => self.arrived.notify_one(),
            Ok(Pushed::Queued | Pushed::Merged) => {}
            Err(refused) => return Err(refused.reason),
        }
        Ok(())
    }

    fn refuse(&self, reason: DropReason) -> Result<(), DropReason> {
        self.dropped(reason, 1);
        Err(reason)
    }

    fn dropped(&self, reason: DropReason, count: usize) {
        self.lane.lock().dropped(reason, count);
    }

    async fn take(&self, into: &mut Vec<Message>) {
        loop {
            let arrived = self.arrived.notified();
            if self.lane.lock().drain(BATCH_BYTES, into) > 0 {
                return;
            }
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
    pub(crate) fn new(config: &TransportConfig, peer: MemberId, metrics: Arc<PeerMetrics>) -> Self {
        let intake = |budget, queue| Intake::new(budget, config.budget.clone(), &metrics, queue);
        Inbox {
            peer,
            receive: intake(config.limits.receive, Queue::Receive),
            proposals: intake(config.limits.proposal, Queue::Proposal),
            refused: LogGate::default(),
            metrics,
        }
    }

    /// Takes a message in, or drops it. `is_active` only chooses the words of the log line.
    pub(crate) fn push(&self, message: Message, is_active: bool) {
        let kind = message.kind();
        let (intake, pushed) = match kind {
            None => (&self.receive, self.receive.refuse(DropReason::UnknownType)),
            Some(kind) if kind.is_local() => {
                (&self.receive, self.receive.refuse(DropReason::LocalType))
            }
            Some(MessageType::Propose) => (&self.proposals, self.proposals.push(message)),
            Some(_) => (&self.receive, self.receive.push(message)),
        };
        let Err(reason) = pushed else { return };
        self.metrics.received_failures.increment(1);
        if let Some(held_back) = self.refused.open() {
            tracing::warn!(
                "message-type" = ?kind,
                "remote-peer-id" = %self.peer,
                "remote-peer-active" = is_active,
                queue = intake.queue.name(),
                reason = %reason,
                "held-back" = held_back,
                "dropped received Raft message"
            );
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
            let failed = LogGate::default();
            loop {
                intake.take(&mut batch.messages).await;
                batch.messages.reverse();
                while let Some(message) = batch.messages.pop() {
                    batch.processing = true;
                    let processed = raft.process(message).await;
                    batch.processing = false;
                    if let Err(error) = processed {
                        self.not_processed(intake, &failed, &error);
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
        intake.lane.lock().stop();
    }

    fn not_processed(&self, intake: &Intake, gate: &LogGate, error: &ProcessError) {
        if *error == ProcessError::Stopped {
            return intake.dropped(DropReason::Stopped, 1);
        }
        intake.dropped(DropReason::Refused, 1);
        if let Some(held_back) = gate.open() {
            tracing::warn!(
                "remote-peer-id" = %self.peer,
                error = %error,
                "held-back" = held_back,
                "failed to process Raft message"
            );
        }
    }
}
