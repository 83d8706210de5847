//! `cargo xtask interop`: our members and Go's in one cluster, plain and with TLS, each on the other's disk, and our
//! transport alone against Go's.

mod certificates;
mod secured;
mod transport;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    client::Client,
    cluster::Cluster,
    crash::{equal_hashes, rejoin, settled},
    go_etcd::{GoEtcd, Release},
    workspace::{self, Outcome},
};

/// Puts via each member.
const PUTS: usize = 1000;
/// Puts that push the log's beginning out of what a leader keeps (5000 entries), so that a member that
/// comes with nothing needs a snapshot.
const FILLING_PUTS: usize = 7000;
/// Concurrent puts.
const WORKERS: usize = 32;
/// Flags of every member of a mixed cluster.
const FLAGS: &[&str] = &["--snapshot-count", "500"];
/// How long leadership may take to move, or a leader to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);
/// Where the Go member stands in a mixed cluster.
const GO: usize = 2;

/// The names of parts that can be run alone: our transport, and the mixed cluster that speaks TLS.
pub const PARTS: [&str; 2] = ["transport", "tls"];

/// Runs every scenario, or those of one part; one that lacks its Go etcd is named as skipped, which in CI is a failure.
pub fn interop(part: Option<&str>) -> Outcome {
    let runtime = Runtime::new().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let [transport, tls] = PARTS.map(|name| part.is_none_or(|part| part == name));
    let mut skipped = Vec::new();
    if transport {
        skipped.extend(transport::transport(&runtime)?);
    }
    if tls {
        skipped.extend(secured::secured(&runtime)?);
    }
    if part.is_none() {
        skipped.extend(members(&runtime)?);
    }
    for skip in &skipped {
        eprintln!("skipped: {skip}");
    }
    if workspace::in_ci() && !skipped.is_empty() {
        return Err(format!("{} scenarios were skipped", skipped.len()));
    }
    Ok(())
}

/// Mixed clusters and exchanged disks; returns what was skipped.
fn members(runtime: &Runtime) -> Outcome<Vec<String>> {
    let server = workspace::build_server()?;
    let mut skipped = Vec::new();
    for release in [Release::V3_6_16, Release::V3_5_1] {
        match GoEtcd::obtain(release) {
            Ok(go) => mixed(&server, &go, runtime)
                .map_err(|error| format!("mixed cluster with etcd {}: {error}", go.version))?,
            Err(why) => skipped.push(format!("mixed cluster with etcd {}: {why}", release.name())),
        }
    }
    for release in [Release::V3_5_35, Release::V3_6_16, Release::V3_7_3] {
        match GoEtcd::obtain(release) {
            Ok(go) => exchanged_disks(&server, &go, runtime)
                .map_err(|error| format!("disks exchanged with etcd {}: {error}", go.version))?,
            Err(why) => skipped.push(format!(
                "disks exchanged with etcd {}: {why}",
                release.name()
            )),
        }
    }
    Ok(skipped)
}

/// {ours, ours, Go}: puts via each, leadership to Go and back, snapshots both ways, equal hashes.
fn mixed(server: &Path, go: &GoEtcd, runtime: &Runtime) -> Outcome {
    println!("== {{ours, ours, Go {}}}", go.version);
    let mut cluster = Cluster::new(&[server, server, go.etcd.as_path()], FLAGS)?;
    if go.release == Release::V3_5_1 {
        // While the Go member is out, all others would be of 3.6, the cluster version would rise to that,
        // and nothing of 3.5 could come back.
        for member in &mut cluster.members[..GO] {
            member.extra.push("--announced-server-version=3.5.1".into());
        }
    }
    match mixed_scenario(&mut cluster, runtime) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!(
            "{error}\ndata and logs are in {}",
            cluster.keep_files().display()
        )),
    }
}

fn mixed_scenario(cluster: &mut Cluster, runtime: &Runtime) -> Outcome {
    cluster.start_all()?;
    for at in 0..cluster.members.len() {
        runtime.block_on(put_many(
            &cluster.members[at].client_url,
            &format!("via{at}"),
            PUTS,
        ))?;
    }
    println!("{PUTS} puts via each member");
    same_everywhere(cluster, runtime)?;
    move_leader(cluster, runtime, GO)?;
    runtime.block_on(put_many(&cluster.members[0].client_url, "led-by-go", PUTS))?;
    move_leader(cluster, runtime, 0)?;
    println!("leadership moved to Go and back");
    runtime.block_on(put_many(
        &cluster.members[0].client_url,
        "filling",
        FILLING_PUTS,
    ))?;
    caught_up_by_snapshot(cluster, runtime, GO, 0)?;
    println!("a wiped Go member was caught up by our snapshot");
    move_leader(cluster, runtime, GO)?;
    runtime.block_on(put_many(
        &cluster.members[0].client_url,
        "filling-again",
        FILLING_PUTS,
    ))?;
    caught_up_by_snapshot(cluster, runtime, 1, GO)?;
    println!("a wiped member of ours was caught up by Go's snapshot");
    runtime.block_on(put_many(&cluster.members[1].client_url, "afterwards", PUTS))?;
    same_everywhere(cluster, runtime)
}

/// Wipes and rejoins `member` and makes sure that it was `leader` who sent it a snapshot.
fn caught_up_by_snapshot(
    cluster: &mut Cluster,
    runtime: &Runtime,
    member: usize,
    leader: usize,
) -> Outcome {
    const SENT: &str = "etcd_network_snapshot_send_success";
    let before = cluster.members[leader].metric(SENT).unwrap_or_default();
    cluster.members[member].kill()?;
    rejoin(cluster, runtime, member)?;
    healthy_under_writes(cluster, runtime, member, leader)?;
    same_everywhere(cluster, runtime)?;
    let sent = cluster.members[leader].metric(SENT).unwrap_or_default() - before;
    if sent < 1.0 {
        return Err(format!(
            "{} sent no snapshot to {}",
            cluster.members[leader].name, cluster.members[member].name
        ));
    }
    Ok(())
}

