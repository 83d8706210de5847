//! Queues between raft and a connection, bounded in bytes, in which a heartbeat never waits.
//!
//! A [`Lane`] serves one channel to one peer, or one peer's messages to raft. It keeps three things apart:
//! one slot each for the newest heartbeat and heartbeat response, a control queue for the other small
//! messages, and a bulk queue for what carries entries. They are drained in that order; within each queue
//! order is kept. Raft takes messages in any order, and nothing that overtakes here refers to what it
//! overtakes: a heartbeat's commit never exceeds what its receiver has acknowledged.
//!
//! etcd has one queue of 4096 messages, drops the newest when it is full, and lets heartbeats die behind
//! appends. Nothing of this shows on the wire.
//!
//! No I/O, no waking: keep a lane behind a lock, [`Lane::push`] or [`Lane::push_all`] and notify, [`Lane::drain`] a
//! batch. What is queued is a [`Message`], or something that carries one ([`Queued`]).
//! Invariant: a queue holds at most its budget in bytes, or one message, and a slot 4 KiB; what is not accepted is given back
//! with a [`DropReason`].

mod budget;
mod drop_reason;

use std::{collections::VecDeque, mem};

pub use budget::{BULK_BYTES, Budget, CONTROL_BYTES, PIPELINE_BYTES, PROCESS_BYTES, SharedBudget};
pub use drop_reason::DropReason;

use crate::raftpb::{Entry, Message, MessageType};

/// Largest heartbeat that goes into a slot, in bytes of memory; its context is a few dozen bytes at most.
pub const SLOT_BYTES_MAX: usize = 4 << 10;

/// What [`Lane::push_all`] takes of the shared budget at once; what is left of it goes back at the end.
const GRANT_BYTES: usize = 64 << 10;

/// For how many messages a queue keeps room when it shrinks.
const QUEUE_MESSAGES_KEPT: usize = 4;

/// Where a message waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// In the slot for heartbeats.
    Heartbeat,
    /// In the slot for heartbeat responses.
    HeartbeatResponse,
    /// In the control queue: votes, acknowledgements, reads, transfers.
    Control,
    /// In the bulk queue: appends, proposals, snapshots.
    Bulk,
}

impl Class {
    /// The class of a kind of message. Kinds this version does not know are bulk: their size is unknown.
    pub fn of(message: &Message) -> Class {
        match message.kind() {
            Some(MessageType::Heartbeat) => Class::Heartbeat,
            Some(MessageType::HeartbeatResponse) => Class::HeartbeatResponse,
            Some(MessageType::Append | MessageType::Propose | MessageType::Snapshot) | None => {
                Class::Bulk
            }
            Some(_) => Class::Control,
        }
    }
}

/// What waits in a lane: a message, or something that carries one.
pub trait Queued: AsRef<Message> + AsMut<Message> {
    /// Memory it takes, in bytes.
    fn footprint(&self) -> usize;
}

impl Queued for Message {
    #[inline]
    fn footprint(&self) -> usize {
        footprint(self)
    }
}

/// What became of a message that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It waits. When the lane was empty before, wake whoever drains it.
    Queued,
    /// It took the place of an older heartbeat or response, or was absorbed by one: nothing is lost, and
    /// whoever drains is awake already.
    Merged,
}

/// A message that was not taken in, and why.
#[derive(Debug)]
pub struct Refused<T = Message> {
    /// The message, as it was.
    pub message: T,
    /// Why; one of the `…Full` reasons.
    pub reason: DropReason,
}

/// What a cleared lane held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Messages dropped.
    pub messages: usize,
    /// Their bytes, as counted against the budget.
    pub bytes: usize,
}

/// See the module's description.
#[derive(Debug)]
pub struct Lane<T = Message> {
    heartbeat: Option<T>,
    heartbeat_response: Option<T>,
    control: Queue<T>,
    bulk: Queue<T>,
    /// Drawn on by the bulk queue, besides its own bound.
    shared: Option<SharedBudget>,
}

/// What waits, each beside its footprint.
#[derive(Debug)]
struct Queue<T> {
    messages: VecDeque<(usize, T)>,
    bytes: usize,
    bytes_max: usize,
}

/// Bytes taken from the shared budget and not used yet.
#[derive(Default)]
struct Grant {
    bytes: usize,
    /// How much is taken at once at least.
    step: usize,
}

