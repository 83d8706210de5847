//! Links that die without a word, on real sockets: a relay that stops forwarding, and a network that drops packets.

mod common;

use std::{
    io,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Member, message, raw::open_stream, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};
use transport_core::{MemberId, raftpb::MessageType};
use transport_http::TransportConfig;

const READ_TIMEOUT: Duration = Duration::from_millis(1000);

/// Only the read timeout may notice that a link is dead: writes have for ever.
fn patient_writer(config: &mut TransportConfig) {
    config.read_timeout = READ_TIMEOUT;
    config.write_timeout = Duration::from_secs(3600);
}

/// Forwards connections to a member, until it is told to leave those it has as they are.
struct Relay {
    address: SocketAddr,
    /// How often it was told so.
    swallowed: watch::Sender<u64>,
    accepting: JoinHandle<()>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (swallowed, swallows) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(forward(near, to, swallows.clone()));
            }
        });
        Relay {
            address,
            swallowed,
            accepting,
        }
    }

    /// From now on the connections there are neither read nor written nor closed; new ones work.
    fn swallow(&self) {
        self.swallowed.send_modify(|times| *times += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(near: TcpStream, to: SocketAddr, mut swallows: watch::Receiver<u64>) {
    swallows.mark_unchanged();
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
        (near.into_split(), far.into_split());
    let both = async {
        tokio::join!(
            copy(&mut near_in, &mut far_out),
            copy(&mut far_in, &mut near_out)
        )
    };
    tokio::select! {
        _ = both => {}
        Ok(()) = swallows.changed() => {
            // The sockets stay open, and nobody touches them.
            std::future::pending::<()>().await;
        }
    }
}

async fn copy(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut piece = [0; 16 << 10];
    loop {
        match from.read(&mut piece).await? {
            0 => return to.shutdown().await,
            read => to.write_all(&piece[..read]).await?,
        }
    }
}

/// Sends from one to the other until something arrives.
async fn gets_through(from: &Member, to: &mut Member) {
    let (id, target) = (from.id.0, to.id.0);
    while to.messages.try_recv().is_ok() {}
    let sending = async {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        loop {
            pace.tick().await;
            let sent = message(MessageType::TimeoutNow, id, target);
            from.transport.send(vec![sent]);
        }
    };
    tokio::select! {
        () = sending => {}
        received = soon("a message", to.messages.recv()) => drop(received),
    }
}

#[tokio::test]
async fn a_black_holed_link_carries_again_within_the_read_timeout_and_a_second() {
    let mut a = Member::start_with(1, patient_writer).await;
    let mut b = Member::start_with(2, patient_writer).await;
    let (to_a, to_b) = (Relay::start(a.address).await, Relay::start(b.address).await);
    let url = |relay: &Relay| vec![format!("http://{}", relay.address)];
    a.transport.add_peer(b.id, &url(&to_b)).unwrap();
    b.transport.add_peer(a.id, &url(&to_a)).unwrap();
    a.streams_up(1).await;
    b.streams_up(1).await;
    for _ in 0..2 {
        gets_through(&a, &mut b).await;
        gets_through(&b, &mut a).await;
        let begun = Instant::now();
        to_a.swallow();
        to_b.swallow();
        gets_through(&a, &mut b).await;
        gets_through(&b, &mut a).await;
        let took = begun.elapsed();
        assert!(took > READ_TIMEOUT / 2, "the link was dead: {took:?}");
        assert!(took < READ_TIMEOUT + Duration::from_secs(1), "{took:?}");
    }
    let silent = "rafthttp_reconnects_total{Remote=2,stream=streamMsg,cause=silent}";
    assert_eq!(a.recorder.value(silent), 2.0);
    a.stop().await;
    b.stop().await;
}

/// Set in the copy of this test that runs in a network of its own.
const INSIDE: &str = "TRANSPORT_HTTP_TEST_NETWORK";

/// Whether a program runs and succeeds.
fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[test]
fn a_stream_whose_bytes_nobody_acknowledges_ends_by_tcp_user_timeout() {
    const NAME: &str = "a_stream_whose_bytes_nobody_acknowledges_ends_by_tcp_user_timeout";
    if std::env::var_os(INSIDE).is_some() {
        return inside_a_network_of_its_own();
    }
    if !cfg!(target_os = "linux") || !runs("unshare", &["--net", "true"]) {
        eprintln!("skipped: no network namespace can be made here (needs Linux, unshare and root)");
        return;
    }
    if !runs("ip", &["-V"]) {
        assert!(
            std::env::var_os("CI").is_none(),
            "install iproute2 for this test"
        );
        eprintln!("skipped: this test needs the program ip (iproute2)");
        return;
    }
    let test = std::env::current_exe().unwrap();
    let inside = Command::new("unshare")
        .arg("--net")
        .arg(test)
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inside.stdout) + String::from_utf8_lossy(&inside.stderr);
    assert!(inside.status.success(), "{text}");
}

/// The loopback device of this network goes down: packets vanish, and no socket is told. The stream's socket takes
/// what is written, as there is little, so that no write ever fails; nothing is read from it either.
fn inside_a_network_of_its_own() {
    assert!(runs("ip", &["link", "set", "lo", "up"]));
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let a = Member::start_with(1, patient_writer).await;
        let urls = ["http://127.0.0.1:1".to_owned()];
        a.transport.add_peer(MemberId(2), &urls).unwrap();
        let (mut stream, _) = open_stream(a.address, "message", 2, 1).await;
        stream.chunk().await.unwrap();
        let attached = "rafthttp_stream_attached{Remote=2,stream=streamMsg}";
        assert_eq!(a.recorder.value(attached), 1.0);
        // Link heartbeats are acknowledged for as long as the device is up.
        tokio::time::sleep(READ_TIMEOUT * 2).await;
        assert_eq!(a.recorder.value(attached), 1.0);
        assert!(runs("ip", &["link", "set", "lo", "down"]));
        let begun = Instant::now();
        a.recorder.until(attached, |attached| attached == 0.0).await;
        let took = begun.elapsed();
        println!("the stream ended {took:?} after the network");
        assert!(took < READ_TIMEOUT * 2 + Duration::from_secs(1), "{took:?}");
        a.stop().await;
    });
}
