//! The write-ahead log through its public API: what is kept, cut, released, locked, repaired, refused.

mod support;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::prelude::*;
use raft_node::{
    disk::{
        Disk, RealDisk,
        fault::{FaultDisk, Plan},
    },
    wal::{self, Prepare, Wal, WalError, WalOptions},
};
use support::{Found, METADATA, Model, Origin, create, dir, entry, open, options, snapshot, state};
use transport_core::raftpb::Entry;

fn memory() -> (FaultDisk, Arc<dyn Disk>) {
    let disk = FaultDisk::new(7);
    (disk.clone(), Arc::new(disk))
}

fn names(disk: &Arc<dyn Disk>) -> Vec<String> {
    disk.list(dir()).expect("list")
}

fn path_of(name: &str) -> PathBuf {
    dir().join(name)
}

fn entries(term: u64, range: std::ops::RangeInclusive<u64>, len: usize) -> Vec<Entry> {
    range
        .map(|index| entry(term, index, vec![index as u8 | 1; len]))
        .collect()
}

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
    refused(wal.append(Some(&state(3, 1, 1)), &[]));
    refused(wal.save_snapshot(&wal::WalSnapshot {
        conf_state: None,
        ..snapshot(2, 1)
    }));
    wal.append(None, &entries(1, 3..=3, 10)).expect("append");
    wal.close().expect("close");
    let (_, replay) = open(&disk, 4096).expect("open");
    assert_eq!(replay.entries, entries(1, 1..=3, 10));
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

/// A log of two segments, closed; the offset where the last entry of the second begins, and where it ends.
struct Sample {
    disk: FaultDisk,
    last: PathBuf,
    entries: Vec<Entry>,
    last_entry: std::ops::Range<usize>,
}

fn sample() -> Sample {
    let (disk, shared) = memory();
    let mut wal = create(&shared, 2048).expect("create");
    let entries = [entries(1, 1..=19, 60), entries(1, 20..=20, 500)].concat();
    wal.append(Some(&state(1, 3, 9)), &entries[..9])
        .expect("append");
    wal.append(None, &entries[9..19]).expect("append");
    wal.sync().expect("sync");
    let name = names(&shared).pop().expect("a segment");
    let last = path_of(&name);
    let used = |disk: &FaultDisk| {
        let content = disk.content(&last).expect("content");
        let end = content.iter().rposition(|b| *b != 0).expect("records") + 1;
        end.next_multiple_of(8)
    };
    let begin = used(&disk);
    wal.append(None, &entries[19..]).expect("append");
    let end = used(&disk);
    wal.close().expect("close");
    assert_eq!(names(&shared).len(), 2);
    assert!(
        begin / 512 != (end - 1) / 512,
        "the last entry crosses a sector"
    );
    Sample {
        disk,
        last,
        entries,
        last_entry: begin..end,
    }
}

#[test]
fn a_log_cut_at_any_byte_of_its_last_record_loses_that_record_and_no_other() {
    let sample = sample();
    let whole = sample.disk.content(&sample.last).expect("content");
    for length in sample.last_entry.clone() {
        let (disk, shared) = memory();
        copy(&sample.disk, &disk);
        disk.set_content(&sample.last, &whole[..length])
            .expect("cut");
        let (mut wal, replay) = open(&shared, 2048).unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(replay.entries, sample.entries[..19], "{length}");
        let torn = length != sample.last_entry.start;
        assert_eq!(replay.repaired.is_some(), torn, "{length}");
        // What is written after a repair is found, and nothing else.
        wal.append(None, &[entry(2, 20, "new")]).expect("append");
        wal.close().expect("close");
        let (_, replay) = open(&shared, 2048).expect("open");
        assert_eq!(
            replay.entries.last(),
            Some(&entry(2, 20, "new")),
            "{length}"
        );
        assert!(replay.repaired.is_none());
    }
}

#[test]
fn a_record_whose_end_never_arrived_is_cut_off() {
    let sample = sample();
    let whole = sample.disk.content(&sample.last).expect("content");
    for from in sample.last_entry.clone().step_by(8) {
        let mut torn = whole.clone();
        torn[from..].fill(0);
        let (disk, shared) = memory();
        copy(&sample.disk, &disk);
        disk.set_content(&sample.last, &torn).expect("tear");
        let (_, replay) = open(&shared, 2048).unwrap_or_else(|e| panic!("{from}: {e}"));
        assert_eq!(replay.entries, sample.entries[..19], "{from}");
    }
}

#[test]
fn whatever_follows_a_torn_record_is_gone_after_the_repair() {
    let sample = sample();
    let mut content = sample.disk.content(&sample.last).expect("content");
    // The sector in which the last record begins was not written, the next one was.
    let begin = sample.last_entry.start;
    content[begin..begin.next_multiple_of(512)].fill(0);
    sample
        .disk
        .set_content(&sample.last, &content)
        .expect("tear");
    let shared: Arc<dyn Disk> = Arc::new(sample.disk.clone());
    let (wal, replay) = open(&shared, 2048).expect("open");
    assert_eq!(replay.entries, sample.entries[..19]);
    drop(wal);
    let content = sample.disk.crash().content(&sample.last).expect("content");
    assert!(content[begin..].iter().all(|byte| *byte == 0));
    assert_eq!(content.len(), 2048);
}

