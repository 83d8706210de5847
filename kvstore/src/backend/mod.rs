//! Where the rows of the replicated state live: buckets of sorted rows, atomic batches, consistent views.
//!
//! Buckets are named as in etcd's database file and hold the same keys and values, byte for byte, so that the file
//! other members exchange is a copy of rows and nothing else. [`redb`] is the engine; [`memory`] is a stand-in that
//! forgets everything. Nothing here knows what a row means.
//!
//! Invariant: [`Backend::commit`] is atomic and has been synced when it returns; a [`View`] never changes, and is
//! what some commit left behind.

use std::{
    ops::{Bound, ControlFlow},
    sync::Arc,
};

use bytes::Bytes;

pub mod memory;
pub mod redb;

/// A bucket of the database file, ordered by name as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bucket {
    /// Raised alarms.
    Alarm,
    /// Whether auth is on, and its revision.
    Auth,
    /// Roles.
    AuthRoles,
    /// Users.
    AuthUsers,
    /// Cluster version and downgrade.
    Cluster,
    /// The keys' revisions.
    Key,
    /// Leases.
    Lease,
    /// Members.
    Members,
    /// Ids of members that were removed.
    MembersRemoved,
    /// Consistent index, term, raft configuration, compactions, schema version.
    Meta,
}

impl Bucket {
    /// Every bucket, in name order.
    pub const ALL: [Bucket; 10] = [
        Bucket::Alarm,
        Bucket::Auth,
        Bucket::AuthRoles,
        Bucket::AuthUsers,
        Bucket::Cluster,
        Bucket::Key,
        Bucket::Lease,
        Bucket::Members,
        Bucket::MembersRemoved,
        Bucket::Meta,
    ];

    /// The name in the file (etcd: server/storage/schema/bucket.go).
    pub const fn name(self) -> &'static str {
        match self {
            Bucket::Alarm => "alarm",
            Bucket::Auth => "auth",
            Bucket::AuthRoles => "authRoles",
            Bucket::AuthUsers => "authUsers",
            Bucket::Cluster => "cluster",
            Bucket::Key => "key",
            Bucket::Lease => "lease",
            Bucket::Members => "members",
            Bucket::MembersRemoved => "members_removed",
            Bucket::Meta => "meta",
        }
    }

    /// The bucket of that name.
    pub fn from_name(name: &[u8]) -> Option<Bucket> {
        Self::ALL
            .into_iter()
            .find(|bucket| bucket.name().as_bytes() == name)
    }
}

/// One change of one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a row, replacing the one with that key.
    Put {
        /// Where.
        bucket: Bucket,
        /// The row's key.
        key: Bytes,
        /// The row's value.
        value: Bytes,
    },
    /// Removes a row, if it is there.
    Delete {
        /// Where.
        bucket: Bucket,
        /// The row's key.
        key: Bytes,
    },
}

/// Changes that are committed together, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes; of two for one row the later wins.
    pub ops: Vec<Op>,
}

impl Batch {
    /// Writes a row.
    pub fn put(&mut self, bucket: Bucket, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let (key, value) = (key.into(), value.into());
        self.ops.push(Op::Put { bucket, key, value });
    }

    /// Removes a row.
    pub fn delete(&mut self, bucket: Bucket, key: impl Into<Bytes>) {
        let key = key.into();
        self.ops.push(Op::Delete { bucket, key });
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of the keys and values.
    pub fn bytes(&self) -> usize {
        let bytes = |op: &Op| match op {
            Op::Put { key, value, .. } => key.len() + value.len(),
            Op::Delete { key, .. } => key.len(),
        };
        self.ops.iter().map(bytes).sum()
    }
}

/// Why a backend did not do what it was asked. After a failed commit nothing can be said about what is on the disk;
/// the backend must be opened anew.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Another process has the file open.
    #[error("the file is in use by another process")]
    Locked,
    /// The file does not hold what was written to it.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The engine failed otherwise.
    #[error("{0}")]
    Other(String),
}

