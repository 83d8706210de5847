//! Rows that were written or read lately, so that reading them does not go to the backend.
//!
//! A row at a revision never changes, so nothing here is ever stale; compaction leaves rows behind that nobody asks
//! for, and they age out. Two generations approximate "least recently used": a row that is read in the old one
//! moves to the new one, and when the new one is full the old one is forgotten as a whole.
//!
//! Invariant: the rows held weigh at most the budget given, spread evenly over the shards.

use std::collections::HashMap;

use bytes::Bytes;
use parking_lot::Mutex;

use super::revision::Revision;

/// Locks are held for one lookup; 16 keep readers on a few cores apart.
const SHARDS: usize = 16;
/// What a row weighs beside its bytes: the map's slot, the handle, the allocation.
const ROW_OVERHEAD_BYTES: usize = 96;

/// The cache; shared by readers and the flush thread.
pub(crate) struct RowCache {
    shards: Vec<Mutex<Shard>>,
}

type Generation = HashMap<Revision, Bytes>;

#[derive(Default)]
struct Shard {
    new: Generation,
    old: Generation,
    new_bytes: usize,
    /// Half of the shard's budget: the other half is the old generation's.
    half_bytes: usize,
}

impl RowCache {
    /// A cache of at most `budget_bytes`; 0 caches nothing.
    pub fn new(budget_bytes: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                half_bytes: budget_bytes / SHARDS / 2,
                ..Shard::default()
            })
        };
        RowCache {
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    /// The row at `revision`, if it is here.
    pub fn get(&self, revision: Revision) -> Option<Bytes> {
        let mut shard = self.shard(revision).lock();
        if let Some(row) = shard.new.get(&revision) {
            return Some(row.clone());
        }
        let row = shard.old.remove(&revision)?;
        let forgotten = shard.insert(revision, row.clone());
        drop(shard);
        drop(forgotten);
        Some(row)
    }

    /// Keeps a row; one heavier than half a shard's budget is not kept.
    pub fn insert(&self, revision: Revision, row: Bytes) {
        let forgotten = self.shard(revision).lock().insert(revision, row);
        drop(forgotten);
    }

    fn shard(&self, revision: Revision) -> &Mutex<Shard> {
        // Revisions are dense: their low bits spread evenly.
        let mixed = revision.main as u64 ^ u64::from(revision.sub);
        &self.shards[mixed as usize % SHARDS]
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        let weigh = |map: &Generation| -> usize { map.values().map(weight).sum() };
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                weigh(&shard.new) + weigh(&shard.old)
            })
            .sum()
    }
}

fn weight(row: &Bytes) -> usize {
    row.len() + ROW_OVERHEAD_BYTES
}

impl Shard {
    /// Inserts a row and returns what it made the shard forget, to be dropped without the lock: freeing many rows
    /// takes its time.
    fn insert(&mut self, revision: Revision, row: Bytes) -> Generation {
        let weight = weight(&row);
        let mut forgotten = Generation::new();
        if weight > self.half_bytes {
            return forgotten;
        }
        if self.new_bytes + weight > self.half_bytes {
            let full = std::mem::take(&mut self.new);
            forgotten = std::mem::replace(&mut self.old, full);
            self.new_bytes = 0;
        }
        if self.new.insert(revision, row).is_none() {
            self.new_bytes += weight;
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_heavier_than_its_budget() {
        let budget = 64 * 1024;
        let cache = RowCache::new(budget);
        for main in 0..10_000 {
            cache.insert(
                Revision::new(main, 0),
                vec![0; (main % 500) as usize].into(),
            );
            if main % 3 == 0 {
                cache.get(Revision::new(main / 2, 0));
            }
        }
        assert!(cache.bytes() <= budget);
        assert!(cache.bytes() > budget / 4);
        assert!(cache.get(Revision::new(9_999, 0)).is_some());
        assert!(cache.get(Revision::new(1, 0)).is_none());
    }

    #[test]
    fn rows_that_are_read_stay() {
        let cache = RowCache::new(64 * 1024);
        let hot = Revision::new(1, 0);
        cache.insert(hot, "hot".into());
        for main in 2..10_000 {
            cache.insert(Revision::new(main, 0), "cold".into());
            assert!(cache.get(hot).is_some());
        }
    }

    #[test]
    fn too_heavy_rows_and_empty_budgets_cache_nothing() {
        let cache = RowCache::new(16 * 1024);
        cache.insert(Revision::new(1, 0), vec![0; 16 * 1024].into());
        assert!(cache.get(Revision::new(1, 0)).is_none());
        let none = RowCache::new(0);
        none.insert(Revision::new(1, 0), "x".into());
        assert_eq!(none.bytes(), 0);
    }
}
