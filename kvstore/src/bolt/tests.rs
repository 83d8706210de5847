//! What is written is read, what Go wrote is read, and anything else is read or refused.

mod damage;

use std::{io::Cursor, ops::ControlFlow};

use proptest::prelude::*;

use super::{
    read::{BoltError, BoltFile, ReadAt},
    write::BoltWriter,
    *,
};

const GO_3_4: &[u8] = include_bytes!("../../tests/fixtures/go34.db");
const GO_3_6: &[u8] = include_bytes!("../../tests/fixtures/go36-snapshot.db");
const BULK: &[u8] = include_bytes!("../../tests/fixtures/bulk.db");

type Rows = Vec<(Vec<u8>, Vec<u8>)>;
type Buckets = Vec<(Vec<u8>, Rows)>;

fn read_all<S: ReadAt>(source: S) -> Result<Buckets, BoltError> {
    let file = BoltFile::from_source(source)?;
    let names: Vec<_> = file.buckets().map(<[u8]>::to_vec).collect();
    let mut buckets = Vec::new();
    for name in names {
        let mut rows = Vec::new();
        file.scan(&name, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        buckets.push((name, rows));
    }
    Ok(buckets)
}

fn write_all(buckets: &Buckets) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let mut writer = BoltWriter::new(&mut file).unwrap();
    for (name, rows) in buckets {
        writer.bucket(name).unwrap();
        for (key, value) in rows {
            writer.row(key, value).unwrap();
        }
    }
    let len = writer.finish().unwrap();
    assert_eq!(len, file.get_ref().len() as u64);
    assert_eq!(file.position(), len);
    file.into_inner()
}

fn names(buckets: &Buckets) -> Vec<String> {
    buckets
        .iter()
        .map(|(name, _)| String::from_utf8_lossy(name).into_owned())
        .collect()
}

#[test]
fn a_file_of_go_is_read() {
    let buckets = read_all(GO_3_4).unwrap();
    assert_eq!(
        names(&buckets),
        [
            "alarm",
            "auth",
            "authRoles",
            "authUsers",
            "cluster",
            "key",
            "lease",
            "members",
            "members_removed",
            "meta"
        ]
    );
    let rows = |name: &str| {
        &buckets
            .iter()
            .find(|(other, _)| other == name.as_bytes())
            .unwrap()
            .1
    };
    assert!(rows("alarm").is_empty());
    assert_eq!(
        rows("cluster"),
        &[(b"clusterVersion".to_vec(), b"3.4.0".to_vec())]
    );
    let users: Vec<_> = rows("authUsers")
        .iter()
        .map(|(name, _)| String::from_utf8_lossy(name))
        .collect();
    assert_eq!(users, ["root", "u1"]);
    assert!(
        rows("key")
            .iter()
            .all(|(key, _)| key.len() == 17 || key.len() == 18)
    );
    assert!(rows("key").len() > 20);
    assert_eq!(write_and_read(&buckets), buckets);
}

fn write_and_read(buckets: &Buckets) -> Buckets {
    read_all(&write_all(buckets)[..]).unwrap()
}

#[test]
fn a_file_that_was_rewritten_in_bulk_holds_the_same_rows() {
    // Of another member of the same cluster: passwords have their own salt, and meta rows came with 3.5.
    let own = ["authUsers", "meta"];
    let shared = |source: &[u8]| -> Buckets {
        let buckets = read_all(source).unwrap().into_iter();
        buckets
            .filter(|(name, _)| !own.iter().any(|own| own.as_bytes() == name))
            .collect()
    };
    assert_eq!(shared(BULK).len(), 8);
    assert_eq!(shared(BULK), shared(GO_3_4));
    assert_eq!(
        write_and_read(&read_all(BULK).unwrap()),
        read_all(BULK).unwrap()
    );
}

/// The checksum of `etcdutl snapshot status`: names, keys and values of everything.
fn status_hash(buckets: &Buckets) -> u32 {
    let mut hash = 0;
    for (name, rows) in buckets {
        hash = crc32c::crc32c_append(hash, name);
        for (key, value) in rows {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
        }
    }
    hash
}

