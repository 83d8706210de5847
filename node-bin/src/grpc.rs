//! gRPC: the services of the client port, and the port itself.
//!
//! `server` accepts connections, `services` finds the way from a path to a method, `call` holds what happens around
//! every unary call, `layer` around the others; `kv`, `cluster`, `maintenance` and `health` are the services, and
//! `backend` is what they ask of the member. Depends on the messages of kvstore and on `metrics`. Invariant: a status
//! leaves this member only with a text and a code of etcd's table.

pub mod answer;
pub mod backend;
pub mod blocking;
pub mod call;
pub mod check;
pub mod cluster;
pub mod error;
pub mod frames;
pub mod generated;
pub mod header;
pub mod health;
pub mod kv;
pub mod layer;
pub mod maintenance;
pub mod metrics;
pub mod server;
pub mod services;
pub mod wire;
