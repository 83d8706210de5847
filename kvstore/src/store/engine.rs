//! The two threads beside apply: the one that flushes, and the one that compacts.
//!
//! Invariant: both are joined before the engine is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::*},
    },
    thread::{Builder, JoinHandle},
};

use crate::{
    apply::Machine,
    backend::Backend,
    compaction::{CompactionInbox, CompactionThread},
    error::{FatalError, OpenError},
    flush::{Backlog, FlushThread},
};

use super::StoreConfig;

/// The running threads and what apply hands them work through.
pub(crate) struct Engine {
    pub backlog: Arc<Backlog>,
    inbox: Arc<CompactionInbox>,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts both threads for `machine`.
    pub fn start(
        config: &StoreConfig,
        backend: Arc<dyn Backend>,
        machine: &Machine,
        durable: Arc<AtomicU64>,
    ) -> Result<Engine, OpenError> {
        let backlog = Arc::new(Backlog::new(config.flush_limits()));
        let inbox = Arc::new(CompactionInbox::default());
        let flush = FlushThread {
            backlog: backlog.clone(),
            backend,
            keyspace: machine.keyspace.clone(),
            durable,
            sizes: machine.sizes.clone(),
            compactions: inbox.clone(),
            metrics: machine.metrics.clone(),
            on_fatal: config.on_fatal.clone(),
        };
        let compaction = CompactionThread {
            inbox: inbox.clone(),
            backlog: backlog.clone(),
            keyspace: machine.keyspace.clone(),
            metrics: machine.metrics.clone(),
            on_fatal: config.on_fatal.clone(),
        };
        let mut engine = Engine {
            backlog,
            inbox,
            threads: Vec::new(),
        };
        engine.spawn("kv-flush", move || flush.run())?;
        engine.spawn("kv-compact", move || compaction.run())?;
        Ok(engine)
    }

    fn spawn(
        &mut self,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), OpenError> {
        let thread = Builder::new().name(name.into()).spawn(run);
        self.threads
            .push(thread.map_err(|error| OpenError::Thread(name, error))?);
        Ok(())
    }

    /// Ends both threads; what was handed over is written first, or dropped.
    pub fn stop(&mut self, discard: bool) -> Result<(), FatalError> {
        self.inbox.close();
        self.backlog.close(discard);
        let mut outcome = Ok(());
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                outcome = Err(FatalError::Commit("a background thread panicked".into()));
            }
        }
        self.backlog.failure().map_or(outcome, Err)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What it would report has been reported through `on_fatal`.
        drop(self.stop(true));
    }
}

/// Up to which entry a crash loses nothing.
pub(crate) fn durable_at(index: u64) -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(index))
}

/// Moves `durable`, which others hold, to another store's index.
pub(crate) fn reset_durable(durable: &AtomicU64, index: u64) {
    durable.store(index, Release);
}
