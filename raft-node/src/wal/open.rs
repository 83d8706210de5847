//! Where a log comes from: created new and whole, or opened, replayed and repaired.
//!
//! Invariant: [`Wal::create`] leaves either a whole log or none; [`Wal::open`] writes nothing before all
//! that is there was read and believed, and returns nothing that is not durable.
//! etcd: server/storage/wal/wal.go, `Create`, `Open`, `ReadAll`; repair.go.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use transport_core::raftpb::HardState;

use super::{
    Metadata, Repair, Replay, Wal, WalError, WalOptions, WalSnapshot, frame,
    prepare::NextSegment,
    replay::{self, LogView, Tail},
    segment::{self, SegmentName},
    writer::{Position, Segment},
};
use crate::disk::{Access, Disk, DiskFile, ZERO_STEP_BYTES, parent, read_full, zero_fill};

impl Wal {
    /// Creates a log in `dir`, which must not hold anything; its parent must exist. The new log is durable, and
    /// appears whole or not at all.
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        metadata: Metadata,
        options: WalOptions,
    ) -> Result<Wal, WalError> {
        if !holds_nothing(&*disk, dir)? {
            return Err(WalError::Exists {
                dir: dir.to_path_buf(),
            });
        }
        let building = with_suffix(dir, ".tmp");
        for leftover in [dir, &building] {
            remove_dir_if_there(&*disk, leftover)?;
        }
        disk.create_dir(&building)
            .map_err(WalError::io("create", &building))?;
        let name = SegmentName { seq: 0, index: 0 };
        let path = building.join(name.to_string());
        let file = NextSegment::new(disk.clone(), path.clone(), options.segment_bytes).finish()?;
        let mut segment = Segment::lock(name, path.clone(), file)?;
        let raw = frame::encode_metadata(&metadata);
        let (mut head, mut crc) = (Vec::new(), 0);
        frame::put_crc(&mut head, 0);
        frame::put_metadata(&mut head, &mut crc, &raw);
        frame::put_snapshot(&mut head, &mut crc, &WalSnapshot::default());
        let file = &segment.file;
        file.write_at(&head, 0)
            .map_err(WalError::io("write", &path))?;
        file.sync_data().map_err(WalError::io("sync", &path))?;
        disk.sync_dir(&building)
            .map_err(WalError::io("sync", &building))?;
        disk.rename(&building, dir)
            .map_err(WalError::io("rename to", dir))?;
        let above = parent(dir);
        disk.sync_dir(&above)
            .map_err(WalError::io("sync", &above))?;
        segment.path = dir.join(name.to_string());
        let position = Position {
            metadata: raw.into(),
            hard_state: HardState::default(),
            last_index: 0,
            crc,
            offset: head.len() as u64,
            released: Vec::new(),
        };
        Wal::assemble(disk, dir, options, vec![segment], position)
    }

    /// Opens the log and replays it from `start`, which must be recorded in it; none means its beginning.
    ///
    /// A torn write at the end is cut off. What is returned is durable, also what an earlier process had
    /// written and not yet synced. On an error nothing was changed, unless the error is of a write.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        start: Option<WalSnapshot>,
        options: WalOptions,
    ) -> Result<(Wal, Replay), WalError> {
        let start = start.unwrap_or_default();
        let names = segment::list(&*disk, dir)?;
        let first = segment::select(&names, dir, start.index)?;
        let (segments, last) = lock_all(&*disk, dir, &names[first..])?;
        let mut log = LogView::new(start);
        let files: Vec<_> = segments.iter().map(|s| (s.name, s.file.clone())).collect();
        let tail = replay::scan(dir, &files, &mut |kind, data| log.record(kind, data))?;
        drop(files);
        log.check_start()?;
        let metadata =
            replay::decode_metadata(&tail.metadata).ok_or_else(|| WalError::Corrupt {
                file: last.clone(),
                offset: 0,
                reason: "the metadata is not a message".into(),
            })?;
        if let (Some(reason), Some(segment)) = (tail.torn, segments.last()) {
            tracing::warn!(path = %segment.path.display(), offset = tail.offset, reason, "repairing a torn WAL");
        }
        settle(&*disk, dir, &segments, &tail, options.segment_bytes)?;
        let repaired = tail.torn.map(|reason| Repair {
            file: last,
            offset: tail.offset,
            reason,
        });
        let released = &names[..first];
        let position = Position {
            metadata: tail.metadata,
            hard_state: log.hard_state,
            last_index: log.last_index(),
            crc: tail.crc,
            offset: tail.offset,
            released: released.iter().map(|n| dir.join(n.to_string())).collect(),
        };
        let wal = Wal::assemble(disk, dir, options, segments, position)?;
        let replay = Replay {
            metadata,
            hard_state: log.hard_state,
            entries: log.entries,
            snapshots: log.snapshots,
            repaired,
        };
        Ok((wal, replay))
    }
}

