//! The pipeline over loopback sockets: what a POST looks like, its bounds, retries, reports and how it stops.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{
    Member, Report, append, message,
    raw::{Raw, answer},
    snapshot, soon,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType, decode_message},
};
use transport_http::{CriticalError, SnapshotStatus};

const NO_CONTENT: &str = "HTTP/1.1 204 No Content\r\nX-Etcd-Cluster-Id: 5d9487856336506b\r\n\r\n";

/// A request to the pipeline, and the connection to answer on.
struct Posted {
    raw: Raw,
    message: Message,
    headers: String,
    /// Which connection, and which request on it.
    connection: usize,
    request: usize,
}

/// A peer that has no streams: what is posted to it comes out of the channel.
struct FakePeer {
    urls: Vec<String>,
    posted: mpsc::UnboundedReceiver<Posted>,
    back: mpsc::UnboundedSender<(Raw, usize, usize)>,
    accepting: JoinHandle<()>,
}

impl FakePeer {
    async fn start() -> FakePeer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
        let (sender, posted) = mpsc::unbounded_channel();
        let (back, mut returned) = mpsc::unbounded_channel::<(Raw, usize, usize)>();
        let accepting = tokio::spawn(async move {
            let mut connections = 0;
            loop {
                let (raw, connection, request) = tokio::select! {
                    accepted = listener.accept() => {
                        connections += 1;
                        (Raw::new(accepted.unwrap().0), connections, 1)
                    }
                    Some((raw, connection, request)) = returned.recv() => (raw, connection, request + 1),
                };
                tokio::spawn(read_post(raw, connection, request, sender.clone()));
            }
        });
        FakePeer {
            urls,
            posted,
            back,
            accepting,
        }
    }

    async fn next(&mut self) -> Posted {
        soon("a POST", self.posted.recv()).await.unwrap()
    }

    /// Answers, and waits for the next request on the same connection.
    async fn answer(&self, mut posted: Posted, text: &str) {
        posted.raw.write(text).await;
        self.back
            .send((posted.raw, posted.connection, posted.request))
            .unwrap();
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads one POST; everything else is refused, so that only the pipeline works.
async fn read_post(
    mut raw: Raw,
    connection: usize,
    request: usize,
    posted: mpsc::UnboundedSender<Posted>,
) {
    let Some(head) = raw.head().await else { return };
    if head.start != "POST /raft HTTP/1.1" {
        raw.write(answer(
            "503 Service Unavailable",
            "X-Server-Version: 3.6.0\r\n",
            "",
        ))
        .await;
        return;
    }
    let body = raw.body(&head).await;
    let message = decode_message(body.into()).unwrap();
    let _ = posted.send(Posted {
        raw,
        message,
        headers: head.text,
        connection,
        request,
    });
}

async fn start() -> (Member, FakePeer) {
    let (a, peer) = (Member::start(1).await, FakePeer::start().await);
    a.transport.add_peer(MemberId(2), &peer.urls).unwrap();
    (a, peer)
}

#[tokio::test]
async fn a_post_looks_like_one_of_gos() {
    let (a, mut peer) = start().await;
    let sent = append(1, 2, 7, 30);
    a.transport.send(vec![sent.clone()]);
    let posted = peer.next().await;
    assert_eq!(posted.message, sent);
    let go = String::from_utf8_lossy(
        &std::fs::read("tests/fixtures/pipeline-post-3.6.16.http").unwrap(),
    )
    .into_owned();
    let own_url = format!("http://{}", a.address);
    for (name, value) in [
        ("Host", peer.urls[0].strip_prefix("http://").unwrap()),
        ("Content-Type", "application/protobuf"),
        ("X-Etcd-Cluster-Id", "5d9487856336506b"),
        ("X-Min-Cluster-Version", "3.0.0"),
        ("X-Peerurls", own_url.as_str()),
        ("X-Server-From", "1"),
        ("X-Server-Version", "3.6.0"),
    ] {
        assert!(
            posted.headers.contains(&format!("\r\n{name}: {value}\r\n")),
            "{name} in {}",
            posted.headers
        );
        assert!(go.contains(&format!("\r\n{name}: ")), "{name}");
    }
    assert!(
        posted.headers.contains("\r\nContent-Length: ") && !posted.headers.contains("X-Raft-To")
    );
    peer.answer(posted, NO_CONTENT).await;
    a.recorder
        .until("etcd_network_active_peers{Local=1,Remote=2}", |active| {
            active == 1.0
        })
        .await;
    let stats = a.transport.leader_stats().to_json();
    assert!(
        stats.contains(r#""counts":{"fail":0,"success":1}"#),
        "{stats}"
    );
    a.stop().await;
}

const SENT: &str = "etcd_network_peer_sent_bytes_total{To=2}";

/// Sends `append` and answers it as the pipeline's connection is used again.
async fn delivered(a: &Member, peer: &mut FakePeer, index: u64, answer: &str) -> (usize, usize) {
    let sent = a.recorder.value(SENT);
    a.transport.send(vec![append(1, 2, index, 1)]);
    let posted = peer.next().await;
    let place = (posted.connection, posted.request);
    peer.answer(posted, answer).await;
    a.recorder.until(SENT, |bytes| bytes > sent).await;
    place
}

#[tokio::test]
async fn one_connection_serves_message_after_message() {
    let (a, mut peer) = start().await;
    let (connection, request) = delivered(&a, &mut peer, 1, NO_CONTENT).await;
    for index in 2..=6 {
        let next = delivered(&a, &mut peer, index, NO_CONTENT).await;
        assert_eq!(next, (connection, request + index as usize - 1));
    }
    a.stop().await;
}

#[tokio::test]
async fn a_connection_the_server_gives_up_is_replaced_without_loss() {
    let (mut a, mut peer) = start().await;
    let closing = NO_CONTENT.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let (first, _) = delivered(&a, &mut peer, 1, &closing).await;
    let (second, request) = delivered(&a, &mut peer, 2, NO_CONTENT).await;
    assert!(second != first && request == 1);
    assert!(a.reports.try_recv().is_err());
    a.stop().await;
}

#[tokio::test]
async fn a_message_that_was_read_is_never_sent_twice() {
    let (mut a, mut peer) = start().await;
    let (connection, _) = delivered(&a, &mut peer, 1, NO_CONTENT).await;
    // Read on a kept connection, which then closes without an answer: the peer may have acted upon it.
    let proposal = message(MessageType::Propose, 1, 2);
    a.transport.send(vec![proposal.clone()]);
    let read = peer.next().await;
    assert_eq!((read.connection, read.request), (connection, 2));
    assert_eq!(read.message, proposal);
    drop(read);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    let failed = "rafthttp_dropped_messages_total{Remote=2,queue=pipeline,reason=request_failed}";
    a.recorder.until(failed, |count| count == 1.0).await;
    // What comes next is the next message.
    a.transport.send(vec![append(1, 2, 2, 1)]);
    let next = peer.next().await;
    assert_eq!(next.message, append(1, 2, 2, 1));
    peer.answer(next, NO_CONTENT).await;
    assert!(peer.posted.try_recv().is_err());
    a.stop().await;
}

#[tokio::test]
async fn four_at_once_and_64_behind_them() {
    let (mut a, mut peer) = start().await;
    let mut posted = Vec::new();
    for index in 1..=4 {
        a.transport.send(vec![append(1, 2, index, 1)]);
        posted.push(peer.next().await);
    }
    a.transport
        .send((5..=68).map(|index| append(1, 2, index, 1)).collect());
    assert!(a.reports.try_recv().is_err(), "4 + 64 are taken");
    a.transport.send(vec![append(1, 2, 69, 1)]);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    let failures = "etcd_network_peer_sent_failures_total{To=2}";
    assert_eq!(a.recorder.value(failures), 1.0);
    // A snapshot without its database that does not fit is also told as such.
    a.transport.send(vec![snapshot(1, 2, 7)]);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(2), SnapshotStatus::Failure)
    );
    assert_eq!(a.recorder.value(failures), 2.0);
    // All that were taken arrive, and then there is room again.
    let mut seen = Vec::new();
    for _ in 0..68 {
        let next = match posted.pop() {
            Some(next) => next,
            None => peer.next().await,
        };
        seen.push(next.message.index + 1);
        peer.answer(next, NO_CONTENT).await;
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=68).collect::<Vec<u64>>());
    a.transport.send(vec![append(1, 2, 70, 1)]);
    let next = peer.next().await;
    assert_eq!(next.message.index, 69);
    peer.answer(next, NO_CONTENT).await;
    assert_eq!(a.recorder.value(failures), 2.0);
    a.stop().await;
}

