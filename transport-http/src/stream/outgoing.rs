//! The sender's end of a stream: a connection taken over from hyper once its request was accepted.
//!
//! What the stream's body yields is written in chunks, straight to the socket, so that an idle stream holds no
//! buffers of an HTTP library. Runs in the connection's task, or in its sender ([`Line`]). Invariant: at most one frame of the body is held, and
//! the next one is only asked for once the socket has taken it; a peer that closes is noticed at once.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::Weak,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use transport_core::http1::{
    body::{CHUNK_END, ChunkHead, LAST_CHUNK},
    head,
};

use crate::{
    net::WriteDeadline,
    stream::{body::StreamBody, line::Line},
};

/// Pieces given to the system in one write.
const SLICES_MAX: usize = 64;
/// What an idle connection may keep for the pieces of its next frame.
const IDLE_PIECES: usize = 16;
/// What a peer may send on a stream, where nothing is expected of it.
const IGNORED_BYTES_MAX: usize = 16 << 10;

pub(crate) struct Outgoing {
    io: WriteDeadline,
    /// None once it has ended.
    body: Option<Box<StreamBody>>,
    writing: Writing,
    flushed: bool,
    ignored: usize,
}

impl Outgoing {
    /// Answers the request with a 200 of these headers and `body`.
    pub(crate) fn new(io: WriteDeadline, headers: &HeaderMap, body: Box<StreamBody>) -> Outgoing {
        let now = jiff::Timestamp::now();
        let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
        // A time before year 0 has no such form; no clock says that.
        let date = printer
            .timestamp_to_rfc9110_string(&now)
            .unwrap_or_default();
        let mut writing = Writing::default();
        writing.plain(head::chunked_ok(headers, &date));
        Outgoing {
            io,
            body: Some(body),
            writing,
            flushed: true,
            ignored: 0,
        }
    }

    /// Tells the sender where its messages can be written.
    pub(crate) fn announce(&self, line: Weak<Line>) {
        if let Some(body) = &self.body {
            body.announce(line);
        }
    }

    /// Writes as much as can be; ready once the body or the connection has ended.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.poll_written(cx)?.is_pending() {
                return self.poll_peer(cx).map(Err);
            }
            let Some(body) = &mut self.body else {
                return Pin::new(&mut self.io).poll_shutdown(cx);
            };
            match body.poll_frame(cx) {
                Poll::Ready(Some(length)) => {
                    let pieces = std::iter::from_fn(|| body.next_piece());
                    self.writing.chunk(length, pieces);
                }
                Poll::Ready(None) => {
                    self.body = None;
                    self.writing.plain(Bytes::from_static(LAST_CHUNK));
                }
                Poll::Pending => return self.poll_peer(cx).map(Err),
            }
            self.flushed = false;
        }
    }

    /// Ready once everything at hand is with the system.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.writing.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.writing.slices(&mut slices);
            let io = Pin::new(&mut self.io);
            let written = ready!(io.poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.writing.advance(written);
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer has closed the connection, or sends what it should not.
    fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut scratch = [0; 64];
        loop {
            let mut read = ReadBuf::new(&mut scratch);
            if let Err(error) = ready!(Pin::new(&mut self.io).poll_read(cx, &mut read)) {
                return Poll::Ready(error);
            }
            if read.filled().is_empty() {
                return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
            }
            self.ignored += read.filled().len();
            if self.ignored > IGNORED_BYTES_MAX {
                return Poll::Ready(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

/// What is on its way to the socket: the line in front of a chunk, the chunk, and what ends it.
#[derive(Debug, Default)]
struct Writing {
    head: ChunkHead,
    /// Bytes of the head that are still to be written, from its end.
    head_left: usize,
    pieces: VecDeque<Bytes>,
    end: &'static [u8],
}

impl Writing {
    /// Bytes that are no chunk.
    fn plain(&mut self, bytes: Bytes) {
        self.pieces.push_back(bytes);
    }

    /// A chunk of `length` bytes, which are those of `pieces`.
    fn chunk(&mut self, length: usize, pieces: impl Iterator<Item = Bytes>) {
        self.head = ChunkHead::new(length);
        self.head_left = self.head.as_ref().len();
        self.pieces.extend(pieces);
        debug_assert_eq!(self.pieces.iter().map(Bytes::len).sum::<usize>(), length);
        self.end = CHUNK_END;
        // Many pieces were a burst: give back what they needed.
        if self.pieces.len() == 1 && self.pieces.capacity() > IDLE_PIECES {
            self.pieces.shrink_to(IDLE_PIECES);
        }
    }

    fn is_empty(&self) -> bool {
        self.head_left == 0 && self.pieces.is_empty() && self.end.is_empty()
    }

    /// Fills `slices` with what comes next; how many of them.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let head = self.head.as_ref();
        let parts = std::iter::once(&head[head.len() - self.head_left..])
            .chain(self.pieces.iter().map(|piece| &piece[..]))
            .chain(std::iter::once(self.end))
            .filter(|part| !part.is_empty());
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// Takes off what was written.
    fn advance(&mut self, mut written: usize) {
        let of_head = written.min(self.head_left);
        self.head_left -= of_head;
        written -= of_head;
        while let Some(piece) = self.pieces.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                return;
            }
            written -= piece.len();
            self.pieces.pop_front();
        }
        self.end = &self.end[written..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_written_whole_however_little_the_system_takes() {
        for step in 1..=24 {
            let mut writing = Writing::default();
            let mut written = Vec::new();
            let pieces = [&b"abcdefg"[..], b"hijklmnop"].map(Bytes::from_static);
            writing.chunk(16, pieces.into_iter());
            while !writing.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let count = writing.slices(&mut slices);
                let offered = slices[..count].iter().flat_map(|slice| slice.iter());
                let taken: Vec<u8> = offered.copied().take(step).collect();
                writing.advance(taken.len());
                written.extend(taken);
            }
            assert_eq!(written, b"10\r\nabcdefghijklmnop\r\n");
        }
    }
}
