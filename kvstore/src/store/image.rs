//! A consistent state of the backend, as it is sent to a member that lags behind.
//!
//! Invariant: index, term, configuration, membership and rows all come from one view, so they belong together; the
//! index is that of the last commit, which never lies above what a crash keeps.

use std::{
    io::{self, Seek, Write},
    sync::Arc,
    time::Instant,
};

use transport_core::raftpb::{ConfState, Snapshot, SnapshotMetadata};

use super::conf_state;
use crate::{
    backend::{Bucket, View},
    error::ImageError,
    export,
    flush::{CONF_STATE, CONSISTENT_INDEX, TERM},
    membership::Membership,
    metrics::StoreMetrics,
    v2store,
};

/// Where in the log a backend stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    pub index: u64,
    pub term: u64,
    pub conf_state: Option<ConfState>,
}

impl Standing {
    /// Reads it from bucket `meta`. A backend nothing was applied to stands at 0.
    pub fn read(view: &dyn View) -> Result<Standing, ImageError> {
        let number = |name: &[u8]| -> Result<u64, ImageError> {
            let Some(row) = view.get(Bucket::Meta, name)? else {
                return Ok(0);
            };
            let bytes = <[u8; 8]>::try_from(&row[..]).map_err(|_| damaged(name, &row))?;
            Ok(u64::from_be_bytes(bytes))
        };
        let conf_state = match view.get(Bucket::Meta, CONF_STATE)? {
            Some(json) => Some(conf_state::decode(&json).map_err(|_| damaged(CONF_STATE, &json))?),
            None => None,
        };
        Ok(Standing {
            index: number(CONSISTENT_INDEX)?,
            term: number(TERM)?,
            conf_state,
        })
    }
}

fn damaged(name: &[u8], row: &[u8]) -> ImageError {
    ImageError::Damaged(format!(
        "meta/{} is {row:02x?}",
        String::from_utf8_lossy(name)
    ))
}

/// A state of the backend that can be written out while the store goes on.
pub struct Image {
    view: Arc<dyn View>,
    snapshot: Snapshot,
    metrics: Arc<StoreMetrics>,
}

impl Image {
    pub(crate) fn new(
        view: Arc<dyn View>,
        metrics: Arc<StoreMetrics>,
    ) -> Result<Image, ImageError> {
        let standing = Standing::read(&*view)?;
        if standing.index == 0 {
            return Err(ImageError::Empty);
        }
        let membership = Membership::load(&*view)?;
        metrics.snapshot_began();
        Ok(Image {
            snapshot: Snapshot {
                data: v2store::render(&membership).into(),
                metadata: Some(SnapshotMetadata {
                    conf_state: standing.conf_state,
                    index: standing.index,
                    term: standing.term,
                }),
            },
            view,
            metrics,
        })
    }

    /// The raft part: index, term and configuration, and as data the membership as v2store JSON, which members up
    /// to 3.7 need.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Index of the last entry it contains.
    pub fn index(&self) -> u64 {
        self.snapshot
            .metadata
            .as_ref()
            .map_or(0, |metadata| metadata.index)
    }

    /// Writes the database file in etcd's format and returns its length.
    pub fn write_bolt(&self, to: &mut (impl Write + Seek)) -> io::Result<u64> {
        let began = Instant::now();
        let written = export::write_bolt(&*self.view, to);
        self.metrics.snapshot_written(began.elapsed());
        written
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        self.metrics.snapshot_ended();
    }
}
