//! Logs of real etcd members: read record for record, written byte for byte.

mod support;

use std::{path::PathBuf, sync::Arc};

use raft_node::{
    disk::{Disk, fault::FaultDisk},
    wal::{self, Metadata, Wal},
};
use support::{METADATA, create, dir, entry, open, options, state};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfState, Entry, HardState},
};

/// The log of a single 3.6.16 member after 14 puts and a delete, killed with -9; without its trailing zeros.
const GO_WAL: &[u8] = include_bytes!("fixtures/go-3.6.16.wal");
const GO_MEMBER: u64 = 0xf126_b6fd_81b7_974f;

fn first_segment() -> PathBuf {
    dir().join("0000000000000000-0000000000000000.wal")
}

fn go_log() -> Arc<dyn Disk> {
    let disk = FaultDisk::new(1);
    disk.create_dir(dir()).expect("create");
    disk.set_content(&first_segment(), GO_WAL).expect("write");
    Arc::new(disk)
}

#[test]
fn a_log_of_go_etcd_is_read_and_continued() {
    let disk = go_log();
    assert_eq!(
        wal::verify(&*disk, dir(), None).expect("verify"),
        state(2, GO_MEMBER, 18)
    );
    let (mut wal, replay) = open(&disk, 16384).expect("open");
    assert_eq!(
        replay.metadata,
        Metadata {
            node_id: MemberId(GO_MEMBER),
            cluster_id: ClusterId(3_841_053_123_899_779_823),
        }
    );
    assert_eq!(replay.hard_state, state(2, GO_MEMBER, 18));
    assert_eq!(replay.repaired, None);
    let positions: Vec<_> = replay.entries.iter().map(|e| (e.term, e.index)).collect();
    let expected: Vec<_> = (1..=19).map(|index| (index.min(2), index)).collect();
    assert_eq!(positions, expected);
    assert_eq!(replay.entries[0].entry_type, 1);
    assert!(replay.entries[0].data.starts_with(&[8, 0, 16, 0, 24]));
    assert!(replay.entries[1].data.is_empty());
    let put = [
        b"\x22\x0f\x0a\x04key1\x12\x07value 1".as_slice(),
        &[0xa2, 6, 11],
    ]
    .concat();
    assert!(replay.entries[4].data.starts_with(&put));
    assert!(replay.entries[17].data.len() > 1200, "a value of zeros");
    wal.append(Some(&state(3, 0, 19)), &[entry(3, 20, "ours")])
        .expect("append");
    wal.close().expect("close");
    let (_, replay) = open(&disk, 16384).expect("open");
    assert_eq!(replay.entries.len(), 20);
    assert_eq!(replay.hard_state, state(3, 0, 19));
}

#[test]
fn the_same_records_make_the_same_bytes() {
    let (_, replay) = open(&go_log(), 16384).expect("open");
    let disk = FaultDisk::new(1);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    disk.create_dir(dir().parent().expect("a parent"))
        .expect("create");
    let mut wal = Wal::create(shared, dir(), replay.metadata, options(16384)).expect("create");
    let entries = &replay.entries;
    let committed = |commit| state(2, GO_MEMBER, commit);
    let mut append = |hard_state: HardState, entries: &[Entry]| {
        wal.append(Some(&hard_state), entries).expect("append");
    };
    // In the batches in which etcd wrote them.
    append(state(1, 0, 1), &entries[..1]);
    append(committed(1), &[]);
    append(committed(2), &entries[1..3]);
    append(committed(3), &entries[3..4]);
    append(committed(4), &[]);
    for at in 4..18 {
        append(committed(at as u64 + 1), &entries[at..=at]);
    }
    append(HardState::default(), &entries[18..]);
    wal.close().expect("close");
    let written = disk.content(&first_segment()).expect("content");
    assert!(written[..GO_WAL.len()] == *GO_WAL);
    assert!(written[GO_WAL.len()..].iter().all(|byte| *byte == 0));
}

/// `entries.txt`: the records of a 3.5.30 member of three, as text, with a snapshot and two elections.
#[test]
fn the_records_of_a_member_of_three_survive_a_round_trip() {
    let disk: Arc<dyn Disk> = Arc::new(FaultDisk::new(1));
    let mut wal = create(&disk, 4096).expect("create");
    let mut all: Vec<Entry> = Vec::new();
    let mut last_state = HardState::default();
    for line in include_str!("fixtures/entries.txt").lines() {
        let word = line.split(' ').next().expect("a word");
        match word {
            "METADATA" => {
                assert_eq!(field(line, 1), METADATA.node_id.0);
                assert_eq!(field(line, 2), 16_434_070_600_043_564_797);
            }
            "ENTRY" => {
                let words: Vec<_> = line.split(' ').collect();
                let number = |at: usize| words[at].parse().expect("a number");
                let mut entry = entry(number(4), number(6), hex(words[8]));
                entry.entry_type = words[2].parse().expect("a type");
                wal.append(None, std::slice::from_ref(&entry))
                    .expect("append");
                all.push(entry);
            }
            "STATE" => {
                last_state = state(field(line, 1), field(line, 2), field(line, 3));
                wal.append(Some(&last_state), &[]).expect("append");
            }
            "SNAPSHOT" if field(line, 1) > 0 => {
                let snapshot = wal::WalSnapshot {
                    index: field(line, 1),
                    term: field(line, 2),
                    conf_state: Some(ConfState {
                        voters: vec![0x5696_c2ec_878f_0ce2, 0xa0d9_fd87_f918_8517],
                        ..ConfState::default()
                    }),
                };
                wal.save_snapshot(&snapshot).expect("save");
            }
            _ => {}
        }
    }
    wal.close().expect("close");
    assert_eq!(all.len(), 64);
    let (_, from_start) = Wal::open(disk.clone(), dir(), None, options(4096)).expect("open");
    assert_eq!(from_start.entries, all);
    assert_eq!(from_start.hard_state, last_state);
    let snapshots = wal::snapshots(&*disk, dir()).expect("snapshots");
    assert_eq!(snapshots.last().map(|s| (s.index, s.term)), Some((62, 2)));
    let (_, from_snapshot) = open(&disk, 4096).expect("open");
    assert_eq!(from_snapshot.entries, all[62..]);
}

/// The value of field `number` in a line like `STATE [(1, 2), (2, 9), (3, 3)]`.
fn field(line: &str, number: u32) -> u64 {
    let (_, rest) = line
        .split_once(&format!("({number}, "))
        .unwrap_or_else(|| panic!("no field {number}: {line}"));
    let digits = rest.split(')').next().expect("a value");
    digits.parse().expect("a number")
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex"))
        .collect()
}
