//! Snapshot files: etcd's bytes, whole or not there, broken ones put aside, old ones removed.

mod support;

use std::{io, path::Path, sync::Arc};

use raft_node::{
    disk::{
        Disk, RealDisk,
        fault::{FaultDisk, Plan},
    },
    snap::{self, SnapError, SnapMetrics, Snapshotter},
};
use support::snapshot as recorded;
use transport_core::raftpb::{ConfState, Snapshot, SnapshotMetadata};

fn snapshot(index: u64, term: u64, data: &str) -> Snapshot {
    Snapshot {
        data: data.as_bytes().to_vec().into(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: vec![1, 2, 3],
                ..ConfState::default()
            }),
            index,
            term,
        }),
    }
}

fn memory() -> (FaultDisk, Snapshotter) {
    let disk = FaultDisk::new(3);
    disk.create_dir(Path::new("snap")).expect("create");
    let snapshotter = Snapshotter::new(Arc::new(disk.clone()), "snap", SnapMetrics::default());
    (disk, snapshotter)
}

fn names(disk: &FaultDisk) -> Vec<String> {
    disk.list(Path::new("snap")).expect("list")
}

/// A file written by etcd 3.5.30, with members removed.
#[test]
fn etcds_own_file_is_read() {
    let bytes = include_bytes!("fixtures/member.snap");
    let (disk, snapshotter) = memory();
    let path = Path::new("snap/0000000000000002-000000000000003e.snap");
    disk.set_content(path, bytes).expect("write");
    let found = snapshotter
        .newest(&[recorded(0, 0), recorded(62, 2)])
        .expect("newest")
        .expect("a snapshot");
    let metadata = found.metadata.clone().expect("metadata");
    assert_eq!((metadata.term, metadata.index), (2, 62));
    let voters = metadata.conf_state.expect("configuration").voters;
    let ids = [
        0x5696_c2ec_878f_0ce2,
        0xa0d9_fd87_f918_8517,
        0xbab3_44ef_759b_e6ee_u64,
    ];
    assert_eq!(voters, ids);
    assert!(found.data.starts_with(b"{\"Root\":{\"Path\":\"/\""));
    // Saved again it is read as the same, under the same name.
    let (copy, again) = memory();
    again.save(&found).expect("save");
    assert_eq!(
        names(&copy),
        [path.file_name().expect("name").to_string_lossy()]
    );
    assert_eq!(
        again.newest(&[recorded(62, 2)]).expect("newest"),
        Some(found)
    );
}

#[test]
fn the_newest_recorded_snapshot_is_found() {
    let (_, snapshotter) = memory();
    assert_eq!(snapshotter.newest(&[recorded(0, 0)]).expect("newest"), None);
    snapshotter
        .save(&Snapshot::default())
        .expect("nothing to save");
    for (index, term) in [(5, 1), (300, 2), (20, 2)] {
        snapshotter
            .save(&snapshot(index, term, "{}"))
            .expect("save");
    }
    let newest = |records: &[(u64, u64)]| {
        let records: Vec<_> = records.iter().map(|(i, t)| recorded(*i, *t)).collect();
        let found = snapshotter.newest(&records).expect("newest");
        found.and_then(|s| s.metadata).map(|m| (m.index, m.term))
    };
    assert_eq!(newest(&[(5, 1), (20, 2), (300, 2)]), Some((300, 2)));
    assert_eq!(newest(&[(5, 1), (20, 2)]), Some((20, 2)));
    assert_eq!(newest(&[(5, 2), (20, 1)]), None);
}

#[test]
fn broken_files_are_put_aside_and_an_older_one_is_used() {
    let (disk, snapshotter) = memory();
    snapshotter.save(&snapshot(5, 1, "old")).expect("save");
    snapshotter.save(&snapshot(9, 1, "new")).expect("save");
    let path = Path::new("snap/0000000000000001-0000000000000009.snap");
    let whole = disk.content(path).expect("content");
    let records = [recorded(5, 1), recorded(9, 1)];
    let mut harmless = 0;
    for bit in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        disk.set_content(path, &flipped).expect("flip");
        let found = snapshotter.newest(&records).expect("newest");
        if found == Some(snapshot(9, 1, "new")) {
            // Bits of the crc's varint above the 32nd say nothing.
            harmless += 1;
            continue;
        }
        assert_eq!(found, Some(snapshot(5, 1, "old")), "bit {bit}");
        let aside = Path::new("snap/0000000000000001-0000000000000009.snap.broken");
        assert_eq!(disk.content(aside).expect("put aside"), flipped);
    }
    assert!(harmless <= 8, "{harmless}");
    for length in 0..whole.len() {
        disk.set_content(path, &whole[..length]).expect("cut");
        let error = snap::read(&disk, path).expect_err("cut");
        assert!(
            matches!(error, SnapError::Broken { .. }),
            "{length}: {error}"
        );
    }
}

