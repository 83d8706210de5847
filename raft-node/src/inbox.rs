//! What waits for the raft task, and the mailbox of the two threads behind it.
//!
//! Producers push under a short lock and wake the consumer only when it sleeps; it takes everything at once. Invariant: received messages, local proposals and reads are bounded by the room they take, and
//! events by what the raft task itself has under way.

use std::{
    mem,
    task::{Context, Waker},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};
use transport_core::raftpb::Message;

use crate::{ReadError, StepError, driver::Event, proposals::Proposal, room::Room};

/// Events above which remarks that may be lost are lost.
const REMARKS_MAX: usize = 4096;

/// Who waits for an index.
pub(crate) struct ReadWaiter {
    answer: oneshot::Sender<Result<u64, ReadError>>,
    /// What it takes of the bound on waiting readers.
    _room: Room,
}

impl ReadWaiter {
    pub fn new(room: Room) -> (Self, oneshot::Receiver<Result<u64, ReadError>>) {
        let (answer, waiting) = oneshot::channel();
        (
            ReadWaiter {
                answer,
                _room: room,
            },
            waiting,
        )
    }

    pub fn answer(self, result: Result<u64, ReadError>) {
        // The reader may have given up.
        let _ = self.answer.send(result);
    }
}

/// Everything that arrived since the last turn.
#[derive(Default)]
pub(crate) struct Batch {
    pub events: Vec<Event>,
    pub messages: Vec<Message>,
    pub proposals: Vec<Proposal>,
    pub reads: Vec<ReadWaiter>,
}

#[derive(Default)]
struct State {
    batch: Batch,
    message_bytes: usize,
    /// The task, while it sleeps and nobody has woken it yet.
    sleeper: Option<Waker>,
    /// Whether the task waits for its disk.
    awaits_disk: bool,
    stopped: bool,
}

/// The raft task's inbox.
pub(crate) struct Inbox {
    state: Mutex<State>,
    room: Notify,
    bytes_max: usize,
}

/// The inbox is closed.
#[derive(Debug)]
pub(crate) struct Closed;

/// What a look into the inbox found.
pub(crate) enum Arrived {
    Something,
    /// The task is woken when that changes.
    Nothing,
    Closed,
}

impl Inbox {
    pub fn new(bytes_max: usize) -> Self {
        Inbox {
            state: Mutex::default(),
            room: Notify::new(),
            bytes_max,
        }
    }

    /// Adds a received message; waits while there is no room.
    pub async fn message(&self, message: Message) -> Result<(), StepError> {
        let mut message = Some(message);
        loop {
            // Registered before the attempt, so that room made in between is not missed.
            let room = self.room.notified();
            match self.try_message(&mut message) {
                Err(StepError::Full) => room.await,
                done => return done,
            }
        }
    }

    /// Takes a received message if there is room. An empty inbox takes a message of any size.
    pub fn try_message(&self, message: &mut Option<Message>) -> Result<(), StepError> {
        let bytes = message.as_ref().map_or(0, weight);
        let mut state = self.state.lock();
        if state.stopped {
            return Err(StepError::Stopped);
        }
        if state.message_bytes > 0 && state.message_bytes + bytes > self.bytes_max {
            return Err(StepError::Full);
        }
        state.message_bytes += bytes;
        state.batch.messages.extend(message.take());
        self.wake(state);
        Ok(())
    }

    pub fn proposal(&self, proposal: Proposal) -> Result<(), Closed> {
        self.push(|batch| batch.proposals.push(proposal))
    }

    pub fn read(&self, waiter: ReadWaiter) -> Result<(), Closed> {
        self.push(|batch| batch.reads.push(waiter))
    }

    /// Adds a remark of an outsider, unless too many wait already.
    pub fn remark(&self, event: Event) {
        // An inbox that is closed needs no news.
        let _ = self.push(|batch| {
            if batch.events.len() < REMARKS_MAX {
                batch.events.push(event);
            }
        });
    }

    pub fn event(&self, event: Event) -> Result<(), Closed> {
        self.push(|batch| batch.events.push(event))
    }

    /// Adds an event that can wait for the thread's next turn, at the latest the next tick.
    pub fn event_quietly(&self, event: Event) {
        let mut state = self.state.lock();
        if !state.stopped {
            state.batch.events.push(event);
        }
    }

