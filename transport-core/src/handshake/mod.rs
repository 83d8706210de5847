//! The rules by which two members accept each other's requests, as pure functions.
//!
//! The receiving side asks [`check_stream`] or [`check_post`] and gets what was asked for or a [`Verdict`],
//! which knows its HTTP status, headers and body. The dialling side asks [`DialVerdict::read`] or
//! [`PostVerdict::read`] what an answer means. Depends on the ids and on `http`'s vocabulary; knows neither
//! sockets nor which members exist, which it is told.
//!
//! Invariant: no header, path or body makes anything here panic, and no verdict is ever 403: it would make a
//! Go member stop.
//!
//! etcd: rafthttp/http.go, rafthttp/util.go, rafthttp/stream.go.

mod answer;
mod headers;
mod request;
mod verdict;
mod version;

pub use answer::{DialVerdict, PostVerdict, supports_stream};
pub use headers::{
    CLUSTER_ID_HEADER, Headers, Identity, MIN_CLUSTER_VERSION_HEADER, PEER_URLS_HEADER,
    RAFT_TO_HEADER, SERVER_FROM_HEADER, SERVER_VERSION_HEADER,
};
pub use request::{Introduction, Membership, StreamKind, StreamRequest, check_post, check_stream};
pub use verdict::{Endpoint, Verdict};
pub use version::{MIN_CLUSTER_VERSION, Version, VersionError};

/// Path of the pipeline: one message per POST.
pub const RAFT_PATH: &str = "/raft";
/// Parent of the stream paths `/raft/stream/msgapp/<id>` and `/raft/stream/message/<id>`.
pub const STREAM_PATH: &str = "/raft/stream";
/// Path of snapshots: message and database in one POST.
pub const SNAPSHOT_PATH: &str = "/raft/snapshot";
/// Path of the health probe.
pub const PROBING_PATH: &str = "/raft/probing";
