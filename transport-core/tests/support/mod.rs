//! What the tests share: captured bytes, an HTTP un-framer for them, and strategies for random messages.
//!
//! The fixtures are raw TCP payloads between real etcd members, cut off where the capture ended.

#![allow(dead_code)] // each test binary uses a part of this

use std::{fs, path::PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, option, prelude::*};
use transport_core::raftpb::{ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata};

/// The bytes of a file in `tests/fixtures`.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("tests/fixtures").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One request or answer of a capture.
#[derive(Debug)]
pub struct Exchange {
    /// Request or status line.
    pub start: String,
    pub headers: HeaderMap,
    /// Without chunking; as much as was captured.
    pub body: Bytes,
}

/// All requests and answers in a capture, in order.
pub fn exchanges(name: &str) -> Vec<Exchange> {
    let raw = fixture(name);
    let mut rest = &raw[..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").unwrap_or_else(|| panic!("{name}: no head"));
        let head = str::from_utf8(&rest[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap().to_owned();
        let headers: HeaderMap = lines.map(header).collect();
        rest = &rest[end + 4..];
        let body = if headers.contains_key("transfer-encoding") {
            unchunk(&mut rest)
        } else {
            let length = headers.get("content-length");
            let length = length.map_or(0, |v| v.to_str().unwrap().parse().unwrap());
            let (body, after) = rest.split_at(length);
            rest = after;
            body.to_vec()
        };
        let body = body.into();
        found.push(Exchange {
            start,
            headers,
            body,
        });
    }
    found
}

/// The body of the one answer in the capture of a stream.
pub fn stream_body(name: &str) -> Bytes {
    let mut found = exchanges(name);
    assert_eq!(found.len(), 1, "{name}");
    found.remove(0).body
}

/// Splits `name: value`.
pub fn header(line: &str) -> (HeaderName, HeaderValue) {
    let (name, value) = line.split_once(':').expect(line);
    (name.parse().unwrap(), value.trim().parse().unwrap())
}

fn unchunk(rest: &mut &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = find(rest, b"\r\n") {
        let size = str::from_utf8(&rest[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).expect(size);
        let data = &rest[end + 2..];
        let captured = size.min(data.len());
        body.extend_from_slice(&data[..captured]);
        *rest = data.get(size + 2..).unwrap_or_default();
        if size == 0 {
            break;
        }
    }
    body
}

pub fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|w| w == pattern)
}

/// Bytes written as hexadecimal digits; spaces and line breaks are free.
pub fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| str::from_utf8(pair).unwrap());
    pairs
        .map(|pair| u8::from_str_radix(pair, 16).expect(pair))
        .collect()
}

/// Numbers whose varints have every length.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        (0u32..64, any::<u64>()).prop_map(|(bits, n)| n >> bits)
    ]
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 100..20_000),
    ]
    .prop_map(Bytes::from)
}

pub fn entry() -> impl Strategy<Value = Entry> {
    (any::<i32>(), number(), number(), payload()).prop_map(|(entry_type, term, index, data)| {
        Entry {
            entry_type,
            term,
            index,
            data,
        }
    })
}

fn conf_state() -> impl Strategy<Value = ConfState> {
    let ids = || vec(number(), 0..5);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, learners, voters_outgoing, learners_next, auto_leave)| ConfState {
            voters,
            learners,
            voters_outgoing,
            learners_next,
            auto_leave,
        },
    )
}

pub fn snapshot() -> impl Strategy<Value = Snapshot> {
    let metadata = (option::of(conf_state()), number(), number());
    let metadata = metadata.prop_map(|(conf_state, index, term)| SnapshotMetadata {
        conf_state,
        index,
        term,
    });
    (payload(), option::of(metadata)).prop_map(|(data, metadata)| Snapshot { data, metadata })
}

/// Any message that survives the wire: an empty snapshot only on a snapshot message.
pub fn message() -> impl Strategy<Value = Message> {
    let kind = prop_oneof![8 => 0i32..24, 1 => any::<i32>()];
    let head = (kind, number(), number(), number(), number(), number());
    let tail = (
        number(),
        option::of(snapshot()),
        any::<bool>(),
        number(),
        payload(),
    );
    (head, vec(entry(), 0..6), tail).prop_map(|(head, entries, tail)| {
        let (msg_type, to, from, term, log_term, index) = head;
        let (commit, snapshot, reject, reject_hint, context) = tail;
        let is_snapshot = msg_type == MessageType::Snapshot as i32;
        Message {
            msg_type,
            to,
            from,
            term,
            log_term,
            index,
            entries,
            commit,
            snapshot: snapshot
                .filter(|s| is_snapshot || !s.is_empty())
                .map(Box::new),
            reject,
            reject_hint,
            context,
        }
    })
}

/// Appends as one leader sends them over a connection: most continue where the last one ended.
pub fn appends() -> impl Strategy<Value = Vec<Message>> {
    let step = (vec(payload(), 0..5), 0u64..100, 0u32..10);
    vec(step, 1..20).prop_map(|steps| {
        let (mut term, mut index, mut commit) = (0, 0, 0);
        let mut messages = Vec::new();
        for (payloads, more, event) in steps {
            let log_term = term;
            match event {
                0 => term += more,
                1 => index = u64::wrapping_add(index, more),
                2 => index = u64::saturating_sub(index, more),
                3 => messages.push(Message::link_heartbeat()),
                _ => {}
            }
            commit += more;
            let from_index = index;
            let entries: Vec<Entry> = payloads
                .into_iter()
                .map(|data| {
                    index += 1;
                    Entry {
                        entry_type: 0,
                        term,
                        index,
                        data,
                    }
                })
                .collect();
            messages.push(Message {
                msg_type: MessageType::Append as i32,
                to: 2,
                from: 1,
                term,
                log_term,
                index: from_index,
                entries,
                commit,
                ..Message::default()
            });
        }
        messages
    })
}

/// `bytes` in pieces whose sizes follow `sizes`, again and again.
pub fn pieces<'a>(bytes: &'a Bytes, sizes: &'a [usize]) -> impl Iterator<Item = Bytes> + 'a {
    let mut at = 0;
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let start = at;
        at = bytes.len().min(at + *sizes.next().unwrap_or(&1));
        (start < bytes.len()).then(|| bytes.slice(start..at))
    })
}
