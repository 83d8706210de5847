//! What happens in a millisecond: messages arrive, and each member's three threads take their turns.

use std::{mem, sync::atomic::Ordering};

use rand::Rng;
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType},
};

use super::{MS, Parcel, Running, World};
use crate::{
    ProposeError,
    apply::Applied,
    driver::{Effects, Event},
    persist::persist,
};

impl World {
    pub(super) fn deliver(&mut self) {
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

    pub(super) fn push(&mut self, id: u64, add: impl FnOnce(&mut Running)) {
        if let Some(running) = self.members.get_mut(&id).and_then(|m| m.running.as_mut()) {
            add(running);
        }
    }

    /// The wal thread, when its disk answers.
    pub(super) fn disk(&mut self, id: u64) {
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
    pub(super) fn apply(&mut self, id: u64) {
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

    /// The raft task.
    pub(super) fn turn(&mut self, id: u64) {
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
                // This one alone leaves open what becomes of it.
                if error != ProposeError::LeaderLost {
                    self.failed.insert(request);
                }
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
}
