//! What happens around every unary call: reading the request, etcd's rules for who is served, counting, answering.
//!
//! The order is etcd's: the rules first, then the counters, then the service (etcd: v3rpc/interceptor.go, v3rpc/
//! codec.go). Depends on `wire` for the bytes and on [`ServerBackend`] for what the rules ask. Invariant: a call that
//! was counted as started is counted as handled exactly once, also when its client goes away in the middle.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use http::{HeaderMap, Response};
use hyper::body::Incoming;
use kvstore::ApplyError;
use metrics::Counter;
use prost::Message;
use tonic::{Code, Status};

use super::{
    backend::ServerBackend,
    error::ServerError,
    layer::GrpcLimits,
    metrics::{GrpcMetrics, MethodMetrics},
    wire::{self, ResponseBody},
};
use crate::{
    config::duration,
    metrics::{RequestKind, ServerMetrics},
};

/// Metadata with which a client asks not to be served without a leader, and its value.
const REQUIRE_LEADER: (&str, &[u8]) = ("hasleader", b"true");
/// Metadata that names the client's API version.
const CLIENT_VERSION: &str = "client-api-version";
/// Metadata that carries a token; older clients use the second.
const TOKENS: [&str; 2] = ["token", "authorization"];

/// What the calls of all methods share.
pub struct Calls<B> {
    backend: Arc<B>,
    server: Arc<ServerMetrics>,
    limits: GrpcLimits,
    received_bytes: Counter,
    sent_bytes: Counter,
}

/// A method and its handles.
#[derive(Clone)]
pub struct Method {
    path: &'static str,
    metrics: Arc<MethodMetrics>,
}

impl Method {
    /// The method of this path; `None` if etcd has none there.
    pub fn new(metrics: &GrpcMetrics, path: &'static str) -> Option<Method> {
        let metrics = Arc::clone(metrics.method(path)?);
        Some(Method { path, metrics })
    }

    /// `/package.Service/Method`.
    pub fn path(&self) -> &'static str {
        self.path
    }
}

/// One request, before it is read.
pub struct Call<'a> {
    /// The method called.
    pub method: &'a Method,
    /// Its metadata.
    pub headers: &'a HeaderMap,
    /// The client.
    pub remote: SocketAddr,
}

impl<B: ServerBackend> Calls<B> {
    /// Shared by all connections of all listeners.
    pub fn new(
        backend: Arc<B>,
        grpc: &GrpcMetrics,
        server: Arc<ServerMetrics>,
        limits: GrpcLimits,
    ) -> Calls<B> {
        Calls {
            backend,
            server,
            limits,
            received_bytes: grpc.received_bytes.clone(),
            sent_bytes: grpc.sent_bytes.clone(),
        }
    }

    /// Serves one call. `by_learner` says of a request whether a learner may answer it, `service` answers it.
    pub async fn serve<Q, A, F>(
        &self,
        call: Call<'_>,
        mut body: Incoming,
        by_learner: impl FnOnce(&Q) -> bool,
        service: impl FnOnce(Q) -> F,
    ) -> Response<ResponseBody>
    where
        Q: Message + Default,
        A: Message,
        F: Future<Output = Result<A, ServerError>>,
    {
        let (request, request_size) = match self.read(&mut body).await {
            Ok(read) => read,
            Err(status) => return wire::refusal(status),
        };
        if let Err(error) = self.admit(call.headers, || by_learner(&request)) {
            return wire::refusal(error.into());
        }
        let mut record = Record::begin(&call, self.limits, request_size);
        match service(request).await {
            Ok(answer) => {
                let (response, size) = wire::answer(&answer);
                self.sent_bytes.increment(size as u64);
                call.method.metrics.sent.increment(1);
                record.end(Code::Ok, size);
                response
            }
            Err(error) => {
                record.end(error.code(), 0);
                wire::refusal(error.into())
            }
        }
    }

    async fn read<Q: Message + Default>(&self, body: &mut Incoming) -> Result<(Q, usize), Status> {
        let message = wire::read_message(body, self.limits.receive_max).await?;
        let size = message.len();
        self.received_bytes.increment(size as u64);
        let request = Q::decode(message).map_err(|error| {
            Status::internal(format!("grpc: error unmarshalling request: {error}"))
        })?;
        Ok((request, size))
    }

    /// The rules that hold for every request.
    fn admit(
        &self,
        headers: &HeaderMap,
        by_learner: impl FnOnce() -> bool,
    ) -> Result<(), ServerError> {
        if self.backend.is_learner() && !by_learner() {
            return Err(ServerError::NotSupportedForLearner);
        }
        let version = match headers.get(CLIENT_VERSION) {
            None => "unknown",
            Some(version) => std::str::from_utf8(version.as_bytes())
                .map_err(|_| ServerError::InvalidClientApiVersion)?,
        };
        self.server.request(RequestKind::Unary, version);
        let (key, value) = REQUIRE_LEADER;
        let needs_leader = headers.get(key).is_some_and(|given| given == value);
        if needs_leader && self.backend.status().leader.is_none() {
            return Err(ServerError::NoLeader);
        }
        self.authenticate(headers)
    }

    /// As long as this server issues no tokens, no user can be told from another: with auth on nobody is served, as
    /// etcd serves nobody without a user, and a token is one that it does not know.
    fn authenticate(&self, headers: &HeaderMap) -> Result<(), ServerError> {
        if !self.backend.reader().auth().enabled() {
            return Ok(());
        }
        let has_token = TOKENS.iter().any(|name| headers.contains_key(*name));
        Err(ServerError::Apply(if has_token {
            ApplyError::InvalidAuthToken
        } else {
            ApplyError::UserEmpty
        }))
    }
}

/// The record of one call that is being served.
struct Record<'a> {
    call: &'a Call<'a>,
    limits: GrpcLimits,
    begun: Instant,
    request_size: usize,
    ended: bool,
}

impl<'a> Record<'a> {
    fn begin(call: &'a Call<'a>, limits: GrpcLimits, request_size: usize) -> Record<'a> {
        call.method.metrics.started.increment(1);
        call.method.metrics.received.increment(1);
        Record {
            call,
            limits,
            begun: Instant::now(),
            request_size,
            ended: false,
        }
    }

    fn end(&mut self, code: Code, response_size: usize) {
        self.ended = true;
        let spent = self.begun.elapsed();
        self.call.method.metrics.handled(code, spent);
        if spent > self.limits.slow {
            tracing::warn!(
                "time spent" = duration::format(spent),
                remote = %self.call.remote,
                "response type" = self.call.method.path,
                "request size" = self.request_size,
                "response size" = response_size,
                code = ?code,
                "request stats"
            );
        }
    }
}

/// A call that nobody ended was given up by its client.
impl Drop for Record<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Code::Cancelled, 0);
        }
    }
}