/// Whatever operation of a save is the last one: the newest file is the old one or the new one, whole; the
/// new one if the save was said to be done.
#[test]
fn a_save_is_whole_or_not_at_all() {
    let records = [recorded(5, 1), recorded(9, 2)];
    let (old, new) = (snapshot(5, 1, "old"), snapshot(9, 2, &"new".repeat(700)));
    let mut found_new = 0;
    for seed in 0..600 {
        let disk = FaultDisk::new(seed);
        disk.create_dir(Path::new("snap")).expect("create");
        let open = |disk: &FaultDisk| {
            Snapshotter::new(Arc::new(disk.clone()), "snap", SnapMetrics::default())
        };
        open(&disk).save(&old).expect("save");
        let at = disk.operations() + 1 + seed % 6;
        disk.plan(if seed % 2 == 0 {
            Plan {
                stop_at: Some(at),
                ..Plan::default()
            }
        } else {
            Plan {
                fail_at: Some((at, io::ErrorKind::StorageFull)),
                ..Plan::default()
            }
        });
        let saved = open(&disk).save(&new).is_ok();
        let after = open(&disk.crash());
        after.remove_temporaries().expect("clean");
        let found = after.newest(&records).expect("newest").expect("one");
        assert!(found == new || found == old && !saved, "seed {seed}");
        found_new += u32::from(found == new);
    }
    assert!((50..550).contains(&found_new), "{found_new}");
}

#[test]
fn old_files_databases_and_leftovers_are_removed() {
    let (disk, snapshotter) = memory();
    for index in 1..=7 {
        snapshotter.save(&snapshot(index, 1, "{}")).expect("save");
        disk.set_content(&snapshotter.db_path(index), b"db")
            .expect("write");
    }
    for name in ["tmp123", "db.tmp.45", "db", "note", "0x.snap.db"] {
        disk.set_content(&Path::new("snap").join(name), b"x")
            .expect("write");
    }
    assert!(snapshotter.has_db(7).expect("exists"));
    assert!(!snapshotter.has_db(8).expect("exists"));
    assert_eq!(
        snapshotter.db_path(0xabc),
        Path::new("snap/0000000000000abc.snap.db")
    );
    snapshotter.remove_temporaries().expect("clean");
    snapshotter.release_dbs(6).expect("release");
    snapshotter.purge(0).expect("purge");
    assert_eq!(names(&disk).len(), 7 + 2 + 3);
    snapshotter.purge(5).expect("purge");
    let left = names(&disk);
    let expected: Vec<String> = (3..=7)
        .map(|index| format!("0000000000000001-{index:016x}.snap"))
        .chain(["0000000000000006.snap.db", "0000000000000007.snap.db"].map(String::from))
        .chain(["0x.snap.db", "db", "note"].map(String::from))
        .collect();
    assert_eq!(left.len(), expected.len());
    assert!(expected.iter().all(|name| left.contains(name)), "{left:?}");
}

#[test]
fn the_real_disk_does_it_too() {
    let home = tempfile::tempdir().expect("tempdir");
    let dir = home.path().join("member/snap");
    RealDisk.create_dir(&dir).expect("create");
    let snapshotter = Snapshotter::new(Arc::new(RealDisk), &dir, SnapMetrics::default());
    let saved = snapshot(300, 7, "{}");
    snapshotter.save(&saved).expect("save");
    assert_eq!(
        RealDisk.list(&dir).expect("list"),
        ["0000000000000007-000000000000012c.snap"]
    );
    assert_eq!(
        snapshotter.newest(&[recorded(300, 7)]).expect("newest"),
        Some(saved)
    );
}
