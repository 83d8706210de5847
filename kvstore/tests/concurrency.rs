//! Readers beside the apply thread, the flush thread and compaction.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::*},
    },
    time::{Duration, Instant},
};

use common::*;
use kvstore::{
    ApplyError, Reader, StoreConfig,
    backend::redb::RedbBackend,
    pb::etcdserverpb::{RangeRequest, TxnRequest, response_op::Response},
};

fn everything(revision: i64) -> RangeRequest {
    RangeRequest {
        revision,
        ..range_request("\0", "\0")
    }
}

/// Each transaction writes its number to all of these keys, deletes one of them, and puts it back in the next.
const KEYS: usize = 600;

fn round(number: u64) -> TxnRequest {
    let mut success: Vec<_> = (0..KEYS)
        .filter(|key| *key as u64 != number % KEYS as u64)
        .map(|key| op(put(&format!("{key:04}"), &number.to_string())))
        .collect();
    success.push(op(delete(&format!("{:04}", number % KEYS as u64), "")));
    TxnRequest {
        success,
        ..Default::default()
    }
}

/// Every state holds all keys but one, all with the value that belongs to its revision.
fn check(reader: &Reader, revision: i64) -> Result<i64, ApplyError> {
    let response = reader.range(&everything(revision))?;
    let at = if revision > 0 {
        revision
    } else {
        response.header.unwrap().revision
    };
    assert_eq!(
        (response.kvs.len(), response.count),
        (KEYS - 1, KEYS as i64 - 1),
        "at {at}"
    );
    let expected = (at - 1).to_string();
    assert!(
        response.kvs.iter().all(|kv| kv.value == expected),
        "at {at}"
    );
    Ok(at)
}

fn read_on(reader: &Reader, done: &AtomicBool, compacted: &AtomicU64) -> u64 {
    let mut reads = 0;
    while !done.load(Acquire) {
        let current = check(reader, 0).unwrap();
        // Somewhere in the past: there, or compacted, and never a part of it.
        for back in [1, 2, 7] {
            match check(reader, (current - back).max(2)) {
                Ok(_) => {}
                Err(ApplyError::Compacted) => {
                    assert!(compacted.load(Acquire) as i64 > current - back)
                }
                Err(other) => panic!("{other}"),
            }
        }
        let one = range_request("0000", "");
        assert!(
            reader.range(&one).is_ok(),
            "a read of now is never compacted"
        );
        let both = TxnRequest {
            success: vec![op(range("0001", "")), op(range("0002", ""))],
            ..Default::default()
        };
        let both = reader.txn_read_only(&both).unwrap();
        let values: Vec<_> = both
            .responses
            .iter()
            .filter_map(|op| match &op.response {
                Some(Response::ResponseRange(range)) => range.kvs.first(),
                _ => None,
            })
            .map(|kv| kv.value.clone())
            .collect();
        assert!(values.windows(2).all(|pair| pair[0] == pair[1]));
        assert!(reader.hash_kv(0).is_ok());
        reads += 1;
    }
    reads
}

#[test]
fn readers_see_whole_revisions_whatever_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let backend = RedbBackend::open(&dir.path().join("store.redb"), 1 << 20).unwrap();
    let config = StoreConfig {
        row_cache_bytes: 64 * 1024,
        flush_interval: Duration::from_millis(2),
        ..config()
    };
    let mut log = Log::with(config, Arc::new(backend));
    log.ok(internal(txn(round(1))));
    let (done, compacted) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (reader, done, compacted) = (log.store.reader(), done.clone(), compacted.clone());
            std::thread::spawn(move || read_on(&reader, &done, &compacted))
        })
        .collect();
    let until = Instant::now() + Duration::from_secs(3);
    let mut number = 2;
    while Instant::now() < until || number < 50 {
        let revision = log.apply(internal(txn(round(number)))).revision;
        assert_eq!(revision, number as i64 + 1);
        if number % 10 == 0 {
            compacted.store(revision as u64 - 4, Release);
            log.compact(revision - 4).unwrap();
        }
        number += 1;
    }
    done.store(true, Release);
    for reader in readers {
        assert!(reader.join().unwrap() > 3);
    }
    // In the end the compactions have really taken the rows: what is left in the backend is bounded.
    let last = log.store.reader().compact_revision();
    let deadline = Instant::now() + Duration::from_secs(30);
    while log.store.reader().finished_compaction() < last {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    log.store.flush().unwrap();
    assert!(log.store.reader().size_in_use() < 40 * KEYS as u64 * 100);
    log.store.close().unwrap();
}

/// Counting a million keys takes long; a put in the meantime takes as long as ever.
#[test]
fn a_count_over_a_million_keys_does_not_hold_up_puts() {
    const TOTAL: usize = 1_000_000;
    const PER_TXN: usize = 1000;
    let dir = tempfile::tempdir().unwrap();
    let backend = RedbBackend::open(&dir.path().join("store.redb"), 64 << 20).unwrap();
    let mut log = Log::with(config(), Arc::new(backend));
    for chunk in 0..TOTAL / PER_TXN {
        let put = |at: usize| op(put(&format!("/registry/{:08}", chunk * PER_TXN + at), "v"));
        log.ok(internal(txn(TxnRequest {
            success: (0..PER_TXN).map(put).collect(),
            ..Default::default()
        })));
    }
    log.store.flush().unwrap();
    let count = RangeRequest {
        count_only: true,
        ..everything(0)
    };
    let reader = log.store.reader();
    let began = Instant::now();
    assert_eq!(reader.range(&count).unwrap().count, TOTAL as i64);
    let alone = began.elapsed();

    let done = Arc::new(AtomicBool::new(false));
    let counter = std::thread::spawn({
        let done = done.clone();
        move || {
            let mut counts = 0;
            while !done.load(Acquire) {
                let response = reader.range(&count).unwrap();
                // A count is that of its revision: one key more for each put.
                let puts = response.header.unwrap().revision - (TOTAL / PER_TXN) as i64 - 1;
                assert_eq!(response.count, TOTAL as i64 + puts);
                counts += 1;
            }
            counts
        }
    });
    let mut latencies = Vec::new();
    let until = Instant::now() + (alone * 4).max(Duration::from_secs(2));
    let mut number = 0;
    while Instant::now() < until {
        let began = Instant::now();
        log.put(&format!("/registry/{:08}x", (number * 7919) % TOTAL), "v");
        latencies.push(began.elapsed());
        number += 1;
        std::thread::sleep(Duration::from_micros(200));
    }
    done.store(true, Release);
    let counts = counter.join().unwrap();
    latencies.sort();
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize];
    println!(
        "a count alone takes {alone:?}; {counts} counts beside {} puts: median {:?}, p99 {:?}, max {:?}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(counts > 0);
    // A put that waited for a whole count would take as long as one.
    assert!(at(0.5) < alone / 10, "median {:?} of {alone:?}", at(0.5));
    assert!(at(0.9) < alone / 2, "p90 {:?} of {alone:?}", at(0.9));
}
