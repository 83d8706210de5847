//! Peers and remotes come and go: add, update, remove, introductions by header, stop.

mod common;

use std::time::Duration;

use common::{
    Member, message, pair,
    raw::{Raw, open_stream, request},
    soon,
};
use tokio::net::TcpListener;
use transport_core::{MemberId, raftpb::MessageType};
use transport_http::{StartError, Transport, TransportConfig, UrlError};

fn url(text: &str) -> Vec<String> {
    vec![text.to_owned()]
}

#[tokio::test]
async fn messages_go_to_whom_they_are_for() {
    let mut members = Vec::new();
    for id in 1..=3 {
        members.push(Member::start(id).await);
    }
    for member in &members {
        for other in members.iter().filter(|other| other.id != member.id) {
            member.add(other);
        }
    }
    let to = |id, term| transport_core::raftpb::Message {
        term,
        ..message(MessageType::RequestVote, 1, id)
    };
    members[0].transport.send(vec![
        to(0, 1),
        to(2, 2),
        to(99, 3),
        to(3, 4),
        to(1, 5),
        to(2, 6),
    ]);
    // By whichever channel is there first: order holds within a channel only.
    let mut got = vec![
        members[1].message().await.term,
        members[1].message().await.term,
    ];
    got.sort_unstable();
    assert_eq!(got, [2, 6]);
    assert_eq!(members[2].message().await.term, 4);
    // One to nobody known, one to the sender itself.
    let unknown = "rafthttp_dropped_messages_total{Remote=unknown,queue=none,reason=unknown_peer}";
    assert_eq!(members[0].recorder.value(unknown), 2.0);
    for member in members {
        member.stop().await;
    }
}

#[tokio::test]
async fn adding_updating_and_removing_is_idempotent() {
    let a = Member::start(1).await;
    let add = |id, text| a.transport.add_peer(MemberId(id), &url(text));
    assert_eq!(
        add(2, "http://127.0.0.1:1/"),
        Err(UrlError::Path("http://127.0.0.1:1/".to_owned()))
    );
    assert_eq!(a.transport.add_peer(MemberId(2), &[]), Err(UrlError::None));
    assert_eq!(a.transport.peers(), []);
    add(2, "http://127.0.0.1:1").unwrap();
    let (stream, head) = open_stream(a.address, "message", 2, 1).await;
    assert_eq!(head.status(), 200);
    // The second time it is the same peer: its stream stays.
    add(2, "http://127.0.0.1:2").unwrap();
    add(1, "http://127.0.0.1:2").unwrap();
    assert_eq!(
        a.transport.peers(),
        [MemberId(2)],
        "the local member is no peer"
    );
    assert!(a.transport.active_since(MemberId(2)).is_some());
    a.transport
        .update_peer(MemberId(2), &url("http://127.0.0.1:3"))
        .unwrap();
    a.transport
        .update_peer(MemberId(7), &url("http://127.0.0.1:3"))
        .unwrap();
    assert!(
        a.transport
            .update_peer(MemberId(7), &url("nonsense"))
            .is_err()
    );
    a.transport.remove_peer(MemberId(2));
    a.transport.remove_peer(MemberId(2));
    assert_eq!(
        (a.transport.peers(), a.transport.active_peers()),
        (vec![], 0)
    );
    assert_eq!(
        a.recorder
            .value("etcd_network_active_peers{Local=1,Remote=2}"),
        0.0,
        "the gauge forgets it"
    );
    let mut stream = stream;
    assert!(stream.chunked().await.is_ok(), "the stream ends properly");
    let (_, head) = open_stream(a.address, "message", 2, 1).await;
    assert_eq!(head.status(), 404);
    // And back again, as after a snapshot was installed.
    add(2, "http://127.0.0.1:1").unwrap();
    let (_stream, head) = open_stream(a.address, "message", 2, 1).await;
    assert_eq!(head.status(), 200);
    a.transport.remove_all_peers();
    assert_eq!(a.transport.peers(), []);
    a.stop().await;
}

