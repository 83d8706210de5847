//! A network in memory, so that a paused clock can run: ports lead to acceptors, links can be made to swallow.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::mpsc,
};
use transport_http::net::{Accepted, Acceptor, BoxFuture, BoxIo, Connector, PeerUrl};

#[derive(Clone, Default)]
pub struct MemoryNet {
    ports: Arc<Mutex<HashMap<u16, mpsc::UnboundedSender<BoxIo>>>>,
    dials: Arc<AtomicUsize>,
    black_hole: Arc<AtomicBool>,
}

pub struct MemoryAcceptor {
    accepted: mpsc::UnboundedReceiver<BoxIo>,
    address: SocketAddr,
}

impl MemoryNet {
    pub fn listen(&self, port: u16) -> (SocketAddr, MemoryAcceptor) {
        let (sender, accepted) = mpsc::unbounded_channel();
        self.ports.lock().unwrap().insert(port, sender);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        (address, MemoryAcceptor { accepted, address })
    }

    /// Connections opened so far.
    pub fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }

    /// From now on, connections that exist deliver nothing and stay open; new ones work.
    pub fn swallow(&self) {
        self.black_hole.store(true, Ordering::SeqCst);
    }
}

impl Connector for MemoryNet {
    fn connect<'a>(&'a self, url: &'a PeerUrl, _: Duration) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(64 << 10);
            // A hole swallows what was opened before it.
            let swallows = if self.black_hole.load(Ordering::SeqCst) {
                Arc::new(AtomicBool::new(false))
            } else {
                Arc::clone(&self.black_hole)
            };
            let port = self.ports.lock().unwrap().get(&url.port()).cloned();
            let port = port.ok_or(io::ErrorKind::ConnectionRefused)?;
            let far = Link {
                io: far,
                swallows: Arc::clone(&swallows),
            };
            port.send(Box::new(far))
                .map_err(|_| io::ErrorKind::ConnectionRefused)?;
            self.dials.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(Link { io: near, swallows }) as BoxIo)
        })
    }
}

impl Acceptor for MemoryAcceptor {
    async fn accept(&mut self, _: Duration) -> io::Result<Accepted> {
        match self.accepted.recv().await {
            Some(io) => Ok(Accepted::ready(io, self.address)),
            None => std::future::pending().await,
        }
    }
}

struct Link {
    io: DuplexStream,
    swallows: Arc<AtomicBool>,
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.swallows.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.swallows.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
