//! What reaches the backend, in which pieces, and what happens when it does not.

mod common;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::*},
        mpsc,
    },
    time::Duration,
};

use common::*;
use kvstore::{
    FatalError, Store, StoreConfig,
    backend::{Backend, BackendError, Batch, Bucket, Op, View, memory::MemoryBackend},
    pb::etcdserverpb::TxnRequest,
};

/// Records commits, and waits before each while told to.
#[derive(Default)]
struct Watched {
    inner: MemoryBackend,
    commits: Mutex<Vec<Batch>>,
    closed: Mutex<bool>,
    opened: Condvar,
    fail_at: AtomicUsize,
}

impl Watched {
    fn gate(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

impl Backend for Watched {
    fn commit(&self, batch: &Batch) -> Result<(), BackendError> {
        let mut closed = self.closed.lock().unwrap();
        while *closed {
            closed = self.opened.wait(closed).unwrap();
        }
        let mut commits = self.commits.lock().unwrap();
        commits.push(batch.clone());
        if commits.len() == self.fail_at.load(Acquire) {
            return Err(BackendError::Io(std::io::Error::other(
                "no space left on device",
            )));
        }
        self.inner.commit(batch)
    }

    fn view(&self) -> Result<Arc<dyn View>, BackendError> {
        self.inner.view()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn size_in_use(&self) -> u64 {
        self.inner.size_in_use()
    }
}

fn quick() -> StoreConfig {
    StoreConfig {
        flush_interval: Duration::from_millis(1),
        ..config()
    }
}

/// A history with every kind of row, flushed in many pieces.
fn history(log: &mut Log) {
    for round in 0..30 {
        let key = format!("k{}", round % 7);
        log.put(&key, &format!("{round}"));
        log.ok(internal(txn(TxnRequest {
            success: vec![
                op(put(&format!("t{round}"), "x")),
                op(put("shared", &key)),
                op(delete("k2", "k4")),
            ],
            ..Default::default()
        })));
        if round % 5 == 0 {
            log.grant(round + 1);
            log.try_apply_bytes(bytes::Bytes::new()).unwrap();
        }
        if round % 9 == 8 {
            let revision = log.store.reader().revision() - 3;
            log.compact(revision).unwrap();
        }
        if round % 3 == 0 {
            log.store.flush().unwrap();
        }
    }
}

#[test]
fn after_any_commit_the_backend_is_the_state_after_some_entry() {
    let backend = Arc::new(Watched::default());
    let mut log = Log::with(quick(), backend.clone());
    history(&mut log);
    log.store.flush().unwrap();
    let expected = log.store.reader().hash_kv(0).unwrap();
    let everything = log.show(&range_request("\0", "\0"));
    let entries = std::mem::take(&mut log.entries);
    log.store.close().unwrap();

    let commits = backend.commits.lock().unwrap().clone();
    assert!(commits.len() > 10, "{}", commits.len());
    let mut indexes = Vec::new();
    for kept in 0..=commits.len() {
        let found = Arc::new(MemoryBackend::default());
        commits[..kept]
            .iter()
            .for_each(|batch| found.commit(batch).unwrap());
        let mut store = Store::open_on(quick(), found).unwrap();
        indexes.push(store.applied().0);
        let mut revision = store.reader().revision();
        for (at, data) in entries.iter().enumerate() {
            let applied = store.apply(at as u64 + 1, 1, data).unwrap();
            // Dense: no entry is applied twice, none is left out.
            assert!(applied.revision == revision || applied.revision == revision + 1);
            revision = applied.revision;
        }
        store.publish().unwrap();
        assert_eq!(
            store.reader().hash_kv(0).unwrap(),
            expected,
            "{kept} commits kept"
        );
        let mut log = Log {
            store,
            entries: Vec::new(),
        };
        assert_eq!(log.show(&range_request("\0", "\0")), everything);
        assert_eq!(log.store.reader().leases().read().len(), 6);
        log.store.flush().unwrap();
    }
    assert!(indexes.is_sorted());
    assert_eq!(
        (indexes[0], *indexes.last().unwrap()),
        (0, entries.len() as u64)
    );
}

#[test]
fn a_batch_carries_index_and_term_with_its_rows() {
    let backend = Arc::new(Watched::default());
    let mut log = Log::with(quick(), backend.clone());
    log.put("k", "v");
    log.store.flush().unwrap();
    let commits = backend.commits.lock().unwrap().clone();
    let with_row = commits
        .iter()
        .find(|batch| {
            batch.ops.iter().any(|op| {
                matches!(
                    op,
                    Op::Put {
                        bucket: Bucket::Key,
                        ..
                    }
                )
            })
        })
        .unwrap();
    let meta = |name: &str| {
        with_row.ops.iter().find_map(|op| match op {
            Op::Put {
                bucket: Bucket::Meta,
                key,
                value,
            } if key == name => Some(value.to_vec()),
            _ => None,
        })
    };
    assert_eq!(meta("consistent_index"), Some(1u64.to_be_bytes().to_vec()));
    assert_eq!(meta("term"), Some(1u64.to_be_bytes().to_vec()));
}

#[test]
fn entries_without_rows_reach_the_backend_as_an_index() {
    let backend = Arc::new(MemoryBackend::default());
    let mut log = Log::with(quick(), backend.clone());
    log.try_apply_bytes(bytes::Bytes::new()).unwrap();
    log.store.close().unwrap();
    let row = backend
        .view()
        .unwrap()
        .get(Bucket::Meta, b"consistent_index")
        .unwrap();
    assert_eq!(row, Some(1u64.to_be_bytes().to_vec()));
}

#[test]
fn a_failed_commit_is_reported_once_and_never_retried() {
    let backend = Arc::new(Watched::default());
    backend.fail_at.store(3, Release);
    let (report, reports) = mpsc::channel();
    let report = Mutex::new(report);
    let config = StoreConfig {
        on_fatal: Arc::new(move |error| report.lock().unwrap().send(error).unwrap()),
        ..quick()
    };
    let mut log = Log::with(config, backend.clone());
    let failed = (0..10).find_map(|round| {
        let request = internal(put("k", &format!("{round}")));
        let outcome = log.try_apply(request).map(drop);
        outcome.and_then(|()| log.store.flush()).err()
    });
    assert!(matches!(&failed, Some(FatalError::Commit(text)) if text.contains("no space left")));
    assert_eq!(reports.recv_timeout(Duration::from_secs(10)).ok(), failed);
    assert_eq!(
        log.store.publish().err(),
        failed,
        "and the store goes nowhere from here"
    );
    let durable = log.store.durable().load(Acquire);
    drop(log);
    assert_eq!(backend.commits.lock().unwrap().len(), 3);
    assert!(reports.try_recv().is_err());
    assert!(durable < 3);
}

#[test]
fn apply_waits_for_the_backend_when_the_backlog_is_full_and_not_before() {
    let backend = Arc::new(Watched::default());
    let config = StoreConfig {
        backlog_bytes_max: 64 * 1024,
        flush_bytes: 1024,
        ..quick()
    };
    let mut log = Log::with(config, backend.clone());
    backend.gate(true);
    // Some of the rows fit: apply does not wait for a commit.
    for round in 0..10 {
        log.put(&format!("free{round}"), &"x".repeat(1024));
    }
    let (progress, seen) = mpsc::channel();
    let writer = std::thread::spawn(move || {
        for round in 0..200 {
            log.put(&format!("k{round}"), &"x".repeat(1024));
            progress.send(round).unwrap();
        }
        log
    });
    // It comes to a halt within the bound, and reads go on meanwhile.
    let mut reached = 0;
    loop {
        match seen.recv_timeout(Duration::from_millis(500)) {
            Ok(round) => reached = round,
            // On a busy machine silence alone says little.
            Err(_) if reached >= 20 => break,
            Err(_) => assert!(!writer.is_finished()),
        }
    }
    assert!(reached < 100, "{reached}");
    backend.gate(false);
    let log = writer.join().unwrap();
    assert_eq!(log.store.reader().revision(), 211);
    log.store.close().unwrap();
}

#[test]
fn a_put_is_applied_at_once_only_while_it_need_not_wait() {
    let backend = Arc::new(Watched::default());
    let config = StoreConfig {
        backlog_bytes_max: 2 << 20,
        ..quick()
    };
    let mut log = Log::with(config, backend.clone());
    let put = [0x22, 0];
    assert!(log.store.applies_at_once(&put));
    assert!(!log.store.applies_at_once(&[0x2a, 0]), "a range of deletes");
    backend.gate(true);
    for round in 0..3 {
        log.put(&format!("k{round}"), &"x".repeat(500 << 10));
    }
    assert!(!log.store.applies_at_once(&put), "the backlog fills up");
    backend.gate(false);
    log.store.flush().unwrap();
    assert!(log.store.applies_at_once(&put));
}

#[test]
fn what_is_not_flushed_is_read_all_the_same() {
    let backend = Arc::new(Watched::default());
    let mut log = Log::with(quick(), backend.clone());
    log.put("a", "old");
    log.store.flush().unwrap();
    backend.gate(true);
    log.put("a", "new");
    log.put("b", "1");
    assert_eq!(log.show(&range_request("\0", "\0")), "a=new b=1");
    let hash = log.store.reader().hash_kv(0).unwrap();
    let image = log.store.image().unwrap();
    assert_eq!(
        image.index(),
        1,
        "an image is the last commit, without waiting for the next"
    );
    backend.gate(false);
    log.store.flush().unwrap();
    assert_eq!(log.store.reader().hash_kv(0).unwrap(), hash);
    assert_eq!(log.store.image().unwrap().index(), 3);
}

#[test]
fn a_store_that_never_flushed_has_no_image() {
    let log = Log::new();
    assert!(matches!(log.store.image(), Err(kvstore::ImageError::Empty)));
    assert_eq!(log.store.durable_snapshot().unwrap(), None);
}
