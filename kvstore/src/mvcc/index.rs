//! The key index: every key with its history, in key order, in memory.
//!
//! One lock guards it, and nobody holds that lock for more than [`SCAN_KEYS`] keys: a count over a million keys
//! releases it thousands of times, so that a put waits for microseconds. What makes such a scan consistent is that
//! it reads at a fixed revision, and that compaction does not pass a revision somebody has pinned.
//!
//! Invariant: at every revision ≥ `floor` the histories answer as if nothing had ever been compacted; `floor` never
//! rises above a pinned revision.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{
    history::{Generation, History},
    interval::KeyInterval,
    revision::{Revision, RowKey},
    row::RowHead,
};

/// Keys looked at during one hold of the lock: some 10 µs, which is what a put may have to wait.
pub(crate) const SCAN_KEYS: usize = 256;

/// The index.
pub(crate) struct Index {
    tree: RwLock<Tree>,
    pins: Arc<Pins>,
}

/// The keys; built without locks when a store is opened.
#[derive(Default)]
pub(crate) struct Tree {
    keys: BTreeMap<Box<[u8]>, History>,
    /// What is superseded at this revision may be gone.
    floor: i64,
    alive: usize,
}

/// The floor of an index in which nothing was compacted.
pub(crate) const NO_FLOOR: i64 = 0;

/// The revision asked for lies below the floor: its answer may be incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BelowFloor;

impl Index {
    /// An index over `tree`.
    pub fn new(tree: Tree) -> Self {
        Index {
            tree: RwLock::new(tree),
            pins: Arc::default(),
        }
    }

    /// Notes a put and returns the generation the row belongs to.
    pub fn put(&self, key: &[u8], at: Revision) -> Generation {
        let mut tree = self.tree.write();
        if let Some(history) = tree.keys.get_mut(key) {
            let generation = history.put(at);
            tree.alive += usize::from(generation.version == 1);
            return generation;
        }
        tree.keys.insert(key.into(), History::created(at));
        tree.alive += 1;
        Generation {
            create: at.main,
            version: 1,
        }
    }

    /// Deletes every key of `interval` that is alive, in key order, at the revisions `main`.`first_sub` and on;
    /// calls `deleted` for each, without the lock.
    pub fn delete(
        &self,
        interval: KeyInterval<'_>,
        main: i64,
        first_sub: u32,
        mut deleted: impl FnMut(&[u8], Revision),
    ) {
        let mut sub = first_sub;
        let mut chunk: Vec<Box<[u8]>> = Vec::new();
        let mut resume: Option<Box<[u8]>> = None;
        if interval.is_empty() {
            return;
        }
        loop {
            let mut visited = 0;
            let mut tree = self.tree.write();
            for (key, history) in tree.keys.range_mut::<[u8], _>(bounds(interval, &resume)) {
                visited += 1;
                if history.delete(Revision::new(main, sub + chunk.len() as u32)) {
                    chunk.push(key.clone());
                }
                if visited == SCAN_KEYS {
                    resume = Some(key.clone());
                    break;
                }
            }
            tree.alive -= chunk.len();
            drop(tree);
            for key in chunk.drain(..) {
                deleted(&key, Revision::new(main, sub));
                sub += 1;
            }
            if visited < SCAN_KEYS {
                return;
            }
        }
    }

    /// The put that is `key`'s at revision `at`.
    pub fn lookup(&self, key: &[u8], at: i64) -> Result<Option<Revision>, BelowFloor> {
        let tree = self.at(at)?;
        Ok(tree.keys.get(key).and_then(|history| history.at(at)))
    }

    /// Calls `visit` for each key of `interval` that exists at revision `at`, in key order, until it breaks. The
    /// lock is held while `visit` runs. More than one hold is consistent only if the caller has `at` pinned, or is
    /// the thread that compacts logically.
    pub fn scan(
        &self,
        interval: KeyInterval<'_>,
        at: i64,
        mut visit: impl FnMut(&[u8], Revision) -> ControlFlow<()>,
    ) -> Result<(), BelowFloor> {
        self.walk(interval, at, |key, history| match history.at(at) {
            Some(revision) => visit(key, revision),
            None => ControlFlow::Continue(()),
        })
    }

