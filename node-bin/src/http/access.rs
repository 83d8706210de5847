//! Who may use the client endpoints from a browser: host names and origins (etcd: server/embed/serve.go,
//! `accessController`).
//!
//! Depends on nothing but the settings. Invariant: a request for a host that is not listed reaches no endpoint, so that
//! a page elsewhere cannot reach a member by giving it a name of its own.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::error;

/// The lists; `*` in one, or an empty one, allows everything.
#[derive(Clone, Debug)]
pub struct Access {
    /// Origins of pages that may call.
    pub origins: BTreeSet<String>,
    /// Host names that may be asked for.
    pub hosts: BTreeSet<String>,
}

fn allows(list: &BTreeSet<String>, name: &str) -> bool {
    list.is_empty() || list.contains("*") || list.contains(name)
}

/// Lets a request pass or answers it.
pub(super) async fn control(
    State(access): State<Arc<Access>>,
    request: Request,
    next: Next,
) -> Response {
    let host = host_of(&request);
    if !allows(&access.hosts, &host) {
        tracing::warn!(
            host,
            "rejecting HTTP request to prevent DNS rebinding attacks"
        );
        return error(StatusCode::MISDIRECTED_REQUEST, &unknown_host(&host)).map(Body::from);
    }
    let origin = allowed_origin(&access.origins, request.headers());
    let mut response = if request.method() == Method::OPTIONS {
        Response::new(Body::empty())
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let allowed = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

/// What to answer in `Access-Control-Allow-Origin`.
fn allowed_origin(origins: &BTreeSet<String>, headers: &HeaderMap) -> Option<HeaderValue> {
    if allows(origins, "*") {
        return Some(HeaderValue::from_static("*"));
    }
    let origin = headers.get(header::ORIGIN)?;
    origins
        .contains(origin.to_str().ok()?)
        .then(|| origin.clone())
}

/// The host a request asks for, without its port.
fn host_of(request: &Request) -> String {
    let header = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let authority = || {
        request
            .uri()
            .authority()
            .map(|authority| authority.as_str())
    };
    let host = header.or_else(authority).unwrap_or_default();
    crate::config::url::split_host_port(host)
        .map_or(host, |(host, _)| host)
        .to_string()
}

fn unknown_host(host: &str) -> String {
    format!(
        "This member does not answer requests for the host name {host:?}.\n\
         Either use TLS, or allow the name with --host-whitelist {host:?}.\n\
         The rule keeps web pages from reaching a member through DNS rebinding (CVE-2018-5702)."
    )
}
