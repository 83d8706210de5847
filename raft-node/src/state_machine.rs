//! The replicated state machine, as the node sees it.
//!
//! Owned by this crate, implemented by whoever stores data. Depends on message types only. Invariant: calls
//! come one at a time, and entries in order of index and each one once: those a restart finds already
//! contained (`index <= applied()`) are not handed over again.

use std::sync::{Arc, atomic::AtomicU64};

use transport_core::raftpb::{ConfChange, ConfState, Entry, Snapshot};

use crate::SnapshotError;

/// What a [`Node`](crate::Node) replicates.
pub trait StateMachine: Send + 'static {
    /// What a proposer gets back.
    type Response: Send + 'static;
    /// A consistent view from which a snapshot is sent; cheap to take.
    type Image: Send + 'static;

    /// Index and term of the last entry already contained; (0, 0) when new.
    fn applied(&self) -> (u64, u64);

    /// The raft configuration stored with the last entry contained, as given to [`conf_state`] or found in
    /// an installed snapshot. `None` when there is none, as in a new state machine.
    ///
    /// [`conf_state`]: StateMachine::conf_state
    fn stored_conf_state(&self) -> Option<ConfState>;

    /// The index up to which a crash loses nothing. Read by other threads; rises on its own.
    fn durable(&self) -> Arc<AtomicU64>;

    /// Applies a normal entry; one without data only moves the applied index. Returns the id of the request
    /// it carries and the result for the proposer, if it carries one.
    fn apply(&mut self, entry: Entry) -> Option<(u64, Self::Response)>;

    /// Whether applying this entry and ending the batch take no longer than it takes to wake a thread. Then,
    /// if the apply thread has nothing else to do, they happen on a thread that serves sockets; so nothing in
    /// them may wait, nor depend in length on what is stored.
    fn applies_at_once(&self, _entry: &Entry) -> bool {
        false
    }

    /// Applies a configuration entry to the membership and says whether it is accepted. raft's own
    /// configuration follows as the very next call, see [`conf_state`](StateMachine::conf_state); the entry
    /// must not become durable before it.
    ///
    /// Only a state machine without a [stored configuration](StateMachine::stored_conf_state) is asked a
    /// second time, after a restart, about changes it contains: then it must answer as it did and change
    /// nothing, and no configuration follows.
    fn conf_change(
        &mut self,
        entry: &Entry,
        change: &ConfChange,
    ) -> ConfChangeVerdict<Self::Response>;

    /// raft's configuration after the entry at `index`, accepted or not; to be stored with that entry.
    fn conf_state(&mut self, index: u64, term: u64, conf_state: ConfState);

    /// The end of a batch of entries: what was applied becomes visible to readers. Results are delivered
    /// and the applied index rises only afterwards.
    fn flush_batch(&mut self);

    /// The snapshot of everything applied: its raft part, whose metadata is exactly the image's, and the
    /// view its body is sent from.
    fn image(&mut self) -> Result<(Snapshot, Self::Image), SnapshotError>;

    /// The snapshot for the `.snap` file: its metadata is at or below [`durable`](StateMachine::durable).
    /// `None` when nothing is durable yet.
    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError>;

    /// Replaces everything by a received snapshot, whose body arrived before its message was stepped. It
    /// must be durable when this returns.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError>;

    /// Leadership was won or lost. Comes in order with the entries: all committed before it are applied.
    fn leadership(&mut self, is_leader: bool, term: u64);
}

/// What the state machine says to a configuration change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfChangeVerdict<R> {
    /// Whether raft's configuration changes. A refused change still passes through raft, as one of no node.
    pub accepted: bool,
    /// What the proposer gets back either way.
    pub response: R,
}
