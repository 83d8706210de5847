//! The HTTP endpoints of the client and metrics URLs: versions, health, metrics (etcd: api/etcdhttp).
//!
//! Depends on [`ClientState`] for what the member knows. Invariant: `/livez` never asks the cluster, so that a member
//! without quorum is not restarted for it.

use std::{future::Future, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    middleware,
    response::Response,
    routing::any,
};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;

use super::{JSON, TEXT, access, answer, error, method_not_allowed, not_found};
use crate::{
    grpc::layer::Gate,
    member::{Versions, info::go_json},
    metrics::{self, HealthCheck, Metrics, ServerMetrics},
};

pub use super::access::Access;

/// An alarm that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A member is out of space.
    NoSpace,
    /// A member's data is not the others'.
    Corrupt,
}

impl Alarm {
    fn as_str(self) -> &'static str {
        match self {
            Alarm::NoSpace => "NOSPACE",
            Alarm::Corrupt => "CORRUPT",
        }
    }
}

/// What the endpoints ask the member.
pub trait ClientState: Gate {
    /// The alarms that stand.
    fn alarms(&self) -> Vec<Alarm>;
    /// What `/version` answers.
    fn versions(&self) -> Versions;
    /// Reads with a key's range as root: from the cluster, or from the local store alone. Ends within the request
    /// timeout; the error is its text.
    fn read(&self, serializable: bool) -> impl Future<Output = Result<(), String>> + Send;
    /// Raft's view of the cluster, for `/debug/vars`.
    fn raft_status(&self) -> serde_json::Value;
}

struct Endpoints<S> {
    state: Arc<S>,
    metrics: Metrics,
    server: Arc<ServerMetrics>,
}

/// The endpoints of a client URL.
pub fn client_router<S: ClientState>(
    state: Arc<S>,
    metrics: Metrics,
    server: Arc<ServerMetrics>,
    access: Access,
) -> Router {
    let endpoints = Arc::new(Endpoints {
        state,
        metrics,
        server,
    });
    Router::new()
        .route("/version", any(version::<S>))
        .route("/debug/vars", any(debug_vars::<S>))
        .merge(probes())
        .fallback(async || response(not_found()))
        .with_state(endpoints)
        .layer(middleware::from_fn_with_state(
            Arc::new(access),
            access::control,
        ))
}

/// The endpoints of a metrics URL.
pub fn metrics_router<S: ClientState>(
    state: Arc<S>,
    metrics: Metrics,
    server: Arc<ServerMetrics>,
) -> Router {
    let endpoints = Arc::new(Endpoints {
        state,
        metrics,
        server,
    });
    probes()
        .fallback(async || response(not_found()))
        .with_state(endpoints)
}

fn probes<S: ClientState>() -> Router<Arc<Endpoints<S>>> {
    let mut router = Router::new()
        .route("/metrics", any(scrape::<S>))
        .route("/health", any(health::<S>));
    for (endpoint, checks) in [("livez", LIVEZ), ("readyz", READYZ)] {
        router = router.route(
            &format!("/{endpoint}"),
            any(move |state, request| run(state, request, endpoint, checks)),
        );
        for (at, check) in checks.iter().enumerate() {
            let one = &checks[at..=at];
            let path = format!("/{endpoint}/{}", check.as_str());
            router = router.route(
                &path,
                any(move |state, request| run(state, request, endpoint, one)),
            );
        }
    }
    router
}

const LIVEZ: &[HealthCheck] = &[HealthCheck::SerializableRead];
const READYZ: &[HealthCheck] = &HealthCheck::ALL;

fn response(answer: http::Response<Bytes>) -> Response {
    answer.map(Body::from)
}

async fn version<S: ClientState>(
    State(endpoints): State<Arc<Endpoints<S>>>,
    request: Request,
) -> Response {
    if request.method() != Method::GET {
        return response(method_not_allowed("GET"));
    }
    response(answer(
        StatusCode::OK,
        JSON,
        endpoints.state.versions().json(),
    ))
}

async fn scrape<S: ClientState>(State(endpoints): State<Arc<Endpoints<S>>>) -> Response {
    let metrics = endpoints.metrics.clone();
    // Milliseconds of computing that other requests should not wait for.
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(text) => response(answer(
            StatusCode::OK,
            HeaderValue::from_static(metrics::CONTENT_TYPE),
            text,
        )),
        Err(failure) => response(error(
            StatusCode::INTERNAL_SERVER_ERROR,
            &failure.to_string(),
        )),
    }
}

async fn debug_vars<S: ClientState>(State(endpoints): State<Arc<Endpoints<S>>>) -> Response {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let vars = serde_json::json!({
        "cmdline": std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>(),
        "file_descriptor_limit": limit,
        "raft.status": endpoints.state.raft_status(),
    });
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response(answer(StatusCode::OK, json, vars.to_string()))
}

