//! Metrics of the node, with etcd's names; described and resolved once.
//!
//! Those of the log and of snapshot files live beside them ([`crate::wal::WalMetrics`],
//! [`crate::snap::SnapMetrics`]). Depends on the `metrics` facade only. Invariant: no lookup happens after
//! [`Metrics::register`], except for a drop reason's first use.

use metrics::{Counter, Gauge, Key, KeyName, Level, Metadata, Recorder};

use crate::admit::DropReason;

/// Metric handles of a node.
pub(crate) struct Metrics {
    pub has_leader: Gauge,
    pub is_leader: Gauge,
    pub leader_changes: Counter,
    pub heartbeat_send_failures: Counter,
    pub proposals_applied: Gauge,
    pub proposals_committed: Gauge,
    pub proposals_failed: Counter,
    pub proposals_pending: Gauge,
    pub read_indexes_failed: Counter,
    pub slow_read_indexes: Counter,
    pub snapshot_applying: Gauge,
    dropped: Vec<Counter>,
}

const DROPPED: &str = "raft_node_messages_dropped_total";

const GAUGES: [(&str, &str); 6] = [
    (
        "etcd_server_has_leader",
        "1 while a leader is known, 0 otherwise.",
    ),
    (
        "etcd_server_is_leader",
        "1 while this member leads, 0 otherwise.",
    ),
    (
        "etcd_server_proposals_applied_total",
        "Index of the last entry applied.",
    ),
    (
        "etcd_server_proposals_committed_total",
        "Index of the last entry known to be committed.",
    ),
    (
        "etcd_server_proposals_pending",
        "Local proposals that wait for their result.",
    ),
    (
        "etcd_server_snapshot_apply_in_progress_total",
        "1 while a received snapshot is being installed.",
    ),
];

const COUNTERS: [(&str, &str); 6] = [
    (
        "etcd_server_leader_changes_seen_total",
        "Leaders this member has come to know.",
    ),
    (
        "etcd_server_heartbeat_send_failures_total",
        "Heartbeats that left late, most often because the disk is slow.",
    ),
    (
        "etcd_server_proposals_failed_total",
        "Local proposals that failed.",
    ),
    (
        "etcd_server_read_indexes_failed_total",
        "Read index requests nobody answered in time.",
    ),
    (
        "etcd_server_slow_read_indexes_total",
        "Read index requests that had to be repeated.",
    ),
    (
        DROPPED,
        "Received messages that were not handed to raft, by reason.",
    ),
];

impl Metrics {
    /// Describes and registers everything on `recorder`.
    pub fn register(recorder: &dyn Recorder) -> Self {
        for (name, text) in GAUGES {
            recorder.describe_gauge(KeyName::from(name), None, text.into());
        }
        for (name, text) in COUNTERS {
            recorder.describe_counter(KeyName::from(name), None, text.into());
        }
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        let gauge = |name: &'static str| {
            let gauge = recorder.register_gauge(&Key::from_static_name(name), &metadata);
            gauge.set(0.0);
            gauge
        };
        let counter = |name: &'static str| {
            let counter = recorder.register_counter(&Key::from_static_name(name), &metadata);
            counter.increment(0);
            counter
        };
        let dropped = DropReason::ALL.map(|reason| {
            let key = Key::from_parts(DROPPED, &[("reason", reason.as_str())]);
            recorder.register_counter(&key, &metadata)
        });
        Metrics {
            has_leader: gauge("etcd_server_has_leader"),
            is_leader: gauge("etcd_server_is_leader"),
            leader_changes: counter("etcd_server_leader_changes_seen_total"),
            heartbeat_send_failures: counter("etcd_server_heartbeat_send_failures_total"),
            proposals_applied: gauge("etcd_server_proposals_applied_total"),
            proposals_committed: gauge("etcd_server_proposals_committed_total"),
            proposals_failed: counter("etcd_server_proposals_failed_total"),
            proposals_pending: gauge("etcd_server_proposals_pending"),
            read_indexes_failed: counter("etcd_server_read_indexes_failed_total"),
            slow_read_indexes: counter("etcd_server_slow_read_indexes_total"),
            snapshot_applying: gauge("etcd_server_snapshot_apply_in_progress_total"),
            dropped: dropped.into(),
        }
    }

    /// Counts a received message that did not reach raft.
    pub fn message_dropped(&self, reason: DropReason) {
        self.dropped[reason as usize].increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use metrics::{Histogram, SharedString, Unit};
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Names {
        described: Mutex<BTreeMap<String, char>>,
        registered: Mutex<BTreeMap<String, char>>,
    }

    impl Recorder for Names {
        fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            let before = self.described.lock().insert(key.as_str().into(), 'c');
            assert_eq!(before, None, "described once");
        }
        fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
            let before = self.described.lock().insert(key.as_str().into(), 'g');
            assert_eq!(before, None, "described once");
        }
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.registered.lock().insert(key.name().into(), 'c');
            Counter::noop()
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.registered.lock().insert(key.name().into(), 'g');
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn names_and_types_are_etcds() {
        let names = Names::default();
        let metrics = Metrics::register(&names);
        assert_eq!(metrics.dropped.len(), DropReason::ALL.len());
        let expected: BTreeMap<String, char> = [
            ("etcd_server_has_leader", 'g'),
            ("etcd_server_heartbeat_send_failures_total", 'c'),
            ("etcd_server_is_leader", 'g'),
            ("etcd_server_leader_changes_seen_total", 'c'),
            ("etcd_server_proposals_applied_total", 'g'),
            ("etcd_server_proposals_committed_total", 'g'),
            ("etcd_server_proposals_failed_total", 'c'),
            ("etcd_server_proposals_pending", 'g'),
            ("etcd_server_read_indexes_failed_total", 'c'),
            ("etcd_server_slow_read_indexes_total", 'c'),
            ("etcd_server_snapshot_apply_in_progress_total", 'g'),
            ("raft_node_messages_dropped_total", 'c'),
        ]
        .map(|(name, kind)| (name.into(), kind))
        .into();
        assert_eq!(*names.registered.lock(), expected);
        assert_eq!(*names.described.lock(), expected);
    }
}
