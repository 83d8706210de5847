//! The raft messages of etcd's peers: plain types and their bounded codec.
//!
//! [`types`] holds the data, `decode` reads it from untrusted bytes without copying payloads, `encode`
//! writes it straight into a caller's buffer, or into an [`Output`] that keeps large payloads as they are, and
//! with the feature `eraftpb` a conversion by move leads to and from the types of the `raft` crate. Depends on
//! nothing of this crate but itself.
//!
//! Invariant: of [`Message`] only fields 1 to 12 are ever written or believed. Above them implementations
//! disagree: field 13 is a vote to Go and a snapshot request to raft-rs, field 14 not even has one wire type.

mod decode;
mod encode;
mod entry_cache;
#[cfg(feature = "eraftpb")]
mod eraftpb;
mod reader;
mod shared;
mod target;
pub mod types;

use bytes::Bytes;

pub use decode::{
    CONF_STATE_IDS_MAX, DecodeError, decode_conf_change, decode_conf_state, decode_entry,
    decode_hard_state, decode_message, decode_snapshot,
};
pub use encode::{encode_entry, encode_message, encoded_len, entry_len};
pub use entry_cache::{ENTRY_CACHE_BYTES, EntryCache};
#[cfg(feature = "eraftpb")]
pub use eraftpb::{UnknownEnum, conf_change_to_raft};
pub use shared::{SharedEntries, encode_message_shared, shared_len};
pub use target::{Output, REFERENCE_BYTES_MIN, Target};
pub use types::*;

pub(crate) use decode::{entry_into, message_in};
pub(crate) use encode::{
    Carried, append_form_len, copied_len, encode_carrying, message_len, nested_len,
};

impl Message {
    /// No field set, as [`Message::default`], which cannot make a constant.
    pub(crate) const fn empty() -> Message {
        Message {
            msg_type: 0,
            to: 0,
            from: 0,
            term: 0,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            snapshot: None,
            reject: false,
            reject_hint: 0,
            context: Bytes::new(),
        }
    }

    /// The keep-alive a stream writer sends of its own accord; it never reaches raft.
    ///
    /// etcd: rafthttp/message.go, `linkHeartbeatMessage`.
    pub fn link_heartbeat() -> Message {
        Message {
            msg_type: MessageType::Heartbeat as i32,
            ..Message::default()
        }
    }

    /// Whether this is a link heartbeat: a heartbeat from nobody to nobody, whatever else it carries.
    pub fn is_link_heartbeat(&self) -> bool {
        self.msg_type == MessageType::Heartbeat as i32 && self.from == 0 && self.to == 0
    }

    /// The kind, or `None` when the number is unknown to this version.
    pub fn kind(&self) -> Option<MessageType> {
        MessageType::try_from(self.msg_type).ok()
    }

    /// Whether the kind only has a meaning inside one member, so that it is dropped when it comes from the
    /// network. False for unknown kinds.
    ///
    /// go.etcd.io/raft: util.go, `IsLocalMsg`; [`MessageType::ForgetLeader`] is added because no member of
    /// etcd ever sends it.
    pub fn is_local(&self) -> bool {
        self.kind().is_some_and(MessageType::is_local)
    }
}

impl AsRef<Message> for Message {
    fn as_ref(&self) -> &Message {
        self
    }
}

impl AsMut<Message> for Message {
    fn as_mut(&mut self) -> &mut Message {
        self
    }
}

impl MessageType {
    /// See [`Message::is_local`].
    pub fn is_local(self) -> bool {
        use MessageType as T;
        matches!(
            self,
            T::Hup
                | T::Beat
                | T::Unreachable
                | T::SnapStatus
                | T::CheckQuorum
                | T::StorageAppend
                | T::StorageAppendResponse
                | T::StorageApply
                | T::StorageApplyResponse
                | T::ForgetLeader
        )
    }
}

impl Entry {
    /// The kind, or `None` when the number is unknown to this version.
    pub fn kind(&self) -> Option<EntryType> {
        EntryType::try_from(self.entry_type).ok()
    }
}

impl ConfChange {
    /// The kind, or `None` when the number is unknown to this version.
    pub fn kind(&self) -> Option<ConfChangeType> {
        ConfChangeType::try_from(self.change_type).ok()
    }
}

impl Snapshot {
    /// Whether it stands for "no snapshot": etcd 3.4 and 3.5 put such a one into every message.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty() && self.metadata.as_ref().is_none_or(|m| m.index == 0)
    }
}
