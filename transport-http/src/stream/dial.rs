//! Dials a stream: one GET, one verdict.
//!
//! The peer's URLs race, and whatever fails afterwards turns the picker to the next one. Invariant: connecting, the head of the answer and the
//! body of a refusal each have their deadline, and a refusal's body is read up to a limit.
//!
//! etcd: server/etcdserver/api/rafthttp/stream.go, `streamReader.dial`.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use hyper::body::Incoming;
use tokio::time::timeout;
use transport_core::{
    MemberId,
    handshake::{DialVerdict, StreamKind},
};

use crate::{
    body::nothing,
    client::{ANSWER_BYTES, Connection},
    environment::Environment,
    error::ClientError,
    metrics::DialCause,
    requests::request,
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

/// An open stream.
pub(crate) struct Dialled {
    pub(crate) connection: Connection,
    pub(crate) body: Incoming,
}

/// Asks `peer` for a stream of this kind. Cancel-safe: dropping the future closes the connection.
pub(crate) async fn dial(
    env: &Environment,
    kind: StreamKind,
    peer: MemberId,
    picker: &UrlPicker,
) -> Result<Dialled, DialError> {
    let connection = match env.dialer.open_any(picker).await {
        Ok(connection) => connection,
        Err(error) => {
            picker.unreachable(&picker.pick());
            return Err(error.into());
        }
    };
    let url = Arc::clone(connection.url());
    let outcome = ask(env, kind, peer, connection).await;
    if outcome.is_err() {
        picker.unreachable(&url);
    }
    outcome
}

async fn ask(
    env: &Environment,
    kind: StreamKind,
    peer: MemberId,
    mut connection: Connection,
) -> Result<Dialled, DialError> {
    let path = kind.path(env.config.id);
    let request = request(
        &env.identity,
        Method::GET,
        connection.url(),
        &path,
        Some(peer),
        nothing(),
    );
    let (head, body) = connection
        .send(request, env.config.read_timeout)
        .await?
        .into_parts();
    let local = env.config.server_version;
    if !DialVerdict::needs_body(head.status) {
        // Nothing is read here: a server without the version header may never end the body of its 200.
        return match DialVerdict::read(local, kind, head.status, &head.headers, &[]) {
            DialVerdict::Accepted => Ok(Dialled { connection, body }),
            refused => Err(refusal_error(refused, head.status, peer)),
        };
    }
    let text = read_refusal(&mut connection, body, env.config.read_timeout).await?;
    let refused = DialVerdict::read(local, kind, head.status, &head.headers, &text);
    Err(refusal_error(refused, head.status, peer))
}

async fn read_refusal(
    connection: &mut Connection,
    body: Incoming,
    within: Duration,
) -> Result<bytes::Bytes, ClientError> {
    let url = connection.url().to_string();
    match timeout(within, connection.collect(body, ANSWER_BYTES)).await {
        Ok(read) => read,
        Err(_) => Err(ClientError::Deadline {
            url,
            what: "end of the answer",
            after: within,
        }),
    }
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
