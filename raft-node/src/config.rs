//! How a node is set up: identity, clocks and the bound of every queue.
//!
//! Plain data with etcd's defaults (etcd: server/etcdserver/raft.go, `raftConfig`; server/embed/config.go).
//! Invariant: each buffer of this crate is limited by a field of [`NodeConfig`].

use std::{fmt, sync::Arc, time::Duration};

use transport_core::{ClusterId, MemberId};

/// The recorder a node registers its metrics on.
pub type SharedRecorder = Arc<dyn metrics::Recorder + Send + Sync>;

/// Set-up of a [`Node`](crate::Node). [`NodeConfig::new`] gives etcd's defaults.
#[derive(Clone)]
pub struct NodeConfig {
    /// This member.
    pub id: MemberId,
    /// Its cluster; written into the log's metadata and checked on restart.
    pub cluster_id: ClusterId,
    /// Length of one tick; etcd's heartbeat interval.
    pub tick: Duration,
    /// Ticks without a leader after which an election may start.
    pub election_ticks: usize,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// Whether a vote is sounded out before the term is raised.
    pub pre_vote: bool,
    /// Bytes of entries in one append; a larger entry goes alone.
    pub append_bytes_max: u64,
    /// Appends on their way to one follower.
    pub appends_in_flight_max: usize,
    /// Bytes of committed entries handed to the state machine at once.
    pub committed_bytes_max: u64,
    /// Bytes a leader appends ahead of the commit; more proposals are refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of received messages that wait for the raft task; more make [`step`](crate::Node::step) wait.
    pub inbox_bytes_max: usize,
    /// Bytes of local proposals that wait to be handed to raft; more are refused.
    pub proposal_bytes_max: usize,
    /// Local proposals that wait for their result, whatever their size; more are refused.
    pub proposals_max: usize,
    /// Bytes of committed entries the state machine has not applied; above it received appends are dropped.
    pub apply_backlog_bytes_max: usize,
    /// Bytes of received entries not yet durable; above it received appends are dropped.
    pub wal_backlog_bytes_max: usize,
    /// Linearizable reads that wait for their index; more are refused.
    pub reads_max: usize,
    /// Entries committed but not applied, above which proposals are refused.
    /// etcd: server/etcdserver/v3_server.go, `maxGapBetweenApplyAndCommitIndex`.
    pub commit_gap_max: u64,
    /// Applied entries after which a snapshot is due.
    pub snapshot_count: u64,
    /// Bytes of log after which a snapshot is due.
    pub snapshot_bytes: u64,
    /// Entries before a snapshot that stay in memory for followers that lag.
    pub catch_up_entries: u64,
    /// Bytes of such entries.
    pub catch_up_bytes: u64,
    /// How long a leader's disk may leave a write unfinished before it hands leadership over.
    pub disk_stall_max: Duration,
    /// How long a proposal waits for a leader, and a read for its index.
    pub request_timeout: Duration,
    /// After which time an unanswered read index request is repeated.
    pub read_retry: Duration,
    /// How long the news that entries are committed may wait for an append that carries it to the followers.
    pub commit_delay: Duration,
    /// Seed of election timeouts and read contexts; `None` takes the system's randomness.
    pub seed: Option<u64>,
    /// Where metrics are registered.
    pub recorder: SharedRecorder,
}

const MIB: usize = 1 << 20;

impl NodeConfig {
    /// etcd's defaults: ticks of 100 ms, elections after 10, pre-vote on.
    pub fn new(id: MemberId, cluster_id: ClusterId, recorder: SharedRecorder) -> Self {
        NodeConfig {
            id,
            cluster_id,
            tick: Duration::from_millis(100),
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            append_bytes_max: MIB as u64,
            appends_in_flight_max: 512,
            committed_bytes_max: 4 * MIB as u64,
            uncommitted_bytes_max: 256 * MIB as u64,
            inbox_bytes_max: 64 * MIB,
            proposal_bytes_max: 256 * MIB,
            proposals_max: 100_000,
            apply_backlog_bytes_max: 128 * MIB,
            wal_backlog_bytes_max: 128 * MIB,
            reads_max: 100_000,
            commit_gap_max: 5_000,
            snapshot_count: 10_000,
            snapshot_bytes: 128 * MIB as u64,
            catch_up_entries: 5_000,
            catch_up_bytes: 64 * MIB as u64,
            disk_stall_max: Duration::from_secs(2),
            request_timeout: Duration::from_secs(7),
            read_retry: Duration::from_millis(500),
            commit_delay: Duration::from_millis(2),
            seed: None,
            recorder,
        }
    }

    /// The shortest time without a leader after which an election starts.
    pub fn election_timeout(&self) -> Duration {
        self.tick * u32::try_from(self.election_ticks).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConfig")
            .field("id", &self.id)
            .field("cluster_id", &self.cluster_id)
            .field("tick", &self.tick)
            .field("election_ticks", &self.election_ticks)
            .field("pre_vote", &self.pre_vote)
            .field("snapshot_count", &self.snapshot_count)
            .finish_non_exhaustive()
    }
}
