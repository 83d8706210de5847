//! A member's log on disk: the write-ahead log and the `.snap` files, opened together.
//!
//! [`Storage`] is what a node starts from: created empty, filled with the first entries of a new cluster,
//! or replayed. Depends on [`crate::wal`] and [`crate::snap`]. Invariant: a snapshot counts only if its file
//! is whole and the log records it, and what is released is never needed by the newest such snapshot.

use std::{fmt, path::PathBuf, sync::Arc};

use bytes::Bytes;
use transport_core::{
    MemberId,
    raftpb::{Entry, EntryType, HardState, Snapshot},
};

use crate::{
    SharedRecorder,
    admit::parse_conf_change,
    bootstrap::{bootstrap_entries, sole_member_entries},
    conf_change::follow,
    disk::Disk,
    snap::{SnapError, SnapMetrics, Snapshotter},
    wal::{self, Metadata, Prepare, Wal, WalError, WalMetrics, WalOptions, WalSnapshot},
};

/// Where a member keeps its log.
#[derive(Clone)]
pub struct StorageOptions {
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// Directory of the segments; etcd: `member/wal`. Its parent must exist when the log is created.
    pub wal_dir: PathBuf,
    /// Directory of the `.snap` and `.snap.db` files; etcd: `member/snap`. Must exist.
    pub snap_dir: PathBuf,
    /// Size to which segments are prepared, in bytes.
    pub segment_bytes: u64,
    /// Segments kept though no start needs them, oldest go first; 0 keeps all. etcd: `--max-wals`.
    pub segments_max: usize,
    /// Snapshot files kept, oldest go first; 0 keeps all. etcd: `--max-snapshots`.
    pub snapshots_max: usize,
    /// Where segments are prepared ahead of need.
    pub prepare: Prepare,
    /// Where the metrics of log and snapshot files are registered.
    pub recorder: SharedRecorder,
}

impl StorageOptions {
    /// etcd's defaults: segments of 64 MB, five segments and five snapshot files kept.
    pub fn new(
        disk: Arc<dyn Disk>,
        wal_dir: impl Into<PathBuf>,
        snap_dir: impl Into<PathBuf>,
        recorder: SharedRecorder,
    ) -> Self {
        let wal = WalOptions::default();
        StorageOptions {
            disk,
            wal_dir: wal_dir.into(),
            snap_dir: snap_dir.into(),
            segment_bytes: wal.segment_bytes,
            segments_max: wal.segments_max,
            snapshots_max: 5,
            prepare: wal.prepare,
            recorder,
        }
    }

    fn wal(&self) -> WalOptions {
        WalOptions {
            segment_bytes: self.segment_bytes,
            segments_max: self.segments_max,
            prepare: self.prepare,
            metrics: WalMetrics::register(&*self.recorder),
        }
    }

    fn snapshotter(&self) -> Snapshotter {
        let metrics = SnapMetrics::register(&*self.recorder);
        Snapshotter::new(self.disk.clone(), &self.snap_dir, metrics)
    }
}

/// Why a log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The write-ahead log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The snapshot files.
    #[error(transparent)]
    Snap(#[from] SnapError),
    /// [`Storage::bootstrap`] of a log that holds something.
    #[error("the log of member {0} is not empty")]
    NotEmpty(MemberId),
}

/// A member's log, open for writing, and what it held when it was opened.
pub struct Storage {
    pub(crate) store: Box<dyn LogStore>,
    pub(crate) metadata: Metadata,
    pub(crate) contents: Contents,
}

/// What a log held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub snapshot: Option<Snapshot>,
    pub hard_state: HardState,
    /// After the snapshot.
    pub entries: Vec<Entry>,
}

impl Storage {
    /// Whether there is a log.
    pub fn exists(options: &StorageOptions) -> Result<bool, StorageError> {
        Ok(wal::exists(&*options.disk, &options.wal_dir)?)
    }

    /// Creates an empty log, as a member that joins a cluster starts with.
    pub fn create(options: &StorageOptions, metadata: Metadata) -> Result<Self, StorageError> {
        let disk = options.disk.clone();
        let wal = Wal::create(disk, &options.wal_dir, metadata, options.wal())?;
        let contents = Contents::default();
        Ok(Storage::assemble(options, wal, metadata, contents))
    }

