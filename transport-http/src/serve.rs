//! The accept loop of a peer port: HTTP/1.1 only, every connection counted, bounded and joined.
//!
//! Requests the transport owns go to it, the rest to the caller's fallback. A handshake runs in the connection's own
//! task, so that a slow one holds up nobody else. Deadlines: the handshake; a request head, and the pause before the
//! next one, within the read timeout; each write within the write timeout; bodies are read under the handlers' own
//! deadline. A stream's connection has no read deadline, as the dialler sends nothing more.

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, Version};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    body::PeerBody,
    handshake::{HandshakeCause, HandshakeError},
    log_gate::LogGate,
    net::{Accepted, Acceptor, BoxIo, HTTP_BUFFER_BYTES, WriteDeadline},
    raft::Raft,
    stream::{body::StreamBody, line::Line, outgoing::Outgoing},
    transport::Transport,
};

/// Pause after a failed accept: out of file descriptors, mostly.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// A request's line and headers, a hundred at most. A member's take a few hundred bytes, and its peer URLs.
pub(crate) const REQUEST_HEAD_BYTES: usize = 16 << 10;
/// How long requests under way may take to end once the port closes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Serves a peer port until `shutdown`, then closes every connection and returns.
///
/// Requests the transport does not answer go to `fallback`. Stop the transport first if peers should see the end
/// of their streams as a clean one.
pub async fn serve_peers<A, R, F, Fut>(
    mut acceptor: A,
    transport: Transport<R>,
    fallback: F,
    shutdown: CancellationToken,
) where
    A: Acceptor,
    R: Raft,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    let user_timeout = transport.config().read_timeout;
    let connections = TaskTracker::new();
    let refused = LogGate::default();
    let places = Arc::new(Semaphore::new(transport.config().limits.connections));
    loop {
        let accepted = async {
            // Closed never: `places` lives as long as this function.
            let place = Arc::clone(&places).acquire_owned().await;
            (acceptor.accept(user_timeout).await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let (transport, fallback) = (transport.clone(), fallback.clone());
                let shutdown = shutdown.clone();
                connections.spawn(async move {
                    let remote = accepted.remote;
                    if let Some(io) = shake_hands(accepted, &transport, &shutdown).await {
                        serve_connection(io, remote, transport, fallback, shutdown).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                if let Some(held_back) = refused.open() {
                    tracing::warn!(error = %error, "held-back" = held_back, "failed to accept a peer connection");
                }
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
    drop(acceptor);
    connections.close();
    connections.wait().await;
}

/// Makes an accepted connection usable; `None` if that fails, is not done in time, or the port closes.
async fn shake_hands<R: Raft>(
    accepted: Accepted,
    transport: &Transport<R>,
    shutdown: &CancellationToken,
) -> Option<BoxIo> {
    let within = transport.config().limits.handshake_timeout;
    let shaken = tokio::select! {
        biased;
        () = shutdown.cancelled() => return None,
        shaken = tokio::time::timeout(within, accepted.handshake) => shaken,
    };
    let error = match shaken {
        Ok(Ok(io)) => return Some(io),
        Ok(Err(error)) => error,
        Err(_) => HandshakeError::new(
            HandshakeCause::Timeout,
            format!("no handshake within {within:?}"),
        ),
    };
    transport
        .shared()
        .env
        .metrics
        .handshakes
        .accepted(accepted.remote, &error);
    None
}

/// Closes the connection a request came on, at once and whatever it is doing.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectionEnd(CancellationToken);

impl ConnectionEnd {
    pub(crate) fn close(&self) {
        self.0.cancel();
    }
}

/// Serves one accepted connection until it ends or `shutdown`; for callers with an accept loop of their own.
pub async fn serve_connection<R, F, Fut>(
    io: BoxIo,
    remote: SocketAddr,
    transport: Transport<R>,
    fallback: F,
    shutdown: CancellationToken,
) where
    R: Raft,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    let replaced = CancellationToken::new();
    let end = ConnectionEnd(replaced.clone());
    let serving = async {
        match exchange(io, remote, transport, fallback, end, &shutdown).await {
            Exchanged::Ended(ended) => ended,
            Exchanged::Stream(stream) => {
                let mut running = pin!(Line::run(stream));
                let ended = tokio::select! {
                    biased;
                    ended = running.as_mut() => ended,
                    // Its peer is stopped as well, and ends it properly.
                    () = shutdown.cancelled() => match timeout(SHUTDOWN_GRACE, running).await {
                        Ok(ended) => ended,
                        Err(_) => return Ok(()),
                    },
                };
                ended.map_err(|error| error.to_string())
            }
        }
    };
    let ended = tokio::select! {
        biased;
        // First: a connection whose socket is full would not notice that another one took its place.
        () = replaced.cancelled() => return,
        ended = serving => ended,
    };
    if let Err(error) = ended {
        // A peer that goes away, or somebody who speaks no HTTP: neither is ours to fix.
        tracing::debug!(remote = %remote, error, "peer connection ended");
    }
}

/// What became of a connection on which requests were answered.
enum Exchanged {
    Ended(Result<(), String>),
    /// It carries a stream from now on.
    Stream(Outgoing),
}

/// Answers requests by hyper until the connection ends, or one of them is answered with a stream: that goes on
/// without hyper, whose buffers would be most of what an idle peer costs.
async fn exchange<R, F, Fut>(
    io: BoxIo,
    remote: SocketAddr,
    transport: Transport<R>,
    fallback: F,
    end: ConnectionEnd,
    shutdown: &CancellationToken,
) -> Exchanged
where
    R: Raft,
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Response<PeerBody>> + Send + 'static,
{
    let read_timeout = transport.config().read_timeout;
    let io = TokioIo::new(WriteDeadline::new(io, transport.config().write_timeout));
    let accepted = Arc::new(Mutex::new(None));
    let accepting = Arc::clone(&accepted);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (transport, fallback) = (transport.clone(), fallback.clone());
        let accepting = Arc::clone(&accepting);
        // A stream is asked for with a GET.
        if request.method() == Method::GET {
            request.extensions_mut().insert(end.clone());
        }
        let version = request.version();
        async move {
            let response = match transport.serve(request, remote).await {
                Ok(response) => response,
                Err(request) => fallback(request).await,
            };
            // Older versions know no chunks: hyper knows what to do then.
            if version < Version::HTTP_11 || !response.body().is_stream() {
                return Ok::<_, Infallible>(response);
            }
            let (head, body) = response.into_parts();
            *accepting.lock() = body.into_stream().map(|body| (head.headers, body));
            pending().await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .max_header_size(REQUEST_HEAD_BYTES)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .title_case_headers(true)
        .serve_connection(io, service);
    let mut requests = Requests {
        connection,
        accepted,
    };
    let running = tokio::select! {
        biased;
        outcome = poll_fn(|cx| requests.poll(cx)) => Some(outcome),
        () = shutdown.cancelled() => None,
    };
    let outcome = match running {
        Some(outcome) => outcome,
        None => {
            Pin::new(&mut requests.connection).graceful_shutdown();
            let ending = poll_fn(|cx| requests.poll(cx));
            match timeout(SHUTDOWN_GRACE, ending).await {
                Ok(outcome) => outcome,
                Err(_) => return Exchanged::Ended(Ok(())),
            }
        }
    };
    match outcome {
        Ok(Some((headers, body))) => {
            // No byte of an answer is on its way yet, and what was read beyond the request means nothing on a stream.
            let io = requests.connection.into_parts().io.into_inner();
            Exchanged::Stream(Outgoing::new(io, &headers, body))
        }
        Ok(None) => Exchanged::Ended(Ok(())),
        Err(error) => Exchanged::Ended(Err(error.to_string())),
    }
}

/// A connection driven by hyper, until a request on it is answered with a stream.
struct Requests<C> {
    connection: C,
    accepted: Arc<Mutex<Option<AcceptedStream>>>,
}

/// Headers and body of a stream that was asked for on a connection.
type AcceptedStream = (HeaderMap, Box<StreamBody>);

impl<C: Future<Output = hyper::Result<()>> + Unpin> Requests<C> {
    /// Ready with the stream, or with the end of the connection.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<Option<AcceptedStream>>> {
        let ended = Pin::new(&mut self.connection).poll(cx);
        match self.accepted.lock().take() {
            Some(accepted) => Poll::Ready(Ok(Some(accepted))),
            None => ended.map_ok(|()| None),
        }
    }
}
