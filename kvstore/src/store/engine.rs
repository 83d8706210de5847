//! The two threads beside apply: the one that flushes, and the one that compacts.
//!
//! Invariant: both are joined before the engine is gone; one that ends before it is told to, by a panic as by an
//! error, says so to apply and to the owner of the store.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
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
        engine.spawn(config, "kv-flush", move || flush.run())?;
        engine.spawn(config, "kv-compact", move || compaction.run())?;
        Ok(engine)
    }

    fn spawn(
        &mut self,
        config: &StoreConfig,
        name: &'static str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), OpenError> {
        let (backlog, on_fatal) = (self.backlog.clone(), config.on_fatal.clone());
        let thread = Builder::new().name(name.into()).spawn(move || {
            // The backend's engine panics on some damage. Nothing is used any more that a panic left half done.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
                let error = FatalError::Panicked {
                    thread: name,
                    message: text(&*panic).into(),
                };
                backlog.fail(error.clone());
                on_fatal(error);
            }
        });
        self.threads
            .push(thread.map_err(|error| OpenError::Thread(name, error))?);
        Ok(())
    }

    /// Ends both threads; what was handed over is written first, or dropped.
    pub fn stop(&mut self, discard: bool) -> Result<(), FatalError> {
        self.inbox.close();
        self.backlog.close(discard);
        for thread in self.threads.drain(..) {
            // A panic was caught within.
            let _ = thread.join();
        }
        self.backlog.failure().map_or(Ok(()), Err)
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    let fixed = panic.downcast_ref::<&str>().copied();
    owned.or(fixed).unwrap_or("without a message")
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
