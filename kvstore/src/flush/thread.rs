//! The loop that brings loads into the backend and publishes what readers then see.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::*},
    },
    time::Instant,
};

use super::{Backlog, CONF_STATE, CONSISTENT_INDEX, Load, Position, TERM, flusher::Flusher};
use crate::{
    backend::{Backend, BackendError, Batch, Bucket, Op},
    compaction::CompactionInbox,
    error::FatalError,
    metrics::StoreMetrics,
    mvcc::{keyspace::Keyspace, revision::RowKey},
};

/// Size of the backend as of the last commit; asking the backend on every put would cost a lock.
#[derive(Default)]
pub(crate) struct Sizes {
    total: AtomicU64,
    in_use: AtomicU64,
}

impl Sizes {
    /// Takes over what the backend says.
    pub fn measure(&self, backend: &dyn Backend, metrics: &StoreMetrics) {
        self.total.store(backend.size(), Relaxed);
        self.in_use.store(backend.size_in_use(), Relaxed);
        metrics.sized(self.total(), self.in_use());
    }

    /// Bytes the backend takes.
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Bytes of it that hold something.
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Relaxed)
    }
}

/// The loop that brings loads into the backend.
pub(crate) struct FlushThread {
    pub backlog: Arc<Backlog>,
    pub backend: Arc<dyn Backend>,
    pub keyspace: Arc<Keyspace>,
    pub durable: Arc<AtomicU64>,
    pub sizes: Arc<Sizes>,
    pub compactions: Arc<CompactionInbox>,
    pub metrics: Arc<StoreMetrics>,
    pub on_fatal: Arc<dyn Fn(FatalError) + Send + Sync>,
}

impl FlushThread {
    /// Runs until the backlog is closed or a commit fails.
    pub fn run(self) {
        let mut flusher = Flusher::new(self.backlog.limits);
        while let Some(load) = self.backlog.next(&mut flusher) {
            match self.commit(load) {
                Ok(()) => self.backlog.committed(),
                Err(error) => {
                    self.backlog.fail(error.clone());
                    (self.on_fatal)(error);
                    return;
                }
            }
        }
    }

    /// Commits one load and publishes the view that holds it.
    fn commit(&self, mut load: Load) -> Result<(), FatalError> {
        let background = load.background.take();
        let finished = background
            .as_ref()
            .and_then(|background| background.finished);
        if let Some(mut background) = background {
            load.batch.ops.append(&mut background.batch.ops);
        }
        if let Some(position) = &load.position {
            write_position(&mut load.batch, position);
        }
        let began = Instant::now();
        let failed = |error: BackendError| FatalError::Commit(error.to_string());
        self.backend.commit(&load.batch).map_err(failed)?;
        self.metrics.committed(began.elapsed());
        let view = self.backend.view().map_err(failed)?;
        self.sizes.measure(&*self.backend, &self.metrics);
        if let Some(position) = &load.position {
            self.keep_hot(&load.batch);
            self.keyspace.pairs.flushed(view, position.revision);
            self.durable.store(position.index, Release);
        } else {
            self.keyspace.pairs.flushed(view, i64::MIN);
        }
        if let Some(at) = finished {
            self.keyspace.finish(at);
        }
        load.jobs
            .into_iter()
            .for_each(|job| self.compactions.push(job));
        Ok(())
    }

    /// Rows leave the pending table with the pair that is published next; most reads want just these.
    fn keep_hot(&self, batch: &Batch) {
        for op in &batch.ops {
            if let Op::Put {
                bucket: Bucket::Key,
                key,
                value,
            } = op
                && let Some(RowKey {
                    revision,
                    tombstone: false,
                }) = RowKey::parse(key)
            {
                self.keyspace.cache.insert(revision, value.clone());
            }
        }
    }
}

fn write_position(batch: &mut Batch, position: &Position) {
    let meta = |name: &'static [u8]| bytes::Bytes::from_static(name);
    batch.put(
        Bucket::Meta,
        meta(CONSISTENT_INDEX),
        position.index.to_be_bytes().to_vec(),
    );
    batch.put(
        Bucket::Meta,
        meta(TERM),
        position.term.to_be_bytes().to_vec(),
    );
    if let Some(conf_state) = &position.conf_state {
        batch.put(Bucket::Meta, meta(CONF_STATE), conf_state.to_vec());
    }
}
