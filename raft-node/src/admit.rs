//! The only way of a received message into raft.
//!
//! raft-rs ends the process on messages that are well-formed but impossible, so every rule whose breach it
//! would be fatal on, or would corrupt a log, is checked here first. A pure function of the message and a
//! view of raft's state at this very moment; depends on message types only. Invariant: whatever [`admit`]
//! lets through, `RawNode::step` survives.

use bytes::Bytes;
use transport_core::{
    MemberId,
    raftpb::{
        ConfChange, ConfChangeType, ConfState, Entry, EntryType, Message, MessageType, Snapshot,
        decode_conf_change,
    },
};

/// No term or index comes near this; above it arithmetic could overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Bytes of a read's context; etcd uses 8, this crate 24.
const READ_CONTEXT_BYTES_MAX: usize = 1024;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a received message was not handed to raft.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            pub(crate) const ALL: [DropReason; [$($text),*].len()] = [$(DropReason::$name),*];

            /// The value of the metric's label.
            pub fn as_str(self) -> &'static str {
                match self { $(DropReason::$name => $text),* }
            }
        }
    };
}

drop_reasons! {
    /// A kind this version does not know.
    UnknownType = "unknown_type",
    /// A kind that only has a meaning inside one member.
    Local = "local",
    /// Addressed to another member.
    NotForUs = "not_for_us",
    /// From nobody, or from this member itself.
    InvalidSender = "invalid_sender",
    /// From a member that was removed.
    RemovedSender = "removed_sender",
    /// A term, index or commit beyond any log.
    OutOfRange = "out_of_range",
    /// A term where none may be, or none where one must be.
    InvalidTerm = "invalid_term",
    /// Entries that are not contiguous, go back in term, or are of an unknown kind.
    InvalidEntries = "invalid_entries",
    /// A configuration change that cannot be read.
    InvalidConfChange = "invalid_conf_change",
    /// An entry of joint consensus, which etcd's members refuse.
    JointConsensus = "joint_consensus",
    /// Contradicts entries that are committed here.
    ConflictsCommitted = "conflicts_committed",
    /// Acknowledges entries the leader never had.
    AheadOfLog = "ahead_of_log",
    /// The leader counts on entries this member does not have (any more).
    LogLost = "log_lost",
    /// A snapshot without position or with an impossible configuration.
    InvalidSnapshot = "invalid_snapshot",
    /// Only a leader acts on it.
    NotLeader = "not_leader",
    /// A read index message without exactly one entry.
    InvalidRead = "invalid_read",
    /// The state machine is too far behind.
    ApplyBacklog = "apply_backlog",
    /// The disk is too far behind.
    WalBacklog = "wal_backlog",
    /// raft knows no such member.
    UnknownMember = "unknown_member",
    /// A proposal that raft would not take now: no leader, or too much uncommitted.
    ProposalDropped = "proposal_dropped",
}

/// What [`admit`] needs to know of raft at this moment.
pub struct View<'a> {
    /// This member.
    pub id: MemberId,
    /// Its term.
    pub term: u64,
    /// Whether it leads.
    pub is_leader: bool,
    /// Its commit index.
    pub committed: u64,
    /// Last index of its log.
    pub last_index: u64,
    /// Term of the entry at an index, if it is known.
    pub term_at: &'a dyn Fn(u64) -> Option<u64>,
    /// Whether a member was removed for good.
    pub is_removed: &'a dyn Fn(MemberId) -> bool,
    /// Set while received entries have nowhere to go.
    pub backlog: Option<DropReason>,
}

/// Decides about a received message; the kind if it may be stepped.
pub fn admit(message: &Message, view: &View<'_>) -> Result<MessageType, DropReason> {
    let kind = message.kind().ok_or(DropReason::UnknownType)?;
    if kind.is_local() {
        return Err(DropReason::Local);
    }
    envelope(message, kind, view)?;
    match kind {
        MessageType::Append => append(message, view)?,
        MessageType::AppendResponse => append_response(message, view)?,
        MessageType::Heartbeat => heartbeat(message, view)?,
        MessageType::Snapshot => snapshot(message, view)?,
        MessageType::Propose => propose(message, view)?,
        MessageType::ReadIndex | MessageType::ReadIndexResponse => read(message)?,
        MessageType::TransferLeader if !view.is_leader => return Err(DropReason::NotLeader),
        _ => {}
    }
    Ok(kind)
}

/// Sender, receiver, term and the range of all numbers.
fn envelope(message: &Message, kind: MessageType, view: &View<'_>) -> Result<(), DropReason> {
    if message.to != view.id.0 {
        return Err(DropReason::NotForUs);
    }
    // A proposal of ours may come back: forwarded to a member that by then knew us as leader.
    let from_self = message.from == view.id.0 && kind != MessageType::Propose;
    if message.from == 0 || from_self {
        return Err(DropReason::InvalidSender);
    }
    if (view.is_removed)(MemberId(message.from)) {
        return Err(DropReason::RemovedSender);
    }
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.reject_hint,
    ];
    if numbers.iter().any(|n| *n > NUMBER_MAX) {
        return Err(DropReason::OutOfRange);
    }
    // With a term, raft-rs could not pass a proposal or a read on; without, it takes anything else for
    // its own.
    let without_term = matches!(kind, MessageType::Propose | MessageType::ReadIndex);
    if (message.term == 0) != without_term {
        return Err(DropReason::InvalidTerm);
    }
    Ok(())
}

