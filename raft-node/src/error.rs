//! What can go wrong, told apart by what the caller may conclude from it.
//!
//! The most important distinction: an error either proves that a proposal will never be applied, or it
//! leaves that open. Each variant says which.

use transport_core::MemberId;

/// Why a proposal has no result. Dropping the future instead (a deadline of the caller) leaves open
/// whether it is applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// No leader was known for as long as the proposal could wait. It was never proposed.
    #[error("no leader")]
    NoLeader,
    /// Too much is under way: entries not applied, bytes not committed or proposals without a result.
    /// It was never proposed.
    #[error("too many requests")]
    TooManyRequests,
    /// The configuration change is of a kind that does not exist. It was never proposed.
    #[error("unknown kind of configuration change: {0}")]
    InvalidConfChange(i32),
    /// Another configuration change is not applied yet. It was never proposed.
    #[error("another configuration change is in progress")]
    ConfChangePending,
    /// A new leader put another entry in its place: it will never be applied.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// It was forwarded to a leader that another one has followed since; whether it is applied is open.
    #[error("forwarded to a leader that was lost")]
    LeaderLost,
    /// This member is no longer part of the configuration. It was never proposed.
    #[error("this member was removed from the cluster")]
    Removed,
    /// Another proposal with that id waits for its result. It was never proposed.
    #[error("request id {0:x} is in use")]
    DuplicateId(u64),
    /// The node stopped; whether it is applied is open.
    #[error("the node is stopped")]
    Stopped,
}

/// Why a linearizable read got no index. It may always be repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader confirmed an index in time.
    #[error("no leader confirmed the read in time")]
    Timeout,
    /// Too many reads wait already.
    #[error("too many requests")]
    TooManyRequests,
    /// The node stopped.
    #[error("the node is stopped")]
    Stopped,
}

/// Why a message was not taken. Messages that are taken and then dropped by a rule are no error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// The sender was removed from the cluster.
    #[error("sender {0} was removed from the cluster")]
    Removed(MemberId),
    /// The message is addressed to another member.
    #[error("message is addressed to member {0}")]
    NotForUs(MemberId),
    /// No room; only [`try_step`](crate::Node::try_step) says so.
    #[error("the inbox is full")]
    Full,
    /// The node stopped.
    #[error("the node is stopped")]
    Stopped,
}

/// Why leadership is not being transferred.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Only the leader transfers leadership.
    #[error("not leader")]
    NotLeader,
    /// The target is no voter of the current configuration.
    #[error("bad leader transferee {0}")]
    NotVoter(MemberId),
    /// The node stopped.
    #[error("the node is stopped")]
    Stopped,
}

/// The state machine could not produce or take over a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {reason}")]
pub struct SnapshotError {
    /// What was being done, to what.
    pub action: String,
    /// What went wrong.
    pub reason: String,
}

impl SnapshotError {
    /// Says what was being done and what went wrong.
    pub fn new(action: impl Into<String>, reason: impl ToString) -> Self {
        SnapshotError {
            action: action.into(),
            reason: reason.to_string(),
        }
    }
}
