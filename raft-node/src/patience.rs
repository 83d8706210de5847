//! When a thread of the node lets the other threads of its core go first.
//!
//! On busy cores whoever wakes up runs at once, ahead of those that are about to bring more. With many clients a turn
//! of the raft task then takes few entries, and so does an fsync; and each turn costs its packets, wake-ups and an
//! fsync on every member. Giving the core away before it lets clients, other members on the machine and the sockets
//! finish what they are at. Where nobody waits for the core it takes no time. Beside threads that only compute it
//! would take their whole time slices and bring nothing, so what it takes is watched.
//!
//! Invariant: it is done only with many entries under way, beside whose latency a short wait is little; and not for a
//! while once it has taken more than [`MEAN_MAX`] on average.

use std::{
    thread,
    time::{Duration, Instant},
};

/// What it may take on average; time slices are 1.5 to 3 ms long.
const MEAN_MAX: Duration = Duration::from_micros(1500);
/// The average goes over about as many times.
const MEAN_OVER: u32 = 64;
/// The first pause; each that follows soon is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(16);

/// See the module.
pub(crate) struct Patience {
    entries_min: u64,
    mean: Duration,
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Patience {
    /// With less than `entries_min` entries under way there is none.
    pub fn new(entries_min: u64) -> Self {
        Patience {
            entries_min,
            mean: Duration::ZERO,
            paused_until: None,
            pause: PAUSE_MIN,
        }
    }

    /// Lets other threads have this core if that is worth it with so many entries under way; whether it was done.
    pub fn let_others_go(&mut self, entries: u64) -> bool {
        let began = Instant::now();
        if !self.allows(began, entries) {
            return false;
        }
        thread::yield_now();
        self.waited(began, Instant::now());
        true
    }

    fn allows(&self, now: Instant, entries: u64) -> bool {
        entries >= self.entries_min && self.paused_until.is_none_or(|until| now >= until)
    }

    /// Others went first from `began` to `ended`.
    fn waited(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        self.mean = (self.mean * (MEAN_OVER - 1) + took) / MEAN_OVER;
        if self.mean <= MEAN_MAX {
            return;
        }
        // It went well for longer than this pause would last: whoever computed was gone meanwhile.
        if let Some(until) = self.paused_until
            && began.saturating_duration_since(until) > self.pause
        {
            self.pause = PAUSE_MIN;
        }
        self.mean = Duration::ZERO;
        self.paused_until = Some(ended + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 32;

    /// Lets others go for `each` until it pauses, at most `times`; returns how often and how long the pause is.
    fn go(
        patience: &mut Patience,
        now: &mut Instant,
        each: Duration,
        times: u32,
    ) -> (u32, Duration) {
        for done in 0..times {
            if !patience.allows(*now, MIN) {
                let until = patience.paused_until.expect("it pauses");
                return (done, until - *now);
            }
            patience.waited(*now, *now + each);
            *now += each;
        }
        (times, Duration::ZERO)
    }

    #[test]
    fn only_with_many_entries_under_way() {
        let patience = Patience::new(MIN);
        let now = Instant::now();
        assert!(!patience.allows(now, MIN - 1));
        assert!(patience.allows(now, MIN));
    }

    #[test]
    fn short_waits_go_on() {
        let (mut patience, mut now) = (Patience::new(MIN), Instant::now());
        let often = 10_000;
        assert_eq!(go(&mut patience, &mut now, MEAN_MAX, often).0, often);
        // One in eight takes several time slices.
        let (short, long) = (Duration::from_micros(300), Duration::from_millis(7));
        for _ in 0..1000 {
            assert_eq!(go(&mut patience, &mut now, short, 7).0, 7);
            assert_eq!(go(&mut patience, &mut now, long, 1).0, 1);
        }
    }

    #[test]
    fn time_slices_of_others_end_it_for_longer_and_longer() {
        let (mut patience, mut now) = (Patience::new(MIN), Instant::now());
        let slice = Duration::from_millis(3);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (times, pause) = go(&mut patience, &mut now, slice, 1000);
            assert!(times < 80, "{times} slices were lost before it paused");
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 16_000, 16_000]);
    }

    #[test]
    fn pauses_are_short_again_after_it_went_well_for_long() {
        let (mut patience, mut now) = (Patience::new(MIN), Instant::now());
        let slice = Duration::from_millis(3);
        for _ in 0..3 {
            let (_, pause) = go(&mut patience, &mut now, slice, 1000);
            now += pause;
        }
        let short = Duration::from_micros(100);
        assert_eq!(go(&mut patience, &mut now, short, 100_000).0, 100_000);
        let (_, pause) = go(&mut patience, &mut now, slice, 1000);
        assert_eq!(pause, PAUSE_MIN);
    }
}
