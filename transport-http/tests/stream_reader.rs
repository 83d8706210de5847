//! The receiving side of a stream against peers played by hand: what it asks, which answers mean what, deadlines,
//! pace, and what it makes of bytes, real and hostile.

mod common;

use std::time::{Duration, Instant};

use common::{
    Member, PATIENCE, append, hurried, message,
    raw::{Raw, STREAM_OK, accept_stream, answer, chunk, fake_peer},
    soon,
};
use transport_core::{
    MemberId,
    frame::{message as message_frame, msgappv2},
    raftpb::{Message, MessageType},
};
use transport_http::CriticalError;

#[tokio::test]
async fn a_dial_asks_as_go_does() {
    let (listener, urls) = fake_peer().await;
    let a = Member::start(0x5772_99c1_7ddd_c6e8).await;
    a.transport
        .add_peer(MemberId(0xb66b_2921_ec55_2136), &urls)
        .unwrap();
    let go = String::from_utf8(std::fs::read("tests/fixtures/stream-request-3.6.16.http").unwrap())
        .unwrap();
    for kind in ["msgapp", "message"] {
        let (_raw, head) = accept_stream(&listener, kind, &mut Vec::new()).await;
        assert_eq!(
            head.start,
            format!("GET /raft/stream/{kind}/577299c17dddc6e8 HTTP/1.1")
        );
        let own_url = format!("http://{}", a.address);
        for (name, value) in [
            ("Host", urls[0].strip_prefix("http://").unwrap()),
            ("X-Etcd-Cluster-Id", "5d9487856336506b"),
            ("X-Min-Cluster-Version", "3.0.0"),
            ("X-Peerurls", own_url.as_str()),
            ("X-Raft-To", "b66b2921ec552136"),
            ("X-Server-From", "577299c17dddc6e8"),
            ("X-Server-Version", "3.6.0"),
        ] {
            assert!(
                head.text.contains(&format!("\r\n{name}: {value}\r\n")),
                "{name} in {}",
                head.text
            );
            assert!(
                go.contains(&format!("\r\n{name}: ")),
                "Go sends {name} in this case"
            );
        }
    }
    a.stop().await;
}

/// What a capture holds, taken out of its chunks by hand, and its bytes as they count when received.
fn captured(kind: &str, local: MemberId, mut body: &[u8]) -> (Vec<Message>, usize) {
    let mut stream = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        let Some(data) = body.get(end + 2..end + 2 + size) else {
            break;
        };
        stream.extend_from_slice(data);
        body = &body[(end + 4 + size).min(body.len())..];
    }
    let mut messages = Vec::new();
    if kind == "msgapp" {
        let mut decoder = msgappv2::Decoder::new(local, MemberId(2));
        decoder.feed(stream.into());
        messages.extend(std::iter::from_fn(|| decoder.next_sized().unwrap()));
    } else {
        let mut decoder = message_frame::Decoder::new();
        decoder.feed(stream.into());
        messages.extend(std::iter::from_fn(|| decoder.next_sized().unwrap()));
    }
    messages.retain(|(message, _)| !message.is_link_heartbeat());
    let (messages, sizes): (_, Vec<usize>) = messages.into_iter().unzip();
    (messages, sizes.into_iter().sum())
}

#[tokio::test]
async fn the_bytes_of_real_members_are_understood() {
    for (file, kind, least) in [
        ("message-from-3.5.1.http", "message", 100),
        ("message-from-3.6.16-leader.http", "message", 100),
        ("message-from-3.7.3-follower.http", "message", 100),
        ("msgapp-from-3.6.16.http", "msgapp", 100),
        ("msgapp-from-3.7.3.http", "msgapp", 100),
    ] {
        let capture = std::fs::read(format!("tests/fixtures/{file}")).unwrap();
        // Some captures begin with the request.
        let start = capture
            .windows(12)
            .position(|bytes| bytes == b"HTTP/1.1 200")
            .unwrap();
        let head = capture[start..]
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap()
            + 4;
        let (sent, bytes) = captured(kind, MemberId(1), &capture[start + head..]);
        assert!(sent.len() >= least, "{file}: {}", sent.len());
        let (listener, urls) = fake_peer().await;
        let mut a =
            Member::start_with(1, |config| config.server_version = "3.7.0".parse().unwrap()).await;
        a.transport.add_peer(MemberId(2), &urls).unwrap();
        let (mut raw, _) = accept_stream(&listener, kind, &mut Vec::new()).await;
        raw.write(&capture[start..]).await;
        let received = "etcd_network_peer_received_bytes_total{From=2}";
        a.recorder
            .until(received, |value| value == bytes as f64)
            .await;
        // Heartbeats that wait may merge; nothing else does.
        let solid = |message: &Message| {
            !matches!(
                message.kind(),
                Some(MessageType::Heartbeat | MessageType::HeartbeatResponse)
            )
        };
        let mut expected: Vec<Message> = sent.into_iter().filter(solid).collect();
        let mut got = Vec::new();
        while got.len() < expected.len() {
            got.extend(Some(a.message().await).filter(solid));
        }
        // Lanes may reorder kinds, not messages of a kind.
        expected.sort_by_key(|message| message.msg_type);
        got.sort_by_key(|message| message.msg_type);
        assert_eq!(got, expected, "{file}");
        assert_eq!(
            a.recorder
                .value("etcd_network_peer_received_failures_total{From=2}"),
            0.0,
            "{file}"
        );
        a.stop().await;
    }
}

