//! Listening sockets for the URLs of a configuration.
//!
//! Depends on `config` for URLs. Invariant: an address that is taken is reported with the address, before
//! anything else of the member has been started.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::config::{Config, Url};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Why a URL cannot be listened on; worded as Go does.
#[derive(Debug, thiserror::Error)]
#[error("listen tcp {address}: {source}")]
pub struct ListenError {
    /// Host and port.
    pub address: String,
    /// What the system said.
    pub source: io::Error,
}

/// The listening sockets of a member, bound before anything else happens, so that a port in use is found
/// before the data directory is touched.
pub struct Listeners {
    /// Of `--listen-peer-urls`.
    pub peers: Vec<TcpListener>,
    /// Of `--listen-client-urls`.
    pub clients: Vec<TcpListener>,
    /// Of `--listen-client-http-urls`.
    pub client_http: Vec<TcpListener>,
    /// Of `--listen-metrics-urls`.
    pub metrics: Vec<TcpListener>,
}

impl Listeners {
    /// Binds all of them. To be called inside a tokio runtime.
    pub fn bind(config: &Config) -> Result<Listeners, ListenError> {
        Ok(Listeners {
            peers: listen_all(&config.listen_peer_urls, config)?,
            clients: listen_all(&config.listen_client_urls, config)?,
            client_http: listen_all(&config.listen_client_http_urls, config)?,
            metrics: listen_all(&config.listen_metrics_urls, config)?,
        })
    }
}

/// Listens on each URL. To be called inside a tokio runtime.
fn listen_all(urls: &[Url], config: &Config) -> Result<Vec<TcpListener>, ListenError> {
    let listening = |url: &Url| {
        let address = url.address();
        listen(&address, config.socket_reuse_port).map_err(|source| ListenError { address, source })
    };
    urls.iter().map(listening).collect()
}

fn listen(address: &str, reuse_port: bool) -> io::Result<TcpListener> {
    // A name with addresses of both kinds means the one of IPv4, as it does for Go.
    let mut addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let first = addresses
        .first()
        .ok_or_else(|| io::Error::other("no such host"))?;
    let socket = Socket::new(
        Domain::for_address(*first),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // A restart must not wait for the end of the connections of the process before.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&(*first).into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let config = Config::from_flags(&[]).unwrap();
        let listen = |url: String| listen_all(&[url.parse().unwrap()], &config);
        let first = listen("http://127.0.0.1:0".into()).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = listen(format!("http://{address}")).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("listen tcp {address}: Address already in use")),
            "{error}"
        );
    }
}