/// What `/health` answers.
#[derive(Serialize)]
struct Health {
    health: &'static str,
    reason: String,
}

async fn health<S: ClientState>(
    State(endpoints): State<Arc<Endpoints<S>>>,
    request: Request,
) -> Response {
    if request.method() != Method::GET {
        tracing::warn!(status_code = 405, "/health error");
        return response(method_not_allowed("GET"));
    }
    let query = query(&request);
    let serializable = query
        .iter()
        .find(|(name, _)| name == "serializable")
        .is_some_and(|(_, value)| value == "true");
    let excluded = values(&query, "exclude");
    let reason = unhealthy(&*endpoints.state, &excluded, serializable).await;
    let health = Health {
        health: if reason.is_none() { "true" } else { "false" },
        reason: reason.unwrap_or_default(),
    };
    // Texts cannot fail to be written.
    let output = go_json(&health).unwrap_or_default();
    if health.health == "true" {
        endpoints.server.health_success.increment(1);
        return response(answer(StatusCode::OK, TEXT, output));
    }
    endpoints.server.health_failures.increment(1);
    tracing::warn!(output, status_code = 503, "/health error");
    response(error(StatusCode::SERVICE_UNAVAILABLE, &output))
}

/// Why the member is not healthy, if it is not.
async fn unhealthy<S: ClientState>(
    state: &S,
    excluded: &[&str],
    serializable: bool,
) -> Option<String> {
    if let Some(alarm) = state
        .alarms()
        .into_iter()
        .find(|alarm| !excluded.contains(&alarm.as_str()))
    {
        return Some(format!("ALARM {}", alarm.as_str()));
    }
    if !serializable && !state.has_leader() {
        return Some("RAFT NO LEADER".into());
    }
    state
        .read(serializable)
        .await
        .err()
        .map(|error| format!("RANGE ERROR:{error}"))
}

/// Runs checks and reports; the body names each one if it is asked to or if one failed.
async fn run<S: ClientState>(
    State(endpoints): State<Arc<Endpoints<S>>>,
    request: Request,
    endpoint: &'static str,
    checks: &'static [HealthCheck],
) -> Response {
    let path = request.uri().path();
    if request.method() != Method::GET {
        tracing::warn!(path, status_code = 405, "Health request error");
        return response(method_not_allowed("GET"));
    }
    let query = query(&request);
    // A single check cannot be excluded from itself.
    let excluded = if path == format!("/{endpoint}") {
        values(&query, "exclude")
    } else {
        Vec::new()
    };
    let (mut report, mut failed) = (String::new(), false);
    for check in checks
        .iter()
        .filter(|check| !excluded.contains(&check.as_str()))
    {
        let result = result_of(&*endpoints.state, *check).await;
        endpoints.server.checked(endpoint, *check, result.is_ok());
        report += &match result {
            Ok(()) => format!("[+]{} ok\n", check.as_str()),
            Err(error) => {
                failed = true;
                format!("[-]{} failed: {error}\n", check.as_str())
            }
        };
    }
    let unknown: Vec<_> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|check| check.as_str() == **name))
        .collect();
    if !unknown.is_empty() {
        tracing::warn!(missing_health_checks = ?unknown, "some health checks cannot be excluded");
    }
    if failed {
        tracing::error!(
            path,
            reason = report,
            status_code = 503,
            "Health check error"
        );
        return response(error(StatusCode::SERVICE_UNAVAILABLE, &report));
    }
    let verbose = query.iter().any(|(name, _)| name == "verbose");
    let mut answer = answer(
        StatusCode::OK,
        TEXT,
        if verbose {
            report + "ok\n"
        } else {
            "ok\n".into()
        },
    );
    answer.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response(answer)
}

async fn result_of<S: ClientState>(state: &S, check: HealthCheck) -> Result<(), String> {
    match check {
        HealthCheck::DataCorruption if state.alarms().contains(&Alarm::Corrupt) => {
            Err("alarm activated: CORRUPT".into())
        }
        HealthCheck::DataCorruption => Ok(()),
        HealthCheck::SerializableRead => state.read(true).await,
        HealthCheck::LinearizableRead => state.read(false).await,
        HealthCheck::NonLearner if state.is_learner() => Err("not supported for learner".into()),
        HealthCheck::NonLearner => Ok(()),
    }
}

/// The parameters of a request; none if they cannot be read, as in Go.
fn query(request: &Request) -> Vec<(String, String)> {
    Query::try_from_uri(request.uri())
        .map(|Query(pairs)| pairs)
        .unwrap_or_default()
}

fn values<'a>(query: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let pairs = query
        .iter()
        .filter(|(parameter, value)| parameter == name && !value.is_empty());
    pairs.map(|(_, value)| value.as_str()).collect()
}

#[cfg(test)]
mod tests;
