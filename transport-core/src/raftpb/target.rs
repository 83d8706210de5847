//! What encoders write into: one buffer, or an [`Output`], which keeps large payloads as they are.
//!
//! Invariant: the pieces of an [`Output`], in order, are the bytes that a buffer would hold.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// From this length on a payload is passed on by reference. A shorter one costs less to copy than to write as a
/// piece of its own, which takes the system a slice more and the list of pieces a reference count.
pub const REFERENCE_BYTES_MIN: usize = 4 << 10;

/// Where encoded bytes go.
pub trait Target {
    /// Makes room for bytes that will be copied.
    fn reserve(&mut self, bytes: usize);

    /// Appends a copy.
    fn put_slice(&mut self, bytes: &[u8]);

    /// Appends a payload, which may be kept instead of copied.
    fn put_payload(&mut self, payload: &Bytes);
}

impl Target for BytesMut {
    #[inline]
    fn reserve(&mut self, bytes: usize) {
        BytesMut::reserve(self, bytes);
    }

    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    #[inline]
    fn put_payload(&mut self, payload: &Bytes) {
        self.extend_from_slice(payload);
    }
}

/// Bytes on their way to a connection, in pieces: what is small is gathered, and a payload of
/// [`REFERENCE_BYTES_MIN`] or more is a piece of its own that shares the payload's memory.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Bytes>,
    pieces_bytes: usize,
    /// What comes behind the pieces.
    tail: BytesMut,
}

impl Output {
    /// An empty one, which holds no memory.
    pub fn new() -> Self {
        Output::default()
    }

    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.pieces_bytes + self.tail.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next piece out.
    pub fn pop(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.pieces.pop_front() {
            self.pieces_bytes -= piece.len();
            return Some(piece);
        }
        (!self.tail.is_empty()).then(|| self.tail.split().freeze())
    }

    /// Gives memory back that is kept for later: a buffer of more than `bytes_max`, and a long list. Nothing if
    /// there are bytes in it.
    pub fn shrink(&mut self, bytes_max: usize) {
        if !self.is_empty() {
            return;
        }
        if self.tail.capacity() > bytes_max {
            self.tail = BytesMut::new();
        }
        if self.pieces.capacity() * size_of::<Bytes>() > bytes_max {
            self.pieces = VecDeque::new();
        }
    }

    fn push(&mut self, piece: Bytes) {
        self.pieces_bytes += piece.len();
        self.pieces.push_back(piece);
    }
}

impl Target for Output {
    #[inline]
    fn reserve(&mut self, bytes: usize) {
        self.tail.reserve(bytes);
    }

    #[inline]
    fn put_slice(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    #[inline]
    fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() < REFERENCE_BYTES_MIN {
            self.tail.extend_from_slice(payload);
            return;
        }
        if !self.tail.is_empty() {
            let before = self.tail.split().freeze();
            self.push(before);
        }
        self.push(payload.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_burst_needed_is_given_back() {
        let payload = Bytes::from_static(&[7; REFERENCE_BYTES_MIN]);
        let mut output = Output::new();
        for _ in 0..100 {
            output.put_slice(b"head");
            output.put_payload(&payload);
        }
        output.shrink(0);
        assert_eq!(output.len(), 100 * (4 + REFERENCE_BYTES_MIN));
        let pieces = std::iter::from_fn(|| output.pop()).count();
        assert_eq!(pieces, 200);
        output.shrink(1 << 10);
        assert_eq!(output.pieces.capacity(), 0);
        output.put_slice(b"x");
        assert_eq!(output.pop().unwrap(), &b"x"[..]);
    }
}
