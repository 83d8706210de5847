//! The writer that follows: apply hands over rows, a thread of its own brings them into the backend.
//!
//! [`Backlog`] is the hand-over, bounded in bytes; [`Flusher`] decides when a batch is due (a value: time and load
//! go in, an action comes out); [`FlushThread`] is the loop around it. A batch ends at an entry boundary and carries
//! that entry's index and term and the raft configuration, so that what a crash takes is exactly what the log
//! replays.
//!
//! Invariant: batches are committed in order; a batch's index becomes `durable` only after its commit returned; a
//! commit that fails is reported, never retried, since what reached the disk is unknown.

mod flusher;
mod thread;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use self::flusher::{Action, Flusher, Sight};
pub(crate) use self::thread::{FlushThread, Sizes};
use crate::{
    backend::{Batch, Op},
    error::FatalError,
    mvcc::compact::Job,
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

    /// Whether so many bytes more stay within the bound.
    pub fn has_room(&self, bytes: usize) -> bool {
        let state = self.state.lock();
        state.load.bytes + state.in_flight_bytes + bytes <= self.limits.backlog_bytes_max
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

    /// Nothing can be written any more. The first reason counts.
    pub fn fail(&self, error: FatalError) {
        let mut state = self.state.lock();
        state.committing = false;
        state.failed.get_or_insert(error);
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
            background: self.load.background.is_some(),
            urgent: self.urgent,
            closing: self.closing,
        }
    }
}
