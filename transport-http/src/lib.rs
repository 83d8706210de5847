//! etcd's raft message transport over HTTP/1.1.

#![forbid(unsafe_code)]

mod activity;
mod body;
pub mod client;
mod config;
mod environment;
mod error;
mod inbox;
mod limiter;
mod log_gate;
mod metrics;
pub mod net;
mod peer;
mod pipeline;
mod prober;
mod raft;
mod remote;
mod reports;
mod requests;
mod roster;
mod serve;
mod server;
mod snap_dir;
mod snapshot_receiver;
mod snapshot_sender;
mod stream;
mod transport;
mod url_picker;

pub use body::PeerBody;
pub use config::{DEFAULT_SERVER_VERSION, Limits, SharedRecorder, TransportConfig};
pub use error::{ClientError, CriticalError, StartError, UrlError};
pub use metrics::histogram_buckets;
pub use raft::{
    OutgoingSnapshot, ProcessError, Raft, SnapshotSink, SnapshotSource, SnapshotStatus,
    SnapshotWriter,
};
pub use serve::{serve_connection, serve_peers};
pub use snap_dir::{NoSnapshots, SnapDir};
pub use transport::Transport;