/// What a scan does with each row: key and value.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// A store of rows with one writer at a time and any number of readers.
pub trait Backend: Send + Sync + 'static {
    /// Carries out the changes, all of them or none, and has them on the disk when it returns.
    fn commit(&self, batch: &Batch) -> Result<(), BackendError>;

    /// The state after the last commit. Costs no copy of any row; rows it holds stay on the disk while it lives, and
    /// so does the backend: a read that has begun ends well, and a file is released with the last view of it.
    fn view(&self) -> Result<Arc<dyn View>, BackendError>;

    /// Bytes a database file of etcd's would have: pages in use and pages freed, which such a file keeps.
    fn size(&self) -> u64;

    /// Bytes of it that hold rows.
    fn size_in_use(&self) -> u64;
}

/// A consistent state of a backend.
pub trait View: Send + Sync {
    /// The value of a row.
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError>;

    /// Visits the rows of a range in ascending order until told to stop.
    fn scan(
        &self,
        bucket: Bucket,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError>;
}

/// Every row of a bucket.
pub const WHOLE: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

/// Whether no key can be in a range; sorted maps refuse such ranges, or panic.
fn is_empty_range(range: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    use Bound::{Excluded, Included, Unbounded};
    match range {
        (Unbounded, _) | (_, Unbounded) => false,
        (Included(from), Included(to)) => from > to,
        (Included(from) | Excluded(from), Excluded(to)) | (Excluded(from), Included(to)) => {
            from >= to
        }
    }
}

/// Counts what rows take, in the measure of etcd's database file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    /// Bytes of rows, each with its place in a page.
    rows: u64,
    /// The most that `in_use` ever was: etcd's file does not shrink by itself.
    peak: u64,
}

impl Usage {
    /// A page of the file.
    const PAGE: u64 = 4096;
    /// Two meta pages, the root leaf, and a page to grow into: a file without rows.
    const EMPTY: u64 = 4 * Self::PAGE;
    /// Leaf element header beside key and value.
    const ROW: u64 = 16;

    fn add(&mut self, key: usize, value: usize) {
        self.rows = self.rows.saturating_add(Self::ROW + (key + value) as u64);
    }

    fn remove(&mut self, key: usize, value: usize) {
        self.rows = self.rows.saturating_sub(Self::ROW + (key + value) as u64);
    }

    fn settle(&mut self) {
        self.peak = self.peak.max(self.in_use());
    }

    /// etcd fills pages of ascending keys to nine tenths (server/storage/backend/batch_tx.go, `FillPercent`).
    fn in_use(&self) -> u64 {
        Self::EMPTY + (self.rows / 9 * 10).next_multiple_of(Self::PAGE)
    }

    fn size(&self) -> u64 {
        self.peak.max(Self::EMPTY)
    }

    fn to_row(self) -> [u8; 16] {
        (u128::from(self.rows) << 64 | u128::from(self.peak)).to_be_bytes()
    }