    /// Opens and replays a log, from the newest snapshot on that is whole and recorded.
    pub fn open(options: &StorageOptions) -> Result<Self, StorageError> {
        let snapshotter = options.snapshotter();
        let recorded = wal::snapshots(&*options.disk, &options.wal_dir)?;
        let (snapshot, broken) = snapshotter.look(&recorded)?;
        let start = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.metadata.clone())
            .map(|metadata| WalSnapshot {
                index: metadata.index,
                term: metadata.term,
                conf_state: metadata.conf_state,
            });
        let disk = options.disk.clone();
        let (wal, replay) = Wal::open(disk, &options.wal_dir, start, options.wal())?;
        // Only now is it certain that no other process is at work here.
        snapshotter.put_aside(&broken)?;
        snapshotter.remove_temporaries()?;
        let contents = Contents {
            snapshot,
            hard_state: replay.hard_state,
            entries: replay.entries,
        };
        Ok(Storage::assemble(options, wal, replay.metadata, contents))
    }

    fn assemble(
        options: &StorageOptions,
        wal: Wal,
        metadata: Metadata,
        contents: Contents,
    ) -> Self {
        let store = DiskStore {
            wal,
            snapshotter: options.snapshotter(),
            snapshots_max: options.snapshots_max,
        };
        Storage {
            store: Box::new(store),
            metadata,
            contents,
        }
    }

    /// Writes the first entries of a new cluster: its members, each with the JSON etcd describes it with.
    pub fn bootstrap(&mut self, members: &[(MemberId, Bytes)]) -> Result<(), StorageError> {
        if !self.is_empty() {
            return Err(StorageError::NotEmpty(self.metadata.node_id));
        }
        let (entries, hard_state) = bootstrap_entries(members);
        self.store.append(Some(&hard_state), &entries)?;
        self.store.sync()?;
        self.contents.entries = entries;
        self.contents.hard_state = hard_state;
        Ok(())
    }

    /// Makes this member the only one of its cluster, for when the others are lost for good: entries that
    /// are not committed go, and entries that remove every other member are committed in their place. What
    /// the lost members had acknowledged and this one had not received is lost with them. So is, of a member
    /// that was killed and not stopped, what it had received and not yet noted as committed: it notes that
    /// with its next entry, within a tick, or when it stops.
    ///
    /// `applied` is what the state machine contains, which counts as committed: a commit index is written
    /// without a sync. `context` describes this member as in [`bootstrap`](Storage::bootstrap); it is used only if the member
    /// does not vote yet. etcd: `--force-new-cluster`, server/etcdserver/bootstrap.go.
    pub fn force_new_cluster(&mut self, applied: u64, context: &Bytes) -> Result<(), StorageError> {
        let contents = &mut self.contents;
        let base = contents.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        let (base, start) = base.map_or_else(Default::default, |metadata| {
            let state = metadata.conf_state.clone().unwrap_or_default();
            ((metadata.index, metadata.term), state)
        });
        let committed = contents
            .hard_state
            .commit
            .max(applied)
            .saturating_sub(base.0);
        contents
            .entries
            .truncate(usize::try_from(committed).unwrap_or(usize::MAX));
        let changes = contents
            .entries
            .iter()
            .filter(|e| e.kind() == Some(EntryType::ConfChange));
        let changes = changes.filter_map(|entry| parse_conf_change(&entry.data));
        let state = changes.fold(start, |state, change| follow(&state, &change));
        let last = contents.entries.last().map_or(base, |e| (e.index, e.term));

        let term = contents.hard_state.term.max(last.1);
        let own = self.metadata.node_id;
        let entries = sole_member_entries(&state, own, context, (last.0, term));
        let hard_state = HardState {
            term,
            commit: last.0 + entries.len() as u64,
            ..contents.hard_state
        };
        self.store.append(Some(&hard_state), &entries)?;
        self.store.sync()?;
        contents.entries.extend(entries);
        contents.hard_state = hard_state;
        Ok(())
    }

    /// Whose log it is.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The newest snapshot, from which the log goes on.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.contents.snapshot.as_ref()
    }

    /// Whether nothing counts yet: a member that joins, or one whose bootstrap was interrupted.
    ///
    /// Entries follow each other into the log with their hard state behind them, so entries without any are
    /// what a torn first write left: nobody was ever told of them. Those of a bootstrap would not even be
    /// committed, and without the members they name nobody could ever be elected to commit them.
    pub fn is_empty(&self) -> bool {
        self.contents.snapshot.is_none() && self.contents.hard_state == HardState::default()
    }

    /// Index of the last entry, or of the snapshot when none follows it.
    pub fn last_index(&self) -> u64 {
        let snapshot = self.contents.snapshot.as_ref();
        let base = snapshot
            .and_then(|s| s.metadata.as_ref())
            .map_or(0, |m| m.index);
        base + self.contents.entries.len() as u64
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage")
            .field("metadata", &self.metadata)
            .field("hard_state", &self.contents.hard_state)
            .field("last_index", &self.last_index())
            .finish_non_exhaustive()
    }
}

