//! `cargo xtask failover`: how long writes stand still when the leader is killed.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use crate::{
    cluster::Cluster,
    load::{Load, Report},
    workspace::{self, Outcome},
};

/// How often the leader is killed.
const KILLS: usize = 10;
/// Concurrent clients.
const WORKERS: usize = 16;
/// Pause of each between two operations.
const THINK_TIME: Duration = Duration::from_millis(5);
/// The members' default election timeout.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);
/// The longest a retrying client may need for one operation.
const OPERATION_MAX: Duration = Duration::from_secs(10);
/// Time between a recovery and the next kill.
const PAUSE: Duration = Duration::from_secs(3);
/// How long a new leader may take to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);

/// Runs the workflow.
pub fn failover() -> Outcome {
    let server = workspace::build_server()?;
    let mut cluster = Cluster::new(&[server.as_path(); 3], &[])?;
    match scenario(&mut cluster) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!(
            "{error}\ndata and logs are in {}",
            cluster.keep_files().display()
        )),
    }
}

fn scenario(cluster: &mut Cluster) -> Outcome {
    cluster.start_all()?;
    let runtime = Runtime::new().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let load = {
        let _entered = runtime.enter();
        Load::start(&cluster.endpoints(), WORKERS, THINK_TIME, 1)?
    };
    let mut kills = Vec::new();
    for _ in 0..KILLS {
        thread::sleep(PAUSE);
        let leader = cluster.leader(LEADER_DEADLINE)?;
        kills.push(Instant::now());
        cluster.members[leader].kill()?;
        thread::sleep(PAUSE);
        cluster.start(leader)?;
        cluster.wait_healthy()?;
    }
    let report = runtime.block_on(load.finish())?;
    judge(&report, &kills, Instant::now())
}

fn judge(report: &Report, kills: &[Instant], ended: Instant) -> Outcome {
    // Writes that stand still to the end make a gap, too.
    let mut acknowledged = report.acknowledged_at.clone();
    acknowledged.push(ended);
    let mut gaps: Vec<Duration> = kills
        .iter()
        .map(|kill| gap_after(&acknowledged, *kill))
        .collect();
    gaps.sort_unstable();
    let median = gaps[gaps.len() / 2];
    println!(
        "{} operations, {KILLS} leader kills: write gap median {} ms, all {:?} ms; slowest operation {:.2} s",
        report.acknowledged_at.len(),
        median.as_millis(),
        gaps.iter().map(Duration::as_millis).collect::<Vec<_>>(),
        report.slowest.as_secs_f64(),
    );
    if report.slowest > OPERATION_MAX {
        return Err(format!(
            "an operation took {:?}, more than {OPERATION_MAX:?}",
            report.slowest
        ));
    }
    if median > 2 * ELECTION_TIMEOUT {
        return Err(format!(
            "the median write gap is {median:?}, more than twice the election timeout"
        ));
    }
    Ok(())
}

/// The longest time without an acknowledgement that begins around `kill`, before the next one can.
fn gap_after(acknowledged: &[Instant], kill: Instant) -> Duration {
    let window = kill..kill + 2 * PAUSE;
    acknowledged
        .windows(2)
        .filter(|pair| pair[1] >= window.start && pair[0] < window.end)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_never_come_back_are_a_gap() {
        let start = Instant::now();
        let report = Report {
            acknowledged_at: vec![start, start + Duration::from_millis(900)],
            ..Report::default()
        };
        let kill = start + Duration::from_secs(1);
        let ended = start + Duration::from_secs(6);
        let error = judge(&report, &[kill], ended).unwrap_err();
        assert!(error.contains("the median write gap is 5.1s"), "{error}");
    }

    #[test]
    fn the_longest_pause_around_the_kill_counts() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let acknowledged = [at(0), at(900), at(1000), at(2200), at(2300), at(9000)];
        assert_eq!(
            gap_after(&acknowledged, at(1100)),
            Duration::from_millis(6700)
        );
        assert_eq!(
            gap_after(&acknowledged[..5], at(1100)),
            Duration::from_millis(1200)
        );
    }
}
