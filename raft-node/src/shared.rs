//! What the threads of one node and its handles share: status, waiters, the fatal signal.
//!
//! Numbers are atomics written by one thread each; everything else is behind short locks. Invariant: a
//! reader that waits for an index is woken only after the state machine has published that index.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;
use transport_core::MemberId;

use crate::{
    ProposeError, ReadError,
    inbox::{Inbox, ReadWaiter},
    metrics::Metrics,
    node::Limits,
    proposals::Waiters,
    room::Budget,
};

/// Who leads, as far as this member knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// This member's term.
    pub term: u64,
    /// Whether this member is the leader.
    pub is_self: bool,
}

/// What a member is to raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Follows a leader, or waits for one. Learners are followers.
    #[default]
    Follower = 0,
    /// Sounds out votes.
    PreCandidate = 1,
    /// Asks for votes.
    Candidate = 2,
    /// Leads.
    Leader = 3,
}

/// A snapshot of a node's numbers. They are read one by one, so they may be some microseconds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: MemberId,
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// Current term.
    pub term: u64,
    /// What this member is.
    pub role: Role,
    /// Highest index known to be committed.
    pub committed: u64,
    /// Highest index applied and visible to readers.
    pub applied: u64,
    /// Last index of the log, durable or not.
    pub last_index: u64,
    /// Index of the last snapshot on disk.
    pub snapshot_index: u64,
    /// A leader counted on entries this member does not have: its log was lost or belongs to another
    /// time. It must be removed and joined again.
    pub log_lost: bool,
}

pub(crate) struct Shared<R> {
    pub id: MemberId,
    pub metrics: Arc<Metrics>,
    pub inbox: Inbox,
    pub waiters: Waiters<R>,
    pub limits: Limits,
    pub numbers: Numbers,
    pub proposal_bytes: Budget,
    pub proposals: Budget,
    pub reads: Budget,
    pub leadership: watch::Sender<Leadership>,
    pub progress: Mutex<Vec<(MemberId, u64)>>,
    applied_waits: Mutex<AppliedWaits>,
    fatal: watch::Sender<Option<Arc<str>>>,
}

/// Written by the raft task, except for `applied` and `backlog_bytes`.
#[derive(Default)]
pub(crate) struct Numbers {
    pub term: AtomicU64,
    pub leader: AtomicU64,
    pub role: AtomicU8,
    pub committed: AtomicU64,
    pub applied: AtomicU64,
    pub last_index: AtomicU64,
    pub snapshot_index: AtomicU64,
    pub log_lost: AtomicBool,
    pub backlogged: AtomicBool,
}

#[derive(Default)]
struct AppliedWaits {
    waiting: BTreeMap<u64, Vec<ReadWaiter>>,
    closed: bool,
}

impl<R> Shared<R> {
    pub fn new(id: MemberId, metrics: Arc<Metrics>, inbox: Inbox, limits: Limits) -> Self {
        Shared {
            id,
            metrics,
            inbox,
            waiters: Waiters::new(),
            limits,
            numbers: Numbers::default(),
            proposal_bytes: Budget::new(limits.proposal_bytes_max),
            proposals: Budget::new(limits.proposals_max),
            reads: Budget::new(limits.reads_max),
            leadership: watch::Sender::new(Leadership::default()),
            progress: Mutex::default(),
            applied_waits: Mutex::default(),
            fatal: watch::Sender::new(None),
        }
    }

    pub fn status(&self) -> Status {
        let n = &self.numbers;
        let leader = n.leader.load(Ordering::Relaxed);
        Status {
            id: self.id,
            leader: (leader != 0).then_some(MemberId(leader)),
            term: n.term.load(Ordering::Relaxed),
            role: match n.role.load(Ordering::Relaxed) {
                1 => Role::PreCandidate,
                2 => Role::Candidate,
                3 => Role::Leader,
                _ => Role::Follower,
            },
            committed: n.committed.load(Ordering::Relaxed),
            applied: n.applied.load(Ordering::Acquire),
            last_index: n.last_index.load(Ordering::Relaxed),
            snapshot_index: n.snapshot_index.load(Ordering::Relaxed),
            log_lost: n.log_lost.load(Ordering::Relaxed),
        }
    }

