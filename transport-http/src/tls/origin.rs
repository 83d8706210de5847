//! Does who connects come from where its certificate says?
//!
//! A certificate with names must carry the address of the connection, or a name the address leads to or that leads to
//! the address. Lookups block a thread of their own; at most [`REVERSE_LOOKUPS_MAX`] of the kind that has no other
//! bound. Invariant: without any name in the certificate everybody passes, as in etcd.
//!
//! etcd: client/pkg/transport/listener_tls.go, `checkCertSAN`.

use std::{io, net::IpAddr, sync::Arc};

use tokio::sync::Semaphore;

use super::certificate::Names;
use crate::{
    handshake::{HandshakeCause, HandshakeError},
    resolver::Resolver,
};

/// Threads that may wait for the name of an address.
pub(crate) const REVERSE_LOOKUPS_MAX: usize = 4;

/// Asks for the name of an address; blocks.
type Reverse = dyn Fn(IpAddr) -> io::Result<String> + Send + Sync;

/// Names of addresses and addresses of names.
pub(super) struct Lookups {
    forward: Resolver,
    reverse: Arc<Reverse>,
    places: Arc<Semaphore>,
}

impl Lookups {
    /// Those of the system.
    pub(super) fn system() -> Lookups {
        Lookups::new(Resolver::default(), |address| {
            dns_lookup::lookup_addr(&address).map_err(io::Error::from)
        })
    }

    fn new(
        forward: Resolver,
        reverse: impl Fn(IpAddr) -> io::Result<String> + Send + Sync + 'static,
    ) -> Lookups {
        Lookups {
            forward,
            reverse: Arc::new(reverse),
            places: Arc::new(Semaphore::new(REVERSE_LOOKUPS_MAX)),
        }
    }

    async fn name_of(&self, address: IpAddr) -> io::Result<String> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let reverse = Arc::clone(&self.reverse);
        let looking = tokio::task::spawn_blocking(move || {
            // Held by the thread, which goes on when nobody waits for it any more.
            let _place = place;
            reverse(address)
        });
        looking.await.map_err(io::Error::other)?
    }

    /// Whether a certificate with these names may come from `remote`.
    pub(super) async fn check(&self, names: &Names, remote: IpAddr) -> Result<(), HandshakeError> {
        let remote = remote.to_canonical();
        if names.ips.contains(&remote) || (names.ips.is_empty() && names.dns.is_empty()) {
            return Ok(());
        }
        let refuse = |message| Err(HandshakeError::new(HandshakeCause::Name, message));
        if names.dns.is_empty() {
            let valid: Vec<String> = names.ips.iter().map(IpAddr::to_string).collect();
            return refuse(format!(
                "x509: certificate is valid for {}, not {remote}",
                valid.join(", ")
            ));
        }
        match self.leads_to(remote, &names.dns).await {
            Ok(true) => Ok(()),
            Ok(false) => refuse(mismatch(remote, &names.dns)),
            Err(error) => refuse(format!("{} ({error})", mismatch(remote, &names.dns))),
        }
    }

    async fn leads_to(&self, remote: IpAddr, names: &[String]) -> io::Result<bool> {
        let mut outcome = match self.name_of(remote).await {
            Ok(found) => {
                let found = found.strip_suffix('.').unwrap_or(&found);
                if names.iter().any(|name| matches(name, found)) {
                    return Ok(true);
                }
                Ok(false)
            }
            Err(error) => Err(error),
        };
        for name in names.iter().filter(|name| !name.starts_with("*.")) {
            match self.forward.resolve(name).await {
                Ok(addresses) if addresses.contains(&remote) => return Ok(true),
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }
}

/// A wildcard stands for any number of labels here, as it does in etcd.
fn matches(name: &str, found: &str) -> bool {
    match name.strip_prefix('*').filter(|rest| rest.starts_with('.')) {
        Some(rest) => found.ends_with(rest),
        None => found == name,
    }
}

fn mismatch(remote: IpAddr, names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!(
        "tls: \"{remote}\" does not match any of DNSNames [{}]",
        names.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMOTE: &str = "10.0.0.7";

    async fn check(
        ips: &[&str],
        dns: &[&str],
        reverse: Option<&'static str>,
    ) -> Result<(), String> {
        let forward = Resolver::new(|host| match host {
            "m7.example" => Ok(vec!["10.0.0.9".parse().unwrap(), REMOTE.parse().unwrap()]),
            "m8.example" => Ok(vec!["10.0.0.8".parse().unwrap()]),
            _ => Err(io::Error::other("no such host")),
        });
        let lookups = Lookups::new(forward, move |_| {
            reverse
                .map(str::to_owned)
                .ok_or_else(|| io::Error::other("no name"))
        });
        let names = Names {
            common_name: String::new(),
            dns: dns.iter().map(ToString::to_string).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let remote = format!("::ffff:{REMOTE}").parse().unwrap();
        let checked = lookups.check(&names, remote).await;
        checked.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_address_or_a_name_that_fits_is_enough() {
        for (ips, dns, reverse) in [
            (&[][..], &[][..], None),
            (&["10.0.0.1", REMOTE], &["elsewhere"], None),
            (&["10.0.0.1"], &["m7.example"], None),
            (&[], &["m8.example", "m7.example"], None),
            (&[], &["a.b.example"], Some("a.b.example.")),
            (&[], &["*.example"], Some("a.b.example.")),
        ] {
            assert_eq!(check(ips, dns, reverse).await, Ok(()), "{ips:?} {dns:?}");
        }
    }

    #[tokio::test]
    async fn what_fits_nowhere_is_refused_with_etcd_s_words() {
        let cases = [
            (
                &["10.0.0.1", "::1"][..],
                &[][..],
                None,
                "x509: certificate is valid for 10.0.0.1, ::1, not 10.0.0.7",
            ),
            (
                &[],
                &["m8.example"],
                Some("other.example"),
                "tls: \"10.0.0.7\" does not match any of DNSNames [\"m8.example\"]",
            ),
            (
                &["10.0.0.1"],
                &["*.example", "unknown"],
                Some("example"),
                "tls: \"10.0.0.7\" does not match any of DNSNames [\"*.example\" \"unknown\"] (no such host)",
            ),
        ];
        for (ips, dns, reverse, message) in cases {
            assert_eq!(check(ips, dns, reverse).await, Err(message.to_owned()));
        }
    }
}
