//! Holds the table of bounds in the crate's documentation to the code.
//!
//! Invariant: each figure of the table is the one in force, each bound of [`Limits`] stands in it, and each metric it
//! names is registered.

use std::collections::{BTreeMap, BTreeSet};

use transport_core::{
    frame::FRAME_BYTES_MAX,
    http1::HEAD_BYTES_MAX,
    lane::{Budget, PROCESS_BYTES, SLOT_BYTES_MAX},
    raftpb::ENTRY_CACHE_BYTES,
};

use crate::{
    client, config::Limits, inbox, incoming, metrics, net::HTTP_BUFFER_BYTES, pace, pipeline,
    prober, race, resolver, serve, snapshot_body, snapshot_receiver, stream, tls,
};

/// One row: what waits, its bounds, its metrics, what happens when it is full.
type Row = [String; 4];

fn table() -> Vec<Row> {
    let text = include_str!("lib.rs");
    let (_, section) = text.split_once("//! # Bounds").unwrap();
    let section = section.split("//! # ").next().unwrap();
    let lines = section
        .lines()
        .filter_map(|line| line.strip_prefix("//! | ")?.strip_suffix(" |"));
    let row = |line: &str| -> Row {
        let cells: Vec<String> = line.split(" | ").map(str::to_owned).collect();
        cells
            .try_into()
            .unwrap_or_else(|_| panic!("four cells: {line}"))
    };
    // The first line names the columns.
    lines.skip(1).map(row).collect()
}

/// `256 KiB` as a number.
fn figure(text: &str) -> u64 {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let factor = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => panic!("what is {unit:?}?"),
    };
    number.parse::<u64>().unwrap() * factor
}

/// What the table says: `name` = figure, as often as it stands there.
fn stated() -> BTreeMap<String, u64> {
    let mut stated = BTreeMap::new();
    for [what, bound, ..] in table() {
        let bounds: Vec<&str> = bound
            .split("; ")
            .filter(|part| part.contains('='))
            .collect();
        assert!(!bounds.is_empty(), "{what} has no bound");
        for part in bounds {
            let (name, value) = part.split_once(" = ").unwrap();
            let name = name.trim_matches('`').to_owned();
            let value = figure(value.split(',').next().unwrap());
            let before = stated.insert(name.clone(), value);
            assert!(before.is_none_or(|before| before == value), "{name} twice");
        }
    }
    stated
}

/// Every bound in force. A new limit does not compile until it is here, or named as a time.
fn in_force() -> BTreeMap<&'static str, u64> {
    let Limits {
        stream,
        pipeline,
        receive,
        proposal,
        flush_bytes,
        post_body_bytes,
        post_total_bytes,
        body_progress_bytes: _,
        body_progress_window: _,
        post_timeout: _,
        snapshot_envelope_bytes,
        snapshot_sends,
        snapshot_bytes_per_second: _,
        snapshot_chunk_timeout: _,
        snapshot_disk_reserve_bytes,
        snapshot_receives,
        snapshot_answer_timeout: _,
        remotes,
        handshake_timeout: _,
        connections,
    } = Limits::default();
    let mut bounds = BTreeMap::from([
        ("snapshot_envelope_bytes", snapshot_envelope_bytes),
        ("snapshot_disk_reserve_bytes", snapshot_disk_reserve_bytes),
        ("tls::FILE_BYTES_MAX", tls::FILE_BYTES_MAX),
    ]);
    for (name, bound) in [
        ("flush_bytes", flush_bytes),
        ("post_body_bytes", post_body_bytes),
        ("post_total_bytes", post_total_bytes),
        ("snapshot_sends", snapshot_sends),
        ("snapshot_receives", snapshot_receives),
        ("remotes", remotes),
        ("connections", connections),
        ("lane::SLOT_BYTES_MAX", SLOT_BYTES_MAX),
        ("lane::PROCESS_BYTES", PROCESS_BYTES),
        ("raftpb::ENTRY_CACHE_BYTES", ENTRY_CACHE_BYTES),
        ("frame::FRAME_BYTES_MAX", FRAME_BYTES_MAX as usize),
        ("inbox::BATCH_BYTES", inbox::BATCH_BYTES),
        ("stream::IDLE_BUFFER_BYTES", stream::body::IDLE_BUFFER_BYTES),
        ("stream::ALONE_BYTES_MAX", stream::line::ALONE_BYTES_MAX),
        ("incoming::READ_BYTES_MIN", incoming::READ_BYTES_MIN),
        ("incoming::READ_BYTES_MAX", incoming::READ_BYTES_MAX),
        ("http1::HEAD_BYTES_MAX", HEAD_BYTES_MAX),
        ("net::HTTP_BUFFER_BYTES", HTTP_BUFFER_BYTES),
        ("serve::REQUEST_HEAD_BYTES", serve::REQUEST_HEAD_BYTES),
        ("client::ANSWER_BYTES", client::ANSWER_BYTES),
        ("prober::ANSWER_BYTES", prober::ANSWER_BYTES),
        ("pipeline::PIPELINE_WORKERS", pipeline::PIPELINE_WORKERS),
        (
            "pipeline::PIPELINE_QUEUE_MESSAGES",
            pipeline::PIPELINE_QUEUE_MESSAGES,
        ),
        ("snapshot_body::CHUNKS_AHEAD", snapshot_body::CHUNKS_AHEAD),
        ("pace::CHUNK_BYTES", pace::CHUNK_BYTES),
        (
            "snapshot_receiver::PIECES_AHEAD",
            snapshot_receiver::PIECES_AHEAD,
        ),
        ("resolver::HOSTS_MAX", resolver::HOSTS_MAX),
        ("race::WAYS_MAX", race::WAYS_MAX),
        ("metrics::INTRODUCED_MAX", metrics::INTRODUCED_MAX),
        ("tls::REVERSE_LOOKUPS_MAX", tls::REVERSE_LOOKUPS_MAX),
    ] {
        bounds.insert(name, bound as u64);
    }
    let lanes = [
        ("stream.control_bytes", "stream.bulk_bytes", stream),
        ("pipeline.control_bytes", "pipeline.bulk_bytes", pipeline),
        ("receive.control_bytes", "receive.bulk_bytes", receive),
        ("proposal.control_bytes", "proposal.bulk_bytes", proposal),
    ];
    for (control, bulk, budget) in lanes {
        let Budget {
            control_bytes,
            bulk_bytes,
        } = budget;
        bounds.extend([(control, control_bytes as u64), (bulk, bulk_bytes as u64)]);
    }
    bounds
}

#[test]
fn the_table_says_every_bound_that_is_in_force_and_no_other() {
    let stated = stated();
    let in_force: BTreeMap<String, u64> = in_force()
        .into_iter()
        .map(|(name, bound)| (name.to_owned(), bound))
        .collect();
    for (name, bound) in &in_force {
        assert_eq!(stated.get(name), Some(bound), "{name} in the table");
    }
    for name in stated.keys() {
        assert!(in_force.contains_key(name), "{name} is no bound");
    }
}

#[test]
fn the_table_names_registered_metrics_and_says_what_is_dropped() {
    let registered: BTreeSet<&str> = metrics::names().collect();
    for [what, _, named, full] in table() {
        assert!(
            !full.trim().is_empty(),
            "{what}: what happens when it is full?"
        );
        for name in named.split('`').skip(1).step_by(2) {
            assert!(registered.contains(name), "{name} is not registered");
        }
        assert!(named.contains('`') || named == "–", "{what}: {named}");
    }
}
