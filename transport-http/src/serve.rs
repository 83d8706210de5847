//! The accept loop of a peer port: HTTP/1.1 only, every connection counted, bounded and joined.
//!
//! Requests the transport owns go to it, the rest to the caller's fallback. A handshake runs in the connection's own
//! task, so that a slow one holds up nobody else. Deadlines: the handshake; a request head, and the pause before the
//! next one, within the read timeout; each write within the write timeout; bodies are read under the handlers' own
//! deadline. A stream's connection has no read deadline, as the dialler sends nothing more.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use http::{Method, Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    body::PeerBody,
    handshake::{HandshakeCause, HandshakeError},
    log_gate::LogGate,
    net::{Accepted, Acceptor, BoxIo, HTTP_BUFFER_BYTES, WriteDeadline},
    raft::Raft,
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
    let read_timeout = transport.config().read_timeout;
    let io = TokioIo::new(WriteDeadline::new(io, transport.config().write_timeout));
    let replaced = CancellationToken::new();
    let end = ConnectionEnd(replaced.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        let transport = transport.clone();
        let fallback = fallback.clone();
        // A stream is asked for with a GET.
        if request.method() == Method::GET {
            request.extensions_mut().insert(end.clone());
        }
        async move {
            let response = match transport.serve(request, remote).await {
                Ok(response) => response,
                Err(request) => fallback(request).await,
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_timeout)
        .max_header_size(REQUEST_HEAD_BYTES)
        .max_buf_size(HTTP_BUFFER_BYTES)
        .title_case_headers(true)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        // First: a connection whose socket is full would not notice that another one took its place.
        () = replaced.cancelled() => return,
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(SHUTDOWN_GRACE, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        // A peer that goes away, or somebody who speaks no HTTP: neither is ours to fix.
        tracing::debug!(remote = %remote, error = %error, "peer connection ended");
    }
}
