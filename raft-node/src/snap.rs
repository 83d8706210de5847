//! Snapshot files in etcd's format: `%016x-%016x.snap` (term, index) and the databases beside them,
//! `%016x.snap.db` (index).
//!
//! A `.snap` file is {1 crc32c, 2 raftpb.Snapshot bytes}. [`Snapshotter`] saves, finds and removes them;
//! depends on [`crate::disk`] only. Invariant: a `.snap` name is durable only with whole content, and a
//! file that cannot be believed is put aside as `.broken`, never used.
//! etcd: server/etcdserver/api/snap/snapshotter.go, db.go.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use metrics::{Histogram, Key, KeyName, Level, Metadata, Recorder, Unit};
use prost::Message as _;
use transport_core::raftpb::{Snapshot, decode_snapshot};

use crate::{
    disk::{Access, Disk, read_full},
    wal::WalSnapshot,
};

/// etcd's `--max-snapshots`.
pub const SNAPSHOTS_MAX: usize = 5;

/// Begins the name of everything that is being written; etcd does the same.
const TEMPORARY: &str = "tmp";

/// Why a snapshot cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapError {
    /// The file system failed.
    #[error("snap: {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The content of a file is not a snapshot.
    #[error("snap: {} is broken: {reason}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl SnapError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SnapError {
        let path = path.into();
        move |source| SnapError::Io {
            action,
            path,
            source,
        }
    }
}

/// The snapshot files of one directory (etcd: `member/snap`).
#[derive(Clone, Debug)]
pub struct Snapshotter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    metrics: SnapMetrics,
}

/// What a `.snap` file holds (etcd: snappb.Snapshot).
#[derive(Clone, PartialEq, prost::Message)]
struct SnapFile {
    #[prost(uint32, tag = "1")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
}

