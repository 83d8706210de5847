//! The raft task: whatever arrived goes into the driver, and its effects out to its neighbours.
//!
//! A task and not a thread, so that it runs where the sockets are: what a member or a client sends reaches raft,
//! and raft's answer the socket, without a hand-off between threads, each of which costs more than raft's own
//! work. Invariants: it never waits for the disk or the state machine; a turn takes everything that the tasks
//! ready before it had to bring; its end, whatever the reason, ends the threads.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, atomic::Ordering, mpsc::SyncSender},
    task::Poll,
    time::Duration,
};

use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};
use transport_core::raftpb::{ConfState, Message};

use crate::{
    apply::ApplyTask,
    driver::{Driver, Effects, Event},
    inbox::{Arrived, Batch, Mailbox, ReadWaiter},
    patience::Patience,
    persist::WalTask,
    threads::{Ending, text},
};

/// Entries in the log and not applied from which on a turn lets other threads go first. Fewer clients that wait for
/// each other's puts fill a turn by themselves.
const UNDER_WAY_MIN: u64 = 32;

/// Applies tasks here and now, if it can, and returns what the driver is to be told; otherwise leaves them.
pub(crate) type ApplyAtOnce = Box<dyn FnMut(&mut Vec<ApplyTask>) -> Option<Event> + Send>;

/// Where effects go.
pub(crate) struct Neighbours<T> {
    pub transport: Arc<T>,
    pub send: fn(&T, Vec<Message>),
    pub wal: Arc<Mailbox<WalTask>>,
    pub apply: Arc<Mailbox<ApplyTask>>,
    pub at_once: ApplyAtOnce,
    /// To the apply thread, which waits for one at a time.
    pub conf_states: SyncSender<ConfState>,
}

/// See the module.
pub(crate) struct RaftTask<R, T> {
    ending: Arc<Ending<R>>,
    driver: Driver,
    to: Neighbours<T>,
    batch: Batch,
    tickets: HashMap<u64, Vec<ReadWaiter>>,
    next_ticket: u64,
    epoch: Instant,
    tick: Duration,
    next_tick: Instant,
    patience: Patience,
}

impl<R, T> RaftTask<R, T> {
    pub fn new(ending: Arc<Ending<R>>, driver: Driver, to: Neighbours<T>, tick: Duration) -> Self {
        let now = Instant::now();
        let task = RaftTask {
            ending,
            driver,
            to,
            batch: Batch::default(),
            tickets: HashMap::new(),
            next_ticket: 0,
            epoch: now,
            tick,
            next_tick: now + tick,
            patience: Patience::new(UNDER_WAY_MIN),
        };
        task.publish();
        task
    }

    /// Takes turns until the inbox is closed.
    pub async fn run(mut self) {
        let ending = self.ending.clone();
        let inbox = &ending.0.inbox;
        let mut timer = pin!(sleep_until(self.next_tick));
        let mut awaits_disk = self.driver.awaits_disk();
        loop {
            let arrived = poll_fn(|cx| match inbox.wake_when_arrived(cx, awaits_disk) {
                Arrived::Nothing => timer.as_mut().poll(cx).map(|()| Arrived::Nothing),
                arrived => Poll::Ready(arrived),
            });
            if matches!(arrived.await, Arrived::Closed) {
                break;
            }
            // Whatever else is ready to bring something goes first: one turn is enough for all of it.
            yield_now().await;
            if self.let_threads_go_first() {
                // What they brought is at the sockets.
                yield_now().await;
            }
            match catch_unwind(AssertUnwindSafe(|| self.step())) {
                Ok((awaits, wakes_at)) => {
                    awaits_disk = awaits;
                    if timer.deadline() != wakes_at {
                        timer.as_mut().reset(wakes_at);
                    }
                }
                Err(panic) => {
                    let reason = text(&*panic);
                    ending.0.fatal(format!("raft task panicked: {reason}"));
                    return;
                }
            }
        }
        let mut last = self.driver.stop(self.epoch.elapsed());
        self.to.wal.push_all(&mut last.wal);
    }

