//! Databases received with snapshots, and the files of our own format they are imported into.
//!
//! `<index>.snap.db` is what the transport received, `<index>.store` what [`Received`] makes of it, in the directory
//! of the snapshots. Depends on kvstore's import. Invariants: one import at a time, so that the same snapshot sent
//! twice is imported once; a `.store` file is whole and fit to be opened; one that no snapshot can need any more
//! goes with the next import, the next installation or the next start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kvstore::import::{UNFINISHED, import_snapshot, imported_index};
use parking_lot::Mutex;
use raft_node::SnapshotError;
use transport_core::raftpb::Snapshot;
use transport_http::SnapDir;

const IMPORTED: &str = ".store";

/// The databases received into one directory.
#[derive(Debug)]
pub struct Received {
    dir: PathBuf,
    /// Held for as long as an import takes.
    importing: Mutex<()>,
}

fn index_of(snapshot: &Snapshot) -> u64 {
    let metadata = snapshot.metadata.as_ref();
    metadata.map_or(0, |metadata| metadata.index)
}

impl Received {
    /// Those in `dir`, which must exist.
    pub fn new(dir: impl Into<PathBuf>) -> Received {
        Received {
            dir: dir.into(),
            importing: Mutex::new(()),
        }
    }

    /// Where the database of the snapshot at `index` lies once it is imported.
    fn imported_path(&self, index: u64) -> PathBuf {
        self.dir.join(format!("{index:016x}{IMPORTED}"))
    }

    /// Imports the database received with `snapshot`, unless it is imported already, and returns the file. Blocking,
    /// and as long as the database is big. `applied` is where the state machine stands: what was imported for up to
    /// there goes. So does a database that cannot be imported: it comes again, and what is there would be taken for
    /// it.
    pub fn import(&self, snapshot: &Snapshot, applied: u64) -> Result<PathBuf, SnapshotError> {
        let _one_at_a_time = self.importing.lock();
        self.import_alone(snapshot, applied).inspect_err(|_| {
            let received = SnapDir::file_name(index_of(snapshot));
            self.remove(|name| name == received);
        })
    }

    fn import_alone(&self, snapshot: &Snapshot, applied: u64) -> Result<PathBuf, SnapshotError> {
        let index = index_of(snapshot);
        let received = self.dir.join(SnapDir::file_name(index));
        let failed = |error: &dyn ToString| {
            SnapshotError::new(
                format!("importing {}", received.display()),
                error.to_string(),
            )
        };
        self.release(applied);
        let imported = self.imported_path(index);
        if imported.try_exists().map_err(|error| failed(&error))? {
            if imported_index(&imported).map_err(|error| failed(&error))? == Some(index) {
                return Ok(imported);
            }
            tracing::warn!(path = %imported.display(), "replacing an imported database that is not what it is named for");
            fs::remove_file(&imported).map_err(|error| failed(&error))?;
        }
        import_snapshot(&received, &imported, snapshot).map_err(|error| failed(&error))?;
        Ok(imported)
    }

    /// The imported database of a snapshot that raft has recorded. It is there, but for a stop in between: then what
    /// was received is imported once more, and stays until that has succeeded.
    pub fn to_install(&self, snapshot: &Snapshot, applied: u64) -> Result<PathBuf, SnapshotError> {
        let imported = self.imported_path(index_of(snapshot));
        if imported.is_file() {
            return Ok(imported);
        }
        let _one_at_a_time = self.importing.lock();
        self.import_alone(snapshot, applied)
    }

    /// Removes what was imported for snapshots up to `applied`: they are not installed any more.
    pub fn release(&self, applied: u64) {
        self.remove(|name| imported_for(name).is_some_and(|index| index <= applied));
    }

    /// Removes at the start what earlier processes left, but what the recorded snapshot at `needed` is yet to be
    /// installed from.
    pub fn tidy(&self, needed: Option<u64>) {
        self.remove(|name| {
            let unfinished = name.contains(UNFINISHED);
            let unneeded = imported_for(name).is_some_and(|index| Some(index) != needed);
            unfinished || unneeded
        });
    }

    fn remove(&self, unneeded: impl Fn(&str) -> bool) {
        if let Err(error) = remove_from(&self.dir, unneeded) {
            // They take space and do no other harm.
            tracing::warn!(path = %self.dir.display(), %error, "failed to remove received databases");
        }
    }
}

/// The index in the name of an imported database.
fn imported_for(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(IMPORTED)?, 16).ok()
}

