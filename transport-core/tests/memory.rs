//! Whatever bytes arrive, decoding them never holds more than a small multiple of their length; honest
//! messages cost at most one allocation, and none to encode.
//!
//! Alone in its binary, and one test, because the allocator counts for the whole process.

#![allow(unsafe_code)]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::{Bytes, BytesMut};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use transport_core::{
    MemberId,
    frame::{message, msgappv2, snapshot},
    raftpb::*,
};

use support::pieces;

/// Memory per byte of input, and what may come on top whatever the input.
const MULTIPLE: usize = 16;
const EXTRA: usize = 64 << 10;

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came; the counters do not touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        let live = LIVE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
    // `realloc` is left to the default, which allocates anew and copies: old and new count together.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes held at once while `work` runs, beyond those held before.
fn peak<R>(work: impl FnOnce() -> R) -> usize {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    let peak = PEAK.load(Relaxed) - before;
    drop(result);
    peak
}

fn allocations<R>(work: impl FnOnce() -> R) -> (usize, R) {
    let before = COUNT.load(Relaxed);
    let result = work();
    (COUNT.load(Relaxed) - before, result)
}

/// Takes all messages out of both streams and the envelope, cut into pieces, and holds on to them.
fn decode_everything(bytes: &Bytes, sizes: &[usize]) -> usize {
    let mut worst = peak(|| decode_message(bytes.clone()));
    worst = worst.max(peak(|| decode_snapshot(bytes.clone())));
    worst = worst.max(peak(|| decode_conf_state(bytes.clone())));
    worst = worst.max(peak(|| {
        let mut decoder = message::Decoder::new();
        let mut messages = Vec::with_capacity(1);
        for piece in pieces(bytes, sizes) {
            decoder.feed(piece);
            messages.clear();
            while let Ok(Some(message)) = decoder.next() {
                messages.clear();
                messages.push(message);
            }
        }
        (decoder, messages)
    }));
    worst = worst.max(peak(|| {
        let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
        let mut messages = Vec::with_capacity(1);
        for piece in pieces(bytes, sizes) {
            decoder.feed(piece);
            while let Ok(Some(message)) = decoder.next() {
                messages.clear();
                messages.push(message);
            }
        }
        (decoder, messages)
    }));
    worst.max(peak(|| {
        let mut decoder = snapshot::EnvelopeDecoder::new(snapshot::ENVELOPE_BYTES_MAX);
        let mut envelope = None;
        for piece in pieces(bytes, sizes) {
            match decoder.feed(piece) {
                Ok(None) => {}
                other => {
                    envelope = other.ok();
                    break;
                }
            }
        }
        (decoder, envelope)
    }))
}

/// Inputs made to be cheap to send and dear to hold.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let framed = |tag: Option<u8>, body: &[u8]| {
        let length = (body.len() as u64).to_be_bytes();
        let tag = tag.iter().copied();
        tag.chain(length)
            .chain(body.iter().copied())
            .collect::<Vec<u8>>()
    };
    let compact = |count: u64, body: &[u8]| [&[1][..], &count.to_be_bytes(), body].concat();
    let empty_entries = b"\x3a\x00".repeat(100_000);
    let small_entries = b"\x3a\x04\x10\x01\x18\x01".repeat(50_000);
    let interrupted = b"\x3a\x02\x18\x01\x40\x01".repeat(50_000);
    let unpacked = b"\x08\x01".repeat(100_000);
    let packed = [&[0x0a, 0xa0, 0x8d, 0x06][..], &[1; 100_000]].concat();
    let snapshots = b"\x4a\x06\x12\x04\x0a\x02\x08\x01".repeat(50_000);
    vec![
        ("empty entries", empty_entries.clone()),
        ("empty entries in a frame", framed(None, &empty_entries)),
        (
            "empty entries in a full append",
            framed(Some(2), &empty_entries),
        ),
        ("small entries", small_entries.clone()),
        ("small entries in a frame", framed(None, &small_entries)),
        (
            "small entries in a full append",
            framed(Some(2), &small_entries),
        ),
        ("interrupted runs of entries", interrupted),
        ("ids one by one", unpacked),
        ("ids packed", packed),
        ("snapshots merged", snapshots),
        (
            "empty entries in the compact form",
            compact(100_000, &[0; 800_000]),
        ),
        (
            "more compact entries promised than sent",
            compact(1 << 25, &[0; 80_000]),
        ),
        (
            "as many compact entries as allowed",
            compact(1 << 26, &[0; 64]),
        ),
        ("a length promised", (512u64 << 20).to_be_bytes().to_vec()),
        (
            "a full append promised",
            framed(Some(2), b"")[..1]
                .iter()
                .copied()
                .chain((512u64 << 20).to_be_bytes())
                .collect(),
        ),
        (
            "an envelope promised",
            (64u64 << 20)
                .to_be_bytes()
                .iter()
                .chain(&[0; 3])
                .copied()
                .collect(),
        ),
    ]
}

