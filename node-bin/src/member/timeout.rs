//! Which of the timeout errors a request gets (etcd: etcdserver/server.go, `parseProposeCtxErr`).
//!
//! Pure. Invariant: the answer depends on nothing but what happened between the request's start and its end.

use std::time::{Duration, Instant};

use crate::grpc::error::ServerError;

/// What this member knows when a request has timed out.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// When the request was begun.
    pub begun: Instant,
    /// When the present leader became known, if there ever was one.
    pub leader_elected: Option<Instant>,
    /// The election timeout.
    pub election_timeout: Duration,
    /// Whether those this member depends on have been connected all the time: a follower's leader, a leader's quorum.
    /// Without a leader, true.
    pub connected_since_begun: bool,
}

/// Chooses the error.
pub fn error(circumstances: &Circumstances) -> ServerError {
    let Circumstances {
        begun,
        leader_elected,
        election_timeout,
        connected_since_begun,
    } = *circumstances;
    if let Some(elected) = leader_elected {
        // The previous leader was lost at most two election timeouts before the present one was elected.
        let lost = elected.checked_sub(2 * election_timeout);
        if begun < elected && lost.is_none_or(|lost| begun > lost) {
            return ServerError::TimeoutDueToLeaderFail;
        }
    }
    if connected_since_begun {
        ServerError::Timeout
    } else {
        ServerError::TimeoutDueToConnectionLost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_s_failure_comes_first() {
        let now = Instant::now() + Duration::from_secs(100);
        let second = Duration::from_secs(1);
        let of = |begun, leader_elected, connected_since_begun| {
            error(&Circumstances {
                begun,
                leader_elected,
                election_timeout: second,
                connected_since_begun,
            })
        };
        assert_eq!(
            of(now, Some(now + second), false),
            ServerError::TimeoutDueToLeaderFail
        );
        assert_eq!(of(now, Some(now + 2 * second), true), ServerError::Timeout);
        assert_eq!(
            of(now, Some(now - second), false),
            ServerError::TimeoutDueToConnectionLost
        );
        assert_eq!(of(now, None, true), ServerError::Timeout);
    }
}
