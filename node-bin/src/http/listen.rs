//! Listening sockets for the URLs of a configuration.
//!
//! Depends on `config` for URLs. Invariant: an address that is taken is reported with the address, before anything else
//! of the member has been started.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::Url;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why a URL cannot be listened on; worded as Go does.
#[derive(Debug, thiserror::Error)]
#[error("listen tcp {address}: {doing}: {source}")]
pub struct ListenError {
    /// The address.
    pub address: String,
    /// What failed.
    pub doing: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// Options of listening sockets.
#[derive(Clone, Copy, Debug, Default)]
pub struct ListenOptions {
    /// Let several processes listen on one port.
    pub reuse_port: bool,
}

/// Listens on a plain-text URL. To be called inside a tokio runtime.
pub fn listen(url: &Url, options: ListenOptions) -> Result<TcpListener, ListenError> {
    let address = url.address();
    let failed = |doing| {
        move |source| ListenError {
            address: url.address(),
            doing,
            source,
        }
    };
    let mut addresses: Vec<SocketAddr> = address
        .to_socket_addrs()
        .map_err(failed("lookup"))?
        .collect();
    // Of the two meanings of localhost the older one is listened on, as Go does.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let Some(first) = addresses.first() else {
        return Err(failed("lookup")(io::ErrorKind::AddrNotAvailable.into()));
    };
    let domain = Domain::for_address(*first);
    let socket =
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(failed("socket"))?;
    let prepare = || {
        // A port in TIME_WAIT is not taken; Go's listeners set this too.
        socket.set_reuse_address(true)?;
        if options.reuse_port {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)
    };
    prepare().map_err(failed("setsockopt"))?;
    socket.bind(&(*first).into()).map_err(failed("bind"))?;
    socket.listen(BACKLOG).map_err(failed("listen"))?;
    TcpListener::from_std(socket.into()).map_err(failed("register"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = listen(&Url::http("localhost:0"), ListenOptions::default()).unwrap();
        let address = first.local_addr().unwrap();
        assert!(address.is_ipv4() && address.ip().is_loopback());
        let error = listen(&Url::http(address.to_string()), ListenOptions::default()).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert!(
            error
                .to_string()
                .starts_with(&format!("listen tcp {address}: bind: ")),
            "{error}"
        );
        drop(first);
        listen(&Url::http(address.to_string()), ListenOptions::default()).unwrap();
    }
}
