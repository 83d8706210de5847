//! Streams between two transports: delivery, order, size, cutting and coming back.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Member, Report, append, memory, message, pair, snapshot, soon};
use tokio::time::{sleep, timeout};
use transport_core::raftpb::{Entry, Message, MessageType};
use transport_http::{SnapshotStatus, net::memory::MemoryNetwork};

fn kinds(from: u64, to: u64) -> Vec<Message> {
    let context = Bytes::from_static(b"\x01read");
    let entry = Entry {
        data: Bytes::from_static(b"hi"),
        ..Entry::default()
    };
    vec![
        Message {
            term: 0,
            entries: vec![entry.clone()],
            ..message(MessageType::Propose, from, to)
        },
        append(from, to, 3, 100),
        append(from, to, 4, 0),
        append(from, to, 20, 70_000),
        Message {
            index: 9,
            ..message(MessageType::AppendResponse, from, to)
        },
        Message {
            reject: true,
            reject_hint: 7,
            ..message(MessageType::AppendResponse, from, to)
        },
        Message {
            index: 8,
            log_term: 4,
            ..message(MessageType::RequestVote, from, to)
        },
        Message {
            reject: true,
            ..message(MessageType::RequestVoteResponse, from, to)
        },
        Message {
            commit: 300,
            context: context.clone(),
            ..message(MessageType::Heartbeat, from, to)
        },
        Message {
            context: context.clone(),
            ..message(MessageType::HeartbeatResponse, from, to)
        },
        message(MessageType::TransferLeader, from, to),
        message(MessageType::TimeoutNow, from, to),
        Message {
            term: 0,
            entries: vec![entry.clone()],
            ..message(MessageType::ReadIndex, from, to)
        },
        Message {
            index: 12,
            entries: vec![entry],
            ..message(MessageType::ReadIndexResponse, from, to)
        },
        message(MessageType::RequestPreVote, from, to),
        message(MessageType::RequestPreVoteResponse, from, to),
    ]
}

