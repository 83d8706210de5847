//! etcd's replicated state machine: keys with revisions, leases, auth, alarms, membership, and the exchange of whole
//! databases with etcd's own members.
//!
//! Entries of the raft log go in through a [`Store`], in order; answers and events come out, and the rows of etcd's
//! schema go to a backend that follows behind. [`Reader`]s read beside it without waiting for it. [`Image`] is a
//! consistent state to send to a member that lags behind, [`import_bolt`] what that member makes of it.
//!
//! Architecture invariant: nothing here knows raft or HTTP (of `transport-core` it uses ids and `raftpb`), and
//! applying an entry reads no wall clock: the same entries give the same state on every member, Go's included.
//!
//! ```
//! use std::sync::Arc;
//! use kvstore::{Response, Store, StoreConfig, backend::memory::MemoryBackend};
//! use kvstore::pb::etcdserverpb::{InternalRaftRequest, PutRequest, RangeRequest, RequestHeader};
//! use prost::Message;
//!
//! let mut store = Store::open_on(StoreConfig::new("unused"), Arc::new(MemoryBackend::default()))?;
//! let reader = store.reader();
//!
//! // Entry 1 of the log, as a member proposes it.
//! let put = InternalRaftRequest {
//!     header: Some(RequestHeader { id: 7, ..Default::default() }),
//!     put: Some(PutRequest { key: "greeting".into(), value: "hello".into(), ..Default::default() }),
//!     ..Default::default()
//! };
//! let applied = store.apply(1, 1, &put.encode_to_vec().into())?;
//! assert!(matches!(applied.outcome, Ok(Response::Put(_))));
//! assert_eq!((applied.request_id, applied.revision, applied.events.len()), (Some(7), 2, 1));
//! store.publish()?;
//!
//! let range = reader.range(&RangeRequest { key: "greeting".into(), ..Default::default() })?;
//! assert_eq!(range.kvs[0].value, "hello");
//!
//! // The checksum that members compare.
//! let (hash, revision) = reader.hash_kv(0)?;
//! assert_eq!((hash.hash, revision), (553_681_342, 2));
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod alarm;
mod apply;
pub mod auth;
pub mod backend;
pub mod bolt;
mod compaction;
mod error;
pub mod export;
mod flush;
pub mod import;
pub mod lease;
pub mod membership;
mod metrics;
pub mod mvcc;
pub mod pb;
pub mod quota;
mod reader;
mod response;
mod store;
pub mod v2store;
pub mod version;

pub use alarm::Alarms;
pub use error::{ApplyError, Code, FatalError, ImageError, OpenError};
pub use import::{ImportError, Imported, import_bolt, import_snapshot};
pub use metrics::SharedRecorder;
pub use mvcc::{
    Event, EventKind, KeyInterval, KeySet, KeyValueHash, Revision, RowKey, is_read_only,
    is_valid_sort,
};
pub use reader::Reader;
pub use response::{Applied, Duty, Response};
pub use store::{Image, Store, StoreConfig};
