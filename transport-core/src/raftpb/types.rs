//! The raft messages as etcd's peers exchange them (package `raftpb` of go.etcd.io/raft).
//!
//! Plain data with `Bytes` payloads: cloning an entry or slicing it out of a received buffer copies no
//! payload. Only fields 1 to 12 of [`Message`] exist here: what other implementations put above them
//! clashes between each other, so it is neither written nor believed.

use bytes::Bytes;

/// The kinds of [`Message`], numbered as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum MessageType {
    /// Local: the election timeout fired.
    Hup = 0,
    /// Local: the heartbeat timeout fired.
    Beat = 1,
    /// A proposal forwarded to the leader.
    Propose = 2,
    /// Entries (possibly none) to append.
    Append = 3,
    /// Answer to [`MessageType::Append`].
    AppendResponse = 4,
    /// A vote is asked for.
    RequestVote = 5,
    /// Answer to [`MessageType::RequestVote`].
    RequestVoteResponse = 6,
    /// A snapshot; its database travels outside of the message.
    Snapshot = 7,
    /// The leader is alive. With `from` and `to` both zero: a link heartbeat of the transport.
    Heartbeat = 8,
    /// Answer to [`MessageType::Heartbeat`].
    HeartbeatResponse = 9,
    /// Local: a peer could not be reached.
    Unreachable = 10,
    /// Local: how sending a snapshot ended.
    SnapStatus = 11,
    /// Local: the leader checks that a quorum is active.
    CheckQuorum = 12,
    /// Leadership is to move to `from`.
    TransferLeader = 13,
    /// Start an election at once.
    TimeoutNow = 14,
    /// A linearizable read asks for the commit index.
    ReadIndex = 15,
    /// Answer to [`MessageType::ReadIndex`].
    ReadIndexResponse = 16,
    /// A vote is sounded out before the term is raised.
    RequestPreVote = 17,
    /// Answer to [`MessageType::RequestPreVote`].
    RequestPreVoteResponse = 18,
    /// Local to go.etcd.io/raft: write entries and hard state.
    StorageAppend = 19,
    /// Local to go.etcd.io/raft: answer to [`MessageType::StorageAppend`].
    StorageAppendResponse = 20,
    /// Local to go.etcd.io/raft: apply committed entries.
    StorageApply = 21,
    /// Local to go.etcd.io/raft: answer to [`MessageType::StorageApply`].
    StorageApplyResponse = 22,
    /// Local to go.etcd.io/raft: forget who leads.
    ForgetLeader = 23,
}

/// The kinds of [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum EntryType {
    /// Application data, or empty: the no-op of a new leader.
    Normal = 0,
    /// A [`ConfChange`].
    ConfChange = 1,
    /// Joint consensus; etcd's members refuse it, so it is never proposed.
    ConfChangeV2 = 2,
}

/// What a [`ConfChange`] does. Numbered as etcd numbers it, which raft-rs does differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ConfChangeType {
    /// Add a voter, or promote a learner.
    AddNode = 0,
    /// Remove a member.
    RemoveNode = 1,
    /// Change a member's peer URLs; no effect on raft.
    UpdateNode = 2,
    /// Add a learner.
    AddLearnerNode = 3,
}

/// One raft message. Absent fields read as zero; see [`MessageType`] for the kinds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Message {
    /// A [`MessageType`], or a number this version does not know.
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    /// Receiver's member id.
    #[prost(uint64, tag = "2")]
    pub to: u64,
    /// Sender's member id.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// Sender's term.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Term of the entry at `index`.
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    /// For appends: index of the entry before `entries`.
    #[prost(uint64, tag = "6")]
    pub index: u64,
    /// Entries, ascending and contiguous in an append.
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    /// Sender's commit index.
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    /// Only meaningful on [`MessageType::Snapshot`]; boxed, because every other message moves without one.
    #[prost(message, optional, boxed, tag = "9")]
    pub snapshot: Option<Box<Snapshot>>,
    /// Whether the request is refused.
    #[prost(bool, tag = "10")]
    pub reject: bool,
    /// Where a refused append should go on.
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    /// Opaque; echoed byte for byte in heartbeat responses.
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
}

/// One entry of the raft log.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Entry {
    /// An [`EntryType`], or a number this version does not know.
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    /// Term of the leader that proposed it.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Position in the log, from 1.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Payload; opaque to raft.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

/// The raft part of a snapshot.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Snapshot {
    /// etcd up to 3.7: membership as v2store JSON.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Position and configuration.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

/// Where in the log a [`Snapshot`] stands.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct SnapshotMetadata {
    /// Configuration at `index`.
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    /// Last entry the snapshot contains.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Term of that entry.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// The raft configuration. Written unpacked as etcd does; either form is read.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfState {
    /// Voters.
    #[prost(uint64, repeated, packed = "false", tag = "1")]
    pub voters: Vec<u64>,
    /// Learners.
    #[prost(uint64, repeated, packed = "false", tag = "2")]
    pub learners: Vec<u64>,
    /// Outgoing voters of a joint configuration; always empty in etcd.
    #[prost(uint64, repeated, packed = "false", tag = "3")]
    pub voters_outgoing: Vec<u64>,
    /// Learners to be, of a joint configuration; always empty in etcd.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub learners_next: Vec<u64>,
    /// Whether a joint configuration leaves by itself; always false in etcd.
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

/// What a member must remember across restarts besides its log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct HardState {
    /// Latest term seen.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// Highest index known to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// A change of one member, the payload of an [`EntryType::ConfChange`] entry.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ConfChange {
    /// Id of the request that waits for it.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`ConfChangeType`], or a number this version does not know.
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    /// The member concerned; 0 makes the change a no-op.
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    /// etcd: JSON of the member.
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
}