#[tokio::test]
async fn an_update_leads_to_the_new_address() {
    let (a, mut b) = (Member::start(1).await, Member::start(2).await);
    a.transport
        .add_peer(b.id, &url("http://127.0.0.1:1"))
        .unwrap();
    b.transport
        .add_peer(a.id, &url("http://127.0.0.1:1"))
        .unwrap();
    a.transport.update_peer(b.id, &b.urls()).unwrap();
    a.streams_up(1).await;
    b.transport.update_peer(a.id, &a.urls()).unwrap();
    b.streams_up(1).await;
    a.transport
        .send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    assert_eq!(b.message().await, message(MessageType::TimeoutNow, 1, 2));
    a.stop().await;
    b.stop().await;
}

/// Posts a message from `from`, who says it lives at `urls`.
async fn introduce(member: &Member, from: u64, urls: &str) {
    let mut raw = Raw::connect(member.address).await;
    let from = format!("{from:x}");
    let headers = [
        ("X-Server-From", from.as_str()),
        ("X-PeerURLs", urls),
        ("Content-Length", "0"),
    ];
    raw.write(request("POST", "/raft", &headers)).await;
    assert_eq!(raw.head().await.unwrap().status(), 204);
}

/// Whether a message to `to` arrives at `listener` as a POST.
async fn reaches(member: &Member, to: u64, listener: &TcpListener) -> bool {
    member
        .transport
        .send(vec![message(MessageType::AppendResponse, 1, to)]);
    match tokio::time::timeout(Duration::from_millis(300), listener.accept()).await {
        Ok(accepted) => Raw::new(accepted.unwrap().0)
            .head()
            .await
            .unwrap()
            .start
            .starts_with("POST /raft "),
        Err(_) => false,
    }
}

#[tokio::test]
async fn who_introduces_itself_can_be_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = format!("http://{}", listener.local_addr().unwrap());
    let a = Member::start_with(1, |config| config.limits.remotes = 2).await;
    a.raft.removed.lock().unwrap().push(MemberId(66));
    assert!(!reaches(&a, 5, &listener).await, "nobody knows 5");
    introduce(&a, 5, &urls).await;
    assert!(reaches(&a, 5, &listener).await);
    // By a stream request, too.
    let mut raw = Raw::connect(a.address).await;
    raw.write(request(
        "GET",
        "/raft/stream/message/6",
        &[("X-Raft-To", "1"), ("X-PeerURLs", &urls)],
    ))
    .await;
    assert_eq!(raw.head().await.unwrap().status(), 404);
    assert!(reaches(&a, 6, &listener).await);
    // Two are enough here; removed members, the local one and bad URLs never count.
    introduce(&a, 7, &urls).await;
    assert!(!reaches(&a, 7, &listener).await, "there are too many");
    introduce(&a, 66, &urls).await;
    assert!(!reaches(&a, 66, &listener).await, "it was removed");
    introduce(&a, 1, &urls).await;
    assert!(!reaches(&a, 1, &listener).await, "that is ourselves");
    // The owner's own remotes are not bounded by what strangers do.
    a.transport.add_remote(MemberId(8), &[urls]).unwrap();
    assert!(reaches(&a, 8, &listener).await);
    a.transport.cut_peer(MemberId(8));
    assert!(!reaches(&a, 8, &listener).await, "cut");
    a.transport.mend_peer(MemberId(8));
    assert!(reaches(&a, 8, &listener).await, "mended");
    a.stop().await;
}

#[tokio::test]
async fn removing_a_member_ends_the_remote_it_introduced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = format!("http://{}", listener.local_addr().unwrap());
    let a = Member::start(1).await;
    introduce(&a, 5, &urls).await;
    a.transport
        .add_remote(MemberId(6), std::slice::from_ref(&urls))
        .unwrap();
    a.transport.remove_peer(MemberId(5));
    assert!(!reaches(&a, 5, &listener).await);
    a.transport.remove_peer(MemberId(6));
    assert!(reaches(&a, 6, &listener).await, "the owner asked for it");
    a.stop().await;
}

