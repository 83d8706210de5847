//! Databases go between Go's members and ours, and come back the same.
//!
//! `go34.db` and `bulk.db` are databases of a 3.4.23 and a 3.5.30 member of one cluster, `go36-snapshot.db` is what
//! `etcdctl snapshot save` of 3.6.16 made of a small one with a learner, a lease, a role, users and a compaction.

use std::{
    fs::{self, File},
    io::{Cursor, Seek, SeekFrom, Write},
    ops::{Bound, ControlFlow},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use kvstore::{
    ImportError, Imported, Store, StoreConfig,
    backend::{Backend, Batch, Bucket, View, memory::MemoryBackend, redb::RedbBackend},
    bolt::{
        read::{BoltError, BoltFile, ReadAt},
        write::BoltWriter,
    },
    export::write_bolt,
    import::import_into,
    import_bolt, import_snapshot,
    membership::Membership,
    v2store,
    version::Version,
};
use proptest::prelude::*;
use transport_core::{
    MemberId,
    raftpb::{Snapshot, SnapshotMetadata},
};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn rows_of<S: ReadAt>(file: &BoltFile<S>) -> Vec<(String, Rows)> {
    let names = file.buckets().map(|name| name.to_vec());
    let names: Vec<_> = names.collect();
    let rows = |name: Vec<u8>| {
        let mut rows = Rows::new();
        file.scan(&name, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        (String::from_utf8(name).unwrap(), rows)
    };
    names.into_iter().map(rows).collect()
}

fn view_rows(view: &dyn View, bucket: Bucket) -> Rows {
    let mut rows = Rows::new();
    let everything = (Bound::Unbounded, Bound::Unbounded);
    view.scan(bucket, everything, &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

fn exported(view: &dyn View) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let len = write_bolt(view, &mut file).unwrap();
    assert_eq!(len, file.get_ref().len() as u64);
    file.into_inner()
}

/// Imports a fixture and opens a store on it.
fn imported(name: &str) -> (tempfile::TempDir, Imported, Store) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let imported = import_bolt(&fixture(name), &path).unwrap();
    let store = Store::open(StoreConfig::new(path)).unwrap();
    (dir, imported, store)
}

#[test]
fn what_go_wrote_is_served_with_its_checksums() {
    // What etcdctl endpoint hashkv said of each, at the current revision.
    for (name, index, term, rows, hash, compacted, revision) in [
        ("go34.db", 62, 0, 47, 3_468_069_608, 28, 35),
        ("bulk.db", 62, 2, 49, 3_468_069_608, 28, 35),
        ("go36-snapshot.db", 27, 2, 27, 937_567_514, 6, 13),
    ] {
        let (_dir, imported, store) = imported(name);
        assert_eq!((imported.consistent_index, imported.term), (index, term));
        assert_eq!(imported.rows, rows, "{name}");
        assert_eq!(store.applied().0, index);
        let (answer, current) = store.reader().hash_kv(0).unwrap();
        assert_eq!(
            (answer.hash, answer.compact_revision, current),
            (hash, compacted, revision),
            "{name}"
        );
    }
}

#[test]
fn what_go_wrote_comes_back_the_same() {
    for name in ["bulk.db", "go36-snapshot.db"] {
        let (_dir, _, store) = imported(name);
        let image = store.image().unwrap();
        let mut back = Cursor::new(Vec::new());
        let len = image.write_bolt(&mut back).unwrap();
        assert_eq!(len % 4096, 0);
        let back = back.into_inner();
        let back = BoltFile::from_source(&back[..]).unwrap();
        let theirs = BoltFile::open(&fixture(name)).unwrap();
        assert_eq!(rows_of(&back), rows_of(&theirs), "{name}");
        assert_eq!(image.index(), store.applied().0);
    }
}

#[test]
fn membership_and_configuration_come_with_the_database() {
    let (_dir, _, store) = imported("go36-snapshot.db");
    let reader = store.reader();
    let members: Vec<_> = reader.members().into_iter().collect();
    let names: Vec<_> = members
        .iter()
        .map(|one| (&one.name[..], one.is_learner))
        .collect();
    assert_eq!(names, [("n0", false), ("", true)]);
    assert_eq!(reader.cluster_version(), Some(Version::new(3, 6, 0)));
    let conf_state = reader.conf_state();
    assert_eq!(conf_state.voters, [443_629_905_751_424_238]);
    assert_eq!(conf_state.learners, [14_962_494_521_102_678_662]);
    // What 3.5 and 3.6 will read is the same.
    let document = &store.image().unwrap().snapshot().data.clone();
    assert_eq!(&v2store::parse(document).unwrap(), &*reader.membership());
}

#[test]
fn a_database_that_was_sent_is_installed_as_it_is() {
    // Written where a snapshot's body would lie, in the middle of a file.
    let (dir, _, store) = imported("go36-snapshot.db");
    let sent = dir.path().join("sent");
    let mut file = File::create(&sent).unwrap();
    file.write_all(&[7; 333]).unwrap();
    let len = store.image().unwrap().write_bolt(&mut file).unwrap();
    assert_eq!(file.stream_position().unwrap(), 333 + len);
    file.seek(SeekFrom::Start(0)).unwrap();
    let received = dir.path().join("received");
    fs::write(&received, &fs::read(&sent).unwrap()[333..]).unwrap();

    let path = dir.path().join("imported");
    import_bolt(&received, &path).unwrap();
    let mut other = Store::open(StoreConfig::new(dir.path().join("other"))).unwrap();
    let metadata = SnapshotMetadata {
        conf_state: Some(store.reader().conf_state().as_ref().clone()),
        index: 27,
        term: 2,
    };
    other.install(&path, &metadata).unwrap();
    assert_eq!(
        other.reader().hash_kv(0).unwrap(),
        store.reader().hash_kv(0).unwrap()
    );
    assert_eq!(
        other.reader().hash().unwrap(),
        store.reader().hash().unwrap()
    );
}

#[test]
fn the_schema_has_a_version_from_cluster_version_3_6_on() {
    for (cluster, stored, expected) in [
        (None, None, None),
        (None, Some("3.6.0"), None),
        (Some("3.5.0"), None, None),
        (Some("3.5.0"), Some("3.6.0"), None),
        (Some("3.6.0"), None, Some("3.6.0")),
        (Some("3.6.0"), Some("3.6.0"), Some("3.6.0")),
        (Some("3.7.0"), Some("3.6.0"), Some("3.7.0")),
    ] {
        let backend = MemoryBackend::default();
        let mut batch = Batch::default();
        for key in ["consistent_index", "confState", "term", "zzz"] {
            batch.put(Bucket::Meta, key, "12345678");
        }
        if let Some(stored) = stored {
            batch.put(Bucket::Meta, "storageVersion", stored);
        }
        if let Some(cluster) = cluster {
            batch.put(Bucket::Cluster, "clusterVersion", cluster);
        }
        backend.commit(&batch).unwrap();
        let file = exported(&*backend.view().unwrap());
        let file = BoltFile::from_source(&file[..]).unwrap();
        let buckets = rows_of(&file);
        let names: Vec<_> = buckets.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, Bucket::ALL.map(Bucket::name));
        let (_, meta) = buckets.last().unwrap();
        let version = meta.iter().find(|(key, _)| key == b"storageVersion");
        let version = version.map(|(_, text)| String::from_utf8(text.clone()).unwrap());
        assert_eq!(version.as_deref(), expected, "{cluster:?} {stored:?}");
        assert_eq!(meta.len(), 4 + usize::from(expected.is_some()));
    }
}

#[test]
fn a_cluster_version_that_is_none_is_not_sent_on() {
    let backend = MemoryBackend::default();
    let mut batch = Batch::default();
    batch.put(Bucket::Cluster, "clusterVersion", "three");
    backend.commit(&batch).unwrap();
    let error = write_bolt(&*backend.view().unwrap(), &mut Cursor::new(Vec::new())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

type Row<'a> = (&'a [u8], &'a [u8]);

fn bolt(buckets: &[(&str, &[Row<'_>])]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let mut writer = BoltWriter::new(&mut file).unwrap();
    for (name, rows) in buckets {
        writer.bucket(name.as_bytes()).unwrap();
        for (key, value) in *rows {
            writer.row(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    file.into_inner()
}

#[test]
fn a_file_that_is_no_database_leaves_nothing_behind() {
    let index: (&[u8], &[u8]) = (b"consistent_index", &[0, 0, 0, 0, 0, 0, 0, 9]);
    let half = {
        let mut rows = bolt(&[
            ("key", &[(b"k", &[1; 5000]), (b"l", &[2; 5000])]),
            ("meta", &[index]),
        ]);
        // The second leaf says it is another: the first is imported by then.
        let second = (2..)
            .find(|page| rows[page * 4096] == *page as u8 && *page > 3)
            .unwrap();
        rows[second * 4096] ^= 0x40;
        rows
    };
    let cases: [(&str, Vec<u8>); 7] = [
        ("neither of its meta pages", b"no database".repeat(10_000)),
        ("neither of its meta pages", Vec::new()),
        ("no bucket key", bolt(&[("meta", &[index])])),
        ("no bucket meta", bolt(&[("key", &[])])),
        (
            "cut short",
            fs::read(fixture("go34.db")).unwrap()[..20_000].to_vec(),
        ),
        ("damaged at page", half),
        (
            "not 8 bytes",
            bolt(&[("key", &[]), ("meta", &[(b"consistent_index", b"9")])]),
        ),
    ];
    for (reason, bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, bytes).unwrap();
        let error = import_bolt(&from, &to).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{reason}: {left:?}");
    }
}

#[test]
fn a_destination_that_is_taken_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::write(&to, "something").unwrap();
    let error = import_bolt(&fixture("go34.db"), &to).unwrap_err();
    assert!(matches!(error, ImportError::Exists(path) if path == to));
    assert_eq!(fs::read(&to).unwrap(), b"something");
    let error = import_bolt(&dir.path().join("nothing"), &dir.path().join("other")).unwrap_err();
    assert!(matches!(error, ImportError::Source(BoltError::Io(_))));
}

/// Each fills a file of its own, so that neither takes the other's for what it made.
#[test]
fn imports_to_one_place_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let imports: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| import_bolt(&fixture("go34.db"), &to)))
            .collect();
        imports
            .into_iter()
            .map(|import| import.join().unwrap())
            .collect()
    });
    assert!(outcomes.iter().any(Result::is_ok));
    for outcome in outcomes {
        assert!(matches!(outcome, Ok(_) | Err(ImportError::Exists(_))));
    }
    let backend = RedbBackend::open(&to, 1 << 20).unwrap();
    let view = backend.view().unwrap();
    let theirs = BoltFile::open(&fixture("go34.db")).unwrap();
    for (name, rows) in rows_of(&theirs) {
        let bucket = Bucket::from_name(name.as_bytes()).unwrap();
        assert_eq!(view_rows(&*view, bucket), rows, "{name}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn buckets_that_etcd_does_not_have_are_left_out() {
    let file = bolt(&[
        ("a", &[(b"x", b"y")]),
        ("key", &[(b"k", b"v")]),
        ("meta", &[]),
        ("z", &[]),
    ]);
    let source = BoltFile::from_source(&file[..]).unwrap();
    let backend = MemoryBackend::default();
    let imported = import_into(&source, &backend, &[]).unwrap();
    assert_eq!(
        imported,
        Imported {
            consistent_index: 0,
            term: 0,
            rows: 1,
            bytes: 2
        }
    );
}

#[test]
fn before_3_5_the_document_is_the_membership() {
    let document = fs::read(fixture("minimal-v2store.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, document: &[u8], to: &str| {
        let to = dir.path().join(to);
        import_snapshot(&fixture(name), &to, &with(name, document)).unwrap();
        Membership::load(&*RedbBackend::open(&to, 1 << 20).unwrap().view().unwrap()).unwrap()
    };
    // The members n0 and n2 alone, and another version.
    let mut json: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let tree = &mut json["Root"]["Children"]["0"]["Children"];
    let members = tree["members"]["Children"].as_object_mut().unwrap();
    members.remove("bab344ef759be6ee").unwrap();
    tree["version"]["Value"] = "3.3.0".into();
    let fewer = serde_json::to_vec(&json).unwrap();

    let whole = load("go34.db", &document, "same");
    assert_eq!(whole, v2store::parse(&document).unwrap());
    assert_eq!(whole, load("go34.db", &[], "none"));
    let fewer_members = load("go34.db", &fewer, "fewer");
    assert_eq!(fewer_members, v2store::parse(&fewer).unwrap());
    assert_eq!(fewer_members.members().len(), 2);
    // From 3.5 on the database is.
    let newer = load("go36-snapshot.db", &fewer, "newer");
    assert!(newer.member(MemberId(0x0628_170c_800d_bcee)).is_some());
    assert_eq!(newer, load("go36-snapshot.db", &[], "newer alone"));
    let bad = with("go34.db", b"{");
    assert!(import_snapshot(&fixture("go34.db"), &dir.path().join("bad"), &bad).is_err());
}

/// A snapshot that a fixture may have come with.
fn with(name: &str, document: &[u8]) -> Snapshot {
    let dir = tempfile::tempdir().unwrap();
    let imported = import_bolt(&fixture(name), &dir.path().join("db")).unwrap();
    Snapshot {
        data: Bytes::copy_from_slice(document),
        metadata: Some(SnapshotMetadata {
            index: imported.consistent_index,
            ..Default::default()
        }),
    }
}

fn any_rows() -> impl Strategy<Value = Vec<Rows>> {
    let key = proptest::collection::vec(any::<u8>(), 1..30);
    let value = prop_oneof![
        9 => proptest::collection::vec(any::<u8>(), 0..300),
        1 => (0usize..30_000).prop_map(|len| vec![9; len]),
    ];
    let rows = proptest::collection::btree_map(key, value, 0..60)
        .prop_map(|rows| rows.into_iter().collect());
    proptest::collection::vec(rows, 3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// From a backend to a file and from there into another backend.
    #[test]
    fn rows_survive_the_way(rows in any_rows()) {
        let buckets = [Bucket::Key, Bucket::Lease, Bucket::AuthUsers];
        let from = MemoryBackend::default();
        let mut batch = Batch::default();
        for (bucket, rows) in buckets.iter().zip(&rows) {
            for (key, value) in rows {
                batch.put(*bucket, key.clone(), value.clone());
            }
        }
        from.commit(&batch).unwrap();
        let file = exported(&*from.view().unwrap());
        let to = MemoryBackend::default();
        let source = BoltFile::from_source(&file[..]).unwrap();
        let imported = import_into(&source, &to, &[]).unwrap();
        prop_assert_eq!(imported.rows, rows.iter().map(Vec::len).sum::<usize>() as u64);
        let view = to.view().unwrap();
        for (bucket, rows) in buckets.iter().zip(&rows) {
            prop_assert_eq!(&view_rows(&*view, *bucket), rows);
        }
        prop_assert_eq!(exported(&*view), file);
    }
}
