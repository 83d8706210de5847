//! The raft messages of etcd's peers: [`types`] and their bounded codec.

pub mod types;

pub use types::*;
