//! The accept loop of client and metrics ports: HTTP/1.1 and HTTP/2 on one socket.
//!
//! Depends on hyper. Invariant: the number of connections is bounded, and when the loop ends all of them have ended.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use axum::body::Body as AxumBody;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{Service, ServiceExt};

use crate::grpc::layer::RemoteAddr;

/// Time a client has to send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5 * 60);

/// Idle time before the system asks whether a client is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Pause after a connection could not be accepted, for instance for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// File descriptors kept for everything but clients (etcd: server/embed/etcd.go).
const RESERVED_FDS: u64 = 150;

/// Settings of an accept loop.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// Streams one connection may have open.
    pub max_concurrent_streams: u32,
    /// Idle time after which a client is pinged, and the time it has to answer.
    pub keepalive: Option<(Duration, Duration)>,
    /// Time requests have to end once the loop is to end.
    pub drain: Duration,
}

/// Connections a process may take with its limit of file descriptors; `None` if the limit is too low to run at all.
pub fn connections_max() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    let spare = limit.checked_sub(RESERVED_FDS).filter(|spare| *spare > 0)?;
    Some(
        usize::try_from(spare)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS),
    )
}

/// Accepts connections until the token is cancelled, then lets requests end and closes all.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    options: ServeOptions,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<AxumBody>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let tasks = TaskTracker::new();
    let builder = Arc::new(builder(&options));
    let accept = async || {
        // A permit first: connections over the limit wait in the backlog.
        let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
        Some((listener.accept().await, permit))
    };
    while let Some(Some((accepted, permit))) = stop.run_until_cancelled(accept()).await {
        match accepted {
            Ok((stream, remote)) => {
                let (builder, service, stop) =
                    (Arc::clone(&builder), service.clone(), stop.clone());
                tasks.spawn(async move {
                    connection(
                        &builder,
                        stream,
                        RemoteAddr(remote),
                        service,
                        options.drain,
                        stop,
                    )
                    .await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    tasks.wait().await;
}

fn builder(options: &ServeOptions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_concurrent_streams);
    if let Some((interval, timeout)) = options.keepalive {
        http2
            .keep_alive_interval(interval)
            .keep_alive_timeout(timeout);
    }
    builder
}

async fn connection<S>(
    builder: &Builder<TokioExecutor>,
    stream: TcpStream,
    remote: RemoteAddr,
    service: S,
    drain: Duration,
    stop: CancellationToken,
) where
    S: Service<Request<Incoming>, Response = Response<AxumBody>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    // Neither option is worth losing a client for.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(remote);
        service.clone().oneshot(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // How a connection ended is the client's affair.
    if stop
        .run_until_cancelled(connection.as_mut())
        .await
        .is_none()
    {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(drain, connection).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::Extension, routing::get};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    const OPTIONS: ServeOptions = ServeOptions {
        max_concurrent_streams: 8,
        keepalive: None,
        drain: Duration::from_secs(5),
    };

    async fn exchange(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_know_their_client_and_the_loop_drains() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (in_handler, wait) = (Arc::clone(&entered), Arc::clone(&go_on));
        let router = Router::new().route(
            "/",
            get(
                async move |Extension(RemoteAddr(remote)): Extension<RemoteAddr>| {
                    in_handler.notify_one();
                    wait.notified().await;
                    remote.to_string()
                },
            ),
        );
        let stop = CancellationToken::new();
        let permits = Arc::new(Semaphore::new(2));
        let server = tokio::spawn(serve(
            listener,
            router,
            OPTIONS,
            Arc::clone(&permits),
            stop.clone(),
        ));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let local = stream.local_addr().unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        let client = tokio::spawn(async move {
            exchange(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await
        });
        entered.notified().await;
        stop.cancel();
        go_on.notify_one();
        let answer = client.await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with(&local.to_string()),
            "{answer}"
        );
        assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
        server.await.unwrap();
        assert_eq!(permits.available_permits(), 2);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn connections_over_the_limit_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(async || "hello"));
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            router,
            OPTIONS,
            Arc::new(Semaphore::new(1)),
            stop.clone(),
        ));
        let mut first = TcpStream::connect(address).await.unwrap();
        first
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        assert!(first.read(&mut [0; 512]).await.unwrap() > 0);
        let mut second = TcpStream::connect(address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut waiting = pin!(exchange(&mut second, request));
        assert!(
            timeout(Duration::from_millis(100), waiting.as_mut())
                .await
                .is_err()
        );
        drop(first);
        assert!(waiting.await.ends_with("hello"));
        stop.cancel();
        server.await.unwrap();
    }
}
