//! The pipeline: one POST per message, four at a time.
//!
//! For messages without a stream, and all there is for a remote. Workers begin when there is something to send, and end
//! when there was nothing for a while; each keeps its connection for the next message until then. Invariant: a message arrives at most once, since a proposal that arrives twice is
//! applied twice: it is sent again only when a kept connection was over before any of it left. Whatever else fails
//! is counted, reported to raft and not tried again.
//!
//! etcd: server/etcdserver/api/rafthttp/pipeline.go.

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    handshake::{PostVerdict, RAFT_PATH},
    lane::{Class, DropReason, Refused},
    raftpb::MessageType,
    stats::FollowerStats,
    status::{Action, Source},
};

use crate::{
    activity::Activity,
    body::{RequestBody, piece},
    client::{ANSWER_BYTES, Connection, Unanswered},
    environment::Environment,
    error::{ClientError, CriticalError},
    metered_lane::MeteredLane,
    metrics::{PeerMetrics, Queue, QueueMetrics},
    net::PeerUrl,
    outbound::Outbound,
    raft::SnapshotStatus,
    requests::request,
    url_picker::UrlPicker,
};

/// Concurrent POSTs per peer or remote.
pub(crate) const PIPELINE_WORKERS: usize = 4;
/// Messages waiting for a worker.
pub(crate) const PIPELINE_QUEUE_MESSAGES: usize = 64;
/// Longer idle than this, a server with etcd's read timeout is about to close a connection: then it is dropped.
const KEEP_IDLE: Duration = Duration::from_secs(4);

/// Why a POST did not end in 204.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the member has been removed from the cluster")]
    Removed,
    #[error("incompatible version")]
    IncompatibleVersion,
    #[error("cluster ID mismatch")]
    ClusterIdMismatch,
    #[error("unexpected status {0}: {1:?}")]
    Status(StatusCode, String),
}

/// Ok if raft has it.
pub(crate) fn check_answer(status: StatusCode, body: &[u8]) -> Result<(), PostError> {
    match PostVerdict::read(status, body) {
        PostVerdict::Delivered => Ok(()),
        PostVerdict::Removed => Err(PostError::Removed),
        PostVerdict::IncompatibleVersion => Err(PostError::IncompatibleVersion),
        PostVerdict::ClusterIdMismatch => Err(PostError::ClusterIdMismatch),
        PostVerdict::PreconditionFailed | PostVerdict::Unexpected(_) => {
            Err(PostError::Status(status, excerpt(body)))
        }
    }
}

/// The beginning of an answer, for an error text.
pub(crate) fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body)
        .trim_end()
        .chars()
        .take(200)
        .collect()
}

/// The queue in front of the workers: a lane that is also bounded in number.
pub(crate) struct PipelineQueue {
    state: Mutex<State>,
    arrived: Notify,
}

struct State {
    lane: MeteredLane<Outbound>,
    workers: usize,
    /// How many of them wait for a message.
    idle: usize,
}

/// A worker that waits for a message.
struct Waiting<'a>(&'a PipelineQueue);

impl<'a> Waiting<'a> {
    fn new(queue: &'a PipelineQueue) -> Self {
        queue.state.lock().idle += 1;
        Waiting(queue)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.state.lock().idle -= 1;
    }
}

impl PipelineQueue {
    fn new(env: &Environment, metrics: QueueMetrics) -> Self {
        let config = &env.config;
        let lane = MeteredLane::new(config.limits.pipeline, config.budget.clone(), metrics);
        let (workers, idle) = (0, 0);
        PipelineQueue {
            state: Mutex::new(State {
                lane,
                workers,
                idle,
            }),
            arrived: Notify::new(),
        }
    }

