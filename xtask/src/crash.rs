//! `cargo xtask crash`: real input, a concurrent load, and members killed under it.
//!
//! Small segments and a small snapshot count make segments be cut and snapshots be taken, sent and installed;
//! that it happened is checked in the members' files and metrics. Afterwards every member is read by itself and
//! must tell the same history. Invariant: the whole takes no longer than [`DURATION_MAX`].

mod records;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;

use crate::{
    client::Client,
    cluster::Cluster,
    go_etcd::{GoEtcd, Release},
    history::{self, Attempt, Repeated},
    load::Load,
    workspace::{self, Outcome},
};

/// How long the whole may take, from the first member's start to the last check.
const DURATION_MAX: Duration = Duration::from_secs(300);
/// How long kills and load may take, so that time is left for the checks.
const LOAD_DURATION_MAX: Duration = Duration::from_secs(200);
/// Operations the load must have had acknowledged at least.
const OPERATIONS_MIN: usize = 50_000;
/// How often the leader is killed.
const LEADER_KILLS: usize = 10;
/// How often a follower is killed.
const FOLLOWER_KILLS: usize = 5;
/// Concurrent clients.
const WORKERS: usize = 48;
/// Pause of each between two operations, so that what is verified afterwards stays in bounds.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a new leader may take to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);
/// How long members may take to have applied the same.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(60);
/// Flags that make segments and snapshots small and frequent.
const FLAGS: &[&str] = &[
    "--snapshot-count",
    "2000",
    "--snapshot-catchup-entries",
    "500",
];
/// Segment size for the same purpose, by the environment since etcd has no flag for it.
const SEGMENT_BYTES: &str = "1048576";

/// Runs the workflow with a seed.
pub fn crash(seed: u64) -> Outcome {
    let server = workspace::build_server()?;
    let etcdctl = match GoEtcd::obtain(Release::V3_6_16) {
        Ok(go) => Some(go.etcdctl),
        Err(why) if workspace::in_ci() => return Err(why),
        Err(why) => {
            eprintln!("skipped: records through etcdctl ({why}); they go through our own client");
            None
        }
    };
    let mut extra = FLAGS.to_vec();
    let segment = format!("--unsafe-wal-segment-bytes={SEGMENT_BYTES}");
    extra.push(&segment);
    let mut cluster = Cluster::new(&[server.as_path(); 3], &extra)?;
    let runtime = Runtime::new().map_err(|error| format!("cannot start a runtime: {error}"))?;
    println!("seed {seed}");
    match scenario(&mut cluster, &runtime, etcdctl.as_deref(), seed) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!(
            "seed {seed}: {error}\ndata and logs are in {}",
            cluster.keep_files().display()
        )),
    }
}

fn scenario(
    cluster: &mut Cluster,
    runtime: &Runtime,
    etcdctl: Option<&Path>,
    seed: u64,
) -> Outcome {
    let started = Instant::now();
    cluster.start_all()?;
    let load = {
        let _entered = runtime.enter();
        Load::start(&cluster.endpoints(), WORKERS, PAUSE, seed)?
    };
    let deadline = started + LOAD_DURATION_MAX;
    let writer = {
        let (endpoints, etcdctl) = (cluster.endpoints(), etcdctl.map(Path::to_path_buf));
        let handle = runtime.handle().clone();
        thread::spawn(move || {
            let records = records::records();
            records::put_all(records, &endpoints, etcdctl.as_deref(), &handle, deadline)
        })
    };
    let killed = kill_members(cluster, runtime, seed);
    let written = writer
        .join()
        .map_err(|_| "the writer of records panicked".to_string())?;
    while killed.is_ok() && load.acknowledged() < OPERATIONS_MIN && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    let report = runtime.block_on(load.finish())?;
    killed?;
    let records = written?;
    let acknowledged = report.acknowledged_at.len();
    if acknowledged < OPERATIONS_MIN {
        return Err(format!(
            "only {acknowledged} operations were acknowledged within {LOAD_DURATION_MAX:?}"
        ));
    }
    println!(
        "{acknowledged} operations acknowledged, {} attempts without an answer, slowest {:.2} s, {} records, {:.0} s so far",
        report.attempts.len() - acknowledged,
        report.slowest.as_secs_f64(),
        records.len(),
        started.elapsed().as_secs_f64(),
    );
    check_files(cluster)?;
    runtime.block_on(verify(cluster, &report.attempts, &records))?;
    let took = started.elapsed();
    println!("verified after {:.0} s in all", took.as_secs_f64());
    if took > DURATION_MAX {
        return Err(format!("took {took:.0?}, more than {DURATION_MAX:?}"));
    }
    Ok(())
}

