//! The lives of one seed, and what must hold at the beginning of each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use kvstore::{Response, pb::etcdserverpb::RangeRequest};
use node_bin::member::replica::Answer;
use raft_node::{ProposeError, disk::fault::FaultDisk};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::runtime::Builder;

use crate::{
    disk::{Area, Blow, Fate, Kind, WatchedDisk},
    member::{Member, Pace, Settings},
    model::{Ledger, Model, hash},
    workload::{Workload, revision},
};

/// Lives with a fate; one without follows.
const LIVES: usize = 5;
/// What no life comes near unless somebody waits for ever.
const STUCK: Duration = Duration::from_secs(60);

/// What the seeds have reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub lives: u64,
    pub acknowledged: u64,
    /// Requests without an answer, by what became of them.
    pub open_survived: u64,
    pub open_vanished: u64,
    pub cuts: u64,
    pub snapshots: u64,
    pub released: u64,
    pub areas: [AreaSeen; 3],
    pub struck_at_start: u64,
    pub killed: u64,
    pub power_lost: u64,
    pub stopped_in_order: u64,
    /// Starts at which the log had what the store had not.
    pub replayed: u64,
    pub compactions: u64,
}

/// What one area of the disk has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct AreaSeen {
    pub operations: u64,
    pub stops: u64,
    pub fails: u64,
    pub torn_writes: u64,
    pub half_syncs: u64,
    pub half_names: u64,
}

impl Seen {
    pub fn add(&mut self, other: Seen) {
        let Seen { areas, .. } = other;
        for (to, from) in self.areas.iter_mut().zip(areas) {
            to.operations += from.operations;
            to.stops += from.stops;
            to.fails += from.fails;
            to.torn_writes += from.torn_writes;
            to.half_syncs += from.half_syncs;
            to.half_names += from.half_names;
        }
        self.lives += other.lives;
        self.acknowledged += other.acknowledged;
        self.open_survived += other.open_survived;
        self.open_vanished += other.open_vanished;
        self.cuts += other.cuts;
        self.snapshots += other.snapshots;
        self.released += other.released;
        self.struck_at_start += other.struck_at_start;
        self.killed += other.killed;
        self.power_lost += other.power_lost;
        self.stopped_in_order += other.stopped_in_order;
        self.replayed += other.replayed;
        self.compactions += other.compactions;
    }

    fn disk(&mut self, disk: &WatchedDisk) {
        let events = disk.events();
        self.cuts += events.cuts;
        self.snapshots += events.snapshots;
        self.released += events.released;
        for (area, operations) in self.areas.iter_mut().zip(events.operations) {
            area.operations += operations;
        }
        if let Some(struck) = disk.struck() {
            let area = &mut self.areas[struck.area as usize];
            match struck.blow {
                Blow::Stop => area.stops += 1,
                Blow::Fail(_) => area.fails += 1,
            }
            match struck.kind {
                Kind::Write => area.torn_writes += 1,
                Kind::Sync | Kind::SyncDir => area.half_syncs += 1,
                Kind::Name | Kind::Length => area.half_names += 1,
            }
        }
    }
}

/// How a request ended for the one who made it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Answered, with the revision of the answer where there is one.
    Acknowledged(Option<i64>),
    /// Certainly not carried out.
    Refused,
    /// Nobody knows.
    Open,
}

/// A member under one seed.
pub struct Seed {
    random: StdRng,
    settings: Settings,
    disk: FaultDisk,
    ledger: Arc<Ledger>,
    model: Model,
    workload: Workload,
    outcomes: HashMap<u64, Outcome>,
    /// Those of lives whose successor has not been looked at.
    unchecked: Vec<u64>,
    /// What the store called durable when its last life ended.
    durable: u64,
    /// For the report of an error.
    doing: &'static str,
}

