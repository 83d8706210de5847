//! The load: how many messages are in flight, when the sender goes on, and what a run is told to have cost.
//!
//! A window of one is a round trip: the receiver answers each message and the answer sends the next. Otherwise the
//! sender fills its window in batches and goes on when half of it is free. Invariant: a run ends with nothing in
//! flight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{sync::Notify, time::timeout};

use crate::counting::allocations;

/// How many messages are handed over at once at most.
pub const BATCH_MAX: u64 = 64;
/// When a run that makes no progress is given up.
const STUCK: Duration = Duration::from_secs(10);

/// What both ends of a run share.
#[derive(Default)]
pub struct Load {
    pub sent: AtomicU64,
    done: AtomicU64,
    /// How few messages in flight the sender waits for: half of the window, in the end none.
    limit: AtomicU64,
    /// Whether the receiver answers.
    pub is_round_trip: AtomicBool,
    /// Whether the time is up.
    over: AtomicBool,
    wake: Notify,
}

impl Load {
    /// The receiver has got this many.
    pub fn arrived(&self, messages: u64) {
        let before = self.done.fetch_add(messages, SeqCst);
        let (sent, limit) = (self.sent.load(SeqCst), self.limit.load(SeqCst));
        if sent > before + limit && sent <= before + messages + limit {
            self.wake.notify_one();
        }
    }

    /// The sender has got an answer; whether to go on.
    pub fn answered(&self) -> bool {
        let over = self.over.load(SeqCst);
        if over {
            self.wake.notify_one();
        } else {
            self.sent.fetch_add(1, SeqCst);
        }
        !over
    }

    fn in_flight(&self) -> u64 {
        self.sent.load(SeqCst) - self.done.load(SeqCst)
    }
}

/// Who carries the messages.
pub trait Carrier: Send + Sync + 'static {
    /// The state of its runs.
    fn load(&self) -> &Load;
    /// Payloads have this size from now on.
    fn prepare(&self, size: usize);
    /// Sends this many messages.
    fn send(&self, messages: u64) -> impl Future<Output = ()> + Send;
    /// Allocations made only to have something to send.
    fn own_allocations(&self, messages: u64, batches: u64) -> u64;
}

/// One run; its figures as JSON.
pub async fn run<C: Carrier>(
    carrier: Arc<C>,
    size: usize,
    window: u64,
    length: Duration,
) -> Result<String, String> {
    carrier.prepare(size);
    let load = carrier.load();
    for counter in [&load.sent, &load.done] {
        counter.store(0, SeqCst);
    }
    load.limit.store(window / 2, SeqCst);
    load.over.store(false, SeqCst);
    load.is_round_trip.store(window == 1, SeqCst);
    let (allocs, cpu, begun) = (allocations(), cpu_ns(), Instant::now());
    let running = async {
        if window == 1 {
            round_trips(&*carrier, length).await
        } else {
            fill(&*carrier, window, begun + length).await
        }
    };
    let batches = timeout(length + STUCK, running)
        .await
        .map_err(|_| format!("a message was lost: {} in flight", load.in_flight()))?;
    let elapsed = begun.elapsed();
    let messages = load.sent.load(SeqCst);
    let own = carrier.own_allocations(messages, batches);
    Ok(format!(
        r#"{{"messages":{messages},"ns":{},"cpu_ns":{},"allocs":{}}}"#,
        elapsed.as_nanos(),
        cpu_ns() - cpu,
        (allocations() - allocs).saturating_sub(own),
    ))
}

/// Lets one message go back and forth; how many batches were made.
async fn round_trips<C: Carrier>(carrier: &C, length: Duration) -> u64 {
    let load = carrier.load();
    load.sent.store(1, SeqCst);
    carrier.send(1).await;
    tokio::time::sleep(length).await;
    load.over.store(true, SeqCst);
    load.wake.notified().await;
    2 * load.sent.load(SeqCst)
}

/// Keeps the window filled; how many batches were made.
async fn fill<C: Carrier>(carrier: &C, window: u64, deadline: Instant) -> u64 {
    let load = carrier.load();
    let mut batches = 0;
    loop {
        let more = Instant::now() < deadline;
        if !more {
            load.limit.store(0, SeqCst);
        }
        while load.in_flight() > load.limit.load(SeqCst) {
            load.wake.notified().await;
        }
        if !more {
            return batches;
        }
        let mut room = window - load.in_flight();
        while room > 0 {
            let batch = room.min(BATCH_MAX);
            room -= batch;
            batches += 1;
            load.sent.fetch_add(batch, SeqCst);
            carrier.send(batch).await;
        }
    }
}

/// User and system time of the process.
fn cpu_ns() -> u64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    // The clock of a process counts up from zero.
    spent.tv_sec as u64 * 1_000_000_000 + spent.tv_nsec as u64
}
