//! Linearizable reads: who waits for an index, and which question to the leader carries whom.
//!
//! All reads that wait share one question, named by a context of our own: member, boot nonce, counter. A
//! leader also replaces the contexts of other members' questions and answers them with their own bytes, so
//! no two questions in raft ever have the same name. Pure. Invariant: an answer only reaches reads that came
//! before its question was asked.

use std::{collections::VecDeque, mem, time::Duration};

use bytes::Bytes;
use transport_core::MemberId;

/// Questions asked and not answered; further reads wait and share the next one.
const ASKED_MAX: usize = 2;
/// Names a question keeps while it is repeated; older ones are no longer recognized.
const NAMES_MAX: usize = 8;
/// Questions of other members that wait at a leader; they repeat what is dropped.
const REMOTE_MAX: usize = 1024;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This member's readers, by the ticket under which they are kept.
    Local(u64),
    /// Another member, which gets its own context back.
    Remote { from: MemberId, context: Bytes },
}

struct Waiting {
    origin: Origin,
    since: Duration,
}

struct Question {
    names: Vec<u64>,
    waiting: Vec<Waiting>,
    asked_at: Duration,
}

/// The reads of one member.
pub(crate) struct ReadIndex {
    member: MemberId,
    nonce: u64,
    counter: u64,
    retry: Duration,
    timeout: Duration,
    waiting: Vec<Waiting>,
    asked: VecDeque<Question>,
    /// Questions to be put again as soon as that is possible.
    again: bool,
}

impl ReadIndex {
    /// `nonce` tells this run of the process from earlier ones.
    pub fn new(member: MemberId, nonce: u64, retry: Duration, timeout: Duration) -> Self {
        ReadIndex {
            member,
            nonce,
            counter: 0,
            retry,
            timeout,
            waiting: Vec::new(),
            asked: VecDeque::new(),
            again: false,
        }
    }

    pub fn add(&mut self, now: Duration, origin: Origin) {
        if matches!(origin, Origin::Remote { .. }) {
            let asked = self.asked.iter().flat_map(|q| &q.waiting);
            let mut pending = asked.chain(&self.waiting).filter(|w| w.is_remote());
            let known = pending.clone().any(|w| w.origin == origin);
            if known || pending.nth(REMOTE_MAX - 1).is_some() {
                return;
            }
        }
        self.waiting.push(Waiting { origin, since: now });
    }

    /// The context of a question to ask now, if there is one. To be called until there is none, but only
    /// while a leader can answer.
    pub fn ask(&mut self, now: Duration) -> Option<Vec<u8>> {
        if mem::take(&mut self.again) {
            self.repeat(|_| true);
        }
        let repeated = self.asked.iter_mut().find(|q| q.asked_at == Duration::MAX);
        self.counter += 1;
        let name = self.counter;
        if let Some(question) = repeated {
            question.asked_at = now;
            if question.names.len() == NAMES_MAX {
                question.names.remove(0);
            }
            question.names.push(name);
        } else if !self.waiting.is_empty() && self.asked.len() < ASKED_MAX {
            self.asked.push_back(Question {
                names: vec![name],
                waiting: mem::take(&mut self.waiting),
                asked_at: now,
            });
        } else {
            return None;
        }
        Some(self.context(name))
    }

    /// Takes everybody who may use the index that answers `context`: those of that question and of all
    /// asked before it. Nobody if the context is not one of ours that is still open.
    pub fn answered(&mut self, context: &[u8]) -> Vec<Origin> {
        let name = self.name(context);
        let at = name.and_then(|name| self.asked.iter().position(|q| q.names.contains(&name)));
        let Some(at) = at else {
            return Vec::new();
        };
        let questions = self.asked.drain(..=at);
        questions
            .flat_map(|q| q.waiting)
            .map(|w| w.origin)
            .collect()
    }

    /// Another leader or term: open questions are put again at the next chance, those of other members are
    /// theirs to repeat.
    pub fn leader_changed(&mut self) {
        self.waiting.retain(|w| !w.is_remote());
        for question in &mut self.asked {
            question.waiting.retain(|w| !w.is_remote());
        }
        self.asked.retain(|q| !q.waiting.is_empty());
        self.again = !self.asked.is_empty();
    }

    /// Gives up reads that came too long ago and marks questions without an answer for repetition. Returns
    /// the tickets given up, and how many questions were too slow.
    pub fn tick(&mut self, now: Duration) -> (Vec<u64>, usize) {
        let timeout = self.timeout;
        let mut expired = Vec::new();
        let mut keep = |w: &Waiting| {
            let expires = now.saturating_sub(w.since) >= timeout;
            if let (true, Origin::Local(ticket)) = (expires, &w.origin) {
                expired.push(*ticket);
            }
            !expires
        };
        self.waiting.retain(&mut keep);
        for question in &mut self.asked {
            question.waiting.retain(&mut keep);
        }
        self.asked.retain(|q| !q.waiting.is_empty());
        let retry = self.retry;
        let slow =
            self.repeat(|q| q.asked_at != Duration::MAX && now.saturating_sub(q.asked_at) >= retry);
        (expired, slow)
    }

