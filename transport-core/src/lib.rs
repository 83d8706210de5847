//! The sans-IO half of etcd's raft message transport.

#![forbid(unsafe_code)]

pub mod id;
pub mod raftpb;

pub use id::{ClusterId, MemberId};
