//! Segments made ahead of need, and the rest of the slow file work.
//!
//! [`NextSegment`] is the work as a value: each step creates the file or writes one MiB of zeros and syncs
//! it, so that little dirty data ever competes with the log's own fdatasync. [`Preparer`] runs the steps
//! on a thread, paced, or in the caller's when [`Prepare::Inline`]. Zero-filled space makes an fdatasync
//! of new records cheap: no block is allocated, no extent converted. A writer that comes before the end
//! takes the file as it is: reserved space reads as zeros too, and is only slower. Invariant: at most one
//! prepared segment exists, under the name `%016x.tmp` of its sequence. etcd:
//! server/storage/wal/file_pipeline.go.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};

use super::{Prepare, WalError};
use crate::disk::{Disk, DiskFile, ZERO_STEP_BYTES, zero_fill};

/// Pause between steps while nobody waits: 64 MB take about 0.7 s.
const PACE: Duration = Duration::from_millis(10);

/// Jobs that may wait for the thread: a cut brings two, a release one per segment. More make the caller wait.
const JOBS_MAX: usize = 64;

/// A segment being made: created, reserved, filled with zeros, synced.
pub(crate) struct NextSegment {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    size: u64,
    file: Option<Arc<dyn DiskFile>>,
    filled: u64,
}

impl NextSegment {
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf, size: u64) -> Self {
        NextSegment {
            disk,
            path,
            size,
            file: None,
            filled: 0,
        }
    }

    /// Does one step; the finished file when it was the last one.
    fn step(&mut self) -> Result<Option<Arc<dyn DiskFile>>, WalError> {
        let Some(file) = &self.file else {
            let file = self
                .disk
                .create(&self.path)
                .map_err(WalError::io("create", &self.path))?;
            let file: Arc<dyn DiskFile> = Arc::from(file);
            file.allocate(self.size)
                .map_err(WalError::io("reserve space for", &self.path))?;
            self.file = Some(file);
            return Ok(None);
        };
        if self.filled >= self.size {
            return Ok(Some(file.clone()));
        }
        let to = self.size.min(self.filled + ZERO_STEP_BYTES as u64);
        zero_fill(&**file, self.filled, to).map_err(WalError::io("zero", &self.path))?;
        file.sync_data().map_err(WalError::io("sync", &self.path))?;
        self.filled = to;
        Ok(None)
    }

    /// Does all the steps that are left.
    pub(crate) fn finish(&mut self) -> Result<Arc<dyn DiskFile>, WalError> {
        loop {
            if let Some(file) = self.step()? {
                return Ok(file);
            }
        }
    }
}

pub(crate) fn temporary_path(dir: &Path, seq: u64) -> PathBuf {
    dir.join(format!("{seq:016x}.tmp"))
}

enum Job {
    Make(NextSegment),
    /// Cuts a full segment to the length in use.
    Trim(PathBuf, Arc<dyn DiskFile>, u64),
    Remove(PathBuf),
}

type Made = Result<Arc<dyn DiskFile>, WalError>;

/// Does the jobs, here or on a thread.
pub(crate) struct Preparer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    size: u64,
    seq: u64,
    thread: Option<Thread>,
}

impl std::fmt::Debug for Preparer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preparer").field("seq", &self.seq).finish()
    }
}

struct Thread {
    jobs: SyncSender<Job>,
    made: Receiver<Made>,
    signal: Arc<Signal>,
    handle: JoinHandle<()>,
}

#[derive(Default)]
struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    hurry: bool,
    stop: bool,
}