fn copy(from: &FaultDisk, to: &FaultDisk) {
    to.create_dir(dir()).expect("create");
    for name in Disk::list(from, dir()).expect("list") {
        let content = from.content(&path_of(&name)).expect("content");
        to.set_content(&path_of(&name), &content).expect("write");
    }
}

/// A flipped bit is refused with file and offset, or changes nothing; it never costs or alters a record.
#[test]
fn no_flipped_bit_is_misread() {
    let sample = sample();
    let shared: Arc<dyn Disk> = Arc::new(sample.disk.clone());
    let expected = open(&shared, 2048).expect("open").1;
    let mut refused = 0;
    for name in names(&shared) {
        let path = path_of(&name);
        let content = sample.disk.content(&path).expect("content");
        for bit in 0..content.len() * 8 {
            let mut flipped = content.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (disk, shared) = memory();
            copy(&sample.disk, &disk);
            disk.set_content(&path, &flipped).expect("flip");
            match open(&shared, 2048) {
                Ok((_, replay)) => {
                    assert_eq!(replay.entries, expected.entries, "{name} bit {bit}");
                    assert_eq!(replay.hard_state, expected.hard_state, "{name} bit {bit}");
                    assert_eq!(replay.snapshots, expected.snapshots, "{name} bit {bit}");
                }
                Err(WalError::Corrupt { file, .. }) => {
                    refused += 1;
                    // A segment's last crc is checked by the head of the next one.
                    let next = file == sample.last;
                    assert!(file == path || next, "{name} bit {bit}: {}", file.display());
                    assert_eq!(disk.content(&path).expect("content"), flipped);
                }
                Err(other) => panic!("{name} bit {bit}: {other}"),
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn a_torn_record_before_the_last_segment_is_corruption() {
    let sample = sample();
    let shared: Arc<dyn Disk> = Arc::new(sample.disk.clone());
    let first = path_of(&names(&shared)[0]);
    let content = sample.disk.content(&first).expect("content");
    for cut in [content.len() - 1, content.len() - 8, content.len() - 200] {
        sample
            .disk
            .set_content(&first, &content[..cut])
            .expect("cut");
        match open(&shared, 2048) {
            Err(WalError::Corrupt { .. }) => {}
            other => panic!("{cut}: {other:?}"),
        }
    }
    sample.disk.set_content(&first, &content).expect("restore");
    open(&shared, 2048).expect("open");
    sample.disk.remove(&first).expect("remove");
    assert!(matches!(
        Wal::open(shared, dir(), None, options(2048)),
        Err(WalError::SegmentNotFound { .. })
    ));
}

#[derive(Clone, Debug)]
enum Action {
    Append {
        back: u64,
        count: u64,
        len: usize,
        commit: bool,
    },
    Sync,
    Snapshot {
        back: u64,
    },
    Reopen {
        crash: bool,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (0..4u64, 0..6u64, 0..700usize, any::<bool>())
            .prop_map(|(back, count, len, commit)| Action::Append { back, count, len, commit }),
        2 => Just(Action::Sync),
        1 => (0..6u64).prop_map(|back| Action::Snapshot { back }),
        2 => any::<bool>().prop_map(|crash| Action::Reopen { crash }),
    ];
    proptest::collection::vec(action, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_equals_the_model(actions in actions(), seed: u64, small: bool) {
        let segment_bytes = if small { 1024 } else { 4096 };
        let mut disk = FaultDisk::new(seed);
        let mut shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut wal = create(&shared, segment_bytes).expect("create");
        let mut model = Model::default();
        let mut term = 1;
        for action in actions {
            let now = model.found();
            match action {
                Action::Append { back, count, len, commit } => {
                    let floor = now.hard_state.commit.max(now.start.index);
                    let from = (now.last_index() + 1).saturating_sub(back).max(floor + 1);
                    term += u64::from(from <= now.last_index());
                    let batch = if count == 0 { vec![] } else { entries(term, from..=from + count - 1, len) };
                    let last = batch.last().map_or(now.last_index(), |e| e.index);
                    let hard_state = commit.then(|| state(term, 1, last.max(now.hard_state.commit)));
                    wal.append(hard_state.as_ref(), &batch).expect("append");
                    model.append(hard_state.as_ref(), &batch);
                }
                Action::Sync => {
                    wal.sync().expect("sync");
                    model.acknowledge();
                }
                Action::Snapshot { back } => {
                    let index = now.hard_state.commit.saturating_sub(back);
                    if let Some(of) = now.entries.iter().find(|e| e.index == index) {
                        let taken = snapshot(index, of.term);
                        wal.save_snapshot(&taken).expect("save");
                        model.save_snapshot(&taken, Origin::Taken);
                        wal.sync().expect("sync");
                        model.acknowledge();
                        wal.release_to(index).expect("release");
                    }
                }
                Action::Reopen { crash } => {
                    if crash {
                        drop(wal);
                        disk = disk.crash();
                        shared = Arc::new(disk.clone());
                    } else {
                        wal.close().expect("close");
                        model.acknowledge();
                    }
                    let start = wal::snapshots(&*shared, dir()).expect("snapshots").pop();
                    let replay;
                    (wal, replay) = Wal::open(shared.clone(), dir(), start.clone(), options(segment_bytes)).expect("open");
                    model.restart(&Found::of(start, &replay)).map_err(TestCaseError::fail)?;
                }
            }
            prop_assert_eq!(wal.last_index(), model.found().last_index());
        }
    }
}
