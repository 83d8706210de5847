//! Streams: two long-lived GETs per direction, each opened by the side that wants to receive.
//!
//! `dial` and `reader` are the receiving side; `writer`, `body`, `outgoing` and `line` the sending one: the response
//! body of a request the peer made is where our messages leave. Two kinds exist, which differ in their framing.

pub(crate) mod body;
pub(crate) mod dial;
pub(crate) mod line;
pub(crate) mod outgoing;
pub(crate) mod reader;
pub(crate) mod writer;

use bytes::Bytes;
use transport_core::{
    MemberId,
    frame::{EncodeError, FrameError, message, msgappv2},
    handshake::StreamKind,
    raftpb::{Message, Output, SharedEntries},
    status::Source,
};

use crate::metrics::Queue;

/// The queue in front of a stream of this kind.
pub(crate) fn queue(kind: StreamKind) -> Queue {
    match kind {
        StreamKind::MsgAppV2 => Queue::StreamMsgApp,
        StreamKind::Message => Queue::StreamMessage,
    }
}

/// How a stream of this kind is named when the peer's status changes.
pub(crate) fn source(kind: StreamKind) -> Source {
    match kind {
        StreamKind::MsgAppV2 => Source::StreamMsgAppV2,
        StreamKind::Message => Source::StreamMessage,
    }
}

/// The encoder of one connection.
pub(crate) enum Encoder {
    MsgApp(msgappv2::Encoder),
    Message(message::Encoder),
}

impl Encoder {
    /// For a new connection.
    pub(crate) fn new(kind: StreamKind) -> Self {
        match kind {
            StreamKind::MsgAppV2 => Encoder::MsgApp(msgappv2::Encoder::new()),
            StreamKind::Message => Encoder::Message(message::Encoder::new()),
        }
    }

    /// Appends one frame; its size as etcd counts it.
    pub(crate) fn encode(
        &mut self,
        message: &Message,
        to: &mut Output,
    ) -> Result<usize, EncodeError> {
        match self {
            Encoder::MsgApp(encoder) => encoder.encode(message, to),
            Encoder::Message(encoder) => encoder.encode(message, to),
        }
    }

    /// [`encode`](Self::encode) for a message that carries `entries`.
    pub(crate) fn encode_shared(
        &mut self,
        message: &Message,
        entries: &SharedEntries,
        to: &mut Output,
    ) -> Result<usize, EncodeError> {
        match self {
            Encoder::MsgApp(encoder) => encoder.encode_shared(message, entries, to),
            Encoder::Message(encoder) => encoder.encode_shared(message, entries, to),
        }
    }
}

/// The decoder of one connection.
pub(crate) enum Decoder {
    MsgApp(msgappv2::Decoder),
    Message(message::Decoder),
}

impl Decoder {
    /// For a new connection.
    pub(crate) fn new(kind: StreamKind, local: MemberId, remote: MemberId) -> Self {
        match kind {
            StreamKind::MsgAppV2 => Decoder::MsgApp(msgappv2::Decoder::new(local, remote)),
            StreamKind::Message => Decoder::Message(message::Decoder::new()),
        }
    }

    pub(crate) fn feed(&mut self, piece: Bytes) {
        match self {
            Decoder::MsgApp(decoder) => decoder.feed(piece),
            Decoder::Message(decoder) => decoder.feed(piece),
        }
    }

    /// Puts the next message to the end of `messages`; its size as etcd counts it.
    #[inline]
    pub(crate) fn next_into(
        &mut self,
        messages: &mut Vec<Message>,
    ) -> Result<Option<usize>, FrameError> {
        match self {
            Decoder::MsgApp(decoder) => decoder.next_into(messages),
            Decoder::Message(decoder) => decoder.next_into(messages),
        }
    }

    /// Whether the body may end here.
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        match self {
            Decoder::MsgApp(decoder) => decoder.finish(),
            Decoder::Message(decoder) => decoder.finish(),
        }
    }
}
