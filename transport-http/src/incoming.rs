//! The dialler's end of a connection: requests without a body, and answers read straight from the socket.
//!
//! For streams and probes: no HTTP library stands between the socket and its reader, because its buffers alone would
//! cost more than an idle peer may take. Invariant: what is read ahead is bounded, small while little comes and larger
//! while much does; the pieces handed out are slices of what was read.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio_util::io::poll_read_buf;
use transport_core::http1::{
    HttpError,
    body::{BodyReader, Next},
    head::{BodyLength, ResponseHead},
};

use crate::{
    client::{Connected, append_within},
    error::ClientError,
    net::{PeerUrl, WriteDeadline},
};

/// Room for a read while little comes.
pub(crate) const READ_BYTES_MIN: usize = 1 << 10;
/// Room for a read while much comes.
pub(crate) const READ_BYTES_MAX: usize = 256 << 10;
/// So many small reads in a row halve the room.
const SMALL_READS: u8 = 4;

/// A connection on which one request after the other is answered.
pub(crate) struct Incoming {
    url: Arc<PeerUrl>,
    io: WriteDeadline,
    buffer: BytesMut,
    room: Room,
    /// Of the answer that is being read, or was read last.
    body: BodyReader,
}

impl Incoming {
    pub(crate) fn new(connected: Connected) -> Incoming {
        Incoming {
            url: connected.url,
            io: connected.io,
            buffer: BytesMut::new(),
            room: Room::default(),
            body: BodyReader::new(BodyLength::Exactly(0)),
        }
    }

    /// Whom it leads to.
    pub(crate) fn url(&self) -> &Arc<PeerUrl> {
        &self.url
    }

    /// Sends a request of these bytes and reads the head of its answer. The caller sets the deadline.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<ResponseHead, ClientError> {
        let sent = async {
            self.io.write_all(request).await?;
            self.io.flush().await
        };
        sent.await.map_err(|source| broken(&self.url, source))?;
        loop {
            let read = poll_fn(|cx| self.poll_read(cx)).await;
            if read.map_err(|source| broken(&self.url, source))? == 0 {
                return Err(self.protocol(HttpError::Truncated));
            }
            let head = ResponseHead::take(&mut self.buffer);
            if let Some(head) = head.map_err(|source| self.protocol(source))? {
                self.body = BodyReader::new(head.length);
                return Ok(head);
            }
        }
    }

    /// Whether another request may follow: the answer before has ended, and the other side has not closed.
    pub(crate) async fn is_open(&mut self) -> bool {
        let is_silent = poll_fn(|cx| Poll::Ready(self.poll_read(cx).is_pending())).await;
        is_silent && self.buffer.is_empty() && self.body.is_over()
    }

    /// The next piece of the body, `None` at its end.
    pub(crate) fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, ClientError>>> {
        loop {
            match self.body.next(&mut self.buffer) {
                Ok(Next::Data(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::More) => {}
                Err(error) => return Poll::Ready(Some(Err(self.protocol(error)))),
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) => {
                    let ended = self.body.finish().err();
                    return Poll::Ready(ended.map(|error| Err(self.protocol(error))));
                }
                Ok(_) => {}
                Err(source) => return Poll::Ready(Some(Err(broken(&self.url, source)))),
            }
        }
    }

    /// Reads the body to its end, or to an error beyond `limit` bytes.
    pub(crate) async fn collect(&mut self, limit: usize) -> Result<Bytes, ClientError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = poll_fn(|cx| self.poll_chunk(cx)).await {
            append_within(&mut whole, &chunk?, limit, &self.url)?;
        }
        Ok(whole.freeze())
    }

    /// Appends what the socket has to the buffer; 0 at its end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.room.make(&mut self.buffer);
        let spare = self.buffer.capacity() - self.buffer.len();
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buffer))?;
        self.room.learn(read, spare);
        Poll::Ready(Ok(read))
    }

    fn protocol(&self, source: HttpError) -> ClientError {
        ClientError::Protocol {
            url: self.url.to_string(),
            source,
        }
    }
}

fn broken(url: &PeerUrl, source: io::Error) -> ClientError {
    ClientError::Broken {
        url: url.to_string(),
        source,
    }
}

/// How much room is made for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    bytes: usize,
    small_reads: u8,
}

impl Default for Room {
    fn default() -> Self {
        Room {
            bytes: READ_BYTES_MIN,
            small_reads: 0,
        }
    }
}

impl Room {
    /// Makes room when little is left of it. An empty buffer that is much too large is given back.
    fn make(&self, buffer: &mut BytesMut) {
        if buffer.is_empty() && buffer.capacity() > 2 * self.bytes {
            *buffer = BytesMut::new();
        }
        if buffer.capacity() - buffer.len() < self.bytes / 4 {
            buffer.reserve(self.bytes);
        }
    }

    /// A read took `read` of `spare` bytes.
    fn learn(&mut self, read: usize, spare: usize) {
        if read == spare && read >= self.bytes / 4 {
            self.bytes = (4 * self.bytes).min(READ_BYTES_MAX);
            self.small_reads = 0;
        } else if read >= self.bytes / 8 {
            self.small_reads = 0;
        } else {
            self.small_reads += 1;
            if self.small_reads == SMALL_READS {
                self.bytes = (self.bytes / 2).max(READ_BYTES_MIN);
                self.small_reads = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_with_full_reads_and_shrinks_with_small_ones() {
        let mut room = Room::default();
        let mut buffer = BytesMut::new();
        for _ in 0..10 {
            room.make(&mut buffer);
            let spare = buffer.capacity() - buffer.len();
            assert!((room.bytes / 4..=2 * room.bytes).contains(&spare));
            room.learn(spare, spare);
            buffer = BytesMut::new();
        }
        assert_eq!(room.bytes, READ_BYTES_MAX);
        let small = (READ_BYTES_MAX / READ_BYTES_MIN).ilog2() as usize * usize::from(SMALL_READS);
        for _ in 0..small {
            room.learn(1, room.bytes);
        }
        assert_eq!(room, Room::default());
        buffer.reserve(READ_BYTES_MAX);
        room.make(&mut buffer);
        assert!(buffer.capacity() <= 2 * READ_BYTES_MIN, "given back");
    }
}
