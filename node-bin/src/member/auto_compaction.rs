//! When history is compacted without anybody asking (etcd: etcdserver/api/v3compactor).
//!
//! Pure: a function of the time, of the revisions it was shown and of what came of its own proposals; the task around
//! it is in `tasks`. Every member samples revisions, so that a new leader goes on where the old one was. Invariant: no
//! revision is proposed that is younger than what is to be kept, and none twice.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::config::AutoCompaction;

/// Longest time between two compactions by age.
const PERIOD_MAX: Duration = Duration::from_secs(60 * 60);
/// Turns in the time between two compactions by age.
const TURNS: u32 = 10;
/// Shortest time between two turns, whatever the period.
const TURN_MIN: Duration = Duration::from_millis(10);
/// Time between two compactions by number.
const REVISIONS_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Decides about compactions, one turn at a time.
#[derive(Debug)]
pub struct AutoCompactor {
    mode: Mode,
    /// The last revision that was compacted at.
    last: i64,
}

#[derive(Debug)]
enum Mode {
    Periodic {
        /// Time between two compactions.
        interval: Duration,
        /// Revisions, one a turn, the oldest of them as old as what is to be kept.
        samples: VecDeque<i64>,
        samples_max: usize,
        /// Not before this time; `None` for never.
        due: Option<Instant>,
    },
    Revisions {
        kept: i64,
    },
}

impl AutoCompactor {
    /// Begins now, at this revision; `None` when nothing is to be compacted.
    pub fn new(mode: AutoCompaction, now: Instant, revision: i64) -> Option<AutoCompactor> {
        let mode = match mode {
            AutoCompaction::Off => return None,
            AutoCompaction::Periodic(period) => {
                let interval = period.min(PERIOD_MAX);
                let turns = period.as_nanos() / turn(interval).as_nanos();
                Mode::Periodic {
                    interval,
                    samples: VecDeque::from([revision]),
                    samples_max: usize::try_from(turns + 1).unwrap_or(usize::MAX),
                    // The first time only once everything to be kept has been seen.
                    due: now.checked_add(period),
                }
            }
            AutoCompaction::Revisions(kept) => Mode::Revisions {
                kept: i64::try_from(kept).unwrap_or(i64::MAX),
            },
        };
        Some(AutoCompactor { mode, last: 0 })
    }

    /// Time until the next turn.
    pub fn pause(&self) -> Duration {
        match &self.mode {
            Mode::Periodic { interval, .. } => turn(*interval),
            Mode::Revisions { .. } => REVISIONS_INTERVAL,
        }
    }

    /// Takes a turn: the revision to compact at, if it is time and this member leads.
    pub fn turn(&mut self, now: Instant, revision: i64, leads: bool) -> Option<i64> {
        let at = match &mut self.mode {
            Mode::Periodic {
                samples,
                samples_max,
                due,
                ..
            } => {
                let oldest = samples.front().copied();
                samples.push_back(revision);
                if samples.len() > *samples_max {
                    samples.pop_front();
                }
                oldest.filter(|_| due.is_some_and(|due| now >= due))
            }
            Mode::Revisions { kept } => Some(revision.saturating_sub(*kept)),
        };
        at.filter(|at| leads && *at > 0 && *at != self.last)
    }

    /// Notes that what was proposed is done, by this member or by somebody else before it.
    pub fn compacted(&mut self, now: Instant, revision: i64) {
        self.last = revision;
        if let Mode::Periodic { interval, due, .. } = &mut self.mode {
            *due = Some(now + *interval);
        }
    }
}

fn turn(interval: Duration) -> Duration {
    (interval / TURNS).max(TURN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Lets a member that leads take turns until the time is up, while the revision is the number of minutes; returns
    /// when it compacted at what, in minutes.
    fn compactions(mode: AutoCompaction, minutes: u64) -> Vec<(u64, i64)> {
        let begun = Instant::now();
        let mut engine = AutoCompactor::new(mode, begun, 0).unwrap();
        let mut done = Vec::new();
        let mut time = Duration::ZERO;
        loop {
            time += engine.pause();
            let minute = time.as_secs() / 60;
            if minute > minutes {
                return done;
            }
            if let Some(at) = engine.turn(begun + time, minute as i64, true) {
                engine.compacted(begun + time, at);
                done.push((minute, at));
            }
        }
    }

    #[test]
    fn what_is_older_than_the_period_goes_every_period() {
        let mode = AutoCompaction::Periodic(10 * MINUTE);
        assert_eq!(compactions(mode, 40), [(12, 1), (22, 11), (32, 21)]);
    }

    #[test]
    fn a_long_period_is_kept_whole_and_cut_every_hour() {
        let mode = AutoCompaction::Periodic(180 * MINUTE);
        let done = compactions(mode, 400);
        assert_eq!(done[0], (192, 6));
        for (pair, (minute, at)) in done.windows(2).zip(&done[1..]) {
            assert_eq!(pair[1].0 - pair[0].0, 60);
            let age = minute - *at as u64;
            assert!((180..=186).contains(&age), "{age}");
        }
    }

    #[test]
    fn by_number_the_newest_stay_every_five_minutes() {
        let mode = AutoCompaction::Revisions(7);
        assert_eq!(compactions(mode, 20), [(10, 3), (15, 8), (20, 13)]);
    }

    #[test]
    fn only_the_leader_proposes_and_a_new_one_knows_the_past() {
        let begun = Instant::now();
        let mode = AutoCompaction::Periodic(10 * MINUTE);
        let mut engine = AutoCompactor::new(mode, begun, 1).unwrap();
        for minute in 1..=15 {
            let now = begun + minute * MINUTE;
            assert_eq!(engine.turn(now, 1 + i64::from(minute), false), None);
        }
        // Fifteen minutes in; the oldest of eleven samples is of minute 5.
        assert_eq!(engine.turn(begun + 16 * MINUTE, 17, true), Some(6));
    }

    #[test]
    fn a_failure_is_tried_again_and_a_standstill_is_not() {
        let begun = Instant::now();
        let mode = AutoCompaction::Periodic(10 * MINUTE);
        let mut engine = AutoCompactor::new(mode, begun, 5).unwrap();
        let at = |minute: u32| begun + minute * MINUTE;
        let tries: Vec<_> = (1..=12)
            .filter_map(|minute| engine.turn(at(minute), 5, true))
            .collect();
        assert_eq!(tries, [5, 5, 5]);
        engine.compacted(at(12), 5);
        assert!((13..60).all(|minute| engine.turn(at(minute), 5, true).is_none()));
        assert_eq!(engine.turn(at(60), 9, true), None);
    }

    #[test]
    fn neither_off_nor_the_longest_nor_the_shortest_period_does_harm() {
        let now = Instant::now();
        assert!(AutoCompactor::new(AutoCompaction::Off, now, 0).is_none());
        let endless = AutoCompaction::Periodic(Duration::MAX);
        let mut engine = AutoCompactor::new(endless, now, 1).unwrap();
        assert_eq!(engine.turn(now + 600 * MINUTE, 9, true), None);
        let tiny = AutoCompaction::Periodic(Duration::from_nanos(1));
        let engine = AutoCompactor::new(tiny, now, 0).unwrap();
        assert_eq!(engine.pause(), TURN_MIN);
    }
}
