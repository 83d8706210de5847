//! `cargo xtask crash`: real input, a concurrent load, and members killed under it.
//!
//! Small segments and a small snapshot count make sure that segments are cut and that snapshots are taken,
//! sent and installed. Afterwards every member is read by itself and must tell the same history.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;

use crate::{
    client::Client,
    cluster::Cluster,
    go_etcd::{GoEtcd, Release},
    history::{self, Attempt},
    load::Load,
    workspace::{self, Outcome},
};

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
/// How many records are made up where the system has no package database.
const GENERATED_RECORDS: usize = 300;

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
    let records = records();
    let foreign: Vec<Vec<u8>> = records
        .iter()
        .map(|(key, _)| key.clone().into_bytes())
        .collect();
    let done = Arc::new(AtomicBool::new(false));
    let writer = {
        let (endpoints, etcdctl, done) = (
            cluster.endpoints(),
            etcdctl.map(Path::to_path_buf),
            done.clone(),
        );
        let handle = runtime.handle().clone();
        thread::spawn(move || {
            let written = put_records(&records, &endpoints, etcdctl.as_deref(), &handle);
            done.store(true, Ordering::Relaxed);
            written
        })
    };
    let killed = kill_members(cluster, runtime, seed);
    let written = writer
        .join()
        .map_err(|_| "the writer of records panicked".to_string())?;
    killed?;
    written?;
    while load.acknowledged() < OPERATIONS_MIN {
        thread::sleep(Duration::from_millis(50));
    }
    let report = runtime.block_on(load.finish())?;
    println!(
        "{} operations acknowledged, {} attempts without an answer, slowest {:.2} s, {} records, {:.0} s so far",
        report.acknowledged_at.len(),
        report
            .attempts
            .iter()
            .filter(|attempt| attempt.acknowledged.is_none())
            .count(),
        report.slowest.as_secs_f64(),
        foreign.len(),
        started.elapsed().as_secs_f64(),
    );
    runtime.block_on(verify(cluster, &report.attempts, &foreign))?;
    println!(
        "verified after {:.0} s in all",
        started.elapsed().as_secs_f64()
    );
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
            rejoin(cluster, runtime, victim)?;
            println!(
                "{} was wiped and joined again",
                cluster.members[victim].name
            );
        } else {
            cluster.start(victim)?;
        }
        cluster.wait_healthy()?;
    }
    Ok(())
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
async fn verify(cluster: &Cluster, attempts: &[Attempt], foreign: &[Vec<u8>]) -> Outcome {
    let mut clients = Vec::new();
    for endpoint in cluster.endpoints() {
        clients.push(Client::lazy(&endpoint)?);
    }
    let revision = settled(&mut clients).await?;
    let mut reads = tokio::task::JoinSet::new();
    for client in clients.iter().cloned() {
        let (attempts, foreign) = (attempts.to_vec(), foreign.to_vec());
        reads.spawn(async move {
            let found = history::verify(&client, &attempts, &foreign).await?;
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

/// The records of dpkg's status database by package, or as many made up.
fn records() -> Vec<(String, String)> {
    let text = fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default();
    let records: Vec<(String, String)> = text
        .split("\n\n")
        .filter_map(|record| {
            let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name));
            let architecture = field("Architecture: ").unwrap_or("none");
            Some((
                format!("dpkg/{}:{architecture}", field("Package: ")?),
                record.to_string(),
            ))
        })
        .collect();
    if !records.is_empty() {
        return records;
    }
    (0..GENERATED_RECORDS)
        .map(|at| {
            (
                format!("dpkg/package-{at}"),
                format!("Package: package-{at}\n{}", "Depends: a\n".repeat(at)),
            )
        })
        .collect()
}

/// Puts every record, through etcdctl where there is one, retrying until it is acknowledged.
fn put_records(
    records: &[(String, String)],
    endpoints: &[String],
    etcdctl: Option<&Path>,
    runtime: &tokio::runtime::Handle,
) -> Outcome {
    const TRIES_MAX: usize = 60;
    for (key, value) in records {
        let mut tries = 0;
        while let Err(error) = put_record(
            key,
            value,
            &endpoints[tries % endpoints.len()],
            etcdctl,
            runtime,
        ) {
            tries += 1;
            if tries == TRIES_MAX {
                return Err(format!("{key} cannot be put: {error}"));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }
    println!("{} records put", records.len());
    Ok(())
}

fn put_record(
    key: &str,
    value: &str,
    endpoint: &str,
    etcdctl: Option<&Path>,
    runtime: &tokio::runtime::Handle,
) -> Outcome {
    match etcdctl {
        Some(program) => workspace::output_of(Command::new(program).args([
            "--endpoints",
            endpoint,
            "put",
            "--",
            key,
            value,
        ]))
        .map(drop),
        None => runtime.block_on(async {
            Client::lazy(endpoint)?
                .put(key.as_bytes(), value.as_bytes())
                .await
                .map(drop)
        }),
    }
}
