//! Heads: the request for a stream, and the answer to it.
//!
//! Names are written in title case, as Go writes them.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{HEAD_BYTES_MAX, HEADERS_MAX, HttpError};

/// Room for a head that is written; it grows if need be.
const HEAD_BYTES: usize = 512;

/// The bytes of a request without a body. `path` must be a valid request target.
pub fn request(method: &Method, path: &str, headers: &HeaderMap) -> Bytes {
    let mut to = BytesMut::with_capacity(HEAD_BYTES);
    for part in [method.as_str(), " ", path, " HTTP/1.1\r\n"] {
        to.put_slice(part.as_bytes());
    }
    put_headers(headers, &mut to);
    to.freeze()
}

/// The bytes of a 200 whose body is chunked. `date` is what the header of that name says.
pub fn chunked_ok(headers: &HeaderMap, date: &str) -> Bytes {
    let mut to = BytesMut::with_capacity(HEAD_BYTES);
    to.put_slice(b"HTTP/1.1 200 OK\r\n");
    for part in ["Transfer-Encoding: chunked\r\nDate: ", date, "\r\n"] {
        to.put_slice(part.as_bytes());
    }
    put_headers(headers, &mut to);
    to.freeze()
}

fn put_headers(headers: &HeaderMap, to: &mut BytesMut) {
    for (name, value) in headers {
        let mut starts = true;
        for letter in name.as_str().bytes() {
            to.put_u8(if starts {
                letter.to_ascii_uppercase()
            } else {
                letter
            });
            starts = letter == b'-';
        }
        to.put_slice(b": ");
        to.put_slice(value.as_bytes());
        to.put_slice(b"\r\n");
    }
    to.put_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Never informational: those heads are passed over.
    pub status: StatusCode,
    /// As they came; a name may come more than once.
    pub headers: HeaderMap,
    /// How the body behind it ends.
    pub length: BodyLength,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// With the chunk that has no bytes.
    Chunked,
    /// After so many bytes.
    Exactly(u64),
    /// With the connection.
    UntilClose,
}

impl ResponseHead {
    /// Takes the head off the front of `from`; `None` until all of it is there. Heads with a status of 1xx are taken
    /// off and forgotten.
    pub fn take(from: &mut BytesMut) -> Result<Option<ResponseHead>, HttpError> {
        loop {
            let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut parsed = httparse::Response::new(&mut fields);
            let length = match parsed.parse(from).map_err(HttpError::Head)? {
                httparse::Status::Complete(length) if length <= HEAD_BYTES_MAX => length,
                httparse::Status::Partial if from.len() < HEAD_BYTES_MAX => return Ok(None),
                _ => return Err(HttpError::HeadTooLong),
            };
            let code = parsed.code.unwrap_or_default();
            let status = StatusCode::from_u16(code).map_err(|_| HttpError::Status(code))?;
            // 1.0 has no chunks and closes when it is done.
            let may_chunk = parsed.version == Some(1);
            let headers = header_map(parsed.headers)?;
            let _ = from.split_to(length);
            if status.is_informational() {
                // 101 would need an upgrade that nobody asked for.
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    return Err(HttpError::Status(code));
                }
                continue;
            }
            let length = body_length(status, &headers, may_chunk)?;
            return Ok(Some(ResponseHead {
                status,
                headers,
                length,
            }));
        }
    }
}

fn header_map(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, HttpError> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        // httparse takes a little more than the types do.
        match (name, value) {
            (Ok(name), Ok(value)) => headers.append(name, value),
            (Err(_), _) => return Err(HttpError::Head(httparse::Error::HeaderName)),
            (_, Err(_)) => return Err(HttpError::Head(httparse::Error::HeaderValue)),
        };
    }
    Ok(headers)
}

