//! Sockets: how connections to peers are opened and accepted, and the deadline on writes.
//!
//! The transport sees byte streams only, through [`Connector`] and [`Acceptor`]; plain TCP is implemented here, a
//! network in memory in [`memory`], and [`crate::tls`] goes around any of them. Invariants: every socket has TCP_NODELAY, keep-alive and, where the system has it,
//! TCP_USER_TIMEOUT, so that a silent network never holds a connection for minutes; accepting never waits for what
//! the other side sends.

pub mod memory;

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep, sleep_until, timeout},
};

use crate::{
    error::UrlError,
    handshake::{HandshakeCause, HandshakeError},
    race::race,
    resolver::Resolver,
};

/// How long a connection may be idle before the system probes it (etcd: 30 s).
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What hyper reads ahead of its user, and collects before it writes, per connection; its own default.
pub(crate) const HTTP_BUFFER_BYTES: usize = 408 << 10;

/// A byte stream to a peer.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Any byte stream to a peer.
pub type BoxIo = Box<dyn Io>;

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens connections to peers.
pub trait Connector: Send + Sync + 'static {
    /// Connects to the host and port of `url`; one that does not secure connections refuses an https URL
    /// ([`PeerUrl::require_plain`]). The caller sets the deadline and may drop the future. A connection whose peer
    /// acknowledges nothing for `user_timeout` should be closed, where the network can tell.
    fn connect<'a>(
        &'a self,
        url: &'a PeerUrl,
        user_timeout: Duration,
    ) -> BoxFuture<'a, io::Result<BoxIo>>;
}

/// Accepts connections of peers.
pub trait Acceptor: Send + 'static {
    /// The next connection; `user_timeout` as for a [`Connector`]. Cancel-safe, and does not wait for anything the
    /// other side must send: that is the handshake's part.
    fn accept(
        &mut self,
        user_timeout: Duration,
    ) -> impl Future<Output = io::Result<Accepted>> + Send;

    /// As [`accept`](Acceptor::accept), for somebody who puts a protocol of its own around the bytes, as TLS does: an
    /// acceptor that judges by the first bytes whether the other side speaks HTTP must not do so here.
    fn accept_to_wrap(
        &mut self,
        user_timeout: Duration,
    ) -> impl Future<Output = io::Result<Accepted>> + Send {
        self.accept(user_timeout)
    }
}

/// A connection that was accepted, and what is left to do before it can be used.
pub struct Accepted {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// To be awaited in a task of the connection's own, under a deadline.
    pub handshake: BoxFuture<'static, Result<BoxIo, HandshakeError>>,
}

impl Accepted {
    /// A connection without a handshake.
    pub fn ready(io: impl Io + 'static, remote: SocketAddr) -> Accepted {
        Accepted {
            remote,
            handshake: Box::pin(std::future::ready(Ok(Box::new(io) as BoxIo))),
        }
    }
}

/// Plain TCP. The addresses of a host are tried side by side, each with a head start before the next; clones share
/// what was looked up.
#[derive(Clone, Debug, Default)]
pub struct TcpConnector {
    resolver: Arc<Resolver>,
}

impl Connector for TcpConnector {
    fn connect<'a>(
        &'a self,
        url: &'a PeerUrl,
        user_timeout: Duration,
    ) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            url.require_plain()?;
            let addresses = self.resolver.resolve(url.host()).await?;
            let attempts = addresses
                .iter()
                .map(|address| TcpStream::connect((*address, url.port())));
            // The resolver never answers without an address.
            let none = || Err(io::ErrorKind::NotFound.into());
            let stream = race(attempts.collect()).await.unwrap_or_else(none)?;
            tune(&stream, user_timeout)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

impl Acceptor for TcpListener {
    async fn accept(&mut self, user_timeout: Duration) -> io::Result<Accepted> {
        let (stream, remote) = accept_tuned(self, user_timeout).await?;
        let handshake = Box::pin(begin_plain(stream, user_timeout));
        Ok(Accepted { remote, handshake })
    }