    fn from_row(row: &[u8]) -> Option<Usage> {
        let both = u128::from_be_bytes(row.try_into().ok()?);
        Some(Usage {
            rows: (both >> 64) as u64,
            peak: both as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{memory::MemoryBackend, redb::RedbBackend, *};

    #[test]
    fn buckets_are_in_name_order() {
        assert!(Bucket::ALL.is_sorted_by_key(|bucket| bucket.name()));
        assert!(Bucket::ALL.is_sorted());
        for bucket in Bucket::ALL {
            assert_eq!(Bucket::from_name(bucket.name().as_bytes()), Some(bucket));
        }
        assert_eq!(Bucket::from_name(b"keys"), None);
    }

    type Rows = Vec<(Vec<u8>, Vec<u8>)>;

    fn rows(view: &dyn View, bucket: Bucket, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Rows {
        let mut rows = Vec::new();
        view.scan(bucket, range, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        rows
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        let key = || proptest::collection::vec(0u8..4, 0..3);
        prop_oneof![
            Just(Bound::Unbounded),
            key().prop_map(Bound::Included),
            key().prop_map(Bound::Excluded),
        ]
    }

    fn ops() -> impl Strategy<Value = Vec<Vec<Op>>> {
        let bucket = prop_oneof![Just(Bucket::Key), Just(Bucket::Meta)];
        let key = proptest::collection::vec(0u8..4, 0..3).prop_map(Bytes::from);
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        let op = (bucket, key, value).prop_map(|(bucket, key, value)| match value {
            Some(value) => Op::Put {
                bucket,
                key,
                value: value.into(),
            },
            None => Op::Delete { bucket, key },
        });
        proptest::collection::vec(proptest::collection::vec(op, 0..12), 1..5)
    }

    fn slices(bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let slice = |bound| Bound::map(bound, |key: &Vec<u8>| &key[..]);
        (slice(bounds.0.as_ref()), slice(bounds.1.as_ref()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Both engines hold the same rows after the same batches, whatever the range asked for, and old views
        /// keep what they saw.
        #[test]
        fn engines_agree(batches in ops(), range in (bound(), bound())) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let disk = RedbBackend::open(&path, 1 << 20).unwrap();
            let memory = MemoryBackend::default();
            let mut seen = Vec::new();
            for ops in batches {
                let batch = Batch { ops };
                disk.commit(&batch).unwrap();
                memory.commit(&batch).unwrap();
                let expected = [Bucket::Key, Bucket::Meta]
                    .map(|bucket| rows(&*memory.view().unwrap(), bucket, slices(&range)));
                seen.push((disk.view().unwrap(), expected));
                prop_assert_eq!(disk.size_in_use(), memory.size_in_use());
                prop_assert_eq!(disk.size(), memory.size());
                prop_assert!(disk.size() >= disk.size_in_use());
            }
            for (view, expected) in &seen {
                for (bucket, expected) in [Bucket::Key, Bucket::Meta].iter().zip(expected) {
                    prop_assert_eq!(&rows(&**view, *bucket, slices(&range)), expected);
                }
            }
            let sizes = (disk.size(), disk.size_in_use());
            seen.clear();
            drop(disk);
            let disk = RedbBackend::open(&path, 1 << 20).unwrap();
            prop_assert_eq!((disk.size(), disk.size_in_use()), sizes);
            let (disk, memory) = (disk.view().unwrap(), memory.view().unwrap());
            for bucket in [Bucket::Key, Bucket::Meta] {
                let expected = rows(&*memory, bucket, WHOLE);
                prop_assert_eq!(&rows(&*disk, bucket, WHOLE), &expected);
                for (key, value) in expected {
                    prop_assert_eq!(disk.get(bucket, &key).unwrap(), Some(value));
                }
            }
        }
    }

    #[test]
    fn a_scan_stops_when_told() {
        let memory = MemoryBackend::default();
        let mut batch = Batch::default();
        for key in 0..10u8 {
            batch.put(Bucket::Key, vec![key], Vec::new());
        }
        memory.commit(&batch).unwrap();
        let mut seen = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            seen += 1;
            if seen == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        memory
            .view()
            .unwrap()
            .scan(Bucket::Key, WHOLE, &mut visit)
            .unwrap();
        assert_eq!(seen, 3);
    }

    #[test]
    fn size_in_use_falls_and_size_does_not() {
        let memory = MemoryBackend::default();
        let empty = memory.size();
        let (mut fill, mut clear) = (Batch::default(), Batch::default());
        for key in 0..1000u32 {
            fill.put(Bucket::Key, key.to_be_bytes().to_vec(), vec![0; 100]);
            clear.delete(Bucket::Key, key.to_be_bytes().to_vec());
        }
        memory.commit(&fill).unwrap();
        let full = memory.size();
        // 120 bytes a row in pages nine tenths full.
        assert!((120_000..160_000).contains(&full), "{full}");
        memory.commit(&clear).unwrap();
        assert_eq!((memory.size(), memory.size_in_use()), (full, empty));
    }
}
