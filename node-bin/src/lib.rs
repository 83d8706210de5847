//! The member: flags become a running etcd v3 server, client calls become proposals and reads.
//!
//! This crate composes the layers below it: [`config`] reads flags, environment and file, [`start`] makes a member of
//! them, [`member`] holds etcdserver's own rules as pure functions, [`grpc`] and [`http`] serve clients and other
//! members.
//!
//! Architecture invariant: no rule that belongs to a layer below is repeated here, and nothing here changes replicated
//! state but through the log. Whatever [`start::start`] began, [`start::Running::stop`] ends and waits for.
//!
//! A whole member within a process, on ports the system chooses:
//!
//! ```
//! use kvstore::pb::etcdserverpb::{PutRequest, RangeRequest};
//! use node_bin::{
//!     config::Config,
//!     grpc::backend::{Proposal, ServerBackend},
//!     metrics::Metrics,
//!     start,
//! };
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let dir = tempfile::tempdir()?;
//! let data_dir = format!("--data-dir={}", dir.path().join("m").display());
//! let config = Config::from_flags(&[
//!     &data_dir,
//!     "--listen-peer-urls=http://127.0.0.1:0",
//!     "--listen-client-urls=http://127.0.0.1:0",
//!     "--advertise-client-urls=http://127.0.0.1:2379",
//! ])
//! .map_err(|failure| failure.error)?;
//! let running = start::start(config, Metrics::new()?).await?;
//!
//! let put = PutRequest { key: "greeting".into(), value: "hello".into(), ..Default::default() };
//! running.member.propose(Proposal::Put(put)).await?;
//!
//! // What a majority had committed is applied here once this returns.
//! running.member.linearizable().await?;
//! let range = RangeRequest { key: "greeting".into(), ..Default::default() };
//! assert_eq!(running.member.reader().range(&range)?.kvs[0].value, "hello");
//! running.stop().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod config;
pub mod grpc;
pub mod http;
pub mod listen;
pub mod log;
pub mod member;
pub mod metrics;
mod peer_port;
pub mod start;
pub mod version;
