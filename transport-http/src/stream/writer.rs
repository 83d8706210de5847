//! The sending side of a stream: a lane, and the one connection that drains it.
//!
//! [`push_all`](StreamWriter::push_all) is called by raft's thread and only takes a short lock; the connection's own task
//! drains the lane while it writes ([`StreamBody`]), so no task stands between the two. Invariant: at most one
//! connection is attached. A new one takes over at once: the old one gets nothing more and ends, what still waited
//! for it is dropped and reported to raft once, and the new one begins with a fresh encoder.
//!
//! etcd: server/etcdserver/api/rafthttp/stream.go, `streamWriter`.

use std::{
    fmt, iter,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use transport_core::{
    MemberId,
    handshake::StreamKind,
    lane::{DropReason, Refused},
    stats::FollowerStats,
    status::Action,
};

use crate::{
    activity::Activity,
    environment::Environment,
    log_gate::LogGate,
    metered_lane::MeteredLane,
    metrics::{PeerMetrics, StreamOutMetrics},
    outbound::Outbound,
    serve::ConnectionEnd,
    stream::{
        body::StreamBody,
        line::{ALONE_BYTES_MAX, Due, Dues, Line},
        queue, source,
    },
};

pub(crate) struct StreamWriter {
    pub(crate) kind: StreamKind,
    pub(crate) peer: MemberId,
    pub(crate) env: Arc<Environment>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) stream_metrics: StreamOutMetrics,
    pub(crate) follower: Arc<Mutex<FollowerStats>>,
    attached: AtomicBool,
    state: Mutex<State>,
    opened: LogGate,
    closed: LogGate,
}

struct State {
    lane: MeteredLane<Outbound>,
    /// Number of the attached connection; 0 for none.
    connection: u64,
    /// How many were ever attached.
    connections: u64,
    /// The attached connection's task, while it waits for messages.
    waiting: Option<Waker>,
    /// The attached connection, for who sends.
    line: Weak<Line>,
    /// Closes the attached connection.
    end: ConnectionEnd,
    stopped: bool,
}

/// No connection is attached: the message takes another channel.
pub(crate) struct Idle(pub(crate) Outbound);

/// What a connection finds in the lane.
pub(crate) enum Taken {
    /// Messages, and the bytes they took in the lane; all that waited, or as much as one write may take.
    Batch { bytes: usize, is_all: bool },
    /// Nothing; the task is woken when that changes.
    Nothing,
    /// Another connection is attached, or none any more: end the stream.
    Replaced,
}

impl StreamWriter {
    pub(crate) fn new(
        kind: StreamKind,
        peer: MemberId,
        env: Arc<Environment>,
        activity: Arc<Activity>,
        metrics: Arc<PeerMetrics>,
        follower: Arc<Mutex<FollowerStats>>,
    ) -> Self {
        let queue_metrics = metrics.queue(queue(kind));
        let budget = env.config.budget.clone();
        let lane = MeteredLane::new(env.config.limits.stream, budget, queue_metrics);
        StreamWriter {
            kind,
            peer,
            stream_metrics: metrics.stream_out(queue(kind)),
            env,
            activity,
            metrics,
            follower,
            attached: AtomicBool::new(false),
            state: Mutex::new(State {
                lane,
                connection: 0,
                connections: 0,
                waiting: None,
                line: Weak::new(),
                end: ConnectionEnd::default(),
                stopped: false,
            }),
            opened: LogGate::default(),
            closed: LogGate::default(),
        }
    }

