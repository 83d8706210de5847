//! The metrics of this layer: etcd's `etcd_network_*` names, and our own under `rafthttp_`.
//!
//! Handles are resolved once per peer. Labels are bounded: only ids of members and remotes appear, never what a
//! request merely claims. Help texts are our own; names, types, labels and buckets are etcd's contract.

pub(crate) mod causes;
mod ended;
mod names;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use transport_core::{MemberId, lane::DropReason};

#[cfg(test)]
pub(crate) use self::ended::INTRODUCED_MAX;
use self::{
    causes::{Cause, Causes},
    names::*,
};
pub use self::{ended::EndedSeries, names::histogram_buckets};
pub(crate) use self::{
    ended::RemoteLabel,
    names::{HANDSHAKE_FAILURES, SNAP_DB_FSYNC_SECONDS, SNAP_DB_SAVE_SECONDS, describe_snap_db},
};
use crate::{
    config::SharedRecorder,
    handshake::{HandshakeFailures, Side},
    refusals::Refusals,
};

/// The `From` label for a snapshot sender nobody here knows.
pub(crate) const UNKNOWN_SNAPSHOT_SENDER: &str = "UNKNOWN_SNAPSHOT_SENDER";

static METADATA: Metadata<'static> =
    Metadata::new("transport_http", Level::INFO, Some("transport_http"));

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
    /// Not a queue: what is posted goes straight to raft.
    Post,
    /// Not a queue: what is for nobody known.
    Unrouted,
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
            Queue::Post => "post",
            Queue::Unrouted => "none",
        }
    }
}

/// The metrics of one transport.
pub(crate) struct Metrics {
    recorder: SharedRecorder,
    local: String,
    /// `received_bytes` of link heartbeats.
    pub(crate) received_heartbeat_bytes: Counter,
    /// Entries that were encoded, for one peer or for all.
    pub(crate) entry_encodes: Counter,
    /// Connections to our port that came to nothing.
    pub(crate) handshakes: HandshakeFailures,
    /// Requests of peers that were refused.
    pub(crate) refusals: Refusals,
    /// Messages for members nobody knows.
    pub(crate) unrouted: Drops,
    /// Messages posted by somebody who is neither peer nor remote.
    pub(crate) posted_by_strangers: Drops,
    ended: EndedSeries,
}

impl Metrics {
    pub(crate) fn new(recorder: SharedRecorder, local: MemberId) -> Self {
        for (name, kind, unit, help) in DESCRIPTIONS {
            describe(&recorder, name, kind, unit, help);
        }
        let received_heartbeat_bytes = counter(&recorder, RECEIVED_BYTES, &[("From", "0")]);
        Metrics {
            handshakes: HandshakeFailures::new(recorder.clone(), Side::Accept),
            refusals: Refusals::new(&recorder, REFUSED_REQUESTS),
            unrouted: drops(&recorder, UNKNOWN_REMOTE, Queue::Unrouted),
            posted_by_strangers: drops(&recorder, UNKNOWN_REMOTE, Queue::Post),
            entry_encodes: counter(&recorder, ENTRY_ENCODES, &[]),
            ended: EndedSeries::default(),
            recorder,
            local: local.to_string(),
            received_heartbeat_bytes,
        }
    }

    /// Which series have ended.
    pub(crate) fn ended(&self) -> &EndedSeries {
        &self.ended
    }

    /// Handles for a peer, or for a remote the owner asked for.
    pub(crate) fn peer(&self, id: MemberId) -> PeerMetrics {
        self.handles(self.ended.begin(id))
    }

    /// Handles for a remote that a request has introduced: only so many get series of their own.
    pub(crate) fn introduced(&self, id: MemberId) -> PeerMetrics {
        self.handles(self.ended.begin_bounded(id))
    }

