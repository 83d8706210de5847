//! The threads beside apply, when the backend panics under them: the store stops, and says why.

mod common;

use std::{
    ops::Bound,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::*},
        mpsc,
    },
    time::Duration,
};

use common::*;
use kvstore::{
    FatalError, StoreConfig,
    backend::{Backend, BackendError, Batch, Bucket, View, Visit, memory::MemoryBackend},
};

const COMMIT: u8 = 1;
const VIEW: u8 = 2;
const SCAN: u8 = 3;

/// A backend that panics where it is told to.
#[derive(Default)]
struct Fragile {
    inner: MemoryBackend,
    breaks_at: Arc<AtomicU8>,
}

fn reach(place: u8, breaks_at: &AtomicU8) {
    assert!(breaks_at.load(Acquire) != place, "page 7 is damaged");
}

impl Backend for Fragile {
    fn commit(&self, batch: &Batch) -> Result<(), BackendError> {
        reach(COMMIT, &self.breaks_at);
        self.inner.commit(batch)
    }

    fn view(&self) -> Result<Arc<dyn View>, BackendError> {
        reach(VIEW, &self.breaks_at);
        Ok(Arc::new(FragileView {
            inner: self.inner.view()?,
            breaks_at: self.breaks_at.clone(),
        }))
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn size_in_use(&self) -> u64 {
        self.inner.size_in_use()
    }
}

struct FragileView {
    inner: Arc<dyn View>,
    breaks_at: Arc<AtomicU8>,
}

impl View for FragileView {
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.inner.get(bucket, key)
    }

    fn scan(
        &self,
        bucket: Bucket,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError> {
        reach(SCAN, &self.breaks_at);
        self.inner.scan(bucket, range, visit)
    }
}

#[test]
fn a_panic_under_a_background_thread_ends_the_store_with_its_reason() {
    for (place, thread) in [
        (COMMIT, "kv-flush"),
        (VIEW, "kv-flush"),
        (SCAN, "kv-compact"),
    ] {
        let backend = Fragile::default();
        let breaks_at = backend.breaks_at.clone();
        let (report, reports) = mpsc::channel();
        let report = Mutex::new(report);
        let config = StoreConfig {
            flush_interval: Duration::from_millis(1),
            on_fatal: Arc::new(move |error| report.lock().unwrap().send(error).unwrap()),
            ..config()
        };
        let mut log = Log::with(config, Arc::new(backend));
        for round in 0..5 {
            log.put("k", &round.to_string());
        }
        log.store.flush().unwrap();
        let durable = log.store.durable().load(Acquire);
        breaks_at.store(place, Release);
        // Gives either thread something to do; whether this entry still gets its answer is open.
        let compaction = kvstore::pb::etcdserverpb::CompactionRequest {
            revision: 4,
            physical: false,
        };
        let request = kvstore::pb::etcdserverpb::InternalRaftRequest {
            compaction: Some(compaction),
            ..Default::default()
        };
        drop(log.try_apply(request));
        let reported = reports.recv_timeout(Duration::from_secs(10)).unwrap();
        let expected = FatalError::Panicked {
            thread,
            message: "page 7 is damaged".into(),
        };
        assert_eq!(reported, expected);
        assert_eq!(log.store.flush(), Err(expected.clone()));
        assert_eq!(log.store.publish(), Err(expected.clone()));
        if thread == "kv-flush" {
            assert_eq!(log.store.durable().load(Acquire), durable);
        }
        assert_eq!(log.store.close(), Err(expected));
        assert!(reports.try_recv().is_err(), "reported once");
    }
}
