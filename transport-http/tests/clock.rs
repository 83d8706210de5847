//! What happens with time, on a network in memory under a paused clock: idle streams, probes, black holes.

mod common;

use std::{io, sync::Arc, time::Duration};

use common::{
    Member,
    memory::{listen, member, pair},
    message,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::{Instant, sleep},
};
use transport_core::{MemberId, raftpb::MessageType};
use transport_http::{
    NoSnapshots,
    net::{Acceptor, BoxFuture, BoxIo, Connector, PeerUrl, memory::MemoryNetwork},
};

const ROUND_TRIPS: &str = "etcd_network_peer_round_trip_time_seconds{To=2}";

#[tokio::test(start_paused = true)]
async fn an_idle_hour_opens_no_new_connection() {
    let net = MemoryNetwork::default();
    let (a, b) = pair(&net).await;
    sleep(Duration::from_secs(10)).await;
    // Two streams and a prober in each direction; probes reuse their connection.
    assert_eq!(net.opened(), 6);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(net.opened(), 6);
    assert!(a.transport.active_since(b.id).is_some() && b.transport.active_since(a.id).is_some());
    let disconnected = "etcd_network_disconnected_peers_total{Local=1,Remote=2}";
    assert_eq!(a.recorder.value(disconnected), 0.0);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn both_probers_report_after_5_s_and_then_every_30_s() {
    let net = MemoryNetwork::default();
    let (a, b) = pair(&net).await;
    sleep(Duration::from_millis(4900)).await;
    assert_eq!(a.recorder.value(ROUND_TRIPS), 0.0);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(a.recorder.value(ROUND_TRIPS), 2.0);
    sleep(Duration::from_secs(29)).await;
    assert_eq!(a.recorder.value(ROUND_TRIPS), 2.0);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(a.recorder.value(ROUND_TRIPS), 4.0);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_peer_has_no_round_trip() {
    let net = MemoryNetwork::default();
    let a = member(&net, 1);
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:2".to_owned()])
        .unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(a.recorder.value(ROUND_TRIPS), 0.0);
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_black_holed_link_is_left_within_the_read_timeout() {
    let net = MemoryNetwork::default();
    let (mut a, b) = pair(&net).await;
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    net.swallow();
    // Nothing fails: what is written vanishes. Only the readers can notice, each on its side.
    loop {
        b.transport
            .send(vec![message(MessageType::TimeoutNow, 2, 1)]);
        if tokio::time::timeout(Duration::from_millis(50), a.messages.recv())
            .await
            .is_ok()
        {
            break;
        }
    }
    let took = begun.elapsed();
    // The last heartbeat came up to a third of the timeout earlier.
    assert!(
        took > Duration::from_secs(3) && took < Duration::from_secs(6),
        "{took:?}"
    );
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_under_way_does_not_hold_up_stopping() {
    let net = MemoryNetwork::default();
    let a = member(&net, 1);
    // Accepted, and then nothing: every dial waits for the head of its answer.
    let mut silent = listen(&net, 2);
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:2".to_owned()])
        .unwrap();
    let mut dials = Vec::new();
    while dials.len() < 4 {
        let accepted = silent.accept(Duration::ZERO).await.unwrap();
        dials.push(accepted.handshake.await.unwrap());
    }
    let begun = Instant::now();
    a.transport.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    for mut dial in dials {
        // The request, and the end of the connection.
        dial.read_to_end(&mut Vec::new()).await.unwrap();
    }
    a.stop().await;
}

/// Connects to nobody, for ever.
struct Unanswered(Arc<Semaphore>);

impl Connector for Unanswered {
    fn connect<'a>(&'a self, _: &'a PeerUrl, _: Duration) -> BoxFuture<'a, io::Result<BoxIo>> {
        let begun = Arc::clone(&self.0);
        Box::pin(async move {
            begun.add_permits(1);
            std::future::pending().await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_under_way_does_not_hold_up_stopping() {
    let net = MemoryNetwork::default();
    let begun = Arc::new(Semaphore::new(0));
    let listener = listen(&net, 1);
    let connector = Arc::new(Unanswered(Arc::clone(&begun)));
    let a = Member::start_on(
        1,
        listener.local_addr(),
        listener,
        |config| config.connector = connector,
        Arc::new(NoSnapshots),
    );
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:2".to_owned()])
        .unwrap();
    // Two streams, and a message for the pipeline.
    a.transport
        .send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    let _dials = begun.acquire_many(3).await.unwrap();
    let stopping = Instant::now();
    a.transport.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(1));
    assert_eq!(Arc::strong_count(&begun), 2, "no dial is left");
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_raft_does_not_hold_up_stopping() {
    let net = MemoryNetwork::default();
    let (a, b) = pair(&net).await;
    let raft = Arc::clone(&a.raft);
    let _closed = raft.gate.acquire_many(1000).await.unwrap();
    b.transport
        .send(vec![message(MessageType::TimeoutNow, 2, 1)]);
    sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    a.transport.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_pipeline_connection_is_given_up_before_the_server_does() {
    let net = MemoryNetwork::default();
    let a = member(&net, 1);
    let mut acceptor = listen(&net, 2);
    let urls = ["http://127.0.0.1:2".to_owned()];
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    a.transport
        .send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    // Among the streams and probes there is one POST; the others are left alone.
    let mut others = Vec::new();
    let mut posted = loop {
        let accepted = acceptor.accept(Duration::ZERO).await.unwrap();
        let mut io = accepted.handshake.await.unwrap();
        let mut head = [0; 4];
        io.read_exact(&mut head).await.unwrap();
        if &head == b"POST" {
            break io;
        }
        others.push(io);
    };
    let mut read = Vec::new();
    while !read.windows(4).any(|four| four == b"\r\n\r\n") {
        posted.read_buf(&mut read).await.unwrap();
    }
    posted
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    let answered = Instant::now();
    // The rest of the message, then nothing, then the end.
    posted.read_to_end(&mut read).await.unwrap();
    assert_eq!(answered.elapsed().as_secs(), 4);
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn remotes_end_when_they_expire_or_their_member_is_removed() {
    let net = MemoryNetwork::default();
    let a = member(&net, 1);
    let urls = "http://127.0.0.1:9";
    introduce(&net, 5, urls).await;
    introduce(&net, 6, urls).await;
    for pinned in [7, 8] {
        let urls = [urls.to_owned()];
        a.transport.add_remote(MemberId(pinned), &urls).unwrap();
    }
    let unknown = "rafthttp_dropped_messages_total{Remote=unknown,queue=none,reason=unknown_peer}";
    let known = |id| {
        let before = a.recorder.value(unknown);
        a.transport
            .send(vec![message(MessageType::AppendResponse, 1, id)]);
        a.recorder.value(unknown) == before
    };
    sleep(Duration::from_secs(10)).await;
    assert_eq!([5, 7, 8].map(known), [true; 3]);
    a.raft
        .removed
        .lock()
        .unwrap()
        .extend([MemberId(5), MemberId(7)]);
    sleep(Duration::from_secs(60)).await;
    assert_eq!([5, 7, 8].map(known), [false, false, true]);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(
        [6, 8].map(known),
        [false, true],
        "6 got nothing for ten minutes"
    );
    a.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pipeline_workers_come_with_messages_and_go_without() {
    let net = MemoryNetwork::default();
    let (a, b) = (member(&net, 1), member(&net, 2));
    let urls = b.urls();
    a.transport.add_remote(b.id, &urls).unwrap();
    let tasks = || {
        let metrics = tokio::runtime::Handle::current().metrics();
        metrics.num_alive_tasks()
    };
    let idle = tasks();
    let posts = |count| vec![message(MessageType::AppendResponse, 1, 2); count];
    a.transport.send(posts(1));
    assert_eq!(tasks() - idle, 1);
    a.transport.send(posts(9));
    assert_eq!(tasks() - idle, 4, "four at a time");
    sleep(Duration::from_secs(1)).await;
    assert!(
        tasks() - idle >= 4,
        "they wait for more, and so does the other side"
    );
    assert_eq!(net.opened(), 4);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(tasks(), idle);
    a.stop().await;
    b.stop().await;
}

/// Posts an empty message from `from` to member 1, and says where it lives.
async fn introduce(net: &MemoryNetwork, from: u64, urls: &str) {
    let to = PeerUrl::parse("http://127.0.0.1:1").unwrap();
    let mut io = net.connect(&to, Duration::ZERO).await.unwrap();
    let head = format!(
        "POST /raft HTTP/1.1\r\nHost: a\r\nX-Server-Version: 3.6.0\r\nX-Min-Cluster-Version: 3.0.0\r\n\
         X-Etcd-Cluster-ID: {}\r\nX-Server-From: {from}\r\nX-PeerURLs: {urls}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n",
        common::CLUSTER
    );
    io.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}
