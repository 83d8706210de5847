//! Reading a log: the chain of records over all segments, and what a start makes of it.
//!
//! [`scan`] walks segments and checks what binds them (crc chain, metadata, heads); [`LogView`] folds the
//! records into the log after a start snapshot. Nothing here writes. Invariant: either every record up to
//! the end is accounted for, or there is an error with file and offset.
//! etcd: server/storage/wal/wal.go, `ReadAll`, `ValidSnapshotEntries`, `Verify`.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{self, Entry, EntryType, HardState},
};

use super::{
    Metadata, WalError, WalSnapshot,
    frame::RecordType,
    segment::{self, SegmentName, SegmentReader, Step},
};
use crate::disk::{Access, Disk, DiskFile};

/// Payloads below this are copied out of the read buffer, so that a few kept entries do not hold all of
/// it: a slice of at least this size keeps at most 64 times itself alive.
const COPY_BELOW_BYTES: usize = 16 << 10;

/// Whether the directory holds a log.
pub fn exists(disk: &dyn Disk, dir: &Path) -> Result<bool, WalError> {
    Ok(!segment::list(disk, dir)?.is_empty())
}

/// The snapshot records up to the last committed index, in the order written. A snapshot file counts only
/// if it is among them.
///
/// For use before [`super::Wal::open`]: reading a segment through another handle ends the lock that keeps
/// a Go etcd out (not the one that keeps out a second process of ours).
pub fn snapshots(disk: &dyn Disk, dir: &Path) -> Result<Vec<WalSnapshot>, WalError> {
    let names = segment::list(disk, dir)?;
    // Removal of released segments may have been interrupted: what is before a hole is not needed.
    let first = names
        .windows(2)
        .rposition(|pair| pair[0].seq.checked_add(1) != Some(pair[1].seq))
        .map_or(0, |hole| hole + 1);
    let files = open_segments(disk, dir, &names[first..])?;
    let mut found: Vec<WalSnapshot> = Vec::new();
    let mut commit = 0;
    scan(dir, &files, &mut |kind, data| {
        match kind {
            RecordType::Snapshot => found.push(decode_snapshot(data)?),
            RecordType::State => commit = decode_state(data)?.commit,
            _ => {}
        }
        Ok(())
    })?;
    found.retain(|snapshot| snapshot.index <= commit);
    Ok(found)
}

/// Reads the log from `start` (none: from its beginning) and checks everything that can be checked
/// without changing it; the last hard state. See [`snapshots`] for the locks.
pub fn verify(
    disk: &dyn Disk,
    dir: &Path,
    start: Option<WalSnapshot>,
) -> Result<HardState, WalError> {
    let start = start.unwrap_or_default();
    let names = segment::list(disk, dir)?;
    let first = segment::select(&names, dir, start.index)?;
    let files = open_segments(disk, dir, &names[first..])?;
    let mut log = LogView::new(start);
    scan(dir, &files, &mut |kind, data| log.record(kind, data))?;
    log.check_start()?;
    Ok(log.hard_state)
}

pub(crate) type OpenSegment = (SegmentName, Arc<dyn DiskFile>);

fn open_segments(
    disk: &dyn Disk,
    dir: &Path,
    names: &[SegmentName],
) -> Result<Vec<OpenSegment>, WalError> {
    names
        .iter()
        .map(|name| {
            let path = dir.join(name.to_string());
            let file = disk
                .open(&path, Access::Read)
                .map_err(WalError::io("open", path))?;
            Ok((*name, Arc::from(file)))
        })
        .collect()
}

/// How the last segment ends.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) crc: u32,
    pub(crate) offset: u64,
    pub(crate) torn: Option<&'static str>,
    /// The metadata record, byte for byte: later segments must repeat it.
    pub(crate) metadata: Bytes,
}

type Visit<'v> = dyn FnMut(RecordType, Bytes) -> Result<(), String> + 'v;

/// Hands every entry, state and snapshot record to `visit`; what `visit` objects to is corruption.
pub(crate) fn scan(
    dir: &Path,
    files: &[OpenSegment],
    visit: &mut Visit<'_>,
) -> Result<Tail, WalError> {
    let mut tail: Option<Tail> = None;
    for (i, (name, file)) in files.iter().enumerate() {
        let path = dir.join(name.to_string());
        let last = i + 1 == files.len();
        tail = Some(scan_segment(file, &path, last, tail, visit)?);
    }
    tail.ok_or_else(|| WalError::SegmentNotFound {
        dir: dir.to_path_buf(),
        index: 0,
    })
}

