//! Sends one snapshot: a POST whose body is the message followed by the database.
//!
//! One task per snapshot, started by the peer, which admits at most one at a time. The database is read on a
//! blocking thread and passes through a channel of a few chunks, never whole through memory. Invariant: whatever
//! happens, raft is told exactly once how it ended.
//!
//! etcd: server/etcdserver/api/rafthttp/snapshot_sender.go.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    task::JoinHandle,
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
    client::{Connection, Dialer},
    error::{ClientError, CriticalError},
    metrics::{PeerMetrics, SnapshotMetrics},
    net::PeerUrl,
    pipeline::{PostError, check_answer},
    raft::{OutgoingSnapshot, SnapshotSource, SnapshotStatus},
    reports::Reports,
    requests::request,
    url_picker::UrlPicker,
};

/// One read of the database.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of the socket: at most a MiB per snapshot with the one being written.
const CHUNKS_AHEAD: usize = 3;
/// How long the body of the answer may take once its head is there.
const ANSWER_BODY_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BODY_BYTES: usize = 64 << 10;

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
    pub(crate) answer_timeout: Duration,
}

/// The peer's and the member's place for a snapshot under way.
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
        let outcome = self.send(&mut snapshot, &cancel).await;
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
        cancel: &CancellationToken,
    ) -> Result<(), SendError> {
        let mut url = self.picker.pick();
        let envelope = encode_envelope(&snapshot.message);
        let source = std::mem::replace(&mut snapshot.source, Box::new(Taken));
        let (body, pump, sent) = DatabaseBody::start(envelope, source);
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(SendError::Stopped),
            outcome = self.post(&mut url, body, sent) => outcome,
        };
        // The body is gone, so the thread ends with its next chunk.
        let read = pump
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
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
        sent: oneshot::Receiver<()>,
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
        let silent = async {
            // Dropped with the body, should the connection end early: then the request fails by itself.
            if sent.await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(self.answer_timeout).await;
        };
        let answer = tokio::select! {
            biased;
            answer = connection.send_unbounded(request) => answer?,
            () = silent => return Err(SendError::NoAnswer(self.answer_timeout)),
        };
        let status = answer.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(());
        }
        let read = connection.collect(answer.into_body(), ANSWER_BODY_BYTES);
        let text = match tokio::time::timeout(ANSWER_BODY_TIMEOUT, read).await {
            Ok(Ok(text)) => text,
            // The status says enough.
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        Ok(check_answer(status, &text)?)
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

/// Envelope, then what the reading thread yields.
struct DatabaseBody {
    envelope: Option<Bytes>,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    sent: Option<oneshot::Sender<()>>,
}

impl DatabaseBody {
    fn start(
        envelope: Bytes,
        source: Box<dyn SnapshotSource>,
    ) -> (
        DatabaseBody,
        JoinHandle<io::Result<()>>,
        oneshot::Receiver<()>,
    ) {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (sent, sent_receiver) = oneshot::channel();
        let pump = tokio::task::spawn_blocking(move || pump(source, &sender));
        (
            DatabaseBody {
                envelope: Some(envelope),
                chunks,
                sent: Some(sent),
            },
            pump,
            sent_receiver,
        )
    }
}

/// Reads exactly what was announced; anything else must not look like a complete body. A receiver that is gone is
/// `BrokenPipe`.
fn pump(
    mut source: Box<dyn SnapshotSource>,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let outcome = read_exactly(&mut *source, chunks);
    if let Err(error) = &outcome {
        // If nobody listens, nobody needs it.
        let _ = chunks.blocking_send(Err(io::Error::new(error.kind(), error.to_string())));
    }
    outcome
}

fn read_exactly(
    source: &mut dyn SnapshotSource,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut left = source.len();
    while left > 0 {
        let mut chunk = BytesMut::zeroed(left.min(CHUNK_BYTES as u64) as usize);
        let mut filled = 0;
        while filled < chunk.len() {
            match source.read(&mut chunk[filled..]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "short read")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        left -= filled as u64;
        if chunks.blocking_send(Ok(chunk.freeze())).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    match source.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "expected EOF")),
    }
}

impl Body for DatabaseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(envelope) = self.envelope.take() {
            return Poll::Ready(Some(Ok(Frame::data(envelope))));
        }
        let chunk = ready!(self.chunks.poll_recv(cx));
        if chunk.is_none()
            && let Some(sent) = self.sent.take()
        {
            // The task may have ended already.
            let _ = sent.send(());
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }
}
