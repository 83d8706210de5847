//! HTTP: the endpoints for clients and probes, and the endpoints members have for each other besides raft.
//!
//! Depends on `metrics` and on traits that say what the member knows. Invariant: answers are etcd's, byte for byte
//! where members read them, in status and meaning everywhere.

mod access;
pub mod client;
pub mod peer;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

/// The header members tell their cluster in.
pub const CLUSTER_ID: &str = "x-etcd-cluster-id";

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of a given type.
fn answer(
    status: StatusCode,
    content_type: HeaderValue,
    body: impl Into<Bytes>,
) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// An error as Go's servers write it: plain text that ends in a line break, not to be taken for anything else.
fn error(status: StatusCode, text: &str) -> Response<Bytes> {
    let mut response = answer(status, TEXT, format!("{text}\n"));
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

fn not_found() -> Response<Bytes> {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

fn method_not_allowed(allowed: &'static str) -> Response<Bytes> {
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}
