//! HashKV against another way to compute it: from the rows alone, as members of etcd do over theirs.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, ControlFlow},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::*},
    },
    time::Duration,
};

use common::*;
use kvstore::{
    ApplyError, StoreConfig,
    backend::{Backend, Bucket, memory::MemoryBackend},
    mvcc::KeyValueHash,
    pb::mvccpb::KeyValue,
};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::SmallRng};

const NEVER: i64 = -1;

/// A row of bucket `key`.
#[derive(Clone)]
struct Row {
    at: Vec<u8>,
    value: Vec<u8>,
}

impl Row {
    fn main(&self) -> i64 {
        i64::from_be_bytes(self.at[..8].try_into().unwrap())
    }

    fn tombstone(&self) -> bool {
        self.at.len() == 18
    }

    fn key(&self) -> Vec<u8> {
        KeyValue::decode(&self.value[..]).unwrap().key.to_vec()
    }
}

/// What a compaction at `at` has to leave of what is not newer. `with_tombstones`: also those of exactly then, which
/// stay in the database but for no hash.
fn kept(rows: &[Row], at: i64, with_tombstones: bool) -> BTreeSet<Vec<u8>> {
    let mut last = BTreeMap::new();
    for row in rows.iter().filter(|row| row.main() <= at) {
        last.insert(row.key(), row);
    }
    last.into_values()
        .filter(|row| !row.tombstone() || (with_tombstones && row.main() == at))
        .map(|row| row.at.clone())
        .collect()
}

/// The rows that are left after a compaction at `at`.
fn compacted(rows: &[Row], at: i64) -> Vec<Row> {
    let kept = kept(rows, at, true);
    let left = rows
        .iter()
        .filter(|row| row.main() > at || kept.contains(&row.at));
    left.cloned().collect()
}

/// The checksum of the rows that are there, compacted at `compact`, up to `revision`.
fn checksum(rows: &[Row], compact: i64, revision: i64, keep: &BTreeSet<Vec<u8>>) -> u32 {
    let mut hash = crc32c::crc32c(b"key");
    for row in rows.iter().filter(|row| row.main() <= revision) {
        let superseded = row.main() <= compact && !keep.is_empty() && !keep.contains(&row.at);
        // Members that are older do not have such a row.
        let newer_only = row.main() == compact && row.tombstone();
        if !superseded && !newer_only {
            hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &row.at), &row.value);
        }
    }
    hash
}

/// What a member answers, that has all of `history` and was last compacted at `compact`.
fn answered(history: &[Row], compact: i64, revision: i64) -> u32 {
    let rows = compacted(history, compact);
    checksum(&rows, compact, revision, &kept(&rows, revision, false))
}

/// What a compaction at `at` leaves as its checksum.
fn stored(history: &[Row], previous: i64, at: i64) -> u32 {
    let rows = compacted(history, previous);
    checksum(&rows, previous, at, &kept(&rows, at, true))
}

