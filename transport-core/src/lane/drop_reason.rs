//! Why a message did not arrive, as far as this member knows.

use std::fmt;

/// A reason for dropping a message. Prints as the value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The lane's control queue is full.
    ControlFull,
    /// The lane's bulk queue is full.
    BulkFull,
    /// The bulk queues of the process are full together.
    ProcessFull,
    /// The message was queued for a connection that was replaced or broke.
    ConnectionLost,
    /// The peer is paused or cut off on purpose.
    Paused,
    /// The peer or the transport is being stopped.
    Stopped,
    /// Nobody of that id is known.
    UnknownPeer,
    /// The kind has no meaning outside of one member.
    LocalType,
    /// The kind is unknown to this version.
    UnknownType,
    /// The message is larger than any peer would read.
    TooLong,
    /// The request that carried it failed; the peer may have it all the same.
    RequestFailed,
    /// Raft did not take it.
    Refused,
}

impl DropReason {
    /// All reasons, for registering a counter for each.
    pub const ALL: [DropReason; 12] = [
        DropReason::ControlFull,
        DropReason::BulkFull,
        DropReason::ProcessFull,
        DropReason::ConnectionLost,
        DropReason::Paused,
        DropReason::Stopped,
        DropReason::UnknownPeer,
        DropReason::LocalType,
        DropReason::UnknownType,
        DropReason::TooLong,
        DropReason::RequestFailed,
        DropReason::Refused,
    ];

    /// Lower case with underscores.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::ControlFull => "control_full",
            DropReason::BulkFull => "bulk_full",
            DropReason::ProcessFull => "process_full",
            DropReason::ConnectionLost => "connection_lost",
            DropReason::Paused => "paused",
            DropReason::Stopped => "stopped",
            DropReason::UnknownPeer => "unknown_peer",
            DropReason::LocalType => "local_type",
            DropReason::UnknownType => "unknown_type",
            DropReason::TooLong => "too_long",
            DropReason::RequestFailed => "request_failed",
            DropReason::Refused => "refused",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
