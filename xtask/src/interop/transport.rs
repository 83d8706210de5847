//! `cargo xtask interop transport`: our transport alone against Go's own rafthttp, and against real servers.
//!
//! Go's package runs in a program of ours (`xtask/peers/rafthttp`), so that every kind of message crosses in both
//! directions over every channel, whatever a real server would say just then. Real servers of each release then
//! take our transport for a member. Every wait has a deadline.

mod go_peer;
mod json;
mod kinds;
mod ours;
mod scripted;

use std::{path::Path, time::Duration};

use tokio::{runtime::Runtime, sync::oneshot};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Message, MessageType},
};
use transport_http::{OutgoingSnapshot, SnapshotSource, SnapshotStatus};

use self::{
    go_peer::GoPeer,
    ours::{Ours, Settings, received_database},
};
use super::certificates::Certificates;
use crate::{
    go_etcd::{self, GoEtcd, Release},
    workspace::{self, Outcome},
};

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(20);
/// The two members; ids that need all 64 bits.
const OURS: MemberId = MemberId(0x5772_99c1_7ddd_c6e8);
const GO: MemberId = MemberId(0xb66b_2921_ec55_2136);
const CLUSTER: ClusterId = ClusterId(0x0e28_7c36_e4a5_3caa);
/// Size of the databases behind snapshots: several pieces, and not a whole number of them.
const DATABASE_BYTES: u64 = (3 << 20) + 7;
/// The releases whose servers take our transport for a member.
const RELEASES: [Release; 5] = [
    Release::Debian,
    Release::V3_5_1,
    Release::V3_5_35,
    Release::V3_6_16,
    Release::V3_7_3,
];

/// Who knows whom as what; a remote gets messages by the pipeline only, and opens no stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acquaintance {
    /// Both are peers: streams both ways.
    Peers,
    /// Go's transport is a remote of ours, which refuses the streams it asks for.
    GoIsRemote,
    /// Ours is a remote of Go's, which refuses the streams we ask for.
    OursIsRemote,
}

/// Every acquaintance, without TLS and with it.
const EXCHANGES: [(Acquaintance, bool); 6] = [
    (Acquaintance::Peers, false),
    (Acquaintance::GoIsRemote, false),
    (Acquaintance::OursIsRemote, false),
    (Acquaintance::Peers, true),
    (Acquaintance::GoIsRemote, true),
    (Acquaintance::OursIsRemote, true),
];

/// Runs every scenario; returns those that were skipped, each with its reason.
pub fn transport(runtime: &Runtime) -> Outcome<Vec<String>> {
    let mut skipped = Vec::new();
    match go_etcd::build_rafthttp() {
        Ok(program) => {
            for (acquaintance, secure) in EXCHANGES {
                let over = over(secure);
                in_a_folder(|dir| runtime.block_on(exchange(&program, acquaintance, secure, dir)))
                    .map_err(|error| format!("Go's rafthttp, {acquaintance:?}, {over}: {error}"))?;
                println!(
                    "{acquaintance:?}, {over}: every kind of message crossed between ours and Go's rafthttp"
                );
            }
        }
        Err(why) => skipped.push(format!("Go's rafthttp: {why}")),
    }
    for release in RELEASES {
        match GoEtcd::obtain(release) {
            Ok(go) => {
                for secure in [false, true] {
                    in_a_folder(|dir| scripted::member_of_two(&go, secure, runtime, dir)).map_err(
                        |error| {
                            let (version, over) = (&go.version, over(secure));
                            format!(
                                "our transport as a member beside etcd {version}, {over}: {error}"
                            )
                        },
                    )?;
                }
            }
            Err(why) => skipped.push(format!(
                "our transport beside etcd {}: {why}",
                release.name()
            )),
        }
    }
    Ok(skipped)
}

/// What a connection is.
fn over(secure: bool) -> &'static str {
    if secure { "TLS" } else { "plain TCP" }
}

/// Gives a scenario a folder, which stays when it fails.
fn in_a_folder(scenario: impl FnOnce(&Path) -> Outcome) -> Outcome {
    let base = workspace::target().join("clusters");
    std::fs::create_dir_all(&base)
        .map_err(|error| format!("cannot create {}: {error}", base.display()))?;
    let dir = tempfile::Builder::new()
        .prefix("transport-")
        .tempdir_in(base)
        .map_err(|error| format!("cannot create a folder: {error}"))?;
    scenario(dir.path()).map_err(|error| format!("{error}\nlogs are in {}", dir.keep().display()))
}

/// Every kind of message in both directions, and snapshots wherever a peer can send one.
async fn exchange(program: &Path, acquaintance: Acquaintance, secure: bool, dir: &Path) -> Outcome {
    let (our_dir, go_dir) = (dir.join("ours"), dir.join("go"));
    for dir in [&our_dir, &go_dir] {
        std::fs::create_dir(dir)
            .map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    }
    let certificates = match secure {
        true => Some(Certificates::new(dir)?),
        false => None,
    };
    let mut ours = Ours::start(&Settings {
        id: OURS,
        cluster: CLUSTER,
        version: "3.6.0",
        listen: "127.0.0.1:0",
        dir: &our_dir,
        tls: certificates.as_ref().map(Certificates::settings),
    })
    .await?;
    let mut go = GoPeer::start(program, GO, CLUSTER, &go_dir, certificates.as_ref()).await?;
    introduce(&mut ours, &mut go, acquaintance).await?;

    let sent = kinds::all(OURS.0, GO.0);
    ours.transport.send(sent.clone());
    let received = go.messages(sent.len()).await.map_err(to("Go"))?;
    same("from ours to Go", &sent, &received, acquaintance)?;
    // A snapshot message without a database goes by the pipeline in any case.
    go.posts(match acquaintance {
        Acquaintance::Peers => 1,
        _ => sent.len(),
    })
    .await?;

    let sent = kinds::all(GO.0, OURS.0);
    go.send(&sent).await?;
    let received = ours.messages(sent.len()).await.map_err(to("ours"))?;
    same("from Go to ours", &sent, &received, acquaintance)?;

    if acquaintance != Acquaintance::GoIsRemote {
        snapshot_to_go(&mut ours, &mut go, &go_dir).await?;
    }
    if acquaintance != Acquaintance::OursIsRemote {
        snapshot_to_ours(&mut ours, &mut go, &our_dir).await?;
    }
    go.stop().await?;
    ours.stop().await?;
    Ok(())
}

