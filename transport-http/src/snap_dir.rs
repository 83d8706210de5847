//! The snapshot sink etcd has: a directory of `<index>.snap.db` files.
//!
//! Blocking file I/O, called on blocking threads. Invariant: a file under its final name is complete and durable,
//! and so is its name; whatever ends early leaves nothing behind but, after a crash, a `tmp*` file that the next
//! start removes.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use metrics::Histogram;
use transport_core::raftpb::Message;

use crate::{
    config::SharedRecorder,
    metrics::{SNAP_DB_FSYNC_SECONDS, SNAP_DB_SAVE_SECONDS, describe_snap_db, histogram},
    raft::{SnapshotSink, SnapshotWriter},
};

/// Receives databases into a directory; a file that exists already is as good as the one received.
///
/// etcd: server/etcdserver/api/snap/db.go, `SaveDBFrom`.
pub struct SnapDir {
    dir: PathBuf,
    made: AtomicU64,
    times: Times,
}

#[derive(Clone)]
struct Times {
    save: Histogram,
    fsync: Histogram,
}

impl SnapDir {
    /// `dir` must exist.
    pub fn new(dir: impl Into<PathBuf>, recorder: &SharedRecorder) -> Self {
        describe_snap_db(recorder);
        let times = Times {
            save: histogram(recorder, SNAP_DB_SAVE_SECONDS, &[]),
            fsync: histogram(recorder, SNAP_DB_FSYNC_SECONDS, &[]),
        };
        SnapDir {
            dir: dir.into(),
            made: AtomicU64::new(0),
            times,
        }
    }

    /// The name the database of the snapshot at `index` gets.
    pub fn file_name(index: u64) -> String {
        format!("{index:016x}.snap.db")
    }

    fn temporary(&self) -> io::Result<(PathBuf, File)> {
        // Names left behind by an earlier process are skipped over.
        for _ in 0..10_000 {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("tmp{}-{number}", std::process::id()));
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            match options.open(&path) {
                Ok(file) => return Ok((path, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "too many temporary snapshot files",
        ))
    }
}

impl SnapshotSink for SnapDir {
    fn create(&self, message: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        let metadata = message
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.metadata.as_ref());
        let index = metadata.map_or(0, |metadata| metadata.index);
        if index == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the snapshot has no index",
            ));
        }
        let (temporary, file) = self.temporary()?;
        Ok(Box::new(Receiving {
            target: self.dir.join(SnapDir::file_name(index)),
            temporary: Temporary(Some(temporary)),
            file,
            written: 0,
            begun: Instant::now(),
            times: self.times.clone(),
        }))
    }

    #[cfg(unix)]
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        let space = rustix::fs::statvfs(&self.dir)?;
        Ok(Some(space.f_bavail.saturating_mul(space.f_frsize)))
    }
}

/// Removes the file when dropped, unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(path = %path.display(), %error, "failed to remove temporary snapshot file");
        }
    }
}

struct Receiving {
    target: PathBuf,
    temporary: Temporary,
    file: File,
    written: u64,
    begun: Instant,
    times: Times,
}

impl SnapshotWriter for Receiving {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.written += chunk.len() as u64;
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> io::Result<u64> {
        let sync = Instant::now();
        self.file.sync_all()?;
        self.times.fsync.record(sync.elapsed());
        if !self.target.try_exists()?
            && let Some(path) = &self.temporary.0
        {
            fs::rename(path, &self.target)?;
            self.temporary.0 = None;
        }
        // Also for a file that was there: its name may not have reached the disk.
        sync_dir(self.target.parent().unwrap_or(Path::new(".")))?;
        self.times.save.record(self.begun.elapsed());
        Ok(self.written)
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A sink for members that take no snapshots: everything sent is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSnapshots;

impl SnapshotSink for NoSnapshots {
    fn create(&self, _: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this member takes no snapshots",
        ))
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// Shares a sink between transports.
impl<S: SnapshotSink> SnapshotSink for Arc<S> {
    fn create(&self, message: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        (**self).create(message)
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        (**self).free_bytes()
    }

    fn blocks(&self) -> bool {
        (**self).blocks()
    }
}