    fn handles(&self, label: RemoteLabel) -> PeerMetrics {
        let remote = label.as_str();
        let pair = [("Local", self.local.as_str()), ("Remote", remote)];
        PeerMetrics {
            active: gauge(&self.recorder, ACTIVE_PEERS, &pair),
            disconnected: counter(&self.recorder, DISCONNECTED_PEERS, &pair),
            sent_bytes: counter(&self.recorder, SENT_BYTES, &[("To", remote)]),
            sent_failures: counter(&self.recorder, SENT_FAILURES, &[("To", remote)]),
            received_bytes: counter(&self.recorder, RECEIVED_BYTES, &[("From", remote)]),
            received_failures: counter(&self.recorder, RECEIVED_FAILURES, &[("From", remote)]),
            round_trip: histogram(&self.recorder, ROUND_TRIP_SECONDS, &[("To", remote)]),
            posted: drops(&self.recorder, remote, Queue::Post),
            recorder: self.recorder.clone(),
            remote: label,
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
    /// Messages that came in a POST and went no further.
    pub(crate) posted: Drops,
    recorder: SharedRecorder,
    remote: RemoteLabel,
}

impl PeerMetrics {
    /// Handles for one of the peer's queues.
    pub(crate) fn queue(&self, queue: Queue) -> QueueMetrics {
        let remote = self.remote.as_str();
        let labels = [("Remote", remote), ("queue", queue.name())];
        QueueMetrics {
            bytes: gauge(&self.recorder, QUEUE_BYTES, &labels),
            // One series for all peers: it is the lane that matters.
            wait: histogram(
                &self.recorder,
                QUEUE_WAIT_SECONDS,
                &[("queue", queue.name())],
            ),
            drops: drops(&self.recorder, remote, queue),
        }
    }

    /// Handles for a stream to the peer.
    pub(crate) fn stream_out(&self, queue: Queue) -> StreamOutMetrics {
        let stream = [("stream", queue.name())];
        let attached = [("Remote", self.remote.as_str()), stream[0]];
        StreamOutMetrics {
            attached: gauge(&self.recorder, STREAM_ATTACHED, &attached),
            flush_bytes: histogram(&self.recorder, FLUSH_BYTES, &stream),
            flushes: Causes::new(&self.recorder, FLUSHES, &stream, "cause"),
            encode_seconds: histogram(&self.recorder, ENCODE_SECONDS, &stream),
        }
    }

    /// Handles for a stream from the peer.
    pub(crate) fn stream_in(&self, queue: Queue) -> StreamInMetrics {
        let labels = [("Remote", self.remote.as_str()), ("stream", queue.name())];
        StreamInMetrics {
            reconnects: Causes::new(&self.recorder, RECONNECTS, &labels, "cause"),
            dial_failures: Causes::new(&self.recorder, DIAL_FAILURES, &labels, "cause"),
            decode_seconds: histogram(&self.recorder, DECODE_SECONDS, &labels[1..]),
        }
    }
}

/// Handles for one stream we write. Sizes and times are one series for all peers.
pub(crate) struct StreamOutMetrics {
    pub(crate) attached: Gauge,
    pub(crate) flush_bytes: Histogram,
    pub(crate) flushes: Causes<{ FlushCause::COUNT }>,
    pub(crate) encode_seconds: Histogram,
}

/// Handles for one stream we read.
pub(crate) struct StreamInMetrics {
    pub(crate) reconnects: Causes<{ LossCause::COUNT }>,
    pub(crate) dial_failures: Causes<{ DialCause::COUNT }>,
    pub(crate) decode_seconds: Histogram,
}

/// Of so many batches one is timed: a clock and a histogram cost as much as a small message.
pub(crate) const TIMED_EVERY: u32 = 16;

/// Why a stream was written to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FlushCause {
    /// Everything that waited is in it.
    Drained,
    /// It is as large as a write may be; more waits.
    Full,
    /// Nothing was written for a third of the read timeout.
    Heartbeat,
}

causes::causes!(FlushCause: Drained = "drained", Full = "full", Heartbeat = "heartbeat");

/// Why a stream from a peer was lost.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LossCause {
    /// The peer ended it properly.
    Ended,
    /// The connection broke.
    Connection,
    /// What came was no frame.
    Frame,
    /// Nothing came for the read timeout.
    Silent,
}

causes::causes!(LossCause:
    Ended = "ended", Connection = "connection", Frame = "frame", Silent = "silent");

/// Why a dial brought no stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DialCause {
    /// No connection.
    Connect,
    /// Something took too long.
    Deadline,
    /// The connection broke, or what came was not HTTP.
    Http,
    /// The peer is too old, or says no version.
    Unsupported,
    /// We were removed.
    Removed,
    /// The peer does not know us.
    NotFound,
    /// The peer does not want our version.
    IncompatibleVersion,
    /// Another cluster.
    ClusterIdMismatch,
    /// Any other status.
    Status,
}

causes::causes!(DialCause:
    Connect = "connect", Deadline = "deadline", Http = "http", Unsupported = "unsupported", Removed = "removed",
    NotFound = "not_found", IncompatibleVersion = "incompatible_version",
    ClusterIdMismatch = "cluster_id_mismatch", Status = "status");

/// Handles for one queue.
pub(crate) struct QueueMetrics {
    pub(crate) bytes: Gauge,
    pub(crate) wait: Histogram,
    drops: Drops,
}

impl QueueMetrics {
    /// Counts messages dropped for `reason`.
    pub(crate) fn dropped(&self, reason: DropReason, count: usize) {
        self.drops.count(reason, count);
    }
}

/// Messages dropped in one place, by reason.
pub(crate) type Drops = Causes<{ DropReason::ALL.len() }>;

/// The `Remote` label for somebody nobody here knows.
const UNKNOWN_REMOTE: &str = "unknown";

fn drops(recorder: &SharedRecorder, remote: &str, queue: Queue) -> Drops {
    let labels = [("Remote", remote), ("queue", queue.name())];
    Causes::new(recorder, DROPPED_MESSAGES, &labels, "reason")
}

impl Cause for DropReason {
    fn at(self) -> usize {
        // In declaration order, as `ALL` lists them.
        self as usize
    }

    fn name(self) -> &'static str {
        self.as_str()
    }
}

/// Names of everything that is registered for a transport.
#[cfg(test)]
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    DESCRIPTIONS.into_iter().map(|(name, ..)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_listed_in_declaration_order() {
        for (at, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.at(), at);
        }
    }
}
