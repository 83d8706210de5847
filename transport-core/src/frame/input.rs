//! Bytes fed to a decoder, taken out in elements of known length.
//!
//! An element that lies within one fed piece is read in place. One that spans pieces is gathered in a buffer
//! that grows with what has arrived, never with what a length field promises.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::FrameError;
use crate::raftpb::{self, Entry, Message};

/// First room made for an element that spans pieces.
const CARRY_BYTES_MIN: usize = 512;

#[derive(Debug, Default)]
pub(super) struct Input {
    front: Bytes,
    /// How much of `front` is taken.
    at: usize,
    rest: VecDeque<Bytes>,
    /// Start of an element whose end has not been fed yet.
    carry: BytesMut,
    /// The last element that was gathered.
    gathered: Bytes,
}

/// One element: a range of a shared buffer.
pub(super) struct Element<'a> {
    buffer: &'a Bytes,
    start: usize,
    end: usize,
}

impl Element<'_> {
    pub(super) fn message(self) -> Result<Message, FrameError> {
        Ok(raftpb::message_in(self.buffer, self.start, self.end)?)
    }

    /// Reads it into an empty entry.
    #[inline]
    pub(super) fn entry(self, into: &mut Entry) -> Result<(), FrameError> {
        Ok(raftpb::entry_into(into, self.buffer, self.start, self.end)?)
    }
}

impl Input {
    pub(super) fn feed(&mut self, piece: Bytes) {
        if piece.is_empty() {
        } else if self.at == self.front.len() {
            // Pieces behind an exhausted front: keep their order.
            self.rest.push_back(piece);
            self.advance();
        } else {
            self.rest.push_back(piece);
        }
    }

    /// The next `length` bytes, once all of them are here.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> Option<Element<'_>> {
        if self.carry.is_empty() && self.front.len() - self.at >= length {
            let start = self.at;
            self.at += length;
            return Some(Element {
                buffer: &self.front,
                start,
                end: self.at,
            });
        }
        self.gather(length)
    }

    #[inline]
    pub(super) fn take_u64(&mut self) -> Option<u64> {
        let element = self.take(8)?;
        let mut bytes = &element.buffer[element.start..element.end];
        Some(bytes.get_u64())
    }

    #[inline]
    pub(super) fn take_u8(&mut self) -> Option<u8> {
        let element = self.take(1)?;
        Some(element.buffer[element.start])
    }

    /// Bytes of the current piece that are not taken yet.
    pub(super) fn at_hand(&self) -> usize {
        self.front.len() - self.at
    }

    /// Whether nothing is left over.
    pub(super) fn is_empty(&self) -> bool {
        self.carry.is_empty() && self.at_hand() == 0 && self.rest.is_empty()
    }

    /// Everything not taken yet, in order.
    pub(super) fn into_rest(mut self) -> impl Iterator<Item = Bytes> {
        let carry = self.carry.freeze();
        self.front.advance(self.at);
        let pieces = [carry, self.front].into_iter().chain(self.rest);
        pieces.filter(|piece| !piece.is_empty())
    }

    #[cold]
    fn gather(&mut self, length: usize) -> Option<Element<'_>> {
        while self.carry.len() < length {
            if self.at_hand() == 0 && !self.advance() {
                return None;
            }
            let missing = length - self.carry.len();
            if self.carry.is_empty() && self.at_hand() >= missing {
                return self.take(length);
            }
            let taken = missing.min(self.at_hand());
            self.make_room(taken, length);
            let piece = &self.front[self.at..self.at + taken];
            self.carry.extend_from_slice(piece);
            self.at += taken;
        }
        self.gathered = std::mem::take(&mut self.carry).freeze();
        Some(Element {
            buffer: &self.gathered,
            start: 0,
            end: length,
        })
    }

    /// Room for `more` bytes: at least doubled, at most the whole element.
    fn make_room(&mut self, more: usize, element: usize) {
        let length = self.carry.len();
        if self.carry.capacity() - length < more {
            let grown = (2 * length).max(CARRY_BYTES_MIN).min(element);
            self.carry.reserve(grown.max(length + more) - length);
        }
    }

    /// Lets go of the current piece and moves on to the next one, if there is one.
    fn advance(&mut self) -> bool {
        self.at = 0;
        self.front = self.rest.pop_front().unwrap_or_default();
        !self.front.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(element: Option<Element<'_>>) -> Option<Vec<u8>> {
        element.map(|e| e.buffer[e.start..e.end].to_vec())
    }

    #[test]
    fn elements_come_out_whole_however_they_were_fed() {
        for step in 1..=11 {
            let mut input = Input::default();
            let mut pieces = b"abcdefghijk".chunks(step);
            let mut take = |length| {
                loop {
                    if let Some(found) = text(input.take(length)) {
                        return found;
                    }
                    input.feed(Bytes::copy_from_slice(pieces.next().unwrap()));
                }
            };
            assert_eq!(take(3), b"abc");
            assert_eq!(take(0), b"");
            assert_eq!(take(7), b"defghij");
            assert_eq!(take(1), b"k");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn an_element_within_one_piece_is_not_copied() {
        let piece = Bytes::from_static(b"abcdef");
        let mut input = Input::default();
        input.feed(piece.clone());
        input.take(2);
        let element = input.take(3).unwrap();
        assert_eq!(element.buffer.as_ptr(), piece.as_ptr());
        assert_eq!((element.start, element.end), (2, 5));
    }

    #[test]
    fn a_promised_length_makes_no_room() {
        let mut input = Input::default();
        input.feed(Bytes::from_static(b"ab"));
        assert!(input.take(1 << 40).is_none());
        assert!(input.carry.capacity() <= CARRY_BYTES_MIN);
        let rest: Vec<Bytes> = input.into_rest().collect();
        assert_eq!(rest.concat(), b"ab");
    }

    #[test]
    fn an_exhausted_piece_is_let_go() {
        let mut input = Input::default();
        input.feed(Bytes::from(vec![1, 2]));
        input.take(2);
        assert!(input.take(1).is_none());
        assert_eq!(input.front.len(), 0);
        input.feed(Bytes::from(vec![3]));
        input.feed(Bytes::from(vec![4]));
        assert_eq!(text(input.take(2)), Some(vec![3, 4]));
    }
}
