//! One disk below the whole member: the log, the snapshot files and the backend's file, with one fate.
//!
//! Every operation that changes something passes one lock, is counted by the area it belongs to, and is where the
//! [`Fate`] strikes. Depends on raft-node's fault disk, which knows what survives. Invariant: after a stop nothing
//! reaches any area any more.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use raft_node::disk::{
    Access, Disk, DiskFile,
    fault::{FaultDisk, Plan},
};

/// Directory of the log's segments.
pub const WAL_DIR: &str = "member/wal";
/// Directory of the snapshot files.
pub const SNAP_DIR: &str = "member/snap";
/// The backend's file.
pub const STORE_FILE: &str = "member/store.redb";

/// Whose operation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    Wal,
    Snap,
    Store,
}

impl Area {
    fn of(path: &Path) -> Area {
        if path.starts_with(SNAP_DIR) {
            Area::Snap
        } else if path.to_string_lossy().starts_with(STORE_FILE) {
            Area::Store
        } else {
            Area::Wal
        }
    }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Name,
    Length,
    Write,
    Sync,
    SyncDir,
}

/// How the disk misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blow {
    /// The power goes in the middle of the operation.
    Stop,
    /// The operation fails, maybe half done.
    Fail(io::ErrorKind),
}

/// When the disk misbehaves: at the `nth` operation of an area, or of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    pub area: Option<Area>,
    pub nth: u64,
    pub blow: Blow,
}

/// What the fate struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Struck {
    pub area: Area,
    pub kind: Kind,
    pub blow: Blow,
}

/// What happened on the disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// Segments begun after the first.
    pub cuts: u64,
    /// Snapshot files that have their name.
    pub snapshots: u64,
    /// Segments removed.
    pub released: u64,
    /// Operations, by area.
    pub operations: [u64; 3],
}

#[derive(Debug, Default)]
struct State {
    fate: Option<Fate>,
    /// The fault disk's next operation is struck.
    armed: bool,
    struck: Option<Struck>,
    events: Events,
}

/// The disk of one life; clones are the same disk.
#[derive(Clone)]
pub struct WatchedDisk {
    disk: FaultDisk,
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for WatchedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchedDisk")
    }
}

impl WatchedDisk {
    pub fn new(disk: FaultDisk, fate: Option<Fate>) -> Self {
        let state = State {
            fate,
            ..State::default()
        };
        WatchedDisk {
            disk,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// What the fate struck, once it has.
    pub fn struck(&self) -> Option<Struck> {
        self.state.lock().struck
    }

    pub fn events(&self) -> Events {
        self.state.lock().events
    }

    /// The power goes now, if it has not gone before: what a machine finds afterwards.
    pub fn lose_power(&self) -> FaultDisk {
        // Between two operations; one that strikes by itself is in the middle of one.
        let _between = self.state.lock();
        self.disk.crash()
    }

    /// The process is killed now: what the next one finds.
    pub fn kill(&self) -> FaultDisk {
        let _between = self.state.lock();
        self.disk.kill()
    }

    /// Does one operation, or what the fate makes of it.
    fn operate<T>(
        &self,
        path: &Path,
        kind: Kind,
        operation: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.state.lock();
        let area = Area::of(path);
        state.events.operations[area as usize] += 1;
        if let Some(fate) = state.fate {
            let operations = &state.events.operations;
            let count = fate
                .area
                .map_or(operations.iter().sum(), |area| operations[area as usize]);
            let ours = fate.area.is_none_or(|of| of == area);
            if ours && count == fate.nth {
                state.armed = true;
            }
            if state.armed {
                let next = Some(self.disk.operations() + 1);
                self.disk.plan(match fate.blow {
                    Blow::Stop => Plan {
                        stop_at: next,
                        ..Plan::default()
                    },
                    Blow::Fail(kind) => Plan {
                        fail_at: next.map(|at| (at, kind)),
                        ..Plan::default()
                    },
                });
            }
        }
        let before = self.disk.operations();
        let result = operation();
        if state.armed && self.disk.operations() > before {
            state.armed = false;
            let blow = state.fate.take().map(|fate| fate.blow);
            state.struck = blow.map(|blow| Struck { area, kind, blow });
        }
        result
    }

    fn note(&self, note: impl FnOnce(&mut Events)) {
        note(&mut self.state.lock().events);
    }

    fn watch(&self, path: &Path, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(WatchedFile {
            disk: self.clone(),
            path: path.into(),
            inner,
        })
    }
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

impl Disk for WatchedDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(path, Kind::Name, || self.disk.create_dir(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.operate(path, Kind::Name, || self.disk.create(path))?;
        Ok(self.watch(path, file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        Ok(self.watch(path, self.disk.open(path, access)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate(to, Kind::Name, || self.disk.rename(from, to))?;
        if has_extension(from, "tmp") && has_extension(to, "wal") {
            self.note(|events| events.cuts += 1);
        }
        if has_extension(to, "snap") {
            self.note(|events| events.snapshots += 1);
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate(path, Kind::Name, || self.disk.remove(path))?;
        if has_extension(path, "wal") {
            self.note(|events| events.released += 1);
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.operate(path, Kind::Name, || self.disk.remove_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.operate(dir, Kind::SyncDir, || self.disk.sync_dir(dir))
    }
}

#[derive(Debug)]
struct WatchedFile {
    disk: WatchedDisk,
    path: PathBuf,
    inner: Box<dyn DiskFile>,
}

impl DiskFile for WatchedFile {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.operate(&self.path, Kind::Write, || {
            self.inner.write_at(bytes, offset)
        })
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.disk
            .operate(&self.path, Kind::Length, || self.inner.allocate(size))
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.disk
            .operate(&self.path, Kind::Length, || self.inner.truncate(size))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk
            .operate(&self.path, Kind::Sync, || self.inner.sync_data())
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.inner.try_lock()
    }
}

/// A file of the disk as what redb stores in.
#[derive(Debug)]
pub struct StoreFile(pub Box<dyn DiskFile>);

impl redb::StorageBackend for StoreFile {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(out, offset)? {
            read if read == out.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.0.size()? {
            self.0.allocate(len)
        } else {
            self.0.truncate(len)
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}
