//! Names of the metrics, their help texts and buckets.
//!
//! Names, types, labels and buckets of `etcd_*` are etcd's contract; help texts, and everything under `rafthttp_`, are
//! our own. Invariant: what is registered is described here.

use metrics::{KeyName, Recorder, Unit};

use crate::config::SharedRecorder;

pub(crate) const ACTIVE_PEERS: &str = "etcd_network_active_peers";
pub(crate) const DISCONNECTED_PEERS: &str = "etcd_network_disconnected_peers_total";
pub(crate) const SENT_BYTES: &str = "etcd_network_peer_sent_bytes_total";
pub(crate) const RECEIVED_BYTES: &str = "etcd_network_peer_received_bytes_total";
pub(crate) const SENT_FAILURES: &str = "etcd_network_peer_sent_failures_total";
pub(crate) const RECEIVED_FAILURES: &str = "etcd_network_peer_received_failures_total";
pub(crate) const ROUND_TRIP_SECONDS: &str = "etcd_network_peer_round_trip_time_seconds";
pub(crate) const SNAPSHOT_SEND_SUCCESS: &str = "etcd_network_snapshot_send_success";
pub(crate) const SNAPSHOT_SEND_INFLIGHTS: &str = "etcd_network_snapshot_send_inflights_total";
pub(crate) const SNAPSHOT_SEND_FAILURES: &str = "etcd_network_snapshot_send_failures";
pub(crate) const SNAPSHOT_SEND_SECONDS: &str = "etcd_network_snapshot_send_total_duration_seconds";
pub(crate) const SNAPSHOT_RECEIVE_SUCCESS: &str = "etcd_network_snapshot_receive_success";
pub(crate) const SNAPSHOT_RECEIVE_INFLIGHTS: &str = "etcd_network_snapshot_receive_inflights_total";
pub(crate) const SNAPSHOT_RECEIVE_FAILURES: &str = "etcd_network_snapshot_receive_failures";
pub(crate) const SNAPSHOT_RECEIVE_SECONDS: &str =
    "etcd_network_snapshot_receive_total_duration_seconds";
pub(crate) const SNAP_DB_SAVE_SECONDS: &str = "etcd_snap_db_save_total_duration_seconds";
pub(crate) const SNAP_DB_FSYNC_SECONDS: &str = "etcd_snap_db_fsync_duration_seconds";
pub(crate) const QUEUE_BYTES: &str = "rafthttp_queue_bytes";
pub(crate) const DROPPED_MESSAGES: &str = "rafthttp_dropped_messages_total";
pub(crate) const FLUSH_BYTES: &str = "rafthttp_flush_bytes";
pub(crate) const STREAM_ATTACHED: &str = "rafthttp_stream_attached";
pub(crate) const HANDSHAKE_FAILURES: &str = "rafthttp_handshake_failures_total";
pub(crate) const QUEUE_WAIT_SECONDS: &str = "rafthttp_queue_wait_seconds";
pub(crate) const FLUSHES: &str = "rafthttp_flushes_total";
pub(crate) const ENCODE_SECONDS: &str = "rafthttp_encode_seconds";
pub(crate) const ENTRY_ENCODES: &str = "rafthttp_entry_encodes_total";
pub(crate) const DECODE_SECONDS: &str = "rafthttp_decode_seconds";
pub(crate) const RECONNECTS: &str = "rafthttp_reconnects_total";
pub(crate) const DIAL_FAILURES: &str = "rafthttp_dial_failures_total";
pub(crate) const REFUSED_REQUESTS: &str = "rafthttp_refused_requests_total";

#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

