//! The metrics of this layer: etcd's `etcd_network_*` names, and our own under `rafthttp_`.
//!
//! Handles are resolved once per peer. Labels are bounded: only ids of members and remotes appear, never what a
//! request merely claims. Help texts are our own; names, types, labels and buckets are etcd's contract.

use std::sync::OnceLock;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use transport_core::{MemberId, lane::DropReason};

use crate::{
    config::SharedRecorder,
    handshake::{HandshakeFailures, Side},
};

const ACTIVE_PEERS: &str = "etcd_network_active_peers";
const DISCONNECTED_PEERS: &str = "etcd_network_disconnected_peers_total";
const SENT_BYTES: &str = "etcd_network_peer_sent_bytes_total";
const RECEIVED_BYTES: &str = "etcd_network_peer_received_bytes_total";
const SENT_FAILURES: &str = "etcd_network_peer_sent_failures_total";
const RECEIVED_FAILURES: &str = "etcd_network_peer_received_failures_total";
const ROUND_TRIP_SECONDS: &str = "etcd_network_peer_round_trip_time_seconds";
const SNAPSHOT_SEND_SUCCESS: &str = "etcd_network_snapshot_send_success";
const SNAPSHOT_SEND_INFLIGHTS: &str = "etcd_network_snapshot_send_inflights_total";
const SNAPSHOT_SEND_FAILURES: &str = "etcd_network_snapshot_send_failures";
const SNAPSHOT_SEND_SECONDS: &str = "etcd_network_snapshot_send_total_duration_seconds";
const SNAPSHOT_RECEIVE_SUCCESS: &str = "etcd_network_snapshot_receive_success";
const SNAPSHOT_RECEIVE_INFLIGHTS: &str = "etcd_network_snapshot_receive_inflights_total";
const SNAPSHOT_RECEIVE_FAILURES: &str = "etcd_network_snapshot_receive_failures";
const SNAPSHOT_RECEIVE_SECONDS: &str = "etcd_network_snapshot_receive_total_duration_seconds";
pub(crate) const SNAP_DB_SAVE_SECONDS: &str = "etcd_snap_db_save_total_duration_seconds";
pub(crate) const SNAP_DB_FSYNC_SECONDS: &str = "etcd_snap_db_fsync_duration_seconds";
const QUEUE_BYTES: &str = "rafthttp_queue_bytes";
const DROPPED_MESSAGES: &str = "rafthttp_dropped_messages_total";
const FLUSH_BYTES: &str = "rafthttp_flush_bytes";
const STREAM_ATTACHED: &str = "rafthttp_stream_attached";
pub(crate) const HANDSHAKE_FAILURES: &str = "rafthttp_handshake_failures_total";

/// The `From` label for a snapshot sender nobody here knows.
pub(crate) const UNKNOWN_SNAPSHOT_SENDER: &str = "UNKNOWN_SNAPSHOT_SENDER";

static METADATA: Metadata<'static> =
    Metadata::new("transport_http", Level::INFO, Some("transport_http"));

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const DESCRIPTIONS: [(&str, Kind, Unit, &str); 20] = [
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
];

fn describe(
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
    ]
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels = labels
        .iter()
        .map(|&(label, value)| Label::new(label, value.to_owned()))
        .collect::<Vec<_>>();
    Key::from_parts(name, labels)
}

pub(crate) fn counter(
    recorder: &SharedRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(recorder: &SharedRecorder, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

pub(crate) fn histogram(
    recorder: &SharedRecorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Histogram {
    recorder.register_histogram(&key(name, labels), &METADATA)
}

/// The queues of a peer, as they are named in metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    StreamMsgApp,
    StreamMessage,
    Pipeline,
    Receive,
    Proposal,
}

impl Queue {
    /// etcd: rafthttp/peer.go, `streamAppV2`, `streamMsg`, `pipelineMsg`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Queue::StreamMsgApp => "streamMsgAppV2",
            Queue::StreamMessage => "streamMsg",
            Queue::Pipeline => "pipeline",
            Queue::Receive => "receive",
            Queue::Proposal => "proposal",
        }
    }
}

/// The metrics of one transport.
pub(crate) struct Metrics {
    recorder: SharedRecorder,
    local: String,
    /// `received_bytes` of link heartbeats.
    pub(crate) received_heartbeat_bytes: Counter,
    /// Connections to our port that came to nothing.
    pub(crate) handshakes: HandshakeFailures,
}

impl Metrics {
    pub(crate) fn new(recorder: SharedRecorder, local: MemberId) -> Self {
        for (name, kind, unit, help) in DESCRIPTIONS {
            describe(&recorder, name, kind, unit, help);
        }
        let received_heartbeat_bytes = counter(&recorder, RECEIVED_BYTES, &[("From", "0")]);
        Metrics {
            handshakes: HandshakeFailures::new(recorder.clone(), Side::Accept),
            recorder,
            local: local.to_string(),
            received_heartbeat_bytes,
        }
    }

