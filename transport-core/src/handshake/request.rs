//! Checks of incoming peer requests, in etcd's order.
//!
//! etcd: rafthttp/http.go, `streamHandler.ServeHTTP`, `pipelineHandler.ServeHTTP`,
//! `snapshotHandler.ServeHTTP`, `checkClusterCompatibilityFromHeader`.

use std::fmt;

use http::{HeaderMap, Method};

use super::{Headers, Identity, STREAM_PATH, Verdict};
use crate::MemberId;

/// The two kinds of stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamKind {
    /// Appends: framing [`msgappv2`](crate::frame::msgappv2).
    MsgAppV2,
    /// Everything else: framing [`message`](crate::frame::message).
    Message,
}

impl StreamKind {
    /// Both kinds.
    pub const ALL: [StreamKind; 2] = [StreamKind::MsgAppV2, StreamKind::Message];

    /// Path that `local` asks a peer for to receive this stream.
    pub fn path(self, local: MemberId) -> String {
        format!("{STREAM_PATH}/{}/{local}", self.segment())
    }

    fn segment(self) -> &'static str {
        match self {
            StreamKind::MsgAppV2 => "msgapp",
            StreamKind::Message => "message",
        }
    }
}

/// Prints as in etcd's logs.
impl fmt::Display for StreamKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StreamKind::MsgAppV2 => "stream MsgApp v2",
            StreamKind::Message => "stream Message",
        })
    }
}

/// What a stream request's answer depends on besides the request.
pub trait Membership {
    /// Whether this member was removed from the cluster.
    fn is_removed(&self, id: MemberId) -> bool;
    /// Whether this member is a peer of ours.
    fn is_peer(&self, id: MemberId) -> bool;
}

/// An acceptable request for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// Which stream.
    pub kind: StreamKind,
    /// The peer that asks, and that will receive.
    pub from: MemberId,
}

/// A sender that names itself and its URLs, so that a member that does not know it yet can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// Who.
    pub id: MemberId,
    /// Its peer URLs: at least one, not checked for form.
    pub urls: Vec<String>,
}

/// Judges a request under `/raft/stream`.
///
/// With [`Verdict::SenderNotFound`] comes what the sender said of itself: unless that is `None`, add it as
/// a remote before answering.
pub fn check_stream(
    local: &Identity,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    members: &impl Membership,
) -> Result<StreamRequest, Verdict> {
    if method != Method::GET {
        return Err(Verdict::MethodNotAllowed { allow: "GET" });
    }
    let headers = Headers::new(headers);
    check_compatibility(local, headers)?;
    let (parent, last) = path.rsplit_once('/').unwrap_or_default();
    let segment = parent.strip_prefix(STREAM_PATH).unwrap_or_default();
    let kind = StreamKind::ALL
        .into_iter()
        .find(|kind| segment.strip_prefix('/') == Some(kind.segment()))
        .ok_or(Verdict::InvalidPath)?;
    let from: MemberId = last.parse().map_err(|_| Verdict::InvalidFrom)?;
    if members.is_removed(from) {
        return Err(Verdict::RemovedMember);
    }
    if !members.is_peer(from) {
        let urls = headers.peer_urls();
        let introduction = (!urls.is_empty()).then_some(Introduction { id: from, urls });
        return Err(Verdict::SenderNotFound(introduction));
    }
    if headers.raft_to() != Some(&local.id.to_string()) {
        return Err(Verdict::ToFieldMismatch);
    }
    Ok(StreamRequest { kind, from })
}

/// Judges the head of a message or snapshot request. Yields who it comes from if it says so completely:
/// that sender is to be added as a remote, unless it was removed.
pub fn check_post(
    local: &Identity,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Option<Introduction>, Verdict> {
    if method != Method::POST {
        return Err(Verdict::MethodNotAllowed { allow: "POST" });
    }
    let headers = Headers::new(headers);
    check_compatibility(local, headers)?;
    let urls = headers.peer_urls();
    Ok(headers
        .server_from()
        .filter(|_| !urls.is_empty())
        .map(|id| Introduction { id, urls }))
}

/// Versions overlap and the cluster is the same. A version that cannot be read makes a Go handler panic;
/// here it is incompatible.
fn check_compatibility(local: &Identity, headers: Headers<'_>) -> Result<(), Verdict> {
    let versions = (headers.server_version(), headers.min_cluster_version());
    let (Ok(server), Ok(minimum)) = versions else {
        return Err(Verdict::IncompatibleVersion);
    };
    if server.major_minor() < local.min_cluster_version.major_minor()
        || minimum.major_minor() > local.server_version.major_minor()
    {
        return Err(Verdict::IncompatibleVersion);
    }
    if headers.cluster_id() != Some(&local.cluster_id.to_string()) {
        return Err(Verdict::ClusterIdMismatch);
    }
    Ok(())
}
