//! raft's messages on their way out: ordinary ones to the transport, snapshots with their database.
//!
//! A database in etcd's format is written to an unnamed file first, because its length and its first pages
//! are known only when it is complete. Depends on the transport's handle. Invariant: raft is told exactly
//! once how each snapshot ended.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use kvstore::{Image, Reader};
use raft_node::{Node, Transport};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use transport_core::{MemberId, raftpb::Message};
use transport_http::{OutgoingSnapshot, SnapshotSource};

use super::{inbound::PeerTransport, replica::Answer};

/// What carries raft's messages.
pub struct Outbound {
    /// The streams, pipelines and snapshot posts to the other members.
    pub transport: PeerTransport,
    /// Tells removed members.
    pub reader: Reader,
    /// Where databases are written before they are sent.
    pub snap_dir: PathBuf,
    /// Where the work of writing them runs.
    pub runtime: Handle,
    /// What shutdown waits for.
    pub tasks: TaskTracker,
    /// Set once the node runs, which needs this first.
    pub node: Arc<OnceLock<Node<Answer>>>,
}

impl Transport<Image> for Outbound {
    fn send(&self, messages: Vec<Message>) {
        self.transport.send(messages);
    }

    fn send_snapshot(&self, message: Message, image: Image) {
        let (transport, node) = (self.transport.clone(), self.node.clone());
        let dir = self.snap_dir.clone();
        let to = MemberId(message.to);
        self.tasks.spawn_blocking_on(
            move || match Database::write(&dir, &image) {
                Ok(database) => {
                    tracing::info!(
                        remote_peer_id = %to, index = image.index(), bytes = database.bytes,
                        "sending database snapshot"
                    );
                    transport.send_snapshot(OutgoingSnapshot { message, source: Box::new(database), done: None });
                }
                Err(error) => {
                    tracing::error!(remote_peer_id = %to, %error, "failed to write a database snapshot");
                    if let Some(node) = node.get() {
                        node.report_snapshot(to, false);
                    }
                }
            },
            &self.runtime,
        );
    }

    fn is_removed(&self, id: MemberId) -> bool {
        self.reader.is_removed(id)
    }
}

/// A database file without a name, so that it is gone with its handle, whatever happens.
struct Database {
    file: File,
    bytes: u64,
}

impl Database {
    fn write(dir: &std::path::Path, image: &Image) -> io::Result<Database> {
        let mut file = tempfile::tempfile_in(dir)?;
        let bytes = image.write_bolt(&mut io::BufWriter::with_capacity(1 << 20, &mut file))?;
        file.rewind()?;
        Ok(Database { file, bytes })
    }
}

impl SnapshotSource for Database {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}
