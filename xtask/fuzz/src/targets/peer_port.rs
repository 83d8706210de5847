//! The HTTP service of the peer port: any bytes on a connection.
//!
//! The clock is paused, so deadlines cost nothing. Held: no panic, never 403, the connection ends once its
//! other side has, and a request alone makes nobody a peer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::Response;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use transport_core::{ClusterId, MemberId, raftpb::Message};
use transport_http::{
    PeerBody, ProcessError, Raft, SnapshotSink, SnapshotStatus, SnapshotWriter, Transport,
    TransportConfig,
    net::{BoxFuture, BoxIo, Connector, PeerUrl},
    serve_connection,
};

/// The ids the seeds are addressed to; the captures' own are replaced by these.
const LOCAL: MemberId = MemberId(2);
const PEER: MemberId = MemberId(1);
const CLUSTER: ClusterId = ClusterId(0xabc);
/// How long a stream is read, in virtual time: long enough for a link heartbeat.
const LISTEN: Duration = Duration::from_secs(3);
/// How long a connection may outlive its client, in virtual time.
const END: Duration = Duration::from_secs(60);

struct Accepts;

impl Raft for Accepts {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        match message.index % 2 {
            0 => Ok(()),
            _ => Err(ProcessError::Removed(MemberId(message.from))),
        }
    }

    fn is_id_removed(&self, id: MemberId) -> bool {
        id == MemberId(9)
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
}

/// Takes databases and keeps none.
struct Nowhere;

struct Written(u64);

impl SnapshotSink for Nowhere {
    fn create(&self, _: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        Ok(Box::new(Written(0)))
    }
}

impl SnapshotWriter for Written {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.0 += chunk.len() as u64;
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<u64> {
        Ok(self.0)
    }
}

/// Nobody can be reached.
struct Refuses;

impl Connector for Refuses {
    fn connect<'a>(&'a self, _: &'a PeerUrl, _: Duration) -> BoxFuture<'a, io::Result<BoxIo>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// See the module.
pub fn peer_port(data: &[u8]) {
    let runtime = runtime();
    runtime.block_on(async {
        let recorder = Arc::new(metrics::NoopRecorder);
        let mut config = TransportConfig::new(LOCAL, CLUSTER, recorder);
        config.connector = Arc::new(Refuses);
        config.limits.post_body_bytes = 64 << 10;
        let transport = Transport::start(config, Arc::new(Accepts), Arc::new(Nowhere))
            .expect("a valid configuration");
        transport
            .add_peer(PEER, &["http://127.0.0.1:1"].map(String::from))
            .expect("a valid URL");
        let (mut near, far) = tokio::io::duplex(256 << 10);
        let other = |_| async { Response::new(PeerBody::empty()) };
        let remote = SocketAddr::from(([127, 0, 0, 1], 1));
        let closing = CancellationToken::new();
        let serving = tokio::spawn(serve_connection(
            Box::new(far),
            remote,
            transport.clone(),
            other,
            closing,
        ));
        let mut answers = Vec::new();
        // The service may hang up before it has taken everything.
        let _ = timeout(LISTEN, near.write_all(data)).await;
        let _ = near.shutdown().await;
        let _ = timeout(LISTEN, near.read_to_end(&mut answers)).await;
        drop(near);
        let ended = timeout(END, serving)
            .await
            .expect("it ends with its client");
        ended.expect("it does not panic");
        assert!(
            !contains(&answers, b"HTTP/1.1 403"),
            "a Go member would stop"
        );
        assert_eq!(transport.peers(), [PEER]);
        timeout(END, transport.stop()).await.expect("it stops");
    });
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing from the system")
}