#[test]
fn a_snapshot_that_etcdctl_saved_is_read() {
    // Of 3.6.16, with its checksum behind the last page. etcdutl says: hash 2181728193.
    assert_eq!(GO_3_6.len() % 512, 32);
    let buckets = read_all(GO_3_6).unwrap();
    assert_eq!(status_hash(&buckets), 2_181_728_193);
    assert_eq!(write_and_read(&buckets), buckets);
    let file = BoltFile::from_source(GO_3_6).unwrap();
    assert_eq!((file.page_size(), file.txid()), (4096, 19));
    // A value of 9000 bytes lies on overflow pages.
    let (_, rows) = &buckets.iter().find(|(name, _)| name == b"key").unwrap();
    assert!(rows.iter().any(|(_, value)| value.len() > 9000));
}

fn many(rows: u64, value: impl Fn(u64) -> usize) -> Rows {
    (0..rows)
        .map(|row| (row.to_be_bytes().to_vec(), vec![row as u8; value(row)]))
        .collect()
}

#[test]
fn branches_and_overflow_pages() {
    let shapes: Vec<(&str, Rows)> = vec![
        (
            "a hundred thousand",
            many(100_000, |row| (row % 100) as usize),
        ),
        (
            "b long values",
            many(50, |row| if row % 7 == 0 { 100_000 } else { 10 }),
        ),
        (
            "c long keys",
            (0..200u8)
                .map(|row| (vec![row; 5000 + usize::from(row)], vec![row]))
                .collect(),
        ),
        ("d longest key", vec![(vec![1; KEY_BYTES_MAX], vec![2; 3])]),
        ("e empty", Vec::new()),
        ("f one", many(1, |_| 0)),
    ];
    let buckets: Buckets = shapes
        .into_iter()
        .map(|(name, rows)| (name.as_bytes().to_vec(), rows))
        .collect();
    assert!(write_and_read(&buckets) == buckets);
}

/// Every number of leaves around the points where a level of branches fills, so that no branch ends with one child.
#[test]
fn every_branch_has_two_children() {
    // Rows of a page each; a branch of 4096 bytes holds 170 children with keys of 8 bytes.
    for leaves in [
        1, 2, 3, 168, 169, 170, 171, 172, 338, 339, 340, 341, 342, 343,
    ] {
        let buckets = vec![(b"key".to_vec(), many(leaves, |_| 3000))];
        let file = write_all(&buckets);
        assert!(read_all(&file[..]).unwrap() == buckets, "{leaves}");
        for page in file.chunks(4096).skip(2) {
            let is_branch = u16_at(page, 8) == Some(BRANCH)
                && u64_at(page, 0).is_some_and(|id| id > 1 && id < 400);
            assert!(!is_branch || u16_at(page, 10) >= Some(2), "{leaves}");
        }
    }
}

#[test]
fn what_is_out_of_order_or_out_of_bounds_is_refused() {
    let mut file = Cursor::new(Vec::new());
    let mut writer = BoltWriter::new(&mut file).unwrap();
    assert!(writer.row(b"k", b"v").is_err());
    writer.bucket(b"b").unwrap();
    writer.row(b"k", b"v").unwrap();
    assert!(writer.row(b"k", b"v").is_err());
    assert!(writer.row(b"j", b"v").is_err());
    assert!(writer.row(b"", b"v").is_err());
    assert!(writer.row(&[b'x'; KEY_BYTES_MAX + 1], b"").is_err());
    writer.bucket(b"a").unwrap();
    assert!(writer.finish().is_err());
}

#[test]
fn other_page_sizes_are_read() {
    // Our pages are a sixteenth of these: the same file, seen through a meta of 64 KiB pages, has one page in use.
    const BIG: usize = 65_536;
    let mut file = vec![0; 3 * BIG];
    let small = write_all(&vec![(b"b".to_vec(), many(3, |_| 5))]);
    file[2 * BIG..][..4096].copy_from_slice(&small[2 * 4096..][..4096]);
    for (place, txid) in [(0u64, 2u64), (1, 3)] {
        let mut meta = Vec::new();
        for half in [MAGIC, VERSION, BIG as u32, 0] {
            meta.extend(half.to_le_bytes());
        }
        for whole in [2, 0, NO_FREELIST, 3, txid] {
            meta.extend(whole.to_le_bytes());
        }
        meta.extend(fnv1a64(&meta).to_le_bytes());
        file[place as usize * BIG + PAGE_HEADER..][..META].copy_from_slice(&meta);
    }
    assert_eq!(BoltFile::from_source(&file[..]).unwrap().txid(), 3);
    // Without the first meta the page size has to be found.
    file[PAGE_HEADER] = 0;
    let found = BoltFile::from_source(&file[..]).unwrap();
    assert_eq!((found.txid(), found.page_size()), (3, BIG as u64));
    assert_eq!(read_all(&file[..]).unwrap(), read_all(&small[..]).unwrap());
}

