//! The pipeline: one POST per message, four at a time.
//!
//! For messages without a stream, and all there is for a remote. Each worker keeps its connection for the next
//! message, though not for long. Invariant: a message arrives at most once, since a proposal that arrives twice is
//! applied twice: it is sent again only when a kept connection was over before any of it left. Whatever else fails
//! is counted, reported to raft and not tried again.
//!
//! etcd: server/etcdserver/api/rafthttp/pipeline.go.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    handshake::{Identity, PostVerdict, RAFT_PATH},
    lane::{Class, DropReason, Refused},
    raftpb::{Message, MessageType, encode_message, encoded_len},
    stats::FollowerStats,
    status::{Action, Source},
};

use crate::{
    activity::Activity,
    body::{RequestBody, piece},
    client::{ANSWER_BYTES, Connection, Dialer, Unanswered},
    environment::Environment,
    error::{ClientError, CriticalError},
    metered_lane::MeteredLane,
    metrics::{PeerMetrics, QueueMetrics},
    net::PeerUrl,
    raft::SnapshotStatus,
    reports::Reports,
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
    lane: Mutex<MeteredLane>,
    arrived: Notify,
}

impl PipelineQueue {
    pub(crate) fn new(env: &Environment, metrics: QueueMetrics) -> Self {
        let config = &env.config;
        let lane = MeteredLane::new(config.limits.pipeline, config.budget.clone(), metrics);
        PipelineQueue {
            lane: Mutex::new(lane),
            arrived: Notify::new(),
        }
    }

    /// Queues a message, or hands it back with the reason when the queue is full or nobody empties it any more.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    pub(crate) fn push(&self, message: Message) -> Result<(), Refused> {
        let mut lane = self.lane.lock();
        let is_heartbeat = matches!(
            Class::of(&message),
            Class::Heartbeat | Class::HeartbeatResponse
        );
        if lane.len() >= PIPELINE_QUEUE_MESSAGES && !is_heartbeat {
            return Err(lane.refuse(message, DropReason::BulkFull));
        }
        lane.push(message)?;
        drop(lane);
        // The worker that became idle last has the freshest connection.
        self.arrived.notify_last();
        Ok(())
    }

    /// Waits for the next message; a heartbeat and its response come together.
    async fn pop(&self, into: &mut Vec<Message>) {
        loop {
            let arrived = self.arrived.notified();
            if self.try_pop(into) {
                return;
            }
            arrived.await;
        }
    }

    fn try_pop(&self, into: &mut Vec<Message>) -> bool {
        let mut lane = self.lane.lock();
        if lane.is_empty() {
            return false;
        }
        lane.drain(1, into);
        if !lane.is_empty() {
            // Wake-ups that find no waiter merge into one: pass it on.
            self.arrived.notify_last();
        }
        true
    }

    /// Drops what waits.
    pub(crate) fn clear(&self, reason: DropReason) {
        self.lane.lock().clear(reason);
    }

    /// Drops what waits and refuses what comes.
    pub(crate) fn stop(&self) {
        self.lane.lock().stop();
    }

    /// Counts messages that did not come through.
    pub(crate) fn dropped(&self, reason: DropReason, count: usize) {
        self.lane.lock().dropped(reason, count);
    }
}

/// What the workers of one peer or remote share.
pub(crate) struct Pipeline {
    pub(crate) peer: MemberId,
    pub(crate) queue: PipelineQueue,
    pub(crate) dialer: Dialer,
    pub(crate) identity: Arc<Identity>,
    pub(crate) picker: Arc<UrlPicker>,
    /// None for a remote: it has no status.
    pub(crate) activity: Option<Arc<Activity>>,
    /// None for a remote.
    pub(crate) follower: Option<Arc<Mutex<FollowerStats>>>,
    pub(crate) reports: Arc<dyn Reports>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) post_timeout: Duration,
}

/// A worker's connection, between two messages.
type Kept = Option<Connection>;

/// The messages a worker has taken; what it does not come to is counted when it ends.
struct Popped<'a> {
    messages: Vec<Message>,
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
    /// One worker; runs until cancelled.
    pub(crate) async fn work(self: Arc<Self>, cancel: CancellationToken) {
        let mut kept = None;
        let mut popped = Popped {
            messages: Vec::new(),
            queue: &self.queue,
            sending: false,
        };
        let working = async {
            loop {
                self.wait(&mut kept, &mut popped.messages).await;
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
            () = cancel.cancelled() => {}
            () = working => {}
        }
    }

    /// Waits for work. Meanwhile the connection is given up when the server closes it, or when it is about to.
    async fn wait(&self, kept: &mut Kept, into: &mut Vec<Message>) {
        let Some(mut connection) = kept.take() else {
            return self.queue.pop(into).await;
        };
        tokio::select! {
            biased;
            () = connection.until_closed() => {}
            () = tokio::time::sleep(KEEP_IDLE) => {}
            () = self.queue.pop(into) => {
                *kept = Some(connection);
                return;
            }
        }
        drop(connection);
        self.queue.pop(into).await;
    }

    async fn post_and_report(&self, kept: &mut Kept, message: Message) {
        let kind = message.kind();
        let bytes = encoded_len(&message);
        let mut body = BytesMut::with_capacity(bytes);
        encode_message(&message, &mut body);
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
                    self.reports
                        .report_snapshot(self.peer, SnapshotStatus::Finish);
                }
                self.metrics.sent_bytes.increment(bytes as u64);
            }
            Err(error) => {
                *kept = None;
                if matches!(error, PostError::Removed) {
                    self.reports
                        .critical(CriticalError::Removed { by: self.peer });
                }
                if let Some(activity) = &self.activity {
                    activity.deactivate(Source::Pipeline, Action::Write, &error);
                }
                if let Some(follower) = self.follower.as_ref().filter(|_| is_append) {
                    follower.lock().fail();
                }
                self.reports.report_unreachable(self.peer);
                if kind == Some(MessageType::Snapshot) {
                    self.reports
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
        let connection = match self.dialer.open_any(&self.picker).await {
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
            .exchange(request, self.post_timeout, ANSWER_BYTES)
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
            &self.identity,
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
