//! The member: flags become a running etcd v3 server, client calls become proposals and reads.
//!
//! This crate composes the layers below it. Rules that belong to etcdserver itself are pure functions in [`member`].
#![forbid(unsafe_code)]

pub mod config;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod log;
pub mod member;
pub mod metrics;
pub mod start;
pub mod version;
