//! Peers that mean harm, or are broken: cut at every byte, silent in the middle, wrong about versions and sizes,
//! damaged. Each costs its own connection and a log line; the member goes on, and nothing half received is
//! believed.

mod common;

use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use common::{
    Member, append, hurried, message,
    raw::{Raw, STREAM_OK, accept_stream, answer, chunk, fake_peer, request},
    snapshot,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::net::TcpListener;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};
use transport_core::{
    MemberId,
    frame::{message as message_frame, msgappv2, snapshot::encode_envelope},
    raftpb::{Message, MessageType},
};
use transport_http::{SnapDir, TransportConfig};

const LOCAL: u64 = 1;
const PEER: u64 = 2;

/// Dials again at once, so that hundreds of lost streams take no time.
fn eager(config: &mut TransportConfig) {
    config.dial_retry_frequency = 100_000.0;
}

/// A member whose only peer is played by hand.
async fn member(configure: impl FnOnce(&mut TransportConfig)) -> (Member, TcpListener) {
    let (listener, urls) = fake_peer().await;
    let member = Member::start_with(LOCAL, |config| {
        eager(config);
        configure(config);
    })
    .await;
    member.transport.add_peer(MemberId(PEER), &urls).unwrap();
    (member, listener)
}

/// Messages of a stream of this kind, and the same as frames with the end of each.
fn frames(kind: &str) -> (Vec<Message>, BytesMut, Vec<usize>) {
    let messages = if kind == "msgapp" {
        vec![
            append(PEER, LOCAL, 3, 5),
            append(PEER, LOCAL, 4, 9),
            append(PEER, LOCAL, 9, 2),
        ]
    } else {
        vec![
            message(MessageType::RequestVote, PEER, LOCAL),
            append(PEER, LOCAL, 3, 5),
            message(MessageType::TimeoutNow, PEER, LOCAL),
        ]
    };
    let (bytes, ends) = encode(kind, &messages);
    (messages, bytes, ends)
}

