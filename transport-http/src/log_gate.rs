//! Lets one log line through per interval, and counts what it held back.
//!
//! For events that come with each message when something is wrong: the first is logged, the rest is a number.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(crate) struct LogGate(Mutex<(Option<Instant>, u64)>);

impl LogGate {
    /// Whether to log now, and how many were held back since the last time.
    pub(crate) fn open(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let now = Instant::now();
        if state.0.is_some_and(|last| now < last + INTERVAL) {
            state.1 += 1;
            return None;
        }
        let held_back = state.1;
        *state = (Some(now), 0);
        Some(held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_line_per_interval() {
        let gate = LogGate::default();
        assert_eq!(gate.open(), Some(0));
        assert_eq!((gate.open(), gate.open()), (None, None));
        tokio::time::advance(INTERVAL).await;
        assert_eq!(gate.open(), Some(2));
    }
}
