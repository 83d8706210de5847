//! The metrics of the store, under etcd's names; our own begin with `kvstore_`.
//!
//! Handles are resolved once, when the store is opened on the recorder it was given. Help texts are ours; names,
//! types and labels are etcd's contract.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use parking_lot::Mutex;
use transport_core::MemberId;

use crate::mvcc::write::Changes;

/// A recorder that several parts of a process share.
pub type SharedRecorder = Arc<dyn Recorder + Send + Sync>;

static METADATA: Metadata<'static> = Metadata::new("kvstore", Level::INFO, Some("kvstore"));

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}
use Kind::{Counter as C, Gauge as G, Histogram as H};

#[rustfmt::skip] // one metric a line
const DESCRIPTIONS: &[(&str, Kind, Unit, &str)] = &[
    ("etcd_cluster_version", G, Unit::Count, "1 for the version the cluster runs at."),
    ("etcd_debugging_auth_revision", G, Unit::Count, "Revision of the auth store."),
    ("etcd_debugging_disk_backend_commit_rebalance_duration_seconds", H, Unit::Seconds, "Part of a commit that this backend does not have; always 0."),
    ("etcd_debugging_disk_backend_commit_spill_duration_seconds", H, Unit::Seconds, "Part of a commit that this backend does not have; always 0."),
    ("etcd_debugging_disk_backend_commit_write_duration_seconds", H, Unit::Seconds, "Time of writing and syncing a batch."),
    ("etcd_debugging_lease_granted_total", C, Unit::Count, "Leases granted."),
    ("etcd_debugging_lease_renewed_total", C, Unit::Count, "Leases renewed while leading."),
    ("etcd_debugging_lease_revoked_total", C, Unit::Count, "Leases revoked."),
    ("etcd_debugging_lease_ttl_total", H, Unit::Seconds, "Times to live of granted leases."),
    ("etcd_debugging_mvcc_compact_revision", G, Unit::Count, "Revision of the last compaction."),
    ("etcd_debugging_mvcc_current_revision", G, Unit::Count, "Revision of the store."),
    ("etcd_debugging_mvcc_db_compaction_keys_total", C, Unit::Count, "Rows that compactions deleted."),
    ("etcd_debugging_mvcc_db_compaction_last", G, Unit::Seconds, "Unix time of the last finished compaction."),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", H, Unit::Milliseconds, "Time of one step of a compaction."),
    ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", H, Unit::Milliseconds, "Time of a whole compaction."),
    ("etcd_debugging_mvcc_events_total", C, Unit::Count, "Events sent to watchers."),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", H, Unit::Milliseconds, "Time compaction held the index for one step."),
    ("etcd_debugging_mvcc_keys_total", G, Unit::Count, "Keys that exist."),
    ("etcd_debugging_mvcc_pending_events_total", G, Unit::Count, "Events that wait to be sent."),
    ("etcd_debugging_mvcc_slow_watcher_total", G, Unit::Count, "Watchers that lag behind."),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", G, Unit::Bytes, "Bytes of keys and values put since the start."),
    ("etcd_debugging_mvcc_watch_stream_total", G, Unit::Count, "Open watch streams."),
    ("etcd_debugging_mvcc_watcher_total", G, Unit::Count, "Watchers."),
    ("etcd_debugging_server_alarms", G, Unit::Count, "Alarms that stand."),
    ("etcd_debugging_server_lease_expired_total", C, Unit::Count, "Leases that expired."),
    ("etcd_disk_backend_commit_duration_seconds", H, Unit::Seconds, "Time of a backend commit, sync included."),
    ("etcd_disk_backend_defrag_duration_seconds", H, Unit::Seconds, "Time of a defragmentation."),
    ("etcd_disk_backend_snapshot_duration_seconds", H, Unit::Seconds, "Time of writing a snapshot of the backend."),
    ("etcd_disk_defrag_inflight", G, Unit::Count, "Whether a defragmentation is going on."),
    ("etcd_mvcc_db_open_read_transactions", G, Unit::Count, "Snapshots of the backend being written."),
    ("etcd_mvcc_db_total_size_in_bytes", G, Unit::Bytes, "Size of the backend."),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", G, Unit::Bytes, "Size of what the backend holds."),
    ("etcd_mvcc_delete_total", C, Unit::Count, "Keys deleted."),
    ("etcd_mvcc_hash_duration_seconds", H, Unit::Seconds, "Time of hashing the whole backend."),
    ("etcd_mvcc_hash_rev_duration_seconds", H, Unit::Seconds, "Time of hashing the keys up to a revision."),
    ("etcd_mvcc_put_total", C, Unit::Count, "Keys put."),
    ("etcd_mvcc_range_total", C, Unit::Count, "Ranges read."),
    ("etcd_mvcc_txn_total", C, Unit::Count, "Transactions with more than one operation."),
    ("etcd_network_known_peers", G, Unit::Count, "1 for each member of the cluster."),
    ("etcd_server_apply_duration_seconds", H, Unit::Seconds, "Time of applying a request."),
    ("etcd_server_is_learner", G, Unit::Count, "Whether this member is a learner."),
    ("etcd_server_quota_backend_bytes", G, Unit::Bytes, "The space quota."),
    ("etcd_server_range_duration_seconds", H, Unit::Seconds, "Time of a range."),
    ("etcd_server_slow_apply_total", C, Unit::Count, "Requests whose apply took over 100 ms."),
    ("kvstore_backlog_bytes", G, Unit::Bytes, "Applied changes that are not in the backend yet."),
    ("kvstore_backlog_waits_total", C, Unit::Count, "How often apply waited for the backend."),
    ("kvstore_backlog_wait_seconds", H, Unit::Seconds, "How long apply waited for the backend."),
];

