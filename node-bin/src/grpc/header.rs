//! The header every response carries (etcd: v3rpc/header.go).
//!
//! Depends on the generated messages. Invariant: a revision that the state machine put into a header is kept; it
//! belongs to the change the response is about.

use kvstore::pb::etcdserverpb::ResponseHeader;
use transport_core::{ClusterId, MemberId};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responder {
    /// This member's cluster.
    pub cluster_id: ClusterId,
    /// This member.
    pub member_id: MemberId,
}

impl Responder {
    /// A header without revision, as the cluster service sends it.
    pub fn header(&self, raft_term: u64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.cluster_id.0,
            member_id: self.member_id.0,
            revision: 0,
            raft_term,
        }
    }

    /// Completes a header; `revision` is asked for the store's current one if the header has none.
    pub fn fill(
        &self,
        header: &mut Option<ResponseHeader>,
        raft_term: u64,
        revision: impl FnOnce() -> i64,
    ) {
        let known = header.as_ref().map_or(0, |header| header.revision);
        let revision = if known == 0 { revision() } else { known };
        *header = Some(ResponseHeader {
            revision,
            ..self.header(raft_term)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_from_below_is_kept() {
        let responder = Responder {
            cluster_id: ClusterId(1),
            member_id: MemberId(2),
        };
        let mut header = Some(ResponseHeader {
            revision: 7,
            ..Default::default()
        });
        responder.fill(&mut header, 3, || unreachable!());
        assert_eq!(
            header,
            Some(ResponseHeader {
                cluster_id: 1,
                member_id: 2,
                revision: 7,
                raft_term: 3
            })
        );
        let mut header = None;
        responder.fill(&mut header, 3, || 9);
        assert_eq!(header.map(|header| header.revision), Some(9));
    }
}
