//! From a database file in etcd's format to a file of our own backend.
//!
//! A member that lags behind receives the former together with a snapshot; it is imported before the snapshot is
//! handed to raft, so that installing it is a renaming. The imported rows are those of the file, except where the
//! snapshot's document knows the membership better (see [`Membership::merge`]). Once raft has recorded a snapshot
//! there is no way back, so everything that a store reads when it opens is read here first.
//!
//! Invariant: the imported file appears under its name whole and synced, or not at all.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use transport_core::raftpb::{ConfState, Snapshot};

use crate::{
    apply::check_rows,
    backend::{
        Backend, BackendError, Batch, Bucket,
        redb::{RedbBackend, beside, remove_if_there, sync_parent},
    },
    bolt::read::{BoltError, BoltFile, ReadAt},
    flush::{CONSISTENT_INDEX, TERM},
    membership::Membership,
    mvcc::{restore::RestoreError, row},
    store::Standing,
    v2store::{self, V2StoreError},
};

/// Bytes of rows that are committed at a time…
const COMMIT_BYTES: usize = 16 << 20;
/// …unless there are that many rows: short rows take more memory than they have bytes.
const COMMIT_ROWS: usize = 128 << 10;
/// Page cache of the backend while it is filled. Rows come in order, so there is little to find in it again.
const CACHE_BYTES: usize = 32 << 20;

/// Ends the names of files that are being filled. What a crash leaves of them is for whoever owns the directory.
pub const UNFINISHED: &str = ".importing";

