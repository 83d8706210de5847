//! A log store in memory that forgets, record by record, what was not synced.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::{Rng, rngs::SmallRng};
use transport_core::raftpb::{Entry, HardState, Snapshot};

use crate::{
    StorageError,
    persist::WalTask,
    storage::{Contents, LogStore},
};

/// A log store that outlives its process.
pub(crate) trait Medium: LogStore {
    /// A new process opens it; what it finds.
    fn boot(&mut self, rng: &mut SmallRng) -> Contents;

    /// The process dies with these tasks at its writer: some of them may have arrived.
    fn crash(&mut self, rng: &mut SmallRng, queued: Vec<WalTask>);
}

#[derive(Clone)]
enum Record {
    Entry(Entry),
    State(HardState),
    Snapshot(Snapshot),
}

#[derive(Default)]
struct Records {
    all: Vec<Record>,
    synced: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Records>>);

impl LogStore for Store {
    fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), StorageError> {
        let mut records = self.0.lock();
        records
            .all
            .extend(entries.iter().cloned().map(Record::Entry));
        records.all.extend(hard_state.copied().map(Record::State));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        let mut records = self.0.lock();
        records.synced = records.all.len();
        Ok(())
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        let mut records = self.0.lock();
        records.all.push(Record::Snapshot(snapshot.clone()));
        // As the real log does: a record counts only with a hard state that commits it.
        let states = records.all.iter().rev().find_map(|record| match record {
            Record::State(state) => Some(*state),
            _ => None,
        });
        let mut state = states.unwrap_or_default();
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        if state.commit < metadata.index {
            state.commit = metadata.index;
            if state.term < metadata.term {
                (state.term, state.vote) = (metadata.term, 0);
            }
            records.all.push(Record::State(state));
        }
        drop(records);
        self.sync()
    }
}

impl Medium for Store {
    fn boot(&mut self, _rng: &mut SmallRng) -> Contents {
        self.contents()
    }

    fn crash(&mut self, rng: &mut SmallRng, mut queued: Vec<WalTask>) {
        let written = rng.random_range(0..=queued.len());
        for task in queued.drain(..written) {
            // As the writer does it, up to the sync that never came.
            let WalTask::Ready(job) = task else { continue };
            if job.snapshot.is_some() {
                break;
            }
            let appended = self.append(job.hard_state.as_ref(), &job.entries);
            assert!(appended.is_ok());
        }
        let mut records = self.0.lock();
        let left = rng.random_range(records.synced..=records.all.len());
        records.all.truncate(left);
        records.synced = left;
    }
}

impl Store {
    /// What a restart finds, by the rules of etcd's log.
    pub fn contents(&self) -> Contents {
        let records = self.0.lock();
        let mut contents = Contents::default();
        for record in &records.all {
            if let Record::State(state) = record {
                assert!(state.term >= contents.hard_state.term, "terms only rise");
                assert!(
                    state.commit >= contents.hard_state.commit,
                    "commits only rise"
                );
                contents.hard_state = *state;
            }
        }
        let commit = contents.hard_state.commit;
        let position = |s: &Snapshot| s.metadata.as_ref().map_or(0, |m| m.index);
        contents.snapshot = records
            .all
            .iter()
            .filter_map(|record| match record {
                Record::Snapshot(snapshot) if position(snapshot) <= commit => Some(snapshot),
                _ => None,
            })
            .max_by_key(|snapshot| position(snapshot))
            .cloned();
        let base = contents.snapshot.as_ref().map_or(0, position);
        for record in &records.all {
            match record {
                Record::Entry(entry) if entry.index > base => {
                    let at = (entry.index - base - 1) as usize;
                    assert!(at <= contents.entries.len(), "entries leave no gap");
                    contents.entries.truncate(at);
                    contents.entries.push(entry.clone());
                }
                // An entry below replaces everything after it, also beyond the base.
                Record::Entry(_) => contents.entries.clear(),
                Record::Snapshot(snapshot) if position(snapshot) == base => {
                    let term = snapshot.metadata.as_ref().map(|m| m.term);
                    if contents
                        .entries
                        .first()
                        .is_some_and(|e| Some(e.term) < term)
                    {
                        contents.entries.clear();
                    }
                }
                _ => {}
            }
        }
        contents
    }

    /// Bootstraps an empty store.
    pub fn fill(&mut self, entries: &[Entry], state: &HardState) {
        let filled = self.append(Some(state), entries).and_then(|()| self.sync());
        assert!(filled.is_ok());
    }
}