fn to(whom: &str) -> impl Fn(String) -> String {
    move |error| format!("messages to {whom}: {error}")
}

/// Makes them known to each other, and waits until the streams there will be are attached.
async fn introduce(ours: &mut Ours, go: &mut GoPeer, acquaintance: Acquaintance) -> Outcome {
    let go_urls = [go.url.clone()];
    let url = ours.url.clone();
    if acquaintance == Acquaintance::GoIsRemote {
        ours.transport.add_remote(GO, &go_urls)
    } else {
        ours.transport.add_peer(GO, &go_urls)
    }
    .map_err(|error| error.to_string())?;
    if acquaintance == Acquaintance::OursIsRemote {
        go.add("add_remote", OURS, &url).await?;
        go.answered("/raft/stream/", 404).await
    } else {
        go.add("add_peer", OURS, &url).await?;
        if acquaintance == Acquaintance::GoIsRemote {
            return Ok(());
        }
        go.answered("/raft/stream/msgapp/", 200).await?;
        go.answered("/raft/stream/message/", 200).await?;
        ours.until("rafthttp_stream_attached", "", |attached| attached == 2.0)
            .await
    }
}

/// All messages arrived as they were sent, and over a stream the appends in their order.
fn same(
    direction: &str,
    sent: &[Message],
    received: &[Message],
    acquaintance: Acquaintance,
) -> Outcome {
    let sorted = |messages: &[Message]| {
        let mut texts: Vec<String> = messages.iter().map(|m| format!("{m:?}")).collect();
        texts.sort_unstable();
        texts
    };
    for (sent, received) in sorted(sent).iter().zip(sorted(received)) {
        if *sent != received {
            return Err(format!(
                "{direction}: {sent:.400} arrived as {received:.400}"
            ));
        }
    }
    let appends = |messages: &[Message]| -> Vec<u64> {
        messages
            .iter()
            .filter(|message| message.kind() == Some(MessageType::Append))
            .map(|message| message.index)
            .collect()
    };
    if acquaintance == Acquaintance::Peers && appends(sent) != appends(received) {
        return Err(format!("{direction}: appends arrived in another order"));
    }
    Ok(())
}

async fn snapshot_to_go(ours: &mut Ours, go: &mut GoPeer, dir: &Path) -> Outcome {
    let message = kinds::snapshot(OURS.0, GO.0, 101);
    let (done, accepted) = oneshot::channel();
    ours.transport.send_snapshot(OutgoingSnapshot {
        message: message.clone(),
        source: Box::new(Pattern { at: 0 }),
        done: Some(done),
    });
    if go.messages(1).await? != [message] {
        return Err("Go received another snapshot message than we sent".into());
    }
    let accepted = tokio::time::timeout(DEADLINE, accepted).await;
    if accepted != Ok(Ok(true)) {
        return Err(format!("our snapshot to Go ended with {accepted:?}"));
    }
    // The first report is of the message that went by the pipeline, without a database.
    for _ in 0..2 {
        if ours.report().await? != (GO, SnapshotStatus::Finish) {
            return Err("a snapshot to Go was reported as failed".into());
        }
    }
    is_pattern(&received_database(dir, 101)?)
}

async fn snapshot_to_ours(ours: &mut Ours, go: &mut GoPeer, dir: &Path) -> Outcome {
    let message = kinds::snapshot(GO.0, OURS.0, 102);
    go.send_snapshot(&message, DATABASE_BYTES).await?;
    if ours.message().await? != message {
        return Err("we received another snapshot message than Go sent".into());
    }
    for _ in 0..2 {
        let report = go.event("snapshot", |_| true).await?;
        if report["ok"] != true {
            return Err(format!("Go's snapshot to us ended with {report}"));
        }
    }
    is_pattern(&received_database(dir, 102)?)
}

/// The database both sides know: byte i is i modulo 251.
struct Pattern {
    at: u64,
}

fn pattern_at(at: u64) -> u8 {
    (at % 251) as u8
}

impl SnapshotSource for Pattern {
    fn len(&self) -> u64 {
        DATABASE_BYTES
    }

    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(DATABASE_BYTES - self.at).unwrap_or(usize::MAX);
        let count = buf.len().min(left);
        for byte in &mut buf[..count] {
            *byte = pattern_at(self.at);
            self.at += 1;
        }
        Ok(count)
    }
}

fn is_pattern(database: &[u8]) -> Outcome {
    let whole = database.len() as u64 == DATABASE_BYTES;
    let equal = |(at, byte): (usize, &u8)| *byte == pattern_at(at as u64);
    match whole && database.iter().enumerate().all(equal) {
        true => Ok(()),
        false => Err(format!(
            "a database of {} bytes arrived, which is not the one that was sent",
            database.len()
        )),
    }
}
