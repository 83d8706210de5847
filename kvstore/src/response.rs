//! What applying an entry hands back to its owner.

use crate::{error::ApplyError, mvcc::Event, pb::etcdserverpb as pb, version::Version};

/// The answer to a request, as its gRPC method returns it. Headers hold the revision alone; the member that answers
/// a client fills in the rest.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Response {
    /// Nothing to say: cluster version, member attributes, downgrade information, requests of the v2 API.
    Empty,
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compaction(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    LeaseCheckpoint(pb::LeaseCheckpointResponse),
    Alarm(pb::AlarmResponse),
    Authenticate(pb::AuthenticateResponse),
    AuthEnable(pb::AuthEnableResponse),
    AuthDisable(pb::AuthDisableResponse),
    AuthStatus(pb::AuthStatusResponse),
    AuthUserAdd(pb::AuthUserAddResponse),
    AuthUserGet(pb::AuthUserGetResponse),
    AuthUserDelete(pb::AuthUserDeleteResponse),
    AuthUserChangePassword(pb::AuthUserChangePasswordResponse),
    AuthUserGrantRole(pb::AuthUserGrantRoleResponse),
    AuthUserRevokeRole(pb::AuthUserRevokeRoleResponse),
    AuthUserList(pb::AuthUserListResponse),
    AuthRoleAdd(pb::AuthRoleAddResponse),
    AuthRoleGet(pb::AuthRoleGetResponse),
    AuthRoleDelete(pb::AuthRoleDeleteResponse),
    AuthRoleGrantPermission(pb::AuthRoleGrantPermissionResponse),
    AuthRoleRevokePermission(pb::AuthRoleRevokePermissionResponse),
    AuthRoleList(pb::AuthRoleListResponse),
}

/// What happened to one entry.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Index of the entry.
    pub index: u64,
    /// Id by which the proposer waits; `None` for an entry nobody waits for.
    pub request_id: Option<u64>,
    /// The answer.
    pub outcome: Result<Response, ApplyError>,
    /// Revision of the store after the entry.
    pub revision: i64,
    /// The changes it made, in order; empty when it was refused or changed no key.
    pub events: Vec<Event>,
    /// What the member has to do about it.
    pub duty: Option<Duty>,
}

/// What the member must do after an entry, beside answering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    /// This member is over its space quota: propose the alarm.
    RaiseNoSpace,
    /// The compaction at this revision was accepted; [`Reader::finished_compaction`](crate::Reader) reaches it once
    /// its rows are physically gone, which the request may want to wait for.
    Compacted(i64),
    /// The cluster version changed. A member older than it must stop; one that sees it fall takes a snapshot at once.
    ClusterVersion {
        /// What it was.
        previous: Option<Version>,
        /// What it is.
        current: Version,
    },
}
