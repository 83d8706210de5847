//! The buckets of every histogram, of all layers, since buckets are a matter of the exporter.
//!
//! Depends on nothing. Invariant: bounds are computed by repeated multiplication as Go's client library does, so that
//! they are the same floating point numbers.

/// etcd's most common buckets: from 1 ms to 8 s.
const COMMON: (f64, usize) = (0.001, 14);

/// Histograms by name with the first bound and the number of bounds; each is twice the one before.
const DOUBLING: [(&str, f64, usize); 29] = [
    ("etcd_network_peer_round_trip_time_seconds", 0.0001, 16),
    (
        "etcd_network_snapshot_receive_total_duration_seconds",
        0.1,
        10,
    ),
    ("etcd_network_snapshot_send_total_duration_seconds", 0.1, 10),
    (
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_snap_save_total_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    ("etcd_disk_wal_fsync_duration_seconds", COMMON.0, COMMON.1),
    ("etcd_disk_wal_write_duration_seconds", COMMON.0, COMMON.1),
    ("etcd_snap_db_fsync_duration_seconds", COMMON.0, COMMON.1),
    ("etcd_snap_db_save_total_duration_seconds", 0.1, 10),
    ("etcd_snap_fsync_duration_seconds", COMMON.0, COMMON.1),
    (
        "etcd_debugging_disk_backend_commit_rebalance_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_disk_backend_commit_spill_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_disk_backend_commit_write_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    ("etcd_debugging_lease_ttl_total", 1.0, 24),
    (
        "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
        1.0,
        13,
    ),
    (
        "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
        100.0,
        14,
    ),
    (
        "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
        0.5,
        14,
    ),
    (
        "etcd_disk_backend_commit_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    ("etcd_disk_backend_defrag_duration_seconds", 0.1, 13),
    ("etcd_disk_backend_snapshot_duration_seconds", 0.01, 17),
    ("etcd_mvcc_hash_duration_seconds", 0.01, 15),
    ("etcd_mvcc_hash_rev_duration_seconds", 0.01, 15),
    ("etcd_server_apply_duration_seconds", 0.0001, 20),
    ("etcd_server_range_duration_seconds", 0.0001, 20),
    (
        "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_server_watch_send_loop_progress_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds",
        COMMON.0,
        COMMON.1,
    ),
    (
        "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds",
        COMMON.0,
        COMMON.1,
    ),
    ("etcd_server_request_duration_seconds", COMMON.0, COMMON.1),
];

/// The bounds a gRPC histogram has when nothing is said.
const GRPC: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

fn doubling(start: f64, count: usize) -> Vec<f64> {
    std::iter::successors(Some(start), |bound| Some(bound * 2.0))
        .take(count)
        .collect()
}

/// The bounds of a histogram that is not in the table: one of ours.
pub(super) fn default() -> Vec<f64> {
    doubling(COMMON.0, COMMON.1)
}

/// Every histogram with its bounds.
pub(super) fn table() -> impl Iterator<Item = (&'static str, Vec<f64>)> {
    DOUBLING
        .iter()
        .map(|(name, start, count)| (*name, doubling(*start, *count)))
        .chain([("grpc_server_handling_seconds", GRPC.to_vec())])
}
