//! The peer port over a socket: one case per rule of etcd's handlers, with the exact status, headers and body.
//!
//! etcd: server/etcdserver/api/rafthttp/http.go, its handlers and their checks from top to bottom.

mod case;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod pipeline;
mod snapshot;
mod stream;

use std::{collections::BTreeSet, sync::Arc};

use bytes::BytesMut;
use case::{Case, Rule};
use common::{
    Member, message,
    raw::{Raw, chunk, fake_peer, request},
    snapshot,
};
use tokio::net::TcpListener;
use transport_core::{
    MemberId,
    frame::snapshot::encode_envelope,
    raftpb::{MessageType, encode_message},
};
use transport_http::SnapDir;

const LOCAL: u64 = 0xb66b_2921_ec55_2136;
const PEER: u64 = 0x8129_e037_1791_2765;
const REMOVED: u64 = 0xdead;
/// Of a body posted to `/raft`.
const LIMIT: usize = 64 << 10;

const CLUSTER_TEXT: &str = "5d9487856336506b";
const TELLS_CLUSTER: (&str, &str) = ("x-etcd-cluster-id", CLUSTER_TEXT);
const TELLS_VERSION: (&str, &str) = ("x-server-version", "3.6.0");
const NO_CLUSTER: (&str, &str) = ("x-etcd-cluster-id", "");
const NO_VERSION: (&str, &str) = ("x-server-version", "");

/// The last rule of each handler.
const LAST_RULES: [Rule; 6] = [
    Rule::Compatibility(3),
    Rule::Stream(8),
    Rule::Pipeline(7),
    Rule::Snapshot(8),
    Rule::Probing(1),
    Rule::Elsewhere(2),
];

fn stream_path(kind: &str, from: u64) -> String {
    format!("/raft/stream/{kind}/{from:x}")
}

/// `urls` is where somebody listens.
fn table(urls: &str) -> Vec<Case> {
    [
        cases::compatibility(),
        stream::cases(urls),
        pipeline::cases(urls),
        snapshot::cases(urls),
        cases::probing(),
        cases::elsewhere(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

async fn member() -> (Member, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let recorder = common::recorder::TestRecorder::default();
    let sink = Arc::new(SnapDir::new(dir.path(), &(Arc::new(recorder) as _)));
    let small =
        |config: &mut transport_http::TransportConfig| config.limits.post_body_bytes = LIMIT;
    let member = Member::start_full(LOCAL, small, sink).await;
    member
        .transport
        .add_peer(MemberId(PEER), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    member.raft.removed.lock().unwrap().push(MemberId(REMOVED));
    (member, dir)
}

/// A message to `to` arrives where `to` said it listens.
async fn is_answered(member: &Member, to: u64, listener: &TcpListener, what: &str) {
    let answer = message(MessageType::AppendResponse, LOCAL, to);
    member.transport.send(vec![answer]);
    let post = Raw::accept(listener).await.head().await.unwrap();
    assert_eq!(post.start, "POST /raft HTTP/1.1", "{what}");
}

#[tokio::test]
async fn every_rule_of_the_peer_port() {
    let (mut member, _dir) = member().await;
    let (listener, urls) = fake_peer().await;
    let table = table(&urls[0]);
    for case in &table {
        let what = case.what();
        *member.raft.answer.lock().unwrap() = case.raft.clone();
        case.check(&member).await;
        assert_eq!(member.messages.try_recv().ok(), case.delivered, "{what}");
        if let Some(id) = case.introduced {
            is_answered(&member, id, &listener, &what).await;
        }
    }
    let all = LAST_RULES.into_iter().flat_map(Rule::up_to);
    let had = table.iter().map(|case| case.rule);
    assert_eq!(had.collect::<BTreeSet<_>>(), all.collect());
    member.stop().await;
}

#[tokio::test]
async fn a_broken_or_stalled_body_ends_its_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = common::recorder::TestRecorder::default();
    let sink = Arc::new(SnapDir::new(dir.path(), &(Arc::new(recorder) as _)));
    let mut member = Member::start_full(LOCAL, common::hurried, sink).await;
    // Announced, but never sent: given up after the read timeout.
    let mut raw = Raw::connect(member.address).await;
    raw.write(request("POST", "/raft", &[("Content-Length", "100")]))
        .await;
    let head = raw.head().await.unwrap();
    assert_eq!(head.status(), 400);
    assert_eq!(raw.body(&head).await, b"error reading raft message\n");
    // A database that stops in the middle.
    let mut raw = Raw::connect(member.address).await;
    raw.write(request(
        "POST",
        "/raft/snapshot",
        &[("Transfer-Encoding", "chunked")],
    ))
    .await;
    raw.write(chunk(&encode_envelope(&snapshot(PEER, LOCAL, 7))))
        .await;
    raw.write(chunk(b"half a database")).await;
    let head = raw.head().await.unwrap();
    assert_eq!(head.status(), 500);
    assert_eq!(
        raw.body(&head).await,
        b"failed to save KV snapshot (the sender is silent)\n"
    );
    // A head that never ends.
    let mut raw = Raw::connect(member.address).await;
    raw.write("POST /raft HTTP/1.1\r\nX-Slow: ").await;
    assert!(raw.head().await.is_none_or(|head| head.status() >= 400));
    // Bytes that are not HTTP.
    let mut raw = Raw::connect(member.address).await;
    raw.write([0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3, 13, 10, 13, 10])
        .await;
    assert!(raw.head().await.is_none_or(|head| head.status() >= 400));
    let vote = message(MessageType::RequestVote, PEER, LOCAL);
    let mut body = BytesMut::new();
    encode_message(&vote, &mut body);
    let length = body.len().to_string();
    let mut raw = Raw::connect(member.address).await;
    let head = request("POST", "/raft", &[("Content-Length", &length)]);
    raw.write([head.as_bytes(), &body].concat()).await;
    assert_eq!(member.message().await, vote);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was left behind"
    );
    member.stop().await;
}

#[tokio::test]
async fn a_request_head_is_bounded() {
    let member = Member::start(1).await;
    let padding = |bytes: usize| "x".repeat(bytes);
    for (bytes, status) in [(8 << 10, 200), (20 << 10, 431)] {
        let mut raw = Raw::connect(member.address).await;
        let padding = padding(bytes);
        raw.write(request("GET", "/raft/probing", &[("X-Padding", &padding)]))
            .await;
        assert_eq!(raw.head().await.unwrap().status(), status, "{bytes}");
    }
    member.stop().await;
}
