//! Receives a snapshot: the message, then the database, which goes to the sink as it comes.
//!
//! A task of its own takes what waits in a channel of a few pieces to the sink, which may block; the database is never
//! whole in memory. Invariant: the sink commits only what the sender ended properly, and raft sees the
//! message only after the commit.
//!
//! etcd: server/etcdserver/api/rafthttp/http.go, `snapshotHandler`.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use transport_core::{
    frame::snapshot::{Envelope, EnvelopeDecoder},
    handshake::Verdict,
    raftpb::{Message, MessageType},
};

use crate::{
    disk::{let_go, step},
    environment::Environment,
    raft::{SnapshotSink, SnapshotWriter},
    timed_body::TimedBody,
};

/// How much may come between two looks at the free space.
const SPACE_CHECK_BYTES: usize = 16 << 20;
/// Pieces between socket and disk. hyper yields at most a few hundred KiB at once, so about two MiB.
pub(crate) const PIECES_AHEAD: usize = 4;

/// Reads the message in front of the database.
pub(crate) async fn envelope(body: &mut TimedBody, limit: u64) -> Result<Envelope, Verdict> {
    let mut decoder = EnvelopeDecoder::new(limit);
    while let Some(piece) = body.chunk().await {
        let piece = piece.map_err(malformed)?;
        if let Some(envelope) = decoder.feed(piece).map_err(malformed)? {
            return check(envelope);
        }
    }
    Err(malformed(decoder.finish()))
}

fn malformed(cause: impl ToString) -> Verdict {
    Verdict::SnapshotMalformed {
        cause: cause.to_string(),
    }
}

fn unsaved(cause: impl ToString) -> Verdict {
    Verdict::SnapshotUnsaved {
        cause: cause.to_string(),
    }
}

fn check(envelope: Envelope) -> Result<Envelope, Verdict> {
    if envelope.message.kind() != Some(MessageType::Snapshot) {
        return Err(Verdict::SnapshotWrongType);
    }
    // Go's latest handler crashes on this; nobody can use it.
    if envelope
        .message
        .snapshot
        .as_ref()
        .is_none_or(|snapshot| snapshot.metadata.is_none())
    {
        return Err(malformed("snapshot is missing"));
    }
    Ok(envelope)
}

enum Piece {
    Data(Bytes),
    /// The sender ended the body properly.
    End,
}

/// Passes the database to the sink; the number of bytes once it is durable.
pub(crate) async fn save(
    env: &Environment,
    sink: Arc<dyn SnapshotSink>,
    message: &Message,
    first: impl Iterator<Item = Bytes>,
    body: &mut TimedBody,
) -> Result<u64, Verdict> {
    let (pieces, received) = mpsc::channel(PIECES_AHEAD);
    let message = message.clone();
    let reserve = env.config.limits.snapshot_disk_reserve_bytes;
    let saving = env
        .tracker
        .spawn_on(write(sink, reserve, message, received), &env.runtime);
    let fed = feed(pieces, first, body).await;
    // `feed` dropped the channel, so the task ends after what it has.
    let saved = saving
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    match (fed, saved) {
        // The disk's error is the cause when both fail: the channel closed because of it.
        (_, Err(error)) if error.kind() != io::ErrorKind::ConnectionAborted => Err(unsaved(error)),
        (Err(error), _) | (Ok(()), Err(error)) => Err(unsaved(error)),
        (Ok(()), Ok(bytes)) => Ok(bytes),
    }
}

async fn feed(
    pieces: mpsc::Sender<Piece>,
    first: impl Iterator<Item = Bytes>,
    body: &mut TimedBody,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    for piece in first {
        pieces.send(Piece::Data(piece)).await.map_err(gone)?;
    }
    while let Some(piece) = body.chunk().await {
        pieces.send(Piece::Data(piece?)).await.map_err(gone)?;
    }
    pieces.send(Piece::End).await.map_err(gone)
}

/// Fails when less than `reserve` is free: the log needs room more than a snapshot does.
fn check_space(sink: &dyn SnapshotSink, reserve: u64) -> io::Result<()> {
    match sink.free_bytes()? {
        Some(free) if free < reserve => Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("{free} bytes are free on the disk, {reserve} must stay so"),
        )),
        _ => Ok(()),
    }
}

/// A database on its way to the sink.
struct Writing {
    sink: Arc<dyn SnapshotSink>,
    writer: Box<dyn SnapshotWriter>,
    reserve: u64,
    /// Bytes since the last look at the free space.
    unchecked: usize,
}

impl Writing {
    fn begin(sink: Arc<dyn SnapshotSink>, reserve: u64, message: &Message) -> io::Result<Writing> {
        check_space(&*sink, reserve)?;
        Ok(Writing {
            writer: sink.create(message)?,
            sink,
            reserve,
            unchecked: 0,
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.unchecked += data.len();
        if self.unchecked >= SPACE_CHECK_BYTES {
            check_space(&*self.sink, self.reserve)?;
            self.unchecked = 0;
        }
        self.writer.write(data)
    }
}

async fn write(
    sink: Arc<dyn SnapshotSink>,
    reserve: u64,
    message: Message,
    mut received: mpsc::Receiver<Piece>,
) -> io::Result<u64> {
    let blocks = sink.blocks();
    let mut writing = step(blocks, move || Writing::begin(sink, reserve, &message)).await?;
    loop {
        let mut pieces = Vec::with_capacity(PIECES_AHEAD);
        if received.recv_many(&mut pieces, PIECES_AHEAD).await == 0 {
            // Broken off: the writer removes what it has.
            let_go(blocks, writing).await?;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let ended = matches!(pieces.last(), Some(Piece::End));
        writing = step(blocks, move || {
            for piece in &pieces {
                if let Piece::Data(data) = piece {
                    writing.write(data)?;
                }
            }
            Ok(writing)
        })
        .await?;
        if ended {
            return step(blocks, move || writing.writer.commit()).await;
        }
    }
}