/// Kills the leader ten times, followers five times, and wipes one member in between.
fn kill_members(cluster: &mut Cluster, runtime: &Runtime, seed: u64) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let total = LEADER_KILLS + FOLLOWER_KILLS;
    for round in 0..total {
        thread::sleep(Duration::from_millis(rng.random_range(500..2500)));
        let leader = cluster.leader(LEADER_DEADLINE)?;
        // Every third kill is a follower's.
        let victim = if round % 3 == 2 {
            (leader + rng.random_range(1..3)) % 3
        } else {
            leader
        };
        cluster.members[victim].kill()?;
        println!(
            "killed {} ({})",
            cluster.members[victim].name,
            if victim == leader {
                "leader"
            } else {
                "follower"
            }
        );
        thread::sleep(Duration::from_millis(rng.random_range(0..2000)));
        if round == total / 2 {
            rejoin_by_snapshot(cluster, runtime, victim)?;
        } else {
            cluster.start(victim)?;
        }
        cluster.wait_healthy()?;
    }
    Ok(())
}

/// Wipes and joins a dead member, which must get its state as a snapshot from another one.
fn rejoin_by_snapshot(cluster: &mut Cluster, runtime: &Runtime, victim: usize) -> Outcome {
    const SENT: &str = "etcd_network_snapshot_send_success";
    const RECEIVED: &str = "etcd_network_snapshot_receive_success";
    let sent = |cluster: &Cluster| -> f64 {
        cluster
            .members
            .iter()
            .filter_map(|member| member.metric(SENT))
            .sum()
    };
    let sent_before = sent(cluster);
    let log_before = read_log(cluster, victim)?.len();
    rejoin(cluster, runtime, victim)?;
    cluster.wait_healthy()?;
    let deadline = Instant::now() + CATCH_UP_DEADLINE;
    loop {
        let sent = sent(cluster) - sent_before;
        let received = cluster.members[victim].metric(RECEIVED).unwrap_or_default();
        let installed = read_log(cluster, victim)?[log_before..].contains("applied snapshot");
        if sent >= 1.0 && received >= 1.0 && installed {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{} was wiped, but snapshots sent: {sent}, received: {received}, installed: {installed}",
                cluster.members[victim].name
            ));
        }
        thread::sleep(Duration::from_millis(50));
    }
    println!(
        "{} was wiped and joined again: a snapshot was sent, received and installed",
        cluster.members[victim].name
    );
    Ok(())
}

fn read_log(cluster: &Cluster, at: usize) -> Outcome<String> {
    let log = &cluster.members[at].log;
    match fs::read(log) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(format!("cannot read {}: {error}", log.display())),
    }
}

/// On every member's disk: segments were cut, and snapshots taken.
fn check_files(cluster: &Cluster) -> Outcome {
    for member in &cluster.members {
        let segments = names(&member.data_dir.join("member/wal"))?;
        let cut = segments
            .iter()
            .filter_map(|name| segment_number(name))
            .max();
        let snapshots = names(&member.data_dir.join("member/snap"))?;
        let taken = snapshots
            .iter()
            .filter(|name| name.ends_with(".snap"))
            .count();
        println!(
            "{}: {} segments were cut, {taken} snapshot files are kept",
            member.name,
            cut.unwrap_or_default()
        );
        if cut.unwrap_or_default() == 0 || taken == 0 {
            return Err(format!(
                "{} cut no segment or took no snapshot",
                member.name
            ));
        }
    }
    Ok(())
}