    /// Whether a compaction at `at` leaves any row: a key that exists then, or a tombstone of exactly then.
    pub fn keeps_any(&self, at: i64) -> Result<bool, BelowFloor> {
        let mut any = false;
        self.walk(KeyInterval::From(b""), at, |_, history| {
            any = history.keeps_row(at);
            if any {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(any)
    }

    fn walk(
        &self,
        interval: KeyInterval<'_>,
        at: i64,
        mut visit: impl FnMut(&[u8], &History) -> ControlFlow<()>,
    ) -> Result<(), BelowFloor> {
        if interval.is_empty() {
            return Ok(());
        }
        let mut resume: Option<Box<[u8]>> = None;
        loop {
            let mut visited = 0;
            let tree = self.at(at)?;
            for (key, history) in tree.keys.range::<[u8], _>(bounds(interval, &resume)) {
                if visit(key, history).is_break() {
                    return Ok(());
                }
                visited += 1;
                if visited == SCAN_KEYS {
                    resume = Some(key.clone());
                    break;
                }
            }
            if visited < SCAN_KEYS {
                return Ok(());
            }
        }
    }

    fn at(&self, at: i64) -> Result<RwLockReadGuard<'_, Tree>, BelowFloor> {
        let tree = self.tree.read();
        if at < tree.floor {
            return Err(BelowFloor);
        }
        Ok(tree)
    }

    /// The revision below which compaction may have taken something.
    pub fn floor(&self) -> i64 {
        self.tree.read().floor
    }

    /// Keys that exist after the last change.
    pub fn alive(&self) -> usize {
        self.tree.read().alive
    }

    /// Keys that have a history.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.tree.read().keys.len()
    }
}

/// The part of `interval` behind `resume`.
fn bounds<'a>(
    interval: KeyInterval<'a>,
    resume: &'a Option<Box<[u8]>>,
) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    let (first, end) = interval.bounds();
    match (resume, interval) {
        (None, _) => (first, end),
        // Only one key was there to visit: nothing is behind it.
        (Some(_), KeyInterval::One(key)) => (Bound::Included(key), Bound::Excluded(key)),
        (Some(last), _) => (Bound::Excluded(last), end),
    }
}

/// Compaction.
impl Index {
    /// Lets compaction take what is superseded at `at`; false while somebody reads below it.
    pub fn raise_floor(&self, at: i64) -> bool {
        let pins = self.pins.held.lock();
        if pins
            .first_key_value()
            .is_some_and(|(pinned, _)| *pinned < at)
        {
            return false;
        }
        let mut tree = self.tree.write();
        tree.floor = tree.floor.max(at);
        true
    }

    /// Takes marks that a compaction at `at` takes, from key `resume` on, until it took `limit` of them or saw
    /// [`SCAN_KEYS`] keys. Returns where to go on, or `None` at the end. The floor must have been raised.
    pub fn compact(
        &self,
        at: i64,
        resume: Option<Box<[u8]>>,
        limit: usize,
        dropped: &mut Vec<RowKey>,
    ) -> Option<Box<[u8]>> {
        let mut tree = self.tree.write();
        debug_assert!(tree.floor >= at);
        let first = resume.as_deref().map_or(Bound::Unbounded, Bound::Included);
        let mut gone: Vec<Box<[u8]>> = Vec::new();
        let mut next = None;
        let mut took = 0;
        for (visited, (key, history)) in tree
            .keys
            .range_mut::<[u8], _>((first, Bound::Unbounded))
            .enumerate()
        {
            if visited == SCAN_KEYS || took == limit {
                next = Some(key.clone());
                break;
            }
            let emptied = history.compact(at, limit - took, |revision, tombstone| {
                took += 1;
                dropped.push(RowKey {
                    revision,
                    tombstone,
                });
            });
            if emptied {
                gone.push(key.clone());
            } else if history.is_compactable(at) {
                next = Some(key.clone());
                break;
            }
        }
        for key in gone {
            tree.keys.remove(&key);
        }
        next
    }
}

/// Revisions that are being read.
#[derive(Default)]
struct Pins {
    held: Mutex<BTreeMap<i64, usize>>,
}

/// Keeps compaction from passing a revision, until dropped.
pub(crate) struct Pin {
    pins: Arc<Pins>,
    at: i64,
}

impl Index {
    /// Pins the revision that `at` returns; no compaction passes between its answer and the pin. The floor may be
    /// above it already: scans say so.
    pub fn pin(&self, at: impl FnOnce() -> i64) -> Pin {
        let mut held = self.pins.held.lock();
        let at = at();
        *held.entry(at).or_default() += 1;
        Pin {
            pins: self.pins.clone(),
            at,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = self.pins.held.lock();
        if let Some(count) = held.get_mut(&self.at) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.at);
            }
        }
    }
}

