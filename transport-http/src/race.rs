//! Several ways to one aim: the first that succeeds wins, the others are dropped.
//!
//! Used for the addresses of a host and for the URLs of a peer. Depends on the clock only. Invariant: an attempt
//! begins when the one before it has failed or has had its head start, so a way that works costs no second one.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Ways tried at most. Nobody needs more, and a list that came in a header must not open hundreds of sockets.
pub(crate) const WAYS_MAX: usize = 8;
/// Head start of each attempt before the next one (RFC 8305, section 5: 250 ms).
pub(crate) const STAGGER: Duration = Duration::from_millis(250);

/// Runs the attempts until one succeeds; the first error when all fail, `None` when there is no attempt.
pub(crate) async fn race<T, E, F>(attempts: Vec<F>) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = attempts.into_iter().take(WAYS_MAX);
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut first_error = None;
    let mut timer = pin!(sleep(STAGGER));
    poll_fn(|cx| {
        loop {
            let before = running.len();
            let mut at = 0;
            while let Some(attempt) = running.get_mut(at) {
                match attempt.as_mut().poll(cx) {
                    Poll::Pending => at += 1,
                    Poll::Ready(Ok(won)) => return Poll::Ready(Some(Ok(won))),
                    Poll::Ready(Err(error)) => {
                        drop(running.swap_remove(at));
                        first_error.get_or_insert(error);
                    }
                }
            }
            let failed = running.len() < before || running.is_empty();
            if !failed && timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match waiting.next() {
                Some(next) => {
                    running.push(Box::pin(next));
                    timer.as_mut().reset(Instant::now() + STAGGER);
                }
                None if running.is_empty() => return Poll::Ready(first_error.take().map(Err)),
                None => return Poll::Pending,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends after `millis` with its number.
    async fn attempt(number: u32, millis: u64, succeeds: bool) -> Result<u32, u32> {
        sleep(Duration::from_millis(millis)).await;
        if succeeds { Ok(number) } else { Err(number) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_one_begins_on_failure_or_after_its_head_start() {
        for (ways, outcome, millis) in [
            (vec![], None, 0),
            (vec![(10, true)], Some(Ok(0)), 10),
            // A fast first way needs no second one.
            (vec![(240, true), (0, true)], Some(Ok(0)), 240),
            // A failed one is followed at once.
            (vec![(10, false), (10, true)], Some(Ok(1)), 20),
            // A silent one after its head start, and it may still win.
            (vec![(9000, true), (10, true)], Some(Ok(1)), 260),
            (vec![(300, true), (100, true)], Some(Ok(0)), 300),
            (
                vec![(9000, true), (9000, true), (1, true)],
                Some(Ok(2)),
                501,
            ),
            // All fail: what the first to fail said.
            (vec![(400, false), (10, false)], Some(Err(1)), 400),
        ] {
            let begun = Instant::now();
            let attempts = ways.iter().enumerate();
            let attempts = attempts.map(|(n, &(millis, ok))| attempt(n as u32, millis, ok));
            assert_eq!(race(attempts.collect()).await, outcome, "{ways:?}");
            let took = begun.elapsed().as_millis();
            assert!((millis..=millis + 5).contains(&took), "{ways:?}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_ways_are_tried() {
        let attempts = (0..100).map(|number| attempt(number, 0, number == 50));
        assert_eq!(race(attempts.collect()).await, Some(Err(0)));
    }
}
