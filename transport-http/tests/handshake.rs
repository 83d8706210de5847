//! Between accept and the first request: what is slow or speaks something else is let go, counted, and in nobody's way.

mod common;

use std::{io, time::Duration};

use common::{Member, raw::Raw, raw::request};
use tokio::net::TcpListener;
use transport_http::{
    NoSnapshots,
    net::{Accepted, Acceptor},
};

/// The first connection never finishes its handshake.
struct FirstIsStuck {
    listener: TcpListener,
    accepted: usize,
}

impl Acceptor for FirstIsStuck {
    async fn accept(&mut self, user_timeout: Duration) -> io::Result<Accepted> {
        let accepted = Acceptor::accept(&mut self.listener, user_timeout).await?;
        self.accepted += 1;
        if self.accepted > 1 {
            return Ok(accepted);
        }
        let remote = accepted.remote;
        let handshake = Box::pin(async move {
            let _io = accepted.handshake.await;
            std::future::pending().await
        });
        Ok(Accepted { remote, handshake })
    }
}

async fn probe(raw: &mut Raw) -> u16 {
    raw.write(request("GET", "/raft/probing", &[])).await;
    raw.head().await.unwrap().status()
}

#[tokio::test]
async fn a_stuck_handshake_holds_up_nobody_and_ends_at_its_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = FirstIsStuck {
        listener,
        accepted: 0,
    };
    let hurried = |config: &mut transport_http::TransportConfig| {
        config.limits.handshake_timeout = Duration::from_millis(300)
    };
    let member = Member::start_on(
        1,
        address,
        acceptor,
        hurried,
        std::sync::Arc::new(NoSnapshots),
    );
    let mut stuck = Raw::connect(address).await;
    let mut other = Raw::connect(address).await;
    assert_eq!(probe(&mut other).await, 200);
    assert!(!stuck.fill().await, "the stuck connection must be closed");
    let timeouts = "rafthttp_handshake_failures_total{side=accept,cause=timeout}";
    member.recorder.until(timeouts, |value| value == 1.0).await;
    member.stop().await;
}

#[tokio::test]
async fn tls_on_a_plain_port_is_counted_as_a_mismatch_of_schemes() {
    let member = Member::start(1).await;
    let mut hello = Raw::connect(member.address).await;
    // How each connection over TLS begins: a handshake record, version and length.
    hello.write([0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3]).await;
    assert!(!hello.fill().await, "the connection must be closed");
    let mismatches = "rafthttp_handshake_failures_total{side=accept,cause=scheme_mismatch}";
    member
        .recorder
        .until(mismatches, |value| value == 1.0)
        .await;
    // What is no HTTP for another reason is not.
    let mut garbage = Raw::connect(member.address).await;
    garbage.write([0x17; 11]).await;
    while garbage.fill().await {}
    assert_eq!(probe(&mut Raw::connect(member.address).await).await, 200);
    assert_eq!(member.recorder.value(mismatches), 1.0);
    member.stop().await;
}
