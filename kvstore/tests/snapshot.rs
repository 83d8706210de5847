//! Whole databases: what a member sends, what another makes of it, and what Go's members say about the same rows.

mod common;

use std::{fs::File, io::BufWriter, path::Path, sync::Arc};

use common::*;
use kvstore::{
    ApplyError, OpenError, Store, StoreConfig,
    backend::{memory::MemoryBackend, redb::RedbBackend},
    import_bolt, import_snapshot,
    mvcc::KeyValueHash,
};
use transport_core::raftpb::{ConfState, SnapshotMetadata};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// (revision asked for, hash) from three members of a mixed cluster of 3.4.23 and 3.5.30.
fn vectors() -> Vec<(i64, u32)> {
    let text = std::fs::read_to_string(format!("{FIXTURES}/hashkv.txt")).unwrap();
    let mut vectors = Vec::new();
    let mut revision = 0;
    for line in text.lines() {
        if let Some(rev) = line.strip_prefix("rev ") {
            revision = rev.parse().unwrap();
        } else if let Some(rest) = line.strip_prefix(",\"hash\":") {
            let (hash, compact) = rest.split_once(',').unwrap();
            assert_eq!(compact, "\"compact_revision\":28");
            vectors.push((revision, hash.parse().unwrap()));
        }
    }
    assert_eq!(vectors.len(), 15);
    vectors
}

fn import(dir: &Path, name: &str) -> Arc<RedbBackend> {
    let to = dir.join("imported.redb");
    import_bolt(Path::new(&format!("{FIXTURES}/{name}")), &to).unwrap();
    Arc::new(RedbBackend::open(&to, 1 << 20).unwrap())
}

#[test]
fn hash_kv_is_that_of_gos_members() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_on(config(), import(dir.path(), "go34.db")).unwrap();
    let reader = store.reader();
    assert_eq!((reader.revision(), reader.compact_revision()), (35, 28));
    for (revision, hash) in vectors() {
        let (answer, current) = reader.hash_kv(revision).unwrap();
        let expected = KeyValueHash {
            hash,
            compact_revision: 28,
            revision: if revision == 0 { 35 } else { revision },
        };
        assert_eq!((answer, current), (expected, 35));
    }
    assert_eq!(reader.hash_kv(27), Err(ApplyError::Compacted));
    assert_eq!(reader.hash_kv(36), Err(ApplyError::FutureRevision));
}

/// The leases of the fixture's keys, its users and members, are there.
#[test]
fn a_database_of_go_is_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_on(config(), import(dir.path(), "go34.db")).unwrap();
    let reader = store.reader();
    assert!(store.applied().0 > 0);
    assert_eq!(reader.members().len(), 3);
    assert!(!reader.leases().read().is_empty());
    let attached = reader
        .leases()
        .read()
        .iter()
        .map(|(id, _)| id)
        .collect::<Vec<_>>();
    assert!(
        attached
            .iter()
            .any(|id| !reader.leases().read().keys(*id).is_empty())
    );
    let all = reader.range(&range_request("\0", "\0")).unwrap();
    assert!(all.count > 5);
    assert!(
        all.kvs
            .iter()
            .all(|kv| !kv.key.is_empty() && kv.version > 0)
    );
}

#[test]
fn hashes_do_not_depend_on_how_far_compaction_came() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::on(Arc::new(
        RedbBackend::open(&dir.path().join("a"), 1 << 20).unwrap(),
    ));
    for round in 0..50 {
        log.put(&format!("k{}", round % 9), &round.to_string());
        if round % 6 == 5 {
            log.delete(&format!("k{}", round % 4), "");
        }
    }
    log.compact(40).unwrap();
    // At once, in the middle of it, and when it is done.
    let revisions: Vec<i64> = (41..=log.store.reader().revision()).chain([0]).collect();
    let hashes = |log: &Log| -> Vec<u32> {
        let reader = log.store.reader();
        revisions
            .iter()
            .map(|revision| reader.hash_kv(*revision).unwrap().0.hash)
            .collect()
    };
    let first = hashes(&log);
    while log.store.reader().finished_compaction() < 40 {
        assert_eq!(hashes(&log), first);
    }
    assert_eq!(hashes(&log), first);
    // The hash the compaction itself stored covers everything since the compaction before.
    let (stored, _) = log.store.reader().hash_kv(40).unwrap();
    assert_eq!((stored.compact_revision, stored.revision), (-1, 40));
}

fn history(log: &mut Log) {
    for round in 0..200 {
        log.put(&format!("key{}", round % 40), &"v".repeat(round));
    }
    log.grant(77);
    log.compact(100).unwrap();
    log.delete("key1", "key3");
}