    fn repeat(&mut self, which: impl Fn(&Question) -> bool) -> usize {
        let mut count = 0;
        for question in self.asked.iter_mut().filter(|q| which(q)) {
            question.asked_at = Duration::MAX;
            count += 1;
        }
        count
    }

    fn context(&self, name: u64) -> Vec<u8> {
        [self.member.0, self.nonce, name]
            .iter()
            .flat_map(|part| part.to_be_bytes())
            .collect()
    }

    fn name(&self, context: &[u8]) -> Option<u64> {
        let (rest, name) = context.split_last_chunk::<8>()?;
        let name = u64::from_be_bytes(*name);
        (self.context(name)[..16] == *rest).then_some(name)
    }
}

impl Waiting {
    fn is_remote(&self) -> bool {
        matches!(self.origin, Origin::Remote { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_millis(500);
    const TIMEOUT: Duration = Duration::from_secs(7);

    fn reads() -> ReadIndex {
        ReadIndex::new(MemberId(1), 77, RETRY, TIMEOUT)
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn remote(from: u64, context: &'static [u8]) -> Origin {
        Origin::Remote {
            from: MemberId(from),
            context: Bytes::from_static(context),
        }
    }

    #[test]
    fn all_waiting_reads_share_a_question_and_an_answer_covers_earlier_ones() {
        let mut reads = reads();
        assert_eq!(reads.ask(at(0)), None);
        reads.add(at(0), Origin::Local(1));
        reads.add(at(0), remote(2, b"theirs"));
        let first = reads.ask(at(0)).expect("two wait");
        reads.add(at(1), Origin::Local(2));
        let second = reads.ask(at(1)).expect("one waits");
        assert_ne!(first, second);
        reads.add(at(2), Origin::Local(3));
        assert_eq!(reads.ask(at(2)), None, "two are under way");
        let done = reads.answered(&second);
        assert_eq!(
            done,
            [Origin::Local(1), remote(2, b"theirs"), Origin::Local(2)]
        );
        assert!(reads.answered(&first).is_empty(), "covered already");
        let third = reads.ask(at(3)).expect("the last");
        assert_eq!(reads.answered(&third), [Origin::Local(3)]);
    }

    #[test]
    fn a_repetition_has_a_new_context_and_the_old_one_still_counts() {
        let mut reads = reads();
        reads.add(at(0), Origin::Local(1));
        let first = reads.ask(at(0)).expect("one");
        assert_eq!(reads.tick(at(400)), (vec![], 0));
        assert_eq!(reads.ask(at(400)), None);
        assert_eq!(reads.tick(at(500)), (vec![], 1));
        assert_eq!(reads.tick(at(501)), (vec![], 0), "counted once");
        let second = reads.ask(at(501)).expect("again");
        assert_ne!(first, second);
        assert_eq!(reads.answered(&first), [Origin::Local(1)]);
        assert!(reads.answered(&second).is_empty());
    }

    #[test]
    fn a_new_leader_is_asked_at_once_and_remote_reads_are_forgotten() {
        let mut reads = reads();
        reads.add(at(0), remote(2, b"x"));
        reads.add(at(0), Origin::Local(1));
        let first = reads.ask(at(0)).expect("asked");
        reads.add(at(0), remote(3, b"y"));
        reads.leader_changed();
        let second = reads.ask(at(1)).expect("asked again");
        assert_ne!(first, second);
        assert_eq!(reads.ask(at(1)), None);
        assert_eq!(reads.answered(&second), [Origin::Local(1)]);
    }

    #[test]
    fn reads_are_given_up_after_a_time() {
        let mut reads = reads();
        reads.add(at(0), Origin::Local(1));
        reads.ask(at(0));
        reads.add(at(10), Origin::Local(2));
        assert_eq!(reads.tick(TIMEOUT).0, [1]);
        assert_eq!(reads.tick(TIMEOUT + at(9)).0, [] as [u64; 0]);
        assert_eq!(reads.tick(TIMEOUT + at(10)).0, [2]);
    }

    #[test]
    fn foreign_contexts_and_repeated_remote_reads_are_ignored() {
        let mut reads = reads();
        reads.add(at(0), remote(2, b"x"));
        reads.add(at(0), remote(2, b"x"));
        let context = reads.ask(at(0)).expect("asked");
        reads.add(at(0), remote(2, b"x"));
        assert!(reads.answered(b"").is_empty());
        assert!(reads.answered(&context[1..]).is_empty());
        let mut other_run = context.clone();
        other_run[9] ^= 1;
        assert!(reads.answered(&other_run).is_empty());
        assert_eq!(reads.answered(&context), [remote(2, b"x")]);
    }

    #[test]
    fn remote_reads_are_bounded() {
        let mut reads = reads();
        for i in 0..2 * REMOTE_MAX as u64 {
            let context = Bytes::copy_from_slice(&i.to_be_bytes());
            let from = MemberId(2);
            reads.add(at(0), Origin::Remote { from, context });
        }
        assert_eq!(reads.waiting.len(), REMOTE_MAX);
    }
}