/// RFC 9112 §6.3, for an answer to a GET.
fn body_length(
    status: StatusCode,
    headers: &HeaderMap,
    may_chunk: bool,
) -> Result<BodyLength, HttpError> {
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Ok(BodyLength::Exactly(0));
    }
    if let Some(codings) = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .next_back()
    {
        let last = codings.as_bytes().rsplit(|byte| *byte == b',').next();
        let chunked = last.is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
        // Other codings are not spoken here.
        return match chunked && may_chunk {
            true => Ok(BodyLength::Chunked),
            false => Err(HttpError::Length),
        };
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(BodyLength::UntilClose);
    };
    if lengths.any(|other| other != first) {
        return Err(HttpError::Length);
    }
    let digits = first
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit()));
    let length = digits.and_then(|text| text.parse().ok());
    length.map(BodyLength::Exactly).ok_or(HttpError::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<ResponseHead>, HttpError> {
        ResponseHead::take(&mut BytesMut::from(text))
    }

    #[test]
    fn a_request_is_written_as_go_writes_it() {
        let headers = HeaderMap::from_iter([
            (header::HOST, HeaderValue::from_static("a:2380")),
            (
                HeaderName::from_static("x-raft-to"),
                HeaderValue::from_static("b66b2921ec552136"),
            ),
        ]);
        assert_eq!(
            request(&Method::GET, "/raft/stream/msgapp/1", &headers),
            "GET /raft/stream/msgapp/1 HTTP/1.1\r\nHost: a:2380\r\nX-Raft-To: b66b2921ec552136\r\n\r\n"
        );
    }

    #[test]
    fn what_is_written_as_an_answer_is_read_as_one() {
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-server-version"),
            HeaderValue::from_static("3.6.0"),
        )]);
        let mut bytes = BytesMut::from(&chunked_ok(&headers, "Sat, 28 Nov 2026 20:00:00 GMT")[..]);
        bytes.extend_from_slice(b"rest");
        let read = ResponseHead::take(&mut bytes).unwrap().unwrap();
        assert_eq!(
            (read.status, read.length),
            (StatusCode::OK, BodyLength::Chunked)
        );
        assert_eq!(read.headers["x-server-version"], "3.6.0");
        assert_eq!(read.headers["date"], "Sat, 28 Nov 2026 20:00:00 GMT");
        assert_eq!(&bytes[..], b"rest");
    }

    #[test]
    fn a_head_is_read_once_it_is_whole_and_never_beyond_the_limit() {
        let text = "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 3\r\n\r\n";
        for cut in 0..text.len() {
            assert_eq!(head(&text[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(head(text).unwrap().unwrap().length, BodyLength::Exactly(3));
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(head(&endless), Err(HttpError::HeadTooLong));
        let many = "A: b\r\n".repeat(HEADERS_MAX + 1);
        assert_eq!(
            head(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")),
            Err(HttpError::Head(httparse::Error::TooManyHeaders))
        );
        assert!(matches!(head("\x16\x03\x01"), Err(HttpError::Head(_))));
    }

    #[test]
    fn informational_heads_are_passed_over() {
        let read = head("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        let read = read.unwrap().unwrap();
        assert_eq!((read.status, read.headers.len()), (StatusCode::OK, 0));
        assert_eq!(
            head("HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            Err(HttpError::Status(101))
        );
    }

    #[test]
    fn the_length_of_a_body_is_what_the_head_says_or_an_error() {
        let length = |status: &str, fields: &str| {
            head(&format!("HTTP/1.{status}\r\n{fields}\r\n")).map(|read| read.unwrap().length)
        };
        for (status, fields, expected) in [
            ("1 200 OK", "", Ok(BodyLength::UntilClose)),
            ("1 204 No Content", "", Ok(BodyLength::Exactly(0))),
            (
                "1 200 OK",
                "Transfer-Encoding: Chunked\r\n",
                Ok(BodyLength::Chunked),
            ),
            (
                "0 200 OK",
                "Transfer-Encoding: chunked\r\n",
                Err(HttpError::Length),
            ),
            (
                "1 200 OK",
                "Transfer-Encoding: gzip\r\n",
                Err(HttpError::Length),
            ),
            (
                "1 200 OK",
                "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n",
                Ok(BodyLength::Chunked),
            ),
            (
                "1 404 Not Found",
                "Content-Length: 7\r\nContent-Length: 7\r\n",
                Ok(BodyLength::Exactly(7)),
            ),
            (
                "1 200 OK",
                "Content-Length: 7\r\nContent-Length: 8\r\n",
                Err(HttpError::Length),
            ),
            ("1 200 OK", "Content-Length: +7\r\n", Err(HttpError::Length)),
            (
                "1 200 OK",
                "Content-Length: 99999999999999999999\r\n",
                Err(HttpError::Length),
            ),
        ] {
            assert_eq!(length(status, fields), expected, "{status} {fields}");
        }
    }
}
