//! What the apply thread, readers, the flush thread and the compaction thread share of the keys.
//!
//! Invariant: `current` rises only after every row up to it can be found through [`Pairs::load`]; `compacted` rises
//! only after `current` is at least as high; the floor of the index rises only after `compacted` does.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::*},
};

use super::{
    cache::RowCache,
    hash::StoredHashes,
    index::{Index, NO_FLOOR, Tree},
    pending::Pairs,
    view::ReadView,
};
use crate::backend::View;

/// Revision of a store nothing was ever written to.
pub(crate) const FIRST_REVISION: i64 = 1;
/// Compact revision of a store that was never compacted.
pub(crate) const NEVER_COMPACTED: i64 = -1;

/// The shared part of the keys.
pub(crate) struct Keyspace {
    pub index: Index,
    pub pairs: Pairs,
    pub cache: RowCache,
    pub hashes: StoredHashes,
    current: AtomicI64,
    compacted: AtomicI64,
    finished: AtomicI64,
}

/// What restoring finds.
pub(crate) struct Restored {
    pub tree: Tree,
    pub current: i64,
    pub compacted: i64,
    pub finished: i64,
}

impl Keyspace {
    /// The keys that `restored` and `view` hold.
    pub fn new(restored: Restored, view: Arc<dyn View>, cache_bytes: usize) -> Self {
        Keyspace {
            index: Index::new(restored.tree),
            pairs: Pairs::new(view, restored.current),
            cache: RowCache::new(cache_bytes),
            hashes: StoredHashes::default(),
            current: AtomicI64::new(restored.current),
            compacted: AtomicI64::new(restored.compacted),
            finished: AtomicI64::new(restored.finished),
        }
    }

    /// The published revision.
    pub fn current(&self) -> i64 {
        self.current.load(Acquire)
    }

    /// The published revision of the last compaction.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Acquire)
    }

    /// The last compaction whose rows are physically gone.
    pub fn finished(&self) -> i64 {
        self.finished.load(Acquire)
    }

    /// Publishes to readers what apply has done.
    pub fn publish(&self, current: i64, compacted: i64) {
        // In this order, and read in the other: a reader that sees the compaction sees a revision it can read at.
        self.current.store(current, Release);
        self.compacted.store(compacted, Release);
    }

    /// Notes that a compaction is physically done.
    pub fn finish(&self, compacted: i64) {
        self.finished.fetch_max(compacted, AcqRel);
    }

    /// What readers see at this moment, with compaction held back from `revision` (≤ 0: the present one) for as
    /// long as the view lives. One that is compacted already holds nothing back.
    pub fn view(&self, revision: i64) -> ReadView<'_> {
        self.view_above(revision, || self.compacted())
    }

    /// As [`Self::view`]; `compacted` looks at the revision of the last compaction.
    fn view_above(&self, revision: i64, mut compacted: impl FnMut() -> i64) -> ReadView<'_> {
        loop {
            let compacted = compacted();
            let mut current = 0;
            let pin = self.index.pin(|| {
                current = self.current();
                if revision > 0 {
                    current.min(revision)
                } else {
                    current
                }
            });
            let view = ReadView::new(self, self.pairs.load(), current, compacted).pinned(pin);
            // A compaction that came in between may have taken rows which one at `compacted` leaves. None begins
            // before it is published, so that the next look sees it.
            if self.index.floor() <= compacted.max(NO_FLOOR) {
                return view;
            }
        }
    }

    /// As [`Self::view`] without holding compaction back: good for one lookup, which may find itself below the
    /// floor.
    pub fn glance(&self) -> ReadView<'_> {
        let compacted = self.compacted();
        let current = self.current();
        ReadView::new(self, self.pairs.load(), current, compacted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Backend, memory::MemoryBackend},
        mvcc::revision::Revision,
    };

    #[test]
    fn a_view_knows_of_every_compaction_that_has_begun_before_it_is_pinned() {
        let restored = Restored {
            tree: Tree::default(),
            current: FIRST_REVISION,
            compacted: NEVER_COMPACTED,
            finished: NEVER_COMPACTED,
        };
        let backend = MemoryBackend::default();
        let keyspace = Keyspace::new(restored, backend.view().unwrap(), 0);
        for main in 2..=20 {
            keyspace.index.put(b"k", Revision::new(main, 0));
        }
        keyspace.publish(20, 5);
        assert!(keyspace.index.raise_floor(5));
        let mut looks = 0;
        let view = keyspace.view_above(0, || {
            looks += 1;
            let seen = keyspace.compacted();
            if looks == 1 {
                keyspace.publish(20, 10);
                assert!(keyspace.index.raise_floor(10));
            }
            seen
        });
        assert_eq!((view.compacted, looks), (10, 2));
    }
}
