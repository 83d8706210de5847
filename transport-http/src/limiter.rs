//! The dial limiter: the first retry at once, the next ones at a fixed pace.
//!
//! governor decides, tokio sleeps: governor's own waiting uses real time, which would ignore a paused or
//! simulated clock. Invariant: dropping a wait consumes nothing, so a cancelled dial costs no later one.

use std::{num::NonZeroU32, time::Duration};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    state::{InMemoryState, NotKeyed},
};
use tokio::time::Instant;

/// etcd's default dial rate per second.
const DEFAULT_FREQUENCY: f64 = 10.0;

/// Paces the dials of one stream reader (etcd: golang.org/x/time/rate with burst 1).
pub(crate) struct DialLimiter {
    clock: TokioClock,
    limiter: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>,
}

impl DialLimiter {
    /// `frequency` per second; 0, negative or absurd values mean ten.
    pub(crate) fn new(frequency: f64) -> Self {
        let frequency = if frequency.is_finite() && frequency > 0.0 {
            frequency
        } else {
            DEFAULT_FREQUENCY
        };
        // Between a nanosecond and a day: the conversion below cannot fail.
        let seconds = (1.0 / frequency).clamp(1e-9, 86_400.0);
        let period = Duration::from_secs_f64(seconds).max(Duration::from_nanos(1));
        let clock = TokioClock {
            start: Instant::now(),
        };
        let quota = Quota::with_period(period).map(|quota| quota.allow_burst(NonZeroU32::MIN));
        // `with_period` is None for a zero period only.
        let quota = quota.unwrap_or_else(|| Quota::per_second(NonZeroU32::MIN));
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        DialLimiter { clock, limiter }
    }

    /// Waits until the next dial is due.
    pub(crate) async fn wait(&self) {
        while let Err(early) = self.limiter.check() {
            tokio::time::sleep(early.wait_time_from(self.clock.now())).await;
        }
    }
}

/// tokio's clock, as time since its start.
#[derive(Clone, Debug)]
struct TokioClock {
    start: Instant,
}

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn waits(limiter: &DialLimiter, count: usize) -> Vec<u64> {
        let start = Instant::now();
        let mut at = Vec::new();
        for _ in 0..count {
            limiter.wait().await;
            at.push((start.elapsed().as_millis() as u64 + 5) / 10 * 10);
        }
        at
    }

    #[tokio::test(start_paused = true)]
    async fn first_at_once_then_every_100_ms() {
        let limiter = DialLimiter::new(0.0);
        assert_eq!(waits(&limiter, 4).await, [0, 100, 200, 300]);
        // Idle time saves no burst.
        tokio::time::sleep(Duration::from_millis(450)).await;
        assert_eq!(waits(&limiter, 3).await, [0, 100, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_frequency_is_per_second() {
        assert_eq!(waits(&DialLimiter::new(2.0), 3).await, [0, 500, 1000]);
        assert_eq!(waits(&DialLimiter::new(f64::NAN), 2).await, [0, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_wait_takes_nothing() {
        let limiter = DialLimiter::new(10.0);
        limiter.wait().await;
        let start = Instant::now();
        for _ in 0..5 {
            assert!(
                tokio::time::timeout(Duration::from_millis(10), limiter.wait())
                    .await
                    .is_err()
            );
        }
        limiter.wait().await;
        assert!(
            start.elapsed() <= Duration::from_millis(110),
            "{:?}",
            start.elapsed()
        );
    }
}