#[tokio::test]
async fn a_transport_that_is_dropped_ends_its_tasks() {
    let metrics = || tokio::runtime::Handle::current().metrics();
    let idle = metrics().num_alive_tasks();
    let recorder = std::sync::Arc::new(common::recorder::TestRecorder::default());
    let config = TransportConfig::new(MemberId(1), common::CLUSTER, recorder);
    let sink = std::sync::Arc::new(transport_http::NoSnapshots);
    let transport = Transport::start(config, std::sync::Arc::new(Nobody), sink).unwrap();
    transport
        .add_peer(MemberId(2), &url("http://127.0.0.1:1"))
        .unwrap();
    transport
        .add_remote(MemberId(3), &url("http://127.0.0.1:1"))
        .unwrap();
    assert!(metrics().num_alive_tasks() > idle + 5);
    drop(transport);
    soon("every task to end", async {
        while metrics().num_alive_tasks() > idle {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_is_preferred_to_a_remote_of_its_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = format!("http://{}", listener.local_addr().unwrap());
    let a = Member::start(1).await;
    let mut b = Member::start(2).await;
    introduce(&a, 2, &urls).await;
    a.add(&b);
    a.transport
        .send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    assert_eq!(b.message().await, message(MessageType::TimeoutNow, 1, 2));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn stopping_joins_every_task_and_is_final() {
    let idle = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let (a, b) = pair().await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert!(tasks() > idle + 10, "{}", tasks());
    let (transport, address) = (a.transport.clone(), a.address);
    transport.stop().await;
    transport.stop().await;
    let (_, head) = open_stream(address, "message", 2, 1).await;
    assert_eq!(head.status(), 404, "after the stop nobody is known");
    let mut raw = Raw::connect(address).await;
    // Type 14, TimeoutNow: anything raft would look at.
    raw.write(request("POST", "/raft", &[("Content-Length", "2")]))
        .await;
    raw.write([8, 14]).await;
    assert_eq!(raw.head().await.unwrap().status(), 500);
    transport.add_peer(b.id, &b.urls()).unwrap();
    transport.add_remote(MemberId(9), &b.urls()).unwrap();
    transport.send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    assert_eq!(transport.peers(), []);
    assert_eq!(
        (transport.active_since(b.id), transport.active_peers()),
        (None, 0)
    );
    drop(raw);
    a.stop().await;
    b.stop().await;
    soon("every task to end", async {
        while tasks() > idle {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn it_does_not_start_with_settings_that_cannot_work() {
    let start = |id, change: fn(&mut TransportConfig)| {
        let recorder = std::sync::Arc::new(common::recorder::TestRecorder::default());
        let mut config = TransportConfig::new(MemberId(id), common::CLUSTER, recorder);
        change(&mut config);
        let raft = std::sync::Arc::new(Nobody);
        Transport::start(
            config,
            raft,
            std::sync::Arc::new(transport_http::NoSnapshots),
        )
        .map(|_| ())
    };
    assert!(start(1, |_| {}).is_ok());
    assert!(matches!(start(0, |_| {}), Err(StartError::NoMemberId)));
    let error = start(1, |config| config.read_timeout = Duration::ZERO).unwrap_err();
    assert_eq!(error.to_string(), "read_timeout must be greater than zero");
    let outside = std::thread::spawn(move || start(1, |_| {})).join().unwrap();
    assert!(matches!(outside, Err(StartError::NoRuntime(_))));
}

struct Nobody;

impl transport_http::Raft for Nobody {
    async fn process(
        &self,
        _: transport_core::raftpb::Message,
    ) -> Result<(), transport_http::ProcessError> {
        Ok(())
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, _: MemberId, _: transport_http::SnapshotStatus) {}
}
