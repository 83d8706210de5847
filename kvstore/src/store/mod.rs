//! The store: the replicated state machine with its backend, as its owner drives it.
//!
//! One owner has a [`Store`] and calls [`Store::apply`] for each entry, [`Store::publish`] at
//! the end of each batch; any number of [`Reader`]s read beside it. Applying touches memory alone; a thread of the
//! store brings the changes into the backend (`flush`), another compacts (`compaction`).
//!
//! Invariant: after a crash the backend is exactly the state after some entry, whose index it holds; the owner
//! applies the entries after it again, and those up to it are recognised and change nothing.

mod conf_state;
mod config;
mod engine;
mod image;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use bytes::Bytes;
use transport_core::raftpb::{ConfChange, ConfState, Snapshot, SnapshotMetadata};

use self::engine::{Engine, durable_at, reset_durable};
pub(crate) use self::image::Standing;
pub use self::{config::StoreConfig, image::Image};
use crate::{
    apply::{Machine, MachineOptions, is_put},
    backend::{Backend, BackendError, Batch, redb::RedbBackend},
    error::{FatalError, ImageError, OpenError},
    flush::{Position, Sizes},
    membership::{Membership, MembershipError, MembershipEvent},
    metrics::StoreMetrics,
    mvcc::restore::RestoreError,
    quota::Quota,
    reader::{Published, Reader, Shared},
    response::{Applied, Response},
};

/// Entry data applied since the last hand-over that makes the next one due within a batch of entries.
const HAND_OVER_BYTES: usize = 1 << 20;

/// The replicated state machine. Dropping it is like a crash: what is not in the backend yet is left to the log.
pub struct Store {
    config: StoreConfig,
    machine: Machine,
    engine: Engine,
    shared: Arc<Shared>,
    durable: Arc<AtomicU64>,
    metrics: Arc<StoreMetrics>,
    /// Index and term of the last entry applied.
    applied: (u64, u64),
    conf_state: Arc<ConfState>,
    /// JSON of `conf_state`, as it goes to the backend; `None` before there is one.
    conf_state_row: Option<Arc<Vec<u8>>>,
    /// Index up to which changes have been handed over.
    handed_over: u64,
    pending_bytes: usize,
    /// Rows of a configuration change whose entry has not ended: they must not reach the backend under the index of
    /// the entry before.
    staged: Batch,
    /// Membership as it was at the entry being replayed; see [`Store::begin_replay`].
    replayed: Membership,
}

impl Store {
    /// Opens the store at `config.path`, or creates it. Reads every row of the keys once, to build the index.
    pub fn open(config: StoreConfig) -> Result<Store, OpenError> {
        let backend = RedbBackend::open(&config.path, config.backend_cache_bytes)
            .map_err(|source| backend_error(&config, source))?;
        Store::open_on(config, Arc::new(backend))
    }

    /// Opens a store on a backend of the caller's.
    pub fn open_on(config: StoreConfig, backend: Arc<dyn Backend>) -> Result<Store, OpenError> {
        let metrics = Arc::new(StoreMetrics::new(config.recorder.clone()));
        let durable = durable_at(0);
        let loaded = Loaded::from_backend(&config, backend, &metrics, &durable)?;
        let standing = loaded.standing;
        reset_durable(&durable, standing.index);
        let conf_state = Arc::new(standing.conf_state.clone().unwrap_or_default());
        let published = publish_of(&loaded.machine, &conf_state);
        let shared = Arc::new(Shared::new(published, metrics.clone()));
        let mut store = Store {
            machine: loaded.machine,
            engine: loaded.engine,
            shared,
            durable,
            metrics,
            applied: (standing.index, standing.term),
            conf_state,
            conf_state_row: standing.conf_state.as_ref().map(conf_state_row),
            handed_over: standing.index,
            pending_bytes: 0,
            staged: Batch::default(),
            replayed: Membership::default(),
            config,
        };
        store.metrics.quota(store.machine.quota.limit());
        store.hand_over_startup();
        store.publish()?;
        Ok(store)
    }