/// A stream of these messages, and where each of them ends.
fn encode(kind: &str, messages: &[Message]) -> (BytesMut, Vec<usize>) {
    let (mut bytes, mut ends) = (BytesMut::new(), Vec::new());
    let mut compact = msgappv2::Encoder::new();
    let mut plain = message_frame::Encoder::new();
    for message in messages {
        if kind == "msgapp" {
            compact.encode(message, &mut bytes).unwrap();
        } else {
            plain.encode(message, &mut bytes).unwrap();
        }
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// Ends a connection as a crash does, without the rest of what is queued.
fn reset(raw: Raw) {
    raw.socket.set_zero_linger().unwrap();
}

/// A whole stream gets through.
async fn still_works(member: &mut Member, listener: &TcpListener, kind: &str) {
    let (mut raw, _) = accept_stream(listener, kind, &mut Vec::new()).await;
    raw.write(STREAM_OK).await;
    let (messages, bytes, _) = frames(kind);
    raw.write(chunk(&bytes)).await;
    let mut got = Vec::new();
    while got.len() < messages.len() {
        got.push(member.message().await);
    }
    // Control messages may pass appends.
    got.sort_by_key(|message| message.index);
    let mut expected = messages;
    expected.sort_by_key(|message| message.index);
    got.sort_by_key(|message| message.msg_type);
    expected.sort_by_key(|message| message.msg_type);
    assert_eq!(got, expected, "{kind}");
}

#[tokio::test]
async fn a_stream_that_ends_at_any_byte_delivers_what_was_whole() {
    for kind in ["msgapp", "message"] {
        let (mut a, listener) = member(|_| {}).await;
        let (messages, bytes, ends) = frames(kind);
        let mut others = Vec::new();
        for cut in 0..=bytes.len() {
            let (mut raw, _) = accept_stream(&listener, kind, &mut others).await;
            raw.write(STREAM_OK).await;
            raw.write(chunk(&bytes[..cut])).await;
            drop(raw);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let mut got = Vec::new();
            while got.len() < whole {
                got.push(a.message().await);
            }
            for message in &messages[..whole] {
                assert!(got.contains(message), "{kind} cut at {cut}: {got:?}");
            }
        }
        still_works(&mut a, &listener, kind).await;
        assert!(a.messages.try_recv().is_err(), "nothing was made up");
        a.stop().await;
    }
}

#[tokio::test]
async fn a_stream_reset_at_any_byte_makes_nothing_up() {
    for kind in ["msgapp", "message"] {
        let (mut a, listener) = member(|_| {}).await;
        let (messages, bytes, _) = frames(kind);
        let answer = [STREAM_OK.as_bytes(), &chunk(&bytes)].concat();
        let mut others = Vec::new();
        for cut in 0..answer.len() {
            let (mut raw, _) = accept_stream(&listener, kind, &mut others).await;
            raw.write(&answer[..cut]).await;
            reset(raw);
        }
        // Which of them were read before the reset is the kernel's affair; that they are whole is ours.
        let (mut raw, _) = accept_stream(&listener, kind, &mut others).await;
        let last = append(PEER, LOCAL, 77, 1);
        let (frame, _) = encode(kind, std::slice::from_ref(&last));
        raw.write(STREAM_OK).await;
        raw.write(chunk(&frame)).await;
        loop {
            let received = a.message().await;
            if received == last {
                break;
            }
            assert!(messages.contains(&received), "{kind}: {received:?}");
        }
        a.stop().await;
    }
}

#[tokio::test]
async fn half_a_frame_and_then_silence_costs_the_stream_at_the_read_timeout() {
    for kind in ["msgapp", "message"] {
        let (mut a, listener) = member(hurried).await;
        let (_, bytes, ends) = frames(kind);
        let (mut raw, _) = accept_stream(&listener, kind, &mut Vec::new()).await;
        raw.write(STREAM_OK).await;
        raw.write(chunk(&bytes[..ends[0] - 1])).await;
        assert!(!raw.fill().await, "closed by the reader");
        assert!(a.messages.try_recv().is_err());
        still_works(&mut a, &listener, kind).await;
        a.stop().await;
    }
}

#[tokio::test]
async fn absurd_lengths_cost_a_message_stream_before_any_byte_of_the_body() {
    let (mut a, listener) = member(|_| {}).await;
    let mut others = Vec::new();
    for length in [u64::MAX, 1 << 63, (512 << 20) + 1] {
        let (mut raw, _) = accept_stream(&listener, "message", &mut others).await;
        raw.write(STREAM_OK).await;
        raw.write(chunk(&length.to_be_bytes())).await;
        assert!(!raw.fill().await, "{length} is refused");
    }
    still_works(&mut a, &listener, "message").await;
    a.stop().await;
}

#[tokio::test]
async fn versions_that_crash_go_are_refused_streams() {
    let (mut a, listener) = member(|_| {}).await;
    let mut others = Vec::new();
    for version in [
        "3.6",
        "v3.6.0",
        "",
        "3.6.0.0",
        "-1.0.0",
        "99999999999999999999.0.0",
        "3.6.\u{e9}",
    ] {
        let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
        let headers = format!("X-Server-Version: {version}\r\n");
        raw.write(answer("200 OK", &headers, "")).await;
        assert!(!raw.fill().await, "{version:?} is refused");
    }
    still_works(&mut a, &listener, "msgapp").await;
    a.stop().await;
}

#[tokio::test]
async fn damaged_captures_of_real_members_cost_streams_only() {
    const DAMAGES: usize = 40;
    let mut rng = SmallRng::seed_from_u64(7);
    for (file, kind) in [
        ("message-from-3.5.1.http", "message"),
        ("message-from-3.6.16-leader.http", "message"),
        ("msgapp-from-3.6.16.http", "msgapp"),
        ("msgapp-from-3.7.3.http", "msgapp"),
    ] {
        let capture = std::fs::read(format!("tests/fixtures/{file}")).unwrap();
        let start = capture
            .windows(12)
            .position(|bytes| bytes == b"HTTP/1.1 200")
            .unwrap();
        let (mut a, listener) =
            member(|config| config.server_version = "3.7.0".parse().unwrap()).await;
        let mut others = Vec::new();
        for _ in 0..DAMAGES {
            let (mut raw, _) = accept_stream(&listener, kind, &mut others).await;
            let mut damaged = capture[start..].to_vec();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..damaged.len().min(8 << 10));
                damaged[at] = rng.random();
            }
            damaged.truncate(rng.random_range(1..=damaged.len()));
            // The reader may close before it has taken everything.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut raw.socket, &damaged).await;
            drop(raw);
        }
        let last = append(PEER, LOCAL, u64::MAX - 1, 1);
        let (frame, _) = encode(kind, std::slice::from_ref(&last));
        let (mut raw, _) = accept_stream(&listener, kind, &mut others).await;
        raw.write(STREAM_OK.replace("3.6.0", "3.7.0")).await;
        raw.write(chunk(&frame)).await;
        while a.message().await != last {}
        a.stop().await;
    }
}

