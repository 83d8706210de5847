//! Bodies: chunks written around what is sent, and taken off what is received.

use bytes::{Buf, Bytes, BytesMut};

use super::{HEAD_BYTES_MAX, HttpError, head::BodyLength};

/// Behind the bytes of each chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The chunk that ends a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The line in front of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkHead {
    bytes: [u8; 18],
    start: u8,
}

impl ChunkHead {
    /// For a chunk of `length` bytes. A length of 0 would end the body.
    pub fn new(length: usize) -> ChunkHead {
        let mut head = ChunkHead {
            bytes: *b"0000000000000000\r\n",
            start: 16,
        };
        let mut left = length as u64;
        while left > 0 || head.start == 16 {
            head.start -= 1;
            let digit = (left & 0xf) as u8;
            head.bytes[usize::from(head.start)] = match digit {
                0..=9 => b'0' + digit,
                _ => b'a' + digit - 10,
            };
            left >>= 4;
        }
        head
    }
}

impl AsRef<[u8]> for ChunkHead {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[usize::from(self.start)..]
    }
}

/// What comes next in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Some of its bytes, at least one.
    Data(Bytes),
    /// Nothing until more is received.
    More,
    /// Its end.
    End,
}

/// Takes a body off the bytes of a connection. After an error or the end it must not be asked again.
#[derive(Clone, Copy, Debug)]
pub struct BodyReader {
    expect: Expect,
    /// Bytes of chunk extensions and trailers so far.
    lines: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// Digits of a size, and whether there was one.
    Size(u64, bool),
    /// The rest of a size line.
    Extension(u64),
    SizeEnd(u64),
    /// Bytes of the chunk.
    Data(u64),
    DataCr,
    DataLf,
    /// The start of a trailer, or of the line that ends the body.
    Trailer,
    TrailerRest,
    End,
    Exactly(u64),
    UntilClose,
}

impl BodyReader {
    /// For a body of this length.
    pub fn new(length: BodyLength) -> BodyReader {
        let expect = match length {
            BodyLength::Chunked => Expect::Size(0, false),
            BodyLength::Exactly(bytes) => Expect::Exactly(bytes),
            BodyLength::UntilClose => Expect::UntilClose,
        };
        BodyReader { expect, lines: 0 }
    }

    /// Takes what comes next off the front of `from`, without copying.
    pub fn next(&mut self, from: &mut BytesMut) -> Result<Next, HttpError> {
        loop {
            match self.expect {
                Expect::Data(left) | Expect::Exactly(left) if left > 0 => {
                    if from.is_empty() {
                        return Ok(Next::More);
                    }
                    let taken =
                        usize::try_from(left).map_or(from.len(), |left| left.min(from.len()));
                    let left = left - taken as u64;
                    self.expect = match self.expect {
                        Expect::Exactly(_) => Expect::Exactly(left),
                        _ if left == 0 => Expect::DataCr,
                        _ => Expect::Data(left),
                    };
                    return Ok(Next::Data(from.split_to(taken).freeze()));
                }
                Expect::Exactly(_) | Expect::End => return Ok(Next::End),
                Expect::UntilClose if from.is_empty() => return Ok(Next::More),
                Expect::UntilClose => return Ok(Next::Data(from.split().freeze())),
                _ => {}
            }
            let Some(&byte) = from.first() else {
                return Ok(Next::More);
            };
            from.advance(1);
            self.expect = self.line(byte)?;
        }
    }

    /// Whether the body has ended, and something else may follow on its connection.
    pub fn is_over(&self) -> bool {
        matches!(self.expect, Expect::End | Expect::Exactly(0))
    }

    /// Whether the connection may end here.
    pub fn finish(&self) -> Result<(), HttpError> {
        match self.expect {
            Expect::UntilClose => Ok(()),
            _ if self.is_over() => Ok(()),
            _ => Err(HttpError::Truncated),
        }
    }

    /// One byte of what stands between the chunks.
    fn line(&mut self, byte: u8) -> Result<Expect, HttpError> {
        let expect = match (self.expect, byte) {
            (Expect::Size(size, some), _) => match (byte as char).to_digit(16) {
                // Sixteen digits fill it.
                Some(_) if size >> 60 != 0 => return Err(HttpError::Chunk),
                Some(digit) => Expect::Size(size << 4 | u64::from(digit), true),
                None if !some => return Err(HttpError::Chunk),
                None => match byte {
                    b'\r' => Expect::SizeEnd(size),
                    b';' | b' ' | b'\t' => Expect::Extension(size),
                    _ => return Err(HttpError::Chunk),
                },
            },
            (Expect::Extension(size), b'\r') => Expect::SizeEnd(size),
            (Expect::Extension(_), b'\n') => return Err(HttpError::Chunk),
            (Expect::Extension(size), _) => self.passed(Expect::Extension(size))?,
            (Expect::SizeEnd(0), b'\n') => Expect::Trailer,
            (Expect::SizeEnd(size), b'\n') => Expect::Data(size),
            (Expect::DataCr, b'\r') => Expect::DataLf,
            (Expect::DataLf, b'\n') => Expect::Size(0, false),
            (Expect::Trailer, b'\r') => Expect::End,
            (Expect::Trailer | Expect::TrailerRest, b'\n') => self.passed(Expect::Trailer)?,
            (Expect::Trailer | Expect::TrailerRest, _) => self.passed(Expect::TrailerRest)?,
            _ => return Err(HttpError::Chunk),
        };
        Ok(expect)
    }

