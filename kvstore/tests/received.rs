//! What is refused of a database that came with a snapshot.

use std::{fs, io::Cursor};

use kvstore::{ImportError, bolt::write::BoltWriter, import::imported_index, import_snapshot};
use transport_core::raftpb::{Snapshot, SnapshotMetadata};

type Row<'a> = (&'a [u8], &'a [u8]);
/// What the error says, and the buckets of a file.
type Case<'a> = (&'a str, Vec<(&'a str, Vec<Row<'a>>)>);

fn bolt(buckets: &[(&str, Vec<Row<'_>>)]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let mut writer = BoltWriter::new(&mut file).unwrap();
    for (name, rows) in buckets {
        writer.bucket(name.as_bytes()).unwrap();
        for (key, value) in rows {
            writer.row(key, value).unwrap();
        }
    }
    writer.finish().unwrap();
    file.into_inner()
}

fn snapshot_at(index: u64) -> Snapshot {
    Snapshot {
        metadata: Some(SnapshotMetadata {
            index,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a store reads when it opens is read before raft records the snapshot: afterwards there is no way back.
#[test]
fn a_received_database_that_no_store_opens_on_is_refused() {
    let index: Row<'_> = (b"consistent_index", &7u64.to_be_bytes());
    let at = |main: u8| [&[0; 7][..], &[main, b'_'], &[0; 8]].concat();
    let key = at(2);
    let row: Row<'_> = (&key, b"\x0a\x01k\x2a\x01v");
    let cases: [Case<'_>; 7] = [
        (
            "key/[",
            vec![("key", vec![(b"short", row.1)]), ("meta", vec![index])],
        ),
        (
            "key/[",
            vec![("key", vec![(row.0, b"\x0a\x09k")]), ("meta", vec![index])],
        ),
        // Restoring could read this one, and a range could not.
        (
            "key/[",
            vec![
                ("key", vec![(row.0, b"\x0a\x01k\x28\x01")]),
                ("meta", vec![index]),
            ],
        ),
        (
            "lease row",
            vec![
                ("key", vec![row]),
                ("lease", vec![(b"00000007", b"\x0a")]),
                ("meta", vec![index]),
            ],
        ),
        (
            "auth",
            vec![
                ("auth", vec![(b"authRevision", b"1")]),
                ("key", vec![row]),
                ("meta", vec![index]),
            ],
        ),
        (
            "confState",
            vec![
                ("key", vec![row]),
                ("meta", vec![(b"confState", b"["), index]),
            ],
        ),
        (
            "scheduledCompactRev",
            vec![
                ("key", vec![row]),
                ("meta", vec![index, (b"scheduledCompactRev", b"9")]),
            ],
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for (reason, buckets) in cases {
        fs::write(&from, bolt(&buckets)).unwrap();
        let error = import_snapshot(&from, &to, &snapshot_at(7)).unwrap_err();
        assert!(
            matches!(&error, ImportError::Damaged(what) if what.contains(reason)),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{reason}");
    }
    fs::write(&from, bolt(&[("key", vec![row]), ("meta", vec![index])])).unwrap();
    let error = import_snapshot(&from, &to, &snapshot_at(8)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the database is at index 7, its snapshot at 8"
    );
    assert!(!to.exists());
    import_snapshot(&from, &to, &snapshot_at(7)).unwrap();
    assert_eq!(imported_index(&to).unwrap(), Some(7));
    fs::write(&to, "no store").unwrap();
    assert_eq!(imported_index(&to).unwrap(), None);
}
