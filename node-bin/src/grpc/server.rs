//! One port for everything a client may speak: gRPC over HTTP/2, and HTTP/1.1.
//!
//! The first bytes of a connection tell which it is, as etcd's cmux does it. Connections are driven by hyper without
//! a router in between: measured against axum's server with tonic's generated services behind it, a put costs a
//! quarter to a third less user time here. Depends on `services` and on the HTTP router it is given.
//!
//! Invariant: every connection and every stream is a task that [`serve`] joins, and all of them end within the
//! deadline of a shutdown.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use http::{Request, Response, Version, header::CONTENT_TYPE};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;

use crate::config::Config;

use super::{backend::ServerBackend, layer::RemoteAddr, services::Services, wire::ResponseBody};

/// The longest a new connection may be silent.
const FIRST_BYTES_DEADLINE: Duration = Duration::from_secs(30);
/// Pause before looking again whether the rest of a connection's first three bytes is there.
const FIRST_BYTES_PAUSE: Duration = Duration::from_millis(1);
/// The longest an HTTP/1.1 connection may take for a request's head, or be idle before one.
const HEAD_DEADLINE: Duration = Duration::from_secs(120);
/// Largest HTTP/2 header list, in bytes: metadata holds tokens.
const HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// Time after which the system asks whether an idle client is still there, and between two such questions.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// Files the process keeps for itself: log, store, peers (etcd: embed/serve.go).
const FILES_RESERVED: u64 = 150;
/// Connections when the system does not limit files.
const CONNECTIONS_MAX: usize = 1 << 20;
/// First and longest pause after the system refused to accept a connection.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// When a silent client is pinged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time without a word from it until it is pinged.
    pub interval: Duration,
    /// Time until one that does not answer is given up.
    pub timeout: Duration,
}

/// Settings of a listener. The defaults are etcd's.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// Calls a client may have open on one connection.
    pub max_concurrent_streams: u32,
    /// When silent HTTP/2 clients are pinged; `None` for never.
    pub keepalive: Option<Keepalive>,
    /// Connections held open; one more waits to be accepted.
    pub connections_max: usize,
    /// How long calls may go on once the listener is told to stop.
    pub shutdown_deadline: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            max_concurrent_streams: u32::MAX,
            keepalive: Some(Keepalive {
                interval: Duration::from_secs(2 * 60 * 60),
                timeout: Duration::from_secs(20),
            }),
            connections_max: connections_max(),
            shutdown_deadline: Duration::from_secs(5),
        }
    }
}

impl ServerOptions {
    /// What the flags say. As in etcd, 0 for either time turns the pings off.
    pub fn new(config: &Config) -> ServerOptions {
        let times = (
            config.grpc_keepalive_interval,
            config.grpc_keepalive_timeout,
        );
        let keepalive = match times {
            (Some(interval), Some(timeout)) => Some(Keepalive { interval, timeout }),
            _ => None,
        };
        ServerOptions {
            max_concurrent_streams: config.max_concurrent_streams,
            keepalive,
            ..ServerOptions::default()
        }
    }
}

fn connections_max() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    files.map_or(CONNECTIONS_MAX, |files| {
        let connections = files.saturating_sub(FILES_RESERVED).max(1);
        usize::try_from(connections).map_or(CONNECTIONS_MAX, |all| all.min(CONNECTIONS_MAX))
    })
}

/// What is served at a listener.
pub struct Endpoint<B> {
    /// The gRPC services, unless the listener is for HTTP alone.
    pub grpc: Option<Services<B>>,
    /// The HTTP endpoints; an empty router answers 404.
    pub http: Router,
}

