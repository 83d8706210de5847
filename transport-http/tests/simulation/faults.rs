//! The weather: what fails, when, and what is owed once it is over.
//!
//! Every link and every member fails and heals by itself, at times drawn from the seed. A link may be cut in both
//! directions or in one, hold everything for a while, be slow, or have its connections reset; a member may be
//! killed, switched off (nobody is told), or stopped in order. Whenever a link and both its ends are well again, each
//! end must reach the other within the limit, unless something fails before.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio_util::sync::CancellationToken;
use turmoil::Sim;

use super::{
    MEMBERS,
    certificates::Certificates,
    ledger::Ledger,
    member::{Place, live, others},
    message::Id,
    network::{Network, host},
};

/// Virtual time of one step; nothing on the network takes less.
const STEP: Duration = Duration::from_millis(20);
const LATENCY: Duration = Duration::from_millis(50);
const LATENCY_SLOW: Duration = Duration::from_millis(900);
/// The read timeout, after which a dead stream is given up; the limiter's pause before the next dial; and what the
/// network itself takes to connect, to ask, to answer and to carry a message. TLS asks and is answered once before.
const RECOVERY: Duration = Duration::from_millis(5000 + 100 + 4 * (50 + 20) + 100);
const RECOVERY_WITH_TLS: Duration = RECOVERY.saturating_add(Duration::from_millis(2 * (50 + 20)));

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LinkState {
    Well,
    Cut,
    /// From the first end to the second.
    CutThere,
    /// From the second end to the first.
    CutBack,
    Held,
    Slow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemberState {
    Up,
    Killed,
    Off,
    Stopped,
}

struct Link {
    ends: (Id, Id),
    state: LinkState,
    due: Duration,
    /// Whether both ends are up and the link is well.
    usable: bool,
}

struct Member {
    place: Arc<Place>,
    state: MemberState,
    due: Duration,
}

/// A simulation under way.
pub struct Weather {
    sim: Sim<'static>,
    random: SmallRng,
    network: Arc<Network>,
    pub ledger: Arc<Mutex<Ledger>>,
    links: Vec<Link>,
    members: Vec<Member>,
    recovery: Duration,
    /// Where the members' certificates are, if they have any; they go with the simulation.
    _certificates: Option<Certificates>,
    /// How often what happened.
    pub events: BTreeMap<String, u64>,
}

impl Weather {
    pub fn new(seed: u64, length: Duration, secure: bool) -> Weather {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(length * 2)
            .tick_duration(STEP)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .ephemeral_ports(10_000..=65_535)
            .tcp_capacity(256)
            .build();
        let network = Arc::<Network>::default();
        let ledger = Arc::<Mutex<Ledger>>::default();
        let mut random = SmallRng::seed_from_u64(seed);
        let certificates = secure.then(Certificates::new);
        let mut members = Vec::new();
        for id in 1..=MEMBERS {
            let place = Arc::new(Place {
                id,
                seed,
                network: Arc::clone(&network),
                ledger: Arc::clone(&ledger),
                tls: certificates.as_ref().map(|all| all.settings(id)),
                life: AtomicU64::new(0),
                alive: AtomicBool::new(true),
                stop: Mutex::default(),
            });
            let software = Arc::clone(&place);
            sim.host(host(id), move || live(Arc::clone(&software)));
            members.push(Member {
                place,
                state: MemberState::Up,
                due: uptime(&mut random),
            });
        }
        let pairs = (1..=MEMBERS).flat_map(|a| (a + 1..=MEMBERS).map(move |b| (a, b)));
        let links = pairs.map(|ends| Link {
            ends,
            state: LinkState::Well,
            due: calm(&mut random),
            usable: false,
        });
        let links = links.collect();
        let mut weather = Weather {
            sim,
            random,
            network,
            ledger,
            links,
            members,
            recovery: if secure { RECOVERY_WITH_TLS } else { RECOVERY },
            _certificates: certificates,
            events: BTreeMap::new(),
        };
        weather.settle();
        weather
    }

    /// Lets `length` of virtual time pass, or less once a promise is broken.
    pub fn run(&mut self, length: Duration) {
        while self.sim.elapsed() < length {
            for index in 0..self.links.len() {
                if self.links[index].due <= self.sim.elapsed() {
                    self.change_link(index);
                    self.settle();
                }
            }
            for index in 0..self.members.len() {
                if self.members[index].due <= self.sim.elapsed() {
                    self.change_member(index);
                    self.settle();
                }
            }
            self.sim.step().expect("no member fails by itself");
            let mut ledger = self.ledger.lock();
            ledger.check_owed(millis(self.sim.elapsed()), millis(self.recovery));
            if !ledger.breaches.is_empty() {
                return;
            }
        }
    }

    fn change_link(&mut self, index: usize) {
        let Link { ends, state, .. } = self.links[index];
        let now = self.sim.elapsed();
        if self.is_off(ends.0) || self.is_off(ends.1) {
            // It stays cut.
            self.links[index].due = now + Duration::from_secs(1);
            return;
        }
        if state != LinkState::Well {
            self.links[index].due = now + calm(&mut self.random);
            return self.set_link(index, LinkState::Well);
        }
        let state = match self.random.random_range(0..11) {
            0..3 => LinkState::Cut,
            3 => LinkState::CutThere,
            4 => LinkState::CutBack,
            5..7 => LinkState::Held,
            7 => LinkState::Slow,
            _ => {
                self.reset(index);
                self.links[index].due = now + calm(&mut self.random);
                return;
            }
        };
        self.set_link(index, state);
        self.links[index].due = now + trouble(&mut self.random);
    }

    fn set_link(&mut self, index: usize, state: LinkState) {
        self.links[index].state = state;
        self.shape_link(index);
        self.note(&format!("{state:?}"), self.links[index].ends);
    }

    /// Makes the simulated network what the link's state says, whatever it was.
    fn shape_link(&mut self, index: usize) {
        let Link { ends, state, .. } = self.links[index];
        let (a, b) = (&host(ends.0)[..], &host(ends.1)[..]);
        self.sim.release(a, b);
        self.sim.set_link_max_message_latency(a, b, LATENCY);
        match state {
            LinkState::Well => {}
            LinkState::Cut => self.sim.partition(a, b),
            LinkState::CutThere => self.sim.partition_oneway(a, b),
            LinkState::CutBack => self.sim.partition_oneway(b, a),
            LinkState::Held => self.sim.hold(a, b),
            LinkState::Slow => self.sim.set_link_max_message_latency(a, b, LATENCY_SLOW),
        }
        let open = matches!(state, LinkState::Well | LinkState::Slow);
        self.network.set_open(ends.0, ends.1, open);
    }

    /// Resets the link's connections, at one end or at both.
    fn reset(&mut self, index: usize) {
        let (a, b) = self.links[index].ends;
        let at = self.random.random_range(0..3);
        if at != 0 {
            self.network.reset(a, b);
        }
        if at != 1 {
            self.network.reset(b, a);
        }
        // What it carries from now on has to find new connections.
        self.links[index].usable = false;
        self.note("Reset", (a, b));
    }

    fn change_member(&mut self, index: usize) {
        let now = self.sim.elapsed();
        let id = self.members[index].place.id;
        if self.members[index].state != MemberState::Up {
            self.start(index);
            self.members[index].due = now + uptime(&mut self.random);
            return;
        }
        let state = match self.random.random_range(0..3) {
            0 => MemberState::Killed,
            1 => MemberState::Off,
            _ => MemberState::Stopped,
        };
        self.members[index].state = state;
        self.note(&format!("{state:?}"), (id, id));
        match state {
            MemberState::Up => {}
            MemberState::Killed => {
                self.crash(index);
                self.network.set_refusing(id, true);
                // The system closes its sockets.
                for link in self.links_of(id) {
                    self.shape_link(link);
                }
                others(id).for_each(|other| self.network.reset(other, id));
            }
            MemberState::Off => {
                self.crash(index);
                for link in self.links_of(id) {
                    self.set_link(link, LinkState::Cut);
                }
            }
            MemberState::Stopped => {
                self.network.set_refusing(id, true);
                self.members[index].place.stop.lock().cancel();
            }
        }
        // Long enough to stop in order.
        self.members[index].due = now + Duration::from_secs(3) + trouble(&mut self.random);
    }

    /// Ends a member at once. What its sockets would say in going is lost, because the order in which a runtime
    /// drops its tasks is not the same in every run.
    fn crash(&mut self, index: usize) {
        let place = &self.members[index].place;
        place.alive.store(false, Ordering::Relaxed);
        for other in others(place.id) {
            self.sim.partition(host(place.id), host(other));
        }
        self.sim.crash(host(place.id));
        self.ledger.lock().killed(place.id);
    }

    fn start(&mut self, index: usize) {
        let place = Arc::clone(&self.members[index].place);
        let (id, state) = (place.id, self.members[index].state);
        if state == MemberState::Stopped && self.sim.is_host_running(host(id)) {
            let breach = format!("{:?}: {id} did not stop in time", self.sim.elapsed());
            self.ledger.lock().breaches.push(breach);
        }
        if state == MemberState::Off {
            for link in self.links_of(id) {
                self.set_link(link, LinkState::Well);
            }
        }
        *place.stop.lock() = CancellationToken::new();
        place.alive.store(true, Ordering::Relaxed);
        self.sim.bounce(host(id));
        self.network.set_refusing(id, false);
        self.members[index].state = MemberState::Up;
        self.note("Started", (id, id));
    }

    fn links_of(&self, id: Id) -> Vec<usize> {
        let all = self.links.iter().enumerate();
        let of = all.filter(|(_, link)| link.ends.0 == id || link.ends.1 == id);
        of.map(|(index, _)| index).collect()
    }

    /// Tells the ledger which links have become usable, and which no longer are.
    fn settle(&mut self) {
        let now = millis(self.sim.elapsed());
        let up: Vec<bool> = self
            .members
            .iter()
            .map(|member| member.state == MemberState::Up)
            .collect();
        let mut ledger = self.ledger.lock();
        for link in &mut self.links {
            let (a, b) = link.ends;
            let usable = link.state == LinkState::Well && up[a as usize - 1] && up[b as usize - 1];
            if usable && !link.usable {
                ledger.owe(now, a, b);
                ledger.owe(now, b, a);
            } else if !usable {
                ledger.excuse(a, b);
                ledger.excuse(b, a);
            }
            link.usable = usable;
        }
    }

    fn is_off(&self, id: Id) -> bool {
        self.members[id as usize - 1].state == MemberState::Off
    }

    fn note(&mut self, event: &str, whom: (Id, Id)) {
        let now = millis(self.sim.elapsed());
        self.ledger.lock().note((now, event, whom));
        *self.events.entry(event.to_owned()).or_default() += 1;
    }
}

impl Drop for Weather {
    fn drop(&mut self) {
        // The members end with the simulation; that, too, is no event.
        for member in &self.members {
            member.place.alive.store(false, Ordering::Relaxed);
        }
    }
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

/// How long a link stays well.
fn calm(random: &mut SmallRng) -> Duration {
    Duration::from_millis(random.random_range(1_000..60_000))
}

/// How long a member stays up.
fn uptime(random: &mut SmallRng) -> Duration {
    Duration::from_millis(random.random_range(5_000..400_000))
}

/// How long something stays broken: for a blink, for about as long as the timeouts, or for long.
fn trouble(random: &mut SmallRng) -> Duration {
    Duration::from_millis(match random.random_range(0..10) {
        0..3 => random.random_range(20..1_000),
        3..7 => random.random_range(1_000..8_000),
        _ => random.random_range(8_000..40_000),
    })
}
