//! {ours, ours, Go} with TLS between members: a certificate of its own for each, and one asked of everybody.
//!
//! What the plain mixed cluster does, and what only TLS has: files that are replaced under a running member, with a
//! certificate the others take and with one they do not. Every wait has a deadline.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{
    FILLING_PUTS, FLAGS, GO, PUTS, caught_up_by_snapshot,
    certificates::{Authority, Certificates},
    move_leader, put_many, same_everywhere,
};
use crate::{
    cluster::Cluster,
    go_etcd::{GoEtcd, Release},
    http_get,
    workspace::{self, Outcome},
};

/// How long the members may take to find each other again.
const DEADLINE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The member whose certificate changes.
const ROTATED: usize = 0;
/// The one that leads meanwhile, so that the cluster works when the first is not let in.
const STEADY: usize = 1;
/// Streams a member sends on to two others.
const STREAMS: f64 = 4.0;

/// Runs the scenario; returns what was skipped.
pub fn secured(runtime: &Runtime) -> Outcome<Vec<String>> {
    let server = workspace::build_server()?;
    let release = Release::V3_6_16;
    let go = match GoEtcd::obtain(release) {
        Ok(go) => go,
        Err(why) => {
            let what = format!("mixed cluster over TLS with etcd {}", release.name());
            return Ok(vec![format!("{what}: {why}")]);
        }
    };
    println!("== {{ours, ours, Go {}}} over TLS", go.version);
    let mut cluster = Cluster::new(&[&server, &server, &go.etcd], FLAGS)?;
    match scenario(&mut cluster, runtime) {
        Ok(()) => Ok(Vec::new()),
        Err(error) => Err(format!(
            "mixed cluster over TLS with etcd {}: {error}\ndata and logs are in {}",
            go.version,
            cluster.keep_files().display()
        )),
    }
}

fn scenario(cluster: &mut Cluster, runtime: &Runtime) -> Outcome {
    let dir = tempfile::tempdir().map_err(|error| format!("no folder for files: {error}"))?;
    let authority = Authority::new(&folder(dir.path(), "ours")?)?;
    let mut files = Vec::new();
    for member in &mut cluster.members {
        let own = authority.issue(&member.name)?;
        own.give_to(member);
        files.push(own);
    }
    cluster.start_all()?;
    for at in 0..cluster.members.len() {
        put(cluster, runtime, at, &format!("via{at}"), PUTS)?;
    }
    println!("{PUTS} puts via each member");
    same_everywhere(cluster, runtime)?;
    move_leader(cluster, runtime, GO)?;
    put(cluster, runtime, ROTATED, "led-by-go", PUTS)?;
    move_leader(cluster, runtime, STEADY)?;
    println!("leadership moved to Go and back");
    restarted(cluster, runtime, ROTATED)?;
    println!("a member of ours was restarted");
    let stranger = Authority::new(&folder(dir.path(), "stranger")?)?;
    rotated(cluster, runtime, &files[ROTATED], (&authority, &stranger))?;

    put(cluster, runtime, STEADY, "filling", FILLING_PUTS)?;
    caught_up_by_snapshot(cluster, runtime, GO, STEADY)?;
    println!("a wiped Go member was caught up by our snapshot");
    move_leader(cluster, runtime, GO)?;
    put(cluster, runtime, ROTATED, "filling-again", FILLING_PUTS)?;
    caught_up_by_snapshot(cluster, runtime, ROTATED, GO)?;
    println!("a wiped member of ours was caught up by Go's snapshot");
    put(cluster, runtime, ROTATED, "afterwards", PUTS)?;
    same_everywhere(cluster, runtime)
}