#[tokio::test]
async fn a_silent_stream_is_dropped_and_dialled_again() {
    let (listener, urls) = fake_peer().await;
    let a = Member::start_with(1, hurried).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let mut others = Vec::new();
    let (mut raw, _) = accept_stream(&listener, "message", &mut others).await;
    raw.write(STREAM_OK).await;
    let begun = Instant::now();
    assert!(!raw.fill().await, "the silent connection is closed");
    assert!(
        begun.elapsed() >= Duration::from_millis(550),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        begun.elapsed() < Duration::from_millis(600) + Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let (mut again, _) = accept_stream(&listener, "message", &mut others).await;
    // A byte now and then is enough, also half a frame.
    again.write(STREAM_OK).await;
    let begun = Instant::now();
    for byte in [0, 0, 0, 0, 0, 0, 0, 2] {
        again.write(chunk(&[byte])).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(150), again.fill())
                .await
                .is_err(),
            "still open"
        );
    }
    assert!(begun.elapsed() > Duration::from_millis(600));
    a.stop().await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up() {
    let (listener, urls) = fake_peer().await;
    let a = Member::start_with(1, hurried).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let mut others = Vec::new();
    let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
    assert!(!raw.fill().await, "closed without an answer");
    let (mut refusal, _) = accept_stream(&listener, "msgapp", &mut others).await;
    refusal.write("HTTP/1.1 412 Precondition Failed\r\nX-Server-Version: 3.6.0\r\nContent-Length: 99\r\n\r\n").await;
    assert!(
        !refusal.fill().await,
        "closed without the end of the answer"
    );
    accept_stream(&listener, "msgapp", &mut others).await;
    a.stop().await;
}