/// Waits until `member` is healthy while the cluster goes on writing, as clusters do.
///
/// A quiet one would wait for ever now and then: Go counts as applied only entries, not the snapshot they
/// came in, so behind one of more than 5000 entries it refuses its own requests ("too many requests"),
/// the announcement of itself too, until the next entry comes.
fn healthy_under_writes(
    cluster: &mut Cluster,
    runtime: &Runtime,
    member: usize,
    leader: usize,
) -> Outcome {
    let writes = runtime.spawn({
        let endpoint = cluster.members[leader].client_url.clone();
        async move {
            let mut client = Client::lazy(&endpoint)?;
            for at in 0_u64.. {
                client.put(b"while-joining", &at.to_be_bytes()).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, String>(())
        }
    });
    let healthy = cluster.wait_healthy();
    writes.abort();
    match runtime.block_on(writes) {
        Ok(Err(error)) => Err(format!("a write while {member} joins failed: {error}")),
        _ => healthy,
    }
}

/// All members reach one revision, with one hash of it and of an earlier one.
fn same_everywhere(cluster: &Cluster, runtime: &Runtime) -> Outcome {
    runtime.block_on(async {
        let mut clients = Vec::new();
        for endpoint in cluster.endpoints() {
            clients.push(Client::lazy(&endpoint)?);
        }
        let revision = settled(&mut clients).await?;
        equal_hashes(&mut clients, revision / 2).await?;
        equal_hashes(&mut clients, revision).await
    })
}

fn move_leader(cluster: &mut Cluster, runtime: &Runtime, to: usize) -> Outcome {
    let deadline = Instant::now() + LEADER_DEADLINE;
    loop {
        let leader = cluster.leader(LEADER_DEADLINE)?;
        if leader == to {
            return Ok(());
        }
        let (url, peer_url) = (
            &cluster.members[leader].client_url,
            &cluster.members[to].peer_url,
        );
        let moved = runtime.block_on(async {
            let mut client = Client::lazy(url)?;
            let members = client.members().await?;
            let target = members
                .iter()
                .find(|member| member.peer_urls.contains(peer_url));
            client
                .move_leader(target.map(|member| member.id).unwrap_or_default())
                .await
        });
        match moved {
            // The new leader's own metric follows a moment later.
            Ok(()) => std::thread::sleep(Duration::from_millis(500)),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}

/// Concurrent puts of distinct keys via one member.
async fn put_many(endpoint: &str, prefix: &str, count: usize) -> Outcome {
    let mut tasks = JoinSet::new();
    let client = Client::lazy(endpoint)?;
    for worker in 0..WORKERS {
        let (mut client, prefix) = (client.clone(), prefix.to_string());
        tasks.spawn(async move {
            for at in (worker..count).step_by(WORKERS) {
                client
                    .put(
                        format!("{prefix}/{at}").as_bytes(),
                        format!("value {at}").as_bytes(),
                    )
                    .await?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| format!("a writer panicked: {error}"))??;
    }
    Ok(())
}

/// A copy of our WAL boots under Go, and a copy of Go's under us; keys and hashes are equal.
fn exchanged_disks(server: &Path, go: &GoEtcd, runtime: &Runtime) -> Outcome {
    println!("== disks exchanged with Go {}", go.version);
    // The log holds the cluster version, and nobody runs in a cluster that is newer than itself.
    let announced = format!("--announced-server-version={}", go.version);
    boots_on(
        (server, &[&announced]),
        (&go.etcd, &["--force-new-cluster"]),
        runtime,
    )?;
    println!("Go {} boots on our WAL", go.version);
    boots_on((&go.etcd, &[]), (server, &[&announced]), runtime)?;
    println!("our member boots on the WAL of Go {}", go.version);
    Ok(())
}

/// Fills a member of `from` (a program and its flags), ends it, and boots `onto` on a copy of its WAL alone.
fn boots_on(from: (&Path, &[&str]), onto: (&Path, &[&str]), runtime: &Runtime) -> Outcome {
    let mut source = Cluster::new(&[from.0], from.1)?;
    source.start_all()?;
    runtime.block_on(put_many(&source.members[0].client_url, "disk", PUTS))?;
    let mut target = Cluster::new(&[onto.0], onto.1)?;
    let wal = target.members[0].data_dir.join("member/wal");
    let expected = runtime.block_on(async {
        let mut client = Client::lazy(&source.members[0].client_url)?;
        let revision = settled(std::slice::from_mut(&mut client)).await?;
        Ok::<_, String>((revision, client.hash_kv(0).await?))
    })?;
    // An orderly end: Go drops what the log does not say is committed, and a commit index is written late.
    source.members[0].terminate()?;
    workspace::copy_dir(&source.members[0].data_dir.join("member/wal"), &wal)
        .map_err(|error| format!("cannot copy the WAL: {error}"))?;
    target.start_all().inspect_err(|_| {
        source.keep_files();
        target.keep_files();
    })?;
    let found = runtime.block_on(async {
        let mut client = Client::lazy(&target.members[0].client_url)?;
        let revision = settled(std::slice::from_mut(&mut client)).await?;
        Ok::<_, String>((revision, client.hash_kv(0).await?))
    })?;
    if found != expected {
        return Err(format!(
            "revision and hash are {found:?} on the copy, {expected:?} on the original"
        ));
    }
    Ok(())
}
