//! The simulated sockets: turmoil's TCP behind the transport's connector and acceptor.
//!
//! turmoil delays, reorders, holds and drops segments. What it lacks is here: a connect that waits while its SYN is
//! lost instead of failing at once, a host that is off instead of refusing, resets in the middle of a stream, and
//! sockets that take only a part of what they are given.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use transport_http::net::{Accepted, Acceptor, BoxFuture, BoxIo, Connector, PeerUrl};
use turmoil::net::{TcpListener, TcpStream};

use super::{MEMBERS, message::Id};

pub const PORT: u16 = 2380;
/// What a socket takes at once, by turns: all of it, a segment, a few lines.
const PIECES: [usize; 3] = [usize::MAX, 1460, 200];

pub fn host(id: Id) -> String {
    format!("m{id}")
}

pub fn url(id: Id, secure: bool) -> String {
    let scheme = if secure { "https" } else { "http" };
    format!("{scheme}://{}:{PORT}", host(id))
}

/// What the connectors of all members know about the network.
#[derive(Default)]
pub struct Network {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Links whose packets are lost or held, both ends in order.
    closed: BTreeSet<(Id, Id)>,
    /// Members whose port nobody listens on.
    refusing: BTreeSet<Id>,
    /// Resets the open connections between two members, at the first one's end.
    resets: BTreeMap<(Id, Id), CancellationToken>,
    connections: usize,
}

fn ordered(a: Id, b: Id) -> (Id, Id) {
    (a.min(b), a.max(b))
}

impl Network {
    /// Lets SYNs through, or loses them.
    pub fn set_open(&self, a: Id, b: Id, open: bool) {
        let mut state = self.state.lock();
        if open {
            state.closed.remove(&ordered(a, b));
        } else {
            state.closed.insert(ordered(a, b));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether connections to a member are refused.
    pub fn set_refusing(&self, id: Id, refusing: bool) {
        let mut state = self.state.lock();
        if refusing {
            state.refusing.insert(id);
        } else {
            state.refusing.remove(&id);
        }
    }

    /// Resets the connections of `local` with `remote`; the other end sees what turmoil makes of that.
    pub fn reset(&self, local: Id, remote: Id) {
        if let Some(open) = self.state.lock().resets.remove(&(local, remote)) {
            open.cancel();
        }
    }

    /// Waits as long as a SYN would be sent again.
    async fn reach(&self, from: Id, to: Id) -> io::Result<()> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock();
                if !state.closed.contains(&ordered(from, to)) {
                    if state.refusing.contains(&to) {
                        return Err(io::ErrorKind::ConnectionRefused.into());
                    }
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn wrap(&self, stream: TcpStream, local: Id, remote: Id) -> Socket {
        let mut state = self.state.lock();
        let token = state.resets.entry((local, remote)).or_default().clone();
        state.connections += 1;
        Socket {
            stream,
            reset: Box::pin(token.cancelled_owned()),
            piece: PIECES[state.connections % PIECES.len()],
        }
    }
}

/// Dials for one member.
pub struct SimConnector {
    pub local: Id,
    pub network: Arc<Network>,
}

impl Connector for SimConnector {
    fn connect<'a>(&'a self, url: &'a PeerUrl, _: Duration) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async move {
            let remote = (1..=MEMBERS).find(|id| host(*id) == url.host());
            let remote = remote.ok_or(io::ErrorKind::NotFound)?;
            self.network.reach(self.local, remote).await?;
            let stream = TcpStream::connect((url.host(), url.port())).await?;
            Ok(Box::new(self.network.wrap(stream, self.local, remote)) as BoxIo)
        })
    }
}

/// Accepts for one member.
pub struct SimAcceptor {
    pub local: Id,
    pub listener: TcpListener,
    pub network: Arc<Network>,
}

impl Acceptor for SimAcceptor {
    async fn accept(&mut self, _: Duration) -> io::Result<Accepted> {
        let (stream, from) = self.listener.accept().await?;
        let name = turmoil::reverse_lookup(from.ip());
        let remote = (1..=MEMBERS).find(|id| Some(host(*id)) == name);
        let remote = remote.ok_or(io::ErrorKind::NotFound)?;
        let socket = self.network.wrap(stream, self.local, remote);
        Ok(Accepted::ready(socket, from))
    }
}

/// A simulated socket that can be reset.
struct Socket {
    stream: TcpStream,
    reset: Pin<Box<WaitForCancellationFutureOwned>>,
    piece: usize,
}

impl Socket {
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.reset.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_reset(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_reset(cx)?;
        let taken = buf.len().min(self.piece);
        Pin::new(&mut self.stream).poll_write(cx, &buf[..taken])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
