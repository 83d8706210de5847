//! `cargo xtask up`: three members on loopback, a put and a get through each of them.
//!
//! With `--check` it also holds what an operator would look at (both streams of every ordered pair
//! attached, bytes flowing, a clean end on SIGTERM) and ends by itself.

use std::time::{Duration, Instant};

use crate::{
    client::Client,
    cluster::Cluster,
    http_get,
    workspace::{self, Outcome},
};

/// How many members.
const MEMBERS: usize = 3;
/// How long streams may take to be attached once all members are healthy.
const STREAMS_DEADLINE: Duration = Duration::from_secs(10);

/// How long a leader may take to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);

/// Runs the workflow. The logs stay when it fails.
pub fn up(check: bool) -> Outcome {
    let server = workspace::build_server()?;
    let mut cluster = Cluster::new(&[server.as_path(); MEMBERS], &[])?;
    scenario(&mut cluster, check)
        .map_err(|error| format!("{error}\nlogs are in {}", cluster.keep_files().display()))
}

fn scenario(cluster: &mut Cluster, check: bool) -> Outcome {
    let started = Instant::now();
    cluster.start_all()?;
    println!(
        "{MEMBERS} members are healthy after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(put_and_get(cluster))?;
    print_endpoints(cluster);
    if check {
        check_streams(cluster)?;
        return terminate(cluster);
    }
    let leader = cluster.leader(LEADER_DEADLINE)?;
    runtime.block_on(print_stream_request(cluster, leader))?;
    println!("\nCtrl-C ends them.");
    runtime
        .block_on(tokio::signal::ctrl_c())
        .map_err(|error| format!("cannot wait for Ctrl-C: {error}"))
}

/// A put via each member is read via all the others.
async fn put_and_get(cluster: &Cluster) -> Outcome {
    let mut clients = Vec::new();
    for endpoint in cluster.endpoints() {
        clients.push(Client::lazy(&endpoint)?);
    }
    for writer in 0..clients.len() {
        let (key, value) = (format!("up/{writer}"), format!("put via member {writer}"));
        clients[writer]
            .put(key.as_bytes(), value.as_bytes())
            .await?;
        for (reader, client) in clients.iter_mut().enumerate() {
            let found = client.get(key.as_bytes()).await?;
            if found.as_deref() != Some(value.as_bytes()) {
                return Err(format!(
                    "{key} put via member {writer} reads {found:?} via member {reader}"
                ));
            }
        }
    }
    println!("a put via each member was read via all of them");
    Ok(())
}

fn print_endpoints(cluster: &Cluster) {
    println!();
    for member in &cluster.members {
        println!(
            "{}  client {}  peer {}  metrics {}/metrics",
            member.name, member.client_url, member.peer_url, member.client_url
        );
    }
    println!(
        "\ntry: etcdctl --endpoints {} put greeting hello",
        cluster.endpoints().join(",")
    );
}

/// How to read what one follower tells another, in the other one's place: while that runs, it would dial again
/// and take its stream back.
async fn print_stream_request(cluster: &Cluster, leader: usize) -> Outcome {
    let (asked, ended) = ((leader + 1) % MEMBERS, (leader + 2) % MEMBERS);
    let mut ids = Vec::new();
    for at in [asked, ended] {
        let status = Client::lazy(&cluster.members[at].client_url)?
            .status()
            .await?;
        ids.push(status.header.unwrap_or_default());
    }
    let (asked, ended) = (&cluster.members[asked], &cluster.members[ended]);
    println!(
        "\nlook at a stream: end {} and read what {} tells it\n  kill {}\n  \
         curl -sNi {}/raft/stream/message/{:x} -H 'X-Etcd-Cluster-ID: {:x}' -H 'X-Raft-To: {:x}' \
         -H 'X-Server-Version: 3.6.0' -H 'X-Min-Cluster-Version: 3.0.0' | od -Ax -tx1z",
        ended.name,
        asked.name,
        ended.pid().unwrap_or_default(),
        asked.peer_url,
        ids[1].member_id,
        ids[0].cluster_id,
        ids[0].member_id,
    );
    Ok(())
}

/// Every ordered pair of members has both streams attached and has carried bytes.
fn check_streams(cluster: &Cluster) -> Outcome {
    let deadline = Instant::now() + STREAMS_DEADLINE;
    loop {
        match unattached(cluster) {
            Ok(None) => break,
            Ok(Some(missing)) | Err(missing) if Instant::now() > deadline => return Err(missing),
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    println!("every ordered pair has both streams attached and has carried bytes");
    Ok(())
}

/// The first member that lacks a stream or bytes, described.
fn unattached(cluster: &Cluster) -> Outcome<Option<String>> {
    for member in &cluster.members {
        let scrape = http_get::get(&format!("{}/metrics", member.client_url))?;
        let others = (cluster.members.len() - 1) as f64;
        let attached =
            http_get::metric_sum(&scrape, "rafthttp_stream_attached").unwrap_or_default();
        if attached != 2.0 * others {
            return Ok(Some(format!(
                "{} has {attached} outgoing streams attached, not {}",
                member.name,
                2.0 * others
            )));
        }
        // Every message and link heartbeat to a member counts here; what is received of link heartbeats
        // has no sender, so two followers may have received nothing from each other.
        let sent = http_get::samples(&scrape, "etcd_network_peer_sent_bytes_total");
        let carried = sent.filter(|(_, value)| *value > 0.0).count();
        if carried as f64 != others {
            return Ok(Some(format!(
                "{} has sent bytes to {carried} members, not {others}",
                member.name
            )));
        }
        let received = http_get::metric_sum(&scrape, "etcd_network_peer_received_bytes_total");
        if received.unwrap_or_default() <= 0.0 {
            return Ok(Some(format!("{} has received no bytes", member.name)));
        }
    }
    Ok(None)
}

fn terminate(cluster: &mut Cluster) -> Outcome {
    for member in &mut cluster.members {
        let status = member.terminate()?;
        if !status.success() {
            return Err(format!(
                "{} ended with {status} on SIGTERM\n{}",
                member.name,
                member.log_tail()
            ));
        }
    }
    println!("every member ended with 0 on SIGTERM");
    Ok(())
}
