//! Sends one snapshot: a POST whose body is the message followed by the database.
//!
//! One task per snapshot, started by the peer, which admits at most one at a time. The body (`snapshot_body`) is read
//! by a task of its own. Invariant: whatever happens, raft is told exactly once how it ended; and it ends, because each
//! chunk has a deadline, whether the disk or the receiver is slow.
//!
//! etcd: server/etcdserver/api/rafthttp/snapshot_sender.go.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    frame::snapshot::encode_envelope,
    handshake::{Identity, SNAPSHOT_PATH},
    status::{Action, Source},
};

use crate::{
    activity::Activity,
    client::{ANSWER_BYTES, Connection, Dialer},
    error::{ClientError, CriticalError},
    metrics::{PeerMetrics, SnapshotMetrics},
    net::PeerUrl,
    pace::Pace,
    pipeline::{PostError, check_answer},
    raft::{OutgoingSnapshot, SnapshotSource, SnapshotStatus},
    reports::Reports,
    requests::request,
    snapshot_body::{DatabaseBody, Stage},
    url_picker::UrlPicker,
};

/// How long the reading task may take to notice that nobody wants its chunks any more; then it is left to itself.
const READER_GRACE: Duration = Duration::from_secs(1);
/// How long the body of the answer may take once its head is there.
const ANSWER_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// What a snapshot task needs from its peer.
pub(crate) struct SnapshotSender {
    pub(crate) peer: MemberId,
    pub(crate) dialer: Dialer,
    pub(crate) identity: Arc<Identity>,
    pub(crate) picker: Arc<UrlPicker>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) reports: Arc<dyn Reports>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) snapshot_metrics: SnapshotMetrics,
    pub(crate) pace: Arc<Pace>,
    /// For each chunk of the database.
    pub(crate) chunk_timeout: Duration,
    pub(crate) answer_timeout: Duration,
}

