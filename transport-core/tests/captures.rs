//! Every capture of real etcd traffic decodes, and our own bytes for it decode to the same.

mod support;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use transport_core::{
    MemberId,
    frame::{message, msgappv2, snapshot},
    handshake::{DialVerdict, Headers, PostVerdict, StreamKind, Version},
    raftpb::{Message, MessageType, decode_message, encode_message},
};

use support::{Exchange, exchanges, fixture, pieces, stream_body};

/// How the test feeds a decoder: all at once, byte by byte, and unevenly.
const SIZES: [&[usize]; 4] = [&[usize::MAX >> 1], &[1], &[7, 1, 64, 3], &[4096]];

fn read_message_stream(body: &Bytes, sizes: &[usize]) -> Vec<Message> {
    let mut decoder = message::Decoder::new();
    let mut messages = Vec::new();
    for piece in pieces(body, sizes) {
        decoder.feed(piece);
        while let Some(message) = decoder.next().unwrap() {
            messages.push(message);
        }
    }
    messages
}

fn read_append_stream(body: &Bytes, sizes: &[usize]) -> Vec<Message> {
    let mut decoder = msgappv2::Decoder::new(MemberId(0x22), MemberId(0x11));
    let mut messages = Vec::new();
    for piece in pieces(body, sizes) {
        decoder.feed(piece);
        while let Some(message) = decoder.next().unwrap() {
            messages.push(message);
        }
    }
    decoder.finish().unwrap();
    messages
}

fn count(messages: &[Message]) -> BTreeMap<MessageType, usize> {
    let mut counts = BTreeMap::new();
    for message in messages {
        *counts.entry(message.kind().unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn message_streams_of_all_versions() {
    use MessageType::*;
    let expected: [(&str, &[(MessageType, usize)]); 6] = [
        (
            "message-from-3.4.23.http",
            &[
                (AppendResponse, 2),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 125),
                (HeartbeatResponse, 1),
                (TimeoutNow, 1),
                (ReadIndexResponse, 1),
            ],
        ),
        (
            "message-from-3.5.1.http",
            &[
                (Propose, 4),
                (AppendResponse, 17),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 9),
                (HeartbeatResponse, 117),
                (ReadIndex, 1),
            ],
        ),
        (
            "message-from-3.6.16-follower.http",
            &[
                (Propose, 3),
                (AppendResponse, 109),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 18),
                (HeartbeatResponse, 118),
                (ReadIndex, 3),
                (RequestPreVoteResponse, 1),
            ],
        ),
        (
            "message-from-3.6.16-leader.http",
            &[
                (AppendResponse, 2),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 125),
                (HeartbeatResponse, 11),
                (TimeoutNow, 1),
                (ReadIndexResponse, 3),
                (RequestPreVote, 1),
            ],
        ),
        (
            "message-from-3.7.3-follower.http",
            &[
                (Propose, 3),
                (AppendResponse, 109),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 18),
                (HeartbeatResponse, 115),
                (ReadIndex, 2),
                (RequestPreVoteResponse, 1),
            ],
        ),
        (
            "message-from-3.7.3-leader.http",
            &[
                (AppendResponse, 2),
                (RequestVote, 1),
                (RequestVoteResponse, 1),
                (Heartbeat, 122),
                (HeartbeatResponse, 11),
                (TimeoutNow, 1),
                (ReadIndexResponse, 2),
                (RequestPreVote, 1),
            ],
        ),
    ];
    for (name, counts) in expected {
        let body = stream_body(name);
        let messages = read_message_stream(&body, SIZES[0]);
        assert_eq!(count(&messages), counts.iter().copied().collect(), "{name}");
        for sizes in SIZES {
            assert_eq!(read_message_stream(&body, sizes), messages, "{name}");
        }
        assert!(messages.iter().all(|m| m.snapshot.is_none()), "{name}");
        assert!(messages.iter().all(|m| !m.is_local()), "{name}");
        let mut ours = BytesMut::new();
        for message in &messages {
            message::Encoder::new().encode(message, &mut ours).unwrap();
        }
        let ours = ours.freeze();
        assert_eq!(read_message_stream(&ours, SIZES[0]), messages, "{name}");
        assert!(
            ours.len() <= body.len(),
            "{name}: nothing is written longer"
        );
    }
}