    /// Rows and compactions that opening itself brought up. They belong to the entry the backend stands at.
    fn hand_over_startup(&mut self) {
        if !self.machine.batch.ops.is_empty() || !self.machine.jobs.is_empty() {
            self.hand_over();
        }
    }

    /// Index and term of the last entry applied.
    pub fn applied(&self) -> (u64, u64) {
        self.applied
    }

    /// The index up to which a crash loses nothing, as it advances. No snapshot, released log segment or compacted
    /// log may rely on a higher one.
    pub fn durable(&self) -> Arc<AtomicU64> {
        self.durable.clone()
    }

    /// A handle to read with.
    pub fn reader(&self) -> Reader {
        Reader::new(self.shared.clone())
    }

    /// Applies a normal entry. One that the store already contains changes nothing and answers nobody. Readers see
    /// the change after [`Store::publish`].
    ///
    /// # Errors
    /// An error means that this member cannot go on; the process must end.
    pub fn apply(&mut self, index: u64, term: u64, data: &Bytes) -> Result<Applied, FatalError> {
        if index <= self.applied.0 {
            return Ok(self.already_applied(index));
        }
        self.expect_next(index)?;
        let applied = self.machine.apply(index, data)?;
        self.applied = (index, term);
        self.pending_bytes += data.len();
        if self.pending_bytes >= HAND_OVER_BYTES {
            // No compaction begins before readers know of it.
            let jobs = std::mem::take(&mut self.machine.jobs);
            self.hand_over();
            self.machine.jobs = jobs;
            self.wait_for_room()?;
        }
        Ok(applied)
    }

    /// Whether applying an entry with this data and publishing it is a matter of microseconds: a put, while there is
    /// room for it on the way to the backend.
    pub fn applies_at_once(&self, data: &[u8]) -> bool {
        is_put(data) && self.engine.backlog.has_room(HAND_OVER_BYTES)
    }

    fn already_applied(&self, index: u64) -> Applied {
        Applied {
            index,
            request_id: None,
            outcome: Ok(Response::Empty),
            revision: self.machine.writer.current,
            events: Vec::new(),
            duty: None,
        }
    }

    fn expect_next(&self, index: u64) -> Result<(), FatalError> {
        if index == self.applied.0 + 1 {
            return Ok(());
        }
        Err(FatalError::Impossible {
            index,
            reason: format!("the store is at entry {}", self.applied.0),
        })
    }

    /// Prepares for entries that the store already contains and that are applied again because raft starts from an
    /// older `snapshot` (`None`: from nothing). What a configuration change among them was answered depends on the
    /// membership of its time, which only the snapshot knows.
    pub fn begin_replay(&mut self, snapshot: Option<&Snapshot>) -> Result<(), OpenError> {
        self.replayed = match snapshot {
            Some(snapshot) if !snapshot.data.is_empty() => Membership::from_v2store(&snapshot.data)
                .map_err(|error| OpenError::Damaged {
                    bucket: "snapshot",
                    reason: error.to_string(),
                })?,
            _ => Membership::default(),
        };
        Ok(())
    }

    /// Validates a configuration change against the replicated membership and carries it out there. The entry counts
    /// as applied once [`Store::set_conf_state`] is told what raft made of it, also when it was refused.
    pub fn conf_change(
        &mut self,
        index: u64,
        change: &ConfChange,
    ) -> Result<MembershipEvent, MembershipError> {
        let max_learners = self.config.max_learners;
        if index <= self.applied.0 {
            self.replayed.validate(change, max_learners)?;
            return self.replayed.apply(change, &mut Batch::default());
        }
        self.machine.membership.validate(change, max_learners)?;
        let event = self.machine.membership.apply(change, &mut self.staged)?;
        self.machine.side_changed = true;
        Ok(event)
    }

    /// Ends the configuration change at `index` with the configuration that raft is in after it.
    pub fn set_conf_state(
        &mut self,
        index: u64,
        term: u64,
        conf_state: &ConfState,
    ) -> Result<(), FatalError> {
        if index <= self.applied.0 {
            return Ok(());
        }
        self.expect_next(index)?;
        self.applied = (index, term);
        self.machine.batch.ops.append(&mut self.staged.ops);
        self.conf_state = Arc::new(conf_state.clone());
        self.conf_state_row = Some(conf_state_row(conf_state));
        self.machine.side_changed = true;
        Ok(())
    }