/// Restoring.
impl Tree {
    /// Notes a row found in the backend. Rows must come in ascending order.
    pub fn restore(&mut self, at: RowKey, row: &RowHead<'_>) {
        match self.keys.get_mut(row.key) {
            // A second tombstone in a row is ignored, as etcd does.
            Some(history) if at.tombstone => {
                self.alive -= usize::from(history.delete(at.revision));
            }
            Some(history) => {
                self.alive += usize::from(history.put(at.revision).version == 1);
            }
            None if at.tombstone => {
                self.keys
                    .insert(row.key.into(), History::restored_tombstone(at.revision));
            }
            None => {
                let history = History::restored(at.revision, row.create, row.version);
                self.keys.insert(row.key.into(), history);
                self.alive += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index_of(keys: usize) -> Index {
        let index = Index::new(Tree::default());
        for n in 0..keys {
            index.put(&key(n), Revision::new(2 + n as i64, 0));
        }
        index
    }

    fn key(n: usize) -> Vec<u8> {
        format!("{n:06}").into_bytes()
    }

    fn keys_at(index: &Index, interval: KeyInterval<'_>, at: i64) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let seen = index.scan(interval, at, |key, _| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        });
        assert_eq!(seen, Ok(()));
        keys
    }

    #[test]
    fn scans_over_many_holds_see_each_key_once() {
        let count = 3 * SCAN_KEYS + 1;
        let index = index_of(count);
        for n in [count, 2 * SCAN_KEYS, SCAN_KEYS, 1, 0] {
            let (first, end) = (key(0), key(n));
            let keys = keys_at(&index, KeyInterval::Between(&first, &end), i64::MAX);
            assert_eq!(keys, (0..n).map(key).collect::<Vec<_>>());
        }
        assert_eq!(
            keys_at(&index, KeyInterval::From(b"\0"), i64::MAX).len(),
            count
        );
        assert_eq!(keys_at(&index, KeyInterval::From(b"\0"), 11).len(), 10);
        assert_eq!(
            keys_at(&index, KeyInterval::One(&key(5)), i64::MAX),
            [key(5)]
        );
        assert!(keys_at(&index, KeyInterval::Between(b"9", b"1"), i64::MAX).is_empty());
    }

    #[test]
    fn deletes_number_their_changes_in_key_order() {
        let count = 2 * SCAN_KEYS;
        let index = index_of(count);
        index.delete(KeyInterval::One(&key(1)), 5000, 0, |_, _| {});
        let mut seen = Vec::new();
        index.delete(KeyInterval::From(b"\0"), 6000, 3, |key, at| {
            seen.push((key.to_vec(), at))
        });
        assert_eq!(seen.len(), count - 1);
        assert!(
            seen.iter()
                .zip(3..)
                .all(|((_, at), sub)| *at == Revision::new(6000, sub))
        );
        assert!(seen.is_sorted());
        assert_eq!(index.alive(), 0);
        assert_eq!(
            keys_at(&index, KeyInterval::From(b"\0"), 5999).len(),
            count - 1
        );
        assert!(keys_at(&index, KeyInterval::From(b"\0"), 6000).is_empty());
    }

    fn compact_all(index: &Index, at: i64, limit: usize) -> Vec<RowKey> {
        let (mut dropped, mut resume) = (Vec::new(), None);
        loop {
            resume = index.compact(at, resume, limit, &mut dropped);
            if resume.is_none() {
                return dropped;
            }
        }
    }

    #[test]
    fn compaction_in_steps_takes_everything_once() {
        let count = SCAN_KEYS + 10;
        for limit in [1, 7, usize::MAX] {
            let index = index_of(count);
            for n in 0..count {
                index.put(&key(n), Revision::new(1000, n as u32));
            }
            index.delete(KeyInterval::One(&key(3)), 1001, 0, |_, _| {});
            assert!(index.raise_floor(1002));
            let mut dropped = compact_all(&index, 1002, limit);
            dropped.sort();
            dropped.dedup();
            assert_eq!(dropped.len(), count + 2, "limit {limit}");
            assert_eq!(index.len(), count - 1);
            assert_eq!(
                index.lookup(&key(4), 1002),
                Ok(Some(Revision::new(1000, 4)))
            );
        }
    }

    #[test]
    fn a_pin_holds_compaction_back_and_the_floor_refuses_reads_below() {
        let index = index_of(3);
        let pin = index.pin(|| 3);
        let other = index.pin(|| 3);
        assert!(index.raise_floor(3));
        assert!(!index.raise_floor(4));
        drop(pin);
        assert!(!index.raise_floor(4));
        drop(other);
        assert!(index.raise_floor(4));
        assert_eq!(index.lookup(&key(0), 3), Err(BelowFloor));
        assert_eq!(index.lookup(&key(0), 4), Ok(Some(Revision::new(2, 0))));
    }
}
