//! The writer that follows: apply hands over rows, a thread of its own brings them into the backend.
//!
//! [`Backlog`] is the hand-over, bounded in bytes; [`Flusher`] decides when a batch is due (a value: time and load
//! go in, an action comes out); [`FlushThread`] is the loop around it. A batch ends at an entry boundary and carries
//! that entry's index and term and the raft configuration, so that what a crash takes is exactly what the log
//! replays.
//!
//! Invariant: batches are committed in order; a batch's index becomes `durable` only after its commit returned; a
//! commit that fails is reported, never retried, since what reached the disk is unknown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::*},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::{
    backend::{Backend, Batch, Bucket, Op},
    compaction::CompactionInbox,
    error::FatalError,
    metrics::StoreMetrics,
    mvcc::{compact::Job, keyspace::Keyspace, revision::RowKey},
};

/// Key of the row that says up to which entry the backend is.
pub(crate) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// Key of the row with that entry's term.
pub(crate) const TERM: &[u8] = b"term";
/// Key of the row with the raft configuration after that entry.
pub(crate) const CONF_STATE: &[u8] = b"confState";

/// When batches are written, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushLimits {
    /// The longest a change waits before its batch is begun.
    pub interval: Duration,
    /// A batch is begun at once when this much waits.
    pub batch_bytes: usize,
    /// Past this, waiting and being written taken together, apply waits.
    pub backlog_bytes_max: usize,
}

/// Where in the log a hand-over ends.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub index: u64,
    pub term: u64,
    /// JSON of the configuration after `index`; `None` as long as there is none.
    pub conf_state: Option<Arc<Vec<u8>>>,
    /// Main revision after `index`.
    pub revision: i64,
}

/// A consistent piece of work for the backend.
#[derive(Default)]
pub(crate) struct Load {
    batch: Batch,
    bytes: usize,
    position: Option<Position>,
    jobs: Vec<Job>,
    background: Option<Background>,
}

struct Background {
    batch: Batch,
    finished: Option<i64>,
}

#[derive(Default)]
struct State {
    load: Load,
    in_flight_bytes: usize,
    /// Somebody waits for the present load.
    urgent: bool,
    closing: bool,
    /// Commits that have returned.
    commits: u64,
    /// A load has been taken and its commit has not returned.
    committing: bool,
    failed: Option<FatalError>,
}

/// The hand-over between apply, compaction and the flush thread.
pub(crate) struct Backlog {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
    limits: FlushLimits,
}

impl Backlog {
    /// An empty backlog.
    pub fn new(limits: FlushLimits) -> Self {
        Backlog {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            limits,
        }
    }

    /// Hands over what apply did up to `position`; `batch` is left empty. Does not wait.
    pub fn hand_over(&self, batch: &mut Batch, position: Position, jobs: &mut Vec<Job>) {
        let bytes: usize = batch.ops.iter().map(weight).sum();
        let mut state = self.state.lock();
        let was_idle = state.load.position.is_none();
        let was_small = state.load.bytes < self.limits.batch_bytes;
        let load = &mut state.load;
        load.batch.ops.append(&mut batch.ops);
        load.bytes += bytes;
        load.position = Some(position);
        load.jobs.append(jobs);
        // The thread wakes by itself for anything but the first hand-over and the one that fills a batch.
        let filled = was_small && load.bytes >= self.limits.batch_bytes;
        if was_idle || filled {
            self.work.notify_one();
        }
    }

    /// Waits until the backlog is within its bound, and returns how long that took if it was not.
    pub fn wait_for_room(&self) -> Result<Option<Duration>, FatalError> {
        let mut state = self.state.lock();
        let mut began = None;
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.load.bytes + state.in_flight_bytes <= self.limits.backlog_bytes_max {
                return Ok(began.map(|began: Instant| began.elapsed()));
            }
            began.get_or_insert_with(Instant::now);
            self.work.notify_one();
            self.room.wait(&mut state);
        }
    }

    /// Hands over the deletes of a compaction and waits until they are in the backend.
    pub fn write_background(&self, batch: Batch, finished: Option<i64>) -> Result<(), FatalError> {
        let mut state = self.state.lock();
        // One background batch at a time: only the compaction thread writes them, and it waits for each.
        debug_assert!(state.load.background.is_none());
        state.load.background = Some(Background { batch, finished });
        self.work.notify_one();
        while state.load.background.is_some() && state.failed.is_none() && !state.closing {
            self.room.wait(&mut state);
        }
        let taken_in = state.commits + 1;
        while state.committing && state.commits < taken_in && state.failed.is_none() {
            self.room.wait(&mut state);
        }
        match &state.failed {
            Some(error) => Err(error.clone()),
            None if state.load.background.is_some() => Err(FatalError::Closed),
            None => Ok(()),
        }
    }

    /// Has everything handed over so far committed, and waits for it.
    pub fn flush(&self) -> Result<(), FatalError> {
        let mut state = self.state.lock();
        // What is being committed now may have begun before the last hand-over.
        let enough = state.commits + u64::from(state.committing) + 1;
        while state.failed.is_none() && state.commits < enough {
            if state.load.is_empty() && !state.committing {
                break;
            }
            state.urgent = true;
            self.work.notify_one();
            self.room.wait(&mut state);
        }
        state.failed.clone().map_or(Ok(()), Err)
    }

    /// Tells the thread to end: after writing what waits, or at once.
    pub fn close(&self, discard: bool) {
        let mut state = self.state.lock();
        if discard {
            state.load = Load::default();
        }
        state.closing = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Bytes handed over and not yet in the backend.
    pub fn bytes(&self) -> usize {
        let state = self.state.lock();
        state.load.bytes + state.in_flight_bytes
    }

    /// The error that stopped the thread, if one did.
    pub fn failure(&self) -> Option<FatalError> {
        self.state.lock().failed.clone()
    }

    /// Waits for the next load; `None` to end.
    fn next(&self, flusher: &mut Flusher) -> Option<Load> {
        let mut state = self.state.lock();
        loop {
            match flusher.handle(Instant::now(), state.sight()) {
                Action::Wait(None) => self.work.wait(&mut state),
                Action::Wait(Some(time)) => drop(self.work.wait_for(&mut state, time)),
                Action::Commit => {
                    let load = std::mem::take(&mut state.load);
                    state.urgent = false;
                    state.in_flight_bytes = load.bytes;
                    state.committing = true;
                    self.room.notify_all();
                    return Some(load);
                }
                Action::Stop => return None,
            }
        }
    }

    fn committed(&self) {
        let mut state = self.state.lock();
        state.in_flight_bytes = 0;
        state.committing = false;
        state.commits += 1;
        self.room.notify_all();
    }

    fn fail(&self, error: FatalError) {
        let mut state = self.state.lock();
        state.committing = false;
        state.failed = Some(error);
        self.room.notify_all();
    }
}