/// The file with both metas changed, and their checksums right.
fn with_meta(file: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut file = file.to_vec();
    for at in [PAGE_HEADER, 4096 + PAGE_HEADER] {
        change(&mut file[at..at + META]);
    }
    correct_metas(&mut file);
    file
}

fn correct_metas(file: &mut [u8]) {
    for at in [PAGE_HEADER, 4096 + PAGE_HEADER] {
        let sum = fnv1a64(&file[at..at + META_CHECKED]);
        file[at + META_CHECKED..][..8].copy_from_slice(&sum.to_le_bytes());
    }
}

#[test]
fn rows_behind_the_window_are_read_one_by_one() {
    // A leaf of bbolt's has at least two rows, however long they are: one page of 8 MiB with three.
    let rows: Rows = vec![
        (b"a".to_vec(), vec![1; 3 << 20]),
        (b"b".to_vec(), vec![2; 5 << 20]),
        (b"c".to_vec(), vec![3; 7]),
    ];
    let file = write_all(&vec![(b"key".to_vec(), rows.clone())]);
    let mut joined = file[..2 * 4096].to_vec();
    let len =
        PAGE_HEADER + 3 * ELEMENT + rows.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>();
    let pages = len.div_ceil(4096);
    joined.extend(2u64.to_le_bytes());
    joined.extend(LEAF.to_le_bytes());
    joined.extend(3u16.to_le_bytes());
    joined.extend((pages as u32 - 1).to_le_bytes());
    let mut pos = 3 * ELEMENT;
    for (key, value) in &rows {
        for field in [0, pos, key.len(), value.len()] {
            joined.extend((field as u32).to_le_bytes());
        }
        pos = pos + key.len() + value.len() - ELEMENT;
    }
    for (key, value) in &rows {
        joined.extend(key);
        joined.extend(value);
    }
    joined.resize((2 + pages) * 4096, 0);
    // The root, which is the last page of the file, one bucket with its tree at page 2.
    let root = 2 + pages as u64;
    let mut last = file[file.len() - 4096..].to_vec();
    last[..8].copy_from_slice(&root.to_le_bytes());
    let value = PAGE_HEADER + ELEMENT + 3;
    last[value..value + 8].copy_from_slice(&2u64.to_le_bytes());
    joined.extend(last);
    let joined = with_meta(&joined, |meta| {
        meta[16..24].copy_from_slice(&root.to_le_bytes());
        meta[40..48].copy_from_slice(&(root + 1).to_le_bytes());
    });
    assert!(read_all(&joined[..]).unwrap() == vec![(b"key".to_vec(), rows)]);
}

fn rows() -> impl Strategy<Value = Rows> {
    let key = proptest::collection::vec(any::<u8>(), 1..40);
    let value = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => (0usize..20_000).prop_map(|len| vec![7; len]),
    ];
    proptest::collection::btree_map(key, value, 0..80).prop_map(|rows| rows.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        buckets in proptest::collection::btree_map(proptest::collection::vec(any::<u8>(), 1..9), rows(), 0..6),
    ) {
        let buckets: Buckets = buckets.into_iter().collect();
        prop_assert_eq!(write_and_read(&buckets), buckets);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Real files with bytes changed anywhere, half of them where the structure is. The meta's checksum is made
    /// right again, or else nothing behind it would be looked at.
    #[test]
    fn any_change_of_a_real_file_is_read_or_refused(
        which in 0usize..3,
        changes in proptest::collection::vec(
            (any::<prop::sample::Index>(), 0usize..96, any::<bool>(), prop_oneof![any::<u8>(), Just(0), Just(0xff)]),
            1..6,
        ),
    ) {
        let mut file = [BULK, GO_3_4, GO_3_6][which].to_vec();
        for (place, within, structure, byte) in changes {
            let place = if structure {
                place.index(file.len() / 4096) * 4096 + within
            } else {
                place.index(file.len())
            };
            file[place] = byte;
        }
        correct_metas(&mut file);
        if let Ok(buckets) = read_all(&file[..]) {
            let bytes: usize = buckets.iter().flat_map(|(_, rows)| rows).map(|(k, v)| k.len() + v.len()).sum();
            // Inline buckets are read from within the root page, whose copies count once more.
            prop_assert!(bytes <= 2 * file.len());
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read_all(&bytes[..]).is_err());
    }
}
