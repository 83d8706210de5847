//! The port itself: two protocols, limits, and how it stops.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use node_bin::grpc::server::ServerOptions;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};

use super::{Server, server_options, service_options, until};

/// Sends `request` in pieces of `size` and reads until the other side has nothing more to say.
async fn exchange(server: &Server, request: &str, size: usize) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for piece in request.as_bytes().chunks(size) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    answer
}

#[tokio::test]
async fn http_and_grpc_share_the_port() {
    let server = Server::start().await;
    let request = "GET /version HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    for size in [1, request.len()] {
        let answer = exchange(&server, request, size).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nthree"),
            "{answer}"
        );
    }
    let missing = exchange(
        &server,
        "PUT /v2/keys HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        100,
    )
    .await;
    assert!(missing.starts_with("HTTP/1.1 404 "), "{missing}");
    assert!(server.client().await.put("a", "1").await.is_ok());
    server.stop().await;
}

#[tokio::test]
async fn a_client_has_no_more_calls_open_than_it_may() {
    let options = ServerOptions {
        max_concurrent_streams: 2,
        ..server_options()
    };
    let server = Server::with(service_options(), options).await;
    let client = server.client().await;
    client.get("a").await.unwrap(); // so that the client knows the server's settings
    let member = &server.member;
    member.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut calls = JoinSet::new();
    for number in 0..10 {
        let client = client.clone();
        calls.spawn(async move { client.put(&format!("k{number}"), "1").await });
    }
    until(|| member.waiting() == 2).await;
    member.gate.add_permits(1);
    for done in calls.join_all().await {
        done.unwrap();
    }
    assert_eq!(member.waiting_max.load(SeqCst), 2);
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let options = ServerOptions {
        connections_max: 1,
        ..server_options()
    };
    let server = Server::with(service_options(), options).await;
    let first = server.client().await;
    first.put("a", "1").await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    second
        .write_all(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    let early = tokio::time::timeout(Duration::from_millis(50), second.read(&mut answer)).await;
    assert!(early.is_err(), "served beside the first");
    drop(first);
    let read = tokio::time::timeout(Duration::from_secs(20), second.read_exact(&mut answer));
    read.await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_calls_finish_and_closes_what_is_idle() {
    let server = Server::start().await;
    let (busy, idle) = (server.client().await, server.client().await);
    idle.put("a", "1").await.unwrap();
    let silent = TcpStream::connect(server.address).await.unwrap();
    let mut kept_alive = TcpStream::connect(server.address).await.unwrap();
    kept_alive
        .write_all(b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    kept_alive.read_u8().await.unwrap();

    server.member.gate.forget_permits(Semaphore::MAX_PERMITS);
    let call = tokio::spawn(async move { busy.put("b", "1").await });
    until(|| server.member.waiting() == 1).await;
    server.stop.cancel();
    // New connections are refused once the listener is gone, while the call goes on.
    let refused = async { while TcpStream::connect(server.address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .unwrap();
    assert!(!server.task.is_finished());
    server.member.gate.add_permits(1);
    assert_eq!(
        call.await
            .unwrap()
            .unwrap()
            .header
            .map(|header| header.revision),
        Some(3)
    );
    let began = Instant::now();
    server.task.await.unwrap();
    assert!(began.elapsed() < server_options().shutdown_deadline);
    drop((idle, silent, kept_alive));
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_finish_at_the_deadline() {
    let options = ServerOptions {
        shutdown_deadline: Duration::from_millis(200),
        ..server_options()
    };
    let server = Server::with(service_options(), options).await;
    let client = server.client().await;
    server.member.gate.forget_permits(Semaphore::MAX_PERMITS);
    let calls: Vec<_> = (0..20)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { client.put(&format!("k{number}"), "1").await })
        })
        .collect();
    until(|| server.member.waiting() == 20).await;
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(20), server.task)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.member.waiting(), 0, "every call was dropped");
    for call in calls {
        assert!(call.await.unwrap().is_err());
    }
}
