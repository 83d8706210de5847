//! The backend on storage that stops, tears or fails at any of its writes: each commit is there whole or not at all,
//! and one that was acknowledged is there.

use std::{
    collections::BTreeMap,
    io,
    ops::{Bound, ControlFlow},
    sync::{Arc, Mutex},
};

use kvstore::backend::{Backend, BackendError, Batch, Bucket, Op, redb::RedbBackend};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// The unit of which a write that was not synced arrives whole or not at all.
const SECTOR: usize = 512;
const CACHE_BYTES: usize = 1 << 20;

/// A file in memory that knows what has been synced.
#[derive(Debug, Default)]
struct Disk {
    written: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors written since the last sync, and lengths set.
    unsynced: Vec<Unsynced>,
    operations: u64,
    /// Operations after which the power is gone.
    stop_at: u64,
    /// The one operation that fails.
    fail_at: u64,
}

#[derive(Debug)]
enum Unsynced {
    Sector { number: usize, bytes: Vec<u8> },
    Len(usize),
}

impl Disk {
    fn operate(&mut self) -> io::Result<()> {
        self.operations += 1;
        if self.operations >= self.stop_at {
            return Err(io::Error::other("the power is gone"));
        }
        if self.operations == self.fail_at {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, data: &[u8]) -> io::Result<()> {
        self.operate()?;
        self.written[offset..offset + data.len()].copy_from_slice(data);
        for number in offset / SECTOR..(offset + data.len()).div_ceil(SECTOR) {
            let end = ((number + 1) * SECTOR).min(self.written.len());
            let bytes = self.written[number * SECTOR..end].to_vec();
            self.unsynced.push(Unsynced::Sector { number, bytes });
        }
        Ok(())
    }

    /// What a machine finds after the power was gone: of what was not synced, any part, in any order.
    fn after_power_loss(&self, random: &mut SmallRng) -> Vec<u8> {
        let mut file = self.synced.clone();
        let survives = random.random_range(0.0..1.0);
        for change in &self.unsynced {
            if !random.random_bool(survives) {
                continue;
            }
            match change {
                Unsynced::Len(len) => file.resize(*len, 0),
                Unsynced::Sector { number, bytes } => {
                    let start = number * SECTOR;
                    file.resize(file.len().max(start + bytes.len()), 0);
                    file[start..start + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        file
    }
}

#[derive(Clone, Debug)]
struct Storage(Arc<Mutex<Disk>>);

impl Storage {
    fn of(file: Vec<u8>) -> Storage {
        Storage(Arc::new(Mutex::new(Disk {
            written: file.clone(),
            synced: file,
            stop_at: u64::MAX,
            ..Default::default()
        })))
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl redb::StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().written.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let start = offset as usize;
        let bytes = disk.written.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.disk();
        disk.operate()?;
        disk.written.resize(len as usize, 0);
        disk.unsynced.push(Unsynced::Len(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.operate()?;
        disk.synced = disk.written.clone();
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk().write(offset as usize, data)
    }
}

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn batch(random: &mut SmallRng) -> Batch {
    let mut batch = Batch::default();
    for _ in 0..random.random_range(1..40) {
        let key = vec![random.random_range(0..60u8)];
        if random.random_bool(0.3) {
            batch.delete(Bucket::Key, key);
        } else {
            let len = if random.random_bool(0.05) {
                9000
            } else {
                random.random_range(0..300)
            };
            batch.put(Bucket::Key, key, vec![random.random::<u8>(); len]);
        }
    }
    batch
}

fn carry_out(rows: &mut Rows, batch: &Batch) {
    for op in &batch.ops {
        match op {
            Op::Put { key, value, .. } => drop(rows.insert(key.to_vec(), value.to_vec())),
            Op::Delete { key, .. } => drop(rows.remove(&key[..])),
        }
    }
}

fn rows_of(backend: &RedbBackend) -> Result<Rows, BackendError> {
    let mut rows = Rows::new();
    let everything = (Bound::Unbounded, Bound::Unbounded);
    backend
        .view()?
        .scan(Bucket::Key, everything, &mut |key, value| {
            rows.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })?;
    Ok(rows)
}

/// Commits until the storage says no; yields the rows that were acknowledged, and those of the commit that failed.
fn run(storage: &Storage, rows: Rows, random: &mut SmallRng) -> (Rows, Rows) {
    let Ok(backend) = RedbBackend::create_with(storage.clone(), CACHE_BYTES) else {
        return (rows.clone(), rows);
    };
    let mut acknowledged = rows;
    for _ in 0..12 {
        let batch = batch(random);
        let mut attempted = acknowledged.clone();
        carry_out(&mut attempted, &batch);
        match backend.commit(&batch) {
            Ok(()) => acknowledged = attempted,
            Err(_) => return (acknowledged, attempted),
        }
    }
    (acknowledged.clone(), acknowledged)
}

/// A file without rows. Until it is whole it has another name, so that no fault in making it matters.
fn created() -> Vec<u8> {
    let storage = Storage::of(Vec::new());
    drop(RedbBackend::create_with(storage.clone(), CACHE_BYTES).unwrap());
    storage.disk().synced.clone()
}

/// Runs with a fault, opens what is left, and goes on, several times over.
fn survive(seed: u64, power_loss: bool) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut file = created();
    let mut rows = Rows::new();
    for _ in 0..3 {
        let storage = Storage::of(file);
        let fault = random.random_range(1..120);
        if power_loss {
            storage.disk().stop_at = fault;
        } else {
            storage.disk().fail_at = fault;
        }
        let (acknowledged, attempted) = run(&storage, rows, &mut random);
        file = if power_loss {
            storage.disk().after_power_loss(&mut random)
        } else {
            storage.disk().written.clone()
        };
        let left = Storage::of(file.clone());
        let backend = RedbBackend::create_with(left.clone(), CACHE_BYTES)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        rows = rows_of(&backend).unwrap();
        assert!(
            rows == acknowledged || rows == attempted,
            "seed {seed}: a commit is there in part, or not at all"
        );
        drop(backend);
        // Opening repaired the file.
        file = left.disk().written.clone();
    }
}

#[test]
fn power_may_fail_at_any_write() {
    for seed in 0..400 {
        survive(seed, true);
    }
}

#[test]
fn any_write_may_fail() {
    for seed in 0..200 {
        survive(seed, false);
    }
}