#[tokio::test]
async fn a_pipeline_is_bounded_in_bytes_too() {
    let peer = FakePeer::start().await;
    let a = Member::start_with(1, |config| config.limits.pipeline.bulk_bytes = 1 << 20).await;
    let mut a = a;
    a.transport.add_peer(MemberId(2), &peer.urls).unwrap();
    a.transport.send(
        (1..=20)
            .map(|index| append(1, 2, index, 600 << 10))
            .collect(),
    );
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    let dropped = a
        .recorder
        .value("rafthttp_dropped_messages_total{Remote=2,queue=pipeline,reason=bulk_full}");
    assert!((14.0..=19.0).contains(&dropped), "{dropped}");
    a.stop().await;
}

#[tokio::test]
async fn every_answer_but_204_is_a_failure() {
    for (status, body) in [
        ("200 OK", ""),
        ("201 Created", ""),
        ("412 Precondition Failed", "incompatible version\n"),
        ("412 Precondition Failed", "cluster ID mismatch\n"),
        ("412 Precondition Failed", "something else\n"),
        (
            "500 Internal Server Error",
            "error processing raft message\n",
        ),
        ("404 Not Found", "404 page not found\n"),
    ] {
        let (mut a, mut peer) = start().await;
        a.transport.send(vec![append(1, 2, 1, 1)]);
        let posted = peer.next().await;
        peer.answer(posted, &answer(status, "", body)).await;
        assert_eq!(
            a.report().await,
            Report::Unreachable(MemberId(2)),
            "{status}"
        );
        a.recorder
            .until("etcd_network_peer_sent_failures_total{To=2}", |failures| {
                failures == 1.0
            })
            .await;
        assert_eq!(
            a.recorder.value("etcd_network_peer_sent_bytes_total{To=2}"),
            0.0
        );
        let stats = a.transport.leader_stats().to_json();
        assert!(
            stats.contains(r#""counts":{"fail":1,"success":0}"#),
            "{status}: {stats}"
        );
        assert!(
            tokio::time::timeout(Duration::ZERO, a.transport.critical_error())
                .await
                .is_err()
        );
        // The next one is sent all the same.
        a.transport.send(vec![append(1, 2, 2, 1)]);
        assert_eq!(peer.next().await.message.index, 1);
        a.stop().await;
    }
}

#[tokio::test]
async fn every_message_is_tried_though_each_fails() {
    const COUNT: u64 = 50;
    let (a, mut peer) = start().await;
    a.transport
        .send((1..=COUNT).map(|index| append(1, 2, index, 1)).collect());
    let mut tried = Vec::new();
    while tried.len() < COUNT as usize {
        let posted = peer.next().await;
        tried.push(posted.message.entries[0].index);
        // Every other one is not even answered.
        if tried.len().is_multiple_of(2) {
            peer.answer(posted, &answer("500 Internal Server Error", "", "no\n"))
                .await;
        }
    }
    // Four at a time, so not quite in order.
    tried.sort_unstable();
    assert_eq!(tried, (1..=COUNT).collect::<Vec<_>>());
    a.recorder
        .until("etcd_network_peer_sent_failures_total{To=2}", |failures| {
            failures == COUNT as f64
        })
        .await;
    a.stop().await;
}

#[tokio::test]
async fn an_aborted_error_answer_of_go_is_a_failure() {
    let (mut a, mut peer) = start().await;
    a.transport.send(vec![append(1, 2, 1, 1)]);
    let mut posted = peer.next().await;
    let text =
        "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nerror\r\n";
    posted.raw.write(text).await;
    drop(posted);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    a.stop().await;
}

#[tokio::test]
async fn forbidden_means_removed() {
    let (a, mut peer) = start().await;
    a.transport.send(vec![append(1, 2, 1, 1)]);
    let posted = peer.next().await;
    peer.answer(
        posted,
        &answer("403 Forbidden", "", "the member has been removed\n"),
    )
    .await;
    let error = soon("the critical error", a.transport.critical_error()).await;
    assert_eq!(error, CriticalError::Removed { by: MemberId(2) });
    a.stop().await;
}

#[tokio::test]
async fn a_snapshot_message_that_got_through_is_told_to_raft() {
    let (mut a, mut peer) = start().await;
    a.transport.send(vec![snapshot(1, 2, 9)]);
    let posted = peer.next().await;
    assert_eq!(posted.message, snapshot(1, 2, 9));
    peer.answer(posted, NO_CONTENT).await;
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(2), SnapshotStatus::Finish)
    );
    a.stop().await;
}