    /// Queues a message, or hands it back with the reason when the queue is full or nobody empties it any more.
    /// `start_worker` is called if there are fewer workers than may be and none is idle; not after a stop.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    fn push(
        &self,
        message: Outbound,
        start_worker: impl FnOnce(),
    ) -> Result<(), Refused<Outbound>> {
        let mut state = self.state.lock();
        let is_heartbeat = matches!(
            Class::of(message.as_ref()),
            Class::Heartbeat | Class::HeartbeatResponse
        );
        if state.lane.len() >= PIPELINE_QUEUE_MESSAGES && !is_heartbeat {
            return Err(state.lane.refuse(message, DropReason::BulkFull));
        }
        state.lane.push(message)?;
        if state.lane.len() > state.idle && state.workers < PIPELINE_WORKERS {
            state.workers += 1;
            // Before the lock goes: a stop that comes now finds the task.
            start_worker();
            return Ok(());
        }
        drop(state);
        // The worker that became idle last has the freshest connection.
        self.arrived.notify_last();
        Ok(())
    }

    /// Waits for the next message; a heartbeat and its response come together.
    async fn pop(&self, into: &mut Vec<Outbound>) {
        let _waiting = Waiting::new(self);
        loop {
            let arrived = self.arrived.notified();
            if self.try_pop(into) {
                return;
            }
            arrived.await;
        }
    }

    fn try_pop(&self, into: &mut Vec<Outbound>) -> bool {
        let mut state = self.state.lock();
        if state.lane.is_empty() {
            return false;
        }
        state.lane.drain(1, into);
        if !state.lane.is_empty() {
            // Wake-ups that find no waiter merge into one: pass it on.
            self.arrived.notify_last();
        }
        true
    }

    /// Whether a worker may end: not while something waits.
    fn leave(&self) -> bool {
        let mut state = self.state.lock();
        let leaves = state.lane.is_empty();
        if leaves {
            state.workers -= 1;
        }
        leaves
    }

    /// Drops what waits.
    pub(crate) fn clear(&self, reason: DropReason) {
        self.state.lock().lane.clear(reason);
    }

    /// Drops what waits and refuses what comes.
    pub(crate) fn stop(&self) {
        self.state.lock().lane.stop();
    }

    /// Counts messages that did not come through.
    pub(crate) fn dropped(&self, reason: DropReason, count: usize) {
        self.state.lock().lane.dropped(reason, count);
    }
}

/// What the workers of one peer or remote share.
pub(crate) struct Pipeline {
    pub(crate) peer: MemberId,
    pub(crate) env: Arc<Environment>,
    pub(crate) queue: PipelineQueue,
    pub(crate) picker: Arc<UrlPicker>,
    /// None for a remote: it has no status.
    pub(crate) activity: Option<Arc<Activity>>,
    /// None for a remote.
    pub(crate) follower: Option<Arc<Mutex<FollowerStats>>>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) cancel: CancellationToken,
}

/// A worker's connection, between two messages.
type Kept = Option<Connection>;

/// The messages a worker has taken; what it does not come to is counted when it ends.
struct Popped<'a> {
    messages: Vec<Outbound>,
    queue: &'a PipelineQueue,
    /// One is being sent.
    sending: bool,
}

impl Drop for Popped<'_> {
    fn drop(&mut self) {
        let count = self.messages.len() + usize::from(self.sending);
        self.queue.dropped(DropReason::Stopped, count);
    }
}

impl Pipeline {
    /// A queue for [`Pipeline::queue`].
    pub(crate) fn queue(env: &Environment, metrics: &PeerMetrics) -> PipelineQueue {
        PipelineQueue::new(env, metrics.queue(Queue::Pipeline))
    }