fn hostile_input_is_bounded() {
    for (name, bytes) in hostile() {
        let bytes = Bytes::from(bytes);
        for sizes in [&[usize::MAX >> 1][..], &[1], &[1000], &[65_536]] {
            // A shared handle of `bytes` is made once, so that it is not counted below.
            let _held = bytes.clone();
            let worst = decode_everything(&bytes, sizes);
            let bound = MULTIPLE * bytes.len() + EXTRA;
            assert!(
                worst <= bound,
                "{name} in pieces of {sizes:?}: {worst} > {bound}"
            );
        }
    }
}

fn random_input_is_bounded() {
    let mut runner = TestRunner::new(Config::default());
    let byte = prop_oneof![0u8..20, Just(0x3a), Just(0x4a), Just(0x62), any::<u8>()];
    let strategy = (vec(byte, 0..4000), vec(1usize..3000, 1..4));
    for _ in 0..300 {
        let (bytes, sizes) = strategy.new_tree(&mut runner).unwrap().current();
        let bytes = Bytes::from(bytes);
        let worst = decode_everything(&bytes, &sizes);
        assert!(
            worst <= MULTIPLE * bytes.len() + EXTRA,
            "{worst} for {bytes:?}"
        );
    }
}

fn append(index: u64) -> Message {
    Message {
        msg_type: MessageType::Append as i32,
        to: 2,
        from: 1,
        term: 5,
        log_term: 5,
        index,
        entries: vec![Entry {
            entry_type: 0,
            term: 5,
            index: index + 1,
            data: Bytes::from_static(&[7; 64]),
        }],
        commit: index,
        ..Message::default()
    }
}

fn honest_messages_cost_one_allocation() {
    const MESSAGES: usize = 1000;
    let messages: Vec<Message> = (1..=MESSAGES as u64).map(append).collect();
    let mut to = BytesMut::with_capacity(1 << 20);
    let mut encoder = msgappv2::Encoder::new();
    let (count, ()) = allocations(|| {
        for message in &messages {
            encoder.encode(message, &mut to).unwrap();
        }
    });
    assert_eq!(count, 0, "encoding appends");
    let body = to.split().freeze();
    let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
    let mut taken = Vec::with_capacity(messages.len());
    let (count, ()) = allocations(|| {
        decoder.feed(body);
        while let Some(message) = decoder.next().unwrap() {
            taken.push(message);
        }
    });
    assert_eq!(taken, messages);
    let slack = 4; // the queue of pieces, and the buffer's reference count
    assert!(count <= MESSAGES + slack, "decoding appends: {count}");

    let mut encoder = message::Encoder::new();
    let heartbeat = Message {
        msg_type: MessageType::Heartbeat as i32,
        context: Bytes::from_static(b"12345678"),
        ..append(1)
    };
    let heartbeat = Message {
        entries: Vec::new(),
        ..heartbeat
    };
    to.reserve(1 << 20);
    let (count, ()) = allocations(|| {
        for _ in 0..MESSAGES {
            encoder.encode(&heartbeat, &mut to).unwrap();
        }
    });
    assert_eq!(count, 0, "encoding heartbeats");
    let mut decoder = message::Decoder::new();
    let (count, ()) = allocations(|| {
        decoder.feed(to.split().freeze());
        while let Some(message) = decoder.next().unwrap() {
            assert_eq!(message.context, heartbeat.context);
        }
    });
    assert!(count <= slack, "decoding heartbeats: {count}");
}

#[test]
fn memory_is_bounded_by_the_input() {
    hostile_input_is_bounded();
    random_input_is_bounded();
    honest_messages_cost_one_allocation();
}
