//! Election timeouts from our own randomness, and the shortened first one.
//!
//! raft-rs draws from the process' randomness whenever it resets; here the same moment is noticed and the
//! timeout set again, so that a seed decides everything. Depends on raft-rs and rand. Invariant: after
//! [`Election::settle`] raft's timeout is the one drawn here.

use raft::{Raft, StateRole};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::log::Log;

/// The source of election timeouts of one member.
pub(crate) struct Election {
    rng: SmallRng,
    ticks: usize,
    timeout: usize,
    seen: Option<(u64, StateRole)>,
}

impl Election {
    /// Timeouts are in `[ticks, 2 * ticks)`.
    pub fn new(seed: Option<u64>, ticks: usize) -> Self {
        let rng = match seed {
            Some(seed) => SmallRng::seed_from_u64(seed),
            None => SmallRng::from_os_rng(),
        };
        Election {
            rng,
            ticks,
            timeout: ticks,
            seen: None,
        }
    }

    /// A number that tells this run from others.
    pub fn nonce(&mut self) -> u64 {
        self.rng.random()
    }

    /// To be called after whatever may have reset raft: every reset comes with another term or role.
    pub fn settle(&mut self, raft: &mut Raft<Log>) {
        let now = Some((raft.term, raft.state));
        if self.seen != now {
            self.seen = now;
            self.timeout = self.rng.random_range(self.ticks..2 * self.ticks);
        }
        raft.set_randomized_election_timeout(self.timeout);
    }

    /// Brings the first election nearer, as etcd does once a starting member has met its peers; never
    /// beyond one tick before the shortest timeout. Without effect once a leader is known.
    ///
    /// etcd: server/etcdserver/raft.go, `advanceTicks`.
    pub fn advance(&self, raft: &mut Raft<Log>, ticks: usize) {
        if raft.leader_id == raft::INVALID_ID && raft.state == StateRole::Follower {
            let latest = self.ticks.saturating_sub(1);
            raft.election_elapsed = raft
                .election_elapsed
                .max(raft.election_elapsed.saturating_add(ticks).min(latest));
        }
    }

    /// Nobody else votes: the next tick may start the election.
    pub fn advance_alone(&self, raft: &mut Raft<Log>) {
        if raft.state == StateRole::Follower && raft.promotable() && raft.prs().is_singleton() {
            raft.election_elapsed = raft.election_elapsed.max(self.timeout);
        }
    }
}