impl<T: Queued> Lane<T> {
    /// An empty lane. `shared` is the budget that all lanes of a process have for bulk together.
    pub fn new(budget: Budget, shared: Option<SharedBudget>) -> Lane<T> {
        Lane {
            heartbeat: None,
            heartbeat_response: None,
            control: Queue::new(budget.control_bytes),
            bulk: Queue::new(budget.bulk_bytes),
            shared,
        }
    }

    /// Takes a message in, or gives it back. Never waits.
    ///
    /// A queue that is empty takes any message that the shared budget allows, however large: it could
    /// otherwise never be sent.
    #[allow(clippy::result_large_err)] // the message is given back by move, as it came
    pub fn push(&mut self, message: T) -> Result<Pushed, Refused<T>> {
        let mut grant = Grant::default();
        let pushed = self.place(message, &mut grant);
        debug_assert_eq!(grant.bytes, 0, "taken to the byte");
        pushed
    }

    /// [`push`](Self::push) for each of `messages`, drawing on the shared budget once for many of them. Whether any
    /// was queued; what is not taken in goes to `refused`.
    pub fn push_all(
        &mut self,
        messages: impl Iterator<Item = T>,
        mut refused: impl FnMut(Refused<T>),
    ) -> bool {
        let mut grant = Grant {
            bytes: 0,
            step: GRANT_BYTES,
        };
        let mut queued = false;
        for message in messages {
            match self.place(message, &mut grant) {
                Ok(pushed) => queued |= pushed == Pushed::Queued,
                Err(back) => refused(back),
            }
        }
        self.give_back(grant.bytes);
        queued
    }

    #[allow(clippy::result_large_err)] // the message is given back by move, as it came
    #[inline(always)] // or the message is moved once more
    fn place(&mut self, message: T, grant: &mut Grant) -> Result<Pushed, Refused<T>> {
        let bytes = message.footprint();
        match Class::of(message.as_ref()) {
            Class::Heartbeat if fits(&self.heartbeat, message.as_ref(), bytes) => {
                Ok(latest(&mut self.heartbeat, message))
            }
            Class::HeartbeatResponse if fits(&self.heartbeat_response, message.as_ref(), bytes) => {
                Ok(latest(&mut self.heartbeat_response, message))
            }
            Class::Heartbeat | Class::HeartbeatResponse | Class::Control => {
                if !self.control.has_room(bytes) {
                    let reason = DropReason::ControlFull;
                    return Err(Refused { message, reason });
                }
                self.control.push(message, bytes);
                Ok(Pushed::Queued)
            }
            Class::Bulk => {
                if !self.bulk.has_room(bytes) {
                    let reason = DropReason::BulkFull;
                    return Err(Refused { message, reason });
                }
                if self.shared.as_ref().is_some_and(|s| !grant.spend(bytes, s)) {
                    let reason = DropReason::ProcessFull;
                    return Err(Refused { message, reason });
                }
                self.bulk.push(message, bytes);
                Ok(Pushed::Queued)
            }
        }
    }

    /// Moves messages to the end of `into`: the slots, then control, then bulk, until `bytes_max` bytes are
    /// taken or nothing is left. At least one message comes out of a lane that has one. Returns the bytes
    /// taken; they no longer count against any budget.
    pub fn drain(&mut self, bytes_max: usize, into: &mut Vec<T>) -> usize {
        let mut bytes = 0;
        for slot in [&mut self.heartbeat, &mut self.heartbeat_response] {
            if let Some(message) = slot.take() {
                bytes += message.footprint();
                into.push(message);
            }
        }
        bytes += self.control.drain(bytes, bytes_max, into);
        let bulk = self.bulk.drain(bytes, bytes_max, into);
        self.give_back(bulk);
        bytes + bulk
    }

    /// Drops everything, as when a connection is replaced.
    pub fn clear(&mut self) -> Cleared {
        let cleared = Cleared {
            messages: self.len(),
            bytes: self.bytes(),
        };
        self.give_back(self.bulk.bytes);
        self.heartbeat = None;
        self.heartbeat_response = None;
        self.control.clear();
        self.bulk.clear();
        cleared
    }

