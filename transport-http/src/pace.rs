//! The pace of snapshots: how many bytes per second leave, for all of them together.
//!
//! Snapshots share links with heartbeats and appends. Depends on the clock only. Invariant: over any time the bytes let
//! through exceed the rate by at most one chunk per snapshot; a rate of 0 is no limit.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// One read of the database.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// A slow pace comes in small pieces: a receiver gives up a sender that is silent for its read timeout.
const CHUNKS_PER_SECOND: u64 = 4;
const CHUNK_BYTES_MIN: u64 = 4 << 10;

#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When the next chunk may leave.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Pace {
            bytes_per_second,
            next: Mutex::new(None),
        }
    }

    /// When these bytes may leave, which are now on their way; `None`: at once.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let now = Instant::now();
        let seconds = bytes as f64 / self.bytes_per_second as f64;
        let mut next = self.next.lock();
        let at = next.filter(|at| *at > now);
        *next = Some(at.unwrap_or(now) + Duration::from_secs_f64(seconds));
        at
    }

    /// How much is read at once.
    pub(crate) fn chunk_bytes(&self) -> usize {
        match self.bytes_per_second {
            0 => CHUNK_BYTES,
            // Between two bounds that fit.
            rate => (rate / CHUNKS_PER_SECOND).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES as u64) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_leave_at_the_rate_and_idle_time_saves_none() {
        let pace = Pace::new(1000);
        let begun = Instant::now();
        let due = |bytes| pace.reserve(bytes).map(|at| (at - begun).as_millis());
        assert_eq!(
            (due(500), due(500), due(1000)),
            (None, Some(500), Some(1000))
        );
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!((due(500), due(1)), (None, Some(60_500)));
    }

    #[test]
    fn a_slow_pace_comes_in_small_pieces() {
        for (rate, bytes) in [
            (0, 256 << 10),
            (1, 4 << 10),
            (100 << 10, 25 << 10),
            (1 << 30, 256 << 10),
        ] {
            assert_eq!(Pace::new(rate).chunk_bytes(), bytes, "{rate}");
        }
        assert_eq!(Pace::new(0).reserve(usize::MAX), None);
    }
}
