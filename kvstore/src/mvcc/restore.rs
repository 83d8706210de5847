//! Building the index from a backend, and the revisions the store stands at.
//!
//! etcd: server/storage/mvcc/kvstore.go, `restore`.

use std::ops::{Bound, ControlFlow};

use super::{
    index::Tree,
    keyspace::{FIRST_REVISION, NEVER_COMPACTED, Restored},
    revision::{Revision, RowKey},
    row::RowHead,
};
use crate::{
    backend::{BackendError, Bucket, View},
    lease::Leases,
};

/// Key of the row that says which compaction has been decided.
pub(crate) const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
/// Key of the row that says which compaction is physically done.
pub(crate) const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";

/// What went wrong while restoring.
#[derive(Debug)]
pub(crate) enum RestoreError {
    Backend(BackendError),
    Damaged { bucket: Bucket, reason: String },
}

impl From<BackendError> for RestoreError {
    fn from(error: BackendError) -> Self {
        RestoreError::Backend(error)
    }
}

/// The value of a compaction row.
pub(crate) fn compact_row(at: i64) -> Vec<u8> {
    Revision::new(at, 0).row_key().to_vec()
}

/// Reads every row of bucket `key` and attaches the keys to their leases.
pub(crate) fn restore(view: &dyn View, leases: &mut Leases) -> Result<Restored, RestoreError> {
    let scheduled = compact_revision(view, SCHEDULED_COMPACT)?;
    let finished = compact_revision(view, FINISHED_COMPACT)?;
    let compacted = scheduled.max(finished).unwrap_or(NEVER_COMPACTED);
    let mut tree = Tree::default();
    let mut last = FIRST_REVISION;
    let mut damaged = None;
    view.scan(
        Bucket::Key,
        (Bound::Unbounded, Bound::Unbounded),
        &mut |key, value| {
            let (Some(at), Some(row)) = (RowKey::parse(key), RowHead::parse(value)) else {
                damaged = Some(format!("key {key:02x?}"));
                return ControlFlow::Break(());
            };
            last = last.max(at.revision.main);
            tree.restore(at, &row);
            attach(leases, row.key, if at.tombstone { 0 } else { row.lease });
            ControlFlow::Continue(())
        },
    )?;
    if let Some(reason) = damaged {
        return Err(RestoreError::Damaged {
            bucket: Bucket::Key,
            reason,
        });
    }
    Ok(Restored {
        tree,
        // The rows of the newest revisions may all be compacted away; the revision still happened.
        current: last.max(compacted),
        compacted,
        finished: finished.unwrap_or(NEVER_COMPACTED),
    })
}

/// Whether the rows that tell of compactions can be read.
pub(crate) fn check_compactions(view: &dyn View) -> Result<(), RestoreError> {
    compact_revision(view, SCHEDULED_COMPACT)?;
    compact_revision(view, FINISHED_COMPACT)?;
    Ok(())
}

fn attach(leases: &mut Leases, key: &[u8], lease: i64) {
    let old = leases.lease_of(key);
    if old == lease {
        return;
    }
    if old != 0 {
        leases.detach(old, key);
    }
    // A lease whose row is gone does not come back through a key; the key stays.
    if lease != 0 && leases.exists(lease) {
        leases.attach(lease, bytes::Bytes::copy_from_slice(key));
    }
}

fn compact_revision(view: &dyn View, name: &[u8]) -> Result<Option<i64>, RestoreError> {
    let Some(row) = view.get(Bucket::Meta, name)? else {
        return Ok(None);
    };
    match RowKey::parse(&row) {
        Some(key) => Ok(Some(key.revision.main)),
        None => Err(RestoreError::Damaged {
            bucket: Bucket::Meta,
            reason: format!("{} is {row:02x?}", String::from_utf8_lossy(name)),
        }),
    }
}