impl Seed {
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Seed {
            settings: Settings::of(&mut random),
            random,
            disk: FaultDisk::new(seed),
            ledger: Arc::default(),
            model: Model::new(),
            workload: Workload::new(),
            outcomes: HashMap::new(),
            unchecked: Vec::new(),
            durable: 0,
            doing: "nothing",
        }
    }

    /// All lives, each on what the one before has left.
    pub fn run(mut self, seen: &mut Seen) -> Result<(), String> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let outcome = (0..=LIVES).try_for_each(|life| {
            let fate = (life < LIVES).then(|| self.fate()).flatten();
            let lived = runtime
                .block_on(async { tokio::time::timeout(STUCK, self.live(fate, seen)).await });
            let lived = lived.unwrap_or_else(|_| Err("somebody waits for ever".into()));
            lived.map_err(|error| {
                let (doing, settings) = (self.doing, self.settings);
                format!("life {life}, {doing}, {fate:?}, {settings:?}: {error}")
            })
        });
        // Not waited for: what is stuck must not keep its report back.
        runtime.shutdown_background();
        outcome
    }

    fn fate(&mut self) -> Option<Fate> {
        let random = &mut self.random;
        let (area, most) = match random.random_range(0..10) {
            0 => return None,
            1..4 => (Some(Area::Wal), 160),
            4..6 => (Some(Area::Snap), 20),
            6..9 => (Some(Area::Store), 160),
            _ => (None, 300),
        };
        // Half of them early.
        let most = if random.random_bool(0.5) {
            most
        } else {
            most / 4
        };
        let blow = match random.random_range(0..5) {
            0 => Blow::Fail(std::io::ErrorKind::StorageFull),
            1 => Blow::Fail(std::io::ErrorKind::Other),
            _ => Blow::Stop,
        };
        Some(Fate {
            area,
            nth: random.random_range(1..=most),
            blow,
        })
    }

    /// One process: start, look at what is there, work, end in one way or another.
    async fn live(&mut self, fate: Option<Fate>, seen: &mut Seen) -> Result<(), String> {
        let disk = WatchedDisk::new(self.disk.clone(), fate);
        let pace = Pace::of(&mut self.random);
        seen.lives += 1;
        self.doing = "starting";
        match Member::start(
            &disk,
            &self.settings,
            &pace,
            self.random.random(),
            self.ledger.clone(),
        )
        .await
        {
            Ok(member) => {
                let lived = self.look_and_work(&disk, &member, seen).await;
                let failure = member.failure();
                lived.map_err(|error| format!("{error}; the member says {failure:?}"))?;
                self.end(&disk, member, seen).await?;
            }
            Err(error) => {
                self.excused(&disk, &error)?;
                seen.struck_at_start += 1;
                self.disk = self.leave(&disk, seen);
            }
        }
        seen.disk(&disk);
        self.ledger.broken().map_or(Ok(()), Err)
    }

    /// An error is right only when the disk has given one.
    fn excused(&self, disk: &WatchedDisk, error: &dyn std::fmt::Display) -> Result<(), String> {
        match disk.struck() {
            Some(_) => Ok(()),
            None => Err(format!("without any fault: {error}")),
        }
    }

    /// What the next process finds.
    fn leave(&mut self, disk: &WatchedDisk, seen: &mut Seen) -> FaultDisk {
        let stopped = disk
            .struck()
            .is_some_and(|struck| struck.blow == Blow::Stop);
        if stopped || self.random.random_bool(0.5) {
            seen.power_lost += 1;
            disk.lose_power()
        } else {
            seen.killed += 1;
            disk.kill()
        }
    }

    async fn end(
        &mut self,
        disk: &WatchedDisk,
        member: Member,
        seen: &mut Seen,
    ) -> Result<(), String> {
        self.doing = "ending";
        if disk.struck().is_none() && self.random.random_bool(0.2) {
            let durable = member.durable.clone();
            member.stop().await;
            self.durable = durable.load(std::sync::atomic::Ordering::Acquire);
            self.disk = disk.kill();
            seen.stopped_in_order += 1;
            return Ok(());
        }
        // Before the end, so that it does not count what never happened.
        self.durable = member.durable();
        self.disk = self.leave(disk, seen);
        member.stop().await;
        Ok(())
    }

    async fn look_and_work(
        &mut self,
        disk: &WatchedDisk,
        member: &Member,
        seen: &mut Seen,
    ) -> Result<(), String> {
        self.doing = "waiting for the log to be applied";
        if let Err(error) = member.node.read_index().await {
            seen.struck_at_start += 1;
            return self.excused(disk, &error);
        }
        self.doing = "looking";
        self.look(member, seen)?;
        self.doing = "working";
        self.work(disk, member, seen).await
    }

    /// Everything that was acknowledged is there, and nothing that was not asked for.
    fn look(&mut self, member: &Member, seen: &mut Seen) -> Result<(), String> {
        self.ledger.broken().map_or(Ok(()), Err)?;
        if member.opened_at < self.durable {
            return Err(format!(
                "the store is at entry {}, {} was durable",
                member.opened_at, self.durable
            ));
        }
        let (applied, last) = (member.node.status().applied, self.ledger.last());
        if applied != last {
            return Err(format!(
                "entries up to {applied} are applied, of {last} that were"
            ));
        }
        // One entry is the new leader's own.
        seen.replayed += u64::from(member.opened_at + 1 < applied);
        self.model.follow(&self.ledger)?;
        self.same_state(member)?;
        for id in std::mem::take(&mut self.unchecked) {
            self.same_outcome(id, member, seen)
                .map_err(|error| format!("request {id}: {error}"))?;
        }
        Ok(())
    }

    fn same_state(&self, member: &Member) -> Result<(), String> {
        let (reader, model) = (&member.reader, &self.model);
        let revisions = (reader.revision(), reader.compact_revision());
        if revisions != (model.revision(), model.compacted) {
            let expected = (model.revision(), model.compacted);
            return Err(format!(
                "present and compact revision are {revisions:?} instead of {expected:?}"
            ));
        }
        let all = RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            ..RangeRequest::default()
        };
        let found = reader.range(&all).map_err(|error| error.to_string())?;
        if !found.kvs.iter().eq(model.rows()) {
            let expected: Vec<_> = model.rows().collect();
            return Err(format!(
                "the rows are {:?} instead of {expected:?}",
                found.kvs
            ));
        }
        // At the compact revision itself a checksum depends on how far compaction has come.
        for revision in [model.revision(), (model.revision() + model.compacted) / 2] {
            if revision > model.compacted && revision > 0 {
                let (ours, expected) = (hash(reader, revision)?, model.hash(revision)?);
                if ours != expected {
                    return Err(format!(
                        "HashKV of {revision} is {ours:?} instead of {expected:?}"
                    ));
                }
            }
        }
        if reader.members().len() != 1 {
            return Err(format!("the members are {:?}", reader.members()));
        }
        Ok(())
    }

    fn same_outcome(&self, id: u64, member: &Member, seen: &mut Seen) -> Result<(), String> {
        let done = self.model.done(id);
        match (self.outcomes[&id], done) {
            (Outcome::Acknowledged(_), None) => Err("it was acknowledged and is gone".into()),
            (Outcome::Refused, Some(_)) => Err("it was refused and is there".into()),
            (Outcome::Acknowledged(Some(told)), Some(done)) if told != done.revision => {
                Err(format!(
                    "it was answered with revision {told} and is at {}",
                    done.revision
                ))
            }
            (Outcome::Acknowledged(_), Some(done)) => {
                let written = done.writes.iter().try_for_each(|(key, value)| {
                    self.is_written(member, key, value.as_ref(), done.revision)
                });
                written.map_err(|error| format!("revision {}: {error}", done.revision))
            }
            (Outcome::Refused, None) => Ok(()),
            (Outcome::Open, done) => {
                seen.open_survived += u64::from(done.is_some());
                seen.open_vanished += u64::from(done.is_none());
                Ok(())
            }
        }
    }

    /// Whether `key` has that value, or none, as of `revision`.
    fn is_written(
        &self,
        member: &Member,
        key: &Bytes,
        value: Option<&Bytes>,
        revision: i64,
    ) -> Result<(), String> {
        if revision < self.model.compacted {
            return Ok(());
        }
        let request = RangeRequest {
            key: key.clone(),
            revision,
            ..RangeRequest::default()
        };
        let found = member
            .reader
            .range(&request)
            .map_err(|error| error.to_string())?;
        let found = found.kvs.first().map(|row| (row.mod_revision, &row.value));
        if found != value.map(|value| (revision, value)) {
            return Err(format!("{key:?} is {found:?} instead of {value:?}"));
        }
        Ok(())
    }

    /// Requests, some at a time, until there were enough, or until the member cannot go on.
    async fn work(
        &mut self,
        disk: &WatchedDisk,
        member: &Member,
        seen: &mut Seen,
    ) -> Result<(), String> {
        let requests = self.random.random_range(0..60);
        let at_a_time = self.random.random_range(1..10);
        // The process may end with requests under way.
        let answers_max = requests - self.random.random_range(0..=requests.min(at_a_time));
        let mut under_way = FuturesUnordered::new();
        let (mut made, mut answers) = (0, 0);
        while answers < answers_max {
            while made < requests && under_way.len() < at_a_time {
                let (id, data) = self
                    .workload
                    .next(&mut self.random, member.reader.revision());
                self.outcomes.insert(id, Outcome::Open);
                self.unchecked.push(id);
                made += 1;
                under_way.push(async move { (id, member.node.propose(id, data).await) });
            }
            let Some((id, answer)) = under_way.next().await else {
                break;
            };
            answers += 1;
            let outcome = match answer {
                Ok(Answer::Applied(outcome)) => {
                    seen.acknowledged += 1;
                    let compacted = matches!(outcome, Ok(Response::Compaction(_)));
                    seen.compactions += u64::from(compacted);
                    Outcome::Acknowledged(outcome.ok().as_ref().and_then(revision))
                }
                Ok(other) => return Err(format!("request {id} was answered with {other:?}")),
                Err(error) => {
                    self.excused(disk, &error)?;
                    match error {
                        ProposeError::Stopped => Outcome::Open,
                        _ => Outcome::Refused,
                    }
                }
            };
            self.outcomes.insert(id, outcome);
            if let Some(failure) = member.failure() {
                self.excused(disk, &failure)?;
                break;
            }
        }
        Ok(())
    }
}
