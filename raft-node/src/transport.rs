//! The way out to the other members, as the node sees it.
//!
//! Owned by this crate, implemented by whoever owns sockets. Depends on message types only. Invariant: no
//! method blocks; losing a message is allowed, reordering those to one member is legal but slow.

use transport_core::{MemberId, raftpb::Message};

/// Carries messages to other members; `I` is the state machine's image.
pub trait Transport<I>: Send + Sync + 'static {
    /// Sends messages, each to the member it names. Called from the raft and the wal thread.
    fn send(&self, messages: Vec<Message>);

    /// Sends a snapshot message with its body. Called from the apply thread. How it ended must be told
    /// with [`Node::report_snapshot`](crate::Node::report_snapshot), exactly once.
    fn send_snapshot(&self, message: Message, image: I);

    /// Whether that member was removed from the cluster for good.
    fn is_removed(&self, id: MemberId) -> bool;
}