    /// Answers the waiters with `index` once it is applied; at once if it is.
    pub fn when_applied(&self, index: u64, waiters: Vec<ReadWaiter>) {
        if self.numbers.applied.load(Ordering::Acquire) < index {
            let mut waits = self.applied_waits.lock();
            // Looked at again under the lock, which the apply thread takes after it has raised the index.
            if self.numbers.applied.load(Ordering::Acquire) < index {
                // Dropped, a waiter learns that the node stopped.
                if !waits.closed {
                    waits.waiting.entry(index).or_default().extend(waiters);
                }
                return;
            }
        }
        for waiter in waiters {
            waiter.answer(Ok(index));
        }
    }

    /// The apply thread has published everything up to `index`.
    pub fn applied(&self, index: u64) {
        self.numbers.applied.fetch_max(index, Ordering::AcqRel);
        let mut waits = self.applied_waits.lock();
        let ready = match waits.waiting.first_key_value() {
            Some((first, _)) if *first <= index => {
                let later = waits.waiting.split_off(&(index + 1));
                std::mem::replace(&mut waits.waiting, later)
            }
            _ => return,
        };
        drop(waits);
        for (at, waiters) in ready {
            for waiter in waiters {
                waiter.answer(Ok(at));
            }
        }
    }

    /// Ends the node because of something it cannot go on after. The first reason stays.
    pub fn fatal(&self, reason: impl fmt::Display) {
        let reason: Arc<str> = reason.to_string().into();
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(reason);
            first
        });
        self.close();
    }

    pub fn watch_fatal(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.fatal.subscribe()
    }

    /// Closes the inbox; the threads end one after the other.
    pub fn close(&self) {
        self.inbox.close();
    }

    /// Answers everybody who still waits; called when no thread is left to answer.
    pub fn fail_waiters(&self) {
        self.waiters.fail_all(&ProposeError::Stopped);
        let mut waits = self.applied_waits.lock();
        waits.closed = true;
        let all = std::mem::take(&mut waits.waiting);
        drop(waits);
        for waiter in all.into_values().flatten() {
            waiter.answer(Err(ReadError::Stopped));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared<()> {
        let metrics = Arc::new(Metrics::register(&metrics::NoopRecorder));
        let limits = Limits {
            commit_gap_max: 1,
            proposal_bytes_max: 1,
            proposals_max: 1,
            reads_max: 100,
        };
        Shared::new(MemberId(1), metrics, Inbox::new(1), limits)
    }

    #[test]
    fn readers_are_answered_when_their_index_is_applied() {
        let shared = shared();
        let mut waiting: Vec<_> = [3, 5, 5, 9]
            .map(|index| {
                let (waiter, waiting) = ReadWaiter::new(shared.reads.take(1).expect("room"));
                shared.when_applied(index, vec![waiter]);
                waiting
            })
            .into();
        let mut answered = || -> Vec<_> { waiting.iter_mut().map(|w| w.try_recv().ok()).collect() };
        assert_eq!(answered(), [None, None, None, None]);
        shared.applied(5);
        assert_eq!(answered(), [Some(Ok(3)), Some(Ok(5)), Some(Ok(5)), None]);
        let (waiter, mut late) = ReadWaiter::new(shared.reads.take(1).expect("room"));
        shared.when_applied(4, vec![waiter]);
        assert_eq!(late.try_recv(), Ok(Ok(4)));
        shared.fail_waiters();
        assert_eq!(waiting[3].try_recv(), Ok(Err(ReadError::Stopped)));
    }

    #[test]
    fn the_first_fatal_reason_stays() {
        let shared = shared();
        shared.fatal("disk gone");
        shared.fatal("everything else");
        assert_eq!(shared.watch_fatal().borrow().as_deref(), Some("disk gone"));
    }
}