#[tokio::test]
async fn the_first_retry_comes_at_once_and_the_next_at_the_pace() {
    let (listener, urls) = fake_peer().await;
    let a = Member::start_with(1, |config| config.dial_retry_frequency = 5.0).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let mut at = Vec::new();
    let mut others = Vec::new();
    for _ in 0..5 {
        let (raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
        at.push(Instant::now());
        drop(raw);
    }
    let gaps: Vec<Duration> = at.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(gaps[0] < Duration::from_millis(150), "{gaps:?}");
    for gap in &gaps[1..] {
        assert!(*gap > Duration::from_millis(150), "{gaps:?}");
    }
    a.stop().await;
}

#[tokio::test]
async fn refusals_mean_what_they_mean_to_go() {
    for (status, version, body, removed, deactivates) in [
        ("410 Gone", "3.6.0", "removed member\n", true, true),
        (
            "404 Not Found",
            "3.6.0",
            "error sender not found\n",
            false,
            true,
        ),
        (
            "412 Precondition Failed",
            "3.6.0",
            "cluster ID mismatch\n",
            false,
            true,
        ),
        (
            "412 Precondition Failed",
            "3.6.0",
            "to field mismatch\n",
            false,
            true,
        ),
        ("500 Internal Server Error", "3.6.0", "", false, true),
        ("403 Forbidden", "3.6.0", "", false, true),
        ("404 Not Found", "2.0.0", "", false, false),
        ("410 Gone", "nonsense", "", false, false),
    ] {
        let (listener, urls) = fake_peer().await;
        let a = Member::start(1).await;
        a.transport.add_peer(MemberId(2), &urls).unwrap();
        let mut others = Vec::new();
        // The message stream makes the peer active; then the refusals of the other one can be seen.
        let (mut up, _) = accept_stream(&listener, "message", &mut others).await;
        up.write(STREAM_OK).await;
        up.write(chunk(&[0, 0, 0, 0, 0, 0, 0, 2, 8, 8])).await;
        let active = "etcd_network_active_peers{Local=1,Remote=2}";
        a.recorder.until(active, |active| active == 1.0).await;
        let headers = format!("X-Server-Version: {version}\r\n");
        let refuse = async |raw: &mut Raw| raw.write(answer(status, &headers, body)).await;
        // The first dial may have been taken while the message stream was waited for.
        for raw in &mut others {
            refuse(raw).await;
        }
        for _ in 0..3 {
            let (mut raw, _) = accept_stream(&listener, "msgapp", &mut Vec::new()).await;
            refuse(&mut raw).await;
        }
        if deactivates {
            a.recorder.until(active, |active| active == 0.0).await;
        } else {
            assert_eq!(a.recorder.value(active), 1.0, "{status} {version}");
        }
        if removed {
            let error = soon("the critical error", a.transport.critical_error()).await;
            assert_eq!(error, CriticalError::Removed { by: MemberId(2) });
        } else {
            let none = tokio::time::timeout(Duration::ZERO, a.transport.critical_error()).await;
            assert!(none.is_err(), "{status} {version}");
        }
        a.stop().await;
    }
}

#[tokio::test]
async fn a_versionless_stream_that_never_ends_is_not_waited_for() {
    let (listener, urls) = fake_peer().await;
    let a = Member::start(1).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let mut others = Vec::new();
    let (mut raw, _) = accept_stream(&listener, "message", &mut others).await;
    raw.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    let begun = Instant::now();
    assert!(!raw.fill().await, "closed, though the body goes on");
    assert!(begun.elapsed() < PATIENCE / 2);
    accept_stream(&listener, "message", &mut others).await;
    a.stop().await;
}

#[tokio::test]
async fn what_crashes_go_costs_one_stream() {
    let absurd = [&[2u8][..], &[0xff; 8]].concat();
    let garbage = [&[2u8, 0, 0, 0, 0, 0, 0, 0, 2][..], &[0xff, 0xff]].concat();
    let count = [&[1u8][..], &[0xff; 8]].concat();
    let (listener, urls) = fake_peer().await;
    let mut a = Member::start(1).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let mut others = Vec::new();
    for bad in [&absurd[..], &garbage, &count, &[7]] {
        let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
        raw.write(STREAM_OK).await;
        raw.write(chunk(bad)).await;
        assert!(!raw.fill().await, "closed");
    }
    let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
    raw.write(STREAM_OK).await;
    let mut frame = bytes::BytesMut::new();
    msgappv2::Encoder::new()
        .encode(&append(2, 1, 3, 5), &mut frame)
        .unwrap();
    raw.write(chunk(&frame)).await;
    assert_eq!(a.message().await, append(2, 1, 3, 5));
    a.stop().await;
}

#[tokio::test]
async fn local_and_unknown_kinds_are_dropped_and_the_stream_stays() {
    let (listener, urls) = fake_peer().await;
    let mut a = Member::start(1).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let (mut raw, _) = accept_stream(&listener, "message", &mut Vec::new()).await;
    raw.write(STREAM_OK).await;
    let mut frames = bytes::BytesMut::new();
    let mut encoder = message_frame::Encoder::new();
    let unknown = Message {
        msg_type: 77,
        ..message(MessageType::Hup, 2, 1)
    };
    let vote = message(MessageType::RequestVote, 2, 1);
    for sent in [
        &message(MessageType::Hup, 2, 1),
        &unknown,
        &message(MessageType::Unreachable, 2, 1),
        &vote,
    ] {
        encoder.encode(sent, &mut frames).unwrap();
    }
    raw.write(chunk(&frames)).await;
    assert_eq!(a.message().await, vote);
    let dropped = |reason| {
        a.recorder.value(&format!(
            "rafthttp_dropped_messages_total{{Remote=2,queue=receive,reason={reason}}}"
        ))
    };
    assert_eq!((dropped("local_type"), dropped("unknown_type")), (2.0, 1.0));
    assert_eq!(
        a.recorder
            .value("etcd_network_peer_received_failures_total{From=2}"),
        3.0
    );
    a.stop().await;
}

#[tokio::test]
async fn a_stuck_raft_fills_the_receive_lane_and_nothing_else() {
    let (listener, urls) = fake_peer().await;
    let mut a = Member::start_with(1, |config| config.limits.receive.bulk_bytes = 1 << 20).await;
    let gate = std::sync::Arc::clone(&a.raft);
    let closed = gate.gate.acquire_many(1000).await.unwrap();
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let (mut raw, _) = accept_stream(&listener, "message", &mut Vec::new()).await;
    raw.write(STREAM_OK).await;
    let mut frames = bytes::BytesMut::new();
    let mut encoder = message_frame::Encoder::new();
    for index in 1..=64 {
        encoder
            .encode(&append(2, 1, index, 64 << 10), &mut frames)
            .unwrap();
    }
    let beat = Message {
        commit: 9,
        ..message(MessageType::Heartbeat, 2, 1)
    };
    encoder.encode(&beat, &mut frames).unwrap();
    raw.write(chunk(&frames)).await;
    let full = "rafthttp_dropped_messages_total{Remote=2,queue=receive,reason=bulk_full}";
    a.recorder.until(full, |dropped| dropped > 30.0).await;
    drop(closed);
    let arrived = async { while a.messages.recv().await.unwrap() != beat {} };
    soon("the heartbeat behind them", arrived).await;
    a.stop().await;
}
