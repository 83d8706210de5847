//! A raft node around raft-rs.

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
mod persist;
mod proposals;
mod read_index;
mod recovery;
mod shared;
#[cfg(test)]
mod sim;
pub mod snap;
mod state_machine;
mod storage;
mod threads;
mod transport;
pub mod wal;

pub use config::{NodeConfig, SharedRecorder};
pub use error::{ProposeError, ReadError, SnapshotError, StepError, TransferError};
pub use node::Node;
pub use recovery::StartError;
pub use shared::{Leadership, Role, Status};
pub use state_machine::{ConfChangeVerdict, StateMachine};
pub use storage::{Storage, StorageError, StorageOptions};
pub use transport::Transport;