fn remove_from(dir: &Path, unneeded: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&unneeded) {
            tracing::info!(path = %entry.path().display(), "removing a received database");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::MetadataExt, sync::Arc};

    use kvstore::{
        Store, StoreConfig,
        backend::memory::MemoryBackend,
        pb::etcdserverpb::{InternalRaftRequest, PutRequest, RequestHeader},
    };
    use prost::Message;
    use tempfile::TempDir;

    use super::*;

    fn put(id: u64) -> InternalRaftRequest {
        InternalRaftRequest {
            header: Some(RequestHeader {
                id,
                ..Default::default()
            }),
            put: Some(PutRequest {
                key: format!("k{id}").into(),
                value: vec![b'x'; 1000].into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Receives the database of a store that has applied `entries` entries.
    fn receive(dir: &Path, entries: u64) -> Snapshot {
        let backend = Arc::new(MemoryBackend::default());
        let mut store = Store::open_on(StoreConfig::new("unused"), backend).expect("open");
        for index in 1..=entries {
            let entry = put(index).encode_to_vec().into();
            store.apply(index, 1, &entry).expect("apply");
        }
        store.flush().expect("flush");
        let image = store.image().expect("image");
        let path = dir.join(SnapDir::file_name(entries));
        image
            .write_bolt(&mut File::create(path).expect("create"))
            .expect("write");
        image.snapshot().clone()
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).expect("list");
        let mut names: Vec<_> = names
            .map(|entry| {
                let name = entry.expect("entry").file_name();
                name.into_string().expect("text")
            })
            .filter(|name| !name.ends_with(".snap.db"))
            .collect();
        names.sort();
        names
    }

    fn file(path: &Path) -> u64 {
        fs::metadata(path).expect("metadata").ino()
    }

    fn set_up() -> (TempDir, Received) {
        let dir = tempfile::tempdir().expect("directory");
        let received = Received::new(dir.path());
        (dir, received)
    }

    #[test]
    fn a_snapshot_that_is_sent_again_is_imported_once() {
        let (dir, received) = set_up();
        let snapshot = receive(dir.path(), 5);
        let first = received.import(&snapshot, 0).expect("import");
        let made = file(&first);
        assert_eq!(received.import(&snapshot, 0).expect("again"), first);
        assert_eq!(received.to_install(&snapshot, 0).expect("install"), first);
        assert_eq!(file(&first), made);
        assert_eq!(names(dir.path()), ["0000000000000005.store"]);
    }

    #[test]
    fn a_file_that_is_not_what_it_is_named_for_is_replaced() {
        let (dir, received) = set_up();
        let snapshot = receive(dir.path(), 5);
        let other = receive(dir.path(), 4);
        let path = received.import(&other, 0).expect("import");
        let ours = received.imported_path(5);
        fs::rename(path, &ours).expect("rename");
        received.import(&snapshot, 0).expect("import");
        assert_eq!(imported_index(&ours).expect("readable"), Some(5));
        fs::write(&ours, b"half a file").expect("write");
        received.import(&snapshot, 0).expect("import");
        assert_eq!(imported_index(&ours).expect("readable"), Some(5));
    }

    #[test]
    fn one_snapshot_sent_twice_at_once_is_imported_whole() {
        let (dir, received) = set_up();
        let snapshot = receive(dir.path(), 300);
        std::thread::scope(|scope| {
            let imports: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| received.import(&snapshot, 0)))
                .collect();
            for import in imports {
                import.join().expect("no panic").expect("imported");
            }
        });
        assert_eq!(names(dir.path()), ["000000000000012c.store"]);
        let mut config = StoreConfig::new(received.imported_path(300));
        config.quota_bytes = 0;
        let store = Store::open(config).expect("open");
        let all = kvstore::pb::etcdserverpb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            count_only: true,
            ..Default::default()
        };
        assert_eq!(store.reader().range(&all).expect("range").count, 300);
    }

    #[test]
    fn a_database_of_another_index_leaves_nothing_behind() {
        let (dir, received) = set_up();
        let mut snapshot = receive(dir.path(), 5);
        let name = |index| dir.path().join(SnapDir::file_name(index));
        fs::rename(name(5), name(6)).expect("rename");
        snapshot.metadata.as_mut().expect("metadata").index = 6;
        let error = received.import(&snapshot, 0).expect_err("refused");
        assert!(
            error.to_string().contains("at index 5, its snapshot at 6"),
            "{error}"
        );
        assert!(names(dir.path()).is_empty());
        assert!(!name(6).exists(), "the next one would not replace it");
    }

    #[test]
    fn a_damaged_database_makes_room_for_a_whole_one() {
        let (dir, received) = set_up();
        let snapshot = receive(dir.path(), 5);
        let path = dir.path().join(SnapDir::file_name(5));
        let whole = fs::read(&path).expect("read");
        fs::write(&path, &whole[..whole.len() / 2]).expect("write");
        received.to_install(&snapshot, 0).expect_err("damaged");
        assert!(path.exists(), "it is all there is");
        received.import(&snapshot, 0).expect_err("damaged");
        assert!(!path.exists() && names(dir.path()).is_empty());
        fs::write(&path, whole).expect("write");
        received.import(&snapshot, 0).expect("import");
    }

    #[test]
    fn what_no_snapshot_needs_any_more_goes() {
        let (dir, received) = set_up();
        let snapshots = [3, 5, 9].map(|index| receive(dir.path(), index));
        for snapshot in &snapshots {
            received.import(snapshot, 2).expect("import");
        }
        assert_eq!(names(dir.path()).len(), 3);
        received.import(&snapshots[2], 4).expect("import");
        let kept = ["0000000000000005.store", "0000000000000009.store"];
        assert_eq!(names(dir.path()), kept);
        received.release(9);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_start_removes_what_a_crash_left_and_keeps_what_it_needs() {
        let (dir, received) = set_up();
        for index in [3, 5] {
            received
                .import(&receive(dir.path(), index), 0)
                .expect("import");
        }
        for name in [
            "0000000000000007.store.12-0.importing",
            "0000000000000007.store.12-0.importing.tmp",
        ] {
            fs::write(dir.path().join(name), b"half").expect("write");
        }
        let others = ["0000000000000001-0000000000000005.snap", "db.store.kept"];
        for name in others {
            fs::write(dir.path().join(name), b"another's").expect("write");
        }
        received.tidy(Some(5));
        let kept = [others[0], "0000000000000005.store", others[1]];
        assert_eq!(names(dir.path()), kept);
        received.tidy(None);
        assert_eq!(names(dir.path()), others);
    }
}
