//! Messages from other members on their way into raft.
//!
//! The database of a snapshot is imported before its message is stepped, so that installing it later is a
//! rename. Depends on the node's handle. Invariant: a message raft drops by its rules is answered like one
//! it takes, as Go's node does.

use std::sync::{Arc, OnceLock};

use kvstore::Reader;
use raft_node::{Node, StepError};
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType},
};
use transport_http::{ProcessError, Raft, SnapshotStatus, Transport, Tried};

use super::{received::Received, replica::Answer};

/// The transport of this member.
pub type PeerTransport = Transport<Inbound>;

/// What the transport delivers to.
pub struct Inbound {
    /// Tells removed members.
    pub reader: Reader,
    /// The databases received.
    pub received: Arc<Received>,
    /// Set once the node runs; until then every message is refused.
    pub node: Arc<OnceLock<Node<Answer>>>,
}

impl Raft for Inbound {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        let Some(node) = self.node.get() else {
            return Err(ProcessError::Stopped);
        };
        if message.kind() == Some(MessageType::Snapshot) {
            self.import_database(&message, node.status().applied)
                .await?;
        }
        node.step(message).await.map_err(refused)
    }

    fn try_process(&self, message: Message) -> Tried {
        if message.kind() == Some(MessageType::Snapshot) {
            return Tried::Busy(message);
        }
        let Some(node) = self.node.get() else {
            return Tried::Done(Err(ProcessError::Stopped));
        };
        let mut message = Some(message);
        match (node.step_now(&mut message), message) {
            (Err(StepError::Full), Some(message)) => Tried::Busy(message),
            (outcome, _) => Tried::Done(outcome.map_err(refused)),
        }
    }

    fn is_id_removed(&self, id: MemberId) -> bool {
        self.reader.is_removed(id)
    }

    fn report_unreachable(&self, id: MemberId) {
        if let Some(node) = self.node.get() {
            node.report_unreachable(id);
        }
    }

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        if let Some(node) = self.node.get() {
            node.report_snapshot(id, status == SnapshotStatus::Finish);
        }
    }
}

fn refused(error: StepError) -> ProcessError {
    match error {
        StepError::Removed(id) => ProcessError::Removed(id),
        StepError::NotForUs(id) => ProcessError::NotForUs(id),
        StepError::Stopped => ProcessError::Stopped,
        other => ProcessError::Dropped(other.to_string()),
    }
}

impl Inbound {
    async fn import_database(&self, message: &Message, applied: u64) -> Result<(), ProcessError> {
        let snapshot = message.snapshot.clone().unwrap_or_default();
        let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        if index <= applied {
            // raft has no use for it, and answers the leader where this member stands.
            return Ok(());
        }
        let received = self.received.clone();
        let imported =
            tokio::task::spawn_blocking(move || received.import(&snapshot, applied)).await;
        match imported {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ProcessError::Dropped(error.to_string())),
            Err(error) => Err(ProcessError::Dropped(format!(
                "importing a database was interrupted: {error}"
            ))),
        }
    }
}
