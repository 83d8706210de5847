//! Clients and misfortune.

use bytes::Bytes;
use rand::{Rng, seq::IndexedRandom};
use transport_core::raftpb::{ConfChange, EntryType};

use super::{MS, World};
use crate::proposals::Proposal;

impl World {
    /// A removed member's process ends after a while, when all that remain know for good. (An operator who stops it
    /// earlier may leave two members of which one never learns that the other is gone; so may etcd's.)
    pub(super) fn leave(&mut self, id: u64) {
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
    pub(super) fn disturb(&mut self) {
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
            if self.chance(weather.stop) {
                self.stop(id);
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
                room: None,
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
                room: None,
            });
        });
        if !self.members.contains_key(&node_id) {
            // Its process starts at once, whether or not the change goes through.
            self.join(node_id, &[]);
        }
    }
}