pub(crate) const DESCRIPTIONS: [(&str, Kind, Unit, &str); 28] = [
    (
        ACTIVE_PEERS,
        Kind::Gauge,
        Unit::Count,
        "Whether the peer is reachable by any channel (1) or not (0).",
    ),
    (
        DISCONNECTED_PEERS,
        Kind::Counter,
        Unit::Count,
        "How often the peer went from reachable to unreachable.",
    ),
    (
        SENT_BYTES,
        Kind::Counter,
        Unit::Bytes,
        "Bytes of raft messages handed to the peer's connections.",
    ),
    (
        RECEIVED_BYTES,
        Kind::Counter,
        Unit::Bytes,
        "Bytes of raft messages read; link heartbeats come from 0.",
    ),
    (
        SENT_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Failed sends to the peer: full queue, broken stream, failed request.",
    ),
    (
        RECEIVED_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Received messages that were dropped or could not be read.",
    ),
    (
        ROUND_TRIP_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Smoothed round trip of probes on an established connection.",
    ),
    (
        SNAPSHOT_SEND_SUCCESS,
        Kind::Counter,
        Unit::Count,
        "Snapshots the receiver accepted.",
    ),
    (
        SNAPSHOT_SEND_INFLIGHTS,
        Kind::Gauge,
        Unit::Count,
        "Snapshots on their way to the receiver.",
    ),
    (
        SNAPSHOT_SEND_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Snapshots that did not reach the receiver.",
    ),
    (
        SNAPSHOT_SEND_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time a snapshot took from first byte to acceptance.",
    ),
    (
        SNAPSHOT_RECEIVE_SUCCESS,
        Kind::Counter,
        Unit::Count,
        "Snapshots received, saved and accepted.",
    ),
    (
        SNAPSHOT_RECEIVE_INFLIGHTS,
        Kind::Gauge,
        Unit::Count,
        "Snapshots being received.",
    ),
    (
        SNAPSHOT_RECEIVE_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Snapshots refused, broken off or not saved.",
    ),
    (
        SNAPSHOT_RECEIVE_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time a received snapshot took until accepted.",
    ),
    (
        QUEUE_BYTES,
        Kind::Gauge,
        Unit::Bytes,
        "Encoded size of the messages waiting in a queue of the peer.",
    ),
    (
        DROPPED_MESSAGES,
        Kind::Counter,
        Unit::Count,
        "Messages dropped, by queue and reason.",
    ),
    (
        FLUSH_BYTES,
        Kind::Histogram,
        Unit::Bytes,
        "Size of one write to a stream.",
    ),
    (
        STREAM_ATTACHED,
        Kind::Gauge,
        Unit::Count,
        "Whether the peer reads this stream of ours (1) or not (0).",
    ),
    (
        HANDSHAKE_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Connections between members that did not become usable, by side and cause.",
    ),
    (
        QUEUE_WAIT_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "How long the oldest message of a batch waited in its queue.",
    ),
    (
        FLUSHES,
        Kind::Counter,
        Unit::Count,
        "Writes to a stream, by cause: its queue was drained, the write was full, a link heartbeat was due.",
    ),
    (
        ENCODE_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time to encode one write of a stream; every sixteenth is measured.",
    ),
    (
        ENTRY_ENCODES,
        Kind::Counter,
        Unit::Count,
        "Log entries encoded; once each, however many peers get them.",
    ),
    (
        DECODE_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Time to decode and hand on one piece read from a stream; every sixteenth is measured.",
    ),
    (
        RECONNECTS,
        Kind::Counter,
        Unit::Count,
        "Streams from the peer that were lost and dialled again, by cause.",
    ),
    (
        DIAL_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Stream dials that brought no stream, by cause.",
    ),
    (
        REFUSED_REQUESTS,
        Kind::Counter,
        Unit::Count,
        "Requests of peers that were refused, by endpoint and cause.",
    ),
];

pub(crate) fn describe(
    recorder: &SharedRecorder,
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
) {
    let name = KeyName::from_const_str(name);
    match kind {
        Kind::Counter => recorder.describe_counter(name, Some(unit), help.into()),
        Kind::Gauge => recorder.describe_gauge(name, Some(unit), help.into()),
        Kind::Histogram => recorder.describe_histogram(name, Some(unit), help.into()),
    }
}

/// Describes what a snapshot directory records.
pub(crate) fn describe_snap_db(recorder: &SharedRecorder) {
    let save = "Time from the first byte of a received database to its durable final name.";
    describe(
        recorder,
        SNAP_DB_SAVE_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        save,
    );
    let fsync = "Time the fsync of a received database took.";
    describe(
        recorder,
        SNAP_DB_FSYNC_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        fsync,
    );
}

/// Bucket bounds of the histograms registered here, for the exporter: etcd's for etcd's names.
pub fn histogram_buckets() -> Vec<(&'static str, Vec<f64>)> {
    fn exponential(start: f64, factor: f64, count: i32) -> Vec<f64> {
        (0..count).map(|n| start * factor.powi(n)).collect()
    }
    vec![
        (ROUND_TRIP_SECONDS, exponential(0.0001, 2.0, 16)),
        (SNAPSHOT_SEND_SECONDS, exponential(0.1, 2.0, 10)),
        (SNAPSHOT_RECEIVE_SECONDS, exponential(0.1, 2.0, 10)),
        (SNAP_DB_SAVE_SECONDS, exponential(0.1, 2.0, 10)),
        (SNAP_DB_FSYNC_SECONDS, exponential(0.001, 2.0, 14)),
        (FLUSH_BYTES, exponential(64.0, 4.0, 10)),
        (QUEUE_WAIT_SECONDS, exponential(0.000_01, 4.0, 10)),
        (ENCODE_SECONDS, exponential(0.000_001, 4.0, 10)),
        (DECODE_SECONDS, exponential(0.000_001, 4.0, 10)),
    ]
}
