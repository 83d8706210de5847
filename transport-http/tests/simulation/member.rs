//! One member: the real transport and its peer port, plain or with TLS, a raft that checks what it gets, and traffic.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Response, StatusCode};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use transport_core::{ClusterId, MemberId, raftpb::Message};
use transport_http::{
    OutgoingSnapshot, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig,
    net::Acceptor,
    serve_peers,
    tls::{Tls, TlsAcceptor, TlsConnector, TlsSettings},
};

use super::{
    MEMBERS,
    database::{Shelf, Source},
    ledger::Ledger,
    message::{Class, Id, SMALL_CLASSES, Way},
    network::{Network, PORT, SimAcceptor, SimConnector, url},
};

/// How often a member thinks of sending something.
const PACE: Duration = Duration::from_millis(50);
/// One in so many times it does, to each other member.
const BURST_ONE_IN: u32 = 20;
/// And one in so many times it sends a snapshot.
const SNAPSHOT_ONE_IN: u32 = 4000;
/// How often that is two at once, of which one must be refused.
const SECOND_ONE_IN: u32 = 10;

/// What a member and the simulation around it share.
pub struct Place {
    pub id: Id,
    pub seed: u64,
    pub network: Arc<Network>,
    pub ledger: Arc<Mutex<Ledger>>,
    /// What TLS is spoken with, if it is.
    pub tls: Option<TlsSettings>,
    /// How often it was started.
    pub life: AtomicU64,
    /// Cleared before it is killed: what its remains do is no event.
    pub alive: AtomicBool,
    /// Ends the present life in order.
    pub stop: Mutex<CancellationToken>,
}

/// Milliseconds of virtual time since the simulation began.
pub fn now() -> u64 {
    turmoil::sim_elapsed().unwrap().as_millis() as u64
}

/// Lives until `stop`, or until the simulation kills it.
pub async fn live(place: Arc<Place>) -> turmoil::Result {
    let life = place.life.fetch_add(1, Ordering::Relaxed) + 1;
    let stop = place.stop.lock().clone();
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    let observer = Observer::new(&place);
    let mut config =
        TransportConfig::new(MemberId(place.id), ClusterId(7), Arc::new(observer.clone()));
    // What becomes of a snapshot is known after a while, not after ten minutes.
    config.limits.snapshot_chunk_timeout = Duration::from_secs(5);
    config.limits.snapshot_answer_timeout = Duration::from_secs(10);
    let connector = SimConnector {
        local: place.id,
        network: Arc::clone(&place.network),
    };
    let acceptor = SimAcceptor {
        local: place.id,
        listener,
        network: Arc::clone(&place.network),
    };
    let tls = place.tls.clone();
    let tls = tls.map(|settings| Tls::load_once(settings, &config.recorder));
    let tls = tls.transpose()?;
    config.connector = match &tls {
        Some(tls) => Arc::new(TlsConnector::over(Arc::new(connector), tls.clone())),
        None => Arc::new(connector),
    };
    let checker = Arc::new(Checker {
        place: Arc::clone(&place),
        life,
    });
    let shelf = Arc::new(Shelf(Arc::clone(&place)));
    let transport = Transport::start(config, checker, shelf)?;
    for other in others(place.id) {
        transport.add_peer(MemberId(other), &[url(other, place.tls.is_some())])?;
    }
    let closing = CancellationToken::new();
    let port = match tls {
        Some(tls) => serve(TlsAcceptor::new(acceptor, tls), &transport, &closing),
        None => serve(acceptor, &transport, &closing),
    };
    let mut snapshots = JoinSet::new();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = talk(&place, life, &transport, &observer, &mut snapshots) => {}
    }
    transport.stop().await;
    while let Some(waited) = snapshots.join_next().await {
        waited?;
    }
    closing.cancel();
    port.await?;
    place.ledger.lock().stopped(now(), place.id, life);
    Ok(())
}

