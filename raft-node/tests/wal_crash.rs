//! Random logs on a disk that stops, tears and fails: nothing acknowledged is lost, nothing is misread,
//! nothing panics, and after a crash the log always opens.

mod support;

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use raft_node::{
    disk::{
        Disk,
        fault::{FaultDisk, Plan},
    },
    wal::{self, Prepare, Wal, WalError, WalMetrics, WalOptions, WalSnapshot},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use support::{Found, METADATA, Model, Origin, dir, entry, snapshot, state};
use transport_core::raftpb::{Entry, HardState};

const SEEDS: u64 = 1500;
const LIVES: usize = 4;
const OPERATIONS: usize = 40;

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_misread() {
    let mut seen = Seen::default();
    for seed in std::env::var("SEED").map_or(0, |s| s.parse().unwrap())..SEEDS {
        let mut run = Run::new(seed);
        for life in 0..LIVES {
            if let Err(error) = run.live(&mut seen) {
                panic!("seed {seed}, life {life}: {error}");
            }
        }
    }
    // The seeds are worth their time only if they reach what they are for.
    println!("{seen:?}");
    assert!(seen.stopped > 1000 && seen.failed > 500, "{seen:?}");
    assert!(seen.repaired > 100 && seen.cuts > 1000, "{seen:?}");
    assert!(seen.snapshots > 1000 && seen.received > 300, "{seen:?}");
    assert!(
        seen.stopped_in_open > 50 && seen.unacknowledged > 300,
        "{seen:?}"
    );
}

#[derive(Debug, Default)]
struct Seen {
    stopped: u32,
    stopped_in_open: u32,
    failed: u32,
    repaired: u32,
    cuts: u32,
    snapshots: u32,
    received: u32,
    unacknowledged: u32,
}

struct Run {
    random: StdRng,
    disk: FaultDisk,
    options: WalOptions,
    model: Model,
    created: bool,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let options = WalOptions {
            segment_bytes: [1024, 2048, 4096, 16384][random.random_range(0..4)],
            segments_max: random.random_range(0..3),
            prepare: Prepare::Inline,
            metrics: WalMetrics::default(),
        };
        Run {
            disk: FaultDisk::new(seed),
            random,
            options,
            model: Model::default(),
            created: false,
        }
    }

    /// One process: start, work, end one way or another, crash of the machine or not.
    fn live(&mut self, seen: &mut Seen) -> Result<(), String> {
        let fault = self.random.random_range(1..200);
        let plan = match self.random.random_range(0..4) {
            0 => Plan::default(),
            1 => Plan {
                fail_at: Some((
                    fault,
                    [io::ErrorKind::StorageFull, io::ErrorKind::Other][fault as usize % 2],
                )),
                ..Plan::default()
            },
            _ => Plan {
                stop_at: Some(fault),
                ..Plan::default()
            },
        };
        self.disk.plan(plan);
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        match self.start(&disk, seen)? {
            Ok(wal) => self.work(wal, seen)?,
            Err(error) => {
                self.expected(&error)?;
                seen.stopped_in_open += u32::from(self.disk.is_stopped());
            }
        }
        seen.stopped += u32::from(self.disk.is_stopped());
        seen.failed += u32::from(
            plan.fail_at
                .is_some_and(|(at, _)| self.disk.operations() >= at),
        );
        // Without a crash the next process finds the page cache as this one left it.
        if self.disk.is_stopped() || self.random.random_bool(0.6) {
            self.disk = self.disk.crash();
        } else {
            self.disk.plan(Plan::default());
            let disk = self.disk.clone();
            disk.plan(Plan::default());
        }
        Ok(())
    }

    /// An error is right only when the disk has given one.
    fn expected(&self, error: &WalError) -> Result<(), String> {
        match error {
            WalError::Io { source, .. }
                if self.disk.is_stopped() || source.to_string().contains("injected") =>
            {
                Ok(())
            }
            WalError::Failed => Ok(()),
            other => Err(format!("unexpected error: {other}")),
        }
    }

    fn start(
        &mut self,
        disk: &Arc<dyn Disk>,
        seen: &mut Seen,
    ) -> Result<Result<Wal, WalError>, String> {
        let exists = match wal::exists(&**disk, dir()) {
            Ok(exists) => exists,
            Err(error) => return Ok(Err(error)),
        };
        if !exists {
            if self.created {
                return Err("the log is gone".into());
            }
            if let Err(source) = disk.create_dir(Path::new("member")) {
                return Ok(Err(WalError::Io {
                    action: "create",
                    path: "member".into(),
                    source,
                }));
            }
            let created = Wal::create(disk.clone(), dir(), METADATA, self.options.clone());
            self.created |= created.is_ok();
            return Ok(created);
        }
        let start = match wal::snapshots(&**disk, dir()) {
            Ok(mut snapshots) => snapshots.pop(),
            Err(error) => return Ok(Err(error)),
        };
        let verified = wal::verify(&**disk, dir(), start.clone()).map_err(|e| e.to_string())?;
        let (wal, replay) =
            match Wal::open(disk.clone(), dir(), start.clone(), self.options.clone()) {
                Ok(opened) => opened,
                Err(error) => return Ok(Err(error)),
            };
        self.created = true;
        if replay.metadata != METADATA || verified != replay.hard_state {
            return Err(format!("{replay:?} but verified {verified:?}"));
        }
        seen.repaired += u32::from(replay.repaired.is_some());
        let acknowledged = self.model.acknowledged;
        self.model.restart(&Found::of(start, &replay))?;
        seen.unacknowledged += u32::from(self.model.records.len() > acknowledged);
        Ok(Ok(wal))
    }

    fn work(&mut self, mut wal: Wal, seen: &mut Seen) -> Result<(), String> {
        // A leader sends again what did not arrive whole: the cluster's history does not change.
        if let Some(received) = self.model.half_received()
            && let Err(error) = self.receive(&mut wal, &received, seen)
        {
            return self.expected(&error);
        }
        for _ in 0..OPERATIONS {
            let done = match self.random.random_range(0..20) {
                0..12 => self.append(&mut wal),
                12..16 => wal.sync().map(|()| self.model.acknowledge()),
                16..18 => self.take_snapshot(&mut wal, seen),
                18 => self.receive_snapshot(&mut wal, seen),
                _ => {
                    let index = self.durable_snapshot_index();
                    wal.release_to(index)
                }
            };
            if let Err(error) = done {
                self.expected(&error)?;
                // Poisoned: no call may claim success any more.
                if wal.sync().is_ok() || wal.append(Some(&state(99, 1, 1)), &[]).is_ok() {
                    return Err("the log worked on after an error".into());
                }
                return Ok(());
            }
        }
        // The last call may have stopped the disk in work whose failing is no error.
        let names = FaultDisk::list(&self.disk, dir()).unwrap_or_default();
        let segments = names.iter().filter(|name| name.ends_with(".wal")).count();
        seen.cuts += segments.saturating_sub(1) as u32;
        if self.random.random_bool(0.3) {
            match wal.close() {
                Ok(()) => self.model.acknowledge(),
                Err(error) => self.expected(&error)?,
            }
        }
        Ok(())
    }

    /// Entries after the last one, or in place of uncommitted ones, with or without a hard state.
    fn append(&mut self, wal: &mut Wal) -> Result<(), WalError> {
        let now = self.model.found();
        let last = now.last_index();
        let mut term = now.last_term().max(1);
        let mut from = last + 1;
        let floor = now.hard_state.commit.max(now.start.index);
        if last > floor && self.random.random_bool(0.15) {
            from = self.random.random_range(floor + 1..=last);
            term += 1;
        }
        let count = self.random.random_range(0..5u64);
        let entries: Vec<_> = (from..from + count)
            .map(|index| entry(term, index, self.payload()))
            .collect();
        let top = entries.last().map_or(last, |e: &Entry| e.index);
        let hard_state = self.random.random_bool(0.6).then(|| HardState {
            term,
            vote: self.random.random_range(0..4),
            commit: self
                .random
                .random_range(now.hard_state.commit..=top.max(now.hard_state.commit)),
        });
        // Written down before the attempt: half of it may survive an error.
        self.model.append(hard_state.as_ref(), &entries);
        wal.append(hard_state.as_ref(), &entries)
    }

    fn payload(&mut self) -> Bytes {
        let len = match self.random.random_range(0..10) {
            0 => 0,
            1 => self.random.random_range(2000..6000),
            _ => self.random.random_range(1..400),
        };
        // Zeros look like space never written.
        let zeros = self.random.random_bool(0.2);
        let mut bytes = vec![0; len];
        if !zeros {
            self.random.fill(&mut bytes[..]);
        }
        bytes.into()
    }

    fn take_snapshot(&mut self, wal: &mut Wal, seen: &mut Seen) -> Result<(), WalError> {
        let now = self.model.found();
        let committed = now
            .entries
            .iter()
            .filter(|e| e.index <= now.hard_state.commit)
            .count();
        if committed == 0 {
            return Ok(());
        }
        let of = &now.entries[self.random.random_range(0..committed)];
        let taken = snapshot(of.index, of.term);
        self.model.save_snapshot(&taken, Origin::Taken);
        wal.save_snapshot(&taken)?;
        seen.snapshots += 1;
        self.sync_and_release(wal, taken.index)
    }

    /// From the leader: ahead of the log, or in place of a part of it that disagrees.
    fn receive_snapshot(&mut self, wal: &mut Wal, seen: &mut Seen) -> Result<(), WalError> {
        let now = self.model.found();
        let last = now.last_index();
        let index = self.random.random_range(now.hard_state.commit..=last + 50) + 1;
        let received = snapshot(index, now.last_term() + 1);
        self.receive(wal, &received, seen)
    }

    fn receive(
        &mut self,
        wal: &mut Wal,
        received: &WalSnapshot,
        seen: &mut Seen,
    ) -> Result<(), WalError> {
        let (term, index) = (received.term, received.index);
        let following = [entry(term, index + 1, self.payload())];
        let full = state(term, 0, index + 1);
        self.model.save_snapshot(received, Origin::Received);
        wal.save_snapshot(received)?;
        self.model.append(Some(&full), &following);
        wal.append(Some(&full), &following)?;
        seen.received += 1;
        self.sync_and_release(wal, index)
    }

    fn sync_and_release(&mut self, wal: &mut Wal, index: u64) -> Result<(), WalError> {
        wal.sync()?;
        self.model.acknowledge();
        wal.release_to(index)
    }

    fn durable_snapshot_index(&self) -> u64 {
        let mut durable = self.model.clone();
        durable.records.truncate(durable.acknowledged);
        durable.found().start.index
    }
}