fn folder(below: &Path, name: &str) -> Outcome<std::path::PathBuf> {
    let path = below.join(name);
    fs::create_dir(&path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
    Ok(path)
}

fn put(cluster: &Cluster, runtime: &Runtime, via: usize, prefix: &str, count: usize) -> Outcome {
    runtime.block_on(put_many(&cluster.members[via].client_url, prefix, count))
}

/// Ends a member in order and starts it again; it takes puts afterwards.
fn restarted(cluster: &mut Cluster, runtime: &Runtime, at: usize) -> Outcome {
    cluster.members[at].terminate()?;
    cluster.start(at)?;
    cluster.wait_healthy()?;
    put(cluster, runtime, at, &format!("restarted{at}"), PUTS)?;
    same_everywhere(cluster, runtime)
}

/// Replaces the certificate of a running member: by one the others take, by one they do not, and by a good one again.
/// Connections that are open stay, so the Go member is restarted each time: its handshakes meet what is there then.
fn rotated(
    cluster: &mut Cluster,
    runtime: &Runtime,
    files: &Certificates,
    (authority, stranger): (&Authority, &Authority),
) -> Outcome {
    let pid = cluster.members[ROTATED].pid();
    let (reloads, reconnects) = (reloads(cluster)?, sum(cluster, "rafthttp_reconnects_total"));
    let refused = refusals(cluster);
    authority.renew(files)?;
    restarted(cluster, runtime, GO)?;
    until(cluster, "all streams behind a new certificate", |cluster| {
        Ok(sum(cluster, "rafthttp_stream_attached") == STREAMS)
    })?;
    if reloads + 1 != self::reloads(cluster)? || refused != refusals(cluster) {
        return Err("the new certificate was not read once, or was refused".into());
    }
    let reconnects = sum(cluster, "rafthttp_reconnects_total") - reconnects;
    println!(
        "a certificate was replaced under a running member: read once, {reconnects} reconnects, none refused"
    );

    stranger.renew(files)?;
    restarted(cluster, runtime, GO)?;
    until(
        cluster,
        "a stranger's certificate to be refused",
        |cluster| {
            Ok(refusals(cluster) > refused && sum(cluster, "rafthttp_stream_attached") < STREAMS)
        },
    )?;
    println!(
        "with a stranger's certificate the Go member lets it in no more, and the cluster goes on"
    );
    authority.renew(files)?;
    until(
        cluster,
        "all streams behind a good certificate",
        |cluster| Ok(sum(cluster, "rafthttp_stream_attached") == STREAMS),
    )?;
    if pid != cluster.members[ROTATED].pid() {
        return Err("the member did not run all the time".into());
    }
    println!("with a good one it is back, in the same process");
    put(cluster, runtime, ROTATED, "rotated", PUTS)?;
    same_everywhere(cluster, runtime)
}

fn until(
    cluster: &Cluster,
    what: &str,
    mut holds: impl FnMut(&Cluster) -> Outcome<bool>,
) -> Outcome {
    let deadline = Instant::now() + DEADLINE;
    while !holds(cluster)? {
        if Instant::now() > deadline {
            return Err(format!("waited in vain for {what}"));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// A metric of the member whose certificate changes, over all its label sets.
fn sum(cluster: &Cluster, metric: &str) -> f64 {
    cluster.members[ROTATED].metric(metric).unwrap_or_default()
}

/// Handshakes in which the other side did not want its certificate.
fn refusals(cluster: &Cluster) -> f64 {
    let url = format!("{}/metrics", cluster.members[ROTATED].client_url);
    let scrape = http_get::get(&url).unwrap_or_default();
    http_get::samples(&scrape, "rafthttp_handshake_failures_total")
        .filter(|(labels, _)| labels.contains("cause=\"refused\""))
        .map(|(_, count)| count)
        .sum()
}

/// How often it has found changed files, by its log.
fn reloads(cluster: &Cluster) -> Outcome<usize> {
    let log = &cluster.members[ROTATED].log;
    let text = fs::read_to_string(log)
        .map_err(|error| format!("cannot read {}: {error}", log.display()))?;
    Ok(text.matches("reloaded changed TLS files").count())
}
