//! Which channel a message leaves by.
//!
//! etcd: rafthttp/peer.go, `peer.pick`. Invariant: the choice depends on the kind of the message and on
//! which streams are attached, never on what is queued; between channels there is no order.

use std::fmt;

use crate::raftpb::MessageType;

/// The ways from one member to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    /// The append stream the peer has opened.
    MsgAppV2,
    /// The message stream the peer has opened.
    Message,
    /// One POST per message; always there.
    Pipeline,
}

/// Prints as in etcd's logs.
impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Channel::MsgAppV2 => "streamMsgAppV2",
            Channel::Message => "streamMsg",
            Channel::Pipeline => "pipeline",
        })
    }
}

/// The channel for a message of this kind, given which streams are attached.
///
/// A snapshot that comes by here goes without a database; those with one have a sender of their own.
pub fn pick(kind: MessageType, msgapp_attached: bool, message_attached: bool) -> Channel {
    match kind {
        MessageType::Snapshot => Channel::Pipeline,
        MessageType::Append if msgapp_attached => Channel::MsgAppV2,
        _ if message_attached => Channel::Message,
        _ => Channel::Pipeline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_go_members() {
        use Channel::*;
        use MessageType as T;
        for (kind, msgapp, message, channel) in [
            (T::Snapshot, true, true, Pipeline),
            (T::Snapshot, true, false, Pipeline),
            (T::Snapshot, false, true, Pipeline),
            (T::Append, true, true, MsgAppV2),
            (T::Append, true, false, MsgAppV2),
            (T::Append, false, true, Message),
            (T::Append, false, false, Pipeline),
            (T::Heartbeat, true, true, Message),
            (T::Heartbeat, true, false, Pipeline),
            (T::Propose, true, true, Message),
            (T::Propose, true, false, Pipeline),
            (T::AppendResponse, false, true, Message),
            (T::TimeoutNow, false, false, Pipeline),
        ] {
            assert_eq!(pick(kind, msgapp, message), channel, "{kind:?}");
        }
    }
}
