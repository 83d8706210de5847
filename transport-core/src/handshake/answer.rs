//! What the answers of a peer mean to the member that asked.
//!
//! etcd: rafthttp/stream.go, `streamReader.dial` and `checkStreamSupport`; rafthttp/util.go,
//! `checkPostResponse`.

use http::{HeaderMap, StatusCode};

use super::{Headers, StreamKind, Verdict, Version};

/// What the answer to a stream request means. Anything but [`DialVerdict::Accepted`] makes the dialler
/// drain the body within bounds, turn to the peer's next URL and try again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialVerdict {
    /// The body is the stream.
    Accepted,
    /// The peer is older and does not serve this stream, or its version cannot be read. The only failure
    /// that leaves the peer's status alone.
    Unsupported,
    /// We were removed from the cluster: the server must stop.
    Removed,
    /// The peer does not know us, or does not have the path.
    NotFound,
    /// The peer refuses our version.
    IncompatibleVersion,
    /// The peer belongs to another cluster.
    ClusterIdMismatch,
    /// 412 for another reason, most likely that the peer at this URL is another member.
    PreconditionFailed,
    /// Any other status.
    Unexpected(StatusCode),
}

impl DialVerdict {
    /// Reads an answer. `body` is what came with 412 and is not looked at otherwise; the version is judged
    /// before the status.
    pub fn read(
        local: Version,
        kind: StreamKind,
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
    ) -> DialVerdict {
        let Ok(remote) = Headers::new(headers).server_version() else {
            return DialVerdict::Unsupported;
        };
        if remote.major_minor() < local.major_minor() && !supports_stream(local, remote, kind) {
            return DialVerdict::Unsupported;
        }
        match status {
            StatusCode::OK => DialVerdict::Accepted,
            StatusCode::GONE => DialVerdict::Removed,
            StatusCode::NOT_FOUND => DialVerdict::NotFound,
            StatusCode::PRECONDITION_FAILED => match refusal(body) {
                Some(Verdict::IncompatibleVersion) => DialVerdict::IncompatibleVersion,
                Some(Verdict::ClusterIdMismatch) => DialVerdict::ClusterIdMismatch,
                _ => DialVerdict::PreconditionFailed,
            },
            other => DialVerdict::Unexpected(other),
        }
    }

    /// Whether the body has to be read to tell what the answer means.
    pub fn needs_body(status: StatusCode) -> bool {
        status == StatusCode::PRECONDITION_FAILED
    }
}

/// Whether a member of version `remote` serves this stream to one of version `local`, by the table each
/// release carries: 2.1 to 2.3 and 3.0 to its own version serve both streams, 2.0 none.
pub fn supports_stream(local: Version, remote: Version, kind: StreamKind) -> bool {
    match kind {
        StreamKind::MsgAppV2 | StreamKind::Message => match remote.major_minor() {
            (2, minor) => (1..=3).contains(&minor),
            (3, _) => remote.major_minor() <= local.major_minor(),
            _ => false,
        },
    }
}

/// What the answer to a message or snapshot request means. Anything but [`PostVerdict::Delivered`] makes the
/// sender turn to the peer's next URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostVerdict {
    /// Raft has it.
    Delivered,
    /// 403: we were removed from the cluster and must stop. No Go server is able to send it, but a Go
    /// client obeys it.
    Removed,
    /// The peer refuses our version.
    IncompatibleVersion,
    /// The peer belongs to another cluster.
    ClusterIdMismatch,
    /// 412 for another reason.
    PreconditionFailed,
    /// Any other status, 200 and 201 included.
    Unexpected(StatusCode),
}

impl PostVerdict {
    /// Reads an answer; `body` is not looked at except with 412.
    pub fn read(status: StatusCode, body: &[u8]) -> PostVerdict {
        match status {
            StatusCode::NO_CONTENT => PostVerdict::Delivered,
            StatusCode::FORBIDDEN => PostVerdict::Removed,
            StatusCode::PRECONDITION_FAILED => match refusal(body) {
                Some(Verdict::IncompatibleVersion) => PostVerdict::IncompatibleVersion,
                Some(Verdict::ClusterIdMismatch) => PostVerdict::ClusterIdMismatch,
                _ => PostVerdict::PreconditionFailed,
            },
            other => PostVerdict::Unexpected(other),
        }
    }
}

/// The two refusals that are known by their text, which may end in one line feed.
fn refusal(body: &[u8]) -> Option<Verdict> {
    let text = body.strip_suffix(b"\n").unwrap_or(body);
    [Verdict::IncompatibleVersion, Verdict::ClusterIdMismatch]
        .into_iter()
        .find(|verdict| verdict.text().as_bytes() == text)
}