#[tokio::test]
async fn a_failure_turns_to_the_next_url() {
    let mut peer = FakePeer::start().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let mut a = Member::start(1).await;
    a.transport
        .add_peer(MemberId(2), &[dead.clone(), peer.urls[0].clone()])
        .unwrap();
    let delivered = async {
        loop {
            a.transport
                .send(vec![message(MessageType::TimeoutNow, 1, 2)]);
            tokio::select! {
                posted = peer.next() => return posted,
                Some(Report::Unreachable(_)) = a.reports.recv() => {}
            }
        }
    };
    let posted = soon("a POST on the other URL", delivered).await;
    peer.answer(posted, NO_CONTENT).await;
    a.stop().await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_fails_at_its_deadline() {
    let mut peer = FakePeer::start().await;
    let mut a = Member::start_with(1, |config| {
        config.limits.post_timeout = Duration::from_millis(300)
    })
    .await;
    a.transport.add_peer(MemberId(2), &peer.urls).unwrap();
    a.transport.send(vec![append(1, 2, 1, 1)]);
    let _unanswered = peer.next().await;
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    a.stop().await;
}

#[tokio::test]
async fn a_blocked_pipeline_stops_at_once() {
    let (a, mut peer) = start().await;
    let mut held = Vec::new();
    for index in 1..=4 {
        a.transport.send(vec![append(1, 2, index, 1)]);
        held.push(peer.next().await);
    }
    a.transport
        .send((5..=68).map(|index| append(1, 2, index, 1)).collect());
    let begun = std::time::Instant::now();
    a.transport.stop().await;
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    let stopped = "rafthttp_dropped_messages_total{Remote=2,queue=pipeline,reason=stopped}";
    assert_eq!(a.recorder.value(stopped), 68.0, "four were under way");
    assert_eq!(
        a.recorder
            .value("etcd_network_active_peers{Local=1,Remote=2}"),
        0.0
    );
    a.stop().await;
}

#[tokio::test]
async fn between_two_transports_without_streams() {
    let (a, mut b) = (Member::start(1).await, Member::start(2).await);
    // b does not know a, so a's dials are refused; a's first message introduces it.
    a.add(&b);
    let context = Bytes::from_static(b"ctx");
    let sent = Message {
        context,
        ..message(MessageType::Heartbeat, 1, 2)
    };
    a.transport.send(vec![sent.clone()]);
    assert_eq!(b.message().await, sent);
    a.stop().await;
    b.stop().await;
}