    async fn accept_to_wrap(&mut self, user_timeout: Duration) -> io::Result<Accepted> {
        let (stream, remote) = accept_tuned(self, user_timeout).await?;
        Ok(Accepted::ready(stream, remote))
    }
}

async fn accept_tuned(
    listener: &TcpListener,
    user_timeout: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, remote) = listener.accept().await?;
    // A peer that is gone already fails here; the connection then ends by itself.
    let _ = tune(&stream, user_timeout);
    Ok((stream, remote))
}

/// The first byte of every TLS connection: a record of type handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Waits for a plain connection to begin, and looks whether it is plain at all: what speaks TLS here would only be
/// told that it speaks no HTTP, and nobody would know why.
async fn begin_plain(stream: TcpStream, within: Duration) -> Result<BoxIo, HandshakeError> {
    let closed = |what: String| HandshakeError::new(HandshakeCause::Closed, what);
    let mut first = [0];
    match timeout(within, stream.peek(&mut first)).await {
        Err(_) => Err(closed(format!("not a byte within {within:?}"))),
        Ok(Err(error)) => Err(closed(error.to_string())),
        Ok(Ok(0)) => Err(closed("the other side went away without a byte".into())),
        Ok(Ok(_)) if first[0] == TLS_HANDSHAKE => Err(HandshakeError::new(
            HandshakeCause::SchemeMismatch,
            "the other side speaks TLS to a plain port: its URL of this member says https, this member's says http",
        )),
        Ok(Ok(_)) => Ok(Box::new(stream)),
    }
}

/// Sets the options of a peer socket.
fn tune(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEP_ALIVE)
            .with_interval(KEEP_ALIVE),
    )?;
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    #[cfg(not(any(target_os = "android", target_os = "fuchsia", target_os = "linux")))]
    let _ = user_timeout;
    Ok(())
}

/// A peer's base URL: scheme, host and port, nothing else.
///
/// etcd: client/pkg/types/urls.go, `NewURLs`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerUrl {
    text: String,
    https: bool,
    host: String,
    port: u16,
}

impl PeerUrl {
    /// Parses `http://host:port` or `https://host:port`.
    pub fn parse(text: &str) -> Result<PeerUrl, UrlError> {
        let (https, authority) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(UrlError::Scheme(text.to_owned())),
        };
        if authority.contains(['/', '?', '#']) {
            return Err(UrlError::Path(text.to_owned()));
        }
        let broken = || UrlError::HostPort(text.to_owned());
        let (host, port) = authority.rsplit_once(':').ok_or_else(broken)?;
        let inner = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(broken()),
            None if host.contains(':') => return Err(broken()),
            None => host,
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
        if inner.is_empty()
            || !inner.chars().all(plain)
            || !port.bytes().all(|digit| digit.is_ascii_digit())
        {
            return Err(broken());
        }
        let port = port.parse().map_err(|_| broken())?;
        Ok(PeerUrl {
            text: text.to_owned(),
            https,
            host: inner.to_owned(),
            port,
        })
    }

    /// Parses a list and sorts it by text, as etcd does: rotation starts at the smallest.
    pub fn parse_list<S: AsRef<str>>(texts: &[S]) -> Result<Vec<PeerUrl>, UrlError> {
        let mut urls = texts
            .iter()
            .map(|text| PeerUrl::parse(text.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        if urls.is_empty() {
            return Err(UrlError::None);
        }
        urls.sort_unstable();
        Ok(urls)
    }

    /// As given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the scheme is https.
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Fails for an https URL, as connectors do that secure nothing.
    pub fn require_plain(&self) -> io::Result<()> {
        if self.https {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the URL says https, but this member speaks no TLS to its peers",
            ));
        }
        Ok(())
    }

    /// The same host and port as an http URL: for what a secured connection goes over.
    pub fn to_plain(&self) -> PeerUrl {
        PeerUrl {
            text: format!("http://{}", self.authority()),
            https: false,
            host: self.host.clone(),
            port: self.port,
        }
    }

    /// Host name or address, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` as it stands in the URL, for the `Host` header.
    pub fn authority(&self) -> &str {
        self.text
            .split_once("://")
            .map_or("", |(_, authority)| authority)
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A byte stream whose writes fail with `TimedOut` once the other side took nothing for the write timeout.
pub(crate) struct WriteDeadline {
    io: BoxIo,
    timeout: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

impl WriteDeadline {
    pub(crate) fn new(io: BoxIo, timeout: Duration) -> Self {
        WriteDeadline {
            io,
            timeout,
            timer: None,
            armed: false,
        }
    }

    /// Passes a finished operation on; a pending one is failed when it has been pending for too long.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.armed = false;
            return outcome;
        }
        let deadline = Instant::now() + self.timeout;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if !self.armed {
            timer.as_mut().reset(deadline);
            self.armed = true;
        }
        ready!(timer.as_mut().poll(cx));
        self.armed = false;
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the peer takes no bytes",
        )))
    }
}

