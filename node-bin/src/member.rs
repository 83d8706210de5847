//! etcdserver's own rules, each a pure function or a small value: what a member proposes about itself, when a
//! reconfiguration is safe, what joining takes, which error a timeout gets.
//!
//! Depends on the layers below for their types. Invariant: nothing here reads a clock, a socket or a disk on its own;
//! what a rule needs is passed in.

pub mod answers;
pub mod asking;
pub mod auto_compaction;
pub mod boot;
pub mod cluster_version;
pub mod election;
pub mod inbound;
pub mod info;
pub mod join;
pub mod limits;
pub mod outbound;
pub mod publish;
pub mod received;
pub mod reconfig;
pub mod replica;
pub mod request_id;
pub mod serving;
pub mod tasks;
pub mod timeout;

use transport_core::MemberId;

pub use self::{cluster_version::Versions, info::MemberInfo, request_id::RequestIds};

/// Whom leadership should go to when this member stops: the voter it has been connected to for longest.
///
/// `connected` holds the other voters with how long each connection has lasted, `None` for those out of reach (etcd:
/// etcdserver/util.go, `longestConnected`).
pub fn transferee(connected: &[(MemberId, Option<std::time::Duration>)]) -> Option<MemberId> {
    let reachable = connected
        .iter()
        .filter_map(|(id, since)| since.map(|since| (since, *id)));
    reachable.max_by_key(|(since, _)| *since).map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn leadership_goes_to_the_steadiest_peer() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let peers = [
            (MemberId(1), seconds(5)),
            (MemberId(2), None),
            (MemberId(3), seconds(9)),
        ];
        assert_eq!(transferee(&peers), Some(MemberId(3)));
        assert_eq!(transferee(&[(MemberId(2), None)]), None);
    }
}
