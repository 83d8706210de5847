//! Five transports on a simulated network that fails all the time, in virtual time, from a seed.
//!
//! The transport's own code runs, with hyper, over turmoil's sockets. What must hold: no message is invented,
//! changed, doubled, or handed to the wrong member; on a stream none comes out of order; and a link that is well
//! again carries messages within the read timeout and the pause between dials. One seed is one run, to the bit.
//!
//! `SIMULATION_SEEDS=100 cargo test -p transport-http --test simulation` runs that many seeds instead of one, from
//! `SIMULATION_FIRST_SEED` on.

mod faults;
mod ledger;
mod member;
mod message;
mod network;

use std::{
    env,
    time::{Duration, Instant},
};

use faults::Weather;
use message::{Class, Id, Way};

/// Members of the cluster.
pub const MEMBERS: Id = 5;
const LENGTH: Duration = Duration::from_secs(10_000);

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Runs one seed; panics with it when a promise is broken.
fn simulate(seed: u64, length: Duration) -> Weather {
    let mut weather = Weather::new(seed, length);
    weather.run(length);
    let breaches = weather.ledger.lock().breaches.clone();
    assert!(breaches.is_empty(), "seed {seed}: {breaches:#?}");
    weather
}

#[test]
fn ten_thousand_seconds_of_faults_break_no_promise() {
    let first = setting("SIMULATION_FIRST_SEED", 1);
    for seed in first..first + setting("SIMULATION_SEEDS", 1) {
        let begun = Instant::now();
        let weather = simulate(seed, LENGTH);
        let mut ledger = weather.ledger.lock();
        ledger.recoveries.sort_unstable();
        let recovered = ledger.recoveries.len();
        println!(
            "seed {seed}: {:?}; {:?}; {:?}; {recovered} recoveries, median {} ms, longest {} ms",
            begun.elapsed(),
            weather.events,
            ledger.arrivals,
            ledger.recoveries[recovered / 2],
            ledger.recoveries[recovered - 1],
        );
        // A promise is worth something only if it was put to the test.
        assert!(recovered > 4000, "{recovered} recoveries");
        assert_eq!(weather.events.len(), 11, "{:?}", weather.events);
        for (way, class) in [
            (Way::MsgApp, Class::Append),
            (Way::Message, Class::Append),
            (Way::Message, Class::Propose),
            (Way::Message, Class::Control),
            (Way::Message, Class::Heartbeat),
            (Way::Message, Class::HeartbeatResponse),
            (Way::Pipeline, Class::Append),
            (Way::Pipeline, Class::Control),
        ] {
            assert!(
                ledger.arrivals.contains_key(&(way, class)),
                "no {class:?} by {way:?}"
            );
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    const SHORT: Duration = Duration::from_secs(400);
    let trace = |seed| simulate(seed, SHORT).ledger.lock().trace();
    let first = trace(7);
    assert_eq!(first, trace(7));
    assert_ne!(first, trace(8));
}