#[tokio::test]
async fn a_post_reset_at_any_byte_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let recorder: Arc<dyn metrics::Recorder + Send + Sync> =
        Arc::new(common::recorder::TestRecorder::default());
    let sink = Arc::new(SnapDir::new(dir.path(), &recorder));
    let mut a = Member::start_full(LOCAL, |_| {}, sink).await;
    let vote = message(MessageType::RequestVote, PEER, LOCAL);
    let mut encoded = BytesMut::new();
    message_frame::Encoder::new()
        .encode(&vote, &mut encoded)
        .unwrap();
    // A POST has the message without its length.
    let body = encoded.split_off(8);
    let length = body.len().to_string();
    let mut post = request("POST", "/raft", &[("Content-Length", &length)]).into_bytes();
    post.extend_from_slice(&body);
    let mut database = request(
        "POST",
        "/raft/snapshot",
        &[("Transfer-Encoding", "chunked")],
    )
    .into_bytes();
    database.extend(chunk(&encode_envelope(&snapshot(PEER, LOCAL, 7))));
    database.extend(chunk(b"a database"));
    database.extend(chunk(b""));
    for whole in [&post, &database] {
        for cut in 0..whole.len() {
            let mut raw = Raw::connect(a.address).await;
            raw.write(&whole[..cut]).await;
            reset(raw);
        }
    }
    let mut raw = Raw::connect(a.address).await;
    raw.write(&post).await;
    assert_eq!(raw.head().await.unwrap().status(), 204);
    assert_eq!(a.message().await, vote);
    assert!(a.messages.try_recv().is_err(), "nothing before it");
    a.stop().await;
    // Stopped, nothing is being received any more.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Messages of warnings and errors, in order.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test]
async fn a_bad_frame_costs_one_log_line_besides_the_peers_new_status() {
    let warnings = Warnings::default();
    let _here = tracing::subscriber::set_default(warnings.clone());
    let (mut a, listener) = member(|_| {}).await;
    let mut others = Vec::new();
    let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
    raw.write(STREAM_OK).await;
    raw.write(chunk(&[7])).await;
    assert!(!raw.fill().await);
    still_works(&mut a, &listener, "msgapp").await;
    let told = warnings.0.lock().unwrap().clone();
    let of = |text: &str| told.iter().filter(|line| line.contains(text)).count();
    assert_eq!(of("lost TCP streaming connection"), 1, "{told:?}");
    assert_eq!(of("peer became inactive"), 1, "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
    // However many more there are at once, the line is held back.
    for _ in 0..50 {
        let (mut raw, _) = accept_stream(&listener, "msgapp", &mut others).await;
        raw.write(STREAM_OK).await;
        raw.write(chunk(&[7])).await;
        assert!(!raw.fill().await);
    }
    let told = warnings.0.lock().unwrap().clone();
    let lost = told
        .iter()
        .filter(|line| line.contains("lost TCP streaming connection"))
        .count();
    assert!(lost <= 3, "{lost} lines: {told:?}");
    a.stop().await;
}
