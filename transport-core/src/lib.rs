//! The sans-IO half of etcd's raft message transport.
//!
//! Members of an etcd cluster exchange raft messages over HTTP/1.1: each opens two endless responses to
//! every other and receives on them, and falls back to one POST per message. This crate holds everything
//! about that which is not I/O, so that any runtime, simulator or tool can speak it:
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | [`MemberId`], [`ClusterId`]: derived, parsed and printed as etcd does |
//! | [`raftpb`] | messages with [`Bytes`](bytes::Bytes) payloads, a bounded decoder and a fast encoder |
//! | [`frame`] | the two stream framings and the snapshot envelope, incremental both ways |
//! | [`http1`] | the heads and the chunked body of a stream's connection |
//! | [`handshake`] | headers, versions, paths → accepted, or a verdict with status, headers and body |
//! | [`route`] | which channel a message takes |
//! | [`lane`] | queues bounded in bytes, in which heartbeats never wait |
//! | [`status`], [`stats`] | whether a peer is reachable; traffic and latencies as etcd reports them |
//!
//! **Invariant.** Nothing here does I/O, reads a clock, spawns, logs or depends on a runtime; the same input
//! always yields the same output. Bytes from outside never panic and never cost more memory than a small
//! multiple of their length; `tests/memory.rs` holds that with a counting allocator.
//!
//! # When to use it
//!
//! To speak etcd's peer protocol where `transport-http` does not fit: over another runtime or HTTP library, in a
//! simulator, a proxy, a tool that looks at captured traffic (`cargo run -p transport-core --example recorded_stream`
//! joins a recorded stream and prints what it carries). With hyper and tokio, use `transport-http`, which is the
//! sockets around this crate; for the rules of raft itself bring a raft.
//!
//! # How a message travels
//!
//! 1. [`route::pick`] names its channel: the append stream, the message stream, or a POST of its own.
//! 2. [`lane::Lane`] holds it until that channel can write, within a budget in bytes.
//! 3. The channel's encoder ([`frame::msgappv2`], [`frame::message`]; a POST is
//!    [`raftpb::encode_message`] alone) appends it to what is written next: a buffer, or a [`raftpb::Output`], into
//!    which no payload of 4 KiB or more is copied. What several members get, a [`raftpb::EntryCache`] encodes once.
//! 4. The other member had asked for the stream with headers that [`handshake::check_stream`] judges, and had read
//!    the answer with [`handshake::DialVerdict`].
//! 5. Its decoder is fed what the socket gives and yields whole messages, entries as slices of what was read.
//! 6. A lane again, and then raft.
//!
//! # From a message to bytes and back
//!
//! ```
//! use bytes::{Bytes, BytesMut};
//! use transport_core::{MemberId, frame::msgappv2, raftpb::{Entry, Message, MessageType}};
//!
//! let append = Message {
//!     msg_type: MessageType::Append as i32,
//!     from: 1, to: 2, term: 5, log_term: 5, index: 10, commit: 10,
//!     entries: vec![Entry { term: 5, index: 11, data: Bytes::from_static(b"abc"), ..Entry::default() }],
//!     ..Message::default()
//! };
//!
//! // One encoder and one decoder per connection: both remember how far the stream has come.
//! let mut body = BytesMut::new();
//! let mut encoder = msgappv2::Encoder::new();
//! encoder.encode(&Message::link_heartbeat(), &mut body)?;
//! encoder.encode(&append, &mut body)?;
//!
//! let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
//! let mut received = Vec::new();
//! let body = body.freeze();
//! for piece in [body.slice(..5), body.slice(5..)] {
//!     decoder.feed(piece);
//!     while let Some(message) = decoder.next()? {
//!         received.push(message);
//!     }
//! }
//! assert!(received[0].is_link_heartbeat());
//! assert_eq!(received[1], append);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Entry data of a decoded message are slices of the piece that was fed. Who keeps a small one for long
//! should copy it, or it keeps the piece alive.
//!
//! # Accepting a stream
//!
//! ```
//! use http::{Method, StatusCode};
//! use transport_core::{ClusterId, MemberId, handshake::*};
//!
//! struct Members;
//! impl Membership for Members {
//!     fn is_removed(&self, id: MemberId) -> bool { id == MemberId(3) }
//!     fn is_peer(&self, id: MemberId) -> bool { id == MemberId(2) }
//! }
//!
//! let cluster = ClusterId(0xc1);
//! let ours = Identity::new(MemberId(1), cluster, Version::new(3, 6, 0));
//! let ask = |from: u64| {
//!     let theirs = Identity::new(MemberId(from), cluster, Version::new(3, 5, 0));
//!     let headers = theirs.request_headers(Some(ours.id));
//!     let path = StreamKind::Message.path(theirs.id);
//!     check_stream(&ours, &Method::GET, &path, &headers, &Members)
//! };
//! assert_eq!(ask(2)?.from, MemberId(2));
//! let verdict = ask(3).unwrap_err();
//! assert_eq!((verdict.status(), &verdict.body()[..]), (StatusCode::GONE, "removed member\n"));
//! # Ok::<(), Verdict>(())
//! ```
//!
//! # Queueing for a connection
//!
//! ```
//! use transport_core::{lane::{Budget, Lane}, raftpb::{Message, MessageType}};
//!
//! let mut lane = Lane::new(Budget::default(), None);
//! for (kind, commit) in [(MessageType::Append, 1), (MessageType::Heartbeat, 1), (MessageType::Heartbeat, 2)] {
//!     let message = Message { msg_type: kind as i32, commit, ..Message::default() };
//!     lane.push(message).map_err(|refused| refused.reason).unwrap();
//! }
//! let mut batch = Vec::new();
//! lane.drain(64 << 10, &mut batch);
//! let kinds: Vec<_> = batch.iter().map(|m| (m.kind().unwrap(), m.commit)).collect();
//! assert_eq!(kinds, [(MessageType::Heartbeat, 2), (MessageType::Append, 1)]);
//! ```
//!
//! # Bounds and errors
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | a frame of a stream | [`frame::FRAME_BYTES_MAX`], 512 MiB | [`frame::FrameError::TooLong`] before any room is made |
//! | a snapshot's message | [`frame::snapshot::ENVELOPE_BYTES_MAX`] | the same |
//! | the elements of a message | its own length: none is believed before its bytes are there | [`raftpb::DecodeError`] |
//! | a lane | [`lane::Budget`], in bytes per class, and [`lane::SharedBudget`] for all | the message comes back with a [`lane::DropReason`] |
//! | entries kept encoded | the argument of [`raftpb::EntryCache::new`] | the oldest go |
//! | a heartbeat in a lane | one slot each way | the newer takes the older's place |
//!
//! After an error a decoder yields nothing more: its connection has to end, and a new one begins with a new decoder.
//! A request that is refused gets a [`handshake::Verdict`] with the status, headers and body a Go member would send;
//! no verdict is 403, which Go members take for their own removal. A message of a kind that is not known decodes, and
//! is for the receiver to drop.
//!
//! # Versions
//!
//! Written is what etcd 3.4 to 3.8 all read. Read is what any of them writes: the differences are zeros that some
//! versions leave out, and fields above 12, which are skipped. [`handshake::supports_stream`] and the checks of a
//! request follow the tables that each release carries; `tests/captures.rs` and `tests/golden.rs` hold all of this to
//! bytes of real members.
//!
//! # Features
//!
//! - `eraftpb` (off by default): conversions by move between [`raftpb`] and the types of the `raft` crate
//!   0.7 with its `protobuf-codec`, for whoever brings that crate.

#![forbid(unsafe_code)]

pub mod frame;
pub mod handshake;
pub mod http1;
pub mod id;
pub mod lane;
pub mod raftpb;
pub mod route;
pub mod stats;
pub mod status;

pub use id::{ClusterId, MemberId};
