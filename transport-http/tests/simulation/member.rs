//! One member: the real transport and its peer port, a raft that checks what it gets, and traffic.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Response, StatusCode};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio_util::sync::CancellationToken;
use transport_core::{ClusterId, MemberId, raftpb::Message};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig,
    serve_peers,
};

use super::{
    MEMBERS,
    ledger::Ledger,
    message::{CLASSES, Class, Id, Way},
    network::{Network, PORT, SimAcceptor, SimConnector, url},
};

/// How often a member thinks of sending something.
const PACE: Duration = Duration::from_millis(50);
/// One in so many times it does, to each other member.
const BURST_ONE_IN: u32 = 20;

/// What a member and the simulation around it share.
pub struct Place {
    pub id: Id,
    pub seed: u64,
    pub network: Arc<Network>,
    pub ledger: Arc<Mutex<Ledger>>,
    /// How often it was started.
    pub life: AtomicU64,
    /// Cleared before it is killed: what its remains do is no event.
    pub alive: AtomicBool,
    /// Ends the present life in order.
    pub stop: Mutex<CancellationToken>,
}

/// Milliseconds of virtual time since the simulation began.
fn now() -> u64 {
    turmoil::sim_elapsed().unwrap().as_millis() as u64
}

/// Lives until `stop`, or until the simulation kills it.
pub async fn live(place: Arc<Place>) -> turmoil::Result {
    let life = place.life.fetch_add(1, Ordering::Relaxed) + 1;
    let stop = place.stop.lock().clone();
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    let attached = Attached::default();
    let mut config =
        TransportConfig::new(MemberId(place.id), ClusterId(7), Arc::new(attached.clone()));
    config.connector = Arc::new(SimConnector {
        local: place.id,
        network: Arc::clone(&place.network),
    });
    let raft = Arc::new(Checker(Arc::clone(&place)));
    let transport = Transport::start(config, raft, Arc::new(NoSnapshots))?;
    for other in others(place.id) {
        transport.add_peer(MemberId(other), &[url(other)])?;
    }
    let acceptor = SimAcceptor {
        local: place.id,
        listener,
        network: Arc::clone(&place.network),
    };
    let closing = CancellationToken::new();
    let not_found = |_| async {
        let mut response = Response::new(PeerBody::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    };
    let port = tokio::spawn(serve_peers(
        acceptor,
        transport.clone(),
        not_found,
        closing.clone(),
    ));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = talk(&place, life, &transport, &attached) => {}
    }
    transport.stop().await;
    closing.cancel();
    port.await?;
    place.ledger.lock().note((now(), place.id, "stopped"));
    Ok(())
}

pub fn others(id: Id) -> impl Iterator<Item = Id> {
    (1..=MEMBERS).filter(move |other| *other != id)
}

/// Sends now and then, and all the time over a link that has just healed.
async fn talk(place: &Place, life: u64, transport: &Transport<Checker>, attached: &Attached) {
    let mut random = SmallRng::seed_from_u64(place.seed ^ (place.id << 32) ^ (life << 40));
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        for to in others(place.id) {
            let classes: Vec<Class> = if random.random_ratio(1, BURST_ONE_IN) {
                let length = if random.random_ratio(1, 50) { 40 } else { 4 };
                (0..random.random_range(1..=length))
                    .map(|_| CLASSES[random.random_range(0..CLASSES.len())])
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
                    let way = attached.way(to, class);
                    let mut ledger = place.ledger.lock();
                    ledger.send(now(), place.id, to, life, way, class).message()
                })
                .collect();
            transport.send(messages);
        }
    }
}

/// A raft that only looks at what it gets.
struct Checker(Arc<Place>);

impl Raft for Checker {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        self.0.ledger.lock().arrive(now(), self.0.id, &message);
        Ok(())
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, id: MemberId) {
        if self.0.alive.load(Ordering::Relaxed) {
            let event = (now(), self.0.id, id.0, "unreachable");
            self.0.ledger.lock().note(event);
        }
    }

    fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
}

/// Reads from the transport's own gauges which streams are attached.
#[derive(Clone, Default)]
struct Attached(Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>);

impl Attached {
    fn has(&self, to: Id, stream: &str) -> bool {
        let gauges = self.0.lock();
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

impl Recorder for Attached {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() != "rafthttp_stream_attached" {
            return Gauge::noop();
        }
        let labels: Vec<&str> = key.labels().map(|label| label.value()).collect();
        let gauge = Arc::<AtomicU64>::default();
        self.0.lock().insert(labels.join(" "), Arc::clone(&gauge));
        Gauge::from_arc(gauge)
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