/// What an operation weighs beside its bytes: its place in the batch and the handles on its rows.
const OP_OVERHEAD_BYTES: usize = 128;

/// Bytes an operation holds while it waits.
pub(crate) fn weight(op: &Op) -> usize {
    OP_OVERHEAD_BYTES
        + match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } => key.len(),
        }
}

impl Load {
    fn is_empty(&self) -> bool {
        self.position.is_none() && self.background.is_none()
    }
}

impl State {
    fn sight(&self) -> Sight {
        Sight {
            bytes: self.load.bytes,
            empty: self.load.is_empty(),
            urgent: self.urgent,
            closing: self.closing,
        }
    }
}

/// What the flusher sees of the backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub bytes: usize,
    pub empty: bool,
    pub urgent: bool,
    pub closing: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for a change of the backlog, or for this long.
    Wait(Option<Duration>),
    /// Take the load and commit it.
    Commit,
    /// End.
    Stop,
}

/// Decides when a batch is due.
pub(crate) struct Flusher {
    limits: FlushLimits,
    /// When the present load was first seen.
    since: Option<Instant>,
}

impl Flusher {
    /// A flusher that has seen nothing.
    pub fn new(limits: FlushLimits) -> Self {
        Flusher {
            limits,
            since: None,
        }
    }

    /// Looks at the backlog at `now`.
    pub fn handle(&mut self, now: Instant, sight: Sight) -> Action {
        if sight.empty {
            self.since = None;
            return if sight.closing {
                Action::Stop
            } else {
                Action::Wait(None)
            };
        }
        let waited = now.duration_since(*self.since.get_or_insert(now));
        let due = waited >= self.limits.interval
            || sight.bytes >= self.limits.batch_bytes
            || sight.urgent
            || sight.closing;
        if due {
            self.since = None;
            Action::Commit
        } else {
            Action::Wait(Some(self.limits.interval - waited))
        }
    }
}

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
        let failed = |error: crate::backend::BackendError| FatalError::Commit(error.to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FlushLimits = FlushLimits {
        interval: Duration::from_millis(100),
        batch_bytes: 1000,
        backlog_bytes_max: 10_000,
    };

    #[test]
    fn a_batch_is_due_after_the_interval_or_when_it_is_full_or_wanted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let idle = Sight {
            bytes: 0,
            empty: true,
            urgent: false,
            closing: false,
        };
        let some = Sight {
            bytes: 10,
            empty: false,
            ..idle
        };
        let mut flusher = Flusher::new(LIMITS);
        assert_eq!(flusher.handle(at(0), idle), Action::Wait(None));
        let wait = |ms| Action::Wait(Some(Duration::from_millis(ms)));
        assert_eq!(flusher.handle(at(5), some), wait(100));
        assert_eq!(flusher.handle(at(65), some), wait(40));
        assert_eq!(flusher.handle(at(105), some), Action::Commit);
        // The time of the next batch begins when it is seen.
        assert_eq!(flusher.handle(at(300), some), wait(100));
        let full = Sight {
            bytes: 1000,
            ..some
        };
        assert_eq!(flusher.handle(at(310), full), Action::Commit);
        let urgent = Sight {
            urgent: true,
            ..some
        };
        assert_eq!(flusher.handle(at(310), urgent), Action::Commit);
        let closing = Sight {
            closing: true,
            ..some
        };
        assert_eq!(flusher.handle(at(310), closing), Action::Commit);
        let closed = Sight {
            closing: true,
            ..idle
        };
        assert_eq!(flusher.handle(at(310), closed), Action::Stop);
    }
}
