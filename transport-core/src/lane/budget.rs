//! How many bytes lanes may hold: each for itself, and all bulk queues of a process together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Default bound of a lane's control queue, in bytes. A control message takes about 250, so this is four
/// times what etcd queues.
pub const CONTROL_BYTES: usize = 4 << 20;

/// Default bound of a lane's bulk queue, in bytes. Raft's own window allows 512 appends of 1 MiB to a
/// follower; at 1 GB/s this is 64 ms of sending.
pub const BULK_BYTES: usize = 64 << 20;

/// Default bound of a pipeline's bulk queue, in bytes: a fallback of one request per message is not the
/// place to queue much.
pub const PIPELINE_BYTES: usize = 16 << 20;

/// Default bound of all bulk queues of a process together, in bytes.
pub const PROCESS_BYTES: usize = 512 << 20;

/// Bounds of one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of its control queue, in bytes.
    pub control_bytes: usize,
    /// Of its bulk queue, in bytes.
    pub bulk_bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget {
            control_bytes: CONTROL_BYTES,
            bulk_bytes: BULK_BYTES,
        }
    }
}

/// Bytes that several lanes share. Clones are handles of the same budget.
#[derive(Clone, Debug)]
pub struct SharedBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    used: AtomicUsize,
    bytes_max: usize,
}

impl SharedBudget {
    /// A budget of `bytes_max` bytes, all of them free.
    pub fn new(bytes_max: usize) -> SharedBudget {
        let used = AtomicUsize::new(0);
        SharedBudget(Arc::new(Shared { used, bytes_max }))
    }

    /// Takes bytes if they are there. A budget nobody draws on yields any amount, so that no message is too
    /// large for ever.
    pub fn take(&self, bytes: usize) -> bool {
        self.take_if(bytes, |used, sum| used == 0 || sum <= self.0.bytes_max)
    }

    /// Takes bytes if the budget has as many.
    pub(super) fn take_within(&self, bytes: usize) -> bool {
        self.take_if(bytes, |_, sum| sum <= self.0.bytes_max)
    }

    fn take_if(&self, bytes: usize, allowed: impl Fn(usize, usize) -> bool) -> bool {
        let taken = |used: usize| {
            let sum = used.saturating_add(bytes);
            allowed(used, sum).then_some(sum)
        };
        let used = &self.0.used;
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
            .is_ok()
    }

    /// Gives back bytes that were taken.
    pub fn give(&self, bytes: usize) {
        let before = self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more given back than was taken");
    }

    /// Bytes taken and not given back.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Default for SharedBudget {
    fn default() -> Self {
        SharedBudget::new(PROCESS_BYTES)
    }
}