impl Snapshotter {
    /// For a directory that exists.
    pub fn new(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>, metrics: SnapMetrics) -> Self {
        Snapshotter {
            disk,
            dir: dir.into(),
            metrics,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the `.snap` file; durable when it returns. A snapshot at index 0 is none and not written.
    ///
    /// Its record in the log comes after this, so that a recorded snapshot always has a file.
    pub fn save(&self, snapshot: &Snapshot) -> Result<(), SnapError> {
        let (term, index) = position(snapshot);
        if index == 0 {
            return Ok(());
        }
        let start = Instant::now();
        let data = snapshot.encode_to_vec();
        let crc = crc32c::crc32c(&data);
        let file = SnapFile {
            crc,
            data: data.into(),
        };
        let bytes = file.encode_to_vec();
        let marshalled = start.elapsed();
        let name = format!("{term:016x}-{index:016x}.snap");
        let temporary = self.dir.join(format!("{TEMPORARY}-{name}"));
        let target = self.dir.join(name);
        self.write(&temporary, &bytes)
            .and_then(|()| {
                self.disk
                    .rename(&temporary, &target)
                    .map_err(SnapError::io("rename to", &target))
            })
            .inspect_err(|_| {
                // What is left is removed by `remove_temporaries` at the next start otherwise.
                let _ = self.disk.remove(&temporary);
            })?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(SnapError::io("sync", &self.dir))?;
        self.metrics.marshalling.record(marshalled.as_secs_f64());
        self.metrics.save.record(start.elapsed().as_secs_f64());
        Ok(())
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), SnapError> {
        let start = Instant::now();
        let file = self
            .disk
            .create(path)
            .map_err(SnapError::io("create", path))?;
        file.write_at(bytes, 0)
            .map_err(SnapError::io("write", path))?;
        let synced = file.sync_data();
        self.metrics.fsync.record(start.elapsed().as_secs_f64());
        synced.map_err(SnapError::io("sync", path))
    }

    /// The newest snapshot that is among `recorded` (from [`crate::wal::snapshots`]); none if there is
    /// none. Files that are no snapshots are put aside; an error of the file system is an error.
    pub fn newest(&self, recorded: &[WalSnapshot]) -> Result<Option<Snapshot>, SnapError> {
        let (newest, broken) = self.look(recorded)?;
        self.put_aside(&broken)?;
        Ok(newest)
    }

    /// As [`newest`](Snapshotter::newest), without changing anything: the files that are no snapshots come
    /// along, for [`put_aside`](Snapshotter::put_aside).
    pub fn look(
        &self,
        recorded: &[WalSnapshot],
    ) -> Result<(Option<Snapshot>, Vec<String>), SnapError> {
        let mut broken = Vec::new();
        for name in self.names(".snap")?.into_iter().rev() {
            let path = self.dir.join(&name);
            match read(&*self.disk, &path) {
                Ok(snapshot) => {
                    let (term, index) = position(&snapshot);
                    if recorded.iter().any(|r| r.term == term && r.index == index) {
                        return Ok((Some(snapshot), broken));
                    }
                }
                Err(SnapError::Broken { reason, .. }) => {
                    tracing::warn!(path = %path.display(), reason, "a snap file is broken");
                    broken.push(name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((None, broken))
    }

    /// Renames files to `.broken`.
    pub fn put_aside(&self, names: &[String]) -> Result<(), SnapError> {
        for name in names {
            let aside = self.dir.join(format!("{name}.broken"));
            self.disk
                .rename(&self.dir.join(name), &aside)
                .map_err(SnapError::io("rename to", aside))?;
        }
        Ok(())
    }

    /// Where the database of the snapshot at `index` is, if it was received.
    pub fn db_path(&self, index: u64) -> PathBuf {
        self.dir.join(format!("{index:016x}.snap.db"))
    }

    /// Whether the database of the snapshot at `index` is there.
    pub fn has_db(&self, index: u64) -> Result<bool, SnapError> {
        let path = self.db_path(index);
        self.disk
            .exists(&path)
            .map_err(SnapError::io("look for", path))
    }

    /// Removes databases of snapshots before `index`; call it when the one at `index` is installed.
    pub fn release_dbs(&self, index: u64) -> Result<(), SnapError> {
        for name in self.names(".snap.db")? {
            let of = name
                .strip_suffix(".snap.db")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok());
            if of.is_some_and(|of| of < index) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Removes the oldest `.snap` files and databases, so that at most `max` of each stay; 0 keeps all.
    pub fn purge(&self, max: usize) -> Result<(), SnapError> {
        if max == 0 {
            return Ok(());
        }
        for suffix in [".snap", ".snap.db"] {
            let names = self.names(suffix)?;
            for name in &names[..names.len().saturating_sub(max)] {
                self.remove(name)?;
            }
        }
        Ok(())
    }

    /// Removes what a crash left half written: files named `tmp…`, and `db.tmp…` of a defragmentation.
    /// For the start, before anything is received.
    pub fn remove_temporaries(&self) -> Result<(), SnapError> {
        for name in self.list()? {
            if name.starts_with(TEMPORARY) || name.starts_with("db.tmp") {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), SnapError> {
        let path = self.dir.join(name);
        tracing::info!(path = %path.display(), "removing a snapshot file");
        match self.disk.remove(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(SnapError::io("remove", path)),
        }
    }

    fn list(&self) -> Result<Vec<String>, SnapError> {
        self.disk
            .list(&self.dir)
            .map_err(SnapError::io("list", &self.dir))
    }

    /// Finished files with that suffix, ascending.
    fn names(&self, suffix: &str) -> Result<Vec<String>, SnapError> {
        let mut names = self.list()?;
        names.retain(|name| name.ends_with(suffix) && !name.starts_with(TEMPORARY));
        Ok(names)
    }
}

/// Reads a `.snap` file; [`SnapError::Broken`] when its content cannot be believed.
pub fn read(disk: &dyn Disk, path: &Path) -> Result<Snapshot, SnapError> {
    let broken = |reason| SnapError::Broken {
        path: path.to_path_buf(),
        reason,
    };
    let file = disk
        .open(path, Access::Read)
        .map_err(SnapError::io("open", path))?;
    let size = file.size().map_err(SnapError::io("measure", path))?;
    let size = usize::try_from(size).map_err(|_| broken("it is larger than memory"))?;
    let mut bytes = vec![0; size];
    let read = read_full(&*file, &mut bytes, 0).map_err(SnapError::io("read", path))?;
    bytes.truncate(read);
    if bytes.is_empty() {
        return Err(broken("it is empty"));
    }
    let file = SnapFile::decode(Bytes::from(bytes)).map_err(|_| broken("it is not a message"))?;
    if file.data.is_empty() || file.crc == 0 {
        return Err(broken("it holds no snapshot"));
    }
    if crc32c::crc32c(&file.data) != file.crc {
        return Err(broken("crc mismatch"));
    }
    decode_snapshot(file.data).map_err(|_| broken("its content is not a snapshot"))
}

/// Term and index; zeros for an empty snapshot.
fn position(snapshot: &Snapshot) -> (u64, u64) {
    snapshot
        .metadata
        .as_ref()
        .map_or((0, 0), |metadata| (metadata.term, metadata.index))
}

/// Metric handles of a [`Snapshotter`]; [`SnapMetrics::default`] records nothing.
#[derive(Clone)]
pub struct SnapMetrics {
    save: Histogram,
    marshalling: Histogram,
    fsync: Histogram,
}

impl SnapMetrics {
    /// Describes and registers the metrics.
    pub fn register(recorder: &dyn Recorder) -> Self {
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let histogram = |name: &'static str, text: &'static str| {
            recorder.describe_histogram(KeyName::from(name), Some(Unit::Seconds), text.into());
            recorder.register_histogram(&Key::from_static_name(name), &metadata)
        };
        SnapMetrics {
            save: histogram(
                "etcd_debugging_snap_save_total_duration_seconds",
                "Duration of saving a snapshot file.",
            ),
            marshalling: histogram(
                "etcd_debugging_snap_save_marshalling_duration_seconds",
                "Duration of encoding a snapshot file.",
            ),
            fsync: histogram(
                "etcd_snap_fsync_duration_seconds",
                "Duration of writing and syncing a snapshot file.",
            ),
        }
    }
}

impl Default for SnapMetrics {
    fn default() -> Self {
        SnapMetrics {
            save: Histogram::noop(),
            marshalling: Histogram::noop(),
            fsync: Histogram::noop(),
        }
    }
}

impl std::fmt::Debug for SnapMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapMetrics")
    }
}
