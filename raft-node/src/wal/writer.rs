//! The log itself: append, sync, cut, release.
//!
//! One owner, `&mut self`: the thread that syncs is the thread that appends. Records of one call are
//! encoded into one buffer and written with one write; a new segment is begun *before* a batch that would
//! not fit, so records always go into zero-filled space. Invariant: after any failed write or sync every
//! further call answers [`WalError::Failed`]. etcd: server/storage/wal/wal.go.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use transport_core::raftpb::{Entry, HardState};

use super::{
    WalError, WalOptions, WalSnapshot,
    frame::{self, ENTRY_OVERHEAD_BYTES, FRAME_OVERHEAD_BYTES},
    prepare::Preparer,
    replay,
    segment::SegmentName,
};
use crate::disk::{Disk, DiskFile};

/// An fdatasync that takes longer is worth a log line (etcd: warnSyncDuration).
const SLOW_SYNC: Duration = Duration::from_secs(1);

/// The encode buffer gives back what it has above this after a large batch.
const BUFFER_KEPT_BYTES: usize = 4 << 20;

/// A write-ahead log, open for appending.
///
/// Dropping it without [`Wal::close`] is a crash as far as unsynced records are concerned.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: WalOptions,
    /// The metadata record, byte for byte.
    metadata: Bytes,
    hard_state: HardState,
    /// The index that the next segment's name follows: of the last entry, or of a snapshot beyond it.
    last_index: u64,
    crc: u32,
    /// Locked segments, oldest first; the last one is written to.
    held: VecDeque<Segment>,
    /// Segments no start needs any more, oldest first.
    released: VecDeque<PathBuf>,
    /// Where the next frame goes in the last segment.
    offset: u64,
    unsynced: bool,
    failed: bool,
    buffer: Vec<u8>,
    preparer: Preparer,
}

/// A locked segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
}

impl Segment {
    /// Locks `file`, which is at `path` now.
    pub(super) fn lock(
        name: SegmentName,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
    ) -> Result<Segment, WalError> {
        if !file.try_lock().map_err(WalError::io("lock", &path))? {
            return Err(WalError::Locked { file: path });
        }
        Ok(Segment { name, path, file })
    }
}

/// Where a log that was created or replayed goes on.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) metadata: Bytes,
    pub(super) hard_state: HardState,
    pub(super) last_index: u64,
    pub(super) crc: u32,
    pub(super) offset: u64,
    pub(super) released: Vec<PathBuf>,
}

impl Wal {
    pub(super) fn assemble(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: WalOptions,
        segments: Vec<Segment>,
        position: Position,
    ) -> Result<Wal, WalError> {
        let next = segments.last().map_or(0, |last| last.name.seq) + 1;
        let preparer = Preparer::start(
            disk.clone(),
            dir.to_path_buf(),
            options.segment_bytes,
            next,
            options.prepare,
        )?;
        Ok(Wal {
            disk,
            dir: dir.to_path_buf(),
            options,
            metadata: position.metadata,
            hard_state: position.hard_state,
            last_index: position.last_index,
            crc: position.crc,
            held: segments.into(),
            released: position.released.into(),
            offset: position.offset,
            unsynced: false,
            failed: false,
            buffer: Vec::new(),
            preparer,
        })
    }

