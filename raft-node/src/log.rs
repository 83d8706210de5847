//! The log as raft reads it: entries in memory, from the last compaction on.
//!
//! raft-rs reads it through its `Storage` trait, the driver alone writes it. Depends on nothing here.
//! Invariant: entries are contiguous after `base`, whose term stays known, and a compaction never goes
//! past what raft has applied.

use std::collections::VecDeque;

use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{ConfState, Entry, HardState, Snapshot},
};

/// What an entry costs besides its payload.
const ENTRY_BYTES: usize = 64;

/// The in-memory log. Its size follows from the bounds on uncommitted, unapplied and catch-up bytes.
#[derive(Debug, Default)]
pub(crate) struct Log {
    hard_state: HardState,
    conf_state: ConfState,
    /// Index and term just before the first entry.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// An append or compaction that would tear the log. Never happens while raft-rs keeps its own rules.
#[derive(Debug, thiserror::Error)]
#[error("{action} at {index} does not fit the log [{first}, {last}]")]
pub(crate) struct Gap {
    action: &'static str,
    index: u64,
    first: u64,
    last: u64,
}

impl Log {
    /// A log as found on disk. `conf_state` is the configuration at the applied index.
    pub fn new(
        base: (u64, u64),
        entries: Vec<Entry>,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        let bytes = entries.iter().map(entry_bytes).sum();
        Log {
            hard_state,
            conf_state,
            base,
            entries: entries.into(),
            bytes,
        }
    }

    pub fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Bytes of all entries held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The term at an index, if it is known.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let at = index.checked_sub(self.first())?;
        self.entries.get(at as usize).map(|e| e.term)
    }

    /// Appends entries; those of the same index and after are replaced.
    pub fn append(&mut self, entries: &[Entry]) -> Result<(), Gap> {
        let Some(start) = entries.first().map(|e| e.index) else {
            return Ok(());
        };
        if start < self.first() || start > self.last() + 1 {
            return Err(self.gap("append", start));
        }
        let kept = (start - self.first()) as usize;
        let replaced: usize = self.entries.range(kept..).map(entry_bytes).sum();
        self.entries.truncate(kept);
        self.bytes = self.bytes - replaced + entries.iter().map(entry_bytes).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
        Ok(())
    }

    /// Forgets everything: a snapshot up to `position` takes its place.
    pub fn restore(&mut self, position: (u64, u64)) {
        self.entries.clear();
        self.bytes = 0;
        self.base = position;
    }

    /// The configuration, as raftpb has it.
    pub fn conf_state(&self) -> transport_core::raftpb::ConfState {
        self.conf_state.clone().into()
    }

    /// The configuration that applies from now on.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// The index up to which entries may go if those before `index` are kept for followers that lag, at
    /// most `entries_max` and at most `bytes_max` of them.
    pub fn catch_up_from(&self, index: u64, entries_max: u64, bytes_max: u64) -> u64 {
        let mut bytes = 0;
        let mut kept = 0;
        let before = index.min(self.last()).saturating_sub(self.base.0) as usize;
        for entry in self.entries.range(..before).rev() {
            bytes += entry_bytes(entry) as u64;
            if kept >= entries_max || bytes > bytes_max {
                break;
            }
            kept += 1;
        }
        index - kept.min(index)
    }

    /// Forgets entries up to and including `index`; without effect when they are gone already.
    pub fn compact(&mut self, index: u64) -> Result<(), Gap> {
        if index <= self.base.0 {
            return Ok(());
        }
        let term = self.term_at(index);
        let term = term.ok_or_else(|| self.gap("compaction", index))?;
        let gone = (index - self.base.0) as usize;
        self.bytes -= self
            .entries
            .drain(..gone)
            .map(|e| entry_bytes(&e))
            .sum::<usize>();
        self.base = (index, term);
        Ok(())
    }

    fn gap(&self, action: &'static str, index: u64) -> Gap {
        Gap {
            action,
            index,
            first: self.first(),
            last: self.last(),
        }
    }
}

pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_BYTES
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            self.hard_state.clone(),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 || low > high {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let range = (low - self.first()) as usize..(high - self.first()) as usize;
        let mut bytes = 0;
        let mut taken = Vec::with_capacity(range.len().min(1024));
        for entry in self.entries.range(range) {
            bytes += entry_bytes(entry) as u64;
            if bytes > max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.term_at(index).ok_or({
            raft::Error::Store(if index < self.first() {
                StorageError::Compacted
            } else {
                StorageError::Unavailable
            })
        })
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Only position and configuration: the apply thread fills in the rest when it sends. The position is the
    /// least that helps a follower, where the log begins: an image is of what is durable, so under load it may
    /// never be as new as what is applied, but nothing is compacted that is not durable.
    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let (index, term) = self.base;
        if index == 0 || index < request_index || self.conf_state.voters.is_empty() {
            return Err(raft::Error::Store(
                StorageError::SnapshotTemporarilyUnavailable,
            ));
        }
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = index;
        metadata.term = term;
        metadata.set_conf_state(self.conf_state.clone());
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, bytes: usize) -> Entry {
        Entry {
            index,
            term,
            data: vec![0; bytes].into(),
            ..Entry::default()
        }
    }

    fn log() -> Log {
        let entries = (4..=8).map(|i| entry(i, 2, 100)).collect();
        Log::new((3, 1), entries, HardState::default(), ConfState::default())
    }

    fn indexes(log: &Log, low: u64, high: u64, max: u64) -> Vec<u64> {
        let entries = log.entries(low, high, max, GetEntriesContext::empty(false));
        entries.expect("in range").iter().map(|e| e.index).collect()
    }

    #[test]
    fn terms_are_known_from_the_base_to_the_end() {
        let log = log();
        let terms: Vec<_> = (2..=9).map(|i| log.term_at(i)).collect();
        let two = Some(2);
        assert_eq!(terms, [None, Some(1), two, two, two, two, two, None]);
        assert!(matches!(
            log.term(2),
            Err(raft::Error::Store(StorageError::Compacted))
        ));
        assert!(matches!(
            log.term(9),
            Err(raft::Error::Store(StorageError::Unavailable))
        ));
    }

    #[test]
    fn an_append_replaces_the_tail_and_refuses_gaps() {
        let mut log = log();
        log.append(&[entry(6, 3, 10), entry(7, 3, 10)])
            .expect("fits");
        assert_eq!((log.last(), log.term_at(6)), (7, Some(3)));
        assert_eq!(log.bytes(), 2 * 164 + 2 * 74);
        assert!(log.append(&[entry(9, 3, 0)]).is_err());
        assert!(log.append(&[entry(3, 3, 0)]).is_err());
        log.append(&[]).expect("nothing");
    }

    #[test]
    fn reads_are_limited_in_bytes_but_never_empty() {
        let log = log();
        assert_eq!(indexes(&log, 4, 9, u64::MAX), [4, 5, 6, 7, 8]);
        assert_eq!(indexes(&log, 5, 9, 2 * 164), [5, 6]);
        assert_eq!(indexes(&log, 5, 9, 0), [5]);
    }

    #[test]
    fn a_compaction_keeps_the_term_before_it() {
        let mut log = log();
        log.compact(6).expect("in range");
        assert_eq!(
            (log.first(), log.term_at(6), log.term_at(5)),
            (7, Some(2), None)
        );
        assert_eq!(log.bytes(), 2 * 164);
        log.compact(2).expect("long gone");
        assert!(log.compact(9).is_err());
        log.restore((20, 4));
        assert_eq!((log.first(), log.last(), log.bytes()), (21, 20, 0));
    }

    #[test]
    fn the_catch_up_tail_is_limited_in_entries_and_bytes() {
        let log = log();
        assert_eq!(log.catch_up_from(8, 2, u64::MAX), 6);
        assert_eq!(log.catch_up_from(8, 100, 3 * 164), 5);
        assert_eq!(log.catch_up_from(8, 100, 10), 8);
        assert_eq!(log.catch_up_from(8, 100, u64::MAX), 3);
    }
}