/// The number of a segment in its name, `NUMBER-INDEX.wal` in hexadecimal digits.
fn segment_number(name: &str) -> Option<u64> {
    let (number, _) = name.strip_suffix(".wal")?.split_once('-')?;
    u64::from_str_radix(number, 16).ok()
}

fn names(dir: &Path) -> Outcome<Vec<String>> {
    let failed = |error: std::io::Error| format!("cannot list {}: {error}", dir.display());
    fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into()))
        .collect()
}

/// Removes a dead member from the cluster, wipes its data and joins it as a new one.
pub fn rejoin(cluster: &mut Cluster, runtime: &Runtime, victim: usize) -> Outcome {
    cluster.leader(LEADER_DEADLINE)?;
    let peer_url = cluster.members[victim].peer_url.clone();
    let survivor = cluster.members[(victim + 1) % cluster.members.len()]
        .client_url
        .clone();
    runtime.block_on(async {
        let mut client = Client::lazy(&survivor)?;
        let members = client.members().await?;
        let old = members
            .iter()
            .find(|member| member.peer_urls.contains(&peer_url));
        if let Some(old) = old {
            until_healthy(async || client.clone().member_remove(old.id).await).await?;
        }
        until_healthy(async || client.clone().member_add(&peer_url).await.map(drop)).await
    })?;
    cluster.wipe(victim)?;
    cluster.start(victim)
}

/// Repeats a change of the membership: members refuse one while they have been connected to the others for
/// less than five seconds.
async fn until_healthy(change: impl AsyncFn() -> Outcome) -> Outcome {
    let deadline = Instant::now() + LEADER_DEADLINE;
    loop {
        match change().await {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            Ok(()) => return Ok(()),
        }
    }
}

/// Every member tells the same history, and the hashes agree at three revisions.
async fn verify(cluster: &Cluster, attempts: &[Attempt], records: &[Repeated]) -> Outcome {
    let mut clients = Vec::new();
    for endpoint in cluster.endpoints() {
        clients.push(Client::lazy(&endpoint)?);
    }
    let revision = settled(&mut clients).await?;
    let mut reads = tokio::task::JoinSet::new();
    for client in clients.iter().cloned() {
        let (attempts, records) = (attempts.to_vec(), records.to_vec());
        reads.spawn(async move {
            let found = history::verify(&client, &attempts, &records).await?;
            Ok::<_, String>((client.endpoint, found))
        });
    }
    let mut first = None;
    while let Some(read) = reads.join_next().await {
        let (endpoint, found) = read.map_err(|error| format!("a check panicked: {error}"))??;
        println!("{endpoint}: {found:?}");
        if *first.get_or_insert(found) != found {
            return Err(format!("{endpoint} tells another history than the others"));
        }
    }
    for at in [revision / 3, 2 * revision / 3, revision] {
        equal_hashes(&mut clients, at).await?;
    }
    Ok(())
}

/// Waits until all members are at one revision, and returns it.
pub async fn settled(clients: &mut [Client]) -> Outcome<i64> {
    let deadline = Instant::now() + CATCH_UP_DEADLINE;
    loop {
        let mut revisions = Vec::new();
        for client in clients.iter_mut() {
            let status = client.status().await?;
            revisions.push(status.header.unwrap_or_default().revision);
        }
        if revisions.iter().all(|revision| *revision == revisions[0]) {
            return Ok(revisions[0]);
        }
        if Instant::now() > deadline {
            return Err(format!(
                "members stay at different revisions: {revisions:?}"
            ));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// All members give the same HashKV at `revision`.
pub async fn equal_hashes(clients: &mut [Client], revision: i64) -> Outcome {
    let mut hashes = Vec::new();
    for client in clients.iter_mut() {
        hashes.push(client.hash_kv(revision).await?);
    }
    if hashes.iter().any(|hash| *hash != hashes[0]) {
        return Err(format!("HashKV at revision {revision} differs: {hashes:?}"));
    }
    println!(
        "HashKV at revision {revision} is {} on all members",
        hashes[0].hash
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_says_how_many_were_cut_before_it() {
        let name = "000000000000001f-00000000000a2b3c.wal";
        assert_eq!(segment_number(name), Some(31));
        assert_eq!(segment_number("0.tmp"), None);
    }
}
