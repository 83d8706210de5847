//! What the transport's tasks tell its owner, and what it may take of them at once.
//!
//! The part of [`Raft`] that is called without awaiting, as a trait object, so that only the tasks that deliver
//! messages are generic. Invariant: none of these blocks.

use std::sync::Arc;

use tokio::sync::watch;
use transport_core::{MemberId, raftpb::Message};

use crate::{
    error::CriticalError,
    raft::{Raft, SnapshotStatus, Tried},
};

pub(crate) trait Reports: Send + Sync {
    fn try_process(&self, message: Message) -> Tried;
    fn report_unreachable(&self, id: MemberId);
    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus);
    fn critical(&self, error: CriticalError);
}

/// Raft, and the first critical error.
pub(crate) struct Owner<R> {
    pub(crate) raft: Arc<R>,
    pub(crate) critical: watch::Sender<Option<CriticalError>>,
}

impl<R: Raft> Reports for Owner<R> {
    fn try_process(&self, message: Message) -> Tried {
        self.raft.try_process(message)
    }

    fn report_unreachable(&self, id: MemberId) {
        self.raft.report_unreachable(id);
    }

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        self.raft.report_snapshot(id, status);
    }

    fn critical(&self, error: CriticalError) {
        self.critical.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                tracing::error!(error = %error, "the local member must stop");
                *first = Some(error);
            }
            is_first
        });
    }
}
