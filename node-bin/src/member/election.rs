//! How many ticks of the first election timeout a starting member may skip (etcd: etcdserver/server.go, `start`,
//! `adjustTicks`).
//!
//! Pure. Invariant: a member of a larger cluster keeps at least two ticks in which a heartbeat of a leader can reach it.

use std::time::Duration;

/// Longest wait for connections before the clock is advanced.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// Pause between two looks at the connections.
pub const WAIT_STEP: Duration = Duration::from_millis(200);

/// What to do now about the election clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advance {
    /// Advance by these ticks, once.
    Now(u64),
    /// Look again after [`WAIT_STEP`].
    Later,
    /// Leave it alone for good.
    Never,
}

/// Decides for a member that has waited for so long and has connections to that many others.
pub fn advance(
    enabled: bool,
    election_ticks: u64,
    members: usize,
    connected: usize,
    waited: Duration,
) -> Advance {
    if members == 1 {
        return Advance::Now(election_ticks.saturating_sub(1));
    }
    if !enabled {
        return Advance::Never;
    }
    // With one connection alone the other side may be as new as this one.
    if connected > 1 {
        return Advance::Now(election_ticks.saturating_sub(2));
    }
    if waited < WAIT_MAX {
        Advance::Later
    } else {
        Advance::Never
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_member_waits_for_nobody() {
        let waited = Duration::ZERO;
        assert_eq!(advance(false, 10, 1, 0, waited), Advance::Now(9));
        assert_eq!(advance(true, 10, 3, 2, waited), Advance::Now(8));
        assert_eq!(advance(true, 10, 3, 1, waited), Advance::Later);
        assert_eq!(advance(true, 10, 3, 1, WAIT_MAX), Advance::Never);
        assert_eq!(advance(false, 10, 3, 2, waited), Advance::Never);
    }
}
