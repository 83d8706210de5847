//! Reading at one revision: index, pending rows, cache and backend view put together.
//!
//! Invariant: what a view returns for a revision does not depend on what is written, flushed or compacted after the
//! view was made; if it cannot be answered any more, the answer is `Compacted`, never a part of it.

use std::{ops::ControlFlow, sync::Arc};

use bytes::Bytes;

use super::{
    index::{BelowFloor, Pin},
    interval::KeyInterval,
    keyspace::Keyspace,
    pending::Pair,
    revision::Revision,
    row,
};
use crate::{backend::Bucket, error::ApplyError, pb::mvccpb::KeyValue};

impl From<BelowFloor> for ApplyError {
    fn from(_: BelowFloor) -> Self {
        ApplyError::Compacted
    }
}

/// The keys as they are at `current`, and as they were at any revision from `compacted` on.
pub(crate) struct ReadView<'k> {
    keyspace: &'k Keyspace,
    pair: Arc<Pair>,
    /// The newest revision that can be read.
    pub current: i64,
    /// The oldest revision that can be read.
    pub compacted: i64,
    _pin: Option<Pin>,
}

/// Reads of more rows than this do not leave them in the cache: they would push out what is hot.
const CACHED_READ_ROWS: usize = 64;

impl<'k> ReadView<'k> {
    /// A view of `keyspace`. The pair must have been loaded after `current` was known.
    pub fn new(keyspace: &'k Keyspace, pair: Arc<Pair>, current: i64, compacted: i64) -> Self {
        ReadView {
            keyspace,
            pair,
            current,
            compacted,
            _pin: None,
        }
    }

    /// The view holding on to a pin.
    pub fn pinned(mut self, pin: Pin) -> Self {
        self._pin = Some(pin);
        self
    }

    /// The pair it reads from.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// The revision a request that asks for `revision` reads at.
    pub fn resolve(&self, revision: i64) -> Result<i64, ApplyError> {
        let at = if revision <= 0 {
            self.current
        } else {
            revision
        };
        if at > self.current {
            return Err(ApplyError::FutureRevision);
        }
        if at < self.compacted {
            return Err(ApplyError::Compacted);
        }
        Ok(at)
    }

    /// The record of `key` at `at`.
    pub fn get(&self, key: &[u8], at: i64) -> Result<Option<KeyValue>, ApplyError> {
        match self.keyspace.index.lookup(key, at)? {
            Some(revision) => self.fetch(revision, true).map(Some),
            None => Ok(None),
        }
    }

    /// The records of `interval` at `at`, in key order.
    pub fn collect(&self, interval: KeyInterval<'_>, at: i64) -> Result<Vec<KeyValue>, ApplyError> {
        let (revisions, _) = self.revisions(interval, at, usize::MAX)?;
        self.fetch_all(&revisions)
    }

    /// The first `limit` puts that make up `interval` at `at`, in key order, and how many there are in all.
    pub fn revisions(
        &self,
        interval: KeyInterval<'_>,
        at: i64,
        limit: usize,
    ) -> Result<(Vec<Revision>, usize), ApplyError> {
        if let KeyInterval::One(key) = interval {
            let found = self.keyspace.index.lookup(key, at)?;
            let count = usize::from(found.is_some());
            return Ok((found.into_iter().take(limit).collect(), count));
        }
        let (mut revisions, mut count) = (Vec::new(), 0);
        self.keyspace.index.scan(interval, at, |_, revision| {
            if count < limit {
                revisions.push(revision);
            }
            count += 1;
            ControlFlow::Continue(())
        })?;
        Ok((revisions, count))
    }

    /// The records of these puts.
    pub fn fetch_all(&self, revisions: &[Revision]) -> Result<Vec<KeyValue>, ApplyError> {
        let cached = revisions.len() <= CACHED_READ_ROWS;
        revisions
            .iter()
            .map(|revision| self.fetch(*revision, cached))
            .collect()
    }

    fn fetch(&self, revision: Revision, cached: bool) -> Result<KeyValue, ApplyError> {
        let value = self.row(revision, cached)?;
        row::decode(value)
            .map_err(|error| ApplyError::Backend(format!("row {revision} is damaged: {error}")))
    }

    fn row(&self, revision: Revision, cached: bool) -> Result<Bytes, ApplyError> {
        if revision.main > self.pair.flushed
            && let Some(row) = self.pair.pending(revision)
        {
            return Ok(row.value.clone());
        }
        if let Some(value) = self.keyspace.cache.get(revision) {
            return Ok(value);
        }
        let found = self.pair.view.get(Bucket::Key, &revision.row_key())?;
        let value = Bytes::from(found.ok_or_else(|| {
            ApplyError::Backend(format!(
                "row {revision} of the index is in neither table nor backend"
            ))
        })?);
        if cached {
            self.keyspace.cache.insert(revision, value.clone());
        }
        Ok(value)
    }
}