    /// Gives back what a burst needed and nothing needs now.
    pub fn shrink(&mut self) {
        self.control.messages.shrink_to(QUEUE_MESSAGES_KEPT);
        self.bulk.messages.shrink_to(QUEUE_MESSAGES_KEPT);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages that wait.
    pub fn len(&self) -> usize {
        let slots = [&self.heartbeat, &self.heartbeat_response];
        slots.into_iter().flatten().count() + self.control.messages.len() + self.bulk.messages.len()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        let slots = [&self.heartbeat, &self.heartbeat_response];
        let slots = slots.into_iter().flatten();
        slots.map(T::footprint).sum::<usize>() + self.control.bytes + self.bulk.bytes
    }
}

impl<T> Lane<T> {
    fn give_back(&self, bytes: usize) {
        if bytes > 0
            && let Some(shared) = &self.shared
        {
            shared.give(bytes);
        }
    }
}

impl<T> Drop for Lane<T> {
    fn drop(&mut self) {
        self.give_back(self.bulk.bytes);
    }
}

impl Grant {
    /// Uses bytes, taken from `shared` as needed; false if it has not as many.
    fn spend(&mut self, bytes: usize, shared: &SharedBudget) -> bool {
        if self.bytes < bytes {
            if self.step > bytes && shared.take_within(self.step) {
                self.bytes += self.step;
            } else {
                // What is left decides alone, as it would for a single message.
                shared.give(mem::take(&mut self.bytes));
                if !shared.take(bytes) {
                    return false;
                }
                self.bytes = bytes;
            }
        }
        self.bytes -= bytes;
        true
    }
}

impl<T> Queue<T> {
    fn new(bytes_max: usize) -> Self {
        Queue {
            messages: VecDeque::new(),
            bytes: 0,
            bytes_max,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.messages.is_empty() || self.bytes.saturating_add(bytes) <= self.bytes_max
    }

    #[inline(always)] // as for `Lane::place`
    fn push(&mut self, message: T, bytes: usize) {
        self.bytes += bytes;
        self.messages.push_back((bytes, message));
    }

    /// Takes messages out while `taken`, which were taken elsewhere, and those from here are below
    /// `bytes_max`. Returns the bytes taken here.
    fn drain(&mut self, taken: usize, bytes_max: usize, into: &mut Vec<T>) -> usize {
        let mut bytes = 0;
        while taken + bytes == 0 || taken + bytes < bytes_max {
            let Some((footprint, message)) = self.messages.pop_front() else {
                break;
            };
            bytes += footprint;
            into.push(message);
        }
        self.bytes -= bytes;
        bytes
    }

    fn clear(&mut self) {
        self.messages.clear();
        self.bytes = 0;
    }
}

/// Memory a message takes, in bytes: structures and payloads. Payloads may be shared with other messages;
/// they are counted in full, since any of them may be the last to hold them.
pub fn footprint(message: &Message) -> usize {
    let entries: usize = message
        .entries
        .iter()
        .map(|entry| size_of::<Entry>() + entry.data.len())
        .sum();
    let snapshot = message.snapshot.as_ref().map_or(0, |s| s.data.len());
    size_of::<Message>() + entries + snapshot + message.context.len()
}

/// Whether a slot may take `message`: real heartbeats are small, and a slot's are all of one sender to one
/// receiver. Others queue as control does.
fn fits<T: Queued>(slot: &Option<T>, message: &Message, bytes: usize) -> bool {
    let same_way = |held: &T| {
        let held = held.as_ref();
        held.from == message.from && held.to == message.to
    };
    bytes <= SLOT_BYTES_MAX && slot.as_ref().is_none_or(same_way)
}

/// Puts `message` into a slot, in which only the newest matters.
///
/// A context is a linearizable read waiting for acknowledgement, and a later one confirms all before it. So
/// a heartbeat without one never takes the place of one with: it only brings that one's commit up to date.
/// Only a higher term does away with it, because reads of an older term are void.
fn latest<T: Queued>(slot: &mut Option<T>, mut newer: T) -> Pushed {
    let Some(held) = slot else {
        *slot = Some(newer);
        return Pushed::Queued;
    };
    let (old, message) = (held.as_mut(), newer.as_mut());
    if message.term < old.term {
        return Pushed::Merged;
    }
    if message.term == old.term && message.context.is_empty() {
        message.context = mem::take(&mut old.context);
    }
    *held = newer;
    Pushed::Merged
}

#[cfg(test)]
mod tests;
