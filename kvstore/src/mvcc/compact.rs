//! Physical compaction: taking the rows that no readable revision needs, beside everything else.
//!
//! A value that is stepped: it takes marks from the index and hands out the deletes of their rows, a bounded number
//! at a time. It begins once the batch that decided the compaction is in the backend, so that the rows are there to
//! be deleted; after a restart the index holds them again and the job is done over.
//!
//! Invariant: nothing is taken that a pinned reader needs, and jobs are done in the order in which they came.

use std::time::Duration;

use super::{
    hash::hash_of_compaction,
    keyspace::Keyspace,
    restore::{FINISHED_COMPACT, compact_row},
    revision::RowKey,
};
use crate::{
    backend::{Batch, Bucket},
    error::ApplyError,
};

/// Rows deleted by one commit.
const DELETES_PER_BATCH: usize = 10_000;
/// Holds of the index lock between two looks at whether the thread shall stop.
const HOLDS_PER_STEP: usize = 64;
/// How long to wait for a reader below the revision to end before looking again.
const READER_POLL: Duration = Duration::from_millis(10);
/// A compaction that has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// Revision to compact at.
    pub at: i64,
    /// Revision of the compaction before.
    pub previous: i64,
    /// Whether the compaction before was physically done, so that a hash of this one means something.
    pub hash: bool,
}

/// What is to be done next.
pub(crate) enum Step {
    /// There is no job.
    Idle,
    /// Nothing can be done before this time has passed.
    Wait(Duration),
    /// Go on at once.
    Again,
    /// Write these deletes; with `finished` the job is done once they are in the backend.
    Write {
        batch: Batch,
        deletes: usize,
        finished: Option<i64>,
    },
}

/// The compaction engine; does one job at a time.
#[derive(Default)]
pub(crate) struct Compactor {
    running: Option<Running>,
}

struct Running {
    job: Job,
    /// Where the walk through the index goes on; `None` before the floor has been raised.
    walk: Option<Walk>,
}

struct Walk {
    resume: Option<Box<[u8]>>,
    done: bool,
    dropped: Vec<RowKey>,
}

impl Compactor {
    /// Whether the last job is done.
    pub fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Begins a job; the one before must be done.
    pub fn begin(&mut self, job: Job) {
        debug_assert!(self.is_idle());
        self.running = Some(Running { job, walk: None });
    }

    /// Does the next piece of work.
    pub fn step(&mut self, keyspace: &Keyspace) -> Result<Step, ApplyError> {
        let Some(running) = &mut self.running else {
            return Ok(Step::Idle);
        };
        let at = running.job.at;
        let Some(walk) = &mut running.walk else {
            return running.begin(keyspace);
        };
        for _ in 0..HOLDS_PER_STEP {
            if walk.done || walk.dropped.len() >= DELETES_PER_BATCH {
                break;
            }
            let limit = DELETES_PER_BATCH - walk.dropped.len();
            let resume = walk.resume.take();
            walk.resume = keyspace.index.compact(at, resume, limit, &mut walk.dropped);
            walk.done = walk.resume.is_none();
        }
        if !walk.done && walk.dropped.len() < DELETES_PER_BATCH {
            return Ok(Step::Again);
        }
        let done = walk.done;
        let mut batch = Batch::default();
        let deletes = walk.dropped.len();
        for row in walk.dropped.drain(..) {
            batch.delete(Bucket::Key, row.to_vec());
        }
        if done {
            batch.put(Bucket::Meta, FINISHED_COMPACT, compact_row(at));
            self.running = None;
        }
        Ok(Step::Write {
            batch,
            deletes,
            finished: done.then_some(at),
        })
    }
}

impl Running {
    fn begin(&mut self, keyspace: &Keyspace) -> Result<Step, ApplyError> {
        if self.job.hash {
            let hash = hash_of_compaction(keyspace, self.job.previous, self.job.at)?;
            keyspace.hashes.store(hash);
            self.job.hash = false;
        }
        if !keyspace.index.raise_floor(self.job.at) {
            return Ok(Step::Wait(READER_POLL));
        }
        self.walk = Some(Walk {
            resume: None,
            done: false,
            dropped: Vec::new(),
        });
        Ok(Step::Again)
    }
}
