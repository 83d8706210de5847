//! What was sent and what arrived, and the promises of the transport that are checked with each arrival.
//!
//! Kept outside of the members, so that it outlives their restarts. A breach is written down instead of being a
//! panic: in a task of the transport a panic would end that task alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use transport_core::raftpb::Message;

use super::{
    message::{Class, Id, Stamp, Way},
    snapshots::Snapshots,
};

type Flow = (Id, Id, Way, Class);

#[derive(Default)]
pub struct Ledger {
    /// The newest message sent on each flow: life and number.
    sent: HashMap<Flow, (u64, u64)>,
    /// The newest message that arrived on each flow.
    arrived: HashMap<Flow, (u64, u64)>,
    /// Those that arrived by a POST of their own, which keep no order.
    posted: HashSet<(Id, Id, Class, u64, u64)>,
    pub snapshots: Snapshots,
    /// Links that have to carry a message sent at this time or later.
    owed: BTreeMap<(Id, Id), u64>,
    /// How long each of them took, in milliseconds.
    pub recoveries: Vec<u64>,
    pub breaches: Vec<String>,
    /// Arrivals by way and class.
    pub arrivals: BTreeMap<(Way, Class), u64>,
    trace: DefaultHasher,
}

impl Ledger {
    /// Gives the next message of a flow its stamp.
    pub fn send(&mut self, now: u64, from: Id, to: Id, life: u64, way: Way, class: Class) -> Stamp {
        let newest = self.sent.entry((from, to, way, class)).or_default();
        *newest = match *newest {
            (of_life, number) if of_life == life => (life, number + 1),
            _ => (life, 1),
        };
        let stamp = Stamp {
            from,
            to,
            life,
            way,
            class,
            number: newest.1,
            sent_at: now,
        };
        if class == Class::Snapshot {
            self.snapshots.sent(stamp);
        }
        stamp
    }

    /// Checks a message that `at` was handed.
    pub fn arrive(&mut self, now: u64, at: Id, message: &Message) {
        let Some(stamp) = Stamp::read(message) else {
            return self.breach(now, at, "was never sent", message);
        };
        (now, at, stamp).hash(&mut self.trace);
        *self.arrivals.entry((stamp.way, stamp.class)).or_default() += 1;
        let flow = (stamp.from, stamp.to, stamp.way, stamp.class);
        let which = (stamp.life, stamp.number);
        if stamp.to != at {
            self.breach(now, at, "is for another member", &stamp);
        }
        if self.sent.get(&flow).is_none_or(|newest| which > *newest) {
            self.breach(now, at, "is not sent yet", &stamp);
        }
        if stamp.class == Class::Snapshot
            && let Some(wrong) = self.snapshots.step(stamp)
        {
            self.breach(now, at, wrong, &stamp);
        }
        if matches!(stamp.way, Way::Pipeline | Way::Snapshot) {
            let key = (stamp.from, stamp.to, stamp.class, stamp.life, stamp.number);
            if !self.posted.insert(key) {
                self.breach(now, at, "was posted twice", &stamp);
            }
        } else {
            let newest = self.arrived.entry(flow).or_default();
            if which == *newest {
                self.breach(now, at, "came twice on a stream", &stamp);
            } else if which < *newest {
                self.breach(now, at, "came out of order on a stream", &stamp);
            } else {
                *newest = which;
            }
        }
        let link = (stamp.from, stamp.to);
        if self
            .owed
            .get(&link)
            .is_some_and(|since| stamp.sent_at >= *since)
        {
            let since = self.owed.remove(&link).unwrap();
            self.recoveries.push(now - since);
        }
    }

    /// Checks a snapshot whose database begins to arrive at `at`; its stamp, if it has one.
    pub fn begin(&mut self, now: u64, at: Id, message: &Message) -> Option<Stamp> {
        let stamp = Stamp::read(message).filter(|stamp| stamp.class == Class::Snapshot);
        match &stamp {
            None => self.breach(now, at, "was never sent", message),
            Some(stamp) if stamp.to != at => {
                self.breach(now, at, "is for another member", stamp);
            }
            Some(_) => {}
        }
        stamp
    }

    /// Checks a database that is complete.
    pub fn store(&mut self, now: u64, at: Id, stamp: &Stamp, bytes: &[u8]) {
        (now, at, stamp, bytes).hash(&mut self.trace);
        if let Some(wrong) = self.snapshots.store(*stamp, bytes) {
            self.breach(now, at, wrong, stamp);
        }
    }

    /// Checks what raft was told about a snapshot.
    pub fn reported(&mut self, now: u64, from: Id, to: Id, life: u64, finished: bool) {
        (now, from, to, finished).hash(&mut self.trace);
        if let Some(wrong) = self.snapshots.reported((from, to, life), finished) {
            self.breach(now, from, wrong, &("a snapshot to", to));
        }
    }

    /// Checks what the sender of a snapshot was told.
    pub fn ended(&mut self, now: u64, stamp: Stamp, accepted: bool) {
        if let Some(wrong) = self.snapshots.ended(stamp, accepted) {
            self.breach(now, stamp.from, wrong, &stamp);
        }
    }

