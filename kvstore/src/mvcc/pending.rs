//! Rows that are not in the backend yet, and the pair (rows, backend view) that readers work on.
//!
//! The apply thread appends rows to chunks; a reader that holds a [`Pair`] sees every row appended so far in its
//! chunks, without a lock. When a batch is in the backend, the flush thread publishes a new pair: the view that
//! holds the batch, and the chunks without those it covers. Whoever holds the old pair keeps the old chunks alive.
//!
//! Invariant: for each revision up to the published one, every pair loaded after that publication holds its row,
//! in the view or in a chunk.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering::*},
};

use bytes::Bytes;
use parking_lot::RwLock;

use super::revision::{Revision, RowKey};
use crate::backend::View;

/// Rows of one chunk. A chunk is the unit in which flushed rows leave memory.
const CHUNK_ROWS: usize = 512;
/// A chunk takes no further row once it weighs this much.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// A row as a reader finds it.
#[derive(Clone, Debug)]
pub(crate) struct PendingRow {
    pub key: RowKey,
    pub value: Bytes,
}

/// An append-only run of rows: one thread appends, any number read.
struct Chunk {
    first: Revision,
    rows: Box<[OnceLock<PendingRow>]>,
    len: AtomicUsize,
    /// Set when the writer has left it for another.
    sealed: AtomicBool,
}

impl Chunk {
    fn new(first: Revision) -> Self {
        Chunk {
            first,
            rows: (0..CHUNK_ROWS).map(|_| OnceLock::new()).collect(),
            len: AtomicUsize::new(0),
            sealed: AtomicBool::new(false),
        }
    }

    fn rows(&self) -> impl Iterator<Item = &PendingRow> {
        self.rows[..self.len.load(Acquire)]
            .iter()
            .filter_map(OnceLock::get)
    }

    fn find(&self, revision: Revision) -> Option<&PendingRow> {
        let rows = &self.rows[..self.len.load(Acquire)];
        let at = rows
            .binary_search_by(|row| match row.get() {
                Some(row) => row.key.revision.cmp(&revision),
                None => std::cmp::Ordering::Greater,
            })
            .ok()?;
        rows[at].get()
    }

    fn is_covered(&self, flushed: i64) -> bool {
        self.sealed.load(Acquire)
            && self
                .rows()
                .last()
                .is_none_or(|row| row.key.revision.main <= flushed)
    }
}

/// A backend view together with the rows that are newer than it.
pub(crate) struct Pair {
    /// A consistent state of the backend.
    pub view: Arc<dyn View>,
    /// Every row up to this main revision is in the view.
    pub flushed: i64,
    chunks: Vec<Arc<Chunk>>,
}

impl Pair {
    /// The row at `revision`, if it is newer than the view.
    pub fn pending(&self, revision: Revision) -> Option<&PendingRow> {
        let at = self.chunks.partition_point(|chunk| chunk.first <= revision);
        self.chunks[at.checked_sub(1)?].find(revision)
    }

    /// The rows that are newer than the view, ascending, up to main revision `last`.
    pub fn pending_rows(&self, last: i64) -> impl Iterator<Item = &PendingRow> {
        let flushed = self.flushed;
        self.chunks
            .iter()
            .flat_map(|chunk| chunk.rows())
            .skip_while(move |row| row.key.revision.main <= flushed)
            .take_while(move |row| row.key.revision.main <= last)
    }
}

/// Where the present pair is published.
pub(crate) struct Pairs {
    current: RwLock<Arc<Pair>>,
}

impl Pairs {
    /// Begins with a view that holds every row up to `flushed`.
    pub fn new(view: Arc<dyn View>, flushed: i64) -> Self {
        Pairs {
            current: RwLock::new(Arc::new(Pair {
                view,
                flushed,
                chunks: Vec::new(),
            })),
        }
    }

    /// The present pair.
    pub fn load(&self) -> Arc<Pair> {
        self.current.read().clone()
    }

    /// Publishes a view that holds every row up to main revision `flushed`.
    pub fn flushed(&self, view: Arc<dyn View>, flushed: i64) {
        let mut current = self.current.write();
        let covered = |chunk: &&Arc<Chunk>| !chunk.is_covered(flushed);
        let next = Pair {
            view,
            flushed: current.flushed.max(flushed),
            chunks: current.chunks.iter().filter(covered).cloned().collect(),
        };
        *current = Arc::new(next);
    }

