//! What a transport is given when it starts: identity, deadlines and the bound of every queue.
//!
//! Plain data. The defaults are etcd's where etcd has one; every bound in bytes or in number is a field of
//! [`Limits`], so that nothing in this crate grows without a name and a figure.

use std::{fmt, sync::Arc, time::Duration};

use transport_core::{
    ClusterId, MemberId,
    frame::snapshot::ENVELOPE_BYTES_MAX,
    handshake::{Identity, Version},
    lane::{Budget, PIPELINE_BYTES, SharedBudget},
};

use crate::net::{Connector, TcpConnector};

/// Where metrics are registered. Each transport brings its own, so that several in one process do not merge.
pub type SharedRecorder = Arc<dyn metrics::Recorder + Send + Sync>;

/// The feature level announced when nothing else is said; a strict triple, as Go's parser demands.
pub const DEFAULT_SERVER_VERSION: Version = Version::new(3, 6, 0);

/// Settings of a [`Transport`](crate::Transport).
///
/// etcd: server/etcdserver/api/rafthttp/transport.go, `Transport`.
#[derive(Clone)]
pub struct TransportConfig {
    /// The local member.
    pub id: MemberId,
    /// The cluster; a peer that names another one is refused.
    pub cluster_id: ClusterId,
    /// Peer URLs announced as `X-PeerURLs`; empty leaves the header out.
    pub advertise_urls: Vec<String>,
    /// Announced as `X-Server-Version`; keep it equal to what `/version` says.
    pub server_version: Version,
    /// How long a connection may take to be established.
    pub dial_timeout: Duration,
    /// Stream dials per second after the first retry; 0 means 10.
    pub dial_retry_frequency: f64,
    /// A stream without a byte for this long is dropped and dialled again; also the limit for response headers
    /// of a stream and for each read of a request body. Link heartbeats go out every third of it.
    pub read_timeout: Duration,
    /// How long a socket may refuse to take bytes.
    pub write_timeout: Duration,
    /// Where metrics are registered.
    pub recorder: SharedRecorder,
    /// How connections to peers are opened.
    pub connector: Arc<dyn Connector>,
    /// What the bulk queues of all peers may hold together; share one between the transports of a process.
    pub budget: SharedBudget,
    /// Bounds of queues and of concurrent work.
    pub limits: Limits,
}

impl TransportConfig {
    /// etcd's defaults for a member with an election timeout of one second.
    pub fn new(id: MemberId, cluster_id: ClusterId, recorder: SharedRecorder) -> Self {
        TransportConfig {
            id,
            cluster_id,
            advertise_urls: Vec::new(),
            server_version: DEFAULT_SERVER_VERSION,
            dial_timeout: Duration::from_secs(2),
            dial_retry_frequency: 0.0,
            read_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            recorder,
            connector: Arc::new(TcpConnector::default()),
            budget: SharedBudget::default(),
            limits: Limits::default(),
        }
    }

    /// Who we are to our peers.
    pub(crate) fn identity(&self) -> Identity {
        let mut identity = Identity::new(self.id, self.cluster_id, self.server_version);
        identity.peer_urls.clone_from(&self.advertise_urls);
        identity
    }

    /// Pause between link heartbeats: three of them fit into the peer's read timeout.
    pub(crate) fn link_heartbeat_period(&self) -> Duration {
        self.read_timeout / 3
    }
}

impl fmt::Debug for TransportConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportConfig")
            .field("id", &self.id)
            .field("cluster_id", &self.cluster_id)
            .field("advertise_urls", &self.advertise_urls)
            .field("dial_timeout", &self.dial_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("write_timeout", &self.write_timeout)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The bound of everything that could grow.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Messages waiting in one stream writer (two per peer). Full: the message is dropped and the peer reported
    /// unreachable.
    pub stream: Budget,
    /// Messages waiting in one pipeline, besides its bound of 64 in number. Full: as above.
    pub pipeline: Budget,
    /// Received messages waiting for `Raft::process`, per peer. Full: dropped and counted.
    pub receive: Budget,
    /// The same for received proposals, which wait while there is no leader.
    pub proposal: Budget,
    /// How much one write of a stream gathers; a single message may exceed it.
    pub flush_bytes: usize,
    /// Body of one `POST /raft`. Beyond: refused with 400.
    pub post_body_bytes: usize,
    /// Bodies of all `POST /raft` in progress. Beyond: refused with 500.
    pub post_total_bytes: usize,
    /// What a request body must bring in each [`body_progress_window`](Self::body_progress_window) spent waiting for
    /// it. Less: refused, so that a sender that trickles holds no place for ever.
    pub body_progress_bytes: u64,
    /// See [`body_progress_bytes`](Self::body_progress_bytes). Time in which this member was not ready to read does
    /// not count.
    pub body_progress_window: Duration,
    /// How long `Raft::process` may hold a POST, and a pipeline wait for an answer.
    pub post_timeout: Duration,
    /// Message in front of a received database.
    pub snapshot_envelope_bytes: u64,
    /// Snapshots sent at once by this member (at most one per peer). Beyond: reported as failed.
    pub snapshot_sends: usize,
    /// Bytes of snapshots this member sends per second, of all together; 0 is no limit.
    pub snapshot_bytes_per_second: u64,
    /// How long each chunk of a database (256 KiB, less at a slow pace) may take from the disk to the connection.
    pub snapshot_chunk_timeout: Duration,
    /// Bytes that must stay free where received databases go. Less: refused with 500, before and while it comes.
    pub snapshot_disk_reserve_bytes: u64,
    /// Snapshots received at once. Beyond: refused with 500.
    pub snapshot_receives: usize,
    /// How long the receiver of a complete snapshot may take to make it durable and to answer.
    pub snapshot_answer_timeout: Duration,
    /// Remotes created from request headers. Beyond: the oldest idle one goes, or the new one is refused.
    pub remotes: usize,
    /// How long an accepted connection may take until it can be used: TLS, and who is on the other side. Beyond:
    /// closed and counted.
    pub handshake_timeout: Duration,
    /// Open connections of the peer port. Beyond: they wait to be accepted.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            stream: Budget::default(),
            pipeline: Budget {
                bulk_bytes: PIPELINE_BYTES,
                ..Budget::default()
            },
            receive: Budget::default(),
            proposal: Budget::default(),
            flush_bytes: 256 << 10,
            post_body_bytes: 512 << 20,
            post_total_bytes: 1 << 30,
            body_progress_bytes: 256 << 10,
            body_progress_window: Duration::from_secs(30),
            post_timeout: Duration::from_secs(15),
            snapshot_envelope_bytes: ENVELOPE_BYTES_MAX,
            snapshot_sends: 4,
            snapshot_bytes_per_second: 0,
            snapshot_chunk_timeout: Duration::from_secs(30),
            snapshot_disk_reserve_bytes: 128 << 20,
            snapshot_receives: 2,
            snapshot_answer_timeout: Duration::from_secs(600),
            remotes: 64,
            handshake_timeout: Duration::from_secs(10),
            connections: 1024,
        }
    }
}
