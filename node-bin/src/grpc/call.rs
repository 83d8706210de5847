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
    answer::Answer,
    backend::ServerBackend,
    blocking::blocking,
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
        A: Answer,
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
        let answered = match service(request).await {
            Ok(answer) => encode(answer).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok((response, size)) => {
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

/// The response with an answer, and the length of its message.
async fn encode<A: Answer>(answer: A) -> Result<(Response<ResponseBody>, usize), ServerError> {
    if answer.is_large() {
        // Which also drops it there: that takes as long.
        blocking(move || wire::answer(&answer)).await
    } else {
        Ok(wire::answer(&answer))
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

#[cfg(test)]
mod tests {
    use std::{
        sync::Mutex,
        thread::{self, ThreadId},
    };

    use bytes::{Buf, BufMut};
    use prost::{
        DecodeError,
        encoding::{DecodeContext, WireType},
    };

    use super::*;

    /// An answer that tells where it was encoded.
    #[derive(Debug)]
    struct Watched {
        large: bool,
        encoded_on: Arc<Mutex<Option<ThreadId>>>,
    }

    impl Message for Watched {
        fn encode_raw(&self, _: &mut impl BufMut) {
            *self.encoded_on.lock().unwrap() = Some(thread::current().id());
        }

        fn merge_field(
            &mut self,
            _: u32,
            _: WireType,
            _: &mut impl Buf,
            _: DecodeContext,
        ) -> Result<(), DecodeError> {
            Ok(())
        }

        fn encoded_len(&self) -> usize {
            0
        }

        fn clear(&mut self) {}
    }

    impl Answer for Watched {
        fn is_large(&self) -> bool {
            self.large
        }
    }

    #[tokio::test]
    async fn large_answers_alone_are_encoded_beside_the_threads_of_the_sockets() {
        let here = thread::current().id();
        for large in [false, true] {
            let encoded_on = Arc::default();
            let answer = Watched {
                large,
                encoded_on: Arc::clone(&encoded_on),
            };
            let (_, size) = encode(answer).await.unwrap();
            assert_eq!(size, 0);
            let encoded_on = encoded_on.lock().unwrap().unwrap();
            assert_eq!(encoded_on != here, large);
        }
    }
}
