//! The sans-IO half of etcd's raft message transport: messages, framings, handshake rules, routing, queues.
#![forbid(unsafe_code)]

pub mod frame;
pub mod handshake;
pub mod id;
pub mod lane;
pub mod raftpb;
pub mod route;
pub mod stats;
pub mod status;

pub use id::{ClusterId, MemberId};
