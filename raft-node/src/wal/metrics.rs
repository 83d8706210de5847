//! The log's metrics, with etcd's names. Handles are resolved once; [`WalMetrics::default`] records nothing.

use metrics::{Gauge, Histogram, Key, KeyName, Level, Metadata, Recorder, Unit};

const FSYNC: &str = "etcd_disk_wal_fsync_duration_seconds";
const WRITE: &str = "etcd_disk_wal_write_duration_seconds";
const BYTES: &str = "etcd_disk_wal_write_bytes_total";

/// Metric handles of a [`super::Wal`].
#[derive(Clone)]
pub struct WalMetrics {
    pub(crate) fsync_seconds: Histogram,
    pub(crate) write_seconds: Histogram,
    pub(crate) write_bytes: Gauge,
}

impl WalMetrics {
    /// Describes and registers the metrics.
    pub fn register(recorder: &dyn Recorder) -> Self {
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        for (name, text) in [
            (FSYNC, "Duration of fdatasync of the write-ahead log."),
            (WRITE, "Duration of one write to the write-ahead log."),
        ] {
            recorder.describe_histogram(KeyName::from(name), Some(Unit::Seconds), text.into());
        }
        recorder.describe_gauge(
            KeyName::from(BYTES),
            Some(Unit::Bytes),
            "Bytes written to the write-ahead log.".into(),
        );
        WalMetrics {
            fsync_seconds: recorder.register_histogram(&Key::from_static_name(FSYNC), &metadata),
            write_seconds: recorder.register_histogram(&Key::from_static_name(WRITE), &metadata),
            write_bytes: recorder.register_gauge(&Key::from_static_name(BYTES), &metadata),
        }
    }
}

impl Default for WalMetrics {
    fn default() -> Self {
        WalMetrics {
            fsync_seconds: Histogram::noop(),
            write_seconds: Histogram::noop(),
            write_bytes: Gauge::noop(),
        }
    }
}

impl std::fmt::Debug for WalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WalMetrics")
    }
}
