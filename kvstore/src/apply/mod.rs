//! Applying entries: from an entry's bytes to changes of the replicated state and an answer.
//!
//! [`Machine`] is that state. It is a value without threads, clock or files: an entry goes in; the answer, the events
//! and, in `batch`, the rows for the backend come out.
//!
//! Invariant: members that apply the same entries to the same state end in the same state, whatever the time, their
//! configuration's local limits (quota) or the progress of their disks.

mod decode;
mod dispatch;
mod fields;
mod legacy;
mod nested;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use parking_lot::RwLock;

pub(crate) use self::decode::is_put;
use self::decode::{Decoded, decode};
use crate::{
    alarm::Alarms,
    auth::AuthStore,
    backend::{Batch, Bucket, View},
    error::{ApplyError, FatalError},
    flush::Sizes,
    lease::Leases,
    membership::Membership,
    metrics::StoreMetrics,
    mvcc::{
        Event,
        compact::Job,
        keyspace::{Keyspace, NEVER_COMPACTED},
        restore::{RestoreError, check_compactions, restore},
        write::Writer,
    },
    quota::Quota,
    response::{Applied, Duty, Response},
    version::{Version, storage_version},
};

/// The replicated state and what applying leaves to be done.
pub(crate) struct Machine {
    pub keyspace: Arc<Keyspace>,
    pub writer: Writer,
    pub leases: Arc<RwLock<Leases>>,
    pub auth: AuthStore,
    pub membership: Membership,
    pub alarms: Alarms,
    pub quota: Quota,
    pub sizes: Arc<Sizes>,
    pub metrics: Arc<StoreMetrics>,
    /// Rows for the backend, of entries applied since it was last taken.
    pub batch: Batch,
    /// Compactions decided since they were last taken.
    pub jobs: Vec<Job>,
    /// Whether auth, membership or alarms changed since they were last published.
    pub side_changed: bool,
}

/// What a machine is told about its surroundings.
pub(crate) struct MachineOptions {
    pub min_ttl_s: i64,
    pub quota: Quota,
    pub cache_bytes: usize,
    pub sizes: Arc<Sizes>,
    pub metrics: Arc<StoreMetrics>,
}

impl Machine {
    /// The state that `view` holds.
    pub fn load(view: Arc<dyn View>, options: MachineOptions) -> Result<Machine, RestoreError> {
        let mut leases = Leases::load(&*view, options.min_ttl_s)?;
        let restored = restore(&*view, &mut leases)?;
        let writer = Writer::new(restored.current, restored.compacted);
        let mut batch = Batch::default();
        let mut auth = AuthStore::load(&*view)?;
        auth.ensure_initialised(&mut batch);
        let mut jobs = Vec::new();
        if restored.compacted > restored.finished {
            // Decided and not done before the store was closed.
            jobs.push(Job {
                at: restored.compacted,
                previous: restored.finished.max(NEVER_COMPACTED),
                hash: false,
            });
        }
        Ok(Machine {
            writer,
            auth,
            membership: Membership::load(&*view)?,
            alarms: Alarms::load(&*view)?,
            leases: Arc::new(RwLock::new(leases)),
            keyspace: Arc::new(Keyspace::new(restored, view, options.cache_bytes)),
            quota: options.quota,
            sizes: options.sizes,
            metrics: options.metrics,
            batch,
            jobs,
            side_changed: true,
        })
    }

    /// Applies a normal entry.
    pub fn apply(&mut self, index: u64, data: &Bytes) -> Result<Applied, FatalError> {
        let decoded =
            decode(data).map_err(|reason| FatalError::UnknownRequest { index, reason })?;
        let mut entry = EntryContext {
            index,
            events: Vec::new(),
            duty: None,
        };
        let (request_id, outcome) = match decoded {
            Decoded::Empty => (None, Ok(Response::Empty)),
            Decoded::V2(request) => {
                self.apply_v2(&mut entry, &request)?;
                (Some(request.id), Ok(Response::Empty))
            }
            Decoded::V3(id, request) => {
                let began = Instant::now();
                let (op, outcome) = self.dispatch(&mut entry, &request)?;
                // A read of what is compacted is a success to etcd's metric.
                let success = matches!(outcome, Ok(_) | Err(ApplyError::Compacted));
                self.metrics.applied(op, success, began.elapsed());
                if let Err(ApplyError::Backend(reason)) = outcome {
                    return Err(FatalError::Read(reason));
                }
                (Some(id), outcome)
            }
        };
        Ok(Applied {
            index,
            request_id: request_id.filter(|id| *id != 0),
            outcome,
            revision: self.writer.current,
            events: entry.events,
            duty: entry.duty,
        })
    }

    /// Sets the cluster version and what follows from it.
    fn set_cluster_version(
        &mut self,
        entry: &mut EntryContext,
        text: &str,
    ) -> Result<(), FatalError> {
        let current: Version = text.parse().map_err(|_| FatalError::Impossible {
            index: entry.index,
            reason: format!("{text:?} is no cluster version"),
        })?;
        let previous = self.membership.cluster_version();
        self.membership
            .set_cluster_version(current, &mut self.batch);
        match storage_version(Some(current)) {
            Some(version) => {
                let row = version.to_string().into_bytes();
                self.batch.put(Bucket::Meta, STORAGE_VERSION, row);
            }
            None => self.batch.delete(Bucket::Meta, STORAGE_VERSION),
        }
        self.side_changed = true;
        entry.duty = Some(Duty::ClusterVersion { previous, current });
        Ok(())
    }
}

/// Whether [`Machine::load`] will take what `view` holds, the rows of the keys aside.
pub(crate) fn check_rows(view: &dyn View) -> Result<(), RestoreError> {
    Leases::load(view, 0)?;
    AuthStore::load(view)?;
    Membership::load(view)?;
    Alarms::load(view)?;
    check_compactions(view)
}

/// Key of the row that tells etcd's tools which schema a database has.
const STORAGE_VERSION: &[u8] = b"storageVersion";

/// What one entry gathers besides its answer.
struct EntryContext {
    index: u64,
    events: Vec<Event>,
    duty: Option<Duty>,
}
