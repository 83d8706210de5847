//! The write-ahead log through its public API: what is kept, cut, released, locked, repaired, refused.

mod support;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
};

use metrics::{
    Counter, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

use raft_node::{
    disk::{Disk, RealDisk, fault::Plan},
    wal::{self, Prepare, Wal, WalError, WalMetrics, WalOptions},
};
use support::{
    METADATA, create, dir, entries, entry, memory, names, open, options, path_of, snapshot, state,
};

#[test]
fn a_new_log_is_empty_and_starts_with_the_snapshot_at_zero() {
    let (_, disk) = memory();
    assert!(!wal::exists(&*disk, dir()).expect("exists"));
    create(&disk, 4096).expect("create").close().expect("close");
    assert!(wal::exists(&*disk, dir()).expect("exists"));
    assert!(matches!(create(&disk, 4096), Err(WalError::Exists { .. })));
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.metadata, METADATA);
    assert_eq!(replay.snapshots, [snapshot(0, 0)]);
    assert!(replay.entries.is_empty() && replay.repaired.is_none());
    assert_eq!(replay.hard_state, state(0, 0, 0));
}

#[test]
fn what_is_synced_is_found_again() {
    let (disk, shared) = memory();
    let mut wal = create(&shared, 4096).expect("create");
    wal.append(Some(&state(1, 2, 0)), &entries(1, 1..=3, 10))
        .expect("append");
    assert!(wal.is_unsynced());
    wal.sync().expect("sync");
    assert!(!wal.is_unsynced());
    drop(wal);
    let disk: Arc<dyn Disk> = Arc::new(disk.crash());
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 1..=3, 10));
    assert_eq!(replay.hard_state, state(1, 2, 0));
}

#[test]
fn an_earlier_index_replaces_the_rest_of_the_log() {
    let (_, disk) = memory();
    let mut wal = create(&disk, 4096).expect("create");
    wal.append(Some(&state(1, 1, 1)), &entries(1, 1..=5, 10))
        .expect("append");
    wal.append(None, &entries(2, 3..=3, 10)).expect("append");
    assert_eq!(wal.last_index(), 3);
    wal.close().expect("close");
    let (_, replay) = open(&disk, 4096).expect("open");
    let expected = [entries(1, 1..=2, 10), entries(2, 3..=3, 10)].concat();
    assert_eq!(replay.entries, expected);
}

#[test]
fn what_would_make_the_log_unreadable_is_refused_and_the_log_goes_on() {
    let (_, disk) = memory();
    let mut wal = create(&disk, 4096).expect("create");
    wal.append(Some(&state(3, 1, 2)), &entries(1, 1..=2, 10))
        .expect("append");
    let refused = |result| assert!(matches!(result, Err(WalError::Refused(_))), "{result:?}");
    refused(wal.append(None, &entries(1, 4..=5, 10)));
    refused(wal.append(None, &[entry(1, 3, "a"), entry(1, 5, "b")]));
    refused(wal.append(None, &[entry(1, 0, "a")]));
    refused(wal.append(Some(&state(2, 1, 2)), &[]));
    refused(wal.save_snapshot(&wal::WalSnapshot {
        conf_state: None,
        ..snapshot(2, 1)
    }));
    // A commit index that a snapshot has raised meanwhile is no reason to refuse.
    wal.append(Some(&state(3, 1, 1)), &entries(1, 3..=3, 10))
        .expect("append");
    wal.close().expect("close");
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 1..=3, 10));
    assert_eq!(replay.hard_state, state(3, 1, 2));
}

