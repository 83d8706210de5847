//! A member of the real parts on a disk that stops, tears and fails: nothing acknowledged is lost, nothing is
//! misread, nothing panics, under every seed.
//!
//! Each seed is a member with several lives: it starts on what the last life left, applies random requests, and
//! ends at a write of the log, of a snapshot file or of the backend, or is killed. `SEED=n` runs one seed alone,
//! `SEEDS=n` that many.

mod disk;
mod life;
mod member;
mod model;
mod workload;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use disk::Area;
use life::{Seed, Seen};

/// Seeds of an ordinary run.
const SEEDS: u64 = 1200;
/// Most of a life is waiting for another thread.
const THREADS: u64 = 4;

/// Panics of the member's threads that say more than that the store's disk has failed.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The apply thread ends by a panic when the store fails, which the node reports as its end; any other panic of a
/// thread that is not a test's own is remembered.
fn watch_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or_default();
        if name == "raft-apply" && text.starts_with("writing the backend failed") {
            return;
        }
        if let Ok(mut panics) = PANICS.lock() {
            panics.push(format!("{name}: {text}"));
        }
        default(panic);
    }));
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_fault_of_the_disk_loses_or_changes_what_was_acknowledged() {
    watch_panics();
    let only = setting("SEED");
    let end = only.map_or_else(|| setting("SEEDS").unwrap_or(SEEDS), |seed| seed + 1);
    let next = AtomicU64::new(only.unwrap_or(0));
    let failed = Mutex::new(None);
    let work = || {
        let mut seen = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return seen;
            }
            let outcome = Seed::new(seed).run(&mut seen);
            let outcome =
                outcome.and_then(|()| PANICS.lock().unwrap().first().cloned().map_or(Ok(()), Err));
            if let Err(error) = outcome {
                failed
                    .lock()
                    .unwrap()
                    .get_or_insert(format!("seed {seed}: {error}"));
                next.store(end, Ordering::Relaxed);
            }
        }
    };
    let mut seen = Seen::default();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            seen.add(thread.join().unwrap());
        }
    });
    println!("{seen:#?}");
    if let Some(failed) = failed.into_inner().unwrap() {
        panic!("{failed}");
    }
    if end == SEEDS {
        is_worth_its_time(&seen);
    }
}

/// The seeds have reached what they are for.
fn is_worth_its_time(seen: &Seen) {
    assert!(
        seen.lives > 4 * SEEDS && seen.acknowledged > 20 * SEEDS,
        "{seen:?}"
    );
    assert!(
        seen.cuts > SEEDS && seen.snapshots > SEEDS && seen.released > SEEDS / 2,
        "{seen:?}"
    );
    for (area, least) in [(Area::Wal, 200), (Area::Snap, 30), (Area::Store, 200)] {
        let struck = &seen.areas[area as usize];
        assert!(
            struck.stops > least && struck.fails > least / 2,
            "{area:?} {seen:?}"
        );
        assert!(
            struck.torn_writes > least / 10 && struck.half_syncs > least / 10,
            "{area:?} {seen:?}"
        );
    }
    assert!(
        seen.killed > SEEDS / 4 && seen.power_lost > SEEDS / 4,
        "{seen:?}"
    );
    assert!(
        seen.struck_at_start > SEEDS / 10 && seen.replayed > SEEDS,
        "{seen:?}"
    );
    assert!(seen.compactions > SEEDS / 2, "{seen:?}");
    assert!(
        seen.open_survived > SEEDS / 10 && seen.open_vanished > SEEDS / 10,
        "{seen:?}"
    );
}
