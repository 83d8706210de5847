//! How messages are laid out on a peer connection: two stream framings and the snapshot envelope.
//!
//! Each decoder is fed the bytes of an HTTP body in pieces of any size and yields whole messages; entry data
//! are slices of what was fed, except for the one element that a piece ends in. Each encoder appends to a
//! caller's buffer, or [`Output`](crate::raftpb::Output). Depends on [`raftpb`](crate::raftpb) only.
//!
//! Invariant: a decoder holds no more than the bytes it was fed and the messages made of them, believes no
//! length before the bytes are there, and after an error yields nothing more: its connection must end.

mod input;
pub mod message;
pub mod msgappv2;
pub mod snapshot;

use crate::raftpb::{
    Carried, DecodeError, Message, Target, copied_len, encode_carrying, message_len,
};

/// Longest frame a stream may carry, in bytes: 512 MiB.
///
/// etcd: rafthttp/message.go, `readBytesLimit`; its `msgappv2` reader has no limit, ours has the same one
/// for both.
pub const FRAME_BYTES_MAX: u64 = 512 << 20;

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length over the limit of its framing. The text is etcd's, which peers see.
    #[error("rafthttp: error limit exceeded")]
    TooLong {
        /// The length announced, in bytes.
        length: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A `msgappv2` frame of a kind that does not exist.
    #[error("unknown frame type {0}")]
    UnknownTag(u8),
    /// The bytes of a frame are not what they should be.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The body ended inside a frame.
    #[error("unexpected EOF")]
    Truncated,
}

/// Why a message cannot be put on a stream. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// No peer would read it.
    #[error("message of {0} bytes exceeds the frame limit")]
    TooLong(usize),
    /// The `msgappv2` stream carries appends and link heartbeats only.
    #[error("message type {0} does not belong on the append stream")]
    NotAppend(i32),
}

/// `length` as a size in memory, if the framing allows it.
fn checked_len(length: u64, limit: u64) -> Result<usize, FrameError> {
    match usize::try_from(length) {
        Ok(bytes) if length <= limit => Ok(bytes),
        _ => Err(FrameError::TooLong { length, limit }),
    }
}

/// Appends a whole message behind `head`, which is told its length; that length.
fn put_whole<E: Carried + ?Sized, H: AsRef<[u8]>>(
    message: &Message,
    entries: &E,
    head: impl FnOnce(usize) -> H,
    to: &mut impl Target,
) -> Result<usize, EncodeError> {
    let lengths = entries.lengths();
    let length = message_len(message, lengths.nested);
    if length as u64 > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLong(length));
    }
    let head = head(length);
    let head = head.as_ref();
    to.reserve(head.len() + copied_len(message, length, lengths.kept));
    to.put_slice(head);
    encode_carrying(message, entries, to);
    Ok(length)
}