fn scan_segment(
    file: &Arc<dyn DiskFile>,
    path: &Path,
    last: bool,
    before: Option<Tail>,
    visit: &mut Visit<'_>,
) -> Result<Tail, WalError> {
    let (chained, crc, mut metadata) = match before {
        Some(tail) => (true, tail.crc, Some(tail.metadata)),
        None => (false, 0, None),
    };
    let mut reader = SegmentReader::new(file.clone(), path.to_path_buf(), last, crc)?;
    for number in 0u64.. {
        let (kind, crc, data, at) = match reader.next()? {
            Step::End { offset, torn } => {
                // A segment gets its name after its head is synced: without one, it was damaged.
                let Some(metadata) = metadata.filter(|_| number >= 2) else {
                    return Err(reader.corrupt(offset, "the segment has no head"));
                };
                return Ok(Tail {
                    crc: reader.crc,
                    offset,
                    torn,
                    metadata,
                });
            }
            Step::Record {
                kind,
                crc,
                data,
                offset,
            } => (kind, crc, data, offset),
        };
        match (number, kind) {
            (0, RecordType::Crc) if !chained => reader.crc = crc,
            (_, RecordType::Crc) if crc == reader.crc => {}
            (0, RecordType::Crc) => {
                return Err(reader.corrupt(at, "the crc of the segments before does not match"));
            }
            (_, RecordType::Crc) => return Err(reader.corrupt(at, "crc mismatch")),
            (0, _) | (1, RecordType::Entry | RecordType::State | RecordType::Snapshot) => {
                return Err(reader.corrupt(at, "the segment has no head"));
            }
            (_, RecordType::Metadata) => match &metadata {
                Some(known) if *known != data => {
                    return Err(reader.corrupt(at, "conflicting metadata"));
                }
                _ => metadata = Some(Bytes::copy_from_slice(&data)),
            },
            (_, kind) => visit(kind, data).map_err(|reason| reader.corrupt(at, reason))?,
        }
    }
    // 2^64 records do not fit a file.
    Err(reader.corrupt(0, "endless segment"))
}

/// Whether raft may write `next` after `state`.
pub(crate) fn follows(state: &HardState, next: &HardState) -> bool {
    next.term >= state.term && next.commit >= state.commit
}

#[derive(Clone, PartialEq, prost::Message)]
struct MetadataRecord {
    #[prost(uint64, tag = "1")]
    node_id: u64,
    #[prost(uint64, tag = "2")]
    cluster_id: u64,
}

pub(crate) fn decode_metadata(raw: &[u8]) -> Option<Metadata> {
    let record = MetadataRecord::decode(raw).ok()?;
    Some(Metadata {
        node_id: MemberId(record.node_id),
        cluster_id: ClusterId(record.cluster_id),
    })
}

fn decode_state(data: Bytes) -> Result<HardState, String> {
    raftpb::decode_hard_state(data).map_err(|e| format!("not a hard state: {e}"))
}

fn decode_snapshot(data: Bytes) -> Result<WalSnapshot, String> {
    WalSnapshot::decode(data).map_err(|e| format!("not a snapshot record: {e}"))
}

fn decode_entry(data: Bytes) -> Result<Entry, String> {
    raftpb::decode_entry(data).map_err(|e| format!("not an entry: {e}"))
}

/// The log after a start snapshot, as the records build it.
pub(crate) struct LogView {
    start: WalSnapshot,
    found_start: bool,
    /// A record of the start's index with this other term.
    mismatch: Option<u64>,
    /// Term of the entry at the start's index, as far as read.
    term_at_start: Option<u64>,
    pub(crate) hard_state: HardState,
    pub(crate) entries: Vec<Entry>,
    pub(crate) snapshots: Vec<WalSnapshot>,
}

impl LogView {
    pub(crate) fn new(start: WalSnapshot) -> Self {
        LogView {
            start,
            found_start: false,
            mismatch: None,
            term_at_start: None,
            hard_state: HardState::default(),
            entries: Vec::new(),
            snapshots: Vec::new(),
        }
    }

    pub(crate) fn record(&mut self, kind: RecordType, data: Bytes) -> Result<(), String> {
        match kind {
            RecordType::Entry => self.entry(decode_entry(data)?),
            RecordType::State => self.state(decode_state(data)?),
            RecordType::Snapshot => {
                self.snapshot(decode_snapshot(data)?);
                Ok(())
            }
            RecordType::Metadata | RecordType::Crc => Ok(()),
        }
    }

    /// A record's type is not covered by its crc: a state or entry that raft cannot have written is one
    /// that was damaged into the other.
    fn state(&mut self, state: HardState) -> Result<(), String> {
        if !follows(&self.hard_state, &state) {
            return Err("a hard state goes back in term or commit".into());
        }
        self.hard_state = state;
        Ok(())
    }

    /// Each entry ends the log before it takes its place, also where that is before the start.
    fn entry(&mut self, mut entry: Entry) -> Result<(), String> {
        if entry.term == 0 || EntryType::try_from(entry.entry_type).is_err() {
            return Err(format!("entry {} is not one of raft's", entry.index));
        }
        if entry.index <= self.start.index {
            self.entries.clear();
            self.term_at_start = (entry.index == self.start.index).then_some(entry.term);
            return Ok(());
        }
        let at = entry.index - self.start.index - 1;
        if at > self.entries.len() as u64 {
            return Err(format!(
                "entry {} does not follow entry {}",
                entry.index,
                self.start.index + self.entries.len() as u64
            ));
        }
        if at < self.entries.len() as u64 && entry.index <= self.hard_state.commit {
            return Err(format!("committed entry {} is replaced", entry.index));
        }
        // Not above the length, so it fits.
        self.entries.truncate(at as usize);
        if self
            .entries
            .last()
            .is_some_and(|last| last.term > entry.term)
        {
            return Err(format!("entry {} goes back in term", entry.index));
        }
        if entry.data.len() < COPY_BELOW_BYTES {
            entry.data = Bytes::copy_from_slice(&entry.data);
        }
        self.entries.push(entry);
        Ok(())
    }

