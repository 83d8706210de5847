//! When a batch is due: time and load go in, an action comes out. No thread, no clock.

use std::time::{Duration, Instant};

use super::FlushLimits;

/// What the flusher sees of the backlog.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub bytes: usize,
    pub empty: bool,
    /// Deletes of a compaction wait, and the next step of it waits for them.
    pub background: bool,
    pub urgent: bool,
    pub closing: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Wait for a change of the backlog, or for this long.
    Wait(Option<Duration>),
    /// Take the load and commit it.
    Commit,
    /// End.
    Stop,
}

/// How soon deletes of a compaction are written: it pauses as long between two batches in etcd.
const BACKGROUND_INTERVAL: Duration = Duration::from_millis(10);

/// Decides when a batch is due.
pub(crate) struct Flusher {
    limits: FlushLimits,
    /// When the present load was first seen.
    since: Option<Instant>,
}

impl Flusher {
    /// A flusher that has seen nothing.
    pub fn new(limits: FlushLimits) -> Self {
        Flusher {
            limits,
            since: None,
        }
    }

    /// Looks at the backlog at `now`.
    pub fn handle(&mut self, now: Instant, sight: Sight) -> Action {
        if sight.empty {
            self.since = None;
            return if sight.closing {
                Action::Stop
            } else {
                Action::Wait(None)
            };
        }
        let waited = now.duration_since(*self.since.get_or_insert(now));
        let interval = if sight.background {
            self.limits.interval.min(BACKGROUND_INTERVAL)
        } else {
            self.limits.interval
        };
        let due = waited >= interval
            || sight.bytes >= self.limits.batch_bytes
            || sight.urgent
            || sight.closing;
        if due {
            self.since = None;
            Action::Commit
        } else {
            Action::Wait(Some(interval - waited))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FlushLimits = FlushLimits {
        interval: Duration::from_millis(100),
        batch_bytes: 1000,
        backlog_bytes_max: 10_000,
    };

    #[test]
    fn a_batch_is_due_after_the_interval_or_when_it_is_full_or_wanted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let idle = Sight {
            bytes: 0,
            empty: true,
            background: false,
            urgent: false,
            closing: false,
        };
        let some = Sight {
            bytes: 10,
            empty: false,
            ..idle
        };
        let mut flusher = Flusher::new(LIMITS);
        assert_eq!(flusher.handle(at(0), idle), Action::Wait(None));
        let wait = |ms| Action::Wait(Some(Duration::from_millis(ms)));
        assert_eq!(flusher.handle(at(5), some), wait(100));
        assert_eq!(flusher.handle(at(65), some), wait(40));
        assert_eq!(flusher.handle(at(105), some), Action::Commit);
        // The time of the next batch begins when it is seen.
        assert_eq!(flusher.handle(at(300), some), wait(100));
        let compacting = Sight {
            background: true,
            ..some
        };
        assert_eq!(flusher.handle(at(305), compacting), wait(5));
        let full = Sight {
            bytes: 1000,
            ..some
        };
        assert_eq!(flusher.handle(at(310), full), Action::Commit);
        let urgent = Sight {
            urgent: true,
            ..some
        };
        assert_eq!(flusher.handle(at(310), urgent), Action::Commit);
        let closing = Sight {
            closing: true,
            ..some
        };
        assert_eq!(flusher.handle(at(310), closing), Action::Commit);
        let closed = Sight {
            closing: true,
            ..idle
        };
        assert_eq!(flusher.handle(at(310), closed), Action::Stop);
    }
}