    /// Counts a byte that means nothing here.
    fn passed(&mut self, expect: Expect) -> Result<Expect, HttpError> {
        self.lines += 1;
        match self.lines <= HEAD_BYTES_MAX {
            true => Ok(expect),
            false => Err(HttpError::ChunkLines),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything the reader gives when the bytes come in pieces of `step`, and how it ended.
    fn read(bytes: &[u8], step: usize) -> (Vec<u8>, Result<bool, HttpError>) {
        let mut reader = BodyReader::new(BodyLength::Chunked);
        let (mut buffer, mut data) = (BytesMut::new(), Vec::new());
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            loop {
                match reader.next(&mut buffer) {
                    Ok(Next::Data(bytes)) => data.extend_from_slice(&bytes),
                    Ok(Next::More) => break,
                    Ok(Next::End) => return (data, Ok(true)),
                    Err(error) => return (data, Err(error)),
                }
            }
        }
        (data, Ok(false))
    }

    #[test]
    fn chunk_heads_are_hexadecimal_without_leading_zeros() {
        for (length, head) in [
            (1, "1\r\n"),
            (0xa, "a\r\n"),
            (0x10, "10\r\n"),
            (0x3_fa07, "3fa07\r\n"),
            (usize::MAX, "ffffffffffffffff\r\n"),
        ] {
            assert_eq!(ChunkHead::new(length).as_ref(), head.as_bytes());
        }
        assert_eq!(ChunkHead::new(0).as_ref(), b"0\r\n");
    }

    #[test]
    fn chunks_come_out_whole_however_they_arrive() {
        let body = b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n1 \r\nz\r\n0\r\nTrailer: t\r\n\r";
        for step in 1..body.len() {
            let (data, ended) = read(body, step);
            assert_eq!(
                (&data[..], ended),
                (&b"abc0123456789z"[..], Ok(true)),
                "{step}"
            );
        }
    }

    #[test]
    fn what_is_no_chunk_is_an_error() {
        for bad in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "1\n",
            "1\rx",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\rx",
            "11111111111111111\r\n",
            "1;x\n",
        ] {
            assert_eq!(read(bad.as_bytes(), 1).1, Err(HttpError::Chunk), "{bad:?}");
        }
        let long = format!("1;{}", "x".repeat(HEAD_BYTES_MAX + 1));
        assert_eq!(read(long.as_bytes(), 7).1, Err(HttpError::ChunkLines));
        let long = format!("0\r\n{}", "x: y\r\n".repeat(HEAD_BYTES_MAX));
        assert_eq!(read(long.as_bytes(), 7).1, Err(HttpError::ChunkLines));
    }

    #[test]
    fn bodies_of_a_length_and_until_the_end() {
        let mut reader = BodyReader::new(BodyLength::Exactly(3));
        assert_eq!(reader.finish(), Err(HttpError::Truncated));
        assert!(!reader.is_over());
        let mut buffer = BytesMut::from("abcdef");
        assert_eq!(reader.next(&mut buffer), Ok(Next::Data("abc".into())));
        assert_eq!(reader.next(&mut buffer), Ok(Next::End));
        assert_eq!((reader.finish(), reader.is_over()), (Ok(()), true));
        let mut reader = BodyReader::new(BodyLength::UntilClose);
        assert_eq!(reader.next(&mut buffer), Ok(Next::Data("def".into())));
        assert_eq!(reader.next(&mut buffer), Ok(Next::More));
        assert_eq!((reader.finish(), reader.is_over()), (Ok(()), false));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8), step in 1..400_usize) {
            let mut body = Vec::new();
            for chunk in &chunks {
                body.extend_from_slice(ChunkHead::new(chunk.len()).as_ref());
                body.extend_from_slice(chunk);
                body.extend_from_slice(CHUNK_END);
            }
            body.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(read(&body, step), (chunks.concat(), Ok(true)));
        }

        #[test]
        fn anything_is_read_or_refused(bytes in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'1'), any::<u8>()], 0..200), step in 1..50_usize) {
            let (data, _) = read(&bytes, step);
            prop_assert!(data.len() <= bytes.len());
        }
    }
}
