//! The layer every gRPC call passes: it counts, bounds the size of requests, and refuses what needs no service to be
//! refused (etcd: v3rpc/interceptor.go).
//!
//! Depends on `metrics` and on what the member says through [`Gate`]. Invariant: each call that begins is counted as
//! handled exactly once, also when the client goes away in the middle.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{
    error::ServerError,
    frames::FrameScanner,
    metrics::{GrpcMetrics, MethodMetrics},
};
use crate::{
    config::duration,
    metrics::{RequestKind, ServerMetrics},
};

/// What the layer has to know about the member.
pub trait Gate: Send + Sync + 'static {
    /// Whether somebody is known to lead.
    fn has_leader(&self) -> bool;
    /// Whether this member has no vote.
    fn is_learner(&self) -> bool;
}

/// Settings of the layer.
#[derive(Clone, Copy, Debug)]
pub struct GrpcLimits {
    /// Largest message a client may send, in bytes.
    pub receive_max: usize,
    /// A unary call that takes longer is logged.
    pub slow: Duration,
}

/// The address of the client, where the server that accepted the connection knows it; an extension of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddr(pub SocketAddr);

/// Methods a learner serves; of ranges only serializable ones, which the service decides.
const FOR_LEARNERS: [&str; 3] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
];

/// Makes [`GrpcService`]s.
#[derive(Clone)]
pub struct GrpcLayer {
    shared: Arc<Shared>,
}

struct Shared {
    grpc: GrpcMetrics,
    server: Arc<ServerMetrics>,
    gate: Arc<dyn Gate>,
    limits: GrpcLimits,
}

impl GrpcLayer {
    /// One layer serves all listeners.
    pub fn new(
        grpc: GrpcMetrics,
        server: Arc<ServerMetrics>,
        gate: Arc<dyn Gate>,
        limits: GrpcLimits,
    ) -> GrpcLayer {
        GrpcLayer {
            shared: Arc::new(Shared {
                grpc,
                server,
                gate,
                limits,
            }),
        }
    }
}

impl<S> Layer<S> for GrpcLayer {
    type Service = GrpcService<S>;

    fn layer(&self, inner: S) -> GrpcService<S> {
        GrpcService {
            inner,
            shared: Arc::clone(&self.shared),
        }
    }
}

/// A gRPC service behind the layer.
#[derive(Clone)]
pub struct GrpcService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B, R> Service<Request<B>> for GrpcService<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
    R: Body<Data = Bytes> + Unpin + Send + 'static,
{
    type Response = Response<SentBody<R>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut call = Call::begin(&self.shared, &request);
        if let Err(error) = call.admit(request.uri().path(), request.headers()) {
            let status = Status::from(error);
            call.end(status.code());
            let refused = status.into_http::<()>().map(|()| SentBody::new(None, call));
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let request = request.map(|body| {
            let scanner = FrameScanner::default();
            let (method, shared) = (call.method.clone(), Arc::clone(&self.shared));
            tonic::body::Body::new(ReceivedBody {
                body,
                scanner,
                method,
                shared,
            })
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = match answer.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if let Some(code) = code_in(response.headers()) {
                call.end(code);
            }
            Ok(response.map(|inner| SentBody::new(Some(inner), call)))
        })
    }
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers
        .get(Status::GRPC_STATUS)
        .map(|value| Code::from_bytes(value.as_bytes()))
}

/// One call, from its first byte to its end.
struct Call {
    method: Option<Arc<MethodMetrics>>,
    shared: Arc<Shared>,
    begun: Instant,
    path: Option<Box<str>>,
    remote: Option<RemoteAddr>,
    ended: bool,
}

impl Call {
    fn begin<B>(shared: &Arc<Shared>, request: &Request<B>) -> Call {
        let path = request.uri().path();
        let method = shared.grpc.method(path).cloned();
        if let Some(method) = &method {
            method.started.increment(1);
        }
        let remote = request.extensions().get::<RemoteAddr>().copied();
        let path = method
            .as_ref()
            .filter(|method| method.kind == RequestKind::Unary)
            .map(|_| path.into());
        Call {
            method,
            shared: Arc::clone(shared),
            begun: Instant::now(),
            path,
            remote,
            ended: false,
        }
    }

    /// The refusals that need no service, in etcd's order.
    fn admit(&self, path: &str, headers: &HeaderMap) -> Result<(), ServerError> {
        let Some(method) = &self.method else {
            return Ok(());
        };
        if self.shared.gate.is_learner() && !FOR_LEARNERS.contains(&path) {
            return Err(ServerError::NotSupportedForLearner);
        }
        let version = match headers.get("client-api-version") {
            None => "unknown",
            Some(version) => std::str::from_utf8(version.as_bytes())
                .map_err(|_| ServerError::InvalidClientApiVersion)?,
        };
        self.shared.server.request(method.kind, version);
        let needs_leader = headers
            .get("hasleader")
            .is_some_and(|value| value.as_bytes() == b"true");
        if needs_leader && !self.shared.gate.has_leader() {
            return Err(ServerError::NoLeader);
        }
        Ok(())
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let spent = self.begun.elapsed();
        if let Some(method) = &self.method {
            method.handled(code, spent);
        }
        if let Some(path) = self.path.take().filter(|_| spent > self.shared.limits.slow) {
            let remote = self
                .remote
                .map_or_else(|| "unknown".into(), |remote| remote.0.to_string());
            tracing::warn!(
                "time spent" = duration::format(spent),
                remote,
                "response type" = &*path,
                code = ?code,
                "request stats"
            );
        }
    }
}

/// A call that nobody ended was given up by the client.
impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The body of a request, counted and bounded as it passes.
struct ReceivedBody<B> {
    body: B,
    scanner: FrameScanner,
    method: Option<Arc<MethodMetrics>>,
    shared: Arc<Shared>,
}

impl<B> ReceivedBody<B> {
    fn scan(&mut self, piece: &[u8]) -> Result<(), Status> {
        let max = self.shared.limits.receive_max;
        let mut result = Ok(());
        self.scanner.feed(piece, |length| {
            if let Some(method) = &self.method {
                method.received.increment(1);
            }
            self.shared.grpc.received_bytes.increment(length.into());
            if length as usize > max {
                let message =
                    format!("grpc: received message larger than max ({length} vs. {max})");
                result = Err(Status::resource_exhausted(message));
            }
        });
        result
    }
}

impl<B> Body for ReceivedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let scanned = frame.data_ref().map_or(Ok(()), |piece| self.scan(piece));
        Poll::Ready(Some(scanned.map(|()| frame).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a response, counted as it passes; its trailers end the call.
pub struct SentBody<B> {
    inner: Option<B>,
    scanner: FrameScanner,
    call: Call,
}

impl<B> SentBody<B> {
    fn new(inner: Option<B>, call: Call) -> Self {
        SentBody {
            inner,
            scanner: FrameScanner::default(),
            call,
        }
    }

    fn passed(&mut self, frame: &Frame<Bytes>) {
        let SentBody { scanner, call, .. } = self;
        if let Some(piece) = frame.data_ref() {
            scanner.feed(piece, |length| {
                if let Some(method) = &call.method {
                    method.sent.increment(1);
                }
                call.shared.grpc.sent_bytes.increment(length.into());
            });
        } else if let Some(code) = frame.trailers_ref().and_then(code_in) {
            call.end(code);
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SentBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.passed(frame);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests;