/// The peer's and the member's place for a snapshot under way. Its reading task holds it too: one that hangs in a
/// broken disk keeps others from hanging beside it.
pub(crate) struct SnapshotSlot {
    pub(crate) under_way: Arc<AtomicBool>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Drop for SnapshotSlot {
    fn drop(&mut self) {
        self.under_way.store(false, Ordering::Relaxed);
    }
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Post(#[from] PostError),
    #[error("cannot read the database: {0}")]
    Source(String),
    #[error("no progress for {0:?}")]
    Stalled(Duration),
    #[error("the receiver did not answer within {0:?} of the last byte")]
    NoAnswer(Duration),
    #[error("the peer is stopped")]
    Stopped,
}

impl From<ClientError> for SendError {
    fn from(error: ClientError) -> Self {
        SendError::Post(PostError::Client(error))
    }
}

impl SnapshotSender {
    /// Sends, reports, and tells who waits.
    pub(crate) async fn run(
        self,
        mut snapshot: OutgoingSnapshot,
        slot: SnapshotSlot,
        cancel: CancellationToken,
    ) {
        let total = snapshot.total_bytes();
        let index = snapshot
            .message
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.metadata.as_ref());
        let index = index.map_or(0, |metadata| metadata.index);
        tracing::info!(
            "snapshot-index" = index,
            "remote-peer-id" = %self.peer,
            bytes = total,
            "sending database snapshot"
        );
        let begun = Instant::now();
        self.snapshot_metrics.inflights.increment(1.0);
        let slot = Arc::new(slot);
        let outcome = self.send(&mut snapshot, &slot, &cancel).await;
        self.snapshot_metrics.inflights.decrement(1.0);
        // Raft may answer a failure with another snapshot at once.
        drop(slot);
        match outcome {
            Ok(()) => {
                self.activity.activate();
                self.reports
                    .report_snapshot(self.peer, SnapshotStatus::Finish);
                self.snapshot_metrics.success.increment(1);
                self.snapshot_metrics.seconds.record(begun.elapsed());
                self.metrics.sent_bytes.increment(total);
                tracing::info!("snapshot-index" = index, "remote-peer-id" = %self.peer, "sent database snapshot");
                snapshot.finish(true);
            }
            Err(error) => {
                tracing::warn!(
                    "snapshot-index" = index,
                    "remote-peer-id" = %self.peer,
                    error = %error,
                    "failed to send database snapshot"
                );
                self.failed(&error);
                snapshot.finish(false);
            }
        }
    }

    fn failed(&self, error: &SendError) {
        if matches!(error, SendError::Post(PostError::Removed)) {
            self.reports
                .critical(CriticalError::Removed { by: self.peer });
        }
        self.activity
            .deactivate(Source::SendSnapshot, Action::Post, error);
        self.reports.report_unreachable(self.peer);
        self.reports
            .report_snapshot(self.peer, SnapshotStatus::Failure);
        self.metrics.sent_failures.increment(1);
        self.snapshot_metrics.failures.increment(1);
    }

    async fn send(
        &self,
        snapshot: &mut OutgoingSnapshot,
        slot: &Arc<SnapshotSlot>,
        cancel: &CancellationToken,
    ) -> Result<(), SendError> {
        let mut url = self.picker.pick();
        let envelope = encode_envelope(&snapshot.message);
        let source = std::mem::replace(&mut snapshot.source, Box::new(Taken));
        let (body, mut reading, stage) =
            DatabaseBody::start(envelope, source, Arc::clone(&self.pace), Arc::clone(slot));
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(SendError::Stopped),
            outcome = self.post(&mut url, body, stage) => outcome,
        };
        // The body is gone, so the task ends with its next chunk, if its disk lets it.
        let read = match tokio::time::timeout(READER_GRACE, &mut reading).await {
            Ok(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
            Err(_) => Ok(()),
        };
        let outcome = match (outcome, read) {
            (Err(SendError::Post(PostError::Client(_))), Err(error))
                if error.kind() != io::ErrorKind::BrokenPipe =>
            {
                Err(SendError::Source(error.to_string()))
            }
            (outcome, _) => outcome,
        };
        if outcome.is_err() && !matches!(outcome, Err(SendError::Stopped)) {
            self.picker.unreachable(&url);
        }
        outcome
    }

    async fn post(
        &self,
        url: &mut Arc<PeerUrl>,
        body: DatabaseBody,
        stage: watch::Receiver<Stage>,
    ) -> Result<(), SendError> {
        let mut connection: Connection = self.dialer.open_any(&self.picker).await?;
        url.clone_from(connection.url());
        let mut request = request(
            &self.identity,
            Method::POST,
            url,
            SNAPSHOT_PATH,
            None,
            body.boxed_unsync(),
        );
        let octets = HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert(header::CONTENT_TYPE, octets);
        let answer = tokio::select! {
            biased;
            answer = connection.send(request) => answer?,
            error = self.overdue(stage) => return Err(error),
        };
        let status = answer.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        let read = connection.collect(answer.into_body(), ANSWER_BYTES);
        let text = match tokio::time::timeout(ANSWER_BODY_TIMEOUT, read).await {
            Ok(Ok(text)) => text,
            // The status says enough.
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        Ok(check_answer(status, &text)?)
    }

    /// Returns when the next chunk, or the answer behind the last one, is overdue.
    async fn overdue(&self, mut stage: watch::Receiver<Stage>) -> SendError {
        loop {
            let (within, error) = match *stage.borrow_and_update() {
                Stage::Sending => {
                    let within = self.chunk_timeout;
                    (within, SendError::Stalled(within))
                }
                Stage::Sent => {
                    let within = self.answer_timeout;
                    (within, SendError::NoAnswer(within))
                }
            };
            match tokio::time::timeout(within, stage.changed()).await {
                Ok(Ok(())) => {}
                // The body went with the connection: then the request fails by itself.
                Ok(Err(_)) if !matches!(*stage.borrow(), Stage::Sent) => {
                    std::future::pending().await
                }
                Ok(Err(_)) => {
                    tokio::time::sleep(within).await;
                    return error;
                }
                Err(_) => return error,
            }
        }
    }
}

/// Stands where a source was.
struct Taken;

impl SnapshotSource for Taken {
    fn len(&self) -> u64 {
        0
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}
