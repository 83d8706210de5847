//! The engine: one redb file with a table for each bucket.
//!
//! Commits save redb's allocator state (quick repair) and are two-phase, so that opening after a crash takes
//! milliseconds and the newest synced commit is found without reading the data. The page cache is bounded. One table
//! beside the buckets counts what rows take, in the transaction that changes them.
//!
//! Invariant: a file appears under its name only once every table exists in it.

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase, StorageBackend, Table,
    TableDefinition, WriteTransaction,
};

use super::{Backend, BackendError, Batch, Bucket, Op, Usage, View, Visit, is_empty_range};

type Row = &'static [u8];

/// Counts of this engine; not a bucket, and not exchanged with anybody.
const USAGE: TableDefinition<'static, Row, Row> = TableDefinition::new("~usage");
const USAGE_ROW: &[u8] = b"usage";

const fn table(bucket: Bucket) -> TableDefinition<'static, Row, Row> {
    TableDefinition::new(bucket.name())
}

/// A redb file.
pub struct RedbBackend {
    db: Arc<Database>,
    /// As of the last commit; held while one goes on.
    usage: Mutex<Usage>,
    /// What `usage` says, for those who ask meanwhile.
    size: AtomicU64,
    size_in_use: AtomicU64,
}

impl RedbBackend {
    /// Opens the file, or creates it; `cache_bytes` bounds the page cache. The parent directory must exist.
    ///
    /// A new file is made under a temporary name, so that a crash in between leaves nothing that looks like one.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, BackendError> {
        if !path.try_exists()? {
            let unfinished = beside(path, ".tmp");
            remove_if_there(&unfinished)?;
            // Dropping the database closes the file.
            drop(Self::open_in_place(&unfinished, cache_bytes)?);
            fs::rename(&unfinished, path)?;
            sync_parent(path)?;
        }
        Self::open_in_place(path, cache_bytes)
    }

    fn open_in_place(path: &Path, cache_bytes: usize) -> Result<Self, BackendError> {
        Self::guarded(|| Builder::new().set_cache_size(cache_bytes).create(path))
    }

    /// Opens a database on storage of the caller's, creating it if the storage is empty.
    pub fn create_with(
        storage: impl StorageBackend,
        cache_bytes: usize,
    ) -> Result<Self, BackendError> {
        Self::guarded(|| {
            Builder::new()
                .set_cache_size(cache_bytes)
                .create_with_backend(storage)
        })
    }

    /// redb panics on some damaged files; to the caller that is damage like any other.
    fn guarded(
        open: impl FnOnce() -> Result<Database, redb::DatabaseError>,
    ) -> Result<Self, BackendError> {
        // Nothing of what `open` touches outlives a panic in it.
        catch_unwind(AssertUnwindSafe(|| Self::new(open().map_err(failed)?)))
            .unwrap_or_else(|_| Err(BackendError::Damaged("it could not be opened".into())))
    }

    fn new(db: Database) -> Result<Self, BackendError> {
        let txn = db.begin_read().map_err(failed)?;
        let tables = txn.list_tables().map_err(failed)?.count();
        let complete = tables == Bucket::ALL.len() + 1;
        let mut usage = Usage::default();
        if complete {
            let counts = txn.open_table(USAGE).map_err(failed)?;
            if let Some(row) = counts.get(USAGE_ROW).map_err(failed)? {
                usage = Usage::from_row(row.value())
                    .ok_or_else(|| BackendError::Damaged("its usage is not two numbers".into()))?;
            }
        }
        drop(txn);
        let backend = RedbBackend {
            db: Arc::new(db),
            usage: Mutex::new(usage),
            size: AtomicU64::new(usage.size()),
            size_in_use: AtomicU64::new(usage.in_use()),
        };
        if !complete {
            backend.write(|txn| {
                for bucket in Bucket::ALL {
                    txn.open_table(table(bucket)).map_err(failed)?;
                }
                txn.open_table(USAGE).map_err(failed)?;
                Ok(())
            })?;
        }
        Ok(backend)
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let mut txn = self.db.begin_write().map_err(failed)?;
        txn.set_durability(Durability::Immediate).map_err(failed)?;
        txn.set_quick_repair(true);
        change(&txn)?;
        txn.commit().map_err(failed)
    }
}