#[test]
fn an_image_installed_elsewhere_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut sender = Log::new();
    history(&mut sender);
    sender.store.flush().unwrap();
    let image = sender.store.image().unwrap();
    let mut metadata = image.snapshot().metadata.clone().unwrap();
    assert_eq!(metadata.index, sender.entries.len() as u64);
    metadata.conf_state = Some(ConfState {
        voters: vec![1, 2],
        ..Default::default()
    });
    let file = dir.path().join("sent.db");
    let written = image
        .write_bolt(&mut BufWriter::new(File::create(&file).unwrap()))
        .unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), written);

    let path = dir.path().join("store.redb");
    let receiver_config = StoreConfig {
        path: path.clone(),
        ..config()
    };
    let mut receiver = Store::open(receiver_config.clone()).unwrap();
    let old = Log {
        store: receiver,
        entries: Vec::new(),
    };
    let mut old = old;
    old.put("stale", "data");
    receiver = old.store;
    let reader = receiver.reader();
    let imported = dir.path().join("incoming.redb");
    import_snapshot(&file, &imported, image.snapshot()).unwrap();

    let wrong = SnapshotMetadata {
        index: 5,
        ..metadata.clone()
    };
    assert!(matches!(
        receiver.install(&imported, &wrong),
        Err(OpenError::IndexMismatch { expected: 5, .. })
    ));
    assert_eq!(
        reader.revision(),
        2,
        "a refused image leaves the store as it was"
    );
    receiver.install(&imported, &metadata).unwrap();
    assert!(!imported.exists());
    let expected = sender.store.reader().hash_kv(0).unwrap();
    assert_eq!(reader.hash_kv(0).unwrap(), expected);
    assert_eq!(reader.range(&range_request("stale", "")).unwrap().count, 0);
    assert_eq!(reader.conf_state().voters, [1, 2]);
    assert!(reader.leases().read().exists(77));
    assert_eq!(receiver.applied(), (metadata.index, metadata.term));
    assert_eq!(
        receiver
            .durable()
            .load(std::sync::atomic::Ordering::Acquire),
        metadata.index
    );

    // It goes on from there, and so does what it left on the disk.
    let mut receiver = Log {
        store: receiver,
        entries: sender.entries.clone(),
    };
    receiver.put("after", "1");
    assert_eq!(receiver.show(&range_request("after", "")), "after=1");
    receiver.store.close().unwrap();
    // A reader keeps the file.
    drop(reader);
    let reopened = Store::open(receiver_config).unwrap();
    assert_eq!(reopened.applied().0, metadata.index + 1);
    assert_eq!(reopened.reader().conf_state().voters, [1, 2]);
    assert_eq!(
        reopened
            .reader()
            .range(&range_request("after", ""))
            .unwrap()
            .count,
        1
    );
}

#[test]
fn a_bumped_revision_row_without_a_key_is_accepted() {
    // What `etcdutl snapshot restore --bump-revision --mark-compacted` leaves behind.
    use kvstore::backend::{Backend, Batch, Bucket};
    let backend = Arc::new(MemoryBackend::default());
    let mut batch = Batch::default();
    let row = |main: i64| kvstore::Revision::new(main, 0).row_key().to_vec();
    batch.put(Bucket::Key, row(1_000_000), Vec::new());
    batch.put(Bucket::Meta, "scheduledCompactRev", row(1_000_000));
    backend.commit(&batch).unwrap();
    let store = Store::open_on(config(), backend).unwrap();
    let reader = store.reader();
    assert_eq!(
        (reader.revision(), reader.compact_revision()),
        (1_000_000, 1_000_000)
    );
}

#[test]
fn a_damaged_row_is_refused_with_its_bucket() {
    use kvstore::backend::{Backend, Batch, Bucket};
    for (bucket, key, value) in [
        (Bucket::Key, &b"short"[..], &b""[..]),
        (
            Bucket::Key,
            &kvstore::Revision::new(2, 0).row_key()[..],
            &b"\x0a\x7f"[..],
        ),
        (Bucket::Meta, b"consistent_index", b"1"),
        (Bucket::Meta, b"finishedCompactRev", b"x"),
        (Bucket::Meta, b"confState", b"{"),
    ] {
        let backend = Arc::new(MemoryBackend::default());
        let mut batch = Batch::default();
        batch.put(bucket, key.to_vec(), value.to_vec());
        backend.commit(&batch).unwrap();
        let refused = Store::open_on(config(), backend).err().unwrap();
        assert!(
            matches!(&refused, OpenError::Damaged { bucket: at, .. } if *at == bucket.name()),
            "{refused}"
        );
    }
}
