//! The framing of the stream `message`: a big-endian 64-bit length, then the message. No state.
//!
//! etcd: rafthttp/message_codec.go.

use bytes::Bytes;

use super::{EncodeError, FRAME_BYTES_MAX, FrameError, checked_len, input::Input, put_whole};
use crate::raftpb::{Carried, Message, SharedEntries, Target};

/// Appends messages to a stream body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoder {}

impl Encoder {
    /// An encoder for a new connection.
    pub fn new() -> Self {
        Encoder {}
    }

    /// Appends one frame and returns the length of its message, without the prefix: what etcd counts as
    /// sent.
    pub fn encode(
        &mut self,
        message: &Message,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        frame(message, &message.entries[..], to)
    }

    /// [`encode`](Self::encode) for a message that carries `entries`; its own list is empty.
    pub fn encode_shared(
        &mut self,
        message: &Message,
        entries: &SharedEntries,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        frame(message, entries, to)
    }
}

fn frame<E: Carried + ?Sized>(
    message: &Message,
    entries: &E,
    to: &mut impl Target,
) -> Result<usize, EncodeError> {
    let head = |length: usize| (length as u64).to_be_bytes();
    put_whole(message, entries, head, to)
}

/// Takes messages out of a stream body.
#[derive(Debug)]
pub struct Decoder {
    input: Input,
    /// Length of the frame whose prefix has been read.
    length: Option<usize>,
    limit: u64,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder for a new connection, with the limit of [`FRAME_BYTES_MAX`].
    pub fn new() -> Self {
        Decoder::with_limit(FRAME_BYTES_MAX)
    }

    /// A decoder that refuses frames of more than `limit` bytes.
    pub fn with_limit(limit: u64) -> Self {
        Decoder {
            input: Input::default(),
            length: None,
            limit,
            failed: None,
        }
    }

    /// Adds a piece of the body. Take everything out with [`Decoder::next`] before feeding more: what is
    /// fed and not taken is held. After an error nothing is.
    pub fn feed(&mut self, piece: Bytes) {
        if self.failed.is_none() {
            self.input.feed(piece);
        }
    }

    /// The next message, or `None` until more is fed. Repeats its error once it has failed.
    #[allow(clippy::should_implement_trait)] // an iterator would hide that `None` is not the end
    pub fn next(&mut self) -> Result<Option<Message>, FrameError> {
        Ok(self.next_sized()?.map(|(message, _)| message))
    }

    /// [`next`](Self::next), with the length of the message as protobuf, whatever form it came in: what etcd counts
    /// as received.
    #[inline]
    pub fn next_sized(&mut self) -> Result<Option<(Message, usize)>, FrameError> {
        match self.failed {
            Some(error) => Err(error),
            None => self.step().inspect_err(|error| {
                self.failed = Some(*error);
                self.input = Input::default();
            }),
        }
    }

    /// [`next_sized`](Self::next_sized), with the message put where it belongs: to the end of `messages`.
    pub fn next_into(&mut self, messages: &mut Vec<Message>) -> Result<Option<usize>, FrameError> {
        Ok(self.next_sized()?.map(|(message, length)| {
            messages.push(message);
            length
        }))
    }

    /// Whether the body may end here; an error when it would end inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.failed {
            Some(error) => Err(error),
            None if self.length.is_some() || !self.input.is_empty() => Err(FrameError::Truncated),
            None => Ok(()),
        }
    }

    fn step(&mut self) -> Result<Option<(Message, usize)>, FrameError> {
        let length = match self.length {
            Some(length) => length,
            None => {
                let Some(length) = self.input.take_u64() else {
                    return Ok(None);
                };
                *self.length.insert(checked_len(length, self.limit)?)
            }
        };
        let Some(element) = self.input.take(length) else {
            return Ok(None);
        };
        self.length = None;
        Ok(Some((element.message()?, length)))
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder::new()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    #[test]
    fn a_frame_over_the_limit_ends_the_stream_for_good() {
        let mut decoder = Decoder::with_limit(1000);
        decoder.feed(Bytes::copy_from_slice(&1001u64.to_be_bytes()));
        let error = FrameError::TooLong {
            length: 1001,
            limit: 1000,
        };
        assert_eq!(decoder.next(), Err(error));
        decoder.feed(Bytes::copy_from_slice(&[0; 8]));
        assert_eq!(decoder.next(), Err(error));
        assert_eq!(error.to_string(), "rafthttp: error limit exceeded");
    }

    #[test]
    fn the_end_is_clean_only_between_frames() {
        let mut body = BytesMut::new();
        let sent = Encoder::new().encode(&Message::link_heartbeat(), &mut body);
        assert_eq!((sent, body.len()), (Ok(2), 10));
        for cut in 0..=body.len() {
            let mut decoder = Decoder::new();
            decoder.feed(body.clone().freeze().slice(..cut));
            let whole = decoder.next().unwrap().is_some();
            assert_eq!(whole, cut == 10);
            assert_eq!(decoder.finish().is_ok(), cut == 0 || cut == 10, "{cut}");
        }
    }
}
