//! What is common to all gRPC services: errors, headers, checks of requests, and the layer every call passes.
//!
//! The services themselves stand on top of this. Depends on the generated messages and on `metrics`. Invariant: a
//! status leaves this member only with a text and a code of etcd's table.

pub mod check;
pub mod error;
pub mod frames;
pub mod header;
pub mod layer;
pub mod metrics;