    /// Whether a connection is there to drain the lane.
    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// Queues messages. A connection that has to write them is added to `dues`. Gives back what the lane has no room
    /// for.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    pub(crate) fn push_all(
        &self,
        first: Outbound,
        others: impl Iterator<Item = Outbound>,
        dues: &mut Dues,
    ) -> Result<Vec<Refused<Outbound>>, Idle> {
        let mut refused = Vec::new();
        let mut state = self.state.lock();
        if state.connection == 0 {
            return Err(Idle(first));
        }
        let messages = iter::once(first).chain(others);
        if state.lane.push_all(messages, |back| refused.push(back))
            && let Some(task) = state.waiting.take()
        {
            let alone = state.lane.len() == 1 && state.lane.bytes() <= ALONE_BYTES_MAX;
            let alone = alone.then(|| Weak::clone(&state.line));
            dues.push(Due { task, alone });
        }
        Ok(refused)
    }

    /// Makes a new connection the one, which `end` closes; `None` once the peer is stopped.
    pub(crate) fn attach(self: &Arc<Self>, end: ConnectionEnd) -> Option<StreamBody> {
        let mut state = self.state.lock();
        if state.stopped {
            return None;
        }
        let replaced = state.connection != 0;
        let old = state.waiting.take();
        let old_end = std::mem::replace(&mut state.end, end);
        let cleared = state.lane.clear(DropReason::ConnectionLost);
        state.line = Weak::new();
        state.connections += 1;
        state.connection = state.connections;
        let number = state.connection;
        self.attached.store(true, Ordering::Relaxed);
        self.stream_metrics.attached.set(1.0);
        drop(state);
        match old {
            // Woken, it finds itself replaced and ends its response.
            Some(waker) => waker.wake(),
            // It is writing, perhaps to a socket that takes nothing any more.
            None => old_end.close(),
        }
        if replaced {
            self.log_closed(&"replaced by a new connection");
        }
        if cleared > 0 {
            self.env.reports.report_unreachable(self.peer);
        }
        self.activity.activate();
        if let Some(held_back) = self.opened.open() {
            tracing::info!(
                "stream-writer-type" = %self.kind,
                "local-member-id" = %self.env.config.id,
                "remote-peer-id" = %self.peer,
                "held-back" = held_back,
                "established TCP streaming connection with remote peer"
            );
        }
        Some(StreamBody::new(Arc::clone(self), number))
    }

    /// Connection `number` can be written to from now on.
    pub(crate) fn announce(&self, number: u64, line: Weak<Line>) {
        let mut state = self.state.lock();
        if state.connection == number {
            state.line = line;
        }
    }

    /// Moves what waits, up to the flush bound, to `batch`, for connection `number`.
    pub(crate) fn take(&self, number: u64, batch: &mut Vec<Outbound>, cx: &Context<'_>) -> Taken {
        let mut state = self.state.lock();
        if state.connection != number {
            return Taken::Replaced;
        }
        let bytes = state.lane.drain(self.flush_bytes(), batch);
        if bytes > 0 {
            return Taken::Batch {
                bytes,
                is_all: state.lane.is_empty(),
            };
        }
        match &mut state.waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => state.waiting = Some(cx.waker().clone()),
        }
        Taken::Nothing
    }

    /// Connection `number` broke; nothing if it was replaced before.
    pub(crate) fn lost(&self, number: u64, action: Action, reason: &dyn fmt::Display) {
        let mut state = self.state.lock();
        if state.connection != number {
            return;
        }
        self.detach(&mut state, DropReason::ConnectionLost);
        drop(state);
        self.activity.deactivate(source(self.kind), action, reason);
        self.metrics.sent_failures.increment(1);
        self.env.reports.report_unreachable(self.peer);
        self.log_closed(reason);
    }

    /// Ends the stream properly; nothing is attached any more.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let was_attached = state.connection != 0;
        let waiting = state.waiting.take();
        self.detach(&mut state, DropReason::Stopped);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        if was_attached {
            self.log_closed(&"stopped");
        }
    }

    /// Nothing was sent for a while: gives back what a burst needed.
    pub(crate) fn shrink(&self) {
        self.state.lock().lane.shrink();
    }

    /// What one write takes at most, or one message.
    pub(crate) fn flush_bytes(&self) -> usize {
        self.env.config.limits.flush_bytes
    }

    /// Pause between link heartbeats.
    pub(crate) fn heartbeat_period(&self) -> Duration {
        self.env.config.link_heartbeat_period()
    }

    /// Counts a message that was for this stream and did not get into its lane.
    pub(crate) fn dropped(&self, reason: DropReason) {
        self.state.lock().lane.dropped(reason, 1);
    }

    fn detach(&self, state: &mut State, reason: DropReason) {
        state.connection = 0;
        state.waiting = None;
        state.line = Weak::new();
        self.attached.store(false, Ordering::Relaxed);
        self.stream_metrics.attached.set(0.0);
        state.lane.clear(reason);
    }

    fn log_closed(&self, reason: &dyn fmt::Display) {
        if let Some(held_back) = self.closed.open() {
            tracing::warn!(
                "stream-writer-type" = %self.kind,
                "local-member-id" = %self.env.config.id,
                "remote-peer-id" = %self.peer,
                reason = %reason,
                "held-back" = held_back,
                "closed TCP streaming connection with remote peer"
            );
        }
    }
}
