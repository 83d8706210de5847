//! The body of a snapshot: the message, then the database as a task reads it chunk by chunk, at the pace that is set.
//!
//! The database passes through a channel of a few chunks, never whole through memory. Invariant: the body ends
//! properly only if the source yielded exactly what it announced.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Sleep, sleep_until},
};

use crate::{
    disk::{let_go, step},
    pace::Pace,
    raft::SnapshotSource,
    snapshot_sender::SnapshotSlot,
};

/// Chunks read ahead of the socket: with the one being read and the one being written, five.
pub(crate) const CHUNKS_AHEAD: usize = 3;

/// How far a body is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    /// A chunk was handed to the connection.
    Sending,
    /// All of it was.
    Sent,
}

/// Envelope, then what the reading task yields.
pub(crate) struct DatabaseBody {
    envelope: Option<Bytes>,
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    pace: Arc<Pace>,
    /// A chunk whose time has not come.
    early: Option<(Bytes, Pin<Box<Sleep>>)>,
    stage: watch::Sender<Stage>,
}

impl DatabaseBody {
    /// Starts the task, which holds `slot` for as long as it runs.
    pub(crate) fn start(
        envelope: Bytes,
        source: Box<dyn SnapshotSource>,
        pace: Arc<Pace>,
        slot: Arc<SnapshotSlot>,
    ) -> (
        DatabaseBody,
        JoinHandle<io::Result<()>>,
        watch::Receiver<Stage>,
    ) {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (stage, stages) = watch::channel(Stage::Sending);
        let chunk_bytes = pace.chunk_bytes();
        let reading = tokio::spawn(async move {
            let _slot = slot;
            pump(source, chunk_bytes, &sender).await
        });
        let body = DatabaseBody {
            envelope: Some(envelope),
            chunks,
            pace,
            early: None,
            stage,
        };
        (body, reading, stages)
    }

    fn hand_over(&mut self, chunk: Bytes) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.stage.send_replace(Stage::Sending);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}

/// Reads exactly what was announced; anything else must not look like a complete body. A receiver that is gone is
/// `BrokenPipe`.
async fn pump(
    source: Box<dyn SnapshotSource>,
    chunk_bytes: usize,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let outcome = read_exactly(source, chunk_bytes, chunks).await;
    if let Err(error) = &outcome {
        // If nobody listens, nobody needs it.
        let told = Err(io::Error::new(error.kind(), error.to_string()));
        let _ = chunks.send(told).await;
    }
    outcome
}

async fn read_exactly(
    mut source: Box<dyn SnapshotSource>,
    chunk_bytes: usize,
    chunks: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let blocks = source.blocks();
    let mut left = source.len();
    while left > 0 {
        let bytes = left.min(chunk_bytes as u64);
        let chunk;
        (source, chunk) = step(blocks, move || {
            let chunk = read_chunk(&mut *source, bytes as usize)?;
            Ok((source, chunk))
        })
        .await?;
        left -= bytes;
        if chunks.send(Ok(chunk)).await.is_err() {
            let_go(blocks, source).await?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    step(blocks, move || match source.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "expected EOF")),
    })
    .await
}

/// The next `bytes` bytes, neither more nor less.
fn read_chunk(source: &mut dyn SnapshotSource, bytes: usize) -> io::Result<Bytes> {
    let mut chunk = BytesMut::zeroed(bytes);
    let mut filled = 0;
    while filled < bytes {
        match source.read(&mut chunk[filled..]) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "short read")),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(chunk.freeze())
}

impl Body for DatabaseBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(envelope) = self.envelope.take() {
            return self.hand_over(envelope);
        }
        if let Some((_, timer)) = &mut self.early {
            ready!(timer.as_mut().poll(cx));
        }
        if let Some((chunk, _)) = self.early.take() {
            return self.hand_over(chunk);
        }
        match ready!(self.chunks.poll_recv(cx)) {
            None => {
                self.stage.send_replace(Stage::Sent);
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            Some(Ok(chunk)) => match self.pace.reserve(chunk.len()) {
                None => self.hand_over(chunk),
                Some(at) => {
                    self.early = Some((chunk, Box::pin(sleep_until(at))));
                    self.poll_frame(cx)
                }
            },
        }
    }
}
