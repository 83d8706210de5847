//! The state machine of the tests: it remembers which request is at which index, and its disk outlives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use raft_node::{ConfChangeVerdict, SnapshotError, StateMachine};
use transport_core::raftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, Snapshot, SnapshotMetadata,
};

use super::harness::lock;

/// The replicated state: which request is at which index, and who is a member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub applied: (u64, u64),
    pub conf_state: Option<ConfState>,
    pub requests: Vec<u64>,
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    pub removed: BTreeSet<u64>,
}

/// What of one member's state machine outlives its process.
#[derive(Clone, Default)]
pub struct MachineDisk {
    pub state: Arc<Mutex<State>>,
    pub durable: Arc<AtomicU64>,
    pub bodies: Arc<Mutex<BTreeMap<u64, State>>>,
    pub installed: Arc<AtomicU64>,
    /// Makes the next entry panic.
    pub panics: Arc<AtomicBool>,
    pub leads: Arc<AtomicBool>,
}

/// The state machine of the tests. A response is the index of the entry.
pub struct Machine {
    state: State,
    disk: MachineDisk,
    /// What readers see: as of the last published batch.
    published: Arc<Mutex<State>>,
}

impl Machine {
    pub fn open(disk: MachineDisk, published: Arc<Mutex<State>>) -> Self {
        let state = lock(&disk.state).clone();
        *lock(&published) = state.clone();
        Machine {
            state,
            disk,
            published,
        }
    }

    fn snapshot(state: &State) -> Snapshot {
        Snapshot {
            data: Bytes::from_static(b"data"),
            metadata: Some(SnapshotMetadata {
                conf_state: state.conf_state.clone(),
                index: state.applied.0,
                term: state.applied.1,
            }),
        }
    }

    fn flush(&mut self) {
        *lock(&self.disk.state) = self.state.clone();
        self.disk
            .durable
            .store(self.state.applied.0, Ordering::SeqCst);
    }

    fn accepts(&mut self, change: &ConfChange) -> bool {
        let id = change.node_id;
        let state = &mut self.state;
        if state.removed.contains(&id) {
            return false;
        }
        match change.kind() {
            Some(ConfChangeType::AddNode) if &change.context[..] == b"promote" => {
                state.learners.remove(&id) && state.voters.insert(id)
            }
            Some(ConfChangeType::AddNode) => state.voters.insert(id),
            Some(ConfChangeType::AddLearnerNode) => state.learners.insert(id),
            Some(ConfChangeType::RemoveNode) => {
                (state.voters.remove(&id) | state.learners.remove(&id)) && state.removed.insert(id)
            }
            _ => true,
        }
    }
}

impl StateMachine for Machine {
    type Response = u64;
    type Image = State;

    fn applied(&self) -> (u64, u64) {
        self.state.applied
    }

    fn stored_conf_state(&self) -> Option<ConfState> {
        self.state.conf_state.clone()
    }

    fn durable(&self) -> Arc<AtomicU64> {
        self.disk.durable.clone()
    }

    fn apply(&mut self, entry: Entry) -> Option<(u64, u64)> {
        assert_eq!(entry.index, self.state.applied.0 + 1, "in order, once");
        assert!(!self.disk.panics.load(Ordering::SeqCst), "asked to panic");
        self.state.applied = (entry.index, entry.term);
        let id = entry.data.get(..8)?;
        let id = u64::from_be_bytes(id.try_into().expect("eight bytes"));
        self.state.requests.push(id);
        Some((id, entry.index))
    }

    /// Every other entry, so that both ways take turns.
    fn applies_at_once(&self, entry: &Entry) -> bool {
        entry.index.is_multiple_of(2) && !self.disk.panics.load(Ordering::SeqCst)
    }

    fn conf_change(&mut self, entry: &Entry, change: &ConfChange) -> ConfChangeVerdict<u64> {
        assert_eq!(entry.index, self.state.applied.0 + 1, "in order, once");
        self.state.applied = (entry.index, entry.term);
        let accepted = self.accepts(change);
        ConfChangeVerdict {
            accepted,
            response: if accepted { entry.index } else { 0 },
        }
    }

    fn conf_state(&mut self, index: u64, _term: u64, conf_state: ConfState) {
        assert_eq!(index, self.state.applied.0);
        let voters: Vec<u64> = self.state.voters.iter().copied().collect();
        assert_eq!(conf_state.voters, voters);
        self.state.conf_state = Some(conf_state);
    }

    fn flush_batch(&mut self) {
        let mut published = lock(&self.published);
        let seen = published.requests.len();
        let new = self.state.requests[seen..].to_vec();
        published.requests.extend(new);
        published.applied = self.state.applied;
        published.conf_state.clone_from(&self.state.conf_state);
        published.voters.clone_from(&self.state.voters);
        published.learners.clone_from(&self.state.learners);
        published.removed.clone_from(&self.state.removed);
    }

    fn image(&mut self) -> Result<(Snapshot, State), SnapshotError> {
        Ok((Machine::snapshot(&self.state), self.state.clone()))
    }

    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        self.flush();
        Ok(Some(Machine::snapshot(&self.state)))
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let body = lock(&self.disk.bodies).get(&metadata.index).cloned();
        let body = body.ok_or_else(|| SnapshotError::new("installing a snapshot", "no body"))?;
        assert_eq!(body.applied, (metadata.index, metadata.term));
        self.state = body;
        lock(&self.published).requests.clear();
        self.flush();
        self.flush_batch();
        self.disk.installed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn leadership(&mut self, is_leader: bool, _term: u64) {
        self.disk.leads.store(is_leader, Ordering::SeqCst);
    }
}
