//! Requests of peers that were refused, counted by endpoint and cause.
//!
//! Depends on transport-core's verdicts. Invariant: endpoints and causes are closed lists, so that what a request says
//! never becomes a label.

use transport_core::handshake::{Endpoint, Verdict};

use crate::{
    config::SharedRecorder,
    metrics::causes::{Causes, causes},
};

/// A verdict without what it carries.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Method,
    IncompatibleVersion,
    ClusterIdMismatch,
    InvalidPath,
    InvalidFrom,
    RemovedMember,
    SenderNotFound,
    ToFieldMismatch,
    Unreadable,
    Malformed,
    ByRaft,
    WrongType,
    Unsaved,
}

causes!(Refused:
    Method = "method", IncompatibleVersion = "incompatible_version", ClusterIdMismatch = "cluster_id_mismatch",
    InvalidPath = "invalid_path", InvalidFrom = "invalid_from", RemovedMember = "removed_member",
    SenderNotFound = "sender_not_found", ToFieldMismatch = "to_field_mismatch", Unreadable = "unreadable",
    Malformed = "malformed", ByRaft = "raft", WrongType = "wrong_type", Unsaved = "unsaved");

impl From<&Verdict> for Refused {
    fn from(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::MethodNotAllowed { .. } => Refused::Method,
            Verdict::IncompatibleVersion => Refused::IncompatibleVersion,
            Verdict::ClusterIdMismatch => Refused::ClusterIdMismatch,
            Verdict::InvalidPath => Refused::InvalidPath,
            Verdict::InvalidFrom => Refused::InvalidFrom,
            Verdict::RemovedMember => Refused::RemovedMember,
            Verdict::SenderNotFound(_) => Refused::SenderNotFound,
            Verdict::ToFieldMismatch => Refused::ToFieldMismatch,
            Verdict::MessageUnreadable => Refused::Unreadable,
            Verdict::MessageMalformed | Verdict::SnapshotMalformed { .. } => Refused::Malformed,
            Verdict::MessageRefused | Verdict::SnapshotRefused { .. } => Refused::ByRaft,
            Verdict::SnapshotWrongType => Refused::WrongType,
            Verdict::SnapshotUnsaved { .. } => Refused::Unsaved,
        }
    }
}

pub(crate) struct Refusals {
    message: Causes<{ Refused::COUNT }>,
    snapshot: Causes<{ Refused::COUNT }>,
    stream: Causes<{ Refused::COUNT }>,
}

impl Refusals {
    pub(crate) fn new(recorder: &SharedRecorder, metric: &'static str) -> Self {
        let of = |endpoint| Causes::new(recorder, metric, &[("endpoint", endpoint)], "cause");
        Refusals {
            message: of("message"),
            snapshot: of("snapshot"),
            stream: of("stream"),
        }
    }

    pub(crate) fn count(&self, endpoint: Endpoint, verdict: &Verdict) {
        let causes = match endpoint {
            Endpoint::Raft => &self.message,
            Endpoint::Snapshot => &self.snapshot,
            Endpoint::Stream => &self.stream,
        };
        causes.count(Refused::from(verdict), 1);
    }
}
