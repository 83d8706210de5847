//! A real etcd server of two, whose other member is our transport alone, with a script for a raft.
//!
//! The script grants every vote and acknowledges every append, so the server becomes leader and commits through
//! us. It shows the wire of each release: both streams each way, votes, appends and heartbeats decoded, and link
//! heartbeats in time for neither side to give the other up.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Message, MessageType},
};

use super::{
    super::certificates::Certificates,
    ours::{Ours, Settings},
    over,
};
use crate::{client::Client, cluster::Cluster, go_etcd::GoEtcd, http_get, workspace::Outcome};

/// How long a leader may take, from the first message on.
const PUT_DEADLINE: Duration = Duration::from_secs(20);
/// How long the streams are watched: longer than the read timeout of 5 s after which either side gives up a
/// silent one.
const WATCHED: Duration = Duration::from_secs(6);
/// Link heartbeats come every 1.67 s; in each such time of the watch there must be one.
const LINK_HEARTBEAT_MAX: Duration = Duration::from_secs(2);
const KEY: &[u8] = b"scripted";
/// What is put through the server, and must pass through us.
const VALUE: &[u8] = b"acknowledged by a script";

/// Starts the server, is its other member, and ends it.
pub fn member_of_two(go: &GoEtcd, secure: bool, runtime: &Runtime, dir: &Path) -> Outcome {
    let mut cluster = Cluster::new(&[go.etcd.as_path(); 2], &[])?;
    let certificates = match secure {
        true => Some(Certificates::new(dir)?),
        false => None,
    };
    if let Some(files) = &certificates {
        for member in &mut cluster.members {
            files.give_to(member);
        }
    }
    cluster.start(0)?;
    let ended = runtime
        .block_on(scenario(&cluster, go, certificates.as_ref(), dir))
        .map_err(|error| format!("{error}\n{}", cluster.members[0].log_tail()));
    cluster.members[0].kill()?;
    ended?;
    println!(
        "etcd {}, {}: elected itself, committed and kept its streams with our transport as the other member",
        go.version,
        over(secure),
    );
    Ok(())
}

async fn scenario(
    cluster: &Cluster,
    go: &GoEtcd,
    certificates: Option<&Certificates>,
    dir: &Path,
) -> Outcome {
    let ids: Vec<MemberId> = cluster
        .members
        .iter()
        .map(|member| MemberId::derive(&[&member.peer_url], cluster.token(), None))
        .collect();
    let own_url = &cluster.members[1].peer_url;
    let mut ours = Ours::start(&Settings {
        id: ids[1],
        cluster: ClusterId::derive(&ids),
        version: &go.version,
        listen: own_url
            .split_once("//")
            .map_or(own_url, |(_, address)| address),
        dir,
        tls: certificates.map(Certificates::settings),
    })
    .await?;
    let url = cluster.members[0].peer_url.clone();
    ours.transport
        .add_peer(ids[0], &[url])
        .map_err(|error| error.to_string())?;
    ours.until("rafthttp_stream_attached", "", |attached| attached == 2.0)
        .await?;
    let seen = commits_through_us(&mut ours, &cluster.members[0].client_url).await?;
    let votes = [MessageType::RequestVote, MessageType::RequestPreVote];
    if !votes.iter().any(|vote| seen.contains(vote)) {
        return Err(format!("it asked for no vote, but sent {seen:?}"));
    }
    for needed in [MessageType::Append, MessageType::Heartbeat] {
        if !seen.contains(&needed) {
            return Err(format!("it sent no {needed:?}, but {seen:?}"));
        }
    }
    keeps_streams(&mut ours, cluster).await?;
    ours.stop().await
}

/// Answers the server until a put through it is acknowledged and read. Returns the kinds of messages that came.
async fn commits_through_us(ours: &mut Ours, client_url: &str) -> Outcome<BTreeSet<MessageType>> {
    let mut seen = BTreeSet::new();
    let mut carried = false;
    let put = put_and_get(client_url);
    tokio::pin!(put);
    let until = tokio::time::sleep(PUT_DEADLINE);
    tokio::pin!(until);
    loop {
        tokio::select! {
            done = &mut put => {
                done?;
                return match carried {
                    true => Ok(seen),
                    false => Err("a put was acknowledged that no append carried".into()),
                };
            }
            message = ours.message() => {
                let message = message?;
                seen.extend(message.kind());
                carried |= message.entries.iter().any(|entry| {
                    entry.data.windows(VALUE.len()).any(|window| window == VALUE)
                });
                ours.transport.send(answer(&message).into_iter().collect());
            }
            () = &mut until => {
                return Err(format!("no put within {PUT_DEADLINE:?}; it sent {seen:?}"));
            }
        }
    }
}

/// Puts, again and again until the server has a leader, and reads it linearizably: a leader asks us for that, too.
async fn put_and_get(client_url: &str) -> Outcome {
    let mut client = Client::lazy(client_url)?;
    while client.put(KEY, VALUE).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    match client.get(KEY).await?.as_deref() {
        Some(VALUE) => Ok(()),
        other => Err(format!("a put was acknowledged, but {other:?} is read")),
    }
}

/// For longer than either side's read timeout, link heartbeats come in time and no stream is lost.
async fn keeps_streams(ours: &mut Ours, cluster: &Cluster) -> Outcome {
    const RECEIVED: &str = "etcd_network_peer_received_bytes_total";
    // Messages of no member are link heartbeats.
    const OF_THE_LINK: &str = "From=\"0\"";
    let end = Instant::now() + WATCHED;
    while Instant::now() < end {
        let before = ours.metric(RECEIVED, OF_THE_LINK);
        let period = tokio::time::sleep(LINK_HEARTBEAT_MAX);
        tokio::pin!(period);
        loop {
            tokio::select! {
                message = ours.message() => {
                    ours.transport.send(answer(&message?).into_iter().collect());
                }
                () = &mut period => break,
            }
        }
        if ours.metric(RECEIVED, OF_THE_LINK) <= before {
            return Err(format!("no link heartbeat within {LINK_HEARTBEAT_MAX:?}"));
        }
    }
    let lost = ours.metric("etcd_network_disconnected_peers_total", "");
    let metrics = http_get::get(&format!("{}/metrics", cluster.members[0].client_url))?;
    let lost_by_go = http_get::metric_sum(&metrics, "etcd_network_disconnected_peers_total");
    if lost > 0.0 || lost_by_go.unwrap_or_default() > 0.0 {
        return Err(format!(
            "streams were lost: {lost} by us, {lost_by_go:?} by Go"
        ));
    }
    Ok(())
}

/// What a member says that agrees with everything.
fn answer(message: &Message) -> Option<Message> {
    let kind = match message.kind()? {
        MessageType::RequestPreVote => MessageType::RequestPreVoteResponse,
        MessageType::RequestVote => MessageType::RequestVoteResponse,
        MessageType::Append => MessageType::AppendResponse,
        MessageType::Heartbeat => MessageType::HeartbeatResponse,
        _ => return None,
    };
    let index = match kind {
        MessageType::AppendResponse => message.index + message.entries.len() as u64,
        _ => 0,
    };
    Some(Message {
        msg_type: kind as i32,
        from: message.to,
        to: message.from,
        term: message.term,
        index,
        context: message.context.clone(),
        ..Message::default()
    })
}
