//! `cargo xtask bench`: puts against three of our members and three of Go's, in one run.
//!
//! Both clusters stay up and take turns. A single client talks to the leader on both sides, since a put through a
//! follower takes one more hop; many clients are spread over all members.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{runtime::Runtime, task::JoinSet};

use super::{median, write_json};
use crate::{
    client::Client,
    cluster::Cluster,
    go_etcd::{GoEtcd, Release},
    workspace::{self, Outcome},
};

/// Rounds of each case against each cluster.
const ROUNDS: usize = 5;
/// Length of one round.
const ROUND: Duration = Duration::from_secs(4);
/// Uncounted time at the start of a round.
const WARM_UP: Duration = Duration::from_millis(500);
/// How often a round is tried whose leader changes.
const ROUND_TRIES_MAX: usize = 3;
/// Size of a value.
const VALUE_BYTES: usize = 256;
/// Clock ticks per second that Linux reports process times in.
const TICKS_PER_SECOND: f64 = 100.0;

/// How long a leader may take to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);

/// Whom the connections of a case go to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// All to the leader.
    Leader,
    /// In turn to every member.
    AllMembers,
}

/// A workload.
struct Case {
    name: &'static str,
    target: Target,
    connections: usize,
    clients_per_connection: usize,
}

const CASES: &[Case] = &[
    Case {
        name: "1 client of the leader",
        target: Target::Leader,
        connections: 1,
        clients_per_connection: 1,
    },
    Case {
        name: "100 connections x 10 clients, over all members",
        target: Target::AllMembers,
        connections: 100,
        clients_per_connection: 10,
    },
];

/// One round's figures.
#[derive(Clone, Copy, Debug)]
struct Figures {
    puts_per_second: f64,
    cpu_us_per_put: f64,
}

/// Runs the workflow; `json` names a file for the figures.
pub fn bench(json: Option<&Path>) -> Outcome {
    let server = workspace::build_server()?;
    let go = GoEtcd::obtain(Release::V3_6_16)?;
    let mut ours = Cluster::new(&[server.as_path(); 3], &[])?;
    let mut gos = Cluster::new(&[go.etcd.as_path(); 3], &[])?;
    ours.start_all()?;
    gos.start_all()?;
    let runtime = Runtime::new().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let mut told = Vec::new();
    for case in CASES {
        let (mut of_ours, mut of_go) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            of_ours.push(round(&mut ours, case, &runtime)?);
            of_go.push(round(&mut gos, case, &runtime)?);
        }
        let (us, them) = (medians(&of_ours), medians(&of_go));
        println!("{}:", case.name);
        for (name, figures) in [("ours", us), ("Go 3.6.16", them)] {
            println!(
                "  {name:<10} {:>8.0} puts/s  {:>7.1} µs server CPU per put",
                figures.puts_per_second, figures.cpu_us_per_put
            );
        }
        let throughput = us.puts_per_second / them.puts_per_second;
        let cpu = us.cpu_us_per_put / them.cpu_us_per_put;
        println!("  ratio      throughput {throughput:.2}, CPU per put {cpu:.2}");
        told.push(json!({
            "case": case.name,
            "ours": { "puts_per_s": us.puts_per_second, "cpu_us_per_put": us.cpu_us_per_put },
            "go": { "puts_per_s": them.puts_per_second, "cpu_us_per_put": them.cpu_us_per_put },
            "throughput_ratio": throughput,
            "cpu_ratio": cpu,
        }));
    }
    write_json(json, told)
}

/// One round against one cluster. One whose leader changed meanwhile is repeated: elections are not what is
/// measured here.
fn round(cluster: &mut Cluster, case: &Case, runtime: &Runtime) -> Outcome<Figures> {
    for _ in 0..ROUND_TRIES_MAX {
        let leader = cluster.leader(LEADER_DEADLINE)?;
        let endpoints = match case.target {
            Target::Leader => vec![cluster.members[leader].client_url.clone()],
            Target::AllMembers => cluster.endpoints(),
        };
        let figures = runtime.block_on(puts(cluster, case, &endpoints))?;
        if cluster.leader(LEADER_DEADLINE)? == leader {
            return Ok(figures);
        }
    }
    Err(format!(
        "{}: the leader changed in each of {ROUND_TRIES_MAX} rounds",
        case.name
    ))
}

/// Puts by all clients for [`ROUND`], and what the servers' CPUs did meanwhile.
async fn puts(cluster: &Cluster, case: &Case, endpoints: &[String]) -> Outcome<Figures> {
    let stop = Arc::new(AtomicBool::new(false));
    let puts = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for connection in 0..case.connections {
        let shared = Client::lazy(&endpoints[connection % endpoints.len()])?;
        for at in 0..case.clients_per_connection {
            let (mut client, stop, puts) = (shared.clone(), stop.clone(), puts.clone());
            clients.spawn(async move {
                let value = vec![b'v'; VALUE_BYTES];
                let mut sequence = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("bench/{connection}/{at}/{}", sequence % 1000);
                    client.put(key.as_bytes(), &value).await?;
                    puts.fetch_add(1, Ordering::Relaxed);
                    sequence += 1;
                }
                Ok::<_, String>(())
            });
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let (started, puts_before, cpu_before) = (
        Instant::now(),
        puts.load(Ordering::Relaxed),
        cpu_seconds(cluster)?,
    );
    tokio::time::sleep(ROUND).await;
    let (elapsed, puts_after, cpu_after) = (
        started.elapsed(),
        puts.load(Ordering::Relaxed),
        cpu_seconds(cluster)?,
    );
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| format!("a client panicked: {error}"))??;
    }
    let done = (puts_after - puts_before).max(1) as f64;
    Ok(Figures {
        puts_per_second: done / elapsed.as_secs_f64(),
        cpu_us_per_put: (cpu_after - cpu_before) * 1e6 / done,
    })
}

/// User and system time of all members so far.
fn cpu_seconds(cluster: &Cluster) -> Outcome<f64> {
    let mut ticks = 0.0;
    for pid in cluster.members.iter().filter_map(|member| member.pid()) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_err(|error| format!("cannot read the CPU time of process {pid}: {error}"))?;
        ticks += process_ticks(&stat).ok_or_else(|| format!("cannot read /proc/{pid}/stat"))?;
    }
    Ok(ticks / TICKS_PER_SECOND)
}

/// Fields 14 and 15 of `/proc/PID/stat`; the name in field 2 may hold blanks and parentheses.
fn process_ticks(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn medians(rounds: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| median(rounds.iter().map(field).collect());
    Figures {
        puts_per_second: of(|f| f.puts_per_second),
        cpu_us_per_put: of(|f| f.cpu_us_per_put),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_times_are_found_behind_an_odd_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(process_ticks(stat), Some(300.0));
    }
}