impl AsyncRead for WriteDeadline {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteDeadline {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.bound(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.bound(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.bound(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bound(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_host_and_port_only() {
        for good in [
            "http://127.0.0.1:2380",
            "https://etcd-0.etcd.svc:2380",
            "http://[::1]:2380",
            "http://a:0",
        ] {
            let url = PeerUrl::parse(good).unwrap();
            assert_eq!(url.to_string(), good);
            assert_eq!(url.is_https(), good.starts_with("https"));
        }
        assert_eq!(PeerUrl::parse("http://[::1]:2380").unwrap().host(), "::1");
        assert_eq!(
            PeerUrl::parse("http://[::1]:2380").unwrap().authority(),
            "[::1]:2380"
        );
        for (bad, error) in [
            ("127.0.0.1:2380", UrlError::Scheme as fn(String) -> UrlError),
            ("ftp://a:1", UrlError::Scheme),
            ("", UrlError::Scheme),
            ("http://a:1/", UrlError::Path),
            ("http://a:1/raft", UrlError::Path),
            ("http://a:1?b", UrlError::Path),
            ("http://a", UrlError::HostPort),
            ("http://a:", UrlError::HostPort),
            ("http://:1", UrlError::HostPort),
            ("http://a:65536", UrlError::HostPort),
            ("http://a:+1", UrlError::HostPort),
            ("http://::1:2380", UrlError::HostPort),
            ("http://[::1:2380", UrlError::HostPort),
            ("http://[x]:2380", UrlError::HostPort),
            ("http://u@a:1", UrlError::HostPort),
            ("http://a b:1", UrlError::HostPort),
            ("http://a\r\nX-Evil:1", UrlError::HostPort),
        ] {
            assert_eq!(PeerUrl::parse(bad), Err(error(bad.to_owned())), "{bad:?}");
        }
    }

    #[test]
    fn lists_are_sorted_and_never_empty() {
        let urls = PeerUrl::parse_list(&["http://b:1", "http://a:2"]).unwrap();
        assert_eq!(urls[0].as_str(), "http://a:2");
        assert_eq!(PeerUrl::parse_list::<&str>(&[]), Err(UrlError::None));
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|text| text.parse().unwrap());
        let resolver = Arc::new(Resolver::new(move |_| Ok(addresses.to_vec())));
        let connector = TcpConnector { resolver };
        let url = PeerUrl::parse(&format!("http://host:{}", address.port())).unwrap();
        let connected = connector.connect(&url, Duration::from_secs(5)).await;
        assert!(connected.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_takes_fails_at_its_deadline() {
        use tokio::io::AsyncWriteExt;
        let (near, _far) = tokio::io::duplex(4);
        let mut io = WriteDeadline::new(Box::new(near), Duration::from_secs(5));
        let begun = Instant::now();
        let error = io.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 5);
    }
}
