//! What the gRPC services need of the member behind them.
//!
//! The services check requests, shape answers and choose the way a request takes; [`ServerBackend`] carries it out:
//! proposals through raft, the barrier before a linearizable read, changes of the membership. Depends on kvstore's
//! messages and reader and on raft-node's status. Invariant: nothing here knows gRPC.

use bytes::{Bytes, BytesMut};
use kvstore::{
    Reader, Response,
    membership::Member,
    pb::etcdserverpb::{
        AlarmRequest, CompactionRequest, DeleteRangeRequest, PutRequest, RequestHeader, TxnRequest,
    },
};
use prost::Message;
use transport_core::MemberId;

use super::{error::ServerError, header::Responder};
use crate::config::Url;

/// The member, as its services see it (etcd: server/etcdserver/v3_server.go). Every wait within it has a deadline;
/// members are returned by ascending id.
pub trait ServerBackend: Send + Sync + 'static {
    /// This member and its cluster.
    fn responder(&self) -> Responder;

    /// Raft's numbers. Asked for with every answer: cheap and lock-free.
    fn status(&self) -> raft_node::Status;

    /// Whether this member has no vote. Asked for with every request: cheap and lock-free.
    fn is_learner(&self) -> bool;

    /// The store, to read from.
    fn reader(&self) -> &Reader;

    /// Puts a request into the log and waits until it is applied here.
    ///
    /// # Errors
    /// `RequestTooLarge`, `TooManyRequests` when nothing was proposed, the timeouts when it may still be carried out,
    /// `Stopped`; `Apply` when the state machine refused it.
    fn propose(
        &self,
        proposal: Proposal,
    ) -> impl Future<Output = Result<Response, ServerError>> + Send;

    /// Waits until what a majority had committed when this was called is applied here.
    fn linearizable(&self) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Adds a member with these peer URLs, which are sorted and not empty. Returns it and all members after that.
    fn member_add(
        &self,
        peer_urls: Vec<Url>,
        is_learner: bool,
    ) -> impl Future<Output = Result<(Member, Vec<Member>), ServerError>> + Send;

    /// Removes a member. Returns all that are left.
    fn member_remove(
        &self,
        id: MemberId,
    ) -> impl Future<Output = Result<Vec<Member>, ServerError>> + Send;

    /// Gives a member other peer URLs. Returns all members after that.
    fn member_update(
        &self,
        id: MemberId,
        peer_urls: Vec<Url>,
    ) -> impl Future<Output = Result<Vec<Member>, ServerError>> + Send;

    /// Gives a learner a vote, asking the leader for it. Returns all members after that.
    fn member_promote(
        &self,
        id: MemberId,
    ) -> impl Future<Output = Result<Vec<Member>, ServerError>> + Send;

    /// Hands leadership from this member, which leads, to another voter and waits until that is done.
    ///
    /// # Errors
    /// `BadLeaderTransferee`, `TimeoutLeaderTransfer`.
    fn move_leader(&self, to: MemberId) -> impl Future<Output = Result<(), ServerError>> + Send;
}

/// A request for the log: those fields of etcd's `InternalRaftRequest` that a client's call fills. The whole message
/// has 38 fields and takes some 2 KB wherever it is moved; this takes no more than the request in it.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Proposal {
    Put(PutRequest),
    DeleteRange(DeleteRangeRequest),
    Txn(TxnRequest),
    Compaction(CompactionRequest),
    Alarm(AlarmRequest),
}

/// Field number of the header in `InternalRaftRequest`.
const HEADER: u32 = 100;

impl Proposal {
    /// The entry's data: this request and `header`, in ascending order of their fields.
    pub fn encode(&self, header: &RequestHeader) -> Bytes {
        match self {
            Proposal::Put(request) => encode(4, request, header),
            Proposal::DeleteRange(request) => encode(5, request, header),
            Proposal::Txn(request) => encode(6, request, header),
            Proposal::Compaction(request) => encode(7, request, header),
            Proposal::Alarm(request) => encode(10, request, header),
        }
    }
}

/// Longest key and length of an embedded message.
const PREFIX_MAX: usize = 2 + 10;

fn encode(field: u32, request: &impl Message, header: &RequestHeader) -> Bytes {
    let (length, header_length) = (request.encoded_len(), header.encoded_len());
    let mut data = BytesMut::with_capacity(length + header_length + 2 * PREFIX_MAX);
    embed(field, request, length, &mut data);
    embed(HEADER, header, header_length, &mut data);
    data.freeze()
}

/// Appends a message as a field: key, length, bytes. `data` has room for it, and grows if it had not.
fn embed(field: u32, message: &impl Message, length: usize, data: &mut BytesMut) {
    const LENGTH_DELIMITED: u32 = 2;
    for varint in [(field << 3 | LENGTH_DELIMITED) as usize, length] {
        // A BytesMut is only ever full when memory is at its end.
        let _ = prost::encode_length_delimiter(varint, data);
    }
    message.encode_raw(data);
}

#[cfg(test)]
mod tests {
    use kvstore::pb::etcdserverpb::{InternalRaftRequest, RequestOp, request_op::Request};

    use super::*;

    #[test]
    fn a_proposal_is_the_internal_request_with_the_same_fields() {
        let header = RequestHeader {
            id: u64::MAX,
            username: "root".into(),
            auth_revision: 300,
        };
        let put = PutRequest {
            key: "k".into(),
            value: vec![7; 300].into(),
            lease: -1,
            ..Default::default()
        };
        let delete = DeleteRangeRequest {
            key: "a".into(),
            prev_kv: true,
            ..Default::default()
        };
        let txn = TxnRequest {
            success: vec![RequestOp {
                request: Some(Request::RequestPut(put.clone())),
            }],
            ..Default::default()
        };
        let compaction = CompactionRequest {
            revision: 5,
            physical: true,
        };
        let base = InternalRaftRequest {
            header: Some(header.clone()),
            ..Default::default()
        };
        let expected = [
            (
                Proposal::Put(put.clone()),
                InternalRaftRequest {
                    put: Some(put),
                    ..base.clone()
                },
            ),
            (
                Proposal::DeleteRange(delete.clone()),
                InternalRaftRequest {
                    delete_range: Some(delete),
                    ..base.clone()
                },
            ),
            (
                Proposal::Txn(txn.clone()),
                InternalRaftRequest {
                    txn: Some(txn),
                    ..base.clone()
                },
            ),
            (
                Proposal::Compaction(compaction),
                InternalRaftRequest {
                    compaction: Some(compaction),
                    ..base.clone()
                },
            ),
            // Present and empty: written all the same, as Go does.
            (
                Proposal::Alarm(AlarmRequest::default()),
                InternalRaftRequest {
                    alarm: Some(AlarmRequest::default()),
                    ..base
                },
            ),
        ];
        for (proposal, request) in expected {
            assert_eq!(proposal.encode(&header), request.encode_to_vec());
        }
    }
}
