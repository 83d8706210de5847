//! Every error a call can end with, with etcd's text and code (etcd: api/v3rpc/rpctypes/error.go, v3rpc/util.go).
//!
//! Errors of the state machine come from kvstore; here are those of the server around it. Depends on `tonic` for what
//! a status is. Invariant: the texts are etcd's, byte for byte, because its clients tell errors apart by them.

use kvstore::ApplyError;
use tonic::{Code, Status};

/// Why a call was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// The state machine refused it, or would.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Too few members have ever been started for the change to be safe.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStartedMembers,
    /// The learner has not caught up.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// The question is about another cluster.
    #[error("etcdserver: cluster ID mismatch")]
    ClusterIdMismatch,
    /// Larger than `--max-request-bytes`.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// Applying is too far behind what is committed.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// Nobody leads.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// Only the leader can do it.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Leadership moved while a read waited.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// The cluster's version does not have it.
    #[error("etcdserver: not capable")]
    NotCapable,
    /// The member is being stopped.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The request timeout passed.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// It passed, and the leader was lost on the way.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutDueToLeaderFail,
    /// It passed, and members were out of reach.
    #[error("etcdserver: request timed out, possibly due to connection lost")]
    TimeoutDueToConnectionLost,
    /// It passed while this member was catching up.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    TimeoutWaitAppliedIndex,
    /// Leadership did not move in time.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TimeoutLeaderTransfer,
    /// Too few members are connected for the change to be safe.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    /// A learner does not serve this.
    #[error("etcdserver: rpc not supported for learner")]
    NotSupportedForLearner,
    /// Leadership cannot go there.
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// A downgrade needs a cluster version.
    #[error("etcdserver: cluster version not found during downgrade")]
    ClusterVersionUnavailable,
    /// The client's API version is not text.
    #[error("etcdserver: invalid client api version")]
    InvalidClientApiVersion,
    /// The watch was cancelled.
    #[error("etcdserver: watch canceled")]
    WatchCanceled,
    /// The caller went away.
    #[error("etcdserver: request canceled")]
    Canceled,
    /// The caller's deadline passed.
    #[error("etcdserver: context deadline exceeded")]
    DeadlineExceeded,
    /// Anything else, with its own text.
    #[error("{0}")]
    Other(String),
}

impl ServerError {
    /// The code etcd sends with it.
    pub fn code(&self) -> Code {
        use ServerError::*;
        match self {
            Apply(error) => Code::from_i32(error.code() as i32),
            RequestTooLarge | InvalidClientApiVersion => Code::InvalidArgument,
            LearnerNotReady
            | ClusterIdMismatch
            | NotLeader
            | NotCapable
            | NotSupportedForLearner
            | BadLeaderTransferee
            | ClusterVersionUnavailable => Code::FailedPrecondition,
            NoLeader
            | LeaderChanged
            | Stopped
            | Timeout
            | TimeoutDueToLeaderFail
            | TimeoutDueToConnectionLost
            | TimeoutWaitAppliedIndex
            | Unhealthy => Code::Unavailable,
            WatchCanceled | Canceled => Code::Cancelled,
            DeadlineExceeded => Code::DeadlineExceeded,
            // The first two have better codes in etcd's table, but its server maps them to the clients' error values,
            // which carry none.
            NotEnoughStartedMembers | TooManyRequests | TimeoutLeaderTransfer | Other(_) => {
                Code::Unknown
            }
        }
    }
}

impl From<ServerError> for Status {
    fn from(error: ServerError) -> Status {
        Status::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerError::*, *};

    #[test]
    fn texts_and_codes_are_etcd_s() {
        let table = [
            (
                Apply(ApplyError::EmptyKey),
                Code::InvalidArgument,
                "etcdserver: key is not provided",
            ),
            (
                Apply(ApplyError::LeaseNotFound),
                Code::NotFound,
                "etcdserver: requested lease not found",
            ),
            (
                Apply(ApplyError::Compacted),
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            (
                Apply(ApplyError::NoSpace),
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (
                Apply(ApplyError::PermissionDenied),
                Code::PermissionDenied,
                "etcdserver: permission denied",
            ),
            (
                Apply(ApplyError::InvalidAuthToken),
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
            ),
            (
                Apply(ApplyError::Corrupt),
                Code::DataLoss,
                "etcdserver: corrupt cluster",
            ),
            (
                Apply(ApplyError::MemberExists),
                Code::FailedPrecondition,
                "etcdserver: member ID already exist",
            ),
            (
                NotEnoughStartedMembers,
                Code::Unknown,
                "etcdserver: re-configuration failed due to not enough started members",
            ),
            (
                LearnerNotReady,
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            (
                ClusterIdMismatch,
                Code::FailedPrecondition,
                "etcdserver: cluster ID mismatch",
            ),
            (
                RequestTooLarge,
                Code::InvalidArgument,
                "etcdserver: request is too large",
            ),
            (
                TooManyRequests,
                Code::Unknown,
                "etcdserver: too many requests",
            ),
            (NoLeader, Code::Unavailable, "etcdserver: no leader"),
            (
                NotLeader,
                Code::FailedPrecondition,
                "etcdserver: not leader",
            ),
            (
                LeaderChanged,
                Code::Unavailable,
                "etcdserver: leader changed",
            ),
            (
                NotCapable,
                Code::FailedPrecondition,
                "etcdserver: not capable",
            ),
            (Stopped, Code::Unavailable, "etcdserver: server stopped"),
            (Timeout, Code::Unavailable, "etcdserver: request timed out"),
            (
                TimeoutDueToLeaderFail,
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            (
                TimeoutDueToConnectionLost,
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            (
                TimeoutWaitAppliedIndex,
                Code::Unavailable,
                "etcdserver: request timed out, waiting for the applied index took too long",
            ),
            (
                TimeoutLeaderTransfer,
                Code::Unknown,
                "etcdserver: request timed out, leader transfer took too long",
            ),
            (
                Unhealthy,
                Code::Unavailable,
                "etcdserver: unhealthy cluster",
            ),
            (
                NotSupportedForLearner,
                Code::FailedPrecondition,
                "etcdserver: rpc not supported for learner",
            ),
            (
                BadLeaderTransferee,
                Code::FailedPrecondition,
                "etcdserver: bad leader transferee",
            ),
            (
                ClusterVersionUnavailable,
                Code::FailedPrecondition,
                "etcdserver: cluster version not found during downgrade",
            ),
            (
                InvalidClientApiVersion,
                Code::InvalidArgument,
                "etcdserver: invalid client api version",
            ),
            (WatchCanceled, Code::Cancelled, "etcdserver: watch canceled"),
            (Canceled, Code::Cancelled, "etcdserver: request canceled"),
            (
                DeadlineExceeded,
                Code::DeadlineExceeded,
                "etcdserver: context deadline exceeded",
            ),
            (Other("lost".into()), Code::Unknown, "lost"),
        ];
        for (error, code, text) in table {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }
}
