//! How a store is opened.

use std::{path::PathBuf, sync::Arc, time::Duration};

use transport_core::MemberId;

use crate::{error::FatalError, flush::FlushLimits, metrics::SharedRecorder};

/// Settings of a [`Store`](super::Store). Begin with [`StoreConfig::new`] and change what differs.
#[derive(Clone)]
pub struct StoreConfig {
    /// The backend's file, created when it does not exist.
    pub path: PathBuf,
    /// This member; only metrics ask for it.
    pub member_id: MemberId,
    /// Bytes of the backend's own page cache.
    pub backend_cache_bytes: usize,
    /// Bytes of rows kept in memory because they were written or read lately.
    pub row_cache_bytes: usize,
    /// `--quota-backend-bytes`: 0 for the default of 2 GiB, negative for none.
    pub quota_bytes: i64,
    /// `--max-learners`. Part of what decides about a replicated change: the same on every member.
    pub max_learners: usize,
    /// Leases are granted for at least this long: 1.5 election timeouts, rounded up, in seconds. Stored, so the same
    /// on every member.
    pub min_lease_ttl_s: i64,
    /// The longest a change stays out of the backend; `--backend-batch-interval`.
    pub flush_interval: Duration,
    /// Changes of this many bytes are brought to the backend at once.
    pub flush_bytes: usize,
    /// Changes that are not in the backend yet may hold this many bytes; past it apply waits.
    pub backlog_bytes_max: usize,
    /// Where metrics are registered.
    pub recorder: SharedRecorder,
    /// Told when a background thread cannot go on; the process must end.
    pub on_fatal: Arc<dyn Fn(FatalError) + Send + Sync>,
}

impl StoreConfig {
    /// Defaults for the file at `path`: etcd's where etcd has them, metrics that nobody reads, and fatal errors
    /// logged.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        StoreConfig {
            path: path.into(),
            member_id: MemberId(0),
            backend_cache_bytes: 64 << 20,
            row_cache_bytes: 64 << 20,
            quota_bytes: 0,
            max_learners: 1,
            min_lease_ttl_s: 2,
            flush_interval: Duration::from_millis(100),
            flush_bytes: 8 << 20,
            backlog_bytes_max: 128 << 20,
            recorder: Arc::new(metrics::NoopRecorder),
            on_fatal: Arc::new(|error| tracing::error!(%error, "the store cannot go on")),
        }
    }

    pub(crate) fn flush_limits(&self) -> FlushLimits {
        FlushLimits {
            interval: self.flush_interval,
            batch_bytes: self.flush_bytes,
            backlog_bytes_max: self.backlog_bytes_max,
        }
    }
}
