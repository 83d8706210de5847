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

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfChange, ConfState, EntryType, Message, MessageType},
};

use self::{
    machine::{Machine, MachineDisk, State, Wire},
    medium::Files,
    store::{Medium, Store},
};
use crate::{
    NodeConfig, ProposeError,
    apply::{Applied, Applier, ApplyTask},
    bootstrap::bootstrap_entries,
    driver::{Driver, Effects, Event},
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
        let recovered = recover(member.store.boot(&mut self.rng), &mut machine);
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

    fn deliver(&mut self) {
        let now = self.now;
        let (due, later) = mem::take(&mut self.parcels)
            .into_iter()
            .partition(|p| p.at <= now);
        self.parcels = later;
        let due: Vec<Parcel> = due;
        for parcel in due {
            let Parcel { message, body, .. } = parcel;
            let (from, to) = (message.from, message.to);
            let cut = self.cuts.contains(&(from.min(to), from.max(to)));
            let arrives = !cut && self.members.get(&to).is_some_and(|m| m.running.is_some());
            if body.is_some() {
                let to = MemberId(to);
                self.push(from, |r| {
                    r.events.push(Event::SnapshotReport { to, ok: arrives })
                });
            }
            if !arrives {
                if self.chance(200) {
                    self.push(from, |r| r.events.push(Event::Unreachable(MemberId(to))));
                }
                continue;
            }
            if let (Some(body), Some(member)) = (body, self.members.get(&to)) {
                member.machine.bodies.lock().insert(body.applied.0, body);
            }
            self.push(to, |r| r.messages.push(message));
        }
    }

    fn push(&mut self, id: u64, add: impl FnOnce(&mut Running)) {
        if let Some(running) = self.members.get_mut(&id).and_then(|m| m.running.as_mut()) {
            add(running);
        }
    }

    /// The wal thread, when its disk answers.
    fn disk(&mut self, id: u64) {
        let stalls = self.chance(self.weather.stall);
        let pause = self.rng.random_range(0..4) * MS;
        let stalled = self.rng.random_range(50..800) * MS;
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(running) = member.running.as_mut() else {
            return;
        };
        if now < running.wal_until || running.wal.is_empty() {
            return;
        }
        if stalls {
            running.wal_until = now + stalled;
            return;
        }
        running.wal_until = now + pause;
        let mut tasks = mem::take(&mut running.wal);
        let Ok(durable) = persist(&mut *member.store, &mut tasks) else {
            // A failed write ends the process.
            self.failed_writes += 1;
            self.crash(id);
            return;
        };
        let saved = durable
            .saved
            .into_iter()
            .map(|index| Event::SnapshotSaved { index });
        running.events.extend(saved);
        running
            .events
            .extend(durable.number.map(|number| Event::Persisted { number }));
        self.send(durable.messages);
    }

    /// The apply thread.
    fn apply(&mut self, id: u64) {
        let stalls = self.chance(self.weather.stall);
        let flush = self.chance(300);
        let stalled = self.rng.random_range(20..400) * MS;
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(running) = member.running.as_mut() else {
            return;
        };
        if now < running.apply_until {
            return;
        }
        if stalls {
            running.apply_until = now + stalled;
            return;
        }
        member.machine.flush.store(flush, Ordering::SeqCst);
        running.applier.add(running.apply.drain(..));
        let mut reports = Vec::new();
        if running.waiting {
            let Some(state) = running.conf_states.pop() else {
                return;
            };
            running.applier.conf_state(state);
            running.waiting = false;
        }
        while !running.waiting {
            let report = running
                .applier
                .run()
                .expect("only sound entries are committed");
            let Some(report) = report else { break };
            running.waiting = report.conf_change.is_some();
            reports.push(report);
        }
        let bodies = mem::take(&mut *running.wire.snapshots.lock());
        for (message, body) in bodies {
            self.snapshots_sent += 1;
            let at = now + self.rng.random_range(1..100) * MS;
            let body = Some(body);
            self.parcels.push(Parcel { at, message, body });
        }
        for report in reports {
            self.applied(id, report);
        }
    }

    fn applied(&mut self, id: u64, report: Applied<u64>) {
        let now = self.now;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(running) = member.running.as_mut() else {
            return;
        };
        if let Some((index, bytes)) = report.index {
            running.events.push(Event::Applied { index, bytes });
        }
        running
            .events
            .extend(report.conf_change.map(Event::ConfChange));
        let taken = report.taken.map(|t| Event::SnapshotTaken(t.map(Box::new)));
        running.events.extend(taken);
        for (request, index) in report.responses {
            if running.waiters.remove(&request) {
                let before = self.acknowledged.insert(request, index);
                assert_eq!(before, None, "acknowledged once");
                assert!(
                    !self.failed.contains(&request),
                    "{request} had failed for certain"
                );
            }
        }
        if member.machine.removed.lock().contains(&id) {
            running.removed_at.get_or_insert(now);
        }
        let log = &running.applier.machine().state.log;
        for (index, request) in log.range(running.checked + 1..) {
            let first = self.truth.entry(*index).or_insert(*request);
            assert_eq!(first, request, "member {id} at index {index}");
            running.checked = *index;
        }
    }

    /// The raft thread.
    fn turn(&mut self, id: u64) {
        let now = self.now;
        let Some(running) = self.members.get_mut(&id).and_then(|m| m.running.as_mut()) else {
            return;
        };
        let driver = &mut running.driver;
        for event in running.events.drain(..) {
            driver.event(now, event);
        }
        for message in running.messages.drain(..) {
            driver.message(now, message);
        }
        driver.propose(now, mem::take(&mut running.proposals));
        for ticket in running.reads.drain(..) {
            driver.read(now, ticket);
        }
        let effects = driver.settle(now);
        self.carry_out(id, effects);
        let Some(running) = self.members.get_mut(&id).and_then(|m| m.running.as_mut()) else {
            return;
        };
        if now >= running.next_tick {
            running.next_tick = now + 10 * MS;
            running.driver.tick(now);
            let effects = running.driver.settle(now);
            self.carry_out(id, effects);
        }
    }

    fn carry_out(&mut self, id: u64, effects: Effects) {
        assert_eq!(effects.fatal, None, "member {id}");
        let Some(running) = self.members.get_mut(&id).and_then(|m| m.running.as_mut()) else {
            return;
        };
        running.wal.extend(effects.wal);
        running.apply.extend(effects.apply);
        running.conf_states.extend(effects.conf_states);
        for (request, error) in effects.failed_proposals {
            if running.waiters.remove(&request) {
                assert_ne!(error, ProposeError::Stopped);
                self.failed.insert(request);
            }
        }
        for (ticket, index) in effects.confirmed_reads {
            let floor = self.reads.remove(&ticket).unwrap_or_default();
            assert!(
                index >= floor,
                "a read got {index} after {floor} was acknowledged"
            );
            self.reads_done += 1;
        }
        self.send(effects.send);
    }

    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            if self.chance(self.weather.lose) {
                continue;
            }
            // A forwarded proposal must not be doubled: it has no identity to raft.
            let single = message.kind() == Some(MessageType::Propose);
            let copies = 1 + u32::from(!single && self.chance(self.weather.double));
            for _ in 0..copies {
                let delay = self.rng.random_range(1..=self.weather.delay_ms_max);
                self.parcels.push(Parcel {
                    at: self.now + u32::try_from(delay).unwrap_or(1) * MS,
                    message: message.clone(),
                    body: None,
                });
            }
        }
    }

    /// A removed member's process ends after a while, when all that remain know for good. (An operator who stops it
    /// earlier may leave two members of which one never learns that the other is gone; so may etcd's.)
    fn leave(&mut self, id: u64) {
        let now = self.now;
        let Some(running) = self.members.get(&id).and_then(|m| m.running.as_ref()) else {
            return;
        };
        let mut remaining = running.applier.machine().state.voters.iter();
        let ready = running.removed_at.is_some_and(|at| now > at + 200 * MS)
            && remaining.all(|voter| {
                let member = self.members.get(voter);
                member.is_some_and(|m| m.machine.state.lock().removed.contains(&id))
            });
        if ready && let Some(member) = self.members.get_mut(&id) {
            member.running = None;
            member.gone = true;
        }
    }

    /// Clients and misfortune.
    fn disturb(&mut self) {
        let weather = self.weather.clone();
        let alive = self.alive();
        if let Some(&id) = alive.choose(&mut self.rng) {
            if self.chance(weather.propose) {
                self.propose(id);
            }
            if self.chance(weather.read) {
                self.next_id += 1;
                let ticket = self.next_id;
                let floor = self
                    .acknowledged
                    .values()
                    .max()
                    .copied()
                    .unwrap_or_default();
                self.reads.insert(ticket, floor);
                self.push(id, |r| r.reads.push(ticket));
            }
            if self.chance(weather.crash) {
                self.crash(id);
            }
            if self.chance(weather.change) && self.now > self.last_change + 100 * MS {
                self.change(id);
            }
        }
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            let down = self
                .members
                .get(&id)
                .is_some_and(|m| m.running.is_none() && !m.gone);
            if down && self.chance(5) {
                self.boot(id);
            }
        }
        if self.chance(weather.cut) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        match self.rng.random_range(0..3) {
            0 => self.cuts.clear(),
            1 => {
                // One member alone.
                let lonely = ids.choose(&mut self.rng).copied().unwrap_or_default();
                let others = ids.iter().filter(|id| **id != lonely);
                self.cuts
                    .extend(others.map(|id| (lonely.min(*id), lonely.max(*id))));
            }
            _ => {
                let pair: Vec<u64> = ids.choose_multiple(&mut self.rng, 2).copied().collect();
                if let [a, b] = pair[..] {
                    self.cuts.insert((a.min(b), a.max(b)));
                }
            }
        }
    }

    fn propose(&mut self, id: u64) {
        self.next_id += 1;
        let request = self.next_id;
        self.push(id, |running| {
            running.waiters.insert(request);
            running.proposals.push(Proposal {
                id: request,
                kind: EntryType::Normal,
                data: Bytes::copy_from_slice(&request.to_be_bytes()),
            });
        });
    }

    /// Proposes a random change; the state machines refuse what makes no sense.
    fn change(&mut self, at: u64) {
        self.last_change = self.now;
        self.next_id += 1;
        let request = self.next_id;
        self.changes.insert(request);
        let newest = self.members.keys().max().copied().unwrap_or_default();
        let ids: Vec<u64> = self.members.keys().copied().collect();
        let node_id = ids.choose(&mut self.rng).copied().unwrap_or_default();
        let (change_type, node_id, context) = match self.rng.random_range(0..5) {
            0 if newest < 7 => (3, newest + 1, &b"{}"[..]),
            1 if newest < 7 => (0, newest + 1, &b"{}"[..]),
            2 => (2, node_id, &b"{}"[..]),
            3 => (0, newest, &b"promote"[..]),
            _ => (1, node_id, &b""[..]),
        };
        let change = ConfChange {
            id: request,
            change_type,
            node_id,
            context: Bytes::copy_from_slice(context),
        };
        self.push(at, |running| {
            running.waiters.insert(request);
            running.proposals.push(Proposal {
                id: request,
                kind: EntryType::ConfChange,
                data: change.encode_gogo(),
            });
        });
        if !self.members.contains_key(&node_id) {
            // Its process starts at once, whether or not the change goes through.
            self.join(node_id, &[]);
        }
    }

    /// Everything works again; everybody must come to the same end.
    fn heal(&mut self) {
        self.cuts.clear();
        let calm = Weather {
            lose: 0,
            crash: 0,
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
