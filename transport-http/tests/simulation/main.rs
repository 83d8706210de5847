//! Five transports on a simulated network that fails all the time, in virtual time, from a seed.
//!
//! The transport's own code runs, with hyper, over turmoil's sockets, plain or with TLS on every link. What must hold:
//! no message is invented, changed, doubled, or handed to the wrong member; on a stream none comes out of order; and a
//! link that is well again carries messages within the read timeout and the pause between dials. A snapshot's database
//! arrives byte for byte or not at all, raft gets the message only behind it, and what became of each is told exactly
//! once. One seed is one run, to the bit.
//!
//! `SIMULATION_SEEDS=100 cargo test -p transport-http --test simulation` runs that many seeds instead of one, from
//! `SIMULATION_FIRST_SEED` on.

#[path = "../common/authority.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod authority;
mod certificates;
mod database;
mod faults;
mod ledger;
mod member;
mod message;
mod network;
mod snapshots;

use std::{
    env,
    time::{Duration, Instant},
};

use faults::Weather;
use message::{Class, Id, Way};

/// Members of the cluster.
pub const MEMBERS: Id = 5;

/// What should be seen of each way and class, the rarest first.
const EXPECTED: [(Way, Class); 9] = [
    (Way::Message, Class::Append),
    (Way::MsgApp, Class::Append),
    (Way::Message, Class::Propose),
    (Way::Message, Class::Control),
    (Way::Message, Class::Heartbeat),
    (Way::Message, Class::HeartbeatResponse),
    (Way::Pipeline, Class::Append),
    (Way::Pipeline, Class::Control),
    (Way::Snapshot, Class::Snapshot),
];

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Runs one seed; panics with it when a promise is broken.
fn simulate(seed: u64, length: Duration, secure: bool) -> Weather {
    let mut weather = Weather::new(seed, length, secure);
    weather.run(length);
    let breaches = weather.ledger.lock().breaches.clone();
    assert!(breaches.is_empty(), "seed {seed}: {breaches:#?}");
    weather
}

/// Runs the seeds that are asked for, each for `length`; at least so many links must recover in each run, and at least
/// so many snapshots come to a good end, and to a bad one; and messages must have gone all the ways that are expected.
fn simulate_all(
    length: Duration,
    secure: bool,
    (recoveries_min, snapshots_min): (usize, u64),
    expected: &[(Way, Class)],
) {
    let first = setting("SIMULATION_FIRST_SEED", 1);
    for seed in first..first + setting("SIMULATION_SEEDS", 1) {
        let begun = Instant::now();
        let weather = simulate(seed, length, secure);
        let mut ledger = weather.ledger.lock();
        ledger.recoveries.sort_unstable();
        let recovered = ledger.recoveries.len();
        let (accepted, failed) = ledger.snapshots.ended;
        println!(
            "seed {seed}: {:?}; {:?}; {:?}; {accepted} snapshots accepted, {failed} failed; \
             {recovered} recoveries, median {} ms, longest {} ms",
            begun.elapsed(),
            weather.events,
            ledger.arrivals,
            ledger.recoveries[recovered / 2],
            ledger.recoveries[recovered - 1],
        );
        // A promise is worth something only if it was put to the test.
        assert!(recovered > recoveries_min, "{recovered} recoveries");
        assert!(accepted > snapshots_min && failed > snapshots_min);
        assert_eq!(weather.events.len(), 11, "{:?}", weather.events);
        for (way, class) in expected {
            assert!(
                ledger.arrivals.contains_key(&(*way, *class)),
                "no {class:?} by {way:?}"
            );
        }
    }
}

#[test]
fn ten_thousand_seconds_of_faults_break_no_promise() {
    simulate_all(Duration::from_secs(10_000), false, (4000, 100), &EXPECTED);
}

#[test]
fn a_thousand_seconds_of_faults_break_no_promise_under_tls() {
    simulate_all(Duration::from_secs(1_000), true, (400, 5), &EXPECTED[1..]);
}

#[test]
fn one_seed_is_one_run() {
    for (seconds, secure) in [(400, false), (200, true)] {
        let length = Duration::from_secs(seconds);
        let trace = |seed| simulate(seed, length, secure).ledger.lock().trace();
        let first = trace(7);
        assert_eq!(first, trace(7), "with TLS: {secure}");
        assert_ne!(first, trace(8));
    }
}
