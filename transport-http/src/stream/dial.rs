//! Dials a stream: one GET, one verdict.
//!
//! The peer's URLs race, and whatever fails afterwards turns the picker to the next one. Invariant: connecting, the
//! head of the answer and the body of a refusal each have their deadline, and a refusal's body is read up to a limit.
//!
//! etcd: server/etcdserver/api/rafthttp/stream.go, `streamReader.dial`.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::timeout;
use transport_core::{
    MemberId,
    handshake::{DialVerdict, StreamKind},
    http1::head,
};

use crate::{
    client::{ANSWER_BYTES, Connected, deadline},
    environment::Environment,
    error::ClientError,
    incoming::Incoming,
    metrics::DialCause,
    requests::insert_host,
    url_picker::UrlPicker,
};

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("unsupported stream type")]
    Unsupported,
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    #[error("peer {0} failed to find local node")]
    NotFound(MemberId),
    #[error("incompatible version")]
    IncompatibleVersion,
    #[error("cluster ID mismatch")]
    ClusterIdMismatch,
    #[error("unexpected status {0}")]
    Status(StatusCode),
}

impl DialError {
    /// Whether the peer is there and does not want us, which an operator should see: nothing else would tell.
    pub(crate) fn is_refusal(&self) -> bool {
        !matches!(self, DialError::Client(_))
    }
}

impl DialError {
    /// For counting.
    pub(crate) fn cause(&self) -> DialCause {
        match self {
            DialError::Client(ClientError::Deadline { .. }) => DialCause::Deadline,
            DialError::Client(ClientError::Connect { .. }) => DialCause::Connect,
            DialError::Client(_) => DialCause::Http,
            DialError::Unsupported => DialCause::Unsupported,
            DialError::Removed => DialCause::Removed,
            DialError::NotFound(_) => DialCause::NotFound,
            DialError::IncompatibleVersion => DialCause::IncompatibleVersion,
            DialError::ClusterIdMismatch => DialCause::ClusterIdMismatch,
            DialError::Status(_) => DialCause::Status,
        }
    }
}

/// Asks `peer` for a stream of this kind. Cancel-safe: dropping the future closes the connection.
pub(crate) async fn dial(
    env: &Environment,
    kind: StreamKind,
    peer: MemberId,
    picker: &UrlPicker,
) -> Result<Incoming, DialError> {
    let connected = match env.dialer.connect_any(picker).await {
        Ok(connected) => connected,
        Err(error) => {
            picker.unreachable(&picker.pick());
            return Err(error.into());
        }
    };
    let url = Arc::clone(&connected.url);
    let outcome = ask(env, kind, peer, connected).await;
    if outcome.is_err() {
        picker.unreachable(&url);
    }
    outcome
}

async fn ask(
    env: &Environment,
    kind: StreamKind,
    peer: MemberId,
    connected: Connected,
) -> Result<Incoming, DialError> {
    let within = env.config.read_timeout;
    let url = Arc::clone(&connected.url);
    let mut headers = env.identity.request_headers(Some(peer));
    insert_host(&mut headers, &url);
    let request = head::request(&Method::GET, &kind.path(env.config.id), &headers);
    let mut incoming = Incoming::new(connected);
    let asked = timeout(within, incoming.ask(&request)).await;
    let head = asked.unwrap_or_else(|_| Err(deadline(&url, "answer", within)))?;
    let local = env.config.server_version;
    if !DialVerdict::needs_body(head.status) {
        // Nothing is read here: a server without the version header may never end the body of its 200.
        return match DialVerdict::read(local, kind, head.status, &head.headers, &[]) {
            DialVerdict::Accepted => Ok(incoming),
            refused => Err(refusal_error(refused, head.status, peer)),
        };
    }
    let read = timeout(within, incoming.collect(ANSWER_BYTES)).await;
    let text = read.unwrap_or_else(|_| Err(deadline(&url, "end of the answer", within)))?;
    let refused = DialVerdict::read(local, kind, head.status, &head.headers, &text);
    Err(refusal_error(refused, head.status, peer))
}

fn refusal_error(answer: DialVerdict, status: StatusCode, peer: MemberId) -> DialError {
    match answer {
        DialVerdict::Unsupported => DialError::Unsupported,
        DialVerdict::Removed => DialError::Removed,
        DialVerdict::NotFound => DialError::NotFound(peer),
        DialVerdict::IncompatibleVersion => DialError::IncompatibleVersion,
        DialVerdict::ClusterIdMismatch => DialError::ClusterIdMismatch,
        DialVerdict::Accepted | DialVerdict::PreconditionFailed | DialVerdict::Unexpected(_) => {
            DialError::Status(status)
        }
    }
}