/// Serves a listener until `stop` is cancelled. Then no connection is accepted, clients are told to go elsewhere,
/// calls get until the deadline, and it returns once every task has ended.
pub async fn serve<B: ServerBackend>(
    listener: TcpListener,
    endpoint: Endpoint<B>,
    options: ServerOptions,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let port = Arc::new(Port {
        endpoint,
        options,
        stop,
        tasks: tasks.clone(),
    });
    port.accept(&listener).await;
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

/// What the connections of a listener share.
struct Port<B> {
    endpoint: Endpoint<B>,
    options: ServerOptions,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl<B: ServerBackend> Port<B> {
    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let permits = Arc::new(Semaphore::new(self.options.connections_max));
        let mut pause = ACCEPT_PAUSES.0;
        while let Some(accepted) = self
            .stop
            .run_until_cancelled(next_connection(listener, &permits))
            .await
        {
            match accepted {
                Ok((stream, remote, permit)) => {
                    pause = ACCEPT_PAUSES.0;
                    let port = Arc::clone(self);
                    self.tasks.spawn(async move {
                        if let Err(error) = port.connection(stream, remote).await {
                            tracing::debug!(%remote, %error, "client connection ended");
                        }
                        drop(permit);
                    });
                }
                // The client was gone before its turn; the next is not concerned.
                Err(error) if is_client_s(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, ?pause, "accepting client connections failed");
                    self.stop
                        .run_until_cancelled(tokio::time::sleep(pause))
                        .await;
                    pause = (pause * 2).min(ACCEPT_PAUSES.1);
                }
            }
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        remote: SocketAddr,
    ) -> Result<(), ConnectionError> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE)
            .with_interval(TCP_KEEPALIVE);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let first_bytes = tokio::time::timeout(FIRST_BYTES_DEADLINE, is_http2(&stream));
        let Some(is_http2) = self.stop.run_until_cancelled(first_bytes).await else {
            return Ok(());
        };
        let is_http2 = is_http2.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if is_http2 {
            self.http2(TokioIo::new(stream), remote).await
        } else {
            self.http1(TokioIo::new(stream), remote).await
        }
    }

    async fn http2(
        self: Arc<Self>,
        io: TokioIo<TcpStream>,
        remote: SocketAddr,
    ) -> Result<(), ConnectionError> {
        let ServerOptions {
            max_concurrent_streams,
            keepalive,
            ..
        } = self.options;
        let port = Arc::clone(&self);
        let service = service_fn(move |request| {
            let port = Arc::clone(&port);
            async move { Ok::<_, Infallible>(port.answer(request, remote).await) }
        });
        let mut builder = http2::Builder::new(Streams(self.tasks.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_concurrent_streams)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .auto_date_header(false);
        if let Some(Keepalive { interval, timeout }) = keepalive {
            builder
                .keep_alive_interval(Some(interval))
                .keep_alive_timeout(timeout);
        }
        let connection = builder.serve_connection(io, service);
        self.drive(connection, |connection| connection.graceful_shutdown())
            .await
    }

    async fn http1(
        self: Arc<Self>,
        io: TokioIo<TcpStream>,
        remote: SocketAddr,
    ) -> Result<(), ConnectionError> {
        let port = Arc::clone(&self);
        let service = service_fn(move |request| {
            let port = Arc::clone(&port);
            async move { Ok::<_, Infallible>(port.http(request, remote).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .serve_connection(io, service);
        self.drive(connection, |connection| connection.graceful_shutdown())
            .await
    }

    /// Drives a connection to its end, or to the deadline after a stop. Dropping it then ends its streams.
    async fn drive<C>(
        &self,
        connection: C,
        wind_down: impl FnOnce(Pin<&mut C>),
    ) -> Result<(), ConnectionError>
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut connection = pin!(connection);
        if let Some(ended) = self.stop.run_until_cancelled(connection.as_mut()).await {
            return Ok(ended?);
        }
        wind_down(connection.as_mut());
        match tokio::time::timeout(self.options.shutdown_deadline, connection).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Response<ResponseBody> {
        match &self.endpoint.grpc {
            Some(services) if is_grpc(&request) => services.call(request, remote).await,
            _ => Box::pin(self.http(request, remote)).await,
        }
    }

    async fn http(&self, request: Request<Incoming>, remote: SocketAddr) -> Response<ResponseBody> {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(RemoteAddr(remote));
        match self.endpoint.http.clone().call(request).await {
            Ok(response) => response.map(ResponseBody::Http),
            Err(never) => match never {},
        }
    }
}

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Protocol(#[from] hyper::Error),
}

/// A place among the connections, and then the next connection.
async fn next_connection(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    Ok((stream, remote, permit))
}

fn is_client_s(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Whether a connection begins as HTTP/2 does: with the request method that no HTTP/1.1 endpoint has.
async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI";
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[..seen] != PREFACE[..seen] {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(FIRST_BYTES_PAUSE).await;
    }
}

fn is_grpc<T>(request: &Request<T>) -> bool {
    let content_type = request.headers().get(CONTENT_TYPE);
    request.version() == Version::HTTP_2
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Runs the streams of a connection as tasks of the listener.
#[derive(Clone)]
struct Streams(TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_pinged_unless_one_of_the_times_is_0() {
        let options = |flags: &[&str]| ServerOptions::new(&Config::from_flags(flags).unwrap());
        let etcd_s = Keepalive {
            interval: Duration::from_secs(7200),
            timeout: Duration::from_secs(20),
        };
        assert_eq!(options(&[]).keepalive, Some(etcd_s));
        assert_eq!(options(&["--grpc-keepalive-interval=0"]).keepalive, None);
        assert_eq!(options(&["--grpc-keepalive-timeout=0"]).keepalive, None);
    }
}