    /// Lets other threads have this core, if that is worth it; whether it was done.
    fn let_threads_go_first(&mut self) -> bool {
        let numbers = &self.ending.0.numbers;
        let last = numbers.last_index.load(Ordering::Relaxed);
        let applied = numbers.applied.load(Ordering::Relaxed);
        self.patience.let_others_go(last.saturating_sub(applied))
    }

    /// A turn, and a tick if one is due. Returns whether news of the disk are worth waking up for, and when to
    /// wake up in any case.
    fn step(&mut self) -> (bool, Instant) {
        self.ending.0.inbox.take(&mut self.batch);
        self.turn();
        let now = Instant::now();
        if now >= self.next_tick {
            // Late ticks are not made up for: they would only let an election time out at once.
            self.next_tick = (self.next_tick + self.tick).max(now);
            self.on_tick();
        }
        let due = self.driver.due().map(|due| self.epoch + due);
        let wakes_at = due.map_or(self.next_tick, |due| due.min(self.next_tick));
        (self.driver.awaits_disk(), wakes_at)
    }

    /// One turn: everything that arrived, then one round of effects.
    fn turn(&mut self) {
        let now = self.epoch.elapsed();
        let batch = &mut self.batch;
        for event in batch.events.drain(..) {
            self.driver.event(now, event);
        }
        for message in batch.messages.drain(..) {
            self.driver.message(now, message);
        }
        if !batch.proposals.is_empty() {
            self.driver.propose(now, mem::take(&mut batch.proposals));
        }
        if !batch.reads.is_empty() {
            self.next_ticket += 1;
            let waiters = mem::take(&mut batch.reads);
            self.tickets.insert(self.next_ticket, waiters);
            self.driver.read(now, self.next_ticket);
        }
        let effects = self.driver.settle(now);
        self.carry_out(effects);
    }

    fn on_tick(&mut self) {
        let now = self.epoch.elapsed();
        self.driver.tick(now);
        let effects = self.driver.settle(now);
        *self.ending.0.progress.lock() = self.driver.progress();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, mut effects: Effects) {
        let shared = &self.ending.0;
        self.publish();
        if !effects.send.is_empty() {
            (self.to.send)(&self.to.transport, effects.send);
        }
        self.to.wal.push_all(&mut effects.wal);
        for state in effects.conf_states {
            // The apply thread waits for exactly this; it is gone only when the node ends.
            let _ = self.to.conf_states.try_send(state);
        }
        if let Some(applied) = (self.to.at_once)(&mut effects.apply) {
            // What follows from it comes out with the next turn, as when the thread tells it.
            self.driver.event(self.epoch.elapsed(), applied);
        }
        self.to.apply.push_all(&mut effects.apply);
        for (id, error) in effects.failed_proposals {
            shared.waiters.answer(id, Err(error));
        }
        for (ticket, index) in effects.confirmed_reads {
            if let Some(waiters) = self.tickets.remove(&ticket) {
                shared.when_applied(index, waiters);
            }
        }
        for (ticket, error) in effects.failed_reads {
            for waiter in self.tickets.remove(&ticket).unwrap_or_default() {
                waiter.answer(Err(error.clone()));
            }
        }
        if let Some(leadership) = effects.leadership {
            *shared.progress.lock() = self.driver.progress();
            shared.leadership.send_replace(leadership);
        }
        if let Some(reason) = effects.fatal {
            shared.fatal(reason);
        }
    }

    fn publish(&self) {
        let from = self.driver.numbers();
        let to = &self.ending.0.numbers;
        to.term.store(from.term, Ordering::Relaxed);
        to.leader.store(from.leader, Ordering::Relaxed);
        to.role.store(from.role as u8, Ordering::Relaxed);
        to.last_index.store(from.last_index, Ordering::Relaxed);
        to.snapshot_index
            .store(from.snapshot_index, Ordering::Relaxed);
        to.log_lost.store(from.log_lost, Ordering::Relaxed);
        to.backlogged.store(from.backlogged, Ordering::Relaxed);
        to.committed.store(from.committed, Ordering::Relaxed);
        let committed = &self.ending.0.metrics.proposals_committed;
        committed.set(from.committed as f64);
    }
}

/// Also when its runtime ends before it.
impl<R, T> Drop for RaftTask<R, T> {
    fn drop(&mut self) {
        self.ending.0.close();
        self.to.wal.close();
        self.to.apply.close();
    }
}
