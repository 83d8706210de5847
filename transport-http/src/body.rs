//! The response body of the peer port.
//!
//! One type for everything a peer port answers, so that a caller's own endpoints can share the connection with
//! the transport's. Depends on the stream writer only for its body.

use std::{
    convert::Infallible,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

use crate::stream::body::StreamBody;

/// Body of a response: empty, one piece, an endless stream of messages, or any body of the caller's.
pub struct PeerBody(Inner);

enum Inner {
    Piece(Option<Bytes>),
    Stream(Box<StreamBody>),
    Boxed(UnsyncBoxBody<Bytes, io::Error>),
}

impl PeerBody {
    /// No bytes.
    pub fn empty() -> Self {
        PeerBody(Inner::Piece(None))
    }

    /// The caller's own body.
    pub fn boxed<B>(body: B) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        PeerBody(Inner::Boxed(body.map_err(io::Error::other).boxed_unsync()))
    }

    pub(crate) fn stream(body: StreamBody) -> Self {
        PeerBody(Inner::Stream(Box::new(body)))
    }

    pub(crate) fn is_stream(&self) -> bool {
        matches!(self.0, Inner::Stream(_))
    }

    pub(crate) fn into_stream(self) -> Option<Box<StreamBody>> {
        match self.0 {
            Inner::Stream(stream) => Some(stream),
            Inner::Piece(_) | Inner::Boxed(_) => None,
        }
    }
}

impl Default for PeerBody {
    fn default() -> Self {
        PeerBody::empty()
    }
}

impl From<Bytes> for PeerBody {
    fn from(bytes: Bytes) -> Self {
        PeerBody(Inner::Piece((!bytes.is_empty()).then_some(bytes)))
    }
}

impl From<Vec<u8>> for PeerBody {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<String> for PeerBody {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for PeerBody {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl Body for PeerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Inner::Piece(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Stream(stream) => {
                let piece = match stream.next_piece() {
                    Some(piece) => Some(piece),
                    None => match ready!(stream.poll_frame(cx)) {
                        Some(_) => stream.next_piece(),
                        None => None,
                    },
                };
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
            Inner::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Piece(bytes) => bytes.is_none(),
            Inner::Stream(_) => false,
            Inner::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Piece(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Inner::Stream(_) => SizeHint::default(),
            Inner::Boxed(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for PeerBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Inner::Piece(_) => "piece",
            Inner::Stream(_) => "stream",
            Inner::Boxed(_) => "boxed",
        };
        f.debug_tuple("PeerBody").field(&kind).finish()
    }
}

/// Body of a request.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A request body of one piece.
pub(crate) fn piece(bytes: Bytes) -> RequestBody {
    http_body_util::Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A request without a body.
pub(crate) fn nothing() -> RequestBody {
    http_body_util::Empty::new()
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}
