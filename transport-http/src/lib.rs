//! etcd's raft message transport ("rafthttp") over hyper: streams, pipeline, snapshots, probing.
//!
//! A [`Transport`] carries raft messages between the members of a cluster, in the bytes and by the rules of etcd
//! 3.4 to 3.8, so that any member may be a Go etcd. It knows nothing of raft's rules or of what an entry means: bring
//! any raft that speaks [`transport_core::raftpb`] (with the feature `eraftpb` of `transport-core`, the `raft` crate
//! does; `examples/raft_over_transport.rs` is a whole cluster in one file).
//!
//! # When to use it
//!
//! When a cluster shall mix with etcd's members; and when a raft of your own needs a transport that is done:
//! bounded in bytes, never in the way of the raft thread, and noticing dead links within seconds. The bytes are those
//! of HTTP/1.1, so proxies, `curl` and `tcpdump` help to look at them. It is not for you if messages must not be
//! lost: like every transport of raft it drops them when a connection breaks or a queue is full, and raft sends them
//! again. Messages to one member keep their order per channel and lane, not over all. For the protocol without
//! sockets, or with a runtime of your own, take `transport-core` alone.
//!
//! # Using it
//!
//! Implement [`Raft`], which gets what is received; [`start`](Transport::start) the transport; let [`serve_peers`]
//! serve the port the others dial; [`add_peer`](Transport::add_peer) the others; [`send`](Transport::send).
//!
//! ```
//! use std::sync::Arc;
//!
//! use tokio::{net::TcpListener, sync::mpsc};
//! use tokio_util::sync::CancellationToken;
//! use transport_core::{ClusterId, MemberId, raftpb::{Message, MessageType}};
//! use transport_http::{
//!     NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig, serve_peers,
//! };
//!
//! struct Inbox(mpsc::Sender<Message>);
//!
//! impl Raft for Inbox {
//!     async fn process(&self, message: Message) -> Result<(), ProcessError> {
//!         self.0.send(message).await.map_err(|_| ProcessError::Stopped)
//!     }
//!     fn is_id_removed(&self, _: MemberId) -> bool {
//!         false
//!     }
//!     fn report_unreachable(&self, _: MemberId) {}
//!     fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut members = Vec::new();
//! for id in [1, 2] {
//!     let (sender, inbox) = mpsc::channel(16);
//!     let recorder = Arc::new(metrics::NoopRecorder);
//!     let config = TransportConfig::new(MemberId(id), ClusterId(7), recorder);
//!     let transport = Transport::start(config, Arc::new(Inbox(sender)), Arc::new(NoSnapshots))?;
//!     let listener = TcpListener::bind("127.0.0.1:0").await?;
//!     let url = format!("http://{}", listener.local_addr()?);
//!     // What is not under /raft comes here: /members, /version …
//!     let other = |_| async { http::Response::new(PeerBody::empty()) };
//!     let closing = CancellationToken::new();
//!     let port = tokio::spawn(serve_peers(listener, transport.clone(), other, closing.clone()));
//!     members.push((transport, url, inbox, closing, port));
//! }
//! members[0].0.add_peer(MemberId(2), &[members[1].1.clone()])?;
//! members[1].0.add_peer(MemberId(1), &[members[0].1.clone()])?;
//!
//! let beat = Message { msg_type: MessageType::Heartbeat as i32, from: 1, to: 2, term: 1, ..Message::default() };
//! members[0].0.send(vec![beat.clone()]);
//! assert_eq!(members[1].2.recv().await, Some(beat));
//!
//! for (transport, _, _, closing, port) in members {
//!     transport.stop().await;
//!     closing.cancel();
//!     port.await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # How a message travels
//!
//! A stream is opened by the side that wants to receive: each member dials two GETs to every other one, whose endless
//! response bodies carry what that one sends. So our messages leave in the bodies of requests *the peer* made
//! (`stream/writer.rs`, `stream/body.rs`), and `stream/reader.rs` reads those we made. `send` picks a channel
//! (appends: the compact stream; everything else: the message stream; without a stream: a POST through the pipeline)
//! and puts the message into that channel's lane; the connection's own task takes everything that waits and writes it
//! as one chunk, and a small message that comes alone is written by its sender, there and then. With several peers
//! `send` first encodes what their appends carry, each entry once (`sent.rs`, `outbound.rs`): the connections only put
//! their framing around it, and a payload of 4 KiB or more is never copied. Both ends of a stream read and write their
//! sockets themselves (`incoming.rs`, `stream/outgoing.rs`); hyper answers the requests to the port, posts messages and
//! snapshots, and hands a connection over once a stream is accepted on it. Received messages pass through the peer's
//! inbox to [`Raft::process`], those raft takes at once to [`Raft::try_process`]. A snapshot is a POST of its own with
//! the database behind the message.
//!
//! # What a peer costs
//!
//! An idle one less than 64 KiB, both directions together, and a message in numbers one allocation, the list of its
//! entries; `tests/memory.rs` holds both with a counting allocator. `cargo xtask bench transport` compares the time with
//! Go's transport and with bare TCP.
//!
//! # TLS
//!
//! [`tls`] puts TLS around both directions, by etcd's rules: give [`TransportConfig::connector`] a
//! [`tls::TlsConnector`] and [`serve_peers`] a [`tls::TlsAcceptor`]. They go over TCP, or over any other connector and
//! acceptor they are given. A connection that comes to nothing before its first
//! request is counted in `rafthttp_handshake_failures_total` by side and cause; `handshake_timeout` is its deadline.
//!
//! # Bounds
//!
//! | what waits | bound ([`Limits`], or a constant of the module) | metric | when it is full |
//! |---|---|---|---|
//! | messages for a stream, two per peer | `stream.control_bytes` = 4 MiB; `stream.bulk_bytes` = 64 MiB | `rafthttp_queue_bytes`, `rafthttp_queue_wait_seconds` | dropped, counted, the peer reported unreachable |
//! | messages for the pipeline, per peer or remote | `pipeline::PIPELINE_QUEUE_MESSAGES` = 64; `pipeline.control_bytes` = 4 MiB; `pipeline.bulk_bytes` = 16 MiB | `rafthttp_queue_bytes`, `rafthttp_queue_wait_seconds` | as above |
//! | received messages, per peer | `receive.control_bytes` = 4 MiB; `receive.bulk_bytes` = 64 MiB | `rafthttp_queue_bytes`, `rafthttp_queue_wait_seconds` | dropped and counted |
//! | received proposals, per peer | `proposal.control_bytes` = 4 MiB; `proposal.bulk_bytes` = 64 MiB | `rafthttp_queue_bytes`, `rafthttp_queue_wait_seconds` | dropped and counted |
//! | the newest heartbeat, and the newest answer to one, of each of these | `lane::SLOT_BYTES_MAX` = 4 KiB | `rafthttp_queue_bytes` | the newer replaces the older; a larger one queues as control |
//! | bulk messages of all of these | `lane::PROCESS_BYTES` = 512 MiB, as [`TransportConfig::budget`] | `rafthttp_dropped_messages_total` | as the lane's own bound |
//! | messages on their way from a lane to raft | `inbox::BATCH_BYTES` = 64 KiB, or one message | `rafthttp_queue_wait_seconds` | the rest waits in the lane |
//! | messages being posted, one per worker | `pipeline::PIPELINE_WORKERS` = 4 | `rafthttp_queue_wait_seconds` | the rest waits in the queue |
//! | one write of a stream | `flush_bytes` = 256 KiB, or one message | `rafthttp_flush_bytes`, `rafthttp_flushes_total` | the rest waits in the lane |
//! | a message that its sender writes itself | `stream::ALONE_BYTES_MAX` = 16 KiB | `rafthttp_flush_bytes` | the connection's task writes it |
//! | entries encoded for several peers, for those that get them later | `raftpb::ENTRY_CACHE_BYTES` = 4 MiB | `rafthttp_entry_encodes_total` | the oldest go, and all when nothing is sent; they are encoded again for who lags that far |
//! | what an idle stream keeps for its next write | `stream::IDLE_BUFFER_BYTES` = 1 KiB | – | given back |
//! | what a stream or a prober reads at once | `incoming::READ_BYTES_MAX` = 256 KiB; `incoming::READ_BYTES_MIN` = 1 KiB, while little comes | – | the socket waits |
//! | head of the answer to a stream's or a prober's request, and lines between its chunks | `http1::HEAD_BYTES_MAX` = 16 KiB | `rafthttp_dial_failures_total`, `rafthttp_reconnects_total` | the stream ends |
//! | one frame being received | `frame::FRAME_BYTES_MAX` = 512 MiB | `rafthttp_reconnects_total` | the stream ends |
//! | hyper's buffers, one to read and one to write per connection to the port, and per one that posts | `net::HTTP_BUFFER_BYTES` = 408 KiB, and to write one piece more | – | the socket waits |
//! | head of a request | `serve::REQUEST_HEAD_BYTES` = 16 KiB | – | 431 |
//! | body of a POST; of all of them | `post_body_bytes` = 512 MiB; `post_total_bytes` = 1 GiB | `etcd_network_peer_received_failures_total` | 400 |
//! | body of an answer | `client::ANSWER_BYTES` = 64 KiB; `prober::ANSWER_BYTES` = 4 KiB | `rafthttp_dial_failures_total`, `etcd_network_peer_sent_failures_total` | the request has failed |
//! | message in front of a database | `snapshot_envelope_bytes` = 64 MiB | `etcd_network_snapshot_receive_failures` | 400 |
//! | snapshots being sent, one per peer | `snapshot_sends` = 4 | `etcd_network_snapshot_send_inflights_total` | reported as failed |
//! | snapshots being received | `snapshot_receives` = 2 | `etcd_network_snapshot_receive_inflights_total` | 500 |
//! | a database being sent, with one chunk read and one written | `snapshot_body::CHUNKS_AHEAD` = 3; `pace::CHUNK_BYTES` = 256 KiB | `etcd_network_snapshot_send_inflights_total` | the disk waits |
//! | a database being received, in pieces of hyper's buffer, and as many being written | `snapshot_receiver::PIECES_AHEAD` = 4 | `etcd_network_snapshot_receive_inflights_total` | the socket waits |
//! | disk that a received database leaves free | `snapshot_disk_reserve_bytes` = 128 MiB | `etcd_network_snapshot_receive_failures` | 500 |
//! | blocking threads: one per snapshot while its disk works, and one per host being looked up | `resolver::HOSTS_MAX` = 256 | – | the dial fails |
//! | sockets of one dial | `race::WAYS_MAX` = 8 | `rafthttp_dial_failures_total` | further addresses and URLs are not tried |
//! | remotes introduced by requests | `remotes` = 64 | `rafthttp_queue_bytes` | an idle one goes, or the new one is refused |
//! | ids of introduced remotes in metrics | `metrics::INTRODUCED_MAX` = 1024 | `rafthttp_queue_bytes` | counted as `other` |
//! | connections to the port | `connections` = 1024 | – | wait in the listener's backlog |
//! | a certificate, key, authority or revocation file | `tls::FILE_BYTES_MAX` = 4 MiB | – | refused, at start or until it changes |
//! | threads that ask for the name of an address | `tls::REVERSE_LOOKUPS_MAX` = 4 | `rafthttp_handshake_failures_total` | wait, within the handshake's deadline |
//!
//! What a TLS connection has encrypted or read ahead, about 64 KiB each way, is rustls' own bound.
//! A heartbeat always finds room: a newer one takes the place of the one that waits. Each drop is counted in
//! `rafthttp_dropped_messages_total` by peer, queue and reason.
//!
//! # Errors
//!
//! | what happens | who is told |
//! |---|---|
//! | a setting or a URL that cannot work | the caller: [`StartError`], [`UrlError`] |
//! | a message cannot be queued, or its stream breaks | [`Raft::report_unreachable`], once per message or stream |
//! | a snapshot arrived, or did not | [`Raft::report_snapshot`], and the sender of [`OutgoingSnapshot::done`] |
//! | a peer says this member was removed (410 on a stream, 403 on a POST) | [`Transport::critical_error`]: stop the member |
//! | a peer refuses us: another cluster, an unknown member, an old version | the log, and the next dial tries again |
//! | bytes that are no frame, no message, no request | the log; that stream or request ends, nothing else |
//! | [`Raft::process`] fails | the log for a stream; 500 for a POST, which the sender reports to its raft |
//!
//! A message that may have left is never sent again. Dials are repeated, the first again at once and the next ones
//! every 100 ms, for as long as the peer is a peer. [`Transport::active_since`] tells since when it has been reachable.
//!
//! # Versions
//!
//! Peers tell each other `X-Server-Version` and `X-Min-Cluster-Version` in every request and answer; a member refuses
//! those whose versions do not overlap with its own. [`TransportConfig::server_version`] is what this one says
//! (3.6 unless you choose otherwise), and 3.0 is the oldest it takes. What a Go member of any version from 3.4 on
//! sends is understood; what it would not understand is not sent.
//!
//! # Networks
//!
//! The transport sees byte streams only. [`net::TcpConnector`] and tokio's `TcpListener` are plain TCP;
//! [`net::memory`] connects the transports of one process, for tests under a paused clock, with links that break on
//! purpose; [`tls`] goes around any of them; whatever else implements [`net::Connector`] and [`net::Acceptor`] will do. `tests/simulation` does it for
//! a simulated network, where five transports run for hours of virtual time from a seed.
//!
//! # Examples
//!
//! | `cargo run -p transport-http --example …` | shows |
//! |---|---|
//! | `message_pump` | nothing but messages, between two processes |
//! | `raft_over_transport` | the `raft` crate over this transport: three members elect, replicate, lose every stream and recover |
//!
//! # What this crate never does
//!
//! **Architecture invariants.** [`Transport::send`] never waits and takes no lock for longer than it takes to queue.
//! No request makes the port panic or answer 403, which a Go member takes for its own removal. No bytes from outside
//! are believed before they are there. Every wait has a deadline, every task is joined by [`Transport::stop`]. The
//! environment's HTTP proxy is never used. No type of a raft implementation or of a gRPC library is in the public API:
//! neither is among the dependencies, which `cargo xtask layers` checks.