    /// Adds the news that something is durable; wakes the thread only if it has use for it now.
    pub fn persisted(&self, number: u64) {
        let mut state = self.state.lock();
        if !state.stopped {
            state.batch.events.push(Event::Persisted { number });
            if state.awaits_disk {
                self.wake(state);
            }
        }
    }

    fn push(&self, add: impl FnOnce(&mut Batch)) -> Result<(), Closed> {
        let mut state = self.state.lock();
        if state.stopped {
            return Err(Closed);
        }
        add(&mut state.batch);
        self.wake(state);
        Ok(())
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        let sleeper = state.sleeper.take();
        drop(state);
        sleeper.into_iter().for_each(Waker::wake);
    }

    /// Swaps everything that arrived into `batch`, which must be empty.
    pub fn take(&self, batch: &mut Batch) {
        let mut state = self.state.lock();
        mem::swap(&mut state.batch, batch);
        let made_room = mem::take(&mut state.message_bytes) > 0;
        drop(state);
        if made_room {
            self.room.notify_waiters();
        }
    }

    /// Has the task woken when something arrives, unless something has already. `awaits_disk` says whether
    /// news of the disk count as something.
    pub fn wake_when_arrived(&self, cx: &Context<'_>, awaits_disk: bool) -> Arrived {
        let mut state = self.state.lock();
        state.awaits_disk = awaits_disk;
        if state.stopped {
            Arrived::Closed
        } else if state.batch.is_empty() {
            state.sleeper = Some(cx.waker().clone());
            Arrived::Nothing
        } else {
            Arrived::Something
        }
    }

    /// Closes the inbox: what is in it is dropped, and so is everything to come.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let batch = mem::take(&mut state.batch);
        self.wake(state);
        // Waiters inside learn of the end when their senders drop, outside of the lock.
        drop(batch);
        self.room.notify_waiters();
    }
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.messages.is_empty()
            && self.proposals.is_empty()
            && self.reads.is_empty()
    }
}

/// Bytes a message holds, near enough for a budget.
fn weight(message: &Message) -> usize {
    const EACH: usize = mem::size_of::<Message>();
    const ENTRY: usize = 64;
    let entries: usize = message.entries.iter().map(|e| e.data.len() + ENTRY).sum();
    let snapshot = message.snapshot.as_ref().map_or(0, |s| s.data.len());
    EACH + entries + snapshot + message.context.len()
}

/// A queue between two threads of the node: taken as a whole, closed by its producer.
pub(crate) struct Mailbox<T> {
    state: Mutex<MailboxState<T>>,
    wake: Condvar,
}

struct MailboxState<T> {
    queue: Vec<T>,
    asleep: bool,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub fn new() -> Self {
        Mailbox {
            state: Mutex::new(MailboxState {
                queue: Vec::new(),
                asleep: false,
                closed: false,
            }),
            wake: Condvar::new(),
        }
    }

    /// Moves everything out of `items` into the queue. Without effect once closed.
    pub fn push_all(&self, items: &mut Vec<T>) {
        if items.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            items.clear();
            return;
        }
        state.queue.append(items);
        let asleep = mem::take(&mut state.asleep);
        drop(state);
        if asleep {
            self.wake.notify_one();
        }
    }

    /// Whether the consumer has done everything and sleeps.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.asleep && state.queue.is_empty()
    }

    /// Waits for items and swaps them into `items`, which must be empty. False when the queue is closed
    /// and empty.
    pub fn take(&self, items: &mut Vec<T>) -> bool {
        let mut state = self.state.lock();
        while state.queue.is_empty() {
            if state.closed {
                return false;
            }
            state.asleep = true;
            // The bound on the wait is only a net: every push wakes a sleeper.
            self.wake.wait_for(&mut state, Duration::from_secs(60));
        }
        state.asleep = false;
        mem::swap(&mut state.queue, items);
        true
    }

    /// Adds what is there by now to `items`.
    pub fn take_more(&self, items: &mut Vec<T>) {
        items.append(&mut self.state.lock().queue);
    }

    /// No more items come; the consumer ends after those in the queue.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_all();
    }
}
