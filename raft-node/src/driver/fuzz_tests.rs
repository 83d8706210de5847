//! A live driver under arbitrary well-formed messages: whatever the rules admit, raft survives.
//!
//! Messages are random, but near the driver's own state, so that most get past the rules: terms around its
//! term, positions around its log and commit index, terms of entries as it knows them. Disk and state
//! machine keep up at random.

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use transport_core::{
    ClusterId,
    raftpb::{Entry, EntryType as EntryKind, MessageType, SnapshotMetadata},
};

use super::*;
use crate::{
    admit,
    apply::Applier,
    persist::persist,
    proposals::Proposal,
    recovery::{Initial, recover},
    sim::{
        machine::{Machine, MachineDisk, Wire},
        store::Store,
    },
};

const MEMBERS: u64 = 5;

struct Fuzz {
    rng: SmallRng,
    now: Duration,
    driver: Driver,
    applier: Applier<Machine, Wire>,
    machine: MachineDisk,
    store: Store,
    wal: Vec<WalTask>,
    waiting: bool,
    conf_states: Vec<ConfState>,
    admitted: usize,
    roles: [usize; 4],
}

impl Fuzz {
    fn new(seed: u64) -> Self {
        let machine = MachineDisk {
            any_snapshot: true,
            ..MachineDisk::default()
        };
        let mut opened = Machine::open(machine.clone());
        let members: Vec<_> = (1..=3).map(|id| (MemberId(id), Bytes::new())).collect();
        let (entries, state) = crate::bootstrap::bootstrap_entries(&members);
        let mut store = Store::default();
        store.fill(&entries, &state);
        let recovered = recover(store.contents(), &mut opened);
        let Initial { log, applied } = recovered.expect("a new log");
        let metrics = Arc::new(Metrics::register(&metrics::NoopRecorder));
        let config = NodeConfig {
            tick: Duration::from_millis(10),
            snapshot_count: 30,
            catch_up_entries: 10,
            seed: Some(seed),
            ..NodeConfig::new(MemberId(1), ClusterId(1), Arc::new(metrics::NoopRecorder))
        };
        let driver = Driver::new(
            config,
            log,
            applied,
            Arc::new(|id| id == MemberId(9)),
            metrics,
        );
        Fuzz {
            rng: SmallRng::seed_from_u64(seed),
            now: Duration::ZERO,
            driver: driver.expect("a valid configuration"),
            applier: Applier::new(opened, Arc::default()),
            machine,
            store,
            wal: Vec::new(),
            waiting: false,
            conf_states: Vec::new(),
            admitted: 0,
            roles: [0; 4],
        }
    }

    fn near(&mut self, center: u64) -> u64 {
        match self.rng.random_range(0..20) {
            0 => self.rng.random(),
            1 => 0,
            2 => center.saturating_add(1 << 61),
            _ => (center + self.rng.random_range(0..4)).saturating_sub(self.rng.random_range(0..4)),
        }
    }

    /// A position near the end, the commit index or the beginning of the log.
    fn position(&mut self) -> u64 {
        let log = &self.driver.raw.raft.raft_log;
        let centers = [
            log.last_index(),
            log.committed,
            log.applied,
            log.first_index(),
            log.persisted,
        ];
        let center = centers[self.rng.random_range(0..centers.len())];
        self.near(center)
    }

    fn term_at(&mut self, index: u64) -> u64 {
        let known = self.driver.raw.raft.raft_log.term(index).unwrap_or(0);
        if self.rng.random_range(0..10) > 0 {
            known
        } else {
            self.near(known)
        }
    }