    /// Lets readers see what was applied, and hands it to the flush thread; waits when too much is on its way to the
    /// backend. To be called at the end of each batch of entries, before the proposers are answered.
    pub fn publish(&mut self) -> Result<(), FatalError> {
        let machine = &mut self.machine;
        let (current, compacted) = (machine.writer.current, machine.writer.compacted);
        machine.keyspace.publish(current, compacted);
        if machine.side_changed {
            machine.side_changed = false;
            self.shared
                .replace(publish_of(&self.machine, &self.conf_state));
            self.observe_side();
        }
        self.hand_over();
        self.wait_for_room()?;
        let keys = self.machine.keyspace.index.alive();
        self.metrics
            .published(current, compacted, keys, self.engine.backlog.bytes());
        Ok(())
    }

    fn observe_side(&self) {
        let membership = &self.machine.membership;
        let members: BTreeSet<u64> = membership
            .members()
            .map(|member| member.id.into())
            .collect();
        let local = self.config.member_id;
        let is_learner = membership
            .member(local)
            .is_some_and(|member| member.is_learner);
        self.metrics.members(local, members, is_learner);
        self.metrics.auth_revision(self.machine.auth.revision());
        let version = membership.cluster_version();
        self.metrics
            .cluster_version(version.map(|version| format!("{}.{}", version.major, version.minor)));
    }

    fn hand_over(&mut self) {
        let machine = &mut self.machine;
        if self.handed_over == self.applied.0
            && machine.batch.ops.is_empty()
            && machine.jobs.is_empty()
        {
            return;
        }
        let position = Position {
            index: self.applied.0,
            term: self.applied.1,
            conf_state: self.conf_state_row.clone(),
            revision: machine.writer.current,
        };
        self.engine
            .backlog
            .hand_over(&mut machine.batch, position, &mut machine.jobs);
        self.handed_over = self.applied.0;
        self.pending_bytes = 0;
    }

    fn wait_for_room(&self) -> Result<(), FatalError> {
        if let Some(waited) = self.engine.backlog.wait_for_room()? {
            self.metrics.waited(waited);
        }
        Ok(())
    }

    /// Brings everything applied into the backend and waits for it.
    pub fn flush(&mut self) -> Result<(), FatalError> {
        self.publish()?;
        self.engine.backlog.flush()
    }

    /// A consistent state for a member that lags behind: the last commit's, so that nothing waits for it.
    pub fn image(&self) -> Result<Image, ImageError> {
        self.reader().image()
    }

