//! The head of a snapshot request's body: a big-endian 64-bit length and the message; the database follows
//! up to the end of the body.
//!
//! etcd: rafthttp/snapshot_sender.go, `createSnapBody`, and message_codec.go, `decodeLimit`.

use bytes::{BufMut, Bytes, BytesMut};

use super::{FrameError, checked_len, input::Input};
use crate::raftpb::{Message, encode_message, encoded_len};

/// Longest message a snapshot may announce, in bytes: 64 MiB, as in etcd from 3.6.14 and 3.7.1 on; older
/// members allow more.
pub const ENVELOPE_BYTES_MAX: u64 = 64 << 20;

/// The bytes that go before the database.
pub fn encode_envelope(message: &Message) -> Bytes {
    let length = encoded_len(message);
    let mut to = BytesMut::with_capacity(8 + length);
    to.put_u64(length as u64);
    encode_message(message, &mut to);
    to.freeze()
}

/// Takes the message off the head of a body.
#[derive(Debug)]
pub struct EnvelopeDecoder {
    input: Input,
    length: Option<usize>,
    limit: u64,
    failed: Option<FrameError>,
}

/// A message and what was fed beyond it: the first pieces of the database.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The message; its kind is not checked yet.
    pub message: Message,
    /// Its length on the wire, in bytes, without the prefix.
    pub message_bytes: u64,
    /// Beginning of the database, in order.
    pub database: Vec<Bytes>,
}

impl EnvelopeDecoder {
    /// A decoder that refuses messages of more than `limit` bytes; [`ENVELOPE_BYTES_MAX`] is etcd's.
    pub fn new(limit: u64) -> Self {
        EnvelopeDecoder {
            input: Input::default(),
            length: None,
            limit,
            failed: None,
        }
    }

    /// Adds a piece of the body and yields the envelope once its message is complete. What comes after
    /// that piece belongs to the database and is not to be fed here.
    pub fn feed(&mut self, piece: Bytes) -> Result<Option<Envelope>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.input.feed(piece);
        self.step().inspect_err(|error| {
            self.failed = Some(*error);
            self.input = Input::default();
        })
    }

    /// What an end of the body means before the envelope is complete. The texts are those a Go receiver
    /// answers with.
    pub fn finish(self) -> FrameError {
        self.failed.unwrap_or(FrameError::Truncated)
    }

    fn step(&mut self) -> Result<Option<Envelope>, FrameError> {
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
        let message = element.message()?;
        self.length = None;
        Ok(Some(Envelope {
            message,
            message_bytes: length as u64,
            database: std::mem::take(&mut self.input).into_rest().collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raftpb::MessageType;

    #[test]
    fn the_database_begins_where_the_message_ends() {
        let message = Message {
            msg_type: MessageType::Snapshot as i32,
            snapshot: Some(Box::default()),
            ..Message::default()
        };
        let body = [&encode_envelope(&message)[..], b"database"].concat();
        for step in 1..=body.len() {
            let mut decoder = EnvelopeDecoder::new(ENVELOPE_BYTES_MAX);
            let mut pieces = body.chunks(step).map(Bytes::copy_from_slice);
            let envelope = loop {
                if let Some(found) = decoder.feed(pieces.next().unwrap()).unwrap() {
                    break found;
                }
            };
            assert_eq!(envelope.message, message);
            assert_eq!(envelope.message_bytes, 4);
            let database: Vec<u8> = envelope
                .database
                .into_iter()
                .chain(pieces)
                .flatten()
                .collect();
            assert_eq!(database, b"database");
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_at_once() {
        let mut decoder = EnvelopeDecoder::new(ENVELOPE_BYTES_MAX);
        let length = ENVELOPE_BYTES_MAX + 1;
        let refused = decoder.feed(Bytes::copy_from_slice(&length.to_be_bytes()));
        let limit = ENVELOPE_BYTES_MAX;
        assert_eq!(refused, Err(FrameError::TooLong { length, limit }));
    }

    #[test]
    fn a_short_body_is_named_as_go_names_it() {
        let mut decoder = EnvelopeDecoder::new(ENVELOPE_BYTES_MAX);
        assert_eq!(decoder.feed(Bytes::from_static(b"garbage")), Ok(None));
        assert_eq!(decoder.finish().to_string(), "unexpected EOF");
    }
}
