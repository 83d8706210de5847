//! When the cluster may change its members without endangering its quorum (etcd: etcdserver/server.go, `mayAddMember`,
//! `mayRemoveMember`, `mayPromoteMember`; api/membership/cluster.go, `IsReadyTo…`).
//!
//! Pure functions over what this member sees. Invariant: with `--strict-reconfig-check` no change that passes leaves
//! fewer than a quorum of members that were ever started.

use std::time::Duration;

use transport_core::MemberId;

use crate::grpc::error::ServerError;

/// How long a connection must have lasted to count (etcd: etcdserver/server.go, `HealthInterval`).
pub const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// The share of the leader's log a learner must have to be promoted.
const READY_SHARE: f64 = 0.9;

/// A voter as this member sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Its id.
    pub id: MemberId,
    /// Whether it has published itself: its name is not empty.
    pub started: bool,
    /// How long this member has been connected to it; this member itself counts as connected for ever.
    pub connected: Option<Duration>,
}

impl Voter {
    fn is_healthy(&self) -> bool {
        self.connected
            .is_some_and(|connected| connected > HEALTHY_AFTER)
    }
}

fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// Whether a member may be added. The new member counts as down.
pub fn may_add(voters: &[Voter], learner: bool) -> Result<(), ServerError> {
    let (members, started) = (
        voters.len(),
        voters.iter().filter(|voter| voter.started).count(),
    );
    // A single member that runs may always grow: that is how a cluster is restored from one member.
    let alone = members == 1 && started == 1;
    if !learner && !alone && started < quorum(members + 1) {
        return Err(ServerError::NotEnoughStartedMembers);
    }
    let healthy = voters.iter().filter(|voter| voter.is_healthy()).count();
    if members != 1 && healthy < quorum(members + 1) {
        return Err(ServerError::Unhealthy);
    }
    Ok(())
}

/// Whether a member may be removed. Learners always may, and so may voters that are out of reach as long as enough
/// started ones remain.
pub fn may_remove(
    voters: &[Voter],
    own: MemberId,
    id: MemberId,
    is_learner: bool,
) -> Result<(), ServerError> {
    if is_learner {
        return Ok(());
    }
    let rest = || voters.iter().filter(|voter| voter.id != id);
    if rest().filter(|voter| voter.started).count() < quorum(rest().count()) {
        return Err(ServerError::NotEnoughStartedMembers);
    }
    let target = voters.iter().find(|voter| voter.id == id);
    if id != own && target.is_none_or(|voter| voter.connected.is_none()) {
        return Ok(());
    }
    let healthy = voters.iter().filter(|voter| voter.is_healthy()).count();
    if healthy.saturating_sub(1) < quorum(voters.len().saturating_sub(1)) {
        return Err(ServerError::Unhealthy);
    }
    Ok(())
}

/// Whether a learner may become a voter, as far as the voters are concerned.
pub fn may_promote(voters: &[Voter]) -> Result<(), ServerError> {
    // The learner counts as a member, and as one that runs.
    let started = 1 + voters.iter().filter(|voter| voter.started).count();
    if started < quorum(voters.len() + 1) {
        Err(ServerError::NotEnoughStartedMembers)
    } else {
        Ok(())
    }
}

