//! A network in memory: connections between the transports of one process, without sockets.
//!
//! For tests of what is built on the transport. Nothing here takes time of its own, so with a paused tokio clock hours
//! pass in milliseconds; and what a real network does now and then can be had on purpose: connections that are cut,
//! or that deliver nothing more and say nothing. Invariant: a connection holds [`CONNECTION_BYTES`] in each direction,
//! and [`BACKLOG`] connections wait to be accepted; who wants more waits.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::{Accepted, Acceptor, BoxFuture, BoxIo, Connector, PeerUrl};

/// What one direction of a connection holds before its writer has to wait.
pub const CONNECTION_BYTES: usize = 64 << 10;
/// Connections that wait to be accepted, per listener.
pub const BACKLOG: usize = 128;

/// A network; clones are the same one. As a [`Connector`] it connects to its own listeners, in plain text; for TLS over
/// it see [`TlsConnector::over`](crate::tls::TlsConnector::over).
///
/// ```
/// # use std::{sync::Arc, time::Duration};
/// # use transport_http::{NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig};
/// # use transport_http::{net::memory::MemoryNetwork, serve_peers};
/// # use transport_core::{ClusterId, MemberId};
/// # struct Ignore;
/// # impl Raft for Ignore {
/// #     async fn process(&self, _: transport_core::raftpb::Message) -> Result<(), ProcessError> { Ok(()) }
/// #     fn is_id_removed(&self, _: MemberId) -> bool { false }
/// #     fn report_unreachable(&self, _: MemberId) {}
/// #     fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// tokio::time::pause();
/// let network = MemoryNetwork::default();
/// for id in [1, 2] {
///     let listener = network.listen(([10, 0, 0, id], 2380).into())?;
///     let mut config = TransportConfig::new(MemberId(id.into()), ClusterId(7), Arc::new(metrics::NoopRecorder));
///     config.connector = Arc::new(network.clone());
///     let transport = Transport::start(config, Arc::new(Ignore), Arc::new(NoSnapshots))?;
///     let other = 3 - id;
///     transport.add_peer(MemberId(other.into()), &[format!("http://10.0.0.{other}:2380")])?;
///     let nothing = |_| async { http::Response::new(PeerBody::empty()) };
///     tokio::spawn(serve_peers(listener, transport, nothing, Default::default()));
/// }
/// // An hour, at once: the two streams and the prober of each side are still the first ones.
/// tokio::time::sleep(Duration::from_secs(3600)).await;
/// assert_eq!(network.opened(), 6);
/// // Once more, the streams at once and the probes when they are due.
/// network.cut();
/// tokio::time::sleep(Duration::from_secs(5)).await;
/// assert_eq!(network.opened(), 12);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    shared: Arc<Shared>,
    /// Where the connections opened through this clone come from.
    local: Option<IpAddr>,
}

#[derive(Default)]
struct Shared {
    listeners: Mutex<BTreeMap<SocketAddr, mpsc::Sender<Accepted>>>,
    opened: AtomicUsize,
    /// Of the connections that are opened from now on.
    fate: Mutex<Arc<Fate>>,
}

/// What befalls the connections that share it.
#[derive(Default)]
struct Fate {
    swallowed: AtomicBool,
    cut: CancellationToken,
}

impl MemoryNetwork {
    /// Listens at an address, until the listener is dropped.
    pub fn listen(&self, address: SocketAddr) -> io::Result<MemoryListener> {
        let mut listeners = self.shared.listeners.lock();
        if listeners
            .get(&address)
            .is_some_and(|open| !open.is_closed())
        {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, waiting) = mpsc::channel(BACKLOG);
        listeners.insert(address, sender);
        Ok(MemoryListener { address, waiting })
    }

    /// The same network; connections that are opened through it come from `local`. Otherwise they come from the
    /// address they go to.
    pub fn seen_from(&self, local: IpAddr) -> MemoryNetwork {
        MemoryNetwork {
            local: Some(local),
            ..self.clone()
        }
    }

    /// How many connections were opened so far.
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// Resets the connections that are open, at both ends. New ones work.
    pub fn cut(&self) {
        self.new_fate().cut.cancel();
    }

    /// From now on the connections that are open deliver nothing, and stay open: what is written to them is taken and
    /// vanishes. New ones work.
    pub fn swallow(&self) {
        self.new_fate().swallowed.store(true, Ordering::SeqCst);
    }

