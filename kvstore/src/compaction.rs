//! The thread that compacts physically, and the inbox its jobs come through.
//!
//! Invariant: a job comes here only after the batch that decided it is in the backend.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    error::FatalError,
    flush::Backlog,
    metrics::StoreMetrics,
    mvcc::{
        compact::{Compactor, Job, Step},
        keyspace::Keyspace,
    },
};

/// Jobs that may wait. One more makes the last two one, which takes the same rows.
const QUEUED_MAX: usize = 64;

/// Jobs on their way to the compaction thread.
#[derive(Default)]
pub(crate) struct CompactionInbox {
    state: Mutex<Inbox>,
    changed: Condvar,
}

#[derive(Default)]
struct Inbox {
    queue: VecDeque<Job>,
    closing: bool,
}

impl CompactionInbox {
    /// Adds a job.
    pub fn push(&self, job: Job) {
        let mut state = self.state.lock();
        let full = state.queue.len() >= QUEUED_MAX;
        match state.queue.back_mut() {
            Some(last) if full => {
                last.at = job.at;
                last.hash = false;
            }
            _ => state.queue.push_back(job),
        }
        self.changed.notify_one();
    }

    /// Tells the thread to end.
    pub fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    /// Pauses, then waits until there is something for `compactor` to do; false to end.
    fn wait(&self, compactor: &mut Compactor, pause: Duration) -> bool {
        let mut state = self.state.lock();
        if !pause.is_zero() && !state.closing {
            self.changed.wait_for(&mut state, pause);
        }
        while !state.closing && compactor.is_idle() {
            match state.queue.pop_front() {
                Some(job) => compactor.begin(job),
                None => self.changed.wait(&mut state),
            }
        }
        !state.closing
    }
}

/// The loop around the compactor.
pub(crate) struct CompactionThread {
    pub inbox: Arc<CompactionInbox>,
    pub backlog: Arc<Backlog>,
    pub keyspace: Arc<Keyspace>,
    pub metrics: Arc<StoreMetrics>,
    pub on_fatal: Arc<dyn Fn(FatalError) + Send + Sync>,
}

impl CompactionThread {
    /// Runs until the inbox is closed or the backend fails.
    pub fn run(self) {
        let mut compactor = Compactor::default();
        let mut pause = Duration::ZERO;
        let mut began: Option<Instant> = None;
        while self.inbox.wait(&mut compactor, pause) {
            pause = Duration::ZERO;
            let started = Instant::now();
            let job_began = *began.get_or_insert(started);
            match compactor.step(&self.keyspace) {
                Ok(Step::Idle | Step::Again) => {}
                Ok(Step::Wait(time)) => pause = time,
                Ok(Step::Write {
                    batch,
                    deletes,
                    finished,
                }) => {
                    self.metrics.compacted(deletes, started.elapsed());
                    // A failed commit is reported by the flush thread.
                    if self.backlog.write_background(batch, finished).is_err() {
                        return;
                    }
                    if let Some(at) = finished {
                        self.finished(at, job_began.elapsed());
                        began = None;
                    }
                }
                Err(error) => {
                    (self.on_fatal)(FatalError::Read(error.to_string()));
                    return;
                }
            }
        }
    }

    fn finished(&self, at: i64, took: Duration) {
        self.metrics.compaction_finished(took);
        tracing::info!(
            "compact-revision" = at,
            ?took,
            "finished scheduled compaction"
        );
    }
}
