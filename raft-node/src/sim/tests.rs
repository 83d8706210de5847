//! Runs of the world under many seeds.

use super::*;

/// Tells the seed of a run that panics.
struct Seed(u64, &'static str);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} failed with seed {}", self.1, self.0);
        }
    }
}

const FAIR: Weather = Weather {
    members: 3,
    lose: 10,
    double: 10,
    delay_ms_max: 10,
    crash: 0,
    stop: 0,
    cut: 0,
    stall: 1,
    change: 0,
    propose: 300,
    read: 100,
    snapshot_count: 50,
    files: false,
};

const STORM: Weather = Weather {
    lose: 50,
    double: 30,
    delay_ms_max: 40,
    crash: 1,
    stop: 1,
    cut: 4,
    stall: 10,
    snapshot_count: 15,
    ..FAIR
};

fn run(name: &'static str, seeds: std::ops::Range<u64>, weather: &Weather) -> Vec<World> {
    let end = seeds.start + (seeds.end - seeds.start) * seeds_factor();
    (seeds.start..end)
        .map(|seed| {
            let _seed = Seed(seed, name);
            let mut world = World::new(seed, weather.clone());
            for _ in 0..3_000 {
                world.disturb();
                world.step();
            }
            world.heal();
            world.check_end();
            world
        })
        .collect()
}

fn totals(worlds: &[World]) -> (usize, usize, usize, usize) {
    let sum = |of: &dyn Fn(&World) -> usize| worlds.iter().map(of).sum();
    (
        sum(&|w| w.acknowledged.len()),
        sum(&|w| w.failed.len()),
        sum(&|w| w.reads_done),
        sum(&|w| w.snapshots_sent),
    )
}

#[test]
fn nearly_everything_is_acknowledged_in_fair_weather() {
    let worlds = run("fair", 0..20, &FAIR);
    let (acknowledged, _, reads, _) = totals(&worlds);
    let proposed: usize = worlds.iter().map(|w| w.next_id as usize).sum();
    assert!(
        (acknowledged + reads) * 10 > proposed * 8,
        "{acknowledged} and {reads} of {proposed}"
    );
}

#[test]
fn nothing_acknowledged_is_lost_in_a_storm() {
    let worlds = run("storm", 0..120, &STORM);
    let (acknowledged, failed, reads, snapshots) = totals(&worlds);
    println!("{acknowledged} acknowledged, {failed} failed, {reads} reads, {snapshots} snapshots");
    assert!(acknowledged > 20_000 && reads > 2_000 && snapshots > 50 && failed > 50);
}

#[test]
fn members_come_and_go_in_a_storm() {
    let weather = Weather {
        change: 50,
        crash: 1,
        cut: 2,
        stall: 4,
        lose: 20,
        delay_ms_max: 15,
        ..STORM
    };
    let worlds = run("changes", 1000..1120, &weather);
    let acknowledged = |w: &World| {
        let changes = w.changes.iter();
        changes.filter(|c| w.acknowledged.contains_key(c)).count()
    };
    let changes: usize = worlds.iter().map(acknowledged).sum();
    let members = worlds.iter().flat_map(|w| w.members.values());
    let gone = members.filter(|m| m.gone).count();
    println!("{changes} changes, {gone} left");
    assert!(changes > 300 && gone > 50);
}

#[test]
fn five_members_and_a_single_one() {
    for members in [1, 2, 5] {
        let weather = Weather { members, ..STORM };
        run("size", 2000..2020, &weather);
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_disks_tear_and_fail() {
    let weather = Weather {
        files: true,
        crash: 4,
        ..STORM
    };
    let worlds = run("files", 3000..3060, &weather);
    let (acknowledged, _, _, snapshots) = totals(&worlds);
    let failed: usize = worlds.iter().map(|w| w.failed_writes).sum();
    let boots: u64 = worlds
        .iter()
        .flat_map(|w| w.members.values())
        .map(|m| m.boots)
        .sum();
    println!(
        "{acknowledged} acknowledged, {snapshots} snapshots, {boots} boots, {failed} failed writes"
    );
    assert!(acknowledged > 5_000 && boots > 500 && failed > 20);
}

#[test]
fn a_seed_decides_everything() {
    let digest = |seed| {
        let world = run("twice", seed..seed + 1, &STORM).pop().expect("one run");
        (world.truth, world.acknowledged, world.now, world.reads_done)
    };
    assert_eq!(digest(7), digest(7));
    assert_ne!(digest(7), digest(8));
}