/// What the wal thread writes to.
pub(crate) trait LogStore: Send {
    /// Appends entries, then the hard state; not synced.
    fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), StorageError>;

    /// Makes everything appended durable.
    fn sync(&mut self) -> Result<(), StorageError>;

    /// Saves a snapshot, taken or received, and its record; durable when it returns, with everything
    /// appended before. What only older snapshots needed may go.
    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError>;
}

struct DiskStore {
    wal: Wal,
    snapshotter: Snapshotter,
    snapshots_max: usize,
}

impl LogStore for DiskStore {
    fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), StorageError> {
        Ok(self.wal.append(hard_state, entries)?)
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(self.wal.sync()?)
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        // The file first, so that a recorded snapshot always has one.
        self.snapshotter.save(snapshot)?;
        self.wal.save_snapshot(&WalSnapshot {
            index: metadata.index,
            term: metadata.term,
            conf_state: metadata.conf_state,
        })?;
        self.wal.sync()?;
        self.wal.release_to(metadata.index)?;
        self.snapshotter.release_dbs(metadata.index)?;
        self.snapshotter.purge(self.snapshots_max)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use transport_core::ClusterId;

    use super::*;
    use crate::disk::fault::{FaultDisk, Plan};

    fn options(disk: &FaultDisk) -> StorageOptions {
        let recorder = Arc::new(metrics::NoopRecorder);
        StorageOptions {
            segment_bytes: 16 << 10,
            prepare: Prepare::Inline,
            ..StorageOptions::new(
                Arc::new(disk.clone()),
                "member/wal",
                "member/snap",
                recorder,
            )
        }
    }

    #[test]
    fn a_log_in_use_is_left_as_it_is() {
        let metadata = Metadata {
            node_id: MemberId(1),
            cluster_id: ClusterId(2),
        };
        let disk = FaultDisk::new(1);
        disk.create_dir(Path::new("member/snap")).expect("create");
        let mut first = Storage::create(&options(&disk), metadata).expect("create");
        first
            .bootstrap(&[(MemberId(1), Bytes::from_static(b"{}"))])
            .expect("bootstrap");
        let planted = [
            "member/snap/tmp-x",
            "member/snap/0000000000000001-0000000000000001.snap",
        ];
        for path in planted {
            disk.set_content(Path::new(path), b"being written")
                .expect("plant");
        }
        let second = Storage::open(&options(&disk)).expect_err("locked");
        assert!(second.to_string().contains("is locked"), "{second}");
        for path in planted {
            let content = disk.content(Path::new(path)).expect("still there");
            assert_eq!(content, b"being written");
        }
        drop(first);
        Storage::open(&options(&disk)).expect("open");
        let left = disk.list(Path::new("member/snap")).expect("list");
        assert_eq!(left, ["0000000000000001-0000000000000001.snap.broken"]);
    }

    #[test]
    fn an_interrupted_bootstrap_is_begun_again() {
        let metadata = Metadata {
            node_id: MemberId(1),
            cluster_id: ClusterId(2),
        };
        // Together longer than a sector, so that any part of them may survive.
        let members = [1, 2, 3].map(|id| (MemberId(id), Bytes::from(vec![b'x'; 300])));
        let (mut torn, mut whole) = (0, 0);
        for seed in 0..400 {
            let disk = FaultDisk::new(seed);
            disk.create_dir(Path::new("member/snap")).expect("create");
            let mut storage = Storage::create(&options(&disk), metadata).expect("create");
            disk.plan(Plan {
                stop_at: Some(disk.operations() + 1 + seed % 2),
                ..Plan::default()
            });
            storage
                .bootstrap(&members)
                .expect_err("the disk has stopped");
            drop(storage);

            let disk = disk.crash();
            let mut storage = Storage::open(&options(&disk)).expect("open");
            if storage.is_empty() {
                torn += u32::from(!storage.contents.entries.is_empty());
                storage.bootstrap(&members).expect("bootstrap");
                drop(storage);
                storage = Storage::open(&options(&disk)).expect("open");
            } else {
                whole += 1;
            }
            let (entries, hard_state) = bootstrap_entries(&members);
            assert_eq!(storage.contents.entries, entries);
            assert_eq!(storage.contents.hard_state, hard_state);
        }
        assert!(torn > 50 && whole > 5, "{torn} torn, {whole} whole");
    }
}
