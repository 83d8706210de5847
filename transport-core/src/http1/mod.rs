//! As much of HTTP/1.1 as a stream needs: one head each way, and a body that goes on for hours.
//!
//! A stream's connection carries one request and one answer. An HTTP library keeps buffers for whatever else may
//! come, 16 KiB at each end; with this module a connection costs what its frames need. Everything here is a pure
//! function of the bytes at hand: [`head`] writes and reads heads, [`body`] frames and unframes what follows them.
//!
//! Invariant: no length is believed before its bytes are there, heads and chunk lines have limits, and whatever is
//! not HTTP/1.1 is an error, never a panic.

pub mod body;
pub mod head;

/// Longest head of an answer, and longest size lines and trailers of a chunked body, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 << 10;

/// Most headers of an answer.
pub const HEADERS_MAX: usize = 100;

/// Why the bytes of a connection are not HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The head cannot be read.
    #[error("malformed HTTP response: {0}")]
    Head(httparse::Error),
    /// The head has no end within [`HEAD_BYTES_MAX`].
    #[error("HTTP response head of more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// A status that is no status.
    #[error("malformed HTTP status {0}")]
    Status(u16),
    /// The head tells no length of the body that makes sense.
    #[error("malformed HTTP body length")]
    Length,
    /// A chunk's size cannot be read.
    #[error("malformed chunked encoding")]
    Chunk,
    /// Extensions or trailers of more than [`HEAD_BYTES_MAX`].
    #[error("chunk lines of more than {HEAD_BYTES_MAX} bytes")]
    ChunkLines,
    /// The connection ended before the body did.
    #[error("unexpected EOF")]
    Truncated,
}
