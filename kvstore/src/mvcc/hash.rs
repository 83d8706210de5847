//! HashKV: a checksum of the history up to a revision that every member computes alike, whatever its compaction
//! has physically taken so far; and Hash, a checksum of the whole backend.
//!
//! etcd: server/storage/mvcc/hash.go. Members compare HashKV and raise a corruption alarm on a difference, so an
//! answer is exact or it is an error.

use std::ops::{Bound, ControlFlow};

use parking_lot::Mutex;

use super::{
    keyspace::{FIRST_REVISION, Keyspace},
    revision::{Revision, RowKey},
    row::RowHead,
    view::ReadView,
};
use crate::{
    backend::{Bucket, View},
    error::ApplyError,
};

/// Hashes of past compactions that are kept.
const STORED_HASHES_MAX: usize = 10;

/// A hash and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValueHash {
    /// CRC-32C over the rows.
    pub hash: u32,
    /// Revision of the compaction the hash takes as done; −1 when there was none.
    pub compact_revision: i64,
    /// The last revision hashed.
    pub revision: i64,
}

/// Hashes taken by compactions, by ascending revision.
#[derive(Default)]
pub(crate) struct StoredHashes {
    hashes: Mutex<Vec<KeyValueHash>>,
}

impl StoredHashes {
    /// Keeps `hash`, and forgets the oldest when there are too many.
    pub fn store(&self, hash: KeyValueHash) {
        let mut hashes = self.hashes.lock();
        let at = hashes.partition_point(|stored| stored.revision <= hash.revision);
        hashes.insert(at, hash);
        if hashes.len() > STORED_HASHES_MAX {
            hashes.remove(0);
        }
    }

    fn at(&self, revision: i64) -> Option<KeyValueHash> {
        let hashes = self.hashes.lock();
        hashes
            .iter()
            .find(|hash| hash.revision == revision)
            .copied()
    }
}

/// The hash at `revision` (0: the present one), and the present revision.
pub(crate) fn hash_kv(
    keyspace: &Keyspace,
    revision: i64,
) -> Result<(KeyValueHash, i64), ApplyError> {
    if let Some(stored) = keyspace.hashes.at(revision).filter(|_| revision > 0) {
        return Ok((stored, keyspace.current()));
    }
    // Rows up to the compaction may have to be looked up as of the compaction itself.
    let view = keyspace.view(keyspace.compacted().max(FIRST_REVISION));
    if revision > 0 && revision < view.compacted {
        return Err(ApplyError::Compacted);
    }
    if revision > view.current {
        return Err(ApplyError::FutureRevision);
    }
    let revision = if revision == 0 {
        view.current
    } else {
        revision
    };
    let keeps_any = keeps_live(keyspace, revision)?;
    let hash = hash_rows(keyspace, &view, view.compacted, revision, keeps_any)?;
    Ok((hash, view.current))
}

/// The hash a compaction at `at` leaves behind, before it takes anything.
pub(crate) fn hash_of_compaction(
    keyspace: &Keyspace,
    previous: i64,
    at: i64,
) -> Result<KeyValueHash, ApplyError> {
    let view = keyspace.view(at);
    let keeps_any = keyspace.index.keeps_any(at)?;
    hash_rows(keyspace, &view, previous, at, keeps_any)
}

/// Whether any key exists at `revision`.
fn keeps_live(keyspace: &Keyspace, revision: i64) -> Result<bool, ApplyError> {
    let mut any = false;
    let everything = super::KeyInterval::From(b"");
    keyspace.index.scan(everything, revision, |_, _| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

/// Hashes the rows up to `revision`. Of the rows that the compaction at `compacted` covers only those count that a
/// compaction at `revision` would keep: others may or may not be gone. If such a compaction would keep nothing at
/// all, etcd skips nothing, and so hashes whatever the compaction has left; that is what it keeps, once it is done.
fn hash_rows(
    keyspace: &Keyspace,
    view: &ReadView<'_>,
    compacted: i64,
    revision: i64,
    keeps_any: bool,
) -> Result<KeyValueHash, ApplyError> {
    let kept_at = if keeps_any { revision } else { compacted };
    let mut hash = crc32c::crc32c(Bucket::Key.name().as_bytes());
    let mut add = |key: &[u8], value: &[u8]| -> Result<(), ApplyError> {
        let at = RowKey::parse(key).ok_or_else(|| damaged(key))?;
        if at.revision.main <= compacted {
            // Tombstones are never kept, but for one at the compaction itself, which older patch levels drop.
            if at.tombstone {
                return Ok(());
            }
            let row = RowHead::parse(value).ok_or_else(|| damaged(key))?;
            if keyspace.index.lookup(row.key, kept_at)? != Some(at.revision) {
                return Ok(());
            }
        }
        hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
        Ok(())
    };
    let end = Revision::new(revision.saturating_add(1).max(0), 0).row_key();
    let mut failed = None;
    view.pair().view.scan(
        Bucket::Key,
        (Bound::Unbounded, Bound::Excluded(&end[..])),
        &mut |key, value| match add(key, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        },
    )?;
    if let Some(error) = failed {
        return Err(error);
    }
    for row in view.pair().pending_rows(revision) {
        add(&row.key.to_vec(), &row.value)?;
    }
    Ok(KeyValueHash {
        hash,
        compact_revision: compacted,
        revision,
    })
}

fn damaged(key: &[u8]) -> ApplyError {
    ApplyError::Backend(format!("row {key:02x?} of bucket key is damaged"))
}

/// Rows of bucket `meta` that differ between members in the same state.
const LOCAL_META: [&[u8]; 3] = [b"term", b"consistent_index", b"storageVersion"];

/// CRC-32C over every bucket of a backend view.
pub(crate) fn hash_backend(view: &dyn View) -> Result<u32, ApplyError> {
    let mut hash = 0;
    for bucket in Bucket::ALL {
        hash = crc32c::crc32c_append(hash, bucket.name().as_bytes());
        view.scan(
            bucket,
            (Bound::Unbounded, Bound::Unbounded),
            &mut |key, value| {
                if bucket != Bucket::Meta || !LOCAL_META.contains(&key) {
                    hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, key), value);
                }
                ControlFlow::Continue(())
            },
        )?;
    }
    Ok(hash)
}
