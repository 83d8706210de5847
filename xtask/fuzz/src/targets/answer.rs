//! The answer to a stream request: whatever comes, a head and a body, or an error.

use bytes::BytesMut;
use transport_core::http1::{
    HttpError,
    body::{BodyReader, CHUNK_END, ChunkHead, LAST_CHUNK, Next},
    head::{BodyLength, ResponseHead},
};

type Answer = (Option<ResponseHead>, Vec<u8>, Result<bool, HttpError>);

/// How the input is cut into pieces changes nothing; a chunked body is read as it was written.
pub fn answer(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let whole = read(data, data.len());
    let cut = read(data, step.into());
    // A head that is too long is told from one that is wrong by what is at hand, so errors may differ.
    assert_eq!(
        (&cut.0, &cut.1, cut.2.is_ok()),
        (&whole.0, &whole.1, whole.2.is_ok())
    );
    let mut chunked = BytesMut::new();
    for chunk in whole.1.chunks(usize::from(step).max(1)) {
        chunked.extend_from_slice(ChunkHead::new(chunk.len()).as_ref());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(CHUNK_END);
    }
    chunked.extend_from_slice(LAST_CHUNK);
    let mut body = Vec::new();
    let ended = drain(
        &mut BodyReader::new(BodyLength::Chunked),
        &mut chunked,
        &mut body,
    );
    assert_eq!((body, ended), (whole.1, Ok(true)));
}

/// Reads an answer that comes in pieces of `step` bytes: its head, its body, and whether that has ended.
fn read(data: &[u8], step: usize) -> Answer {
    let (mut buffer, mut head, mut data_read) = (BytesMut::new(), None, Vec::new());
    let mut reader = BodyReader::new(BodyLength::UntilClose);
    for piece in data.chunks(step.max(1)) {
        buffer.extend_from_slice(piece);
        if head.is_none() {
            match ResponseHead::take(&mut buffer) {
                Ok(None) => continue,
                Ok(Some(found)) => {
                    reader = BodyReader::new(found.length);
                    head = Some(found);
                }
                Err(error) => return (None, data_read, Err(error)),
            }
        }
        match drain(&mut reader, &mut buffer, &mut data_read) {
            Ok(false) => {}
            ended => return (head, data_read, ended),
        }
    }
    (head, data_read, Ok(false))
}

/// Whether the body has ended.
fn drain(
    reader: &mut BodyReader,
    from: &mut BytesMut,
    into: &mut Vec<u8>,
) -> Result<bool, HttpError> {
    loop {
        match reader.next(from)? {
            Next::Data(bytes) => into.extend_from_slice(&bytes),
            Next::More => return Ok(false),
            Next::End => return Ok(true),
        }
    }
}