#[test]
fn a_full_segment_is_cut_and_the_next_one_carries_on() {
    let (disk, shared) = memory();
    let mut wal = create(&shared, 4096).expect("create");
    for index in 1..=40 {
        wal.append(
            Some(&state(1, 1, index - 1)),
            &entries(1, index..=index, 300),
        )
        .expect("append");
    }
    wal.sync().expect("sync");
    let segments = names(&shared);
    assert_eq!(segments.len(), 4, "{segments:?}");
    assert_eq!(segments[0], "0000000000000000-0000000000000000.wal");
    assert!(segments[1].starts_with("0000000000000001-"));
    let sizes: Vec<_> = segments
        .iter()
        .map(|name| disk.content(&path_of(name)).expect("content").len())
        .collect();
    assert!(
        sizes[..3].iter().all(|size| (3500..4096).contains(size)),
        "{sizes:?}"
    );
    assert_eq!(sizes[3], 4096, "prepared in full");
    drop(wal);
    let (mut wal, replay) = open(&shared, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 1..=40, 300));
    assert_eq!(replay.hard_state, state(1, 1, 39));
    // Replays only what is after the snapshot, from the segment that holds it.
    wal.save_snapshot(&snapshot(30, 1)).expect("save");
    wal.close().expect("close");
    let (wal, replay) = open(&shared, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 31..=40, 300));
    assert_eq!(wal.last_index(), 40);
    assert_eq!(replay.snapshots, [snapshot(30, 1)]);
}

#[test]
fn a_batch_larger_than_a_segment_makes_a_larger_segment() {
    let (_, disk) = memory();
    let mut wal = create(&disk, 4096).expect("create");
    wal.append(None, &entries(1, 1..=1, 10)).expect("append");
    wal.append(None, &entries(1, 2..=4, 3000)).expect("append");
    wal.append(None, &entries(1, 5..=5, 10)).expect("append");
    wal.close().expect("close");
    assert_eq!(names(&disk).len(), 3);
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.entries.len(), 5);
}

#[test]
fn released_segments_go_when_there_are_too_many() {
    let (_, disk) = memory();
    create(&disk, 4096).expect("create").close().expect("close");
    let limited = WalOptions {
        segments_max: 2,
        ..options(4096)
    };
    let (mut wal, _) = Wal::open(disk.clone(), dir(), None, limited.clone()).expect("open");
    for index in 1..=60 {
        wal.append(Some(&state(1, 1, index)), &entries(1, index..=index, 300))
            .expect("append");
    }
    wal.save_snapshot(&snapshot(50, 1)).expect("save");
    wal.sync().expect("sync");
    assert_eq!(names(&disk).len(), 6);
    wal.release_to(50).expect("release");
    let left = names(&disk);
    assert_eq!(left.len(), 2, "{left:?}");
    wal.close().expect("close");
    assert!(matches!(
        Wal::open(disk.clone(), dir(), None, limited.clone()),
        Err(WalError::SegmentNotFound { .. })
    ));
    assert_eq!(
        wal::snapshots(&*disk, dir()).expect("snapshots"),
        [snapshot(50, 1)]
    );
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 51..=60, 300));
}

#[test]
fn only_a_recorded_committed_snapshot_is_a_start() {
    let (_, disk) = memory();
    let mut wal = create(&disk, 4096).expect("create");
    wal.append(Some(&state(1, 1, 3)), &entries(1, 1..=5, 10))
        .expect("append");
    wal.save_snapshot(&snapshot(3, 1)).expect("save");
    wal.close().expect("close");
    let from = |start| Wal::open(disk.clone(), dir(), Some(start), options(4096)).err();
    assert!(matches!(
        from(snapshot(2, 1)),
        Some(WalError::SnapshotNotFound { index: 2, term: 1 })
    ));
    assert!(matches!(
        from(snapshot(3, 2)),
        Some(WalError::SnapshotMismatch {
            index: 3,
            term: 2,
            found: 1
        })
    ));
    assert!(matches!(
        wal::verify(&*disk, dir(), Some(snapshot(3, 2))),
        Err(WalError::SnapshotMismatch { .. })
    ));
    assert_eq!(
        wal::verify(&*disk, dir(), Some(snapshot(3, 1))).expect("verify"),
        state(1, 1, 3)
    );
}

