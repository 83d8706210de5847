//! The pipeline: one POST per message, four at a time.
//!
//! For messages without a stream, and all there is for a remote. Each worker keeps its connection open between
//! messages. Invariant: a message is sent once, or once more when a kept connection turns out to be closed;
//! whatever fails is reported to raft and not tried again.
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
    lane::{Class, DropReason, Lane, Refused},
    raftpb::{Message, MessageType, encode_message, encoded_len},
    stats::FollowerStats,
    status::{Action, Source},
};

use crate::{
    activity::Activity,
    body::{RequestBody, piece},
    client::{Connection, Dialer},
    environment::Environment,
    error::{ClientError, CriticalError},
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
/// An error text has a few dozen bytes.
const ANSWER_BYTES: usize = 64 << 10;
/// Longer idle than this, a server with etcd's read timeout is about to close a connection.
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
    lane: Mutex<Lane>,
    arrived: Notify,
    metrics: QueueMetrics,
}

impl PipelineQueue {
    pub(crate) fn new(env: &Environment, metrics: QueueMetrics) -> Self {
        let lane = Lane::new(env.config.limits.pipeline, Some(env.config.budget.clone()));
        PipelineQueue {
            lane: Mutex::new(lane),
            arrived: Notify::new(),
            metrics,
        }
    }

    /// Queues a message, or hands it back with the reason when the queue is full.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    pub(crate) fn push(&self, message: Message) -> Result<(), Refused> {
        let mut lane = self.lane.lock();
        let is_heartbeat = matches!(
            Class::of(&message),
            Class::Heartbeat | Class::HeartbeatResponse
        );
        let pushed = if lane.len() >= PIPELINE_QUEUE_MESSAGES && !is_heartbeat {
            Err(Refused {
                message,
                reason: DropReason::BulkFull,
            })
        } else {
            lane.push(message)
        };
        self.metrics.bytes.set(lane.bytes() as f64);
        drop(lane);
        match pushed {
            Ok(_) => {
                self.arrived.notify_one();
                Ok(())
            }
            Err(refused) => {
                self.metrics.dropped(refused.reason, 1);
                Err(refused)
            }
        }
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
        self.metrics.bytes.set(lane.bytes() as f64);
        if !lane.is_empty() {
            // Wake-ups that find no waiter merge into one: pass it on.
            self.arrived.notify_one();
        }
        true
    }

    /// Drops what waits.
    pub(crate) fn clear(&self, reason: DropReason) {
        let cleared = self.lane.lock().clear();
        self.metrics.dropped(reason, cleared.messages);
        self.metrics.bytes.set(0.0);
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

/// A worker's connection and when it was last used.
type Kept = Option<(Connection, Instant)>;

impl Pipeline {
    /// One worker; runs until cancelled.
    pub(crate) async fn work(self: Arc<Self>, cancel: CancellationToken) {
        let mut kept = None;
        let working = async {
            let mut popped = Vec::new();
            loop {
                self.queue.pop(&mut popped).await;
                for message in popped.drain(..) {
                    self.post_and_report(&mut kept, message).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = working => {}
        }
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
            }
        }
    }

    async fn post(&self, kept: &mut Kept, body: Bytes) -> Result<(), PostError> {
        let url = self.picker.pick();
        let outcome = match self.exchange(kept, &url, body).await {
            Ok(answer) => check_answer(answer.status(), answer.body()),
            Err(error) => Err(error.into()),
        };
        if outcome.is_err() {
            self.picker.unreachable(&url);
        }
        outcome
    }

    async fn exchange(
        &self,
        kept: &mut Kept,
        url: &Arc<PeerUrl>,
        body: Bytes,
    ) -> Result<Response<Bytes>, ClientError> {
        let usable = match kept.take() {
            Some((mut connection, used)) => {
                let fresh = used.elapsed() < KEEP_IDLE && **connection.url() == **url;
                (fresh && connection.is_open().await).then_some(connection)
            }
            None => None,
        };
        let mut connection = match usable {
            Some(connection) => connection,
            None => self.dialer.open(url).await?,
        };
        let was_used = connection.is_used();
        let mut outcome = connection
            .exchange(
                self.request(url, body.clone()),
                self.post_timeout,
                ANSWER_BYTES,
            )
            .await;
        if was_used && matches!(outcome, Err(ClientError::Http { .. })) {
            // The server closed it while the request was on its way. Raft bears a message that arrives twice.
            connection = self.dialer.open(url).await?;
            outcome = connection
                .exchange(self.request(url, body), self.post_timeout, ANSWER_BYTES)
                .await;
        }
        let answer = outcome?;
        *kept = Some((connection, Instant::now()));
        Ok(answer)
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