impl Preparer {
    /// Begins to make the segment `seq`.
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        size: u64,
        seq: u64,
        prepare: Prepare,
    ) -> Result<Self, WalError> {
        let thread = match prepare {
            Prepare::Inline => None,
            Prepare::Background => Some(Thread::spawn(disk.clone(), &dir)?),
        };
        let preparer = Preparer {
            disk,
            dir,
            size,
            seq,
            thread,
        };
        preparer.make()?;
        Ok(preparer)
    }

    fn next_segment(&self) -> NextSegment {
        let path = temporary_path(&self.dir, self.seq);
        NextSegment::new(self.disk.clone(), path, self.size)
    }

    fn make(&self) -> Result<(), WalError> {
        match &self.thread {
            None => Ok(()),
            Some(thread) => thread.submit(Job::Make(self.next_segment())),
        }
    }

    /// The prepared segment and its temporary path. On the thread, waits for one step at most.
    pub(crate) fn take(&mut self) -> Result<(PathBuf, Arc<dyn DiskFile>), WalError> {
        let path = temporary_path(&self.dir, self.seq);
        let file = match &self.thread {
            None => self.next_segment().finish()?,
            Some(thread) => thread.wait()?,
        };
        Ok((path, file))
    }

    /// After the segment that was taken got its name: makes the one after it.
    pub(crate) fn advance(&mut self) -> Result<(), WalError> {
        self.seq += 1;
        self.make()
    }

    /// Cuts a full segment to `used` bytes, some time.
    pub(crate) fn trim(
        &self,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        used: u64,
    ) -> Result<(), WalError> {
        self.dispatch(Job::Trim(path, file, used))
    }

    /// Removes a released segment, some time.
    pub(crate) fn remove(&self, path: PathBuf) -> Result<(), WalError> {
        self.dispatch(Job::Remove(path))
    }

    fn dispatch(&self, job: Job) -> Result<(), WalError> {
        match &self.thread {
            None => {
                tidy(&*self.disk, job);
                Ok(())
            }
            Some(thread) => thread.submit(job),
        }
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        thread.signal.state.lock().stop = true;
        thread.signal.changed.notify_all();
        drop(thread.jobs);
        // A panic there has nothing to tell that the log's owner could act on now.
        let _ = thread.handle.join();
        // Zeros only: worth nothing to the next start, which makes its own.
        let _ = self.disk.remove(&temporary_path(&self.dir, self.seq));
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Thread {
    fn spawn(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, WalError> {
        let (jobs, queue) = sync_channel(JOBS_MAX);
        let (done, made) = sync_channel(1);
        let signal = Arc::new(Signal::default());
        let theirs = signal.clone();
        let handle = std::thread::Builder::new()
            .name("wal-prepare".into())
            .spawn(move || run(&*disk, &queue, &done, &theirs))
            .map_err(WalError::io("start a thread for", dir))?;
        Ok(Thread {
            jobs,
            made,
            signal,
            handle,
        })
    }

    fn submit(&self, job: Job) -> Result<(), WalError> {
        self.jobs.send(job).map_err(|_| WalError::Failed)
    }

    /// Ends with the step at hand, or with the thread.
    fn wait(&self) -> Made {
        self.signal.state.lock().hurry = true;
        self.signal.changed.notify_all();
        let made = self.made.recv().unwrap_or(Err(WalError::Failed));
        self.signal.state.lock().hurry = false;
        made
    }
}

fn run(disk: &dyn Disk, queue: &Receiver<Job>, done: &SyncSender<Made>, signal: &Signal) {
    // After a stop the rest of the queue is still tidied; the queue ends when its sender goes.
    while let Ok(job) = queue.recv() {
        match job {
            Job::Make(mut next) => {
                if let Some(made) = make_paced(&mut next, signal) {
                    // Fails only when nobody will ever take a segment again.
                    let _ = done.send(made);
                }
            }
            job => tidy(disk, job),
        }
    }
}

/// None when told to stop.
fn make_paced(next: &mut NextSegment, signal: &Signal) -> Option<Made> {
    loop {
        match next.step() {
            Ok(None) => {}
            Ok(Some(file)) => return Some(Ok(file)),
            Err(e) => return Some(Err(e)),
        }
        let mut state = signal.state.lock();
        if !state.hurry && !state.stop {
            signal.changed.wait_for(&mut state, PACE);
        }
        if state.stop {
            return None;
        }
        if state.hurry
            && let Some(file) = &next.file
        {
            return Some(Ok(file.clone()));
        }
    }
}

/// Failing here costs disk space, never a record: zeros at the end of a segment read as its end.
fn tidy(disk: &dyn Disk, job: Job) {
    let (path, result) = match job {
        // A segment is made where it is asked for.
        Job::Make(_) => return,
        Job::Trim(path, file, used) => {
            let result = file.truncate(used);
            (path, result)
        }
        Job::Remove(path) => {
            let result = disk.remove(&path);
            (path, result)
        }
    };
    match result {
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "failed to tidy a WAL segment")
        }
    }
}
