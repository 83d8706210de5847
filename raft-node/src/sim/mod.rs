//! A cluster of real drivers, appliers and writers in one thread and virtual time, under a seed.
//!
//! Messages are delayed, lost, doubled and cut off, disks and state machines stall, members crash at any
//! point and come back with what was durable, join and leave. Checked all along: everybody applies the same
//! entry at the same index, no read misses an acknowledged proposal, nothing panics. Checked in the end:
//! every acknowledged proposal is there once, every one that failed for certain is not.

pub(crate) mod machine;
mod medium;
pub(crate) mod store;
mod tests;
mod trouble;
mod turns;

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfState, Message},
};

use self::{
    machine::{Machine, MachineDisk, State, Wire},
    medium::Files,
    store::{Medium, Store},
};
use crate::{
    NodeConfig,
    apply::{Applier, ApplyTask},
    bootstrap::bootstrap_entries,
    driver::{Driver, Event},
    metrics::Metrics,
    persist::{WalTask, persist},
    proposals::Proposal,
    recovery::{Initial, recover},
};

/// How many times as many seeds as usual, for long runs.
pub(crate) fn seeds_factor() -> u64 {
    let factor = std::env::var("SIMULATION_SEEDS_FACTOR").ok();
    factor.and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

const MS: Duration = Duration::from_millis(1);

/// How unkind the world is; chances are per mille and millisecond or message.
#[derive(Clone, Debug)]
struct Weather {
    members: u64,
    lose: u32,
    double: u32,
    delay_ms_max: u64,
    crash: u32,
    /// Orderly ends.
    stop: u32,
    cut: u32,
    stall: u32,
    change: u32,
    propose: u32,
    read: u32,
    snapshot_count: u64,
    /// Real log files on a disk that fails, instead of records in memory.
    files: bool,
}

/// A process that is alive.
struct Running {
    driver: Driver,
    applier: Applier<Machine, Wire>,
    wire: Arc<Wire>,
    wal: Vec<WalTask>,
    apply: Vec<ApplyTask>,
    /// The apply engine waits for raft's configuration.
    waiting: bool,
    conf_states: Vec<ConfState>,
    events: Vec<Event>,
    messages: Vec<Message>,
    proposals: Vec<Proposal>,
    reads: Vec<u64>,
    /// Requests with a waiter in this process.
    waiters: BTreeSet<u64>,
    next_tick: Duration,
    wal_until: Duration,
    apply_until: Duration,
    /// Up to where its log was compared with the others'.
    checked: u64,
    /// Since when it knows that it was removed.
    removed_at: Option<Duration>,
}

struct Member {
    store: Box<dyn Medium>,
    machine: MachineDisk,
    running: Option<Running>,
    /// What it had applied when it last stopped in order.
    stopped_at: u64,
    boots: u64,
    /// Left the cluster for good.
    gone: bool,
}

struct Parcel {
    at: Duration,
    message: Message,
    body: Option<State>,
}

struct World {
    seed: u64,
    rng: SmallRng,
    weather: Weather,
    now: Duration,
    members: BTreeMap<u64, Member>,
    parcels: Vec<Parcel>,
    cuts: BTreeSet<(u64, u64)>,
    next_id: u64,
    /// Term and id at each index, as first applied by anybody.
    truth: BTreeMap<u64, u64>,
    acknowledged: BTreeMap<u64, u64>,
    failed: BTreeSet<u64>,
    /// Lowest index each read may get.
    reads: BTreeMap<u64, u64>,
    reads_done: usize,
    snapshots_sent: usize,
    failed_writes: usize,
    changes: BTreeSet<u64>,
    last_change: Duration,
}

impl World {
    fn new(seed: u64, weather: Weather) -> Self {
        let ids: Vec<u64> = (1..=weather.members).collect();
        let members = ids
            .iter()
            .map(|id| (MemberId(*id), Bytes::from_static(b"{}")));
        let members: Vec<_> = members.collect();
        let mut world = World {
            seed,
            rng: SmallRng::seed_from_u64(seed),
            weather,
            now: Duration::ZERO,
            members: BTreeMap::new(),
            parcels: Vec::new(),
            cuts: BTreeSet::new(),
            next_id: 0,
            truth: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            failed: BTreeSet::new(),
            reads: BTreeMap::new(),
            reads_done: 0,
            snapshots_sent: 0,
            failed_writes: 0,
            changes: BTreeSet::new(),
            last_change: Duration::ZERO,
        };
        for id in ids {
            world.join(id, &members);
        }
        world
    }

    /// A new process with an empty log, or with one of a new cluster of `members`.
    fn join(&mut self, id: u64, members: &[(MemberId, Bytes)]) {
        let store: Box<dyn Medium> = if self.weather.files {
            Box::new(Files::new(self.seed ^ (id << 24), members))
        } else {
            let mut store = Store::default();
            if !members.is_empty() {
                let (entries, state) = bootstrap_entries(members);
                store.fill(&entries, &state);
            }
            Box::new(store)
        };
        let member = Member {
            store,
            machine: MachineDisk::default(),
            running: None,
            stopped_at: 0,
            boots: 0,
            gone: false,
        };
        self.members.insert(id, member);
        self.boot(id);
    }

    fn boot(&mut self, id: u64) {
        let seed = self.seed;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.boots += 1;
        let config = NodeConfig {
            tick: 10 * MS,
            snapshot_count: self.weather.snapshot_count,
            catch_up_entries: self.weather.snapshot_count / 2,
            append_bytes_max: 200,
            appends_in_flight_max: 4,
            committed_bytes_max: 400,
            disk_stall_max: 300 * MS,
            request_timeout: 2_000 * MS,
            read_retry: 50 * MS,
            seed: Some(seed ^ (id << 32) ^ (member.boots << 48)),
            ..NodeConfig::new(MemberId(id), ClusterId(1), Arc::new(metrics::NoopRecorder))
        };
        let mut machine = Machine::open(member.machine.clone());
        let contents = member.store.boot(&mut self.rng);
        // What the state machine contains need not be in the log as well.
        let known = contents.hard_state.commit.max(machine.state.applied.0);
        let stopped_at = mem::take(&mut member.stopped_at);
        assert!(
            known >= stopped_at,
            "member {id} stopped at {stopped_at}, and knows of {known}"
        );
        let recovered = recover(contents, &mut machine);
        let Initial { log, applied } = recovered.expect("a crash never makes a log unusable");
        let metrics = Arc::new(Metrics::register(&metrics::NoopRecorder));
        let removed = member.machine.removed.clone();
        let is_removed = Arc::new(move |id: MemberId| removed.lock().contains(&id.0));
        let driver = Driver::new(config, log, applied, is_removed, metrics);
        let wire = Arc::new(Wire::default());
        member.running = Some(Running {
            driver: driver.expect("a valid configuration"),
            applier: Applier::new(machine, wire.clone()),
            wire,
            wal: Vec::new(),
            apply: Vec::new(),
            waiting: false,
            conf_states: Vec::new(),
            events: Vec::new(),
            messages: Vec::new(),
            proposals: Vec::new(),
            reads: Vec::new(),
            waiters: BTreeSet::new(),
            next_tick: self.now + self.rng.random_range(1..10) * MS,
            wal_until: Duration::ZERO,
            apply_until: Duration::ZERO,
            checked: 0,
            removed_at: None,
        });
    }

    /// The process dies: some of what it had handed to the disk may have arrived.
    fn crash(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(mut running) = member.running.take() else {
            return;
        };
        member
            .store
            .crash(&mut self.rng, mem::take(&mut running.wal));
    }

    /// The process ends in order: its log says how far everything is committed that it applied.
    fn stop(&mut self, id: u64) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(mut running) = member.running.take() else {
            return;
        };
        running.wal.extend(running.driver.stop(now).wal);
        let written = persist(&mut *member.store, &mut running.wal);
        if written.and_then(|_| member.store.sync()).is_ok() {
            member.stopped_at = running.applier.machine().state.applied.0;
        }
        member.store.crash(&mut self.rng, Vec::new());
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        self.rng.random_range(0..1000) < per_mille
    }

    fn alive(&self) -> Vec<u64> {
        let alive = self.members.iter().filter(|(_, m)| m.running.is_some());
        alive.map(|(id, _)| *id).collect()
    }

    /// One millisecond.
    fn step(&mut self) {
        self.now += MS;
        self.deliver();
        for id in self.alive() {
            self.disk(id);
            self.apply(id);
            self.turn(id);
            self.leave(id);
        }
    }

    /// Everything works again; everybody must come to the same end.
    fn heal(&mut self) {
        self.cuts.clear();
        let calm = Weather {
            lose: 0,
            crash: 0,
            stop: 0,
            stall: 0,
            delay_ms_max: 3,
            ..self.weather.clone()
        };
        self.weather = calm;
        for _ in 0..20_000 {
            for (id, member) in &self.members {
                if member.running.is_none() && !member.gone {
                    let id = *id;
                    self.boot(id);
                    break;
                }
            }
            self.step();
            if self.now.as_millis().is_multiple_of(50) && self.settled() {
                return;
            }
        }
        panic!("no agreement after everything healed: {}", self.describe());
    }

    /// Whether the members of the configuration are all up to date.
    fn settled(&mut self) -> bool {
        let leader = self
            .members
            .values()
            .filter_map(|m| m.running.as_ref())
            .find(|r| {
                r.driver.numbers().role == crate::Role::Leader
                    && r.applier.machine().state.applied.0 == r.driver.numbers().last_index
            });
        let Some(leader) = leader else { return false };
        let state = leader.applier.machine().state.clone();
        let mut members = state.voters.iter().chain(&state.learners);
        let idle = self.parcels.iter().all(|p| p.message.entries.is_empty());
        idle && members.all(|id| {
            let member = self.members.get(id).and_then(|m| m.running.as_ref());
            member.is_some_and(|r| r.applier.machine().state == state)
        })
    }

    fn describe(&self) -> String {
        let members = self.members.iter().map(|(id, m)| {
            let running = m.running.as_ref().map(|r| {
                let n = r.driver.numbers();
                let s = &r.applier.machine().state;
                (
                    n.role,
                    n.term,
                    n.leader,
                    n.committed,
                    n.last_index,
                    s.applied,
                    s.conf_state.clone(),
                )
            });
            format!("\n{id}: gone {} {running:?}", m.gone)
        });
        members.collect()
    }

    fn check_end(&self) {
        let mut seen = BTreeMap::new();
        for (index, request) in self.truth.iter().filter(|(_, request)| **request != 0) {
            assert_eq!(seen.insert(*request, *index), None, "applied twice");
        }
        for (request, index) in &self.acknowledged {
            assert_eq!(
                seen.get(request),
                Some(index),
                "acknowledged {request} is lost"
            );
        }
        for request in &self.failed {
            assert!(
                !seen.contains_key(request),
                "{request} failed for certain, and is there"
            );
        }
    }
}