    fn entries(&mut self, mut index: u64, mut term: u64, max_term: u64) -> Vec<Entry> {
        let count = self.rng.random_range(0..5);
        (0..count)
            .map(|_| {
                index = index.wrapping_add(1);
                let known = self.term_at(index);
                let roll = self.rng.random_range(0..30);
                term = match roll {
                    0 => self.near(term),
                    1..=15 => known.max(term).max(1).min(max_term.max(1)),
                    _ => max_term,
                };
                let (entry_type, data) = self.payload();
                Entry {
                    entry_type,
                    term,
                    index: if self.rng.random_range(0..100) == 0 {
                        self.near(index)
                    } else {
                        index
                    },
                    data,
                }
            })
            .collect()
    }

    fn payload(&mut self) -> (i32, Bytes) {
        match self.rng.random_range(0..40) {
            0 => (self.rng.random_range(2..9), Bytes::new()),
            1 => (1, Bytes::from(vec![self.rng.random(), self.rng.random()])),
            2..=5 => {
                let context: &[u8] = [&b"promote"[..], b"{}"][self.rng.random_range(0..2)];
                let change = ConfChange {
                    id: 0,
                    change_type: self.rng.random_range(0..4),
                    node_id: self.rng.random_range(0..=MEMBERS),
                    context: Bytes::copy_from_slice(context),
                };
                (1, change.encode_gogo())
            }
            _ => (0, Bytes::from_static(b"x")),
        }
    }

    fn ids(&mut self, max: usize) -> Vec<u64> {
        let count = self.rng.random_range(0..=max);
        (0..count)
            .map(|_| self.rng.random_range(0..=MEMBERS))
            .collect()
    }