impl Backend for RedbBackend {
    fn commit(&self, batch: &Batch) -> Result<(), BackendError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut current = self.usage.lock();
        let mut usage = *current;
        self.write(|txn| {
            let mut tables = [const { None }; Bucket::ALL.len()];
            for op in &batch.ops {
                carry_out(txn, &mut tables, op, &mut usage)?;
            }
            drop(tables);
            usage.settle();
            let mut counts = txn.open_table(USAGE).map_err(failed)?;
            counts
                .insert(USAGE_ROW, &usage.to_row()[..])
                .map_err(failed)?;
            Ok(())
        })?;
        *current = usage;
        self.size.store(usage.size(), Relaxed);
        self.size_in_use.store(usage.in_use(), Relaxed);
        Ok(())
    }

    fn view(&self) -> Result<Arc<dyn View>, BackendError> {
        let txn = self.db.begin_read().map_err(failed)?;
        let mut tables = Vec::with_capacity(Bucket::ALL.len());
        for bucket in Bucket::ALL {
            tables.push(txn.open_table(table(bucket)).map_err(failed)?);
        }
        Ok(Arc::new(RedbView {
            tables,
            _db: self.db.clone(),
        }))
    }

    fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    fn size_in_use(&self) -> u64 {
        self.size_in_use.load(Relaxed)
    }
}

type OpenTables<'txn> = [Option<Table<'txn, Row, Row>>; Bucket::ALL.len()];

fn carry_out<'txn>(
    txn: &'txn WriteTransaction,
    tables: &mut OpenTables<'txn>,
    op: &Op,
    usage: &mut Usage,
) -> Result<(), BackendError> {
    let (Op::Put { bucket, .. } | Op::Delete { bucket, .. }) = *op;
    let slot = &mut tables[bucket as usize];
    let rows = match slot {
        Some(rows) => rows,
        None => slot.insert(txn.open_table(table(bucket)).map_err(failed)?),
    };
    let (key, old) = match op {
        Op::Put { key, value, .. } => {
            usage.add(key.len(), value.len());
            (key, rows.insert(&key[..], &value[..]).map_err(failed)?)
        }
        Op::Delete { key, .. } => (key, rows.remove(&key[..]).map_err(failed)?),
    };
    if let Some(old) = old {
        usage.remove(key.len(), old.value().len());
    }
    Ok(())
}

struct RedbView {
    /// In the order of `Bucket::ALL`; each keeps the read transaction alive.
    tables: Vec<ReadOnlyTable<Row, Row>>,
    /// A table can be read as long as its database is open. Behind `tables`, so that it is dropped after them.
    _db: Arc<Database>,
}

impl View for RedbView {
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        let value = self.tables[bucket as usize].get(key).map_err(failed)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn scan(
        &self,
        bucket: Bucket,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError> {
        if is_empty_range(range) {
            return Ok(());
        }
        for row in self.tables[bucket as usize]
            .range::<&[u8]>(range)
            .map_err(failed)?
        {
            let (key, value) = row.map_err(failed)?;
            if visit(key.value(), value.value()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn failed(error: impl Into<redb::Error>) -> BackendError {
    match error.into() {
        redb::Error::Io(error) => BackendError::Io(error),
        redb::Error::DatabaseAlreadyOpen => BackendError::Locked,
        redb::Error::Corrupted(what) => BackendError::Damaged(what),
        other => BackendError::Other(other.to_string()),
    }
}

/// The path with something behind its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the name durable: a file's own sync does not cover the directory it is listed in.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_opener_is_told_that_the_file_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let held = RedbBackend::open(&path, 1 << 20).unwrap();
        assert!(matches!(
            RedbBackend::open(&path, 1 << 20),
            Err(BackendError::Locked)
        ));
        drop(held);
        RedbBackend::open(&path, 1 << 20).unwrap();
    }

    #[test]
    fn a_file_that_is_none_of_ours_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let garbage = b"not a database at all".repeat(1000);
        fs::write(&path, &garbage).unwrap();
        assert!(RedbBackend::open(&path, 1 << 20).is_err());
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }

    #[test]
    fn a_view_outlives_its_backend() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let backend = RedbBackend::open(&path, 0).unwrap();
        let mut batch = Batch::default();
        for key in 0..200u8 {
            batch.put(Bucket::Key, vec![key], vec![key; 5000]);
        }
        backend.commit(&batch).unwrap();
        let view = backend.view().unwrap();
        drop(backend);
        for key in 0..200u8 {
            assert_eq!(
                view.get(Bucket::Key, &[key]).unwrap(),
                Some(vec![key; 5000])
            );
        }
    }

    #[test]
    fn an_unfinished_file_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fs::write(beside(&path, ".tmp"), b"half a file").unwrap();
        let backend = RedbBackend::open(&path, 1 << 20).unwrap();
        assert_eq!(backend.size_in_use(), Usage::EMPTY);
        assert!(!beside(&path, ".tmp").exists());
    }
}
