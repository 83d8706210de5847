//! The one conversion between these messages and those of the `raft` crate.
//!
//! Everything moves; payloads are never copied. Kinds the other side does not know make the conversion
//! fail, because raft-rs would read them as its kind zero.
//!
//! Invariant: fields that only raft-rs has (12 and above of its message, context and sync_log of its
//! entry) are dropped on the way out and left zero on the way in, and its numbering of configuration
//! changes never leaves this module.

use raft::eraftpb as theirs;

use super::{
    ConfChange, ConfChangeType, ConfState, Entry, HardState, Message, MessageType, Snapshot,
    SnapshotMetadata,
};

/// A kind of message or entry that raft-rs does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownEnum {
    /// See [`Message::msg_type`].
    #[error("raft-rs has no message type {0}")]
    MessageType(i32),
    /// See [`Entry::entry_type`].
    #[error("raft-rs has no entry type {0}")]
    EntryType(i32),
}

/// The change to hand to `RawNode::apply_conf_change` for a committed configuration entry.
///
/// raft-rs numbers the kinds differently from etcd: an update of URLs (2) would demote a voter there. It
/// becomes a change of node 0, which raft-rs skips while it keeps its own bookkeeping. `None` when the kind
/// is unknown.
pub fn conf_change_to_raft(change: &ConfChange) -> Option<theirs::ConfChange> {
    let (kind, node_id) = match change.kind()? {
        ConfChangeType::AddNode => (theirs::ConfChangeType::AddNode, change.node_id),
        ConfChangeType::RemoveNode => (theirs::ConfChangeType::RemoveNode, change.node_id),
        ConfChangeType::AddLearnerNode => (theirs::ConfChangeType::AddLearnerNode, change.node_id),
        ConfChangeType::UpdateNode => (theirs::ConfChangeType::AddNode, 0),
    };
    Some(theirs::ConfChange {
        change_type: kind,
        node_id,
        id: change.id,
        ..Default::default()
    })
}

impl TryFrom<Message> for theirs::Message {
    type Error = UnknownEnum;

    fn try_from(message: Message) -> Result<Self, UnknownEnum> {
        let entries = message.entries.into_iter().map(TryInto::try_into);
        let entries: Vec<theirs::Entry> = entries.collect::<Result<_, _>>()?;
        // raft-rs asks whether a snapshot is present, so an empty one must not be.
        let wanted = message.msg_type == MessageType::Snapshot as i32;
        let snapshot = message.snapshot.filter(|s| wanted || !s.is_empty());
        Ok(theirs::Message {
            msg_type: message_type(message.msg_type)?,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: entries.into(),
            commit: message.commit,
            snapshot: snapshot.map(|s| theirs::Snapshot::from(*s)).into(),
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context,
            ..Default::default()
        })
    }
}

impl From<theirs::Message> for Message {
    fn from(mut message: theirs::Message) -> Self {
        let entries = message.take_entries().into_vec();
        Message {
            msg_type: message.get_msg_type() as i32,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: entries.into_iter().map(Into::into).collect(),
            commit: message.commit,
            snapshot: message
                .has_snapshot()
                .then(|| Box::new(message.take_snapshot().into())),
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.take_context(),
        }
    }
}

impl TryFrom<Entry> for theirs::Entry {
    type Error = UnknownEnum;

    fn try_from(entry: Entry) -> Result<Self, UnknownEnum> {
        Ok(theirs::Entry {
            entry_type: match entry.entry_type {
                0 => theirs::EntryType::EntryNormal,
                1 => theirs::EntryType::EntryConfChange,
                2 => theirs::EntryType::EntryConfChangeV2,
                other => return Err(UnknownEnum::EntryType(other)),
            },
            term: entry.term,
            index: entry.index,
            data: entry.data,
            ..Default::default()
        })
    }
}

impl From<theirs::Entry> for Entry {
    fn from(mut entry: theirs::Entry) -> Self {
        Entry {
            entry_type: entry.get_entry_type() as i32,
            term: entry.term,
            index: entry.index,
            data: entry.take_data(),
        }
    }
}

impl From<Snapshot> for theirs::Snapshot {
    fn from(snapshot: Snapshot) -> Self {
        theirs::Snapshot {
            data: snapshot.data,
            metadata: snapshot.metadata.map(theirs::SnapshotMetadata::from).into(),
            ..Default::default()
        }
    }
}

impl From<theirs::Snapshot> for Snapshot {
    fn from(mut snapshot: theirs::Snapshot) -> Self {
        Snapshot {
            data: snapshot.take_data(),
            metadata: snapshot
                .has_metadata()
                .then(|| snapshot.take_metadata().into()),
        }
    }
}

impl From<SnapshotMetadata> for theirs::SnapshotMetadata {
    fn from(metadata: SnapshotMetadata) -> Self {
        theirs::SnapshotMetadata {
            conf_state: metadata.conf_state.map(theirs::ConfState::from).into(),
            index: metadata.index,
            term: metadata.term,
            ..Default::default()
        }
    }
}

impl From<theirs::SnapshotMetadata> for SnapshotMetadata {
    fn from(mut metadata: theirs::SnapshotMetadata) -> Self {
        SnapshotMetadata {
            conf_state: (metadata.has_conf_state()).then(|| metadata.take_conf_state().into()),
            index: metadata.index,
            term: metadata.term,
        }
    }
}

impl From<ConfState> for theirs::ConfState {
    fn from(state: ConfState) -> Self {
        theirs::ConfState {
            voters: state.voters,
            learners: state.learners,
            voters_outgoing: state.voters_outgoing,
            learners_next: state.learners_next,
            auto_leave: state.auto_leave,
            ..Default::default()
        }
    }
}

impl From<theirs::ConfState> for ConfState {
    fn from(state: theirs::ConfState) -> Self {
        ConfState {
            voters: state.voters,
            learners: state.learners,
            voters_outgoing: state.voters_outgoing,
            learners_next: state.learners_next,
            auto_leave: state.auto_leave,
        }
    }
}

impl From<HardState> for theirs::HardState {
    fn from(state: HardState) -> Self {
        theirs::HardState {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
            ..Default::default()
        }
    }
}

impl From<theirs::HardState> for HardState {
    fn from(state: theirs::HardState) -> Self {
        HardState {
            term: state.term,
            vote: state.vote,
            commit: state.commit,
        }
    }
}

/// The kinds up to 18 have the same numbers on both sides; the others raft-rs does not have.
fn message_type(number: i32) -> Result<theirs::MessageType, UnknownEnum> {
    use theirs::MessageType as T;
    const KINDS: [T; 19] = [
        T::MsgHup,
        T::MsgBeat,
        T::MsgPropose,
        T::MsgAppend,
        T::MsgAppendResponse,
        T::MsgRequestVote,
        T::MsgRequestVoteResponse,
        T::MsgSnapshot,
        T::MsgHeartbeat,
        T::MsgHeartbeatResponse,
        T::MsgUnreachable,
        T::MsgSnapStatus,
        T::MsgCheckQuorum,
        T::MsgTransferLeader,
        T::MsgTimeoutNow,
        T::MsgReadIndex,
        T::MsgReadIndexResp,
        T::MsgRequestPreVote,
        T::MsgRequestPreVoteResponse,
    ];
    let kind = usize::try_from(number).ok().and_then(|n| KINDS.get(n));
    kind.copied().ok_or(UnknownEnum::MessageType(number))
}
