//! The real log files on a disk that tears, forgets and fails, as a simulated member's log.

use std::{path::Path, sync::Arc};

use rand::{Rng, rngs::SmallRng};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Entry, HardState, Snapshot},
};

use super::store::Medium;
use crate::{
    Storage, StorageError, StorageOptions,
    disk::{
        Disk,
        fault::{FaultDisk, Plan},
    },
    persist::{WalTask, persist},
    storage::{Contents, LogStore},
    wal::{Metadata, Prepare},
};

/// A member's disk, and its log while it is open.
pub(crate) struct Files {
    disk: FaultDisk,
    open: Option<Box<dyn LogStore>>,
}

impl Files {
    /// A new log of `members`; empty for a member that joins.
    pub fn new(seed: u64, members: &[(MemberId, bytes::Bytes)]) -> Self {
        let disk = FaultDisk::new(seed);
        let made = disk.create_dir(Path::new("/member/snap"));
        assert!(made.is_ok());
        let mut storage = Storage::create(&options(&disk), METADATA).expect("an empty disk");
        if !members.is_empty() {
            storage.bootstrap(members).expect("an empty log");
        }
        Files { disk, open: None }
    }

    fn log(&mut self) -> &mut dyn LogStore {
        &mut **self.open.as_mut().expect("opened at boot")
    }
}

const METADATA: Metadata = Metadata {
    node_id: MemberId(1),
    cluster_id: ClusterId(1),
};

fn options(disk: &FaultDisk) -> StorageOptions {
    StorageOptions {
        segment_bytes: 8 << 10,
        prepare: Prepare::Inline,
        segments_max: 2,
        snapshots_max: 2,
        ..StorageOptions::new(
            Arc::new(disk.clone()),
            "/member/wal",
            "/member/snap",
            Arc::new(metrics::NoopRecorder),
        )
    }
}

impl LogStore for Files {
    fn append(
        &mut self,
        hard_state: Option<&HardState>,
        entries: &[Entry],
    ) -> Result<(), StorageError> {
        self.log().append(hard_state, entries)
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.log().sync()
    }

    fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
        self.log().save_snapshot(snapshot)
    }
}

impl Medium for Files {
    fn boot(&mut self, rng: &mut SmallRng) -> Contents {
        let storage =
            Storage::open(&options(&self.disk)).expect("a crash never makes a log unusable");
        self.open = Some(storage.store);
        if rng.random_range(0..3) == 0 {
            // This run ends with a write or sync that fails.
            let at = self.disk.operations() + rng.random_range(1..300);
            self.disk.plan(Plan {
                fail_at: Some((at, std::io::ErrorKind::StorageFull)),
                ..Plan::default()
            });
        }
        storage.contents
    }

    fn crash(&mut self, rng: &mut SmallRng, mut queued: Vec<WalTask>) {
        if rng.random() {
            self.disk.plan(Plan {
                stop_at: Some(self.disk.operations() + rng.random_range(1..8)),
                ..Plan::default()
            });
            // How far it comes does not matter: nobody hears of it.
            let _ = persist(self, &mut queued);
        }
        self.open = None;
        self.disk = self.disk.crash();
    }
}