    /// Gives the connections to come another fate, and returns that of those which are open.
    fn new_fate(&self) -> Arc<Fate> {
        std::mem::take(&mut *self.shared.fate.lock())
    }
}

impl Connector for MemoryNetwork {
    fn connect<'a>(&'a self, url: &'a PeerUrl, _: Duration) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            url.require_plain()?;
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let address: SocketAddr = url.authority().parse().map_err(|_| refused())?;
            let listener = self.shared.listeners.lock().get(&address).cloned();
            let listener = listener.ok_or_else(refused)?;
            let (near, far) = tokio::io::duplex(CONNECTION_BYTES);
            let fate = Arc::clone(&self.shared.fate.lock());
            let near = MemoryIo::new(near, &fate);
            let from = self.local.map_or(address, |local| (local, 0).into());
            let accepted = Accepted::ready(MemoryIo::new(far, &fate), from);
            listener.send(accepted).await.map_err(|_| refused())?;
            self.shared.opened.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(near) as BoxIo)
        })
    }
}

/// Accepts the connections to one address.
pub struct MemoryListener {
    address: SocketAddr,
    waiting: mpsc::Receiver<Accepted>,
}

impl MemoryListener {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }
}

impl Acceptor for MemoryListener {
    async fn accept(&mut self, _: Duration) -> io::Result<Accepted> {
        match self.waiting.recv().await {
            Some(accepted) => Ok(accepted),
            // The network is gone, and with it everybody who could connect.
            None => std::future::pending().await,
        }
    }
}

/// One end of a connection.
struct MemoryIo {
    io: DuplexStream,
    fate: Arc<Fate>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl MemoryIo {
    fn new(io: DuplexStream, fate: &Arc<Fate>) -> Self {
        MemoryIo {
            io,
            fate: Arc::clone(fate),
            cut: Box::pin(fate.cut.clone().cancelled_owned()),
        }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn is_swallowed(&self) -> bool {
        self.fate.swallowed.load(Ordering::SeqCst)
    }
}

impl AsyncRead for MemoryIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for MemoryIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if self.is_swallowed() {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        if self.is_swallowed() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_swallowed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    async fn connection(network: &MemoryNetwork) -> (BoxIo, BoxIo) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut listener = network.listen(address).unwrap();
        let url = PeerUrl::parse("http://127.0.0.1:1").unwrap();
        let near = network.connect(&url, TIMEOUT).await.unwrap();
        let accepted = listener.accept(TIMEOUT).await.unwrap();
        (near, accepted.handshake.await.unwrap())
    }

    #[tokio::test]
    async fn an_address_has_one_listener_until_that_is_dropped() {
        let network = MemoryNetwork::default();
        let url = PeerUrl::parse("http://127.0.0.1:1").unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let refused = network.connect(&url, TIMEOUT).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        let listener = network.listen(address).unwrap();
        assert_eq!(listener.local_addr(), address);
        assert!(network.listen(address).is_err());
        drop(listener);
        assert!(network.connect(&url, TIMEOUT).await.is_err());
        assert!(network.listen(address).is_ok());
        assert_eq!(network.opened(), 0);
    }

    #[tokio::test]
    async fn a_cut_is_seen_at_both_ends_and_spares_what_comes_later() {
        let network = MemoryNetwork::default();
        let (mut near, mut far) = connection(&network).await;
        near.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        far.read_exact(&mut read).await.unwrap();
        let waiting = tokio::spawn(async move { far.read_u8().await });
        tokio::task::yield_now().await;
        network.cut();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(near.write_all(b"ping").await.is_err());
        let (mut near, mut far) = connection(&network).await;
        near.write_all(b"pong").await.unwrap();
        far.read_exact(&mut read).await.unwrap();
        assert_eq!((&read, network.opened()), (b"pong", 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_swallowed_is_taken_and_never_arrives() {
        let network = MemoryNetwork::default();
        let (mut near, mut far) = connection(&network).await;
        network.swallow();
        near.write_all(&[0; 2 * CONNECTION_BYTES]).await.unwrap();
        near.shutdown().await.unwrap();
        let silent = tokio::time::timeout(TIMEOUT, far.read_u8()).await;
        assert!(silent.is_err());
    }
}
