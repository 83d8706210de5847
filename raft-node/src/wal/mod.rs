//! The write-ahead log, in etcd's own format, so that etcd's tools and members can read it and we theirs.
//!
//! A directory of segments `%016x-%016x.wal` (sequence, index of the first entry to come). [`Wal`]
//! appends and syncs; [`Wal::open`] replays and repairs; [`snapshots`] and [`verify`] only read.
//! Depends on [`crate::disk`] and nothing else of this crate: no threads of raft, no clock but the one
//! that times an fsync. Invariants: what [`Wal::sync`] returned `Ok` for is found by every later
//! [`Wal::open`]; a failed write or sync is never retried, the log refuses further work instead; only the
//! last segment may end in a torn write. etcd: server/storage/wal.

use std::{io, path::PathBuf};

use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfState, Entry, HardState},
};

mod frame;
mod metrics;
mod open;
mod prepare;
mod replay;
mod segment;
mod writer;

pub use metrics::WalMetrics;
pub use replay::{exists, snapshots, verify};
pub use writer::Wal;

/// etcd's segment size: 64 MB.
pub const SEGMENT_BYTES: u64 = 64 * 1000 * 1000;

/// etcd's `--max-wals`.
pub const SEGMENTS_MAX: usize = 5;

/// Whose log this is; at the head of every segment (etcd: etcdserverpb.Metadata).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The member.
    pub node_id: MemberId,
    /// Its cluster.
    pub cluster_id: ClusterId,
}

/// The record that says a snapshot was taken or received (etcd: walpb.Snapshot).
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct WalSnapshot {
    /// Last entry the snapshot contains.
    #[prost(uint64, tag = "1")]
    pub index: u64,
    /// Term of that entry.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// Configuration at `index`; required when `index` is above 0, absent in logs of etcd 3.4.
    #[prost(message, optional, tag = "3")]
    pub conf_state: Option<ConfState>,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Size to which segments are prepared, in bytes. A batch larger than this makes a larger segment.
    pub segment_bytes: u64,
    /// Released segments go, oldest first, while there are more segments than this; 0 keeps all.
    pub segments_max: usize,
    /// Where the next segment is prepared.
    pub prepare: Prepare,
    /// Metric handles.
    pub metrics: WalMetrics,
}

impl Default for WalOptions {
    fn default() -> Self {
        WalOptions {
            segment_bytes: SEGMENT_BYTES,
            segments_max: SEGMENTS_MAX,
            prepare: Prepare::Background,
            metrics: WalMetrics::default(),
        }
    }
}

/// Where segments are created ahead of need, trimmed and removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepare {
    /// On a thread of its own, in paced steps.
    Background,
    /// In the call that needs the segment: every operation happens in a fixed order, for tests.
    Inline,
}

/// What [`Wal::open`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Whose log it is.
    pub metadata: Metadata,
    /// The last hard state; zero when none was written.
    pub hard_state: HardState,
    /// Entries after the start snapshot, contiguous. Those above `hard_state.commit` may yet be replaced.
    pub entries: Vec<Entry>,
    /// Snapshot records in the segments read, in the order written.
    pub snapshots: Vec<WalSnapshot>,
    /// The torn write that was cut off, if there was one.
    pub repaired: Option<Repair>,
}

/// A torn write at the end of the last segment, cut off by [`Wal::open`]. None of it was ever acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The segment.
    pub file: PathBuf,
    /// Where its valid records end, in bytes.
    pub offset: u64,
    /// What was wrong there.
    pub reason: &'static str,
}

/// Why the log cannot be created, opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The file system failed.
    #[error("wal: {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// [`Wal::create`] where there is a log already, or something else that is not its to remove.
    #[error("wal: {} is not empty", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
    },
    /// No segment from which the start snapshot could be reached.
    #[error("wal: no segment in {} reaches back to index {index}", dir.display())]
    SegmentNotFound {
        /// The directory.
        dir: PathBuf,
        /// Index of the start snapshot.
        index: u64,
    },
    /// A segment between two others is missing.
    #[error("wal: the segment after {} is missing", file.display())]
    SegmentMissing {
        /// The last one before the hole.
        file: PathBuf,
    },
    /// Another process, or another handle in this one, has the log open.
    #[error("wal: {} is locked: another process uses this data directory", file.display())]
    Locked {
        /// The segment.
        file: PathBuf,
    },
    /// Content that no crash explains. Nothing was changed.
    #[error("wal: {} is corrupt at offset {offset}: {reason}", file.display())]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Of the frame, in bytes.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The start snapshot has no record in the log.
    #[error("wal: no record of the snapshot at index {index}, term {term}")]
    SnapshotNotFound {
        /// Asked for.
        index: u64,
        /// Asked for.
        term: u64,
    },
    /// The log records the start snapshot's index with another term.
    #[error("wal: the snapshot at index {index} has term {found} in the log, not {term}")]
    SnapshotMismatch {
        /// Asked for.
        index: u64,
        /// Asked for.
        term: u64,
        /// Recorded.
        found: u64,
    },
    /// What was to be written would make the log unreadable. Nothing was written.
    #[error("wal: refused to write: {0}")]
    Refused(String),
    /// An earlier write or sync failed; what is on disk is unknown until the log is opened again.
    #[error("wal: an earlier write failed; the log must be reopened")]
    Failed,
}

impl WalError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> WalError {
        let path = path.into();
        move |source| WalError::Io {
            action,
            path,
            source,
        }
    }
}
