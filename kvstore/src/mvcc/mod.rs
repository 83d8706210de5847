//! Multi-version keys: every write has a revision, every revision above the last compaction can be read.
//!
//! `keyspace` holds what apply and readers share: the key `index`, the `pending` rows with the backend view, and the
//! `cache`. `view` reads it at one revision, `write` changes it; `range`, `txn`, [`hash`] and `compact` are etcd's
//! operations on top; `restore` builds it from a backend.
//!
//! Invariant: one thread writes; readers see whole revisions, never a part of one, and never wait for a commit.

pub(crate) mod cache;
pub(crate) mod compact;
pub mod event;
pub mod hash;
pub(crate) mod history;
pub(crate) mod index;
pub mod interval;
pub mod intervals;
pub(crate) mod keyspace;
pub(crate) mod pending;
pub(crate) mod range;
pub(crate) mod restore;
pub mod revision;
pub(crate) mod row;
pub(crate) mod txn;
pub(crate) mod view;
pub(crate) mod write;

pub use event::{Event, EventKind};
pub use hash::KeyValueHash;
pub use interval::KeyInterval;
pub use intervals::KeySet;
pub use range::is_valid_sort;
pub use revision::{Revision, RowKey};
pub use txn::is_read_only;