/// The segments, and the path of the last one.
fn lock_all(
    disk: &dyn Disk,
    dir: &Path,
    names: &[SegmentName],
) -> Result<(Vec<Segment>, PathBuf), WalError> {
    let mut segments = Vec::new();
    let mut last = dir.to_path_buf();
    for name in names {
        let path = dir.join(name.to_string());
        let file = disk
            .open(&path, Access::ReadWrite)
            .map_err(WalError::io("open", &path))?;
        last.clone_from(&path);
        segments.push(Segment::lock(*name, path, file.into())?);
    }
    Ok((segments, last))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether there is no directory, or one with nothing in it that anybody could miss.
fn holds_nothing(disk: &dyn Disk, dir: &Path) -> Result<bool, WalError> {
    if !disk.exists(dir).map_err(WalError::io("look for", dir))? {
        return Ok(true);
    }
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    Ok(names.iter().all(|name| name.ends_with(".tmp")))
}

fn remove_dir_if_there(disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
    if disk.exists(dir).map_err(WalError::io("look for", dir))? {
        disk.remove_dir(dir).map_err(WalError::io("remove", dir))?;
    }
    Ok(())
}

/// Makes the log fit for appending and all of it durable. An earlier process may have died between a
/// rename and its sync, or before an fdatasync, and left half-made files.
fn settle(
    disk: &dyn Disk,
    dir: &Path,
    segments: &[Segment],
    tail: &Tail,
    segment_bytes: u64,
) -> Result<(), WalError> {
    if let Some(last) = segments.last() {
        settle_segment(&*last.file, &last.path, tail, segment_bytes)?;
    }
    for renamed_in in [parent(dir), dir.to_path_buf()] {
        disk.sync_dir(&renamed_in)
            .map_err(WalError::io("sync", renamed_in))?;
    }
    remove_temporaries(disk, dir)
}

/// Zeros from the last valid record to the end of the prepared space, before a new record can get mixed
/// with what was there.
///
/// The valid records are written once more: if an fdatasync of an earlier process failed, they may be in
/// the page cache, clean, and yet not on the disk, and only writing them makes the next sync do its work.
fn settle_segment(
    file: &dyn DiskFile,
    path: &Path,
    tail: &Tail,
    segment_bytes: u64,
) -> Result<(), WalError> {
    let size = file.size().map_err(WalError::io("measure", path))?;
    let mut block = vec![0; ZERO_STEP_BYTES];
    let mut offset = 0;
    while offset < size {
        let used = offset < tail.offset;
        let end = if used { tail.offset } else { size };
        let want = (end - offset).min(ZERO_STEP_BYTES as u64) as usize;
        let read =
            read_full(file, &mut block[..want], offset).map_err(WalError::io("read", path))?;
        if read == 0 {
            break;
        }
        let block = &mut block[..read];
        if used || block.iter().any(|byte| *byte != 0) {
            if !used {
                block.fill(0);
            }
            file.write_at(block, offset)
                .map_err(WalError::io("write", path))?;
        }
        offset += read as u64;
    }
    if size < segment_bytes {
        file.allocate(segment_bytes)
            .map_err(WalError::io("reserve space for", path))?;
        zero_fill(file, size, segment_bytes).map_err(WalError::io("zero", path))?;
    }
    file.sync_data().map_err(WalError::io("sync", path))
}

/// Removes what a crash left half made: our next segment, or Go etcd's `0.tmp` and `1.tmp`.
fn remove_temporaries(disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
    for name in disk.list(dir).map_err(WalError::io("list", dir))? {
        if name.ends_with(".tmp") {
            let path = dir.join(&name);
            disk.remove(&path).map_err(WalError::io("remove", path))?;
        }
    }
    Ok(())
}