    /// Handles for a peer.
    pub(crate) fn peer(&self, id: MemberId) -> PeerMetrics {
        let remote = id.to_string();
        let pair = [("Local", self.local.as_str()), ("Remote", remote.as_str())];
        PeerMetrics {
            active: gauge(&self.recorder, ACTIVE_PEERS, &pair),
            disconnected: counter(&self.recorder, DISCONNECTED_PEERS, &pair),
            sent_bytes: counter(&self.recorder, SENT_BYTES, &[("To", &remote)]),
            sent_failures: counter(&self.recorder, SENT_FAILURES, &[("To", &remote)]),
            received_bytes: counter(&self.recorder, RECEIVED_BYTES, &[("From", &remote)]),
            received_failures: counter(&self.recorder, RECEIVED_FAILURES, &[("From", &remote)]),
            round_trip: histogram(&self.recorder, ROUND_TRIP_SECONDS, &[("To", &remote)]),
            recorder: self.recorder.clone(),
            remote,
        }
    }

    /// `received_failures` of a request whose sender is not a member here.
    pub(crate) fn received_failure_unknown(&self) {
        counter(&self.recorder, RECEIVED_FAILURES, &[("From", "unknown")]).increment(1);
    }

    /// A snapshot was refused before its sender was known.
    pub(crate) fn snapshot_refused(&self) {
        counter(
            &self.recorder,
            SNAPSHOT_RECEIVE_FAILURES,
            &[("From", UNKNOWN_SNAPSHOT_SENDER)],
        )
        .increment(1);
    }

    /// Handles for a snapshot to `to`; it is a rare event, so they are resolved as it begins.
    pub(crate) fn snapshot_send(&self, to: MemberId) -> SnapshotMetrics {
        let id = to.to_string();
        let label = [("To", id.as_str())];
        SnapshotMetrics {
            success: counter(&self.recorder, SNAPSHOT_SEND_SUCCESS, &label),
            failures: counter(&self.recorder, SNAPSHOT_SEND_FAILURES, &label),
            inflights: gauge(&self.recorder, SNAPSHOT_SEND_INFLIGHTS, &label),
            seconds: histogram(&self.recorder, SNAPSHOT_SEND_SECONDS, &label),
        }
    }

    /// Handles for a snapshot from `from`, a member's or remote's id or [`UNKNOWN_SNAPSHOT_SENDER`].
    pub(crate) fn snapshot_receive(&self, from: &str) -> SnapshotMetrics {
        let label = [("From", from)];
        SnapshotMetrics {
            success: counter(&self.recorder, SNAPSHOT_RECEIVE_SUCCESS, &label),
            failures: counter(&self.recorder, SNAPSHOT_RECEIVE_FAILURES, &label),
            inflights: gauge(&self.recorder, SNAPSHOT_RECEIVE_INFLIGHTS, &label),
            seconds: histogram(&self.recorder, SNAPSHOT_RECEIVE_SECONDS, &label),
        }
    }
}

/// Handles for one snapshot.
pub(crate) struct SnapshotMetrics {
    pub(crate) success: Counter,
    pub(crate) failures: Counter,
    pub(crate) inflights: Gauge,
    pub(crate) seconds: Histogram,
}

/// Handles for one peer or remote.
pub(crate) struct PeerMetrics {
    pub(crate) active: Gauge,
    pub(crate) disconnected: Counter,
    pub(crate) sent_bytes: Counter,
    pub(crate) sent_failures: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) received_failures: Counter,
    pub(crate) round_trip: Histogram,
    recorder: SharedRecorder,
    remote: String,
}

impl PeerMetrics {
    /// Handles for one of the peer's queues.
    pub(crate) fn queue(&self, queue: Queue) -> QueueMetrics {
        let bytes = gauge(
            &self.recorder,
            QUEUE_BYTES,
            &[("Remote", &self.remote), ("queue", queue.name())],
        );
        QueueMetrics {
            bytes,
            queue,
            recorder: self.recorder.clone(),
            remote: self.remote.clone(),
            dropped: [const { OnceLock::new() }; REASONS],
        }
    }

    /// Whether a connection is attached to a stream.
    pub(crate) fn stream_attached(&self, queue: Queue) -> Gauge {
        let labels = [("Remote", self.remote.as_str()), ("stream", queue.name())];
        gauge(&self.recorder, STREAM_ATTACHED, &labels)
    }

    /// Sizes of the writes of a stream; one series for all peers.
    pub(crate) fn flush_bytes(&self, queue: Queue) -> Histogram {
        histogram(&self.recorder, FLUSH_BYTES, &[("stream", queue.name())])
    }
}

/// Handles for one queue.
pub(crate) struct QueueMetrics {
    pub(crate) bytes: Gauge,
    queue: Queue,
    recorder: SharedRecorder,
    remote: String,
    /// Resolved when a reason is met first: most never are.
    dropped: [OnceLock<Counter>; REASONS],
}

const REASONS: usize = DropReason::ALL.len();

impl QueueMetrics {
    /// Counts messages dropped for `reason`.
    pub(crate) fn dropped(&self, reason: DropReason, count: usize) {
        if count == 0 {
            return;
        }
        let labels = || {
            [
                ("Remote", self.remote.as_str()),
                ("queue", self.queue.name()),
                ("reason", reason.as_str()),
            ]
        };
        // In declaration order, as `ALL` lists them.
        let counted = self.dropped[reason as usize]
            .get_or_init(|| counter(&self.recorder, DROPPED_MESSAGES, &labels()));
        counted.increment(count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_declaration_order() {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
        }
    }
}