fn serve(
    acceptor: impl Acceptor,
    transport: &Transport<Checker>,
    closing: &CancellationToken,
) -> JoinHandle<()> {
    let not_found = |_| async {
        let mut response = Response::new(PeerBody::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    };
    let served = serve_peers(acceptor, transport.clone(), not_found, closing.clone());
    tokio::spawn(served)
}

pub fn others(id: Id) -> impl Iterator<Item = Id> {
    (1..=MEMBERS).filter(move |other| *other != id)
}

/// Sends now and then, and all the time over a link that has just healed.
async fn talk(
    place: &Arc<Place>,
    life: u64,
    transport: &Transport<Checker>,
    observer: &Observer,
    snapshots: &mut JoinSet<()>,
) {
    let mut random = SmallRng::seed_from_u64(place.seed ^ (place.id << 32) ^ (life << 40));
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        for to in others(place.id) {
            if random.random_ratio(1, SNAPSHOT_ONE_IN) {
                send_snapshot(place, life, transport, to, snapshots);
                if random.random_ratio(1, SECOND_ONE_IN) {
                    send_snapshot(place, life, transport, to, snapshots);
                }
            }
            let classes: Vec<Class> = if random.random_ratio(1, BURST_ONE_IN) {
                let length = if random.random_ratio(1, 50) { 40 } else { 4 };
                (0..random.random_range(1..=length))
                    .map(|_| SMALL_CLASSES[random.random_range(0..SMALL_CLASSES.len())])
                    .collect()
            } else if place.ledger.lock().is_owed(place.id, to) {
                vec![Class::Control]
            } else {
                continue;
            };
            let messages = classes
                .into_iter()
                .map(|class| {
                    // As the transport will pick: nothing else runs between this look and that.
                    let way = observer.way(to, class);
                    let mut ledger = place.ledger.lock();
                    ledger.send(now(), place.id, to, life, way, class).message()
                })
                .collect();
            transport.send(messages);
        }
    }
}

/// Sends a snapshot, and waits in a task of its own for what becomes of it.
fn send_snapshot(
    place: &Arc<Place>,
    life: u64,
    transport: &Transport<Checker>,
    to: Id,
    snapshots: &mut JoinSet<()>,
) {
    let stamp = place
        .ledger
        .lock()
        .send(now(), place.id, to, life, Way::Snapshot, Class::Snapshot);
    let (done, ended) = oneshot::channel();
    let place = Arc::clone(place);
    snapshots.spawn(async move {
        // Not told at all, it is overdue one day.
        if let Ok(accepted) = ended.await {
            place.ledger.lock().ended(now(), stamp, accepted);
        }
    });
    transport.send_snapshot(OutgoingSnapshot {
        message: stamp.message(),
        source: Box::new(Source::new(&stamp)),
        done: Some(done),
    });
}

/// A raft that only looks at what it gets.
struct Checker {
    place: Arc<Place>,
    life: u64,
}

impl Raft for Checker {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        let place = &self.place;
        place.ledger.lock().arrive(now(), place.id, &message);
        Ok(())
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, id: MemberId) {
        if self.place.alive.load(Ordering::Relaxed) {
            let event = (now(), self.place.id, id.0, "unreachable");
            self.place.ledger.lock().note(event);
        }
    }

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        if self.place.alive.load(Ordering::Relaxed) {
            let finished = status == SnapshotStatus::Finish;
            let mut ledger = self.place.ledger.lock();
            ledger.reported(now(), self.place.id, id.0, self.life, finished);
        }
    }
}

/// Reads from the transport's own metrics which streams are attached, and which handshakes failed for a reason that
/// no network has.
#[derive(Clone)]
struct Observer {
    gauges: Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Observer {
    fn new(place: &Place) -> Observer {
        Observer {
            gauges: Arc::default(),
            ledger: Arc::clone(&place.ledger),
        }
    }

    fn has(&self, to: Id, stream: &str) -> bool {
        let gauges = self.gauges.lock();
        let gauge = gauges.get(&format!("{} {stream}", MemberId(to)));
        gauge.is_some_and(|bits| f64::from_bits(bits.load(Ordering::Relaxed)) == 1.0)
    }

    fn way(&self, to: Id, class: Class) -> Way {
        if class == Class::Append && self.has(to, "streamMsgAppV2") {
            Way::MsgApp
        } else if self.has(to, "streamMsg") {
            Way::Message
        } else {
            Way::Pipeline
        }
    }
}

impl Recorder for Observer {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let is_of_network = matches!(labels[..], [_, "closed" | "timeout"]);
        if key.name() != "rafthttp_handshake_failures_total" || is_of_network {
            return Counter::noop();
        }
        Counter::from_arc(Arc::new(Breaches {
            what: format!("a handshake failed: {}", labels.join(" ")),
            ledger: Arc::clone(&self.ledger),
        }))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() != "rafthttp_stream_attached" {
            return Gauge::noop();
        }
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let gauge = Arc::<AtomicU64>::default();
        let name = labels.join(" ");
        self.gauges.lock().insert(name, Arc::clone(&gauge));
        Gauge::from_arc(gauge)
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A counter of what must never happen.
struct Breaches {
    what: String,
    ledger: Arc<Mutex<Ledger>>,
}

impl CounterFn for Breaches {
    fn increment(&self, _: u64) {
        let breach = format!("{} ms: {}", now(), self.what);
        self.ledger.lock().breaches.push(breach);
    }

    fn absolute(&self, _: u64) {}
}