    /// The raft part of a snapshot at the last commit; `None` as long as there is none.
    pub fn durable_snapshot(&self) -> Result<Option<Snapshot>, ImageError> {
        match self.image() {
            Ok(image) => Ok(Some(image.snapshot().clone())),
            Err(ImageError::Empty) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the whole state by the store file at `imported`, which a snapshot's database was imported into
    /// (`import_bolt`); the file takes the place of this store's. Readers go on with the new state.
    ///
    /// # Errors
    /// The present state is still in place unless the error comes from loading the new one.
    pub fn install(
        &mut self,
        imported: &Path,
        metadata: &SnapshotMetadata,
    ) -> Result<(), OpenError> {
        let backend = RedbBackend::open(imported, self.config.backend_cache_bytes)
            .map_err(|source| backend_error(&self.config, source))?;
        check_index(&self.config, &backend, metadata.index)?;
        // What is on its way to the old backend is part of the snapshot.
        drop(self.engine.stop(true));
        put_in_place(imported, &self.config.path)?;
        self.install_on(Arc::new(backend), metadata)
    }

    /// As [`Store::install`], with a backend of the caller's.
    pub fn install_on(
        &mut self,
        backend: Arc<dyn Backend>,
        metadata: &SnapshotMetadata,
    ) -> Result<(), OpenError> {
        check_index(&self.config, &*backend, metadata.index)?;
        drop(self.engine.stop(true));
        let loaded = Loaded::from_backend(&self.config, backend, &self.metrics, &self.durable)?;
        self.machine = loaded.machine;
        self.engine = loaded.engine;
        self.staged = Batch::default();
        self.applied = (metadata.index, metadata.term);
        self.handed_over = metadata.index;
        self.pending_bytes = 0;
        // A database of 3.4 holds neither term nor configuration: the snapshot's go in with the first batch.
        let conf_state = metadata.conf_state.clone().unwrap_or_default();
        self.conf_state_row = Some(conf_state_row(&conf_state));
        self.conf_state = Arc::new(conf_state);
        reset_durable(&self.durable, metadata.index);
        self.handed_over = 0;
        Ok(self.publish()?)
    }

    /// Brings everything into the backend and ends the threads.
    pub fn close(mut self) -> Result<(), FatalError> {
        self.publish()?;
        self.engine.stop(false)
    }
}

/// What a backend yields when it is opened.
struct Loaded {
    machine: Machine,
    engine: Engine,
    standing: Standing,
}

impl Loaded {
    fn from_backend(
        config: &StoreConfig,
        backend: Arc<dyn Backend>,
        metrics: &Arc<StoreMetrics>,
        durable: &Arc<AtomicU64>,
    ) -> Result<Loaded, OpenError> {
        let view = backend
            .view()
            .map_err(|source| backend_error(config, source))?;
        let standing = Standing::read(&*view).map_err(|error| match error {
            ImageError::Backend(source) => backend_error(config, source),
            other => OpenError::Damaged {
                bucket: "meta",
                reason: other.to_string(),
            },
        })?;
        let sizes = Arc::new(Sizes::default());
        sizes.measure(&*backend, metrics);
        let options = MachineOptions {
            min_ttl_s: config.min_lease_ttl_s,
            quota: Quota::new(config.quota_bytes),
            cache_bytes: config.row_cache_bytes,
            sizes,
            metrics: metrics.clone(),
        };
        let machine = Machine::load(view, options).map_err(|error| match error {
            RestoreError::Backend(source) => backend_error(config, source),
            RestoreError::Damaged { bucket, reason } => OpenError::Damaged {
                bucket: bucket.name(),
                reason,
            },
        })?;
        let engine = Engine::start(config, backend, &machine, durable.clone())?;
        Ok(Loaded {
            machine,
            engine,
            standing,
        })
    }
}

fn publish_of(machine: &Machine, conf_state: &Arc<ConfState>) -> Published {
    Published {
        keyspace: machine.keyspace.clone(),
        leases: machine.leases.clone(),
        sizes: machine.sizes.clone(),
        membership: Arc::new(machine.membership.clone()),
        auth: Arc::new(machine.auth.clone()),
        alarms: Arc::new(machine.alarms.clone()),
        conf_state: conf_state.clone(),
    }
}

fn conf_state_row(state: &ConfState) -> Arc<Vec<u8>> {
    Arc::new(conf_state::encode(state))
}

fn backend_error(config: &StoreConfig, source: BackendError) -> OpenError {
    OpenError::Backend {
        path: config.path.clone(),
        source,
    }
}

fn check_index(
    config: &StoreConfig,
    backend: &dyn Backend,
    expected: u64,
) -> Result<(), OpenError> {
    let view = backend
        .view()
        .map_err(|source| backend_error(config, source))?;
    let found = Standing::read(&*view).map_or(0, |standing| standing.index);
    if found != expected {
        return Err(OpenError::IndexMismatch { expected, found });
    }
    Ok(())
}

/// Renames the imported file over the store's and makes the renaming durable.
fn put_in_place(imported: &Path, path: &Path) -> Result<(), OpenError> {
    let io = |doing: &str, source| OpenError::Io {
        doing: format!("{doing} {}", path.display()),
        source,
    };
    std::fs::rename(imported, path)
        .map_err(|error| io("renaming the imported database to", error))?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    std::fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| io("syncing the directory of", error))
}