#![forbid(unsafe_code)]

mod activity;
mod body;
#[cfg(test)]
mod bounds;
pub mod client;
mod config;
mod disk;
mod environment;
mod error;
mod handshake;
mod inbox;
mod incoming;
mod limiter;
mod log_gate;
mod messages;
mod metered_lane;
mod metrics;
pub mod net;
mod outbound;
mod pace;
mod peer;
mod pipeline;
mod prober;
mod race;
mod raft;
mod refusals;
mod remote;
mod reports;
mod requests;
mod resolver;
mod roster;
mod sent;
mod serve;
mod server;
mod snap_dir;
mod snapshot_body;
mod snapshot_receiver;
mod snapshot_sender;
mod stream;
mod timed_body;
pub mod tls;
mod transport;
mod url_picker;

pub use body::PeerBody;
pub use config::{DEFAULT_SERVER_VERSION, Limits, SharedRecorder, TransportConfig};
pub use error::{ClientError, CriticalError, StartError, UrlError};
pub use handshake::{HandshakeCause, HandshakeError};
pub use metrics::{EndedSeries, histogram_buckets};
pub use raft::{
    OutgoingSnapshot, ProcessError, Raft, SnapshotSink, SnapshotSource, SnapshotStatus,
    SnapshotWriter, Tried,
};
pub use serve::{serve_connection, serve_peers};
pub use snap_dir::{NoSnapshots, SnapDir};
pub use transport::Transport;
