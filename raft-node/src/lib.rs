//! A raft node around [raft-rs](https://docs.rs/raft): everything between a state machine, a disk and a
//! transport that a member of an etcd cluster needs.
//!
//! # What it does
//!
//! * replicates: [`Node::propose`] appends to a log that a quorum of disks holds and answers with the state
//!   machine's result;
//! * reads: [`Node::read_index`] gives linearizable reads without touching the log;
//! * changes its members one at a time, in etcd's encoding and numbering;
//! * keeps its log in etcd's own WAL and `.snap` formats ([`Storage`]), and survives `kill -9` and power loss
//!   at any point;
//! * shields raft-rs from everything it would panic on ([`admit`]).
//!
//! It knows no sockets ([`Transport`] is yours) and no data ([`StateMachine`] is yours).
//!
//! # How a proposal travels
//!
//! `node` → `inbox` → the raft task's `driver` (raft-rs; all proposals of a turn are one message) →
//! transport and, at the same time, the wal thread's `persist` (one sync for all that queued up) → commit →
//! the apply thread's `apply`, or the raft task's own hand if that is quicker than waking the thread → the waiter
//! in `proposals`. With many entries under way the raft task and the wal thread first let other threads bring more
//! (`patience`). Engines are plain values without threads, clocks or I/O; `turns` and `threads` drive them, and the
//! tests drive the same values in virtual time.
//!
//! # Architecture invariants
//!
//! * Nothing is acknowledged before it is durable: not a proposal to a client, not an entry to a leader, not
//!   a vote.
//! * Raft never waits for the disk or the state machine. Ticks, heartbeats and step-down go on while either
//!   stalls, and a leader whose disk stalls hands over.
//! * Every queue has a bound in [`NodeConfig`].
//! * This crate never learns what an entry means, and speaks no HTTP.
//!
//! # Example
//!
//! A counter, replicated by a cluster of one:
//!
//! ```
//! use std::sync::{Arc, atomic::AtomicU64};
//!
//! use bytes::Bytes;
//! use raft_node::{
//!     ConfChangeVerdict, Node, NodeConfig, SharedRecorder, SnapshotError, StateMachine, Storage,
//!     StorageOptions, Transport, disk::RealDisk, wal::Metadata,
//! };
//! use transport_core::{
//!     ClusterId, MemberId,
//!     raftpb::{ConfChange, ConfState, Entry, Message, Snapshot, SnapshotMetadata},
//! };
//!
//! /// Each entry is a request id and a number to add.
//! #[derive(Default)]
//! struct Counter {
//!     value: u64,
//!     applied: (u64, u64),
//!     conf_state: Option<ConfState>,
//!     /// Kept in memory only, so nothing of it is ever durable: the log brings it back.
//!     durable: Arc<AtomicU64>,
//! }
//!
//! impl StateMachine for Counter {
//!     type Response = u64;
//!     type Image = u64;
//!
//!     fn applied(&self) -> (u64, u64) {
//!         self.applied
//!     }
//!     fn stored_conf_state(&self) -> Option<ConfState> {
//!         self.conf_state.clone()
//!     }
//!     fn durable(&self) -> Arc<AtomicU64> {
//!         self.durable.clone()
//!     }
//!     fn apply(&mut self, entry: Entry) -> Option<(u64, u64)> {
//!         self.applied = (entry.index, entry.term);
//!         let (id, add) = entry.data.split_first_chunk::<8>()?;
//!         self.value += u64::from_be_bytes(add.try_into().ok()?);
//!         Some((u64::from_be_bytes(*id), self.value))
//!     }
//!     fn conf_change(&mut self, entry: &Entry, _: &ConfChange) -> ConfChangeVerdict<u64> {
//!         self.applied = (entry.index, entry.term);
//!         ConfChangeVerdict { accepted: true, response: self.value }
//!     }
//!     fn conf_state(&mut self, _index: u64, _term: u64, conf_state: ConfState) {
//!         self.conf_state = Some(conf_state);
//!     }
//!     fn flush_batch(&mut self) {}
//!     fn image(&mut self) -> Result<(Snapshot, u64), SnapshotError> {
//!         let (index, term) = self.applied;
//!         let conf_state = self.conf_state.clone();
//!         let metadata = Some(SnapshotMetadata { conf_state, index, term });
//!         Ok((Snapshot { data: Bytes::new(), metadata }, self.value))
//!     }
//!     fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
//!         Ok(None)
//!     }
//!     fn install(&mut self, _: &Snapshot) -> Result<(), SnapshotError> {
//!         Err(SnapshotError::new("installing a snapshot", "a cluster of one never sends one"))
//!     }
//!     fn leadership(&mut self, _is_leader: bool, _term: u64) {}
//! }
//!
//! /// There is nobody else.
//! struct Alone;
//!
//! impl Transport<u64> for Alone {
//!     fn send(&self, _: Vec<Message>) {}
//!     fn send_snapshot(&self, _: Message, _: u64) {}
//!     fn is_removed(&self, _: MemberId) -> bool {
//!         false
//!     }
//! }
//!
//! fn add(id: u64, number: u64) -> Bytes {
//!     [id.to_be_bytes(), number.to_be_bytes()].concat().into()
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! std::fs::create_dir(dir.path().join("snap"))?;
//! let recorder: SharedRecorder = Arc::new(metrics::NoopRecorder);
//! let options = StorageOptions {
//!     segment_bytes: 1 << 20,
//!     ..StorageOptions::new(
//!         Arc::new(RealDisk),
//!         dir.path().join("wal"),
//!         dir.path().join("snap"),
//!         recorder.clone(),
//!     )
//! };
//! let (id, cluster) = (MemberId(1), ClusterId(1));
//!
//! // A new cluster: an empty log, filled with its first member.
//! let mut storage = Storage::create(&options, Metadata { node_id: id, cluster_id: cluster })?;
//! let member = br#"{"id":1,"peerURLs":["http://127.0.0.1:2380"],"name":"one"}"#;
//! storage.bootstrap(&[(id, Bytes::from_static(member))])?;
//!
//! tokio::runtime::Runtime::new()?.block_on(async {
//!     let config = NodeConfig::new(id, cluster, recorder.clone());
//!     let node = Node::start(config, storage, Counter::default(), Arc::new(Alone))?;
//!     assert_eq!(node.propose(1, add(1, 40)).await?, 40);
//!     assert_eq!(node.propose(2, add(2, 2)).await?, 42);
//!     node.stop().await;
//!
//!     // After a restart the log brings the counter back; a linearizable read says when.
//!     let config = NodeConfig::new(id, cluster, recorder);
//!     let storage = Storage::open(&options)?;
//!     let node = Node::start(config, storage, Counter::default(), Arc::new(Alone))?;
//!     node.read_index().await?;
//!     assert_eq!(node.propose(3, add(3, 0)).await?, 42);
//!     node.stop().await;
//!     Ok(())
//! })
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod admit;
mod apply;
pub mod bootstrap;
mod conf_change;
mod config;
pub mod disk;
mod driver;
mod election;
mod error;
mod inbox;
mod log;
mod logger;
mod metrics;
mod node;
mod outbound;
mod patience;
mod persist;
mod proposals;
mod read_index;
mod recovery;
mod room;
mod shared;
#[cfg(test)]
mod sim;
pub mod snap;
mod state_machine;
mod storage;
mod threads;
mod transport;
mod turns;
pub mod wal;

pub use config::{NodeConfig, SharedRecorder};
pub use error::{ProposeError, ReadError, SnapshotError, StepError, TransferError};
pub use node::Node;
pub use recovery::StartError;
pub use shared::{Leadership, Role, Status};
pub use state_machine::{ConfChangeVerdict, StateMachine};
pub use storage::{Storage, StorageError, StorageOptions};
pub use transport::Transport;
