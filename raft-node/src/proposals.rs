//! Local proposals: who waits for which result, and the way of a proposal until raft has it.
//!
//! [`Waiters`] is shared by proposers, the raft and the apply thread; [`Held`] and [`Appended`] belong to the
//! driver and are pure. Invariant: a waiter gets exactly one answer, and an error that says "never applied"
//! only when no log can contain the proposal any more.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb;
use tokio::sync::oneshot;
use transport_core::raftpb::EntryType;

use crate::{ProposeError, room::Room};

/// Forwarded proposals that are remembered; of more the oldest time out instead of hearing early that they are lost.
/// As many as may wait by default.
const FORWARDED_MAX: usize = 100_000;

/// Bytes of entries stepped as one message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// One entry to be.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// Under which its waiter is registered.
    pub id: u64,
    pub kind: EntryType,
    pub data: Bytes,
    /// What it takes of the bound on waiting proposals, until raft has it.
    pub room: Option<Room>,
}

impl Proposal {
    pub fn into_entry(self) -> eraftpb::Entry {
        let mut entry = eraftpb::Entry::default();
        if self.kind == EntryType::ConfChange {
            entry.set_entry_type(eraftpb::EntryType::EntryConfChange);
        }
        entry.data = self.data;
        entry
    }
}

type Answer<R> = oneshot::Sender<Result<R, ProposeError>>;
type Waiting<R> = oneshot::Receiver<Result<R, ProposeError>>;

/// Enough that proposers seldom meet at one lock.
const SHARDS: usize = 16;

/// The proposers that wait for a result, by request id.
pub(crate) struct Waiters<R> {
    shards: [Mutex<HashMap<u64, Answer<R>>>; SHARDS],
}

impl<R> Waiters<R> {
    pub fn new() -> Self {
        Waiters {
            shards: Default::default(),
        }
    }

    /// Registers a proposer; it is forgotten when the guard goes.
    pub fn register(&self, id: u64) -> Result<(Registered<'_, R>, Waiting<R>), ProposeError> {
        let (answer, waiting) = oneshot::channel();
        let mut shard = self.shard(id).lock();
        if shard.contains_key(&id) {
            return Err(ProposeError::DuplicateId(id));
        }
        shard.insert(id, answer);
        drop(shard);
        Ok((Registered { waiters: self, id }, waiting))
    }

    /// Answers the proposer, if it still waits.
    pub fn answer(&self, id: u64, result: Result<R, ProposeError>) {
        let waiting = self.shard(id).lock().remove(&id);
        if let Some(waiting) = waiting {
            // The proposer may have given up in this very moment.
            let _ = waiting.send(result);
        }
    }

    /// Answers everybody.
    pub fn fail_all(&self, error: &ProposeError) {
        for shard in &self.shards {
            let all: Vec<_> = shard.lock().drain().collect();
            for (_, waiting) in all {
                let _ = waiting.send(Err(error.clone()));
            }
        }
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Answer<R>>> {
        // The low bits of a request id are its counter.
        &self.shards[id as usize % SHARDS]
    }
}

/// A registration; ends when dropped.
pub(crate) struct Registered<'a, R> {
    waiters: &'a Waiters<R>,
    id: u64,
}

impl<R> Drop for Registered<'_, R> {
    fn drop(&mut self) {
        self.waiters.shard(self.id).lock().remove(&self.id);
    }
}

/// Proposals that wait for a leader, as etcd's do: they are proposed as soon as there is one, and given up
/// after a time. Bounded by the room they take.
#[derive(Default)]
pub(crate) struct Held {
    queue: VecDeque<(Duration, Proposal)>,
}

impl Held {
    pub fn add(&mut self, now: Duration, proposals: Vec<Proposal>) {
        self.queue.extend(proposals.into_iter().map(|p| (now, p)));
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes proposals of at most [`MESSAGE_BYTES_MAX`] bytes, at least one. A configuration change goes
    /// alone: whether it is taken depends on what is in the log by then.
    pub fn take_message(&mut self) -> Vec<Proposal> {
        let mut bytes = 0;
        let mut taken = Vec::new();
        while let Some((_, next)) = self.queue.front() {
            let alone = next.kind == EntryType::ConfChange;
            bytes += next.data.len();
            if !taken.is_empty() && (alone || bytes > MESSAGE_BYTES_MAX) {
                break;
            }
            taken.extend(self.queue.pop_front().map(|(_, proposal)| proposal));
            if alone {
                break;
            }
        }
        taken
    }

    /// Takes the ids of those that came before `since`.
    pub fn expire(&mut self, since: Duration) -> Vec<u64> {
        let mut expired = Vec::new();
        while let Some((arrived, proposal)) = self.queue.front()
            && *arrived < since
        {
            expired.push(proposal.id);
            self.queue.pop_front();
        }
        expired
    }
}

/// Proposals this member appended as leader, so that it notices when another leader's entry takes their place.
#[derive(Default)]
pub(crate) struct Appended {
    queue: VecDeque<(u64, u64, u64)>,
}

impl Appended {
    /// Remembers that `id` was appended at `index` in `term`.
    pub fn add(&mut self, index: u64, term: u64, id: u64) {
        self.queue.push_back((index, term, id));
    }

