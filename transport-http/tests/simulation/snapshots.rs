//! The snapshots' part of the ledger: whose databases are there, and which ends of which sends were told.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::message::{Id, Stamp};

/// Longest of what may follow each other: a dial, five chunks and an answer, each overdue, and its body.
const REPORT_WITHIN_MS: u64 = 60_000;

/// A sender's life, and to whom.
type Flow = (Id, Id, u64);

#[derive(Default)]
pub struct Snapshots {
    /// Databases that are complete at their receiver, and whose message was not stepped yet.
    stored: HashSet<Stamp>,
    stepped: HashSet<Stamp>,
    /// Sends whose end is not known, by the time they began.
    open: BTreeMap<Stamp, u64>,
    tallies: HashMap<Flow, Tally>,
    /// How many ended well, and how many did not.
    pub ended: (u64, u64),
}

#[derive(Default)]
struct Tally {
    sent: u64,
    /// What raft was told: that it is finished, that it has failed.
    reported: (u64, u64),
    /// What the sender of each was told.
    ended: (u64, u64),
}

fn count(pair: &mut (u64, u64), good: bool) {
    *(if good { &mut pair.0 } else { &mut pair.1 }) += 1;
}

impl Snapshots {
    pub fn sent(&mut self, stamp: Stamp) {
        self.open.insert(stamp, stamp.sent_at);
        let flow = (stamp.from, stamp.to, stamp.life);
        self.tallies.entry(flow).or_default().sent += 1;
    }

    /// What is wrong with a database that is complete, if anything is.
    pub fn store(&mut self, stamp: Stamp, bytes: &[u8]) -> Option<&'static str> {
        if stamp.breaks_off() {
            Some("is complete, though its source broke off")
        } else if stamp.database() != bytes {
            Some("is not the database that was sent")
        } else if !self.stored.insert(stamp) {
            Some("was stored twice")
        } else {
            None
        }
    }

    /// What is wrong with a snapshot that is handed to raft, if anything is.
    pub fn step(&mut self, stamp: Stamp) -> Option<&'static str> {
        self.stepped.insert(stamp);
        let has_database = self.stored.remove(&stamp);
        (!has_database).then_some("was stepped without its database")
    }

    /// What is wrong with a report to raft, if anything is.
    pub fn reported(&mut self, flow: Flow, finished: bool) -> Option<&'static str> {
        let tally = self.tallies.entry(flow).or_default();
        count(&mut tally.reported, finished);
        (tally.reported.0 + tally.reported.1 > tally.sent).then_some("was reported too often")
    }

    /// What is wrong with the end that the sender of a snapshot was told, if anything is.
    pub fn ended(&mut self, stamp: Stamp, accepted: bool) -> Option<&'static str> {
        count(&mut self.ended, accepted);
        let flow = (stamp.from, stamp.to, stamp.life);
        count(&mut self.tallies.entry(flow).or_default().ended, accepted);
        if self.open.remove(&stamp).is_none() {
            Some("ended twice")
        } else if accepted && !self.stepped.contains(&stamp) {
            Some("was accepted, and nobody has stepped it")
        } else {
            None
        }
    }

    /// Of a life that ended in order, to whom not every send was reported as it ended.
    pub fn unequal(&self, from: Id, life: u64) -> Vec<Id> {
        let of = self.tallies.iter().filter(|((whose, _, which), tally)| {
            let all = tally.ended.0 + tally.ended.1;
            (*whose, *which) == (from, life) && (tally.reported != tally.ended || all != tally.sent)
        });
        of.map(|((_, to, _), _)| *to).collect()
    }

    /// The sender was killed, and tells nobody anything any more.
    pub fn forget(&mut self, from: Id) {
        self.open.retain(|stamp, _| stamp.from != from);
    }

    /// Sends that nobody has told the end of for too long.
    pub fn overdue(&mut self, now: u64) -> Vec<Stamp> {
        let late = self
            .open
            .iter()
            .filter(|(_, since)| now > *since + REPORT_WITHIN_MS);
        let late: Vec<Stamp> = late.map(|(stamp, _)| *stamp).collect();
        self.open.retain(|stamp, _| !late.contains(stamp));
        late
    }
}

/// The checks themselves: each breach is seen, and nothing else is taken for one.
mod tests {
    use super::{
        super::{
            ledger::Ledger,
            message::{Class, Way},
        },
        *,
    };

    fn sent(ledger: &mut Ledger) -> Stamp {
        ledger.send(0, 1, 2, 1, Way::Snapshot, Class::Snapshot)
    }

    fn breaches(run: impl FnOnce(&mut Ledger, Stamp)) -> usize {
        let mut ledger = Ledger::default();
        let stamp = sent(&mut ledger);
        run(&mut ledger, stamp);
        ledger.breaches.len()
    }

    #[test]
    fn what_arrives_with_its_database_and_is_reported_once_is_fine() {
        let count = breaches(|ledger, stamp| {
            ledger.begin(0, 2, &stamp.message()).unwrap();
            ledger.store(0, 2, &stamp, &stamp.database());
            ledger.arrive(0, 2, &stamp.message());
            ledger.reported(0, 1, 2, 1, true);
            ledger.ended(0, stamp, true);
            let failed = sent(ledger);
            ledger.reported(0, 1, 2, 1, false);
            ledger.ended(0, failed, false);
            ledger.stopped(0, 1, 1);
            ledger.check_owed(REPORT_WITHIN_MS + 1, 1000);
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn a_wrong_database_and_one_in_the_wrong_place_are_caught() {
        let stored = |at, bytes: fn(&Stamp) -> Vec<u8>| {
            breaches(|ledger, stamp| {
                let begun = ledger.begin(0, at, &stamp.message());
                ledger.store(0, at, &begun.unwrap(), &bytes(&stamp));
            })
        };
        assert_eq!(stored(2, |stamp| stamp.database().to_vec()), 0);
        assert_eq!(stored(3, |stamp| stamp.database().to_vec()), 1);
        assert_eq!(stored(2, |stamp| [&stamp.database()[..], b"x"].concat()), 1);
        let broken = breaches(|ledger, mut stamp| {
            while !stamp.breaks_off() {
                stamp = sent(ledger);
            }
            ledger.store(0, 2, &stamp, &stamp.database());
        });
        assert_eq!(broken, 1);
    }

    #[test]
    fn a_step_without_the_database_is_caught() {
        let count = breaches(|ledger, stamp| ledger.arrive(0, 2, &stamp.message()));
        assert_eq!(count, 1);
    }

    #[test]
    fn too_many_and_too_few_reports_are_caught() {
        let twice = breaches(|ledger, _| {
            ledger.reported(0, 1, 2, 1, false);
            ledger.reported(0, 1, 2, 1, false);
        });
        let unfounded = breaches(|ledger, stamp| ledger.ended(0, stamp, true));
        let never = breaches(|ledger, _| ledger.check_owed(REPORT_WITHIN_MS + 1, 1000));
        let unequal = breaches(|ledger, stamp| {
            ledger.reported(0, 1, 2, 1, true);
            ledger.ended(0, stamp, false);
            ledger.stopped(0, 1, 1);
        });
        let killed = breaches(|ledger, _| {
            ledger.killed(1);
            ledger.check_owed(REPORT_WITHIN_MS + 1, 1000);
        });
        assert_eq!((twice, unfounded, never, unequal, killed), (1, 1, 1, 1, 0));
    }
}