#[test]
fn a_received_snapshot_replaces_a_log_that_disagrees() {
    let (_, disk) = memory();
    let mut wal = create(&disk, 4096).expect("create");
    wal.append(Some(&state(1, 1, 2)), &entries(1, 1..=9, 10))
        .expect("append");
    wal.save_snapshot(&snapshot(5, 3)).expect("save");
    wal.close().expect("close");
    let (mut wal, replay) = open(&disk, 4096).expect("open");
    assert_eq!(
        replay.hard_state,
        state(3, 0, 5),
        "the snapshot is committed"
    );
    assert!(replay.entries.is_empty(), "{:?}", replay.entries);
    assert_eq!(wal.last_index(), 5);
    wal.append(None, &entries(3, 6..=6, 10)).expect("append");
    wal.close().expect("close");
    assert_eq!(
        open(&disk, 4096).expect("open").1.entries,
        entries(3, 6..=6, 10)
    );
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_claimed_any_more() {
    for (ahead, kind) in [(1, io::ErrorKind::StorageFull), (2, io::ErrorKind::Other)] {
        let (disk, shared) = memory();
        let mut wal = create(&shared, 4096).expect("create");
        disk.plan(Plan {
            fail_at: Some((disk.operations() + ahead, kind)),
            ..Plan::default()
        });
        let error = wal
            .append(None, &entries(1, 1..=1, 10))
            .and_then(|()| wal.sync())
            .expect_err("injected");
        assert!(matches!(&error, WalError::Io { source, .. } if source.kind() == kind));
        assert!(matches!(wal.sync(), Err(WalError::Failed)));
        assert!(matches!(wal.append(None, &[]), Err(WalError::Failed)));
        assert!(matches!(
            wal.save_snapshot(&snapshot(0, 0)),
            Err(WalError::Failed)
        ));
        assert!(matches!(wal.release_to(1), Err(WalError::Failed)));
        assert!(matches!(wal.close(), Err(WalError::Failed)));
    }
}

#[test]
fn a_disk_that_fills_up_while_the_next_segment_is_made_is_reported_at_the_cut() {
    let (disk, shared) = memory();
    create(&shared, 4096)
        .expect("create")
        .close()
        .expect("close");
    let background = WalOptions {
        prepare: Prepare::Background,
        ..options(4096)
    };
    disk.plan(Plan {
        // Open: write and sync the segment, sync two directories; then the thread's create.
        fail_at: Some((disk.operations() + 5, io::ErrorKind::StorageFull)),
        ..Plan::default()
    });
    let failing = disk.operations() + 5;
    let (mut wal, _) = Wal::open(shared, dir(), None, background).expect("open");
    while disk.operations() < failing {
        std::thread::yield_now();
    }
    wal.append(None, &entries(1, 1..=1, 3000)).expect("append");
    let error = wal
        .append(None, &entries(1, 2..=2, 3000))
        .expect_err("no segment");
    assert!(
        matches!(&error, WalError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert!(matches!(wal.sync(), Err(WalError::Failed)));
}

#[test]
fn the_real_disk_keeps_a_log_private_locked_and_tidy() {
    let home = tempfile::tempdir().expect("tempdir");
    let dir = home.path().join("member/wal");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    disk.create_dir(&home.path().join("member"))
        .expect("create");
    let background = WalOptions {
        prepare: Prepare::Background,
        segments_max: 3,
        ..options(256 << 10)
    };
    let mut wal = Wal::create(disk.clone(), &dir, METADATA, background.clone()).expect("create");
    assert!(matches!(
        Wal::open(disk.clone(), &dir, None, background.clone()),
        Err(WalError::Locked { .. })
    ));
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&home.path().join("member")), 0o700);
    // The largest payloads stay slices of the read buffer, the small ones are copied.
    let batch = |n: u64| {
        let len = if n.is_multiple_of(7) { 40_000 } else { 3000 };
        entries(1, n * 4 + 1..=n * 4 + 4, len)
    };
    for n in 0..200 {
        wal.append(Some(&state(1, 1, n * 4)), &batch(n))
            .expect("append");
        wal.sync().expect("sync");
    }
    wal.save_snapshot(&snapshot(790, 1)).expect("save");
    wal.sync().expect("sync");
    wal.release_to(790).expect("release");
    wal.close().expect("close");
    let names = disk.list(&dir).expect("list");
    assert!(
        names.len() <= 3 && names.iter().all(|n| n.ends_with(".wal")),
        "{names:?}"
    );
    for name in &names {
        assert_eq!(mode(&dir.join(name)), 0o600);
    }
    let (wal, replay) =
        Wal::open(disk.clone(), &dir, Some(snapshot(790, 1)), background).expect("open");
    let all: Vec<_> = (0..200).flat_map(batch).collect();
    assert_eq!(replay.entries, all[790..]);
    drop(wal);
    assert!(
        disk.list(&dir)
            .expect("list")
            .iter()
            .all(|n| n.ends_with(".wal"))
    );
}

#[test]
fn a_log_is_not_created_over_somebodys_files() {
    let (disk, shared) = memory();
    disk.create_dir(dir()).expect("create");
    disk.set_content(&path_of("0.tmp"), b"half").expect("write");
    disk.set_content(&path_of("0.wal.broken"), b"evidence")
        .expect("write");
    assert!(matches!(
        create(&shared, 4096),
        Err(WalError::Exists { .. })
    ));
    disk.remove(&path_of("0.wal.broken")).expect("remove");
    create(&shared, 4096).expect("create");
    assert_eq!(names(&shared).len(), 1);
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let (disk, shared) = memory();
    disk.create_dir(Path::new("member")).expect("create");
    disk.create_dir(Path::new("member/wal.tmp"))
        .expect("create");
    create(&shared, 4096)
        .expect("create")
        .close()
        .expect("close");
    for name in ["0000000000000001.tmp", "0.tmp", "kept.txt"] {
        disk.set_content(&path_of(name), b"half").expect("write");
    }
    open(&shared, 4096).expect("open");
    let left = names(&shared);
    assert_eq!(left, ["0000000000000000-0000000000000000.wal", "kept.txt"]);
    assert!(!disk.exists(Path::new("member/wal.tmp")).expect("exists"));
}

/// Counts what is recorded under each name.
#[derive(Clone, Default)]
struct Counting(Arc<Mutex<BTreeMap<String, (u64, f64)>>>);

struct Slot(String, Counting);

impl Slot {
    fn add(&self, value: f64) {
        let mut slots = self.1.0.lock().expect("not poisoned");
        let slot = slots.entry(self.0.clone()).or_default();
        *slot = (slot.0 + 1, slot.1 + value);
    }
}

impl GaugeFn for Slot {
    fn increment(&self, value: f64) {
        self.add(value);
    }
    fn decrement(&self, _: f64) {}
    fn set(&self, _: f64) {}
}

impl HistogramFn for Slot {
    fn record(&self, value: f64) {
        self.add(value);
    }
}

impl Recorder for Counting {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(Arc::new(Slot(key.name().into(), self.clone())))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Slot(key.name().into(), self.clone())))
    }
}

#[test]
fn writes_and_syncs_are_measured_under_etcds_names() {
    let (_, disk) = memory();
    create(&disk, 4096).expect("create").close().expect("close");
    let counting = Counting::default();
    let measured = WalOptions {
        metrics: WalMetrics::register(&counting),
        ..options(4096)
    };
    let (mut wal, _) = Wal::open(disk, dir(), None, measured).expect("open");
    for index in 1..=3 {
        wal.append(None, &entries(1, index..=index, 100))
            .expect("append");
    }
    wal.sync().expect("sync");
    wal.sync().expect("nothing to do");
    let seen = counting.0.lock().expect("not poisoned");
    let count = |name: &str| seen.get(name).copied().unwrap_or_default();
    assert_eq!(count("etcd_disk_wal_write_duration_seconds").0, 3);
    assert_eq!(count("etcd_disk_wal_fsync_duration_seconds").0, 1);
    assert_eq!(count("etcd_disk_wal_write_bytes_total"), (3, 3.0 * 128.0));
}