/// Whether a learner has enough of the leader's log. `progress` is how far each member's log is known to match this
/// one's, which only a leader knows.
pub fn is_learner_ready(
    progress: &[(MemberId, u64)],
    own: MemberId,
    learner: MemberId,
) -> Result<(), ServerError> {
    let matched = |of: MemberId| {
        let found = progress.iter().find(|(id, _)| *id == of);
        found.map(|(_, matched)| *matched)
    };
    // Without its own there is nothing to compare with: the leader is another, or has only just become it.
    let leader = matched(own).ok_or(ServerError::NotLeader)?;
    match matched(learner) {
        Some(learner) if learner as f64 >= READY_SHARE * leader as f64 => Ok(()),
        _ => Err(ServerError::LearnerNotReady),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::MAX);
    const SHORT: Option<Duration> = Some(Duration::from_secs(5));

    fn voters(members: &[(bool, Option<Duration>)]) -> Vec<Voter> {
        let voter = |(at, (started, connected)): (usize, &(bool, Option<Duration>))| Voter {
            id: MemberId(at as u64 + 1),
            started: *started,
            connected: *connected,
        };
        members.iter().enumerate().map(voter).collect()
    }

    #[test]
    fn adding_counts_the_new_member_as_down() {
        let (few, unhealthy) = (
            Err(ServerError::NotEnoughStartedMembers),
            Err(ServerError::Unhealthy),
        );
        let cases = [
            (voters(&[(true, LONG)]), false, Ok(())),
            (voters(&[(false, LONG)]), false, few.clone()),
            (voters(&[(true, LONG), (true, LONG)]), false, Ok(())),
            (voters(&[(true, LONG), (false, LONG)]), false, few.clone()),
            (
                voters(&[(true, LONG), (false, None)]),
                true,
                unhealthy.clone(),
            ),
            (
                voters(&[(true, LONG), (true, SHORT)]),
                false,
                unhealthy.clone(),
            ),
            (
                voters(&[(true, LONG), (true, LONG), (true, LONG)]),
                false,
                Ok(()),
            ),
            (
                voters(&[(true, LONG), (true, LONG), (true, None)]),
                false,
                unhealthy,
            ),
            (
                voters(&[(true, LONG), (true, LONG), (true, LONG), (true, None)]),
                false,
                Ok(()),
            ),
            (
                voters(&[(true, LONG), (true, LONG), (false, LONG)]),
                false,
                few,
            ),
        ];
        for (voters, learner, expected) in cases {
            assert_eq!(may_add(&voters, learner), expected, "{voters:?}");
        }
    }

    #[test]
    fn removing_keeps_a_quorum_of_those_that_run() {
        let (own, few, unhealthy) = (
            MemberId(1),
            Err(ServerError::NotEnoughStartedMembers),
            Err(ServerError::Unhealthy),
        );
        let three = voters(&[(true, LONG), (true, LONG), (true, LONG)]);
        assert_eq!(may_remove(&three, own, MemberId(3), false), Ok(()));
        assert_eq!(may_remove(&three, own, own, false), Ok(()));
        let one_down = voters(&[(true, LONG), (true, LONG), (true, None)]);
        assert_eq!(may_remove(&one_down, own, MemberId(3), false), Ok(()));
        assert_eq!(may_remove(&one_down, own, MemberId(2), false), unhealthy);
        let unstarted = voters(&[(true, LONG), (true, LONG), (false, None)]);
        assert_eq!(may_remove(&unstarted, own, MemberId(2), false), few);
        assert_eq!(may_remove(&unstarted, own, MemberId(9), true), Ok(()));
        assert_eq!(may_remove(&voters(&[(true, LONG)]), own, own, false), few);
    }

    #[test]
    fn promoting_counts_the_learner_as_running() {
        assert_eq!(may_promote(&voters(&[(true, LONG)])), Ok(()));
        assert_eq!(
            may_promote(&voters(&[(true, LONG), (false, None), (false, None)])),
            Err(ServerError::NotEnoughStartedMembers)
        );
    }

    #[test]
    fn a_learner_is_ready_with_nine_tenths_of_the_leader_s_log_which_only_the_leader_knows() {
        let (own, learner) = (MemberId(1), MemberId(4));
        let ready = |progress: &[(u64, u64)]| {
            let progress: Vec<_> = progress
                .iter()
                .map(|(id, matched)| (MemberId(*id), *matched))
                .collect();
            is_learner_ready(&progress, own, learner)
        };
        assert_eq!(ready(&[(1, 100), (4, 90)]), Ok(()));
        assert_eq!(ready(&[(1, 0), (4, 0)]), Ok(()));
        let lags = Err(ServerError::LearnerNotReady);
        assert_eq!(ready(&[(1, 100), (4, 89)]), lags);
        assert_eq!(ready(&[(1, 100), (2, 100)]), lags);
        assert_eq!(ready(&[]), Err(ServerError::NotLeader));
        assert_eq!(ready(&[(4, 100)]), Err(ServerError::NotLeader));
    }
}
