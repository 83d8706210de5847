//! The member: flags become a running etcd v3 server, client calls become proposals and reads.
//!
//! This crate composes the layers below it and keeps etcdserver's own rules as pure functions in [`member`].
#![forbid(unsafe_code)]

pub mod config;
pub mod version;