    fn snapshot(&mut self, snapshot: WalSnapshot) {
        if snapshot.index == self.start.index {
            if snapshot.term != self.start.term {
                self.mismatch = Some(snapshot.term);
            } else {
                self.found_start = true;
                // A snapshot from the leader replaces a log that disagrees with it; what followed in
                // that log must not come back. (etcd's reader returns it.)
                if self.term_at_start.is_some_and(|term| term != snapshot.term) {
                    self.entries.clear();
                }
                self.term_at_start = Some(snapshot.term);
            }
        }
        self.snapshots.push(snapshot);
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.start.index + self.entries.len() as u64
    }

    pub(crate) fn check_start(&self) -> Result<(), WalError> {
        let (index, term) = (self.start.index, self.start.term);
        match self.mismatch {
            Some(found) => Err(WalError::SnapshotMismatch { index, term, found }),
            None if self.found_start => Ok(()),
            None => Err(WalError::SnapshotNotFound { index, term }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(term: u64, commit: u64) -> (RecordType, Vec<u8>) {
        let vote = 1;
        let state = HardState { term, vote, commit };
        (RecordType::State, state.encode_to_vec())
    }

    fn entry(entry_type: i32, term: u64, index: u64) -> (RecordType, Vec<u8>) {
        let entry = Entry {
            entry_type,
            term,
            index,
            data: Bytes::new(),
        };
        (RecordType::Entry, entry.encode_to_vec())
    }

    fn snapshot(index: u64, term: u64) -> (RecordType, Vec<u8>) {
        let snapshot = WalSnapshot {
            index,
            term,
            conf_state: None,
        };
        (RecordType::Snapshot, snapshot.encode_to_vec())
    }

    fn view(start: u64, records: Vec<(RecordType, Vec<u8>)>) -> Result<Vec<(u64, u64)>, String> {
        let mut log = LogView::new(WalSnapshot {
            index: start,
            term: 2,
            conf_state: None,
        });
        for (kind, data) in records {
            log.record(kind, data.into())?;
        }
        Ok(log.entries.iter().map(|e| (e.term, e.index)).collect())
    }

    #[test]
    fn what_raft_cannot_have_written_is_not_believed() {
        let log = || vec![entry(0, 1, 1), entry(0, 2, 2), state(2, 2)];
        let reason = |record| {
            let mut records = log();
            records.push(record);
            view(0, records).expect_err("impossible")
        };
        assert_eq!(view(0, log()), Ok(vec![(1, 1), (2, 2)]));
        assert_eq!(reason(entry(0, 2, 4)), "entry 4 does not follow entry 2");
        assert_eq!(reason(entry(0, 0, 3)), "entry 3 is not one of raft's");
        assert_eq!(reason(entry(3, 2, 3)), "entry 3 is not one of raft's");
        assert_eq!(reason(entry(0, 1, 3)), "entry 3 goes back in term");
        assert_eq!(reason(entry(0, 3, 2)), "committed entry 2 is replaced");
        assert_eq!(
            reason(state(1, 2)),
            "a hard state goes back in term or commit"
        );
        assert_eq!(
            reason(state(2, 1)),
            "a hard state goes back in term or commit"
        );
        let not = reason((RecordType::Entry, vec![0xff]));
        assert!(not.starts_with("not an entry"), "{not}");
    }

    #[test]
    fn the_log_after_a_snapshot_is_what_followed_it() {
        let before = || vec![entry(0, 1, 4), entry(0, 2, 5), entry(0, 2, 6)];
        let with = |more: Vec<_>| view(5, [before(), more].concat()).expect("a log");
        // Taken of this log; received in place of one that disagrees; received ahead of it.
        assert_eq!(with(vec![snapshot(5, 2)]), [(2, 6)]);
        let stale = vec![entry(0, 1, 5), entry(0, 1, 6), snapshot(5, 2)];
        assert_eq!(view(5, stale), Ok(vec![]));
        let ahead = vec![entry(0, 1, 1), snapshot(5, 2), entry(0, 3, 6)];
        assert_eq!(view(5, ahead), Ok(vec![(3, 6)]));
        // Written once more: still this log's.
        assert_eq!(with(vec![snapshot(5, 2), snapshot(5, 2)]), [(2, 6)]);
        // The log was cut before the start and grew again, shorter.
        let regrown = vec![entry(0, 3, 4), entry(0, 3, 5)];
        assert_eq!(with(regrown), []);
    }
}
