//! Whether URLs that are spelled differently mean the same member (etcd: pkg/netutil/netutil.go).
//!
//! Depends on `url`; names are resolved through [`Resolver`]. Invariant: equal spellings never need a resolver, so that
//! a cluster that is configured consistently starts without one.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use super::url::Url;

/// How long names may take to resolve while URLs are compared.
const RESOLVE_TIME: Duration = Duration::from_secs(30);

/// Pause between two attempts to resolve a name.
const RESOLVE_RETRY: Duration = Duration::from_secs(1);

/// Turns `host:port` into addresses. Blocking.
pub trait Resolver {
    /// All addresses of a host.
    fn resolve(&self, host_port: &str) -> io::Result<BTreeSet<SocketAddr>>;
    /// Waits between two attempts; false when the time is up.
    fn pause(&self) -> bool;
}

/// The system's resolver, retried every second for 30 s.
#[derive(Debug)]
pub struct SystemResolver {
    deadline: Instant,
}

impl SystemResolver {
    /// Starts its 30 seconds now.
    pub fn start() -> SystemResolver {
        SystemResolver {
            deadline: Instant::now() + RESOLVE_TIME,
        }
    }
}

impl Resolver for SystemResolver {
    fn resolve(&self, host_port: &str) -> io::Result<BTreeSet<SocketAddr>> {
        host_port.to_socket_addrs().map(Iterator::collect)
    }

    fn pause(&self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        thread::sleep(RESOLVE_RETRY.min(left));
        !left.is_zero()
    }
}

/// Whether two lists of URLs lead to the same places: the same strings, or names that resolve to a common address.
/// The error says how they differ. Blocking (etcd: pkg/netutil, `URLStringsEqual`).
pub fn same_urls(a: &[String], b: &[String], resolver: &impl Resolver) -> Result<(), String> {
    if a.len() != b.len() {
        let list = |urls: &[String]| {
            urls.iter()
                .map(|url| format!("{url:?}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        return Err(format!("len([{}]) != len([{}])", list(a), list(b)));
    }
    let sorted = |urls: &[String]| urls.iter().cloned().collect::<BTreeSet<_>>();
    if sorted(a) == sorted(b) {
        return Ok(());
    }
    let a = a
        .iter()
        .map(|url| places(url, resolver))
        .collect::<Result<Vec<_>, _>>()?;
    let mut b = b
        .iter()
        .map(|url| places(url, resolver))
        .collect::<Result<Vec<_>, _>>()?;
    for (url, places) in &a {
        let Some(at) = b.iter().position(|(_, other)| !places.is_disjoint(other)) else {
            let other = b.first().map(|(url, _)| url.as_str()).unwrap_or_default();
            return Err(format!("resolved urls: {url:?} != {other:?}"));
        };
        b.swap_remove(at);
    }
    Ok(())
}

/// Every address a URL may mean, with its scheme. `localhost` and Unix sockets stand for themselves.
fn places(text: &str, resolver: &impl Resolver) -> Result<(String, BTreeSet<String>), String> {
    let url: Url = text
        .parse()
        .map_err(|_| format!("failed to parse string to URL: {text:?}"))?;
    match url.host_port() {
        None | Some(("localhost", _)) => {
            return Ok((url.to_string(), BTreeSet::from([url.to_string()])));
        }
        Some(_) => {}
    }
    loop {
        match resolver.resolve(&url.address()) {
            Ok(addresses) if !addresses.is_empty() => {
                let places = addresses
                    .iter()
                    .map(|address| format!("{}://{address}", url.scheme()))
                    .collect();
                return Ok((url.to_string(), places));
            }
            outcome => {
                let reason = match outcome {
                    Ok(_) => "no addresses".to_string(),
                    Err(error) => error.to_string(),
                };
                tracing::warn!(url = text, error = reason, "failed to resolve URL host");
                if !resolver.pause() {
                    return Err(format!("failed to resolve {text:?} ({reason})"));
                }
            }
        }
    }
}
