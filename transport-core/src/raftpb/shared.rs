//! Entries that are encoded already, so that every message that carries them has the same bytes.
//!
//! The form is that of the compact frame, each entry behind its length as a big-endian 64-bit integer: it is
//! written there as it is, and for a whole message entry by entry behind another prefix. Made by an
//! [`EntryCache`](super::EntryCache).

use bytes::Bytes;

use super::{
    Message,
    encode::{Carried, EntryRun, Lengths, MessageRun, encode_carrying, message_len},
    target::Target,
};

/// The entries of a message in their encoded form. A message beside it has an empty list of entries.
#[derive(Clone, Debug)]
pub struct SharedEntries {
    first: Bytes,
    /// Most have none.
    others: Box<[Bytes]>,
    count: u32,
    /// What they take in a whole message.
    nested: u32,
}

impl SharedEntries {
    /// Of `count` entries that follow the index of their message. Each of `pieces` is some of them one behind the
    /// other, beside what they take in a whole message, or the payload that is missing at the end of the one before.
    pub(super) fn new(pieces: impl Iterator<Item = (Bytes, usize)>, count: usize) -> Option<Self> {
        let mut nested = 0;
        let mut pieces = pieces.map(|(piece, in_message)| {
            nested += in_message;
            piece
        });
        Some(SharedEntries {
            first: pieces.next()?,
            others: pieces.collect(),
            count: count.try_into().ok()?,
            nested: nested.try_into().ok()?,
        })
    }

    /// How many they are; never 0.
    #[allow(clippy::len_without_is_empty)] // it never is
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.pieces().map(Bytes::len).sum()
    }

    fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

impl Carried for SharedEntries {
    fn lengths(&self) -> Lengths {
        let mut lengths = Lengths {
            count: self.len(),
            nested: self.nested as usize,
            ..Lengths::default()
        };
        for piece in self.pieces() {
            lengths.prefixed += piece.len();
            lengths.keep(piece);
        }
        lengths
    }

    fn last_index(&self, message: &Message) -> u64 {
        message.index + u64::from(self.count)
    }

    #[inline]
    fn put_prefixed(&self, to: &mut impl Target) {
        self.pieces().for_each(|piece| to.put_payload(piece));
    }

    fn put_nested(&self, before: &mut MessageRun, to: &mut impl Target) {
        before.flush(to);
        let mut pieces = self.pieces();
        while let Some(piece) = pieces.next() {
            let mut left = &piece[..];
            while let Some((length, rest)) = left.split_first_chunk() {
                let length = u64::from_be_bytes(*length);
                let mut head = EntryRun::new();
                head.varint_field(0x3a, length);
                head.flush(to);
                let here = length.min(rest.len() as u64) as usize;
                to.put_slice(&rest[..here]);
                left = &rest[here..];
                if (here as u64) < length
                    && let Some(payload) = pieces.next()
                {
                    to.put_payload(payload);
                }
            }
        }
    }
}

/// [`encoded_len`](super::encoded_len) of a message that carries `entries`.
pub fn shared_len(message: &Message, entries: &SharedEntries) -> usize {
    debug_assert!(message.entries.is_empty(), "the entries are in one place");
    message_len(message, entries.nested as usize)
}

/// [`encode_message`](super::encode_message) for a message that carries `entries`.
pub fn encode_message_shared(message: &Message, entries: &SharedEntries, to: &mut impl Target) {
    debug_assert!(message.entries.is_empty(), "the entries are in one place");
    encode_carrying(message, entries, to);
}
