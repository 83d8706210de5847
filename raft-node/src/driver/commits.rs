//! When a leader tells its followers how far the log is committed.
//!
//! raft-rs would send each follower an empty append with every step of the commit index, which each answers:
//! with one client at a time that is half of all messages and wake-ups of a put. Appends and heartbeats carry
//! the index anyway, so a message of its own waits a moment for one of them, unless somebody at a follower
//! waits for that entry. Invariant: no follower that can be reached hears of a commit later than the delay
//! after the leader knows of it.

use std::time::Duration;

use raft::StateRole;

use super::Driver;

/// What the followers were told.
#[derive(Default)]
pub(super) struct Commits {
    /// The commit index of the last append to everybody.
    told: u64,
    /// The last entry that a follower proposed.
    asked: u64,
    /// When an index above `told` is to be told.
    due: Option<Duration>,
}

impl Driver {
    /// When a turn is due even if nothing arrives.
    pub fn due(&self) -> Option<Duration> {
        self.commits.due
    }

    /// Everybody is being sent an append now, and with it the commit index.
    pub(super) fn tell_commit(&mut self) {
        self.raw.raft.bcast_append();
        self.commits.told = self.raw.raft.raft_log.committed;
        self.commits.due = None;
    }

    /// Tells what was not told yet.
    pub(super) fn tell_commit_now(&mut self) {
        if self.raw.raft.raft_log.committed > self.commits.told {
            self.tell_commit();
        }
    }

    /// Entries up to the last one of the log came from a follower, where their proposer waits.
    pub(super) fn asked_by_follower(&mut self) {
        self.commits.asked = self.raw.raft.raft_log.last_index();
    }

    /// Tells the commit index when that must not or need not wait any longer.
    pub(super) fn flush_commit(&mut self, now: Duration) {
        let raft = &self.raw.raft;
        let committed = raft.raft_log.committed;
        if raft.state != StateRole::Leader {
            self.commits = Commits::default();
            return;
        }
        // While a configuration change is under way raft tells by itself.
        if raft.should_bcast_commit() {
            (self.commits.told, self.commits.due) = (committed, None);
        }
        if committed <= self.commits.told {
            return;
        }
        let due = *self
            .commits
            .due
            .get_or_insert(now + self.config.commit_delay);
        if now >= due || self.commits.told < self.commits.asked {
            self.tell_commit();
        }
    }

    /// Whether something can go on as soon as the disk has finished what it was given. At a follower it mostly
    /// cannot: what was to be sent then has left, and the commit comes with another message. A leader's own
    /// write mostly ends before the first follower's, and counts only with it.
    pub fn awaits_disk(&self) -> bool {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let waits = log.committed > log.persisted || self.timeout_now.is_some();
        match raft.state {
            StateRole::Follower => waits,
            StateRole::Leader => waits || self.commits_with_own_write(),
            StateRole::Candidate | StateRole::PreCandidate => true,
        }
    }

    /// Whether entries would be committed if all of this leader's were durable.
    fn commits_with_own_write(&self) -> bool {
        let raft = &self.raw.raft;
        let (prs, log) = (raft.prs(), &raft.raft_log);
        let voters = prs.conf().to_conf_state();
        if !voters.get_voters_outgoing().is_empty() {
            return true;
        }
        let mut matched: Vec<u64> = voters
            .get_voters()
            .iter()
            .map(|id| match prs.get(*id) {
                _ if *id == raft.id => log.last_index(),
                progress => progress.map_or(0, |p| p.matched),
            })
            .collect();
        matched.sort_unstable();
        // The index that a majority has reached.
        let reached = matched.len().checked_sub(1).map(|last| matched[last / 2]);
        reached.is_some_and(|reached| reached > log.committed)
    }
}

#[cfg(test)]
mod tests {
    use transport_core::{
        MemberId,
        raftpb::{Entry, Message, MessageType},
    };

    use crate::driver::bench::{Bench, from};

    fn appended(bench: &mut Bench) -> Vec<(u64, usize, u64)> {
        let appends = bench.sent(MessageType::Append);
        let told = appends.iter().map(|m| (m.to, m.entries.len(), m.commit));
        let mut told: Vec<_> = told.collect();
        told.sort_unstable();
        told
    }

    #[test]
    fn a_commit_travels_with_the_next_append() {
        let mut bench = Bench::new(3).lead();
        bench.propose(1);
        bench.persist();
        bench.sent.clear();
        bench.acknowledge(2, 3);
        assert_eq!(bench.driver.numbers().committed, 3);
        assert_eq!(appended(&mut bench), [], "nobody waits for it");
        bench.propose(2);
        assert_eq!(appended(&mut bench), [(2, 1, 3), (3, 1, 3)]);
        assert_eq!(bench.driver.due(), None);
    }

    #[test]
    fn a_commit_that_no_append_follows_is_told_after_the_delay() {
        let mut bench = Bench::new(3).lead();
        bench.propose(1);
        bench.persist();
        bench.acknowledge(2, 3);
        bench.acknowledge(3, 3);
        bench.sent.clear();
        let due = bench.driver.due().expect("a turn is due");
        assert_eq!(due, bench.now + bench.driver.config.commit_delay);
        bench.now = due;
        bench.settle();
        assert_eq!(appended(&mut bench), [(2, 0, 3), (3, 0, 3)]);
        assert_eq!(bench.driver.due(), None, "once");
    }

    #[test]
    fn a_commit_is_told_at_once_when_a_follower_proposed_it() {
        let mut bench = Bench::new(3).lead();
        bench.receive(Message {
            entries: vec![Entry::default()],
            ..from(3, MessageType::Propose, 0)
        });
        bench.persist();
        bench.sent.clear();
        bench.acknowledge(2, 3);
        assert_eq!(appended(&mut bench), [(2, 0, 3), (3, 0, 3)]);
    }

    #[test]
    fn a_leader_that_hands_over_tells_what_is_committed() {
        let mut bench = Bench::new(3).lead();
        bench.propose(1);
        bench.persist();
        bench.sent.clear();
        bench.acknowledge(2, 3);
        assert_eq!(appended(&mut bench), []);
        bench.driver.transfer(MemberId(2)).unwrap();
        bench.settle();
        assert_eq!(appended(&mut bench), [(2, 0, 3), (3, 0, 3)]);
    }

    #[test]
    fn a_leader_waits_for_its_disk_when_its_own_write_completes_a_majority() {
        let mut bench = Bench::new(3).lead();
        bench.propose(1);
        assert!(!bench.driver.awaits_disk(), "one of three is not enough");
        bench.acknowledge(2, 3);
        assert!(bench.driver.awaits_disk(), "two are");
        bench.persist();
        assert_eq!(bench.driver.numbers().committed, 3);
        bench.propose(2);
        bench.acknowledge(2, 4);
        bench.acknowledge(3, 4);
        assert_eq!(bench.driver.numbers().committed, 4, "by the others");
        assert!(bench.driver.awaits_disk(), "to apply it");

        let mut alone = Bench::new(1);
        alone.tick();
        assert!(alone.driver.awaits_disk());
    }
}