    /// Compares with committed entries and returns the ids that will never be applied. Those in place are
    /// left to whoever applies them; those that a snapshot jumped over stay open.
    pub fn committed(&mut self, entries: &[eraftpb::Entry]) -> Vec<u64> {
        let mut superseded = Vec::new();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return superseded;
        };
        while let Some(&(index, term, id)) = self.queue.front()
            && index <= last.index
        {
            self.queue.pop_front();
            let at = index.checked_sub(first.index).map(|at| at as usize);
            if let Some(entry) = at.and_then(|at| entries.get(at))
                && entry.term != term
            {
                superseded.push(id);
            }
        }
        superseded
    }
}

/// Proposals on their way to another member that leads, oldest first. Nobody tells what became of those that
/// a lost leader had: neither raft does, and a message cannot be taken back. But once an entry of a later term
/// is applied, whoever still waits for one waits in vain, unless its message is still under way.
#[derive(Default)]
pub(crate) struct Forwarded {
    /// When, the leader's term, and the request.
    queue: VecDeque<(Duration, u64, u64)>,
}

impl Forwarded {
    /// Proposals that went out at `now` to the leader of `term`.
    pub fn add(&mut self, now: Duration, term: u64, ids: impl IntoIterator<Item = u64>) {
        self.queue.extend(ids.into_iter().map(|id| (now, term, id)));
        let over = self.queue.len().saturating_sub(FORWARDED_MAX);
        self.queue.drain(..over);
    }

    /// An entry of `term` is applied: the ids of those that went to leaders before.
    pub fn outlived(&mut self, term: u64) -> Vec<u64> {
        let lost = self
            .queue
            .partition_point(|(_, forwarded, _)| *forwarded < term);
        self.queue.drain(..lost).map(|(_, _, id)| id).collect()
    }

    /// Forgets those from before `since`, whose proposers have given up.
    pub fn forget(&mut self, since: Duration) {
        let old = self.queue.partition_point(|(at, _, _)| *at < since);
        self.queue.drain(..old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(id: u64, bytes: usize) -> Proposal {
        Proposal {
            id,
            kind: EntryType::Normal,
            data: Bytes::from(vec![0; bytes]),
            room: None,
        }
    }

    fn ids(proposals: &[Proposal]) -> Vec<u64> {
        proposals.iter().map(|p| p.id).collect()
    }

    #[test]
    fn messages_are_filled_up_to_their_bound_and_changes_go_alone() {
        let mut held = Held::default();
        let change = Proposal {
            kind: EntryType::ConfChange,
            ..normal(4, 10)
        };
        held.add(
            Duration::ZERO,
            vec![
                normal(1, MESSAGE_BYTES_MAX),
                normal(2, 1),
                normal(3, 1),
                change,
                normal(5, MESSAGE_BYTES_MAX * 2),
            ],
        );
        assert_eq!(ids(&held.take_message()), [1]);
        assert_eq!(ids(&held.take_message()), [2, 3]);
        assert_eq!(ids(&held.take_message()), [4]);
        assert_eq!(ids(&held.take_message()), [5]);
        assert!(held.is_empty() && held.take_message().is_empty());
    }

    #[test]
    fn what_a_lost_leader_had_is_known_by_the_next_ones_first_entry() {
        let mut forwarded = Forwarded::default();
        forwarded.add(Duration::from_secs(1), 4, [1, 2]);
        forwarded.add(Duration::from_secs(2), 4, [3]);
        forwarded.add(Duration::from_secs(3), 6, [4]);
        assert_eq!(forwarded.outlived(4), [] as [u64; 0]);
        forwarded.forget(Duration::from_secs(2));
        assert_eq!(forwarded.outlived(6), [3]);
        assert_eq!(forwarded.outlived(7), [4]);
    }

    #[test]
    fn only_so_many_forwarded_proposals_are_remembered() {
        let mut forwarded = Forwarded::default();
        for id in 0..=FORWARDED_MAX as u64 {
            forwarded.add(Duration::ZERO, 4, [id]);
        }
        let lost = forwarded.outlived(5);
        assert_eq!((lost.len(), lost[0]), (FORWARDED_MAX, 1));
    }

    #[test]
    fn only_old_proposals_expire() {
        let mut held = Held::default();
        held.add(Duration::from_secs(1), vec![normal(1, 1), normal(2, 1)]);
        held.add(Duration::from_secs(2), vec![normal(3, 1)]);
        assert_eq!(held.expire(Duration::from_secs(1)), [] as [u64; 0]);
        assert_eq!(held.expire(Duration::from_secs(2)), [1, 2]);
        assert_eq!(ids(&held.take_message()), [3]);
    }

    #[test]
    fn another_leaders_entry_supersedes() {
        let mut appended = Appended::default();
        for (index, id) in [(4, 40), (5, 50), (6, 60), (7, 70)] {
            appended.add(index, 2, id);
        }
        let committed: Vec<_> = [(5, 2), (6, 3)]
            .map(|(index, term)| eraftpb::Entry {
                index,
                term,
                ..Default::default()
            })
            .into();
        // 4 came before the batch, 5 is ours, 6 is not, 7 is open.
        assert_eq!(appended.committed(&committed), [60]);
        assert_eq!(appended.queue.len(), 1);
    }

    #[test]
    fn a_waiter_is_answered_once_and_then_forgotten() {
        let waiters: Waiters<u32> = Waiters::new();
        let (first, mut waiting) = waiters.register(7).expect("free");
        assert_eq!(
            waiters.register(7).err(),
            Some(ProposeError::DuplicateId(7))
        );
        waiters.answer(7, Ok(1));
        waiters.answer(7, Ok(2));
        assert_eq!(waiting.try_recv(), Ok(Ok(1)));
        drop(first);
        assert!(waiters.register(7).is_ok());
    }
}
