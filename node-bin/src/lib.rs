//! The member: flags become a running etcd v3 server, client calls become proposals and reads.
//!
//! This crate composes the layers below it. Rules that belong to etcdserver itself are pure functions in [`member`].
#![forbid(unsafe_code)]

pub mod config;
pub mod grpc;
pub mod log;
pub mod metrics;
pub mod version;
