//! A model of a log to compare the real one with, and short ways to say things.
//!
//! The model is a list of records; what a start must find is folded from a prefix of it, in the simplest
//! way that is right.

#![allow(dead_code)] // Each test binary uses its part.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use raft_node::{
    disk::{Disk, fault::FaultDisk},
    wal::{self, Metadata, Prepare, Replay, Wal, WalError, WalMetrics, WalOptions, WalSnapshot},
};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfState, Entry, HardState},
};

pub const METADATA: Metadata = Metadata {
    node_id: MemberId(0xbab3_44ef_759b_e6ee),
    cluster_id: ClusterId(0xe411_8c23_a949_8efd),
};

pub fn dir() -> &'static Path {
    Path::new("member/wal")
}

pub fn options(segment_bytes: u64) -> WalOptions {
    WalOptions {
        segment_bytes,
        segments_max: 0,
        prepare: Prepare::Inline,
        metrics: WalMetrics::default(),
    }
}

pub fn entry(term: u64, index: u64, data: impl Into<Bytes>) -> Entry {
    Entry {
        entry_type: 0,
        term,
        index,
        data: data.into(),
    }
}

pub fn state(term: u64, vote: u64, commit: u64) -> HardState {
    HardState { term, vote, commit }
}

pub fn snapshot(index: u64, term: u64) -> WalSnapshot {
    WalSnapshot {
        index,
        term,
        conf_state: (index > 0).then(|| ConfState {
            voters: vec![1, 2, 3],
            ..ConfState::default()
        }),
    }
}

/// An empty disk, twice.
pub fn memory() -> (FaultDisk, Arc<dyn Disk>) {
    let disk = FaultDisk::new(7);
    (disk.clone(), Arc::new(disk))
}

pub fn names(disk: &Arc<dyn Disk>) -> Vec<String> {
    disk.list(dir()).expect("list")
}

pub fn path_of(name: &str) -> PathBuf {
    dir().join(name)
}

pub fn entries(term: u64, range: std::ops::RangeInclusive<u64>, len: usize) -> Vec<Entry> {
    range
        .map(|index| entry(term, index, vec![index as u8 | 1; len]))
        .collect()
}

/// Creates a log, with the directory above it.
pub fn create(disk: &Arc<dyn Disk>, segment_bytes: u64) -> Result<Wal, WalError> {
    disk.create_dir(Path::new("member"))
        .map_err(|source| WalError::Io {
            action: "create",
            path: "member".into(),
            source,
        })?;
    Wal::create(disk.clone(), dir(), METADATA, options(segment_bytes))
}

/// Opens from the newest snapshot, or the beginning.
pub fn open(disk: &Arc<dyn Disk>, segment_bytes: u64) -> Result<(Wal, Replay), WalError> {
    let newest = wal::snapshots(&**disk, dir())?.pop();
    Wal::open(disk.clone(), dir(), newest, options(segment_bytes))
}

#[derive(Clone, Debug)]
pub enum Record {
    Entry(Entry),
    State(HardState),
    /// Taken of the log's own entries, or received in their place.
    Snapshot(WalSnapshot, Origin),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Origin {
    Taken,
    Received,
}

/// What was written, and how much of it is known to be durable.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub records: Vec<Record>,
    pub acknowledged: usize,
}

/// What a start finds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub start: WalSnapshot,
    pub hard_state: HardState,
    pub entries: Vec<Entry>,
}

impl Model {
    pub fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) {
        self.records
            .extend(entries.iter().cloned().map(Record::Entry));
        self.records.extend(
            hard_state
                .filter(|s| **s != HardState::default())
                .map(|s| Record::State(*s)),
        );
    }

    /// With the hard state that makes it count.
    pub fn save_snapshot(&mut self, snapshot: &WalSnapshot, origin: Origin) {
        let before = fold(&self.records).hard_state;
        self.records
            .push(Record::Snapshot(snapshot.clone(), origin));
        if before.commit < snapshot.index {
            let newer = snapshot.term > before.term;
            self.records.push(Record::State(HardState {
                term: before.term.max(snapshot.term),
                vote: if newer { 0 } else { before.vote },
                commit: snapshot.index,
            }));
        }
    }

    /// A received snapshot of which only the record was written, not that it counts.
    pub fn half_received(&self) -> Option<WalSnapshot> {
        match self.records.last() {
            Some(Record::Snapshot(snapshot, Origin::Received)) => Some(snapshot.clone()),
            _ => None,
        }
    }

    pub fn acknowledge(&mut self) {
        self.acknowledged = self.records.len();
    }

    pub fn found(&self) -> Found {
        fold(&self.records)
    }

    /// Takes over what a restart found, if that is all that was acknowledged and perhaps more of what was
    /// written, in order. What is found is durable from then on.
    pub fn restart(&mut self, found: &Found) -> Result<(), String> {
        let survived = (self.acknowledged..=self.records.len())
            .rev()
            .find(|n| fold(&self.records[..*n]) == *found);
        let Some(survived) = survived else {
            return Err(format!(
                "found {found:?}\nwhich is none of the states from {:?}\nto {:?}",
                fold(&self.records[..self.acknowledged]),
                self.found()
            ));
        };
        self.records.truncate(survived);
        self.acknowledged = survived;
        Ok(())
    }
}

impl Found {
    pub fn last_index(&self) -> u64 {
        self.entries.last().map_or(self.start.index, |e| e.index)
    }

    /// The highest term there is.
    pub fn last_term(&self) -> u64 {
        let of_log = self.entries.last().map_or(self.start.term, |e| e.term);
        of_log.max(self.hard_state.term)
    }

    pub fn of(start: Option<WalSnapshot>, replay: &Replay) -> Found {
        Found {
            start: start.unwrap_or_default(),
            hard_state: replay.hard_state,
            entries: replay.entries.clone(),
        }
    }
}

fn fold(records: &[Record]) -> Found {
    let mut log: BTreeMap<u64, Entry> = BTreeMap::new();
    let mut hard_state = HardState::default();
    let mut snapshots: Vec<(WalSnapshot, Origin)> = vec![];
    let mut start = WalSnapshot::default();
    for record in records {
        match record {
            Record::Entry(entry) => {
                log.split_off(&entry.index);
                log.insert(entry.index, entry.clone());
            }
            Record::State(state) => hard_state = *state,
            Record::Snapshot(snapshot, origin) => snapshots.push((snapshot.clone(), *origin)),
        }
        // A snapshot counts from the moment its index is committed.
        while let Some((snapshot, origin)) = snapshots.first()
            && snapshot.index <= hard_state.commit
        {
            if *origin == Origin::Received {
                log.clear();
            }
            start = snapshot.clone();
            snapshots.remove(0);
        }
    }
    Found {
        entries: log
            .into_values()
            .filter(|e| e.index > start.index)
            .collect(),
        start,
        hard_state,
    }
}