fn append(message: &Message, view: &View<'_>) -> Result<(), DropReason> {
    if let Some(reason) = view.backlog {
        return Err(reason);
    }
    // Only the position before the first entry has term 0. raft-rs also reads 0 as the term of positions
    // it does not have, and would take such an append for a match.
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return Err(DropReason::InvalidEntries);
    }
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in &message.entries {
        index += 1;
        if entry.index != index || entry.term < term.max(1) || entry.term > message.term {
            return Err(DropReason::InvalidEntries);
        }
        term = entry.term;
        entry_kind(entry)?;
    }
    if message.term >= view.term {
        let here = (message.index, message.log_term);
        let entries = message.entries.iter().map(|e| (e.index, e.term));
        agrees_with_committed(std::iter::once(here).chain(entries), view)?;
    }
    Ok(())
}

/// A leader's log contains everything committed here, so a difference means that one of them is damaged.
fn agrees_with_committed(
    positions: impl Iterator<Item = (u64, u64)>,
    view: &View<'_>,
) -> Result<(), DropReason> {
    for (index, term) in positions.take_while(|(index, _)| *index <= view.committed) {
        if (view.term_at)(index).is_some_and(|ours| ours != term) {
            return Err(DropReason::ConflictsCommitted);
        }
    }
    Ok(())
}

fn entry_kind(entry: &Entry) -> Result<(), DropReason> {
    match entry.kind() {
        Some(EntryType::Normal) => Ok(()),
        Some(EntryType::ConfChange) => match parse_conf_change(&entry.data) {
            Some(_) => Ok(()),
            None => Err(DropReason::InvalidConfChange),
        },
        Some(EntryType::ConfChangeV2) => Err(DropReason::JointConsensus),
        None => Err(DropReason::InvalidEntries),
    }
}

fn append_response(message: &Message, view: &View<'_>) -> Result<(), DropReason> {
    // raft-rs would believe it, and later count this follower for entries it does not have.
    let current = view.is_leader && message.term == view.term;
    if current && !message.reject && message.index > view.last_index {
        return Err(DropReason::AheadOfLog);
    }
    Ok(())
}

fn heartbeat(message: &Message, view: &View<'_>) -> Result<(), DropReason> {
    if message.term >= view.term && message.commit > view.last_index {
        return Err(DropReason::LogLost);
    }
    Ok(())
}

fn snapshot(message: &Message, view: &View<'_>) -> Result<(), DropReason> {
    let metadata = message
        .snapshot
        .as_ref()
        .and_then(|snapshot| snapshot.metadata.as_ref())
        .ok_or(DropReason::InvalidSnapshot)?;
    if metadata.index > NUMBER_MAX || metadata.term > NUMBER_MAX {
        return Err(DropReason::OutOfRange);
    }
    let position = metadata.index > 0 && metadata.term > 0 && metadata.term <= message.term;
    if !position || !metadata.conf_state.as_ref().is_some_and(is_plain) {
        return Err(DropReason::InvalidSnapshot);
    }
    if message.term >= view.term {
        agrees_with_committed(std::iter::once((metadata.index, metadata.term)), view)?;
    }
    Ok(())
}

/// Whether raft-rs restores exactly this configuration: voters, no duplicates, nothing joint.
pub(crate) fn is_plain(state: &ConfState) -> bool {
    let mut ids: Vec<u64> = state
        .voters
        .iter()
        .chain(&state.learners)
        .copied()
        .collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    !state.voters.is_empty()
        && ids.len() == count
        && ids.first() != Some(&0)
        && state.voters_outgoing.is_empty()
        && state.learners_next.is_empty()
        && !state.auto_leave
}

fn propose(message: &Message, view: &View<'_>) -> Result<(), DropReason> {
    if view.is_leader
        && let Some(reason) = view.backlog
    {
        return Err(reason);
    }
    if message.entries.is_empty() {
        return Err(DropReason::InvalidEntries);
    }
    message.entries.iter().try_for_each(entry_kind)
}

fn read(message: &Message) -> Result<(), DropReason> {
    match message.entries.as_slice() {
        [only] if only.data.len() <= READ_CONTEXT_BYTES_MAX => Ok(()),
        _ => Err(DropReason::InvalidRead),
    }
}

/// A configuration change of a kind this version knows, or nothing.
pub(crate) fn parse_conf_change(data: &Bytes) -> Option<ConfChange> {
    let change = decode_conf_change(data.clone()).ok()?;
    let known: Option<ConfChangeType> = change.kind();
    known.map(|_| change)
}

/// Whether a snapshot is one that a node may start from or install.
pub(crate) fn is_usable(snapshot: &Snapshot) -> bool {
    snapshot
        .metadata
        .as_ref()
        .is_some_and(|m| m.index > 0 && m.term > 0 && m.conf_state.as_ref().is_some_and(is_plain))
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