#[tokio::test]
async fn every_kind_arrives_as_it_was_sent() {
    let (mut a, mut b) = pair().await;
    for sent in kinds(1, 2) {
        a.transport.send(vec![sent.clone()]);
        assert_eq!(b.message().await, sent);
    }
    for sent in kinds(2, 1) {
        b.transport.send(vec![sent.clone()]);
        assert_eq!(a.message().await, sent);
    }
    // The one kind that has no stream goes by itself.
    a.transport.send(vec![snapshot(1, 2, 9)]);
    assert_eq!(b.message().await, snapshot(1, 2, 9));
    assert_eq!(
        a.report().await,
        Report::Snapshot(b.id, SnapshotStatus::Finish)
    );
    assert_eq!(
        a.recorder
            .value("etcd_network_peer_sent_failures_total{To=2}"),
        0.0
    );
    assert!(a.transport.active_since(b.id).is_some());
    assert_eq!(a.transport.active_peers(), 1);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_batch_keeps_its_order_and_leaves_in_few_writes() {
    const COUNT: u64 = 5000;
    let (a, mut b) = pair().await;
    let flushes = "rafthttp_flush_bytes{stream=streamMsgAppV2}";
    let before = a.recorder.value(flushes);
    a.transport
        .send((1..=COUNT).map(|index| append(1, 2, index, 64)).collect());
    for index in 1..=COUNT {
        assert_eq!(b.message().await, append(1, 2, index, 64));
    }
    let written = a.recorder.value(flushes) - before;
    assert!(written <= COUNT as f64 / 100.0, "{written} writes");
    assert_eq!(
        a.recorder
            .value("rafthttp_queue_bytes{Remote=2,queue=streamMsgAppV2}"),
        0.0
    );
    let stats = a.transport.leader_stats();
    assert!(
        stats.to_json().contains("\"followers\":{\"2\":"),
        "{}",
        stats.to_json()
    );
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn large_messages_cross_in_both_directions_at_once() {
    let (mut a, mut b) = pair().await;
    for index in 1..=8 {
        a.transport.send(vec![append(1, 2, index, 3 << 20)]);
        b.transport.send(vec![append(2, 1, index, 3 << 20)]);
    }
    for index in 1..=8 {
        assert_eq!(b.message().await, append(1, 2, index, 3 << 20));
        assert_eq!(a.message().await, append(2, 1, index, 3 << 20));
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_cut_peer_hears_and_says_nothing_until_it_is_mended() {
    let (mut a, mut b) = pair().await;
    let received = "etcd_network_peer_received_bytes_total{From=2}";
    let before = a.recorder.value(received);
    a.transport.cut_peer(b.id);
    a.transport
        .send(vec![message(MessageType::Heartbeat, 1, 2)]);
    b.transport
        .send(vec![message(MessageType::TimeoutNow, 2, 1)]);
    // Read and thrown away: it is counted all the same.
    a.recorder.until(received, |bytes| bytes > before).await;
    a.transport.mend_peer(b.id);
    let vote = message(MessageType::RequestVote, 1, 2);
    a.transport.send(vec![vote.clone()]);
    assert_eq!(b.message().await, vote, "and not the heartbeat");
    let vote = message(MessageType::RequestVote, 2, 1);
    b.transport.send(vec![vote.clone()]);
    assert_eq!(a.message().await, vote, "and not what was sent while cut");
    assert!(
        a.transport.active_since(b.id).is_some(),
        "connections stayed up"
    );
    a.transport.pause();
    a.transport
        .send(vec![message(MessageType::Heartbeat, 1, 2)]);
    a.transport.resume();
    a.transport
        .send(vec![message(MessageType::TransferLeader, 1, 2)]);
    assert_eq!(
        b.message().await,
        message(MessageType::TransferLeader, 1, 2)
    );
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn streams_come_back_when_a_member_does() {
    let (mut a, b) = pair().await;
    let (id, address) = (b.id, b.address);
    b.stop().await;
    let gone = async {
        while a.transport.active_since(id).is_some() {
            a.recorder
                .until("etcd_network_active_peers{Local=1,Remote=2}", |active| {
                    active == 0.0
                })
                .await;
        }
    };
    soon("the peer to be inactive", gone).await;
    // The same address, another process as it were.
    let mut b = Member::start(2).await;
    a.transport.update_peer(id, &b.urls()).unwrap();
    assert_ne!(b.address, address);
    b.add(&a);
    b.streams_up(1).await;
    let vote = message(MessageType::RequestVote, 1, 2);
    soon("a message across", async {
        while b.messages.is_empty() {
            a.transport.send(vec![vote.clone()]);
            tokio::select! {
                Some(report) = a.reports.recv() => assert_eq!(report, Report::Unreachable(id)),
                received = b.messages.recv() => {
                    assert_eq!(received, Some(vote.clone()));
                    return;
                }
            }
        }
    })
    .await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_gets_through_soon_after_every_connection_is_cut() {
    let net = MemoryNetwork::default();
    let (a, mut b) = memory::pair(&net).await;
    for round in 0..20 {
        net.cut();
        let mut sends = 0;
        let beat = loop {
            sends += 1;
            a.transport
                .send(vec![message(MessageType::Heartbeat, 1, 2)]);
            if let Ok(beat) = timeout(Duration::from_millis(1), b.messages.recv()).await {
                break beat.unwrap();
            }
        };
        assert_eq!(beat, message(MessageType::Heartbeat, 1, 2));
        assert!(sends < 50, "round {round}: {sends} sends");
        // Whatever else is under way.
        sleep(Duration::from_millis(round * 10)).await;
        while b.messages.try_recv().is_ok() {}
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn messages_may_be_sent_from_threads_outside_of_the_runtime() {
    let (a, mut b) = pair().await;
    let transport = a.transport.clone();
    let sender = std::thread::spawn(move || {
        for index in 1..=100 {
            // Alone, as one that its sender writes itself, and in numbers.
            let count = if index % 2 == 0 { 1 } else { 3 };
            transport.send(vec![append(1, 2, index, 10); count]);
        }
    });
    let mut indexes = Vec::new();
    while indexes.len() < 200 {
        indexes.push(b.message().await.index);
    }
    let expected = (0..100).flat_map(|index| vec![index; if index % 2 == 1 { 1 } else { 3 }]);
    assert_eq!(indexes, expected.collect::<Vec<_>>());
    sender.join().unwrap();
    a.stop().await;
    b.stop().await;
}
