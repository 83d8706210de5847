//! Whether a peer can be reached: one flag, shared by all that talks to it.
//!
//! The time comes from the caller. Invariant: only transitions are reported, so that each is logged and
//! counted once.
//!
//! etcd: rafthttp/peer_status.go.

use std::{fmt, time::Instant};

/// Who noticed that a peer cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Reader or writer of the append stream.
    StreamMsgAppV2,
    /// Reader or writer of the message stream.
    StreamMessage,
    /// The pipeline.
    Pipeline,
    /// The snapshot sender.
    SendSnapshot,
}

/// What it was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Connecting, or asking for a stream.
    Dial,
    /// Reading a stream.
    Read,
    /// Writing a message.
    Write,
    /// Writing a link heartbeat.
    Heartbeat,
    /// Posting a message or a snapshot.
    Post,
}

/// Prints as in etcd's logs.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::StreamMsgAppV2 => "stream MsgApp v2",
            Source::StreamMessage => "stream Message",
            Source::Pipeline => "pipeline",
            Source::SendSnapshot => "sendMsgSnap",
        })
    }
}

/// Prints as in etcd's logs.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Dial => "dial",
            Action::Read => "read",
            Action::Write => "write",
            Action::Heartbeat => "heartbeat",
            Action::Post => "post",
        })
    }
}

/// What a success or failure changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a transition is to be logged and counted"]
pub enum Transition {
    /// Nothing: the peer was as it is.
    Unchanged,
    /// The peer became active: log it, count one more active peer.
    Activated,
    /// The peer became inactive: log it with source, action and reason, count one active peer less and one
    /// disconnection more.
    Deactivated,
}

/// Whether a peer is active, and since when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    active_since: Option<Instant>,
}

impl PeerStatus {
    /// The status of a peer nothing is known of: inactive.
    pub const fn new() -> Self {
        PeerStatus { active_since: None }
    }

    /// Something got through at `now`.
    pub fn activate(&mut self, now: Instant) -> Transition {
        if self.is_active() {
            return Transition::Unchanged;
        }
        self.active_since = Some(now);
        Transition::Activated
    }

    /// Something failed. One failing channel is enough, and the next success of any other reverses it.
    pub fn deactivate(&mut self) -> Transition {
        match self.active_since.take() {
            Some(_) => Transition::Deactivated,
            None => Transition::Unchanged,
        }
    }

    /// Whether the peer is active.
    pub const fn is_active(&self) -> bool {
        self.active_since.is_some()
    }

    /// When the peer became active; `None` while it is not.
    pub const fn active_since(&self) -> Option<Instant> {
        self.active_since
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_transitions_count_and_the_first_success_sets_the_time() {
        let mut status = PeerStatus::new();
        let start = Instant::now();
        assert_eq!(status.deactivate(), Transition::Unchanged);
        assert_eq!(status.activate(start), Transition::Activated);
        let later = start + Duration::from_secs(1);
        assert_eq!(status.activate(later), Transition::Unchanged);
        assert_eq!(status.active_since(), Some(start));
        assert_eq!(status.deactivate(), Transition::Deactivated);
        assert_eq!(status.deactivate(), Transition::Unchanged);
        assert_eq!(status.active_since(), None);
        assert_eq!(status.activate(later), Transition::Activated);
        assert_eq!(status.active_since(), Some(later));
    }
}
