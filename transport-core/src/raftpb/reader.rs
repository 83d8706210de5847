//! A cursor over protobuf wire bytes that lie in one shared buffer.
//!
//! Depends on `bytes` alone. Invariant: never reads past its end, never allocates, and payloads are handed
//! out as slices of the buffer it reads.

use bytes::Bytes;

use super::DecodeError;

/// Wire types of protobuf that raft messages may use.
pub(super) const VARINT: u64 = 0;
pub(super) const FIXED64: u64 = 1;
pub(super) const BYTES: u64 = 2;
pub(super) const FIXED32: u64 = 5;

#[derive(Clone)]
pub(super) struct Reader<'a> {
    owner: &'a Bytes,
    /// `owner` up to the end of what is read here.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `owner[start..end]`; the range must lie within the buffer.
    pub(super) fn new(owner: &'a Bytes, start: usize, end: usize) -> Self {
        debug_assert!(start <= end);
        Reader {
            owner,
            bytes: &owner[..end],
            at: start,
        }
    }

    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next field's key (`number << 3 | wire type`), or `None` at the end.
    #[inline]
    pub(super) fn key(&mut self) -> Result<Option<u64>, DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        self.varint().map(Some)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for (position, &byte) in self.bytes[self.at..].iter().take(10).enumerate() {
            // The tenth byte holds the 64th bit only.
            if position == 9 && byte > 1 {
                return Err(DecodeError::VarintOverflow);
            }
            value |= u64::from(byte & 0x7f) << (7 * position);
            if byte < 0x80 {
                self.at += position + 1;
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated)
    }

    /// A length prefix and the position it ends at.
    #[inline]
    fn delimited(&mut self) -> Result<usize, DecodeError> {
        let length = self.varint()?;
        match usize::try_from(length) {
            Ok(length) if length <= self.remaining() => Ok(self.at + length),
            _ => Err(DecodeError::Truncated),
        }
    }

    /// A `bytes` field. Empty ones do not keep the buffer alive.
    #[inline]
    pub(super) fn payload(&mut self) -> Result<Bytes, DecodeError> {
        let end = self.delimited()?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(if start == end {
            Bytes::new()
        } else {
            self.owner.slice(start..end)
        })
    }

    /// A nested message.
    #[inline]
    pub(super) fn nested(&mut self) -> Result<Reader<'a>, DecodeError> {
        let end = self.delimited()?;
        let start = std::mem::replace(&mut self.at, end);
        Ok(Reader {
            owner: self.owner,
            bytes: &self.bytes[..end],
            at: start,
        })
    }

    /// Steps over a field that is not known. `known` is the highest field number of the message read: a
    /// field up to it that lands here has a wrong wire type.
    pub(super) fn skip(&mut self, key: u64, known: u64) -> Result<(), DecodeError> {
        let number = key >> 3;
        if number == 0 || number > 0x1fff_ffff {
            return Err(DecodeError::FieldNumber(number));
        }
        let wire_type = key & 7;
        if number <= known {
            return Err(DecodeError::WireType { number, wire_type });
        }
        let end = match wire_type {
            VARINT => {
                self.varint()?;
                self.at
            }
            FIXED64 => self.at + 8,
            BYTES => self.delimited()?,
            FIXED32 => self.at + 4,
            // Groups: nobody's raftpb has any, and nesting them is an old way to exhaust a stack.
            _ => return Err(DecodeError::WireType { number, wire_type }),
        };
        if end > self.bytes.len() {
            return Err(DecodeError::Truncated);
        }
        self.at = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<u64, DecodeError> {
        let owner = Bytes::copy_from_slice(bytes);
        Reader::new(&owner, 0, bytes.len()).varint()
    }

    #[test]
    fn varints_at_their_edges() {
        assert_eq!(read(&[0x7f]), Ok(127));
        assert_eq!(read(&[0xac, 0x02]), Ok(300));
        let mut max = [0xff; 10];
        max[9] = 1;
        assert_eq!(read(&max), Ok(u64::MAX));
        max[9] = 2;
        assert_eq!(read(&max), Err(DecodeError::VarintOverflow));
        assert_eq!(read(&[0xff; 11]), Err(DecodeError::VarintOverflow));
        assert_eq!(read(&[0x80]), Err(DecodeError::Truncated));
        assert_eq!(read(&[]), Err(DecodeError::Truncated));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused() {
        let owner = Bytes::from_static(&[0x05, 1, 2]);
        assert_eq!(
            Reader::new(&owner, 0, 3).payload(),
            Err(DecodeError::Truncated)
        );
        let huge = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(
            Reader::new(&huge, 0, 10).payload(),
            Err(DecodeError::Truncated)
        );
    }

    #[test]
    fn payloads_are_slices_of_the_buffer() {
        let owner = Bytes::from_static(&[0x02, 7, 8, 0x00]);
        let mut reader = Reader::new(&owner, 0, 4);
        let payload = reader.payload().unwrap();
        assert_eq!(payload.as_ptr(), owner[1..].as_ptr());
        assert!(reader.payload().unwrap().is_empty());
        assert_eq!(reader.remaining(), 0);
    }
}
