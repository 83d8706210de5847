//! A state machine that remembers every entry, validates membership as etcd does, and forgets on a crash
//! what it has not flushed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfChangeType, ConfState, Entry, Message, Snapshot, SnapshotMetadata},
};

use crate::{ConfChangeVerdict, SnapshotError, StateMachine, Transport};

/// Everything replicated.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub applied: (u64, u64),
    pub conf_state: Option<ConfState>,
    /// Request ids by index, 0 for entries without one.
    pub log: BTreeMap<u64, u64>,
    pub voters: BTreeSet<u64>,
    pub learners: BTreeSet<u64>,
    pub removed: BTreeSet<u64>,
}

/// What outlives a crash, and the switches of the simulation.
#[derive(Clone, Default)]
pub(crate) struct MachineDisk {
    pub state: Arc<Mutex<State>>,
    pub durable: Arc<AtomicU64>,
    /// Bodies of received snapshots, by index.
    pub bodies: Arc<Mutex<BTreeMap<u64, State>>>,
    /// Whether the next published batch is also flushed.
    pub flush: Arc<AtomicBool>,
    /// Whether snapshots without a body are installed all the same.
    pub any_snapshot: bool,
    /// Members removed, as applied so far.
    pub removed: Arc<Mutex<BTreeSet<u64>>>,
}

pub(crate) struct Machine {
    pub state: State,
    disk: MachineDisk,
    /// Index of a configuration change that waits for its configuration.
    changing: Option<u64>,
}

impl Machine {
    /// Opens what the last crash left.
    pub fn open(disk: MachineDisk) -> Self {
        let state = disk.state.lock().clone();
        disk.durable.store(state.applied.0, Ordering::SeqCst);
        *disk.removed.lock() = state.removed.clone();
        Machine {
            state,
            disk,
            changing: None,
        }
    }

    fn flush(&mut self) {
        *self.disk.state.lock() = self.state.clone();
        self.disk
            .durable
            .store(self.state.applied.0, Ordering::SeqCst);
    }

    fn accepts(&mut self, change: &ConfChange) -> bool {
        let id = change.node_id;
        let State {
            voters,
            learners,
            removed,
            ..
        } = &mut self.state;
        if id == 0 || removed.contains(&id) {
            return false;
        }
        let promote = &change.context[..] == b"promote";
        match change.kind() {
            Some(ConfChangeType::AddNode) if promote => learners.remove(&id) && voters.insert(id),
            Some(ConfChangeType::AddNode) => !learners.contains(&id) && voters.insert(id),
            Some(ConfChangeType::AddLearnerNode) => {
                !voters.contains(&id) && learners.is_empty() && learners.insert(id)
            }
            Some(ConfChangeType::RemoveNode) => {
                let last = voters.len() == 1 && voters.contains(&id);
                let gone = !last && (voters.remove(&id) || learners.remove(&id));
                gone && removed.insert(id)
            }
            Some(ConfChangeType::UpdateNode) => voters.contains(&id),
            None => false,
        }
    }

    fn record(&mut self, entry: &Entry, id: u64) {
        assert_eq!(entry.index, self.state.applied.0 + 1, "applied in order");
        assert_eq!(self.changing, None, "raft has answered");
        self.state.applied = (entry.index, entry.term);
        self.state.log.insert(entry.index, id);
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
        let id = <[u8; 8]>::try_from(&entry.data[..]).map_or(0, u64::from_be_bytes);
        self.record(&entry, id);
        (id != 0).then_some((id, entry.index))
    }

    fn conf_change(&mut self, entry: &Entry, change: &ConfChange) -> ConfChangeVerdict<u64> {
        self.record(entry, change.id);
        self.changing = Some(entry.index);
        let accepted = self.accepts(change);
        *self.disk.removed.lock() = self.state.removed.clone();
        ConfChangeVerdict {
            accepted,
            response: entry.index,
        }
    }

    fn conf_state(&mut self, index: u64, term: u64, conf_state: ConfState) {
        assert_eq!(self.changing.take(), Some(index));
        assert_eq!(self.state.applied, (index, term));
        let ours = ConfState {
            voters: self.state.voters.iter().copied().collect(),
            learners: self.state.learners.iter().copied().collect(),
            ..ConfState::default()
        };
        assert_eq!(conf_state, ours, "raft and membership agree at {index}");
        self.state.conf_state = Some(conf_state);
    }

    fn flush_batch(&mut self) {
        assert_eq!(self.changing, None, "a batch never ends inside an entry");
        if self.disk.flush.swap(false, Ordering::SeqCst) {
            self.flush();
        }
    }

    fn image(&mut self) -> Result<(Snapshot, State), SnapshotError> {
        Ok((snapshot(&self.state), self.state.clone()))
    }

    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        let durable = self.disk.state.lock();
        let usable = durable.applied.0 > 0 && durable.conf_state.is_some();
        Ok(usable.then(|| snapshot(&durable)))
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let body = self.disk.bodies.lock().get(&metadata.index).cloned();
        let body = if self.disk.any_snapshot {
            fitting_body(&metadata)
        } else {
            body.ok_or_else(|| SnapshotError::new("installing", "no body"))?
        };
        assert!(body.applied.0 > self.state.applied.0, "never back");
        assert_eq!(body.applied, (metadata.index, metadata.term));
        assert_eq!(body.conf_state, metadata.conf_state);
        self.state = body;
        *self.disk.removed.lock() = self.state.removed.clone();
        self.flush();
        Ok(())
    }

    fn leadership(&mut self, _is_leader: bool, _term: u64) {}
}

fn fitting_body(metadata: &SnapshotMetadata) -> State {
    let conf_state = metadata.conf_state.clone().unwrap_or_default();
    State {
        applied: (metadata.index, metadata.term),
        voters: conf_state.voters.iter().copied().collect(),
        learners: conf_state.learners.iter().copied().collect(),
        conf_state: Some(conf_state),
        ..State::default()
    }
}

fn snapshot(state: &State) -> Snapshot {
    Snapshot {
        data: bytes::Bytes::new(),
        metadata: Some(SnapshotMetadata {
            conf_state: state.conf_state.clone(),
            index: state.applied.0,
            term: state.applied.1,
        }),
    }
}

/// Collects snapshots on their way; everything else the world takes from the effects.
#[derive(Default)]
pub(crate) struct Wire {
    pub snapshots: Mutex<Vec<(Message, State)>>,
}

impl Transport<State> for Wire {
    fn send(&self, _messages: Vec<Message>) {}

    fn send_snapshot(&self, message: Message, image: State) {
        self.snapshots.lock().push((message, image));
    }

    fn is_removed(&self, _id: MemberId) -> bool {
        false
    }
}
