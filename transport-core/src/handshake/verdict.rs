//! Answers to peer requests that are not accepted, byte for byte as a Go member gives them.
//!
//! etcd: rafthttp/http.go. Go clients compare bodies, and act on 410 by stopping their server.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};

use super::{Identity, Introduction, SERVER_VERSION_HEADER, headers::value};

/// The three kinds of request under `/raft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// GET `/raft/stream/…`.
    Stream,
    /// POST `/raft`.
    Raft,
    /// POST `/raft/snapshot`.
    Snapshot,
}

/// Why a request is not accepted. `cause` is free text for the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Any endpoint: another method than `allow`.
    MethodNotAllowed {
        /// The only method the endpoint has.
        allow: &'static str,
    },
    /// Any endpoint: the versions do not overlap, or one cannot be read.
    IncompatibleVersion,
    /// Any endpoint: the request is meant for another cluster.
    ClusterIdMismatch,
    /// Stream: neither of the two stream paths.
    InvalidPath,
    /// Stream: the path does not end in a member id.
    InvalidFrom,
    /// Stream: the dialler was removed from the cluster. A Go dialler stops its server.
    RemovedMember,
    /// Stream: the dialler is not a peer (yet); what it said of itself, for adding it as a remote.
    SenderNotFound(Option<Introduction>),
    /// Stream: meant for another member.
    ToFieldMismatch,
    /// Message: the body could not be read.
    MessageUnreadable,
    /// Message: the body is not a message.
    MessageMalformed,
    /// Message: raft refused it, for whatever reason. Answered without a proper end: see
    /// [`Verdict::aborts`].
    MessageRefused,
    /// Snapshot: the envelope is too long, cut short or not a message.
    SnapshotMalformed {
        /// A [`FrameError`](crate::frame::FrameError)'s text.
        cause: String,
    },
    /// Snapshot: the message is of another kind.
    SnapshotWrongType,
    /// Snapshot: the database could not be stored, or ended early.
    SnapshotUnsaved {
        /// What failed.
        cause: String,
    },
    /// Snapshot: raft refused the message, for whatever reason.
    SnapshotRefused {
        /// What raft said.
        cause: String,
    },
}

impl Verdict {
    /// Never 403, whatever was refused: a Go member takes that for its own removal and stops.
    pub fn status(&self) -> StatusCode {
        match self {
            Verdict::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Verdict::IncompatibleVersion
            | Verdict::ClusterIdMismatch
            | Verdict::ToFieldMismatch => StatusCode::PRECONDITION_FAILED,
            Verdict::InvalidPath | Verdict::InvalidFrom | Verdict::SenderNotFound(_) => {
                StatusCode::NOT_FOUND
            }
            Verdict::RemovedMember => StatusCode::GONE,
            Verdict::MessageUnreadable
            | Verdict::MessageMalformed
            | Verdict::SnapshotMalformed { .. }
            | Verdict::SnapshotWrongType => StatusCode::BAD_REQUEST,
            Verdict::MessageRefused
            | Verdict::SnapshotUnsaved { .. }
            | Verdict::SnapshotRefused { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The text of the body.
    pub fn text(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Verdict::MethodNotAllowed { .. } => "Method Not Allowed",
            Verdict::IncompatibleVersion => "incompatible version",
            Verdict::ClusterIdMismatch => "cluster ID mismatch",
            Verdict::InvalidPath => "invalid path",
            Verdict::InvalidFrom => "invalid from",
            Verdict::RemovedMember => "removed member",
            Verdict::SenderNotFound(_) => "error sender not found",
            Verdict::ToFieldMismatch => "to field mismatch",
            Verdict::MessageUnreadable => "error reading raft message",
            Verdict::MessageMalformed => "error unmarshalling raft message",
            Verdict::MessageRefused => "error processing raft message",
            Verdict::SnapshotWrongType => "wrong raft message type",
            Verdict::SnapshotMalformed { cause } => {
                return format!("failed to decode raft message ({cause})").into();
            }
            Verdict::SnapshotUnsaved { cause } => {
                return format!("failed to save KV snapshot ({cause})").into();
            }
            Verdict::SnapshotRefused { cause } => {
                return format!("failed to process raft message ({cause})").into();
            }
        })
    }

    /// The exact body: the text and one line feed. It must be finite on the wire.
    pub fn body(&self) -> String {
        let mut body = self.text().into_owned();
        body.push('\n');
        body
    }

    /// The headers that go with the body, lengths apart. What endpoint is asked decides whether the version
    /// is told; a wrong method learns nothing of us.
    pub fn headers(&self, local: &Identity, endpoint: Endpoint) -> HeaderMap {
        let mut headers = match self {
            Verdict::MethodNotAllowed { allow } => {
                HeaderMap::from_iter([(ALLOW, HeaderValue::from_static(allow))])
            }
            _ => local.cluster_headers(),
        };
        if endpoint == Endpoint::Stream && !matches!(self, Verdict::MethodNotAllowed { .. }) {
            headers.insert(SERVER_VERSION_HEADER, value(local.server_version));
        }
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(CONTENT_TYPE, plain);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers
    }

    /// Whether a Go member aborts the connection after this answer. A receiver need not do the same; the
    /// sender must put up with it.
    pub fn aborts(&self) -> bool {
        *self == Verdict::MessageRefused
    }
}
