//! Addresses of a host: looked up by the system, once at a time, and remembered for a moment.
//!
//! The system's lookup blocks a thread and cannot be cancelled; a dial that gives up leaves it behind. So the next
//! dial waits for the same lookup instead of starting another. Invariant: at most one thread per host is ever in a
//! lookup, and at most [`HOSTS_MAX`] hosts are known. An address needs no lookup.

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::Instant};

/// How long an answer serves: long enough for the dials of one moment, short enough for an address that moves.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Hosts known at once. A cluster has a handful; more can only come from headers.
pub(crate) const HOSTS_MAX: usize = 256;

/// Asks the system; blocks.
type Lookup = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// What the system said; an error as its kind and text, since `io::Error` cannot be cloned.
type Answer = Result<Arc<[IpAddr]>, (io::ErrorKind, String)>;

pub(crate) struct Resolver {
    hosts: Mutex<HashMap<String, Arc<Host>>>,
    lookup: Arc<Lookup>,
}

/// Held while its lookup is awaited: who comes next finds the answer.
type Host = tokio::sync::Mutex<Known>;

#[derive(Default)]
struct Known {
    answer: Option<(Instant, Answer)>,
    running: Option<JoinHandle<io::Result<Vec<IpAddr>>>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Resolver::new(system_lookup)
    }
}

fn system_lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    Ok((host, 0)
        .to_socket_addrs()?
        .map(|address| address.ip())
        .collect())
}

impl Resolver {
    pub(crate) fn new(
        lookup: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Self {
        Resolver {
            hosts: Mutex::default(),
            lookup: Arc::new(lookup),
        }
    }

    /// The addresses in the order to try them: as the system sorted them, the two families in turn. Cancel-safe.
    pub(crate) async fn resolve(&self, host: &str) -> io::Result<Arc<[IpAddr]>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Arc::new([address]));
        }
        let entry = self.entry(host)?;
        let mut known = entry.lock().await;
        if let Some((at, answer)) = &known.answer
            && at.elapsed() < REMEMBERED
        {
            return told(answer);
        }
        let running = known.running.get_or_insert_with(|| {
            let (lookup, host) = (Arc::clone(&self.lookup), host.to_owned());
            tokio::task::spawn_blocking(move || lookup(&host))
        });
        // Dropped here, the lookup stays where the next one finds it.
        let found = running
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        known.running = None;
        let answer = match found {
            Ok(addresses) if addresses.is_empty() => Err((
                io::ErrorKind::NotFound,
                "the host has no address".to_owned(),
            )),
            Ok(addresses) => Ok(in_turn(addresses)),
            Err(error) => Err((error.kind(), error.to_string())),
        };
        let (_, answer) = known.answer.insert((Instant::now(), answer));
        told(answer)
    }

    fn entry(&self, host: &str) -> io::Result<Arc<Host>> {
        let mut hosts = self.hosts.lock();
        if let Some(entry) = hosts.get(host) {
            return Ok(Arc::clone(entry));
        }
        if hosts.len() >= HOSTS_MAX {
            // What nobody waits for and nothing is under way for.
            hosts.retain(|_, entry| {
                entry
                    .try_lock()
                    .map_or(true, |known| known.running.is_some())
            });
        }
        if hosts.len() >= HOSTS_MAX {
            return Err(io::Error::other("too many hosts are being looked up"));
        }
        let entry = Arc::new(Host::default());
        hosts.insert(host.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }
}

fn told(answer: &Answer) -> io::Result<Arc<[IpAddr]>> {
    match answer {
        Ok(addresses) => Ok(Arc::clone(addresses)),
        Err((kind, text)) => Err(io::Error::new(*kind, text.clone())),
    }
}

/// Alternates the families, so that a broken one costs one head start and not one per address.
fn in_turn(addresses: Vec<IpAddr>) -> Arc<[IpAddr]> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut second = second.into_iter();
    let mut mixed = Vec::new();
    for address in first {
        mixed.push(address);
        mixed.extend(second.next());
    }
    mixed.extend(second);
    mixed.into()
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("hosts", &self.hosts.lock().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn dials_that_give_up_leave_one_lookup_behind() {
        let lookups = Arc::new(AtomicUsize::new(0));
        let (answer, answers) = mpsc::channel();
        let answers = Mutex::new(answers);
        let counted = Arc::clone(&lookups);
        let resolver = Resolver::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            answers.lock().recv().map_err(io::Error::other)
        });
        for _ in 0..5 {
            let gives_up = tokio::time::timeout(Duration::from_millis(1), resolver.resolve("a"));
            assert!(gives_up.await.is_err());
        }
        answer.send(vec![ip("10.0.0.1")]).unwrap();
        let both = tokio::join!(resolver.resolve("a"), resolver.resolve("a"));
        assert_eq!(*both.0.unwrap(), [ip("10.0.0.1")]);
        assert_eq!(*both.1.unwrap(), [ip("10.0.0.1")]);
        assert_eq!(lookups.load(Ordering::SeqCst), 1);
        tokio::time::pause();
        tokio::time::advance(REMEMBERED).await;
        tokio::time::resume();
        answer.send(vec![]).unwrap();
        let error = resolver.resolve("a").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(lookups.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn an_address_is_not_looked_up_and_hosts_are_bounded() {
        let resolver = Resolver::new(|host| match host {
            "known" => Ok(vec![ip("127.0.0.1")]),
            _ => Err(io::ErrorKind::NotFound.into()),
        });
        assert_eq!(*resolver.resolve("::1").await.unwrap(), [ip("::1")]);
        assert!(resolver.hosts.lock().is_empty());
        for number in 0..HOSTS_MAX + 10 {
            resolver.resolve(&format!("h{number}")).await.unwrap_err();
        }
        assert!(resolver.hosts.lock().len() <= HOSTS_MAX);
        assert!(resolver.resolve("known").await.is_ok());
    }

    #[test]
    fn families_take_turns() {
        let sorted = ["::1", "::2", "::3", "1.1.1.1", "2.2.2.2"].map(ip);
        let expected = ["::1", "1.1.1.1", "::2", "2.2.2.2", "::3"].map(ip);
        assert_eq!(*in_turn(sorted.to_vec()), expected);
        let four = ["1.1.1.1", "::1"].map(ip);
        assert_eq!(*in_turn(four.to_vec()), four);
    }
}
