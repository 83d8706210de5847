//! Notices a leader whose disk has stopped writing, so that it can hand leadership over: its heartbeats go on, and no
//! other member would ever notice.
//!
//! Pure: it is told the time. Invariant: one stall asks for one hand-over, and a new one only after a pause.

use std::time::{Duration, Instant};

/// Follows the write-ahead log's oldest unfinished sync.
#[derive(Clone, Copy, Debug)]
pub struct Watchdog {
    patience: Duration,
    pause: Duration,
    quiet_until: Option<Instant>,
}

impl Watchdog {
    /// A sync may take two election timeouts: by then a follower with that disk would have lost its leader as well.
    pub fn new(election_timeout: Duration) -> Watchdog {
        Watchdog {
            patience: 2 * election_timeout,
            pause: 5 * election_timeout,
            quiet_until: None,
        }
    }

    /// Whether to hand leadership over now. `pending_since` is when the oldest unfinished sync was begun.
    pub fn look(&mut self, now: Instant, is_leader: bool, pending_since: Option<Instant>) -> bool {
        let stalled =
            pending_since.is_some_and(|since| now.saturating_duration_since(since) > self.patience);
        if !is_leader || !stalled || self.quiet_until.is_some_and(|until| now < until) {
            return false;
        }
        self.quiet_until = Some(now + self.pause);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stalled_leader_is_told_once_and_again_after_a_pause() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut watchdog = Watchdog::new(second);
        let mut look = |after: u32, is_leader, since: Option<u32>| {
            watchdog.look(
                start + after * second,
                is_leader,
                since.map(|since| start + since * second),
            )
        };
        assert!(!look(10, true, None));
        assert!(!look(10, true, Some(8)));
        assert!(!look(11, false, Some(8)));
        assert!(look(11, true, Some(8)));
        assert!(!look(12, true, Some(8)));
        assert!(look(16, true, Some(8)));
    }
}
