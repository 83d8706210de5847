//! Logs that a crash or a bad disk has damaged: what is cut off, what is refused, and that nothing is
//! misread.

mod support;

use std::{path::PathBuf, sync::Arc};

use proptest::prelude::*;

use raft_node::{
    disk::{Disk, fault::FaultDisk},
    wal::{self, Wal, WalError},
};
use support::{create, dir, entries, entry, memory, names, open, options, path_of, state};
use transport_core::raftpb::Entry;

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

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is overwritten: refused, or the log up to there. Never a panic, never other entries.
    #[test]
    fn overwritten_ranges_never_make_other_entries(
        which in 0..2usize, at in 0..2048usize, with in proptest::collection::vec(any::<u8>(), 1..200),
        zeros: bool,
    ) {
        let sample = sample();
        let shared: Arc<dyn Disk> = Arc::new(sample.disk.clone());
        let path = path_of(&names(&shared)[which]);
        let mut content = sample.disk.content(&path).expect("content");
        let at = at % content.len();
        let end = content.len().min(at + with.len());
        content[at..end].copy_from_slice(&with[..end - at]);
        if zeros {
            content[at..end].fill(0);
        }
        sample.disk.set_content(&path, &content).expect("write");
        let verified = wal::verify(&*shared, dir(), None).is_ok();
        let recorded = wal::snapshots(&*shared, dir());
        let opened = Wal::open(shared.clone(), dir(), None, options(2048));
        prop_assert_eq!(verified, opened.is_ok());
        if let Ok((_, replay)) = opened {
            prop_assert!(recorded.is_ok());
            prop_assert!(sample.entries.starts_with(&replay.entries));
            prop_assert!(which == 1 || replay.entries.len() >= 9);
        }
    }

    /// A segment of any bytes, with and without a head, is read to an end.
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), head: bool) {
        let (disk, shared) = memory();
        create(&shared, 1024).expect("create").close().expect("close");
        let path = path_of(&names(&shared)[0]);
        let mut content = disk.content(&path).expect("content");
        let end = content.iter().rposition(|b| *b != 0).expect("a head") + 1;
        content.truncate(if head { end.next_multiple_of(8) } else { 0 });
        content.extend(bytes);
        disk.set_content(&path, &content).expect("write");
        if let Ok((_, replay)) = open(&shared, 1024) {
            prop_assert!(head && replay.entries.is_empty());
        }
    }
}