#[test]
fn what_3_7_writes_is_what_we_write() {
    for name in [
        "message-from-3.7.3-follower.http",
        "message-from-3.7.3-leader.http",
    ] {
        let body = stream_body(name);
        let mut ours = BytesMut::new();
        for message in read_message_stream(&body, SIZES[0]) {
            message::Encoder::new().encode(&message, &mut ours).unwrap();
        }
        assert_eq!(ours, body[..ours.len()], "{name}");
        assert!(body.len() - ours.len() < 40, "{name}: one frame may be cut");
    }
}

/// Tags of a body's frames, by the layout alone.
fn tags(body: &[u8]) -> Vec<u8> {
    let u64_at = |at: usize| u64::from_be_bytes(body[at..at + 8].try_into().unwrap()) as usize;
    let (mut at, mut tags) = (0, Vec::new());
    while at < body.len() {
        tags.push(body[at]);
        match body[at] {
            0 => at += 1,
            1 => {
                let count = u64_at(at + 1);
                at += 9;
                for _ in 0..count {
                    at += 8 + u64_at(at);
                }
                at += 8;
            }
            2 => at += 9 + u64_at(at + 1),
            other => panic!("tag {other}"),
        }
    }
    tags
}

#[test]
fn append_streams_of_all_versions() {
    for (name, heartbeats, entries) in [
        ("msgapp-from-3.4.23.http", 8, 10),
        ("msgapp-from-3.5.1.http", 8, 1),
        ("msgapp-from-3.6.16.http", 7, 56),
        ("msgapp-from-3.7.3.http", 7, 56),
    ] {
        let body = stream_body(name);
        let messages = read_append_stream(&body, SIZES[0]);
        for sizes in SIZES {
            assert_eq!(read_append_stream(&body, sizes), messages, "{name}");
        }
        let (beats, appends): (Vec<_>, Vec<_>) =
            messages.iter().partition(|m| m.is_link_heartbeat());
        assert_eq!(beats.len(), heartbeats, "{name}");
        let indexes: Vec<u64> = appends
            .iter()
            .flat_map(|m| &m.entries)
            .map(|e| e.index)
            .collect();
        assert_eq!(indexes.len(), entries, "{name}");
        assert!(indexes.is_sorted_by(|a, b| a + 1 == *b), "{name}: no gap");
        for append in &appends {
            let after = append.entries.first().map(|e| e.index);
            assert!(
                after.is_none_or(|index| index == append.index + 1),
                "{name}"
            );
            assert!(append.is_sound(), "{name}: {append:?}");
        }

        let mut ours = BytesMut::new();
        let mut encoder = msgappv2::Encoder::new();
        for message in &messages {
            encoder.encode(message, &mut ours).unwrap();
        }
        let ours = ours.freeze();
        assert_eq!(read_append_stream(&ours, SIZES[0]), messages, "{name}");
        assert_eq!(
            tags(&ours),
            tags(&body),
            "{name}: the same frames are compact"
        );
    }
}

trait Sound {
    fn is_sound(&self) -> bool;
}

impl Sound for Message {
    /// What every append of a leader in its term has.
    fn is_sound(&self) -> bool {
        self.msg_type == MessageType::Append as i32
            && self.term > 0
            && self.log_term <= self.term
            && self.from != 0
            && self.to != 0
            && self.entries.iter().all(|e| e.term <= self.term)
    }
}

fn posts(name: &str) -> impl Iterator<Item = Exchange> {
    let found = exchanges(name).into_iter();
    found.filter(|e| e.start.starts_with("POST /raft "))
}

#[test]
fn pipeline_posts_of_all_versions() {
    use MessageType::*;
    for (name, kinds) in [
        (
            "pipeline-posts-from-3.5.1.http",
            &[
                HeartbeatResponse,
                AppendResponse,
                AppendResponse,
                AppendResponse,
                HeartbeatResponse,
            ][..],
        ),
        ("pipeline-post-3.6.16.http", &[HeartbeatResponse]),
        ("pipeline-post-3.7.3.http", &[Propose]),
    ] {
        let mut seen = Vec::new();
        for post in posts(name) {
            let message = decode_message(post.body.clone()).unwrap();
            let from = Headers::new(&post.headers).server_from().unwrap();
            assert_eq!(message.from, from.0, "{name}");
            let mut ours = BytesMut::new();
            encode_message(&message, &mut ours);
            seen.push(message.kind().unwrap());
            assert_eq!(decode_message(ours.freeze()), Ok(message), "{name}");
        }
        assert_eq!(&seen[..], kinds, "{name}");
    }
}