    fn add_chunk(&self, chunk: Arc<Chunk>) {
        let mut current = self.current.write();
        let mut chunks = Vec::with_capacity(current.chunks.len() + 1);
        chunks.extend(current.chunks.iter().cloned());
        chunks.push(chunk);
        let next = Pair {
            view: current.view.clone(),
            flushed: current.flushed,
            chunks,
        };
        *current = Arc::new(next);
    }
}

/// The writing end; owned by the apply thread.
#[derive(Default)]
pub(crate) struct Appender {
    chunk: Option<Arc<Chunk>>,
    len: usize,
    bytes: usize,
}

impl Appender {
    /// Appends a row; revisions must ascend.
    pub fn push(&mut self, pairs: &Pairs, key: RowKey, value: Bytes) {
        let full = self.len == CHUNK_ROWS || self.bytes >= CHUNK_BYTES_MAX;
        let chunk = match self.chunk.take().filter(|_| !full) {
            Some(chunk) => chunk,
            None => self.begin_chunk(pairs, key.revision),
        };
        self.bytes += value.len();
        let vacant = chunk.rows[self.len].set(PendingRow { key, value }).is_ok();
        debug_assert!(vacant, "one writer fills each slot once");
        self.len += 1;
        chunk.len.store(self.len, Release);
        if self.len == CHUNK_ROWS || self.bytes >= CHUNK_BYTES_MAX {
            chunk.sealed.store(true, Release);
        }
        self.chunk = Some(chunk);
    }

    fn begin_chunk(&mut self, pairs: &Pairs, first: Revision) -> Arc<Chunk> {
        let chunk = Arc::new(Chunk::new(first));
        pairs.add_chunk(chunk.clone());
        (self.len, self.bytes) = (0, 0);
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backend, memory::MemoryBackend};

    fn view() -> Arc<dyn View> {
        MemoryBackend::default().view().unwrap()
    }

    fn key(main: i64) -> RowKey {
        RowKey {
            revision: Revision::new(main, 0),
            tombstone: false,
        }
    }

    fn found(pair: &Pair, main: i64) -> bool {
        pair.pending(Revision::new(main, 0))
            .is_some_and(|row| row.key == key(main))
    }

    #[test]
    fn rows_leave_with_the_pair_whose_view_holds_them() {
        let pairs = Pairs::new(view(), 1);
        let mut appender = Appender::default();
        let last = 2 + 3 * CHUNK_ROWS as i64 + 7;
        for main in 2..=last {
            appender.push(&pairs, key(main), Bytes::from_static(b"row"));
        }
        let old = pairs.load();
        assert!((2..=last).all(|main| found(&old, main)));
        assert!(!found(&old, 1) && !found(&old, last + 1));
        // In the middle of the second chunk: only the first one is covered.
        let flushed = 2 + CHUNK_ROWS as i64 + 5;
        pairs.flushed(view(), flushed);
        let new = pairs.load();
        assert!(!found(&new, 2));
        assert!((flushed + 1..=last).all(|main| found(&new, main)));
        let rows: Vec<i64> = new
            .pending_rows(last - 1)
            .map(|row| row.key.revision.main)
            .collect();
        assert_eq!(rows, (flushed + 1..last).collect::<Vec<_>>());
        assert!(
            (2..=last).all(|main| found(&old, main)),
            "who holds the old pair keeps its rows"
        );
        // All of it: the chunk that is being filled stays for the rows to come.
        pairs.flushed(view(), last);
        appender.push(&pairs, key(last + 1), Bytes::new());
        let new = pairs.load();
        assert_eq!(new.pending_rows(i64::MAX).count(), 1);
        assert!(found(&new, last + 1));
        assert_eq!(new.chunks.len(), 1);
    }

    #[test]
    fn heavy_rows_fill_a_chunk() {
        let pairs = Pairs::new(view(), 1);
        let mut appender = Appender::default();
        for main in 2..6 {
            appender.push(&pairs, key(main), vec![0; CHUNK_BYTES_MAX].into());
        }
        assert_eq!(pairs.load().chunks.len(), 4);
        pairs.flushed(view(), 5);
        assert!(pairs.load().chunks.is_empty(), "and leave at once");
    }
}