/// Why a database could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The destination is there already.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The received file cannot be read.
    #[error(transparent)]
    Source(#[from] BoltError),
    /// The received file lacks a bucket that etcd's always have.
    #[error("the database file has no bucket {0}")]
    NoBucket(&'static str),
    /// A row of bucket `meta` is no number.
    #[error("the database file has a row meta/{0} that is not 8 bytes long")]
    NotANumber(&'static str),
    /// A row does not hold what its bucket promises.
    #[error("the database file has a damaged row: {0}")]
    Damaged(String),
    /// The database and the snapshot it came with do not belong together.
    #[error("the database is at index {found}, its snapshot at {expected}")]
    IndexMismatch {
        /// Index of the snapshot.
        expected: u64,
        /// Consistent index of the database.
        found: u64,
    },
    /// The snapshot's document cannot be read.
    #[error(transparent)]
    Document(#[from] V2StoreError),
    /// The backend's file cannot be written.
    #[error("writing the imported database: {0}")]
    Backend(#[from] BackendError),
    /// The backend's file cannot be put in place.
    #[error("writing the imported database: {0}")]
    Io(#[from] io::Error),
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Index of the last entry the database contains; it must be that of the snapshot it came with. 0: it does not
    /// say.
    pub consistent_index: u64,
    /// Term of that entry; 0 in a database of 3.4, which does not record it.
    pub term: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}

/// Imports the database file at `from` as a backend file at `to`, which must not exist and whose directory must.
/// Buckets that etcd does not have are left out. When it returns, everything is on the disk.
pub fn import_bolt(from: &Path, to: &Path) -> Result<Imported, ImportError> {
    import_file(from, to, None)
}

/// As [`import_bolt`], with the snapshot that the file came with, whose index must be that of the database. The
/// snapshot's data is in a cluster before 3.5 the membership, whatever the database says; members from 3.8 on leave
/// it empty. A database that a store could not be opened on is refused.
pub fn import_snapshot(
    from: &Path,
    to: &Path,
    snapshot: &Snapshot,
) -> Result<Imported, ImportError> {
    import_file(from, to, Some(snapshot))
}

/// The index that the backend file at `path` stands at, an imported one; `None` when it cannot be read.
///
/// # Errors
/// Only [`BackendError::Locked`]: the file is in use.
pub fn imported_index(path: &Path) -> Result<Option<u64>, BackendError> {
    match RedbBackend::open(path, CACHE_BYTES).and_then(|backend| backend.view()) {
        Ok(view) => Ok(Standing::read(&*view).ok().map(|standing| standing.index)),
        Err(BackendError::Locked) => Err(BackendError::Locked),
        Err(_) => Ok(None),
    }
}

/// A name beside `to` that nobody else fills.
fn unfinished(to: &Path) -> PathBuf {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    beside(to, &format!(".{}-{number}{UNFINISHED}", process::id()))
}

fn import_file(
    from: &Path,
    to: &Path,
    snapshot: Option<&Snapshot>,
) -> Result<Imported, ImportError> {
    if to.try_exists()? {
        return Err(ImportError::Exists(to.to_owned()));
    }
    let source = BoltFile::open(from)?;
    let unfinished = unfinished(to);
    remove_if_there(&unfinished)?;
    let filled = fill(&source, &unfinished, snapshot).and_then(|imported| {
        fs::rename(&unfinished, to)?;
        Ok(imported)
    });
    if filled.is_err() {
        // The error that led here says more than one about the leftover.
        drop(remove_if_there(&unfinished));
        return filled;
    }
    sync_parent(to)?;
    filled
}

fn fill<S: ReadAt>(
    source: &BoltFile<S>,
    path: &Path,
    snapshot: Option<&Snapshot>,
) -> Result<Imported, ImportError> {
    let backend = RedbBackend::open(path, CACHE_BYTES)?;
    let Some(snapshot) = snapshot else {
        return import_into(source, &backend, &[]);
    };
    let imported = copy(source, &backend, &snapshot.data, true)?;
    let metadata = snapshot.metadata.as_ref();
    let expected = metadata.map_or(0, |metadata| metadata.index);
    let found = imported.consistent_index;
    if found != expected {
        return Err(ImportError::IndexMismatch { expected, found });
    }
    let view = backend.view()?;
    check_rows(&*view)?;
    let standing =
        Standing::read(&*view).map_err(|error| ImportError::Damaged(error.to_string()))?;
    let sent = metadata.and_then(|metadata| metadata.conf_state.as_ref());
    if let (Some(stored), Some(sent)) = (&standing.conf_state, sent)
        && !same_members(stored, sent)
    {
        // raft goes by the snapshot's, and so does the store that is installed with it.
        tracing::warn!(
            ?stored,
            ?sent,
            "a received database and its snapshot differ in the configuration"
        );
    }
    Ok(imported)
}

fn same_members(a: &ConfState, b: &ConfState) -> bool {
    let sorted = |ids: &[u64]| -> BTreeSet<u64> { ids.iter().copied().collect() };
    sorted(&a.voters) == sorted(&b.voters) && sorted(&a.learners) == sorted(&b.learners)
}

/// Copies the rows of a database file into an empty backend.
pub fn import_into<S: ReadAt>(
    source: &BoltFile<S>,
    backend: &dyn Backend,
    document: &[u8],
) -> Result<Imported, ImportError> {
    copy(source, backend, document, false)
}

/// `strict` refuses rows of the keys that cannot be read.
fn copy<S: ReadAt>(
    source: &BoltFile<S>,
    backend: &dyn Backend,
    document: &[u8],
    strict: bool,
) -> Result<Imported, ImportError> {
    // Without these it is no database of etcd's; others came with later versions.
    for needed in [Bucket::Key, Bucket::Meta] {
        if !source.has_bucket(needed.name().as_bytes()) {
            return Err(ImportError::NoBucket(needed.name()));
        }
    }
    let document = read_document(document)?;
    let mut copy = Copy {
        backend,
        strict,
        batch: Batch::default(),
        bytes: 0,
        imported: Imported::default(),
    };
    // Bucket `meta` is the last: until its rows are in, the backend stands at no entry.
    for name in source.buckets() {
        match Bucket::from_name(name) {
            Some(bucket) => copy.bucket(source, bucket)?,
            None => tracing::warn!(
                bucket = %String::from_utf8_lossy(name),
                "ignored a bucket of a received database"
            ),
        }
    }
    copy.commit()?;
    let mut imported = copy.imported;
    let view = backend.view()?;
    let database = Membership::load(&*view)?;
    let mut batch = Batch::default();
    database.write_difference(&Membership::merge(database.clone(), document), &mut batch);
    backend.commit(&batch)?;
    let number = |key: &[u8], name: &'static str| match view.get(Bucket::Meta, key)? {
        None => Ok(0),
        Some(row) => match row.try_into() {
            Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
            Err(_) => Err(ImportError::NotANumber(name)),
        },
    };
    imported.consistent_index = number(CONSISTENT_INDEX, "consistent_index")?;
    imported.term = number(TERM, "term")?;
    Ok(imported)
}

fn read_document(document: &[u8]) -> Result<Option<Membership>, V2StoreError> {
    if document.is_empty() {
        return Ok(None);
    }
    if v2store::holds_client_keys(document)? {
        tracing::warn!("the cluster holds keys of the v2 API, which this member does not keep");
    }
    v2store::parse(document).map(Some)
}

impl From<RestoreError> for ImportError {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Backend(BackendError::Damaged(reason)) => ImportError::Damaged(reason),
            RestoreError::Backend(error) => ImportError::Backend(error),
            RestoreError::Damaged { bucket, reason } => {
                ImportError::Damaged(format!("{}: {reason}", bucket.name()))
            }
        }
    }
}

struct Copy<'a> {
    backend: &'a dyn Backend,
    strict: bool,
    batch: Batch,
    bytes: usize,
    imported: Imported,
}

impl Copy<'_> {
    fn bucket<S: ReadAt>(
        &mut self,
        source: &BoltFile<S>,
        bucket: Bucket,
    ) -> Result<(), ImportError> {
        let mut outcome = Ok(());
        source.scan(bucket.name().as_bytes(), &mut |key, value| {
            outcome = self.row(bucket, key, value);
            match outcome {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        outcome
    }

    fn row(&mut self, bucket: Bucket, key: &[u8], value: &[u8]) -> Result<(), ImportError> {
        let value = Bytes::copy_from_slice(value);
        if self.strict && bucket == Bucket::Key && !row::is_readable(key, &value) {
            let name = bucket.name();
            return Err(ImportError::Damaged(format!("{name}/{key:02x?}")));
        }
        self.bytes += key.len() + value.len();
        self.batch.put(bucket, Bytes::copy_from_slice(key), value);
        self.imported.rows += 1;
        if self.bytes >= COMMIT_BYTES || self.batch.len() >= COMMIT_ROWS {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), BackendError> {
        self.backend.commit(&self.batch)?;
        self.imported.bytes += self.bytes as u64;
        self.batch.ops.clear();
        self.bytes = 0;
        Ok(())
    }
}