    /// Queues a message, or hands it back with the reason.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    pub(crate) fn send(self: &Arc<Self>, message: Outbound) -> Result<(), Refused<Outbound>> {
        let start_worker = || self.env.spawn(Arc::clone(self).work());
        self.queue.push(message, start_worker)
    }

    /// One worker; runs until cancelled, or until nothing comes for a while.
    async fn work(self: Arc<Self>) {
        let mut kept = None;
        let mut popped = Popped {
            messages: Vec::new(),
            queue: &self.queue,
            sending: false,
        };
        let working = async {
            while self.wait(&mut kept, &mut popped.messages).await {
                while !popped.messages.is_empty() {
                    let message = popped.messages.remove(0);
                    popped.sending = true;
                    self.post_and_report(&mut kept, message).await;
                    popped.sending = false;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            () = working => {}
        }
    }

    /// Waits for work; false if none comes for [`KEEP_IDLE`] and the worker is to end. Meanwhile the connection is
    /// given up when the server closes it.
    async fn wait(&self, kept: &mut Kept, into: &mut Vec<Outbound>) -> bool {
        let mut popping = pin!(self.queue.pop(into));
        let closed = async {
            match kept {
                Some(connection) => connection.until_closed().await,
                None => pending().await,
            }
        };
        let idle = sleep(KEEP_IDLE);
        let is_closed = tokio::select! {
            biased;
            () = popping.as_mut() => return true,
            () = closed => true,
            () = idle => false,
        };
        *kept = None;
        if is_closed && timeout(KEEP_IDLE, popping).await.is_ok() {
            return true;
        }
        !self.queue.leave()
    }

    async fn post_and_report(&self, kept: &mut Kept, message: Outbound) {
        let kind = message.as_ref().kind();
        let bytes = message.encoded_len();
        let mut body = BytesMut::with_capacity(bytes);
        message.encode(&mut body);
        if message.own_entries() > 0 {
            let encodes = &self.env.metrics.entry_encodes;
            encodes.increment(message.own_entries());
        }
        let begun = Instant::now();
        let outcome = self.post(kept, body.freeze()).await;
        let is_append = kind == Some(MessageType::Append);
        match outcome {
            Ok(()) => {
                if let Some(activity) = &self.activity {
                    activity.activate();
                }
                if let Some(follower) = self.follower.as_ref().filter(|_| is_append) {
                    follower.lock().succeed(begun.elapsed());
                }
                if kind == Some(MessageType::Snapshot) {
                    self.env
                        .reports
                        .report_snapshot(self.peer, SnapshotStatus::Finish);
                }
                self.metrics.sent_bytes.increment(bytes as u64);
            }
            Err(error) => {
                *kept = None;
                if matches!(error, PostError::Removed) {
                    self.env
                        .reports
                        .critical(CriticalError::Removed { by: self.peer });
                }
                if let Some(activity) = &self.activity {
                    activity.deactivate(Source::Pipeline, Action::Write, &error);
                }
                if let Some(follower) = self.follower.as_ref().filter(|_| is_append) {
                    follower.lock().fail();
                }
                self.env.reports.report_unreachable(self.peer);
                if kind == Some(MessageType::Snapshot) {
                    self.env
                        .reports
                        .report_snapshot(self.peer, SnapshotStatus::Failure);
                }
                self.metrics.sent_failures.increment(1);
                self.queue.dropped(DropReason::RequestFailed, 1);
            }
        }
    }

    async fn post(&self, kept: &mut Kept, body: Bytes) -> Result<(), PostError> {
        let url = self.picker.pick();
        let usable = match kept.take() {
            Some(mut old) if **old.url() == *url => old.is_open().await.then_some(old),
            _ => None,
        };
        if let Some(connection) = usable {
            match self.exchange(kept, connection, body.clone()).await {
                // The server had closed it: nothing of the message has left.
                Err(failed) if failed.unsent => {}
                outcome => return self.judge(&url, outcome),
            }
        }
        let connection = match self.env.dialer.open_any(&self.picker).await {
            Ok(connection) => connection,
            Err(error) => return self.judge(&url, Err(error.into())),
        };
        let url = Arc::clone(connection.url());
        let outcome = self.exchange(kept, connection, body).await;
        self.judge(&url, outcome)
    }

    /// Posts on a connection, which is kept if it answers.
    async fn exchange(
        &self,
        kept: &mut Kept,
        mut connection: Connection,
        body: Bytes,
    ) -> Result<Response<Bytes>, Unanswered> {
        let request = self.request(connection.url(), body);
        let answer = connection
            .exchange(request, self.env.config.limits.post_timeout, ANSWER_BYTES)
            .await?;
        *kept = Some(connection);
        Ok(answer)
    }

    /// What became of a POST to `url`; any failure turns to the next URL.
    fn judge(
        &self,
        url: &PeerUrl,
        outcome: Result<Response<Bytes>, Unanswered>,
    ) -> Result<(), PostError> {
        let outcome = match outcome {
            Ok(answer) => check_answer(answer.status(), answer.body()),
            Err(failed) => Err(failed.error.into()),
        };
        if outcome.is_err() {
            self.picker.unreachable(url);
        }
        outcome
    }

    fn request(&self, url: &PeerUrl, body: Bytes) -> Request<RequestBody> {
        let mut request = request(
            &self.env.identity,
            Method::POST,
            url,
            RAFT_PATH,
            None,
            piece(body),
        );
        let protobuf = HeaderValue::from_static("application/protobuf");
        request.headers_mut().insert(header::CONTENT_TYPE, protobuf);
        request
    }
}
