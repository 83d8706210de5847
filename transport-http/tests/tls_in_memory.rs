//! TLS over what is no socket: the rules are the same over a network in memory, and in front of them comes whatever
//! the network itself has to do.

mod common;

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use common::{
    Member, append,
    authority::{Authority, Files, LEAF, Leaf},
    memory::listen,
    message,
    recorder::TestRecorder,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use transport_core::raftpb::MessageType;
use transport_http::{
    HandshakeCause, HandshakeError, NoSnapshots,
    net::{Accepted, Acceptor, BoxIo, Connector, PeerUrl, memory::MemoryNetwork},
    tls::{Tls, TlsAcceptor, TlsConnector, TlsSettings},
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// TLS, and where its failed dials are counted.
fn load(settings: TlsSettings) -> (Tls, TestRecorder) {
    let recorder = TestRecorder::default();
    let tls = Tls::load(settings, &(Arc::new(recorder.clone()) as _)).unwrap();
    (tls, recorder)
}

fn dialler(net: &MemoryNetwork, settings: TlsSettings) -> (TlsConnector, TestRecorder) {
    let (tls, recorder) = load(settings);
    (TlsConnector::over(Arc::new(net.clone()), tls), recorder)
}

/// A member whose port and whose dials are secured.
fn secure(net: &MemoryNetwork, id: u64, settings: TlsSettings) -> (Member, TestRecorder) {
    let listener = listen(net, id);
    let address = listener.local_addr();
    let (connector, dials) = dialler(net, settings.clone());
    let acceptor = TlsAcceptor::new(listener, load(settings).0);
    let member = Member::start_on(
        id,
        address,
        acceptor,
        |config| {
            config.advertise_urls = vec![format!("https://{address}")];
            config.connector = Arc::new(connector);
        },
        Arc::new(NoSnapshots),
    );
    (member, dials)
}

fn url(address: SocketAddr) -> PeerUrl {
    PeerUrl::parse(&format!("https://{address}")).unwrap()
}

fn introduce(a: &Member, b: &Member) {
    let url = url(b.address).to_string();
    a.transport.add_peer(b.id, &[url]).unwrap();
}

fn failures(side: &str, cause: &str) -> String {
    format!("rafthttp_handshake_failures_total{{side={side},cause={cause}}}")
}

#[tokio::test(start_paused = true)]
async fn members_exchange_messages_and_stay_connected_for_hours() {
    let net = MemoryNetwork::default();
    let files = Files::new(&Authority::new("ca"), LEAF);
    let ((mut a, _), (mut b, _)) = (
        secure(&net, 1, files.settings()),
        secure(&net, 2, files.settings()),
    );
    introduce(&a, &b);
    introduce(&b, &a);
    a.streams_up(1).await;
    b.streams_up(1).await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    a.transport.send(vec![append(1, 2, 5, 300_000)]);
    assert_eq!(b.message().await.entries[0].data.len(), 300_000);
    b.transport
        .send(vec![message(MessageType::HeartbeatResponse, 2, 1)]);
    assert_eq!(a.message().await.from, 2);
    // Two streams and a prober of each side.
    assert_eq!(net.opened(), 6);
    a.stop().await;
    b.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_s_certificate_is_refused_and_counted_on_both_sides() {
    let net = MemoryNetwork::default();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let (ours, theirs) = (Files::new(&ours, LEAF), Files::new(&theirs, LEAF));
    let (mut a, dials) = secure(&net, 1, ours.settings());
    let (b, _) = secure(&net, 2, theirs.settings());
    introduce(&a, &b);
    dials
        .until(&failures("dial", "unknown_authority"), |count| count >= 3.0)
        .await;
    b.recorder
        .until(&failures("accept", "refused"), |count| count >= 3.0)
        .await;
    a.transport
        .send(vec![message(MessageType::RequestVote, 1, 2)]);
    assert_eq!(a.report().await, common::Report::Unreachable(b.id));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn who_connects_must_come_from_where_its_certificate_says() {
    let net = MemoryNetwork::default();
    let authority = Authority::new("ca");
    let names = &["10.0.0.7", "127.0.0.1"];
    let files = Files::new(&authority, Leaf { names, ..LEAF });
    let (member, _) = secure(&net, 1, files.settings());
    let connect = async |from: &str| {
        let there = net.seen_from(from.parse().unwrap());
        let (connector, _) = dialler(&there, files.settings());
        let mut io = connector
            .connect(&url(member.address), TIMEOUT)
            .await
            .unwrap();
        // The other side decides behind the handshake of this one.
        io.write_all(b"GET /raft/probing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer)
            .await
            .map(|_| answer.starts_with("HTTP/1.1 200"))
    };
    assert!(connect("10.0.0.7").await.unwrap());
    assert!(!matches!(connect("10.0.0.8").await, Ok(true)));
    assert_eq!(member.recorder.value(&failures("accept", "name")), 1.0);
    member.stop().await;
}

#[tokio::test(start_paused = true)]
async fn schemes_that_do_not_match_come_to_nothing() {
    let net = MemoryNetwork::default();
    let files = Files::new(&Authority::new("ca"), LEAF);
    let (member, _) = secure(&net, 1, files.settings());
    // Nothing secures it, so an https URL is not dialled at all.
    let error = net
        .connect(&url(member.address), TIMEOUT)
        .await
        .err()
        .unwrap();
    assert_eq!(
        (error.kind(), net.opened()),
        (io::ErrorKind::Unsupported, 0)
    );
    let mut plain = net
        .connect(&url(member.address).to_plain(), TIMEOUT)
        .await
        .unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mismatch = failures("accept", "scheme_mismatch");
    member.recorder.until(&mismatch, |count| count == 1.0).await;
    member.stop().await;

    let member = common::memory::member(&net, 2);
    let (connector, dials) = dialler(&net, files.settings());
    assert!(
        connector
            .connect(&url(member.address), TIMEOUT)
            .await
            .is_err()
    );
    assert_eq!(dials.value(&failures("dial", "scheme_mismatch")), 1.0);
    // An http URL needs no TLS.
    let plain = url(member.address).to_plain();
    assert!(connector.connect(&plain, TIMEOUT).await.is_ok());
    member.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_let_go_at_the_deadline() {
    let net = MemoryNetwork::default();
    let files = Files::new(&Authority::new("ca"), LEAF);
    let (member, _) = secure(&net, 1, files.settings());
    let mut silent = net
        .connect(&url(member.address).to_plain(), TIMEOUT)
        .await
        .unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(member.recorder.value(&failures("accept", "timeout")), 1.0);
    member.stop().await;
}

/// Yields connections whose own handshake is still to come.
struct Staged<F>(Option<F>);

impl<F: Future<Output = Result<BoxIo, HandshakeError>> + Send + 'static> Acceptor for Staged<F> {
    async fn accept(&mut self, _: Duration) -> io::Result<Accepted> {
        Ok(Accepted {
            remote: ([127, 0, 0, 1], 1).into(),
            handshake: Box::pin(self.0.take().unwrap()),
        })
    }
}

#[tokio::test]
async fn the_handshake_underneath_comes_first_and_its_failure_is_the_outcome() {
    let files = Files::new(&Authority::new("ca"), LEAF);
    let tls = load(files.settings()).0;
    let failing = async { Err(HandshakeError::new(HandshakeCause::Refused, "not today")) };
    let mut acceptor = TlsAcceptor::new(Staged(Some(failing)), tls.clone());
    let error = acceptor
        .accept(TIMEOUT)
        .await
        .unwrap()
        .handshake
        .await
        .err()
        .unwrap();
    assert_eq!(
        (error.cause, &error.message[..]),
        (HandshakeCause::Refused, "not today")
    );

    // A proxy in front, say, that announces the connection in a line of its own.
    let net = MemoryNetwork::default();
    let mut listener = net.listen(([127, 0, 0, 1], 1).into()).unwrap();
    let (connector, _) = dialler(&net, files.settings());
    let url = url(listener.local_addr());
    let dialled = tokio::spawn(async move { connector.connect(&url, TIMEOUT).await });
    let (mut announced, proxied) = tokio::io::duplex(1 << 16);
    announced.write_all(b"PROXY\n").await.unwrap();
    let staged = async move {
        let mut io = proxied;
        let mut line = [0; 6];
        io.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"PROXY\n");
        Ok(Box::new(io) as BoxIo)
    };
    let mut near = listener
        .accept(TIMEOUT)
        .await
        .unwrap()
        .handshake
        .await
        .unwrap();
    let forwarding =
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut announced).await });
    let mut acceptor = TlsAcceptor::new(Staged(Some(staged)), tls);
    let mut far = acceptor
        .accept(TIMEOUT)
        .await
        .unwrap()
        .handshake
        .await
        .unwrap();
    let mut near = dialled.await.unwrap().unwrap();
    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut read = [0; 4];
    far.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
    forwarding.abort();
}

#[tokio::test]
async fn files_read_once_are_not_read_again() {
    let net = MemoryNetwork::default();
    let files = Files::new(&Authority::new("before"), LEAF);
    let recorder = TestRecorder::default();
    let once = Tls::load_once(files.settings(), &(Arc::new(recorder) as _)).unwrap();
    let listener = net.listen(([127, 0, 0, 1], 1).into()).unwrap();
    let url = url(listener.local_addr());
    let mut acceptor = TlsAcceptor::new(listener, once.clone());
    files.put(&Authority::new("after"), LEAF);
    let connector = TlsConnector::over(Arc::new(net), once);
    let (near, far) = tokio::join!(connector.connect(&url, TIMEOUT), async {
        acceptor.accept(TIMEOUT).await.unwrap().handshake.await
    });
    assert!(near.is_ok() && far.is_ok());
}