    /// A life has ended in order.
    pub fn stopped(&mut self, now: u64, id: Id, life: u64) {
        (now, id, "stopped").hash(&mut self.trace);
        for to in self.snapshots.unequal(id, life) {
            let which = ("snapshots to", to);
            self.breach(now, id, "were not reported once each as they ended", &which);
        }
    }

    /// A life has ended at once.
    pub fn killed(&mut self, id: Id) {
        self.snapshots.forget(id);
    }

    /// From now on `from` must be able to reach `to`.
    pub fn owe(&mut self, now: u64, from: Id, to: Id) {
        (now, from, to, "owed").hash(&mut self.trace);
        self.owed.insert((from, to), now);
    }

    /// The link has failed again: nothing is expected of it.
    pub fn excuse(&mut self, from: Id, to: Id) {
        self.owed.remove(&(from, to));
    }

    pub fn is_owed(&self, from: Id, to: Id) -> bool {
        self.owed.contains_key(&(from, to))
    }

    /// Links that should have carried a message for longer than `limit`, and snapshots nobody tells the end of.
    pub fn check_owed(&mut self, now: u64, limit: u64) {
        for stamp in self.snapshots.overdue(now) {
            self.breach(now, stamp.from, "is not reported", &stamp);
        }
        let late = self.owed.iter().filter(|(_, since)| now > *since + limit);
        for ((from, to), since) in late
            .map(|(link, since)| (*link, *since))
            .collect::<Vec<_>>()
        {
            let waited = now - since;
            self.breaches.push(format!(
                "{now} ms: {from} to {to} healed {waited} ms ago and carries nothing"
            ));
            self.owed.remove(&(from, to));
        }
    }

    /// Something else of which two runs must say the same.
    pub fn note(&mut self, event: impl Hash) {
        event.hash(&mut self.trace);
    }

    /// Says whether two runs were the same.
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    fn breach(&mut self, now: u64, at: Id, what: &str, which: &dyn std::fmt::Debug) {
        self.breaches
            .push(format!("{now} ms, at {at}: {which:?} {what}"));
    }
}

/// The checks themselves: each breach is seen, and nothing else is taken for one.
mod tests {
    use super::*;

    const FLOW: (Id, Id, u64) = (1, 2, 1);

    fn sent(ledger: &mut Ledger, count: usize, way: Way) -> Vec<Message> {
        let (from, to, life) = FLOW;
        (0..count)
            .map(|_| ledger.send(0, from, to, life, way, Class::Append).message())
            .collect()
    }

    fn breaches(arrive: impl FnOnce(&mut Ledger)) -> usize {
        let mut ledger = Ledger::default();
        arrive(&mut ledger);
        ledger.breaches.len()
    }

    #[test]
    fn what_arrives_in_order_or_not_at_all_is_fine() {
        let count = breaches(|ledger| {
            let messages = sent(ledger, 5, Way::MsgApp);
            for index in [0, 1, 3, 4] {
                ledger.arrive(0, 2, &messages[index]);
            }
            // A sender that was started again begins with 1.
            let again = ledger.send(0, 1, 2, 2, Way::MsgApp, Class::Append);
            ledger.arrive(0, 2, &again.message());
        });
        assert_eq!(count, 0);
    }

    #[test]
    fn a_stream_that_repeats_or_reorders_is_caught() {
        for order in [vec![0, 0], vec![1, 0], vec![0, 2, 1]] {
            let count = breaches(|ledger| {
                let messages = sent(ledger, 3, Way::Message);
                for index in &order {
                    ledger.arrive(0, 2, &messages[*index]);
                }
            });
            assert_eq!(count, 1, "{order:?}");
        }
    }

    #[test]
    fn posts_may_come_in_any_order_but_once_only() {
        for (order, expected) in [(vec![1, 0], 0), (vec![0, 1, 0], 1)] {
            let count = breaches(|ledger| {
                let messages = sent(ledger, 2, Way::Pipeline);
                for index in &order {
                    ledger.arrive(0, 2, &messages[*index]);
                }
            });
            assert_eq!(count, expected, "{order:?}");
        }
    }

    #[test]
    fn an_invented_a_changed_and_a_misled_message_are_caught() {
        let mut other = Ledger::default();
        let early = sent(&mut other, 2, Way::MsgApp).remove(1);
        let count = breaches(|ledger| {
            let message = sent(ledger, 1, Way::MsgApp).remove(0);
            ledger.arrive(0, 2, &early);
            let mut changed = message.clone();
            changed.commit += 1;
            ledger.arrive(0, 2, &changed);
            ledger.arrive(0, 2, &Message::default());
        });
        assert_eq!(count, 3);
        let count = breaches(|ledger| {
            let message = sent(ledger, 1, Way::MsgApp).remove(0);
            ledger.arrive(0, 3, &message);
        });
        assert_eq!(count, 1);
    }

    #[test]
    fn a_healed_link_must_carry_something_sent_since() {
        let run = |sent_at: u64| {
            breaches(|ledger| {
                let before = ledger.send(sent_at, 1, 2, 1, Way::MsgApp, Class::Append);
                ledger.owe(100, 1, 2);
                ledger.arrive(150, 2, &before.message());
                ledger.check_owed(1100, 1000);
                ledger.check_owed(1101, 1000);
            })
        };
        assert_eq!((run(99), run(100)), (1, 0));
    }
}
