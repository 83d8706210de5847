//! Time per message of the framings, both ways: `cargo bench -p transport-core`.
//!
//! Prints the best of several rounds, since everything slower is somebody else's work.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use transport_core::{
    MemberId,
    frame::{message, msgappv2},
    lane::{Budget, Lane, SharedBudget},
    raftpb::{ENTRY_CACHE_BYTES, Entry, EntryCache, Message, MessageType, Output},
};

const ROUNDS: usize = 40;
/// Bytes a round encodes into one buffer at most: what a writer hands to a connection at once.
const BATCH_BYTES: usize = 256 << 10;

fn append(index: u64, entries: u64, bytes: usize) -> Message {
    let data = Bytes::from(vec![7; bytes]);
    Message {
        msg_type: MessageType::Append as i32,
        to: 0xb66b_2921_ec55_2136,
        from: 0x5772_99c1_7ddd_c6e8,
        term: 5,
        log_term: 5,
        index,
        entries: (1..=entries)
            .map(|n| Entry {
                entry_type: 0,
                term: 5,
                index: index + n,
                data: data.clone(),
            })
            .collect(),
        commit: index,
        ..Message::default()
    }
}

fn heartbeat() -> Message {
    Message {
        msg_type: MessageType::Heartbeat as i32,
        context: Bytes::from_static(b"12345678"),
        ..append(300, 0, 0)
    }
}

fn report(name: &str, what: &str, best: Duration, messages: usize) {
    let each = best.as_nanos() as f64 / messages as f64;
    println!("{name:24} {what:7} {each:9.1} ns/message");
}

fn best(mut round: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| round()).min().unwrap_or_default()
}

/// Consecutive appends that fill a batch.
fn appends(entries: u64, bytes: usize) -> Vec<Message> {
    let count = (BATCH_BYTES / (entries as usize * (bytes + 20) + 20)).max(1) as u64;
    (0..count)
        .map(|n| append(1000 + n * entries, entries, bytes))
        .collect()
}

fn append_stream(name: &str, messages: &[Message]) {
    let mut body = BytesMut::with_capacity(2 * BATCH_BYTES);
    let encode = best(|| {
        body.clear();
        let mut encoder = msgappv2::Encoder::new();
        let start = Instant::now();
        for message in messages {
            black_box(encoder.encode(message, &mut body)).ok();
        }
        start.elapsed()
    });
    report(name, "encode", encode, messages.len());
    let body = Bytes::copy_from_slice(&body);
    let decode = best(|| {
        let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
        let start = Instant::now();
        decoder.feed(body.clone());
        while let Ok(Some(message)) = decoder.next() {
            black_box(message);
        }
        start.elapsed()
    });
    report(name, "decode", decode, messages.len());
}

fn message_stream(name: &str, messages: &[Message]) {
    let mut body = BytesMut::with_capacity(2 * BATCH_BYTES);
    let encode = best(|| {
        body.clear();
        let mut encoder = message::Encoder::new();
        let start = Instant::now();
        for message in messages {
            black_box(encoder.encode(message, &mut body)).ok();
        }
        start.elapsed()
    });
    report(name, "encode", encode, messages.len());
    let body = Bytes::copy_from_slice(&body);
    let decode = best(|| {
        let mut decoder = message::Decoder::new();
        let start = Instant::now();
        decoder.feed(body.clone());
        while let Ok(Some(message)) = decoder.next() {
            black_box(message);
        }
        start.elapsed()
    });
    report(name, "decode", decode, messages.len());
}

fn lane(name: &str, messages: &[Message]) {
    let mut lane = Lane::new(Budget::default(), Some(SharedBudget::default()));
    let mut batch = Vec::with_capacity(messages.len());
    let time = best(|| {
        let queued: Vec<Message> = messages.to_vec();
        batch.clear();
        let start = Instant::now();
        for message in queued {
            black_box(lane.push(message).is_ok());
        }
        lane.drain(usize::MAX, &mut batch);
        start.elapsed()
    });
    report(name, "lane", time, messages.len());
}

/// What a leader's appends cost for all its followers together, from raft's messages to pieces for the sockets:
/// each follower's entries encoded for it alone, and encoded once.
fn fan_out(name: &str, messages: &[Message], followers: usize) {
    let mut outputs: Vec<Output> = (0..followers).map(|_| Output::new()).collect();
    let alone = best(|| {
        let batch = vec![messages.to_vec(); followers];
        let start = Instant::now();
        for (messages, output) in batch.into_iter().zip(&mut outputs) {
            let mut encoder = msgappv2::Encoder::new();
            for message in messages {
                black_box(encoder.encode(&message, output)).ok();
            }
            while let Some(piece) = output.pop() {
                black_box(piece);
            }
        }
        start.elapsed()
    });
    report(name, "alone", alone, messages.len());
    let once = best(|| {
        let batch = vec![messages.to_vec(); followers];
        let start = Instant::now();
        let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
        for (mut messages, output) in batch.into_iter().zip(&mut outputs) {
            let mut encoder = msgappv2::Encoder::new();
            for message in &mut messages {
                if let Some(entries) = cache.share(message) {
                    black_box(encoder.encode_shared(message, &entries, output)).ok();
                }
            }
            while let Some(piece) = output.pop() {
                black_box(piece);
            }
        }
        start.elapsed()
    });
    report(name, "once", once, messages.len());
}

fn main() {
    for (name, entries, bytes) in [
        ("append 1 x 64 B", 1, 64),
        ("append 1 x 1 KiB", 1, 1024),
        ("append 64 x 1 KiB", 64, 1024),
        ("append 64 x 256 B", 64, 256),
    ] {
        let messages = appends(entries, bytes);
        append_stream(name, &messages);
        message_stream(&format!("{name}, message"), &messages);
        lane(name, &messages);
    }
    let heartbeats = vec![heartbeat(); 4000];
    message_stream("heartbeat", &heartbeats);
    for (entries, bytes) in [(1, 64), (1, 256), (64, 256), (1, 16 << 10)] {
        let messages = appends(entries, bytes);
        for followers in [2, 4] {
            let name = format!("{entries} x {bytes} B to {followers}");
            fan_out(&name, &messages, followers);
        }
    }
}