/// Applying longer than this is slow; etcd: `DefaultWarningApplyDuration`.
const SLOW_APPLY: Duration = Duration::from_millis(100);

/// The handles.
pub(crate) struct StoreMetrics {
    recorder: SharedRecorder,
    /// By operation and success; made when first used, since an operation nobody asked for shall not show. The
    /// operations are those of [`crate::apply`], which bounds the map.
    apply: Mutex<HashMap<(&'static str, bool), Histogram>>,
    commit: Histogram,
    commit_write: Histogram,
    commit_rebalance: Histogram,
    commit_spill: Histogram,
    compact_revision: Gauge,
    current_revision: Gauge,
    compaction_keys: Counter,
    compaction_last: Gauge,
    compaction_pause: Histogram,
    compaction_total: Histogram,
    index_pause: Histogram,
    keys: Gauge,
    put_bytes: Gauge,
    auth_revision: Gauge,
    db_size: Gauge,
    db_in_use: Gauge,
    deletes: Counter,
    puts: Counter,
    ranges: Counter,
    txns: Counter,
    is_learner: Gauge,
    quota: Gauge,
    slow_apply: Counter,
    backlog_bytes: Gauge,
    backlog_waits: Counter,
    backlog_wait: Histogram,
    range_time: [Histogram; 2],
    lease_granted: Counter,
    lease_revoked: Counter,
    lease_ttl: Histogram,
    hash: Histogram,
    hash_rev: Histogram,
    snapshot: Histogram,
    open_reads: Gauge,
    labelled: Mutex<Labelled>,
}

/// Gauges whose labels come and go with the replicated state, which bounds them.
#[derive(Default)]
struct Labelled {
    version: Option<String>,
    peers: BTreeSet<u64>,
}

impl StoreMetrics {
    /// Describes the metrics and resolves the handles.
    pub fn new(recorder: SharedRecorder) -> Self {
        describe(&*recorder);
        let counter =
            |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let gauge =
            |name: &'static str| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let histogram = |name: &'static str| {
            recorder.register_histogram(&Key::from_static_name(name), &METADATA)
        };
        let range_time = |success: &'static str| {
            let label = vec![Label::from_static_parts("success", success)];
            let key = Key::from_parts("etcd_server_range_duration_seconds", label);
            recorder.register_histogram(&key, &METADATA)
        };
        // What later layers count exists from the start, at zero.
        for name in [
            "etcd_debugging_lease_renewed_total",
            "etcd_debugging_mvcc_events_total",
            "etcd_debugging_server_lease_expired_total",
        ] {
            counter(name).absolute(0);
        }
        for name in [
            "etcd_debugging_mvcc_pending_events_total",
            "etcd_debugging_mvcc_slow_watcher_total",
            "etcd_debugging_mvcc_watch_stream_total",
            "etcd_debugging_mvcc_watcher_total",
            "etcd_disk_defrag_inflight",
        ] {
            gauge(name).set(0.0);
        }
        drop(histogram("etcd_disk_backend_defrag_duration_seconds"));
        StoreMetrics {
            apply: Mutex::default(),
            commit: histogram("etcd_disk_backend_commit_duration_seconds"),
            commit_write: histogram("etcd_debugging_disk_backend_commit_write_duration_seconds"),
            commit_rebalance: histogram(
                "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
            ),
            commit_spill: histogram("etcd_debugging_disk_backend_commit_spill_duration_seconds"),
            compact_revision: gauge("etcd_debugging_mvcc_compact_revision"),
            current_revision: gauge("etcd_debugging_mvcc_current_revision"),
            compaction_keys: counter("etcd_debugging_mvcc_db_compaction_keys_total"),
            compaction_last: gauge("etcd_debugging_mvcc_db_compaction_last"),
            compaction_pause: histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
            ),
            compaction_total: histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
            ),
            index_pause: histogram(
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
            ),
            keys: gauge("etcd_debugging_mvcc_keys_total"),
            put_bytes: gauge("etcd_debugging_mvcc_total_put_size_in_bytes"),
            auth_revision: gauge("etcd_debugging_auth_revision"),
            db_size: gauge("etcd_mvcc_db_total_size_in_bytes"),
            db_in_use: gauge("etcd_mvcc_db_total_size_in_use_in_bytes"),
            deletes: counter("etcd_mvcc_delete_total"),
            puts: counter("etcd_mvcc_put_total"),
            ranges: counter("etcd_mvcc_range_total"),
            txns: counter("etcd_mvcc_txn_total"),
            is_learner: gauge("etcd_server_is_learner"),
            quota: gauge("etcd_server_quota_backend_bytes"),
            slow_apply: counter("etcd_server_slow_apply_total"),
            backlog_bytes: gauge("kvstore_backlog_bytes"),
            backlog_waits: counter("kvstore_backlog_waits_total"),
            backlog_wait: histogram("kvstore_backlog_wait_seconds"),
            range_time: [range_time("false"), range_time("true")],
            lease_granted: counter("etcd_debugging_lease_granted_total"),
            lease_revoked: counter("etcd_debugging_lease_revoked_total"),
            lease_ttl: histogram("etcd_debugging_lease_ttl_total"),
            hash: histogram("etcd_mvcc_hash_duration_seconds"),
            hash_rev: histogram("etcd_mvcc_hash_rev_duration_seconds"),
            snapshot: histogram("etcd_disk_backend_snapshot_duration_seconds"),
            open_reads: gauge("etcd_mvcc_db_open_read_transactions"),
            labelled: Mutex::default(),
            recorder,
        }
    }

    pub fn applied(&self, op: &'static str, success: bool, took: Duration) {
        self.apply
            .lock()
            .entry((op, success))
            .or_insert_with(|| self.apply_histogram(op, success))
            .record(took);
        if took > SLOW_APPLY {
            self.slow_apply.increment(1);
        }
    }

    fn apply_histogram(&self, op: &'static str, success: bool) -> Histogram {
        let labels = vec![
            Label::from_static_parts("version", "v3"),
            Label::from_static_parts("op", op),
            Label::from_static_parts("success", if success { "true" } else { "false" }),
        ];
        let key = Key::from_parts("etcd_server_apply_duration_seconds", labels);
        self.recorder.register_histogram(&key, &METADATA)
    }

    pub fn changed(&self, changes: &Changes) {
        if changes.puts > 0 {
            self.puts.increment(u64::from(changes.puts));
            self.put_bytes.increment(changes.put_bytes as f64);
        }
        if changes.deletes > 0 {
            self.deletes.increment(u64::from(changes.deletes));
        }
        if changes.puts + changes.deletes > 1 {
            self.txns.increment(1);
        }
    }

    pub fn published(&self, current: i64, compacted: i64, keys: usize, backlog_bytes: usize) {
        self.current_revision.set(current as f64);
        self.compact_revision.set(compacted as f64);
        self.keys.set(keys as f64);
        self.backlog_bytes.set(backlog_bytes as f64);
    }

    pub fn ranged(&self, success: bool, took: Duration) {
        self.ranges.increment(1);
        self.range_time[usize::from(success)].record(took);
    }

    pub fn committed(&self, took: Duration) {
        self.commit.record(took);
        self.commit_write.record(took);
        self.commit_rebalance.record(0.0);
        self.commit_spill.record(0.0);
    }

    pub fn sized(&self, total: u64, in_use: u64) {
        self.db_size.set(total as f64);
        self.db_in_use.set(in_use as f64);
    }

    pub fn waited(&self, took: Duration) {
        self.backlog_waits.increment(1);
        self.backlog_wait.record(took);
    }

    pub fn compacted(&self, rows: usize, took: Duration) {
        self.compaction_keys.increment(rows as u64);
        let ms = took.as_secs_f64() * 1e3;
        self.compaction_pause.record(ms);
        self.index_pause.record(ms);
    }

    pub fn compaction_finished(&self, took: Duration) {
        self.compaction_total.record(took.as_secs_f64() * 1e3);
        // For a dashboard, not for the state.
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.compaction_last.set(now.as_secs() as f64);
    }

    pub fn lease_granted(&self, ttl_s: i64) {
        self.lease_granted.increment(1);
        self.lease_ttl.record(ttl_s as f64);
    }

    pub fn lease_revoked(&self) {
        self.lease_revoked.increment(1);
    }

    pub fn hashed(&self, took: Duration) {
        self.hash.record(took);
    }

    pub fn hashed_revision(&self, took: Duration) {
        self.hash_rev.record(took);
    }

    pub fn snapshot_began(&self) {
        self.open_reads.increment(1.0);
    }

    pub fn snapshot_ended(&self) {
        self.open_reads.decrement(1.0);
    }

    pub fn snapshot_written(&self, took: Duration) {
        self.snapshot.record(took);
    }

    pub fn quota(&self, bytes: Option<u64>) {
        self.quota.set(bytes.map_or(-1.0, |bytes| bytes as f64));
    }

    pub fn auth_revision(&self, revision: u64) {
        self.auth_revision.set(revision as f64);
    }

    pub fn alarm(&self, member: u64, alarm: &str, raised: bool) {
        let gauge = self.gauge(
            "etcd_debugging_server_alarms",
            &[
                ("server_id", &MemberId(member).to_string()),
                ("alarm_type", alarm),
            ],
        );
        gauge.set(if raised { 1.0 } else { 0.0 });
    }

    pub fn cluster_version(&self, version: Option<String>) {
        let mut labelled = self.labelled.lock();
        if labelled.version == version {
            return;
        }
        let gauge =
            |version: &str| self.gauge("etcd_cluster_version", &[("cluster_version", version)]);
        if let Some(old) = &labelled.version {
            gauge(old).set(0.0);
        }
        if let Some(new) = &version {
            gauge(new).set(1.0);
        }
        labelled.version = version;
    }

    pub fn members(&self, local: MemberId, members: BTreeSet<u64>, is_learner: bool) {
        self.is_learner.set(if is_learner { 1.0 } else { 0.0 });
        let mut labelled = self.labelled.lock();
        let gauge = |remote: u64| {
            self.gauge(
                "etcd_network_known_peers",
                &[
                    ("Local", &local.to_string()),
                    ("Remote", &MemberId(remote).to_string()),
                ],
            )
        };
        for gone in labelled.peers.difference(&members) {
            gauge(*gone).set(0.0);
        }
        for member in members.difference(&labelled.peers) {
            gauge(*member).set(1.0);
        }
        labelled.peers = members;
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        let labels: Vec<Label> = labels
            .iter()
            .map(|(name, value)| Label::new(*name, value.to_string()))
            .collect();
        self.recorder
            .register_gauge(&Key::from_parts(name, labels), &METADATA)
    }
}

fn describe(recorder: &dyn Recorder) {
    for (name, kind, unit, text) in DESCRIPTIONS {
        let (name, unit, text) = (KeyName::from_const_str(name), Some(*unit), (*text).into());
        match kind {
            C => recorder.describe_counter(name, unit, text),
            G => recorder.describe_gauge(name, unit, text),
            H => recorder.describe_histogram(name, unit, text),
        }
    }
}