#[test]
fn snapshot_posts_of_all_versions() {
    for (name, message_bytes, index, count, database) in [
        ("snapshot-post-head-3.5.1.http", 8117, 7207, 2, 0),
        ("snapshot-post-head-3.6.16.http", 9953, 100, 4, 1973),
        ("snapshot-post-head-3.7.3.http", 9943, 100, 4, 1984),
    ] {
        let post = exchanges(name).remove(0);
        for sizes in SIZES {
            let mut decoder = snapshot::EnvelopeDecoder::new(snapshot::ENVELOPE_BYTES_MAX);
            let mut feed = pieces(&post.body, sizes);
            let envelope = loop {
                if let Some(found) = decoder.feed(feed.next().unwrap()).unwrap() {
                    break found;
                }
            };
            assert_eq!(envelope.message_bytes, message_bytes, "{name}");
            let rest = envelope.database.into_iter().chain(feed);
            assert_eq!(rest.map(|b| b.len()).sum::<usize>(), database, "{name}");
            let message = envelope.message;
            assert_eq!(message.kind(), Some(MessageType::Snapshot));
            let snapshot = message.snapshot.as_ref().unwrap();
            let metadata = snapshot.metadata.as_ref().unwrap();
            assert_eq!(metadata.index, index, "{name}");
            let state = metadata.conf_state.as_ref().unwrap();
            let members = [&state.voters[..], &state.learners].concat();
            assert_eq!(members.len(), count, "{name}");
            assert!(members.contains(&message.to), "{name}");
            assert!(snapshot.data.starts_with(b"{\"Root\":"), "{name}");

            let ours = snapshot::encode_envelope(&message);
            let mut decoder = snapshot::EnvelopeDecoder::new(snapshot::ENVELOPE_BYTES_MAX);
            let again = decoder.feed(ours).unwrap().unwrap();
            assert_eq!(again.message, message, "{name}");
            assert!(again.database.is_empty());
        }
    }
}

#[test]
fn answers_of_all_versions_are_understood() {
    for (name, delivered) in [
        ("pipeline-answers-from-3.5.1.http", 5),
        ("pipeline-answer-3.6.16.http", 1),
        ("pipeline-answer-3.7.3.http", 1),
        ("snapshot-answer-3.5.1.http", 1),
        ("snapshot-answer-3.6.16.http", 1),
        ("snapshot-answer-3.7.3.http", 2),
    ] {
        let answers = exchanges(name).into_iter();
        let verdicts = answers.map(|a| {
            let status = a.start.split(' ').nth(1).unwrap().parse().unwrap();
            PostVerdict::read(status, &a.body)
        });
        let count = verdicts.filter(|v| *v == PostVerdict::Delivered).count();
        assert_eq!(count, delivered, "{name}");
    }
    for name in ["message-from-3.4.23.http", "msgapp-from-3.7.3.http"] {
        let answer = exchanges(name).remove(0);
        let status = answer.start.split(' ').nth(1).unwrap().parse().unwrap();
        for kind in StreamKind::ALL {
            let local = Version::new(3, 6, 0);
            let verdict = DialVerdict::read(local, kind, status, &answer.headers, b"");
            assert_eq!(verdict, DialVerdict::Accepted, "{name}");
        }
    }
}

#[test]
fn every_fixture_is_read_by_some_test() {
    // Guards against a capture that is copied here and forgotten.
    let tests = [
        include_str!("captures.rs"),
        include_str!("golden.rs"),
        include_str!("handshake.rs"),
        include_str!("probes.rs"),
    ]
    .concat();
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    for file in std::fs::read_dir(dir).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.starts_with('.') {
            continue;
        }
        assert!(tests.contains(&format!("\"{name}\"")), "{name}");
        assert!(!fixture(&name).is_empty());
    }
}
