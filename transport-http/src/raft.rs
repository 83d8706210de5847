//! The traits through which the transport meets its owner: raft's inbox, and where databases come from and go.
//!
//! Owned by this crate, implemented by whoever brings a raft. Depends on message types only. Invariant: nothing
//! here is called with a lock of the transport held, except the two `report_*` calls, which never block.

use std::{fmt, future::Future, io};

use tokio::sync::oneshot;
use transport_core::{
    MemberId,
    raftpb::{Message, encoded_len},
};

/// What the transport calls.
///
/// etcd: server/etcdserver/api/rafthttp/transport.go, `Raft`.
pub trait Raft: Send + Sync + 'static {
    /// Delivers one received message. Waits only as long as back-pressure demands; a message that is admitted and
    /// then ignored is `Ok`.
    fn process(&self, message: Message) -> impl Future<Output = Result<(), ProcessError>> + Send;

    /// Delivers a received message at once if that needs no waiting, or gives it back to come by
    /// [`process`](Raft::process). Called by the task that reads the peer's stream, and only when everything received
    /// from the peer before has been processed; must not block. Not for proposals. By default nothing is taken.
    fn try_process(&self, message: Message) -> Tried {
        Tried::Busy(message)
    }

    /// Whether the member was removed from the cluster; its streams are answered 410.
    fn is_id_removed(&self, id: MemberId) -> bool;

    /// Messages to the member were lost. Must not block.
    fn report_unreachable(&self, id: MemberId);

    /// How a snapshot to the member ended. Must not block.
    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus);
}

/// What became of a message that was to be processed without waiting.
#[derive(Debug)]
pub enum Tried {
    /// It was delivered, or refused for good.
    Done(Result<(), ProcessError>),
    /// It needs to wait.
    Busy(Message),
}

/// How sending a snapshot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
    /// The receiver has it and its raft accepted the message.
    Finish,
    /// It must be sent again.
    Failure,
}

/// Why a received message was not accepted. On a POST each of these is answered 500: a Go member that reads 403
/// takes itself for removed and stops.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// The sender was removed from the cluster.
    #[error("sender {0} was removed from the cluster")]
    Removed(MemberId),
    /// The message is addressed to another member.
    #[error("message is addressed to member {0}")]
    NotForUs(MemberId),
    /// Raft stops, or has stopped.
    #[error("raft is stopped")]
    Stopped,
    /// Refused for another reason.
    #[error("{0}")]
    Dropped(String),
}

/// Where a received database goes. Blocking I/O: called on blocking threads only, unless it says that it does not block.
pub trait SnapshotSink: Send + Sync + 'static {
    /// Begins to receive the database that belongs to `message` (a snapshot message with metadata).
    fn create(&self, message: &Message) -> io::Result<Box<dyn SnapshotWriter>>;

    /// Bytes that are free where the database goes; `None` if nobody knows. Asked before a database is received and
    /// every 16 MiB of it.
    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Whether it, or one of its writers, may wait for a disk. What keeps databases in memory says no, and is called
    /// without a thread in between.
    fn blocks(&self) -> bool {
        true
    }
}

/// Receives one database. Dropped without [`commit`](SnapshotWriter::commit), it removes what it wrote.
pub trait SnapshotWriter: Send {
    /// Takes the next bytes, all of them.
    fn write(&mut self, chunk: &[u8]) -> io::Result<()>;

    /// Makes the complete database durable and visible; the number of bytes written.
    fn commit(self: Box<Self>) -> io::Result<u64>;
}

/// The database a snapshot POST sends after its message. Blocking I/O: read on blocking threads only, unless it says that
/// it does not block.
pub trait SnapshotSource: Send + 'static {
    /// How many bytes it will yield, in all.
    fn len(&self) -> u64;

    /// Whether it will yield none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads some bytes; 0 at the end.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Whether a read may wait for a disk. A database in memory says no, and is read without a thread in between.
    fn blocks(&self) -> bool {
        true
    }
}

/// A snapshot on its way to a peer.
///
/// etcd: server/etcdserver/api/snap/message.go, `Message`.
pub struct OutgoingSnapshot {
    /// The snapshot message; `to` names the peer.
    pub message: Message,
    /// The database.
    pub source: Box<dyn SnapshotSource>,
    /// Told once whether the receiver accepted it.
    pub done: Option<oneshot::Sender<bool>>,
}

impl OutgoingSnapshot {
    /// Bytes of message and database, as the sent-bytes metric counts them.
    pub fn total_bytes(&self) -> u64 {
        encoded_len(&self.message) as u64 + self.source.len()
    }

    pub(crate) fn finish(&mut self, accepted: bool) {
        if let Some(done) = self.done.take() {
            // Whoever asked may have gone.
            let _ = done.send(accepted);
        }
    }
}

impl fmt::Debug for OutgoingSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingSnapshot")
            .field("to", &MemberId(self.message.to))
            .field("database_bytes", &self.source.len())
            .finish_non_exhaustive()
    }
}