fn rows(backend: &MemoryBackend) -> Vec<Row> {
    let mut rows = Vec::new();
    let whole = (Bound::Unbounded, Bound::Unbounded);
    let view = backend.view().unwrap();
    view.scan(Bucket::Key, whole, &mut |at, value| {
        rows.push(Row {
            at: at.to_vec(),
            value: value.to_vec(),
        });
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

/// A store whose rows can be looked at, and one with the same history that is never compacted.
struct Twins {
    log: Log,
    backend: Arc<MemoryBackend>,
    whole: Log,
    whole_backend: Arc<MemoryBackend>,
}

impl Twins {
    fn new() -> Twins {
        let (backend, whole_backend) = (Arc::default(), Arc::default());
        let quick = || StoreConfig {
            flush_interval: Duration::from_millis(1),
            ..config()
        };
        Twins {
            log: Log::with(quick(), Arc::clone(&backend) as _),
            backend,
            whole: Log::with(quick(), Arc::clone(&whole_backend) as _),
            whole_backend,
        }
    }

    fn put(&mut self, key: &str, value: &str) -> i64 {
        self.whole.put(key, value);
        self.log.put(key, value)
    }

    fn delete(&mut self, key: &str, end: &str) -> i64 {
        self.whole.delete(key, end);
        self.log.delete(key, end);
        self.current()
    }

    fn current(&self) -> i64 {
        self.log.store.reader().revision()
    }

    fn history(&mut self) -> Vec<Row> {
        self.whole.store.flush().unwrap();
        rows(&self.whole_backend)
    }

    fn hash(&self, revision: i64) -> Result<KeyValueHash, ApplyError> {
        self.log.store.reader().hash_kv(revision).map(|both| both.0)
    }

    /// Waits until the rows of the last compaction are gone.
    fn finish(&mut self) {
        let reader = self.log.store.reader();
        while reader.finished_compaction() < reader.compact_revision() {
            std::thread::yield_now();
        }
        self.log.store.flush().unwrap();
    }

    /// Every revision that can be asked for. That of a compaction is left out: it has a hash of its own.
    fn check(&mut self) {
        let history = self.history();
        let (compact, current) = (self.log.store.reader().compact_revision(), self.current());
        for revision in (compact + 1).max(1)..=current {
            let expected = KeyValueHash {
                hash: answered(&history, compact, revision),
                compact_revision: compact,
                revision,
            };
            assert_eq!(self.hash(revision), Ok(expected));
        }
        assert_eq!(
            self.hash(0).unwrap().hash,
            answered(&history, compact, current)
        );
    }
}

#[test]
fn every_revision_has_the_checksum_of_its_rows_while_and_after_they_are_compacted() {
    for seed in 0..30 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut twins = Twins::new();
        let mut compacted_at = NEVER;
        for step in 0..60 {
            let key = ["a", "b", "c"][random.random_range(0..3)];
            match random.random_range(0..10) {
                0..5 => drop(twins.put(key, &step.to_string())),
                5..8 => drop(twins.delete(key, "")),
                // Nothing is left: then a checksum skips nothing.
                8 => drop(twins.delete("a", "z")),
                _ => {
                    let at = random.random_range(compacted_at.max(0)..=twins.current());
                    if at > compacted_at.max(0) {
                        twins.log.compact(at).unwrap();
                        compacted_at = at;
                        twins.check();
                        twins.finish();
                        let (history, left) = (twins.history(), rows(&twins.backend));
                        let expected = compacted(&history, at);
                        assert!(
                            left.iter()
                                .map(|row| &row.at)
                                .eq(expected.iter().map(|row| &row.at))
                        );
                    }
                }
            }
        }
        twins.check();
    }
}

#[test]
fn a_tombstone_at_the_compaction_itself_is_in_the_database_and_in_no_checksum() {
    for others in [false, true] {
        let mut twins = Twins::new();
        twins.put("gone", "1");
        if others {
            twins.put("stays", "1");
        }
        let at = twins.delete("gone", "");
        twins.log.compact(at).unwrap();
        twins.finish();
        let left = rows(&twins.backend);
        assert!(left.iter().any(|row| row.tombstone() && row.main() == at));
        twins.put("later", "1");
        twins.check();
        let without: Vec<_> = left.into_iter().filter(|row| !row.tombstone()).collect();
        let none = BTreeSet::new();
        twins.put("last", "1");
        let later = twins.history().into_iter().filter(|row| row.main() > at);
        let rows: Vec<_> = without.into_iter().chain(later).collect();
        assert_eq!(
            twins.hash(0).unwrap().hash,
            checksum(&rows, at, twins.current(), &none)
        );
    }
}

#[test]
fn the_last_ten_compactions_keep_their_checksums() {
    let mut twins = Twins::new();
    let mut points = vec![NEVER];
    for round in 0..13 {
        twins.put("k", &round.to_string());
        twins.put(&format!("k{}", round % 4), "v");
        let at = if round % 3 == 0 {
            twins.delete("k", "l")
        } else {
            twins.current()
        };
        twins.log.compact(at).unwrap();
        // One whose predecessor is not done has no checksum.
        twins.finish();
        points.push(at);
    }
    let history = twins.history();
    for (n, pair) in points.windows(2).enumerate() {
        let (previous, at) = (pair[0], pair[1]);
        let answer = twins.hash(at);
        if n < 3 {
            assert_eq!(answer, Err(ApplyError::Compacted), "{at}");
            continue;
        }
        let expected = KeyValueHash {
            hash: stored(&history, previous, at),
            compact_revision: previous,
            revision: at,
        };
        assert_eq!(answer, Ok(expected));
    }
}

#[test]
fn checksums_taken_beside_compactions_are_those_of_their_revisions() {
    let mut twins = Twins::new();
    let done = Arc::new(AtomicBool::new(false));
    let askers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done) = (twins.log.store.reader(), done.clone());
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                while !done.load(Acquire) {
                    answers.extend(reader.hash_kv(0).map(|both| both.0));
                }
                answers
            })
        })
        .collect();
    for round in 0..400 {
        twins.put(&format!("k{}", round % 7), &round.to_string());
        if round % 11 == 10 {
            twins.delete("k", "l");
        }
        if round % 3 == 2 {
            let at = twins.current() - round % 2;
            twins.log.compact(at).unwrap();
        }
    }
    done.store(true, Release);
    let history = twins.history();
    let mut expected = BTreeMap::new();
    let mut checked = 0;
    for answer in askers.into_iter().flat_map(|asker| asker.join().unwrap()) {
        let of = (answer.compact_revision, answer.revision);
        let expected = expected
            .entry(of)
            .or_insert_with(|| answered(&history, of.0, of.1));
        assert_eq!(answer.hash, *expected, "{of:?}");
        checked += 1;
    }
    assert!(checked > 100, "{checked}");
}