    fn snapshot(&mut self, max_term: u64) -> Snapshot {
        let index = self.position();
        let mut state = ConfState {
            voters: self.ids(3),
            learners: self.ids(1),
            ..ConfState::default()
        };
        match self.rng.random_range(0..10) {
            0 => state.auto_leave = true,
            1 => state.voters_outgoing = self.ids(1),
            2..=6 => {
                state.voters = (1..=self.rng.random_range(1..4)).collect();
                state.learners = Vec::new();
            }
            _ => {}
        }
        let term = if self.rng.random() {
            self.term_at(index)
        } else {
            max_term
        };
        Snapshot {
            data: Bytes::new(),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(state),
                index,
                term,
            }),
        }
    }

    fn message(&mut self) -> Message {
        let numbers = self.driver.numbers();
        let kind = self.rng.random_range(0..26);
        let without = kind == MessageType::Propose as i32 || kind == MessageType::ReadIndex as i32;
        let term = match self.rng.random_range(0..10) {
            _ if without => 0,
            0 => self.near(numbers.term),
            1 => numbers.term + 1,
            _ => numbers.term,
        };
        let index = self.position();
        let log_term = self.term_at(index);
        let entries = self.entries(index, log_term, term);
        let leader = numbers.leader;
        let from = if leader > 1 && self.rng.random() {
            leader
        } else {
            self.rng.random_range(0..10)
        };
        let snapshot = (kind == MessageType::Snapshot as i32 || self.rng.random_range(0..50) == 0)
            .then(|| self.snapshot(term).into());
        let forced = self.rng.random_range(0..30) == 0;
        Message {
            msg_type: kind,
            to: if self.rng.random_range(0..100) == 0 {
                2
            } else {
                1
            },
            from,
            term,
            log_term,
            index,
            entries,
            commit: self.position(),
            snapshot,
            reject: self.rng.random_range(0..3) == 0,
            reject_hint: self.position(),
            context: Bytes::from_static(if forced { b"CampaignTransfer" } else { b"" }),
        }
    }

    fn receive(&mut self) {
        let message = self.message();
        self.admitted += usize::from(self.driver.admit(&message).is_ok());
        self.driver.message(self.now, message);
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..=79 => self.receive(),
            80..=84 => {
                self.now += Duration::from_millis(10);
                self.driver.tick(self.now);
            }
            85..=89 => self.write(),
            90..=95 => self.apply(),
            96 if self.rng.random() => self.driver.read(self.now, 1),
            96 => self.silence(),
            97 => {
                let (kind, data) = self.payload();
                // Local changes are encoded by the node itself.
                let readable = admit::parse_conf_change(&data).is_some();
                let kind = if kind == 1 && readable {
                    EntryKind::ConfChange
                } else {
                    EntryKind::Normal
                };
                let proposal = Proposal {
                    id: 1,
                    kind,
                    data,
                    room: None,
                };
                self.driver.propose(self.now, vec![proposal]);
            }
            98 => {
                let to = MemberId(self.rng.random_range(0..=MEMBERS));
                let event = match self.rng.random_range(0..3) {
                    0 => Event::Unreachable(to),
                    1 => Event::SnapshotReport {
                        to,
                        ok: self.rng.random(),
                    },
                    _ => Event::AdvanceElection { ticks: 5 },
                };
                self.driver.event(self.now, event);
            }
            _ => {
                let (reply, _) = oneshot::channel();
                let to = MemberId(self.rng.random_range(0..=MEMBERS));
                self.driver.event(self.now, Event::Transfer { to, reply });
            }
        }
        if self.rng.random() {
            self.settle();
        }
    }

    /// Long enough for an election to start.
    fn silence(&mut self) {
        for _ in 0..25 {
            self.settle();
            self.write();
            self.apply();
            self.now += Duration::from_millis(10);
            self.driver.tick(self.now);
        }
    }

    fn settle(&mut self) {
        let effects = self.driver.settle(self.now);
        assert_eq!(effects.fatal, None);
        self.wal.extend(effects.wal);
        self.applier.add(effects.apply);
        self.conf_states.extend(effects.conf_states);
        self.roles[self.driver.numbers().role as usize] += 1;
    }

    fn write(&mut self) {
        let durable = persist(&mut self.store, &mut self.wal).expect("memory does not fail");
        let mut events: Vec<_> = durable
            .number
            .map(|number| Event::Persisted { number })
            .into_iter()
            .collect();
        events.extend(
            durable
                .saved
                .into_iter()
                .map(|index| Event::SnapshotSaved { index }),
        );
        for event in events {
            self.driver.event(self.now, event);
        }
    }

    fn apply(&mut self) {
        if self.waiting {
            let Some(state) = self.conf_states.pop() else {
                return;
            };
            self.applier.conf_state(state);
            self.waiting = false;
        }
        while !self.waiting {
            let flush = self.rng.random();
            self.machine
                .flush
                .store(flush, std::sync::atomic::Ordering::SeqCst);
            let report = self
                .applier
                .run()
                .expect("only sound entries are committed");
            let Some(report) = report else { return };
            self.waiting = report.conf_change.is_some();
            let mut events = Vec::new();
            events.extend(
                report
                    .index
                    .map(|(index, bytes)| Event::Applied { index, bytes }),
            );
            events.extend(report.conf_change.map(Event::ConfChange));
            events.extend(report.taken.map(|t| Event::SnapshotTaken(t.map(Box::new))));
            events.extend(
                report
                    .unsent
                    .into_iter()
                    .map(|to| Event::SnapshotReport { to, ok: false }),
            );
            for event in events {
                self.driver.event(self.now, event);
            }
        }
    }
}

#[test]
fn no_admitted_message_ends_the_driver() {
    let (mut messages, mut admitted, mut roles) = (0, 0, [0; 4]);
    for seed in 0..1000 * crate::sim::seeds_factor() {
        let run = std::panic::catch_unwind(|| {
            let mut fuzz = Fuzz::new(seed);
            for _ in 0..500 {
                fuzz.step();
            }
            fuzz
        });
        let fuzz = run.unwrap_or_else(|_| panic!("seed {seed}"));
        messages += 400;
        admitted += fuzz.admitted;
        (0..4).for_each(|role| roles[role] += fuzz.roles[role]);
    }
    println!("about {messages} messages, {admitted} admitted, turns per role {roles:?}");
    assert!(messages >= 400_000 && admitted > 50_000);
    assert!(roles.iter().all(|turns| *turns > 1000), "{roles:?}");
}
