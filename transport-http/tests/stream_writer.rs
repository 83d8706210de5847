//! The sending side of a stream against peers played by hand: heartbeats, replacement, broken and stuck connections.

mod common;

use std::time::{Duration, Instant};

use common::{Member, Report, append, hurried, message, raw::open_stream, soon};
use transport_core::{
    MemberId,
    frame::{message as message_frame, msgappv2},
    raftpb::{Message, MessageType},
};

#[tokio::test]
async fn link_heartbeats_keep_an_idle_stream_alive() {
    let a = Member::start_with(1, hurried).await;
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    for (kind, frame) in [
        ("msgapp", &[0][..]),
        ("message", &[0, 0, 0, 0, 0, 0, 0, 2, 8, 8]),
    ] {
        let (mut raw, _) = open_stream(a.address, kind, 2, 1).await;
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(raw.chunk().await.unwrap().unwrap(), frame);
        }
        // One at once, then every third of 600 ms.
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(500), "{took:?}");
    }
    a.stop().await;
}

#[tokio::test]
async fn a_new_stream_replaces_the_old_one() {
    // Nothing but the replacement may close a connection.
    let mut a =
        Member::start_with(1, |config| config.write_timeout = Duration::from_secs(3600)).await;
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let (mut first, _) = open_stream(a.address, "msgapp", 2, 1).await;
    assert_eq!(first.chunk().await.unwrap().unwrap(), [0]);
    // The first connection takes what the sockets hold and then blocks with a full lane behind it.
    a.transport
        .send((1..=40).map(|index| append(1, 2, index, 1 << 20)).collect());
    let queued = "rafthttp_queue_bytes{Remote=2,queue=streamMsgAppV2}";
    a.recorder.until(queued, |bytes| bytes > 0.0).await;
    let (mut second, head) = open_stream(a.address, "msgapp", 2, 1).await;
    assert_eq!(head.status(), 200);
    let lost =
        "rafthttp_dropped_messages_total{Remote=2,queue=streamMsgAppV2,reason=connection_lost}";
    a.recorder.until(lost, |messages| messages > 0.0).await;
    assert_eq!(a.recorder.value(queued), 0.0);
    // Dials fail too, but only the replaced queue is reported.
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    assert!(a.reports.try_recv().is_err(), "reported once");
    // The old one, stuck in a write, is cut off at once.
    assert!(first.chunked().await.is_err(), "cut off");
    // The new one starts from nothing: its first append is in full form.
    assert_eq!(second.chunk().await.unwrap().unwrap(), [0]);
    a.transport
        .send(vec![append(1, 2, 41, 10), append(1, 2, 42, 10)]);
    let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
    let frames = second.chunk().await.unwrap().unwrap();
    assert_eq!(frames[0], 2);
    decoder.feed(frames.into());
    assert_eq!(decoder.next().unwrap(), Some(append(1, 2, 41, 10)));
    assert_eq!(decoder.next().unwrap(), Some(append(1, 2, 42, 10)));
    // This one is idle, and ends properly.
    let (_third, _) = open_stream(a.address, "msgapp", 2, 1).await;
    assert!(second.chunked().await.is_ok(), "a clean end");
    a.stop().await;
}

#[tokio::test]
async fn a_broken_stream_is_noticed_and_reported() {
    let mut a = Member::start(1).await;
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let (mut raw, _) = open_stream(a.address, "message", 2, 1).await;
    raw.chunk().await.unwrap();
    a.transport
        .send(vec![message(MessageType::Heartbeat, 1, 2)]);
    let mut decoder = message_frame::Decoder::new();
    decoder.feed(raw.chunk().await.unwrap().unwrap().into());
    assert_eq!(
        decoder.next().unwrap(),
        Some(message(MessageType::Heartbeat, 1, 2))
    );
    drop(raw);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    a.recorder
        .until("etcd_network_peer_sent_failures_total{To=2}", |failures| {
            failures >= 1.0
        })
        .await;
    // Without a stream the message goes by pipeline, which nobody serves.
    a.transport
        .send(vec![message(MessageType::Heartbeat, 1, 2)]);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    a.recorder
        .until("etcd_network_active_peers{Local=1,Remote=2}", |active| {
            active == 0.0
        })
        .await;
    a.stop().await;
}

#[tokio::test]
async fn a_peer_that_takes_nothing_loses_its_stream_at_the_write_timeout() {
    let mut a = Member::start_with(1, hurried).await;
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let (_stuck, _) = open_stream(a.address, "msgapp", 2, 1).await;
    a.transport
        .send((1..=40).map(|index| append(1, 2, index, 1 << 20)).collect());
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    a.recorder
        .until(
            "rafthttp_queue_bytes{Remote=2,queue=streamMsgAppV2}",
            |bytes| bytes == 0.0,
        )
        .await;
    a.stop().await;
}

#[tokio::test]
async fn a_full_lane_drops_bulk_but_never_a_heartbeat() {
    let mut a = Member::start_with(1, |config| config.limits.stream.bulk_bytes = 4 << 20).await;
    a.transport
        .add_peer(MemberId(2), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let (mut raw, _) = open_stream(a.address, "message", 2, 1).await;
    assert_eq!(raw.chunk().await.unwrap().unwrap().len(), 10);
    let dropped = "rafthttp_dropped_messages_total{Remote=2,queue=streamMsg,reason=bulk_full}";
    while a.recorder.value(dropped) == 0.0 {
        a.transport
            .send((1..=8).map(|index| append(1, 2, index, 1 << 20)).collect());
        tokio::task::yield_now().await;
    }
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    let failures = a
        .recorder
        .value("etcd_network_peer_sent_failures_total{To=2}");
    assert_eq!(failures, a.recorder.value(dropped));
    let beat = Message {
        commit: 77,
        ..message(MessageType::Heartbeat, 1, 2)
    };
    a.transport.send(vec![beat.clone()]);
    let mut decoder = message_frame::Decoder::new();
    let arrived = async {
        loop {
            decoder.feed(raw.chunk().await.unwrap().unwrap().into());
            while let Some(message) = decoder.next().unwrap() {
                if message == beat {
                    return;
                }
            }
        }
    };
    soon("the heartbeat", arrived).await;
    a.stop().await;
}