    /// Appends entries and then the hard state, in one write. Durable after [`Wal::sync`].
    ///
    /// Entries must be contiguous and begin no later than after the last one; one that begins earlier
    /// replaces all from its index on. An empty hard state is not written; a commit index never goes back.
    pub fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), WalError> {
        self.check_contiguous(entries)?;
        let state = hard_state
            .filter(|state| **state != HardState::default())
            .map(|state| self.advanced(*state))
            .transpose()?;
        let payload: usize = entries
            .iter()
            .map(|entry| entry.data.len() + ENTRY_OVERHEAD_BYTES + FRAME_OVERHEAD_BYTES)
            .sum();
        if entries.is_empty() && state.is_none() {
            return self.usable();
        }
        self.make_room(payload + ENTRY_OVERHEAD_BYTES + FRAME_OVERHEAD_BYTES)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut crc = self.crc;
        for entry in entries {
            frame::put_entry(&mut buffer, &mut crc, entry);
        }
        if let Some(state) = &state {
            frame::put_state(&mut buffer, &mut crc, state);
        }
        self.write(buffer, crc)?;
        if let Some(last) = entries.last() {
            self.last_index = last.index;
        }
        if let Some(state) = state {
            self.hard_state = state;
        }
        Ok(())
    }

    /// Appends the record of a snapshot, taken or received. Durable after [`Wal::sync`].
    ///
    /// Where the log does not say yet that the snapshot's index is committed, a hard state that does
    /// follows the record: without it a start would not believe the record, and with the record alone
    /// entries written after it would hang in the air.
    pub fn save_snapshot(&mut self, snapshot: &WalSnapshot) -> Result<(), WalError> {
        if snapshot.index > 0 && snapshot.conf_state.is_none() {
            // etcd's tools refuse such a record.
            return Err(WalError::Refused(format!(
                "the snapshot at index {} has no configuration",
                snapshot.index
            )));
        }
        let conf_state = snapshot
            .conf_state
            .as_ref()
            .map_or(0, prost::Message::encoded_len);
        self.make_room(conf_state + 2 * (ENTRY_OVERHEAD_BYTES + FRAME_OVERHEAD_BYTES))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut crc = self.crc;
        frame::put_snapshot(&mut buffer, &mut crc, snapshot);
        let mut state = self.hard_state;
        if state.commit < snapshot.index {
            state.commit = snapshot.index;
            if state.term < snapshot.term {
                // Nobody was voted for yet in a term that was first heard of with the snapshot.
                (state.term, state.vote) = (snapshot.term, 0);
            }
            frame::put_state(&mut buffer, &mut crc, &state);
        }
        self.write(buffer, crc)?;
        self.hard_state = state;
        self.last_index = self.last_index.max(snapshot.index);
        Ok(())
    }

    /// Makes all that was appended durable, with at most one fdatasync.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.usable()?;
        if !self.unsynced {
            return Ok(());
        }
        let tail = self.tail()?;
        let (file, path) = (tail.file.clone(), tail.path.clone());
        self.sync_file(&*file, &path)?;
        self.unsynced = false;
        Ok(())
    }

    /// Whether something was appended since the last sync.
    pub fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Lets go of the segments that no start from a snapshot at or after `index` reads, and removes the
    /// oldest of them while there are more than [`WalOptions::segments_max`] segments.
    ///
    /// Call it only when that snapshot's file and its record here are durable.
    pub fn release_to(&mut self, index: u64) -> Result<(), WalError> {
        self.usable()?;
        let kept_from = match self.held.iter().position(|s| s.name.index >= index) {
            Some(i) => i.saturating_sub(1),
            None => self.held.len() - 1,
        };
        // Dropping the handle ends the lock.
        self.released
            .extend(self.held.drain(..kept_from).map(|segment| segment.path));
        let max = self.options.segments_max;
        while max > 0 && self.held.len() + self.released.len() > max {
            let Some(oldest) = self.released.pop_front() else {
                break;
            };
            tracing::info!(path = %oldest.display(), "removing a released WAL segment");
            self.preparer.remove(oldest)?;
        }
        Ok(())
    }

    /// Index of the last entry appended, or of a snapshot beyond it.
    pub fn last_index(&self) -> u64 {
        self.last_index
    }

    /// Syncs and closes; the prepared segment is removed.
    pub fn close(mut self) -> Result<(), WalError> {
        self.sync()
    }

    fn usable(&self) -> Result<(), WalError> {
        if self.failed {
            return Err(WalError::Failed);
        }
        Ok(())
    }

    fn check_contiguous(&self, entries: &[Entry]) -> Result<(), WalError> {
        let Some(first) = entries.first() else {
            return Ok(());
        };
        let follows = first.index > 0 && first.index <= self.last_index.saturating_add(1);
        let contiguous = entries
            .windows(2)
            .all(|pair| pair[0].index.checked_add(1) == Some(pair[1].index));
        if follows && contiguous {
            return Ok(());
        }
        Err(WalError::Refused(format!(
            "entries from index {} on do not follow index {}",
            first.index, self.last_index
        )))
    }

    /// `state` with the commit index that a snapshot may have raised already.
    fn advanced(&self, mut state: HardState) -> Result<HardState, WalError> {
        state.commit = state.commit.max(self.hard_state.commit);
        if replay::follows(&self.hard_state, &state) {
            return Ok(state);
        }
        Err(WalError::Refused(format!(
            "{state:?} goes back from {:?}",
            self.hard_state
        )))
    }

    fn tail(&self) -> Result<&Segment, WalError> {
        // There is always one; without it the log would be of no use anyway.
        self.held.back().ok_or(WalError::Failed)
    }

    fn write(&mut self, mut buffer: Vec<u8>, crc: u32) -> Result<(), WalError> {
        let tail = self.tail()?;
        let start = Instant::now();
        let written = tail.file.write_at(&buffer, self.offset);
        self.options
            .metrics
            .write_seconds
            .record(start.elapsed().as_secs_f64());
        if let Err(source) = written {
            let path = tail.path.clone();
            self.failed = true;
            return Err(WalError::io("write", path)(source));
        }
        let bytes = buffer.len() as u64;
        self.options.metrics.write_bytes.increment(bytes as f64);
        self.offset += bytes;
        self.crc = crc;
        self.unsynced = true;
        buffer.clear();
        buffer.shrink_to(BUFFER_KEPT_BYTES);
        self.buffer = buffer;
        Ok(())
    }

    fn sync_file(&mut self, file: &dyn DiskFile, path: &Path) -> Result<(), WalError> {
        let start = Instant::now();
        let synced = file.sync_data();
        let took = start.elapsed();
        self.options
            .metrics
            .fsync_seconds
            .record(took.as_secs_f64());
        if took > SLOW_SYNC {
            tracing::warn!(path = %path.display(), ?took, expected = ?SLOW_SYNC, "slow fdatasync");
        }
        synced.map_err(|source| {
            self.failed = true;
            WalError::io("sync", path)(source)
        })
    }

    /// Begins a new segment when `bytes` more would leave the prepared space of this one.
    fn make_room(&mut self, bytes: usize) -> Result<(), WalError> {
        self.usable()?;
        if self.offset.saturating_add(bytes as u64) <= self.options.segment_bytes {
            return Ok(());
        }
        let mut head = Vec::new();
        self.put_head(&mut head);
        if self.offset <= head.len() as u64 {
            // Nothing but a head: the batch alone is larger than a segment, which then grows.
            return Ok(());
        }
        self.cut().inspect_err(|_| self.failed = true)
    }

    /// The head of the next segment: crc so far, metadata, hard state. Returns the crc after it.
    fn put_head(&self, head: &mut Vec<u8>) -> u32 {
        let mut crc = self.crc;
        frame::put_crc(head, crc);
        frame::put_metadata(head, &mut crc, &self.metadata);
        if self.hard_state != HardState::default() {
            frame::put_state(head, &mut crc, &self.hard_state);
        }
        crc
    }

    /// Ends this segment and begins the next. All of this one is durable before the next has its name, and
    /// so is the next one's head: only the last segment can be torn.
    fn cut(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let full = self.tail()?;
        let name = SegmentName {
            seq: full.name.seq + 1,
            index: self.last_index + 1,
        };
        let (full_path, full_file) = (full.path.clone(), full.file.clone());
        let path = self.dir.join(name.to_string());
        let (temporary, file) = self.preparer.take()?;
        let mut next = Segment::lock(name, temporary.clone(), file.clone())?;
        let mut head = Vec::new();
        let crc = self.put_head(&mut head);
        file.write_at(&head, 0)
            .map_err(WalError::io("write", &temporary))?;
        self.sync_file(&*file, &temporary)?;
        self.disk
            .rename(&temporary, &path)
            .map_err(WalError::io("rename to", &path))?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(WalError::io("sync", &self.dir))?;
        self.options
            .metrics
            .write_bytes
            .increment(head.len() as f64);
        self.preparer.trim(full_path, full_file, self.offset)?;
        self.preparer.advance()?;
        tracing::info!(path = %path.display(), "created a new WAL segment");
        next.path = path;
        self.held.push_back(next);
        self.offset = head.len() as u64;
        self.crc = crc;
        Ok(())
    }
}
