//! The peer port over a socket: one case per rule of etcd's handlers, with the exact status, headers and body.

mod common;

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use common::{
    Member, append, message,
    raw::{Head, Raw, chunk, request},
    snapshot,
};
use transport_core::{
    MemberId,
    frame::snapshot::encode_envelope,
    raftpb::{Message, MessageType, encode_message},
};
use transport_http::{ProcessError, SnapDir};

const LOCAL: u64 = 0xb66b_2921_ec55_2136;
const PEER: u64 = 0x8129_e037_1791_2765;
const REMOVED: u64 = 0xdead;

/// What is asked, and what must come.
struct Case {
    name: &'static str,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    text: String,
    /// Headers that must be there with these values; an empty value means it must not be there.
    expected: Vec<(&'static str, &'static str)>,
}

const CLUSTER_TEXT: &str = "5d9487856336506b";
const PLAIN: (&str, &str) = ("content-type", "text/plain; charset=utf-8");
const NOSNIFF: (&str, &str) = ("x-content-type-options", "nosniff");
const TELLS_CLUSTER: (&str, &str) = ("x-etcd-cluster-id", CLUSTER_TEXT);
const TELLS_VERSION: (&str, &str) = ("x-server-version", "3.6.0");
const NO_CLUSTER: (&str, &str) = ("x-etcd-cluster-id", "");
const NO_VERSION: (&str, &str) = ("x-server-version", "");

fn case(
    name: &'static str,
    method: &'static str,
    path: impl ToString,
    status: u16,
    text: impl ToString,
) -> Case {
    let (path, text) = (path.to_string(), text.to_string());
    Case {
        name,
        method,
        path,
        headers: Vec::new(),
        body: Vec::new(),
        status,
        text,
        expected: vec![PLAIN, NOSNIFF],
    }
}

impl Case {
    fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn expect(mut self, expected: &[(&'static str, &'static str)]) -> Self {
        self.expected.extend(expected);
        self
    }

    fn only(mut self, expected: &[(&'static str, &'static str)]) -> Self {
        self.expected = expected.to_vec();
        self
    }
}

fn stream_path(kind: &str, from: u64) -> String {
    format!("/raft/stream/{kind}/{from:x}")
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode_message(message, &mut bytes);
    bytes.to_vec()
}

fn compatibility_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (method, path, tells_version) in [
        ("GET", stream_path("message", PEER), TELLS_VERSION),
        ("POST", "/raft".to_owned(), NO_VERSION),
        ("POST", "/raft/snapshot".to_owned(), NO_VERSION),
    ] {
        let refused = |name, text: &str| {
            case(name, method, &path, 412, text).expect(&[TELLS_CLUSTER, tells_version])
        };
        let version = "incompatible version\n";
        let cluster = "cluster ID mismatch\n";
        cases.extend([
            refused("sender older than our minimum", version).header("X-Server-Version", "2.3.0"),
            refused("no version means 2.0.0", version).header("X-Server-Version", ""),
            refused("sender's minimum above us", version).header("X-Min-Cluster-Version", "3.9.0"),
            refused("minimum a minor above us", version)
                .header("X-Min-Cluster-Version", "3.7.0-alpha.0"),
            refused("a version Go panics on", version).header("X-Server-Version", "3.6"),
            refused("a version with a letter", version).header("X-Server-Version", "v3.6.0"),
            refused("a minimum that is no version", version)
                .header("X-Min-Cluster-Version", "\u{e4}"),
            refused("another cluster", cluster).header("X-Etcd-Cluster-ID", "1"),
            refused("no cluster", cluster).header("X-Etcd-Cluster-ID", ""),
            refused("the cluster padded", cluster)
                .header("X-Etcd-Cluster-ID", format!("0{CLUSTER_TEXT}")),
        ]);
    }
    cases
}

fn stream_cases() -> Vec<Case> {
    let to_us = format!("{LOCAL:x}");
    let path = stream_path("message", PEER);
    let both = [TELLS_CLUSTER, TELLS_VERSION];
    let mut cases = Vec::new();
    for method in ["PUT", "POST", "DELETE"] {
        cases.push(
            case("only GET", method, &path, 405, "Method Not Allowed\n")
                .header("X-Server-Version", "")
                .expect(&[("allow", "GET"), NO_CLUSTER, NO_VERSION]),
        );
    }
    for kind in ["strange", "message/message", "msgApp", ""] {
        let path = stream_path(kind, PEER);
        cases.push(case("neither stream", "GET", path, 404, "invalid path\n").expect(&both));
    }
    cases.push(case("no kind", "GET", "/raft/stream/", 404, "invalid path\n").expect(&both));
    for from in ["", "xyz", "0x1", "-1", "+1", "11112222333344445"] {
        let path = format!("/raft/stream/message/{from}");
        cases.push(case("sender is no id", "GET", path, 404, "invalid from\n").expect(&both));
    }
    let removed = stream_path("msgapp", REMOVED);
    cases.extend([
        case("removed sender", "GET", removed, 410, "removed member\n").expect(&both),
        case(
            "unknown sender",
            "GET",
            stream_path("message", 0x1234),
            404,
            "error sender not found\n",
        )
        .expect(&both),
        case(
            "meant for another",
            "GET",
            &path,
            412,
            "to field mismatch\n",
        )
        .header("X-Raft-To", "1")
        .expect(&both),
        case("meant for nobody", "GET", &path, 412, "to field mismatch\n").expect(&both),
        case("our id padded", "GET", &path, 412, "to field mismatch\n")
            .header("X-Raft-To", format!("0{to_us}"))
            .expect(&both),
        case(
            "the mux adds the slash",
            "GET",
            "/raft/stream",
            301,
            "<a href=\"/raft/stream/\">Moved Permanently</a>.\n\n",
        )
        .only(&[
            ("location", "/raft/stream/"),
            ("content-type", "text/html; charset=utf-8"),
            NO_CLUSTER,
        ]),
        case("for every method", "POST", "/raft/stream?a=b", 301, "")
            .only(&[("location", "/raft/stream/?a=b")]),
    ]);
    cases
}

fn pipeline_cases() -> Vec<Case> {
    let delivered = [TELLS_CLUSTER, NO_VERSION, ("content-length", "")];
    let mut cases = Vec::new();
    for method in ["GET", "PUT", "DELETE"] {
        cases.push(
            case("only POST", method, "/raft", 405, "Method Not Allowed\n")
                .header("X-Etcd-Cluster-ID", "")
                .expect(&[("allow", "POST"), NO_CLUSTER, NO_VERSION]),
        );
    }
    let garbage = case(
        "garbage",
        "POST",
        "/raft",
        400,
        "error unmarshalling raft message\n",
    );
    let oversized = case(
        "a body over the limit",
        "POST",
        "/raft",
        400,
        "error reading raft message\n",
    );
    let heartbeat = message(MessageType::Heartbeat, PEER, LOCAL);
    cases.extend([
        garbage.body("garbage").expect(&[TELLS_CLUSTER, NO_VERSION]),
        oversized
            .body(vec![0; LIMIT + 1])
            .expect(&[TELLS_CLUSTER, NO_VERSION]),
        case("a message", "POST", "/raft", 204, "")
            .body(encoded(&heartbeat))
            .only(&delivered),
        case("an empty body is a message", "POST", "/raft", 204, "").only(&delivered),
        case("sender without URLs", "POST", "/raft", 204, "")
            .header("X-Server-From", "77")
            .only(&delivered),
        case("URLs that are none", "POST", "/raft", 204, "")
            .header("X-Server-From", "77")
            .header("X-PeerURLs", "not a url,,http://a/b")
            .only(&delivered),
        case("a sender that is no id", "POST", "/raft", 204, "")
            .header("X-Server-From", "nobody")
            .header("X-PeerURLs", "http://127.0.0.1:1")
            .only(&delivered),
    ]);
    cases
}

fn snapshot_cases() -> Vec<Case> {
    let path = "/raft/snapshot";
    let refused =
        |name, text: &str| case(name, "POST", path, 400, text).expect(&[TELLS_CLUSTER, NO_VERSION]);
    let mut over = BytesMut::new();
    over.put_u64((64 << 20) + 1);
    let mut not_protobuf = BytesMut::new();
    not_protobuf.put_u64(2);
    not_protobuf.put_slice(&[0xff, 0xff]);
    let whole = encode_envelope(&snapshot(PEER, LOCAL, 7));
    let without = Message {
        snapshot: None,
        ..snapshot(PEER, LOCAL, 7)
    };
    vec![
        case("only POST", "GET", path, 405, "Method Not Allowed\n")
            .expect(&[("allow", "POST"), NO_CLUSTER]),
        refused(
            "no envelope",
            "failed to decode raft message (unexpected EOF)\n",
        )
        .body("garbage"),
        refused(
            "half an envelope",
            "failed to decode raft message (unexpected EOF)\n",
        )
        .body(&whole[..20]),
        refused(
            "an absurd length",
            "failed to decode raft message (rafthttp: error limit exceeded)\n",
        )
        .body([0xff; 8]),
        refused(
            "a length over the limit",
            "failed to decode raft message (rafthttp: error limit exceeded)\n",
        )
        .body(over),
        refused("another kind", "wrong raft message type\n")
            .body(encode_envelope(&append(PEER, LOCAL, 3, 10))),
        refused(
            "no snapshot in it",
            "failed to decode raft message (snapshot is missing)\n",
        )
        .body(encode_envelope(&without)),
        case(
            "not for us",
            "POST",
            path,
            500,
            "failed to process raft message (message is addressed to member 9)\n",
        )
        .body(encode_envelope(&snapshot(PEER, 9, 7)))
        .expect(&[TELLS_CLUSTER, NO_VERSION]),
        case(
            "from a removed member",
            "POST",
            path,
            500,
            "failed to process raft message (sender dead was removed from the cluster)\n",
        )
        .body(encode_envelope(&snapshot(REMOVED, LOCAL, 7)))
        .expect(&[TELLS_CLUSTER, NO_VERSION]),
        case(
            "no index",
            "POST",
            path,
            500,
            "failed to save KV snapshot (the snapshot has no index)\n",
        )
        .body(encode_envelope(&snapshot(PEER, LOCAL, 0)))
        .expect(&[TELLS_CLUSTER, NO_VERSION]),
        case("a snapshot", "POST", path, 204, "")
            .body([&whole[..], b"database"].concat())
            .only(&[TELLS_CLUSTER, NO_VERSION, ("content-length", "")]),
    ]
}

fn other_cases() -> Vec<Case> {
    vec![
        case(
            "unknown under our prefix",
            "GET",
            "/raft/foo",
            404,
            "404 page not found\n",
        )
        .expect(&[NO_CLUSTER]),
        case(
            "our prefix and a slash",
            "GET",
            "/raft/",
            404,
            "404 page not found\n",
        ),
        case(
            "deeper than snapshot",
            "POST",
            "/raft/snapshot/x",
            404,
            "404 page not found\n",
        ),
        case("not ours", "GET", "/raftx", 418, "fallback /raftx\n").only(&[]),
        case(
            "not ours either",
            "GET",
            "/version",
            418,
            "fallback /version\n",
        )
        .only(&[]),
    ]
}

const LIMIT: usize = 64 << 10;

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

async fn ask(member: &Member, case: &Case) -> (Head, Vec<u8>) {
    let mut headers: Vec<(&str, &str)> = case
        .headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let length = case.body.len().to_string();
    if case.method != "GET" {
        headers.push(("Content-Length", &length));
    }
    let mut raw = Raw::connect(member.address).await;
    raw.write(request(case.method, &case.path, &headers)).await;
    raw.write(&case.body).await;
    let head = raw
        .head()
        .await
        .unwrap_or_else(|| panic!("{}: no answer", case.name));
    let body = raw.body(&head).await;
    (head, body)
}

#[tokio::test]
async fn every_rule_of_the_peer_port() {
    let (member, _dir) = member().await;
    let all = [
        compatibility_cases(),
        stream_cases(),
        pipeline_cases(),
        snapshot_cases(),
        other_cases(),
    ];
    for case in all.iter().flatten() {
        let (head, body) = ask(&member, case).await;
        let what = format!("{} ({} {})", case.name, case.method, case.path);
        assert_eq!(head.status(), case.status, "{what}: {head:?}");
        assert_eq!(String::from_utf8_lossy(&body), case.text, "{what}");
        for (name, value) in &case.expected {
            assert_eq!(
                head.header(name).unwrap_or_default(),
                *value,
                "{what}: {name}"
            );
        }
        assert!(head.header("date").is_some(), "{what}");
        assert_ne!(head.status(), 403, "{what}: a Go member would stop");
    }
    member.stop().await;
}

#[tokio::test]
async fn an_accepted_stream_has_the_headers_of_go_and_never_ends() {
    let (member, _dir) = member().await;
    for (kind, first) in [
        ("msgapp", &[0][..]),
        ("message", &[0, 0, 0, 0, 0, 0, 0, 2, 8, 8]),
    ] {
        // Upper case and leading zeros in the path are tolerated, as Go tolerates them.
        let path = format!("/raft/stream/{kind}/0{PEER:X}");
        let mut raw = Raw::connect(member.address).await;
        raw.write(request(
            "GET",
            &path,
            &[("X-Raft-To", &format!("{LOCAL:x}"))],
        ))
        .await;
        let head = raw.head().await.unwrap();
        assert_eq!(head.start, "HTTP/1.1 200 OK");
        let names: Vec<&str> = head
            .text
            .lines()
            .skip(1)
            .filter_map(|line| Some(line.split_once(':')?.0))
            .collect();
        for name in [
            "X-Etcd-Cluster-Id",
            "X-Server-Version",
            "Date",
            "Transfer-Encoding",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(head.header("transfer-encoding"), Some("chunked"));
        assert_eq!(
            raw.chunk().await.unwrap().unwrap(),
            first,
            "the first frame is a link heartbeat"
        );
    }
    member.stop().await;
}

#[tokio::test]
async fn what_raft_refuses_is_500_with_a_finite_body() {
    let (member, _dir) = member().await;
    for error in [
        ProcessError::Removed(MemberId(PEER)),
        ProcessError::NotForUs(MemberId(9)),
        ProcessError::Stopped,
        ProcessError::Dropped("busy".to_owned()),
    ] {
        *member.raft.answer.lock().unwrap() = Err(error.clone());
        let posted = case("refused", "POST", "/raft", 500, "");
        let (head, body) = ask(&member, &posted.body(encoded(&append(PEER, LOCAL, 3, 10)))).await;
        assert_eq!(
            (head.status(), &body[..]),
            (500, &b"error processing raft message\n"[..])
        );
        assert_eq!(head.header("x-etcd-cluster-id"), Some(CLUSTER_TEXT));
        let body = [&encode_envelope(&snapshot(PEER, LOCAL, 9))[..], b"database"].concat();
        let (head, body) = ask(
            &member,
            &case("refused", "POST", "/raft/snapshot", 500, "").body(body),
        )
        .await;
        let text = format!("failed to process raft message ({error})\n");
        assert_eq!(
            (head.status(), String::from_utf8(body).unwrap()),
            (500, text)
        );
    }
    member.stop().await;
}

#[tokio::test]
async fn local_and_unknown_kinds_are_answered_and_dropped() {
    let (mut member, _dir) = member().await;
    let unknown = Message {
        msg_type: 99,
        ..message(MessageType::Hup, PEER, LOCAL)
    };
    for dropped in [
        message(MessageType::Hup, PEER, LOCAL),
        message(MessageType::StorageApply, PEER, LOCAL),
        unknown,
    ] {
        let (head, _) = ask(
            &member,
            &case("", "POST", "/raft", 204, "").body(encoded(&dropped)),
        )
        .await;
        assert_eq!(head.status(), 204);
    }
    let vote = message(MessageType::RequestVote, PEER, LOCAL);
    ask(
        &member,
        &case("", "POST", "/raft", 204, "").body(encoded(&vote)),
    )
    .await;
    assert_eq!(member.message().await, vote, "and nothing before it");
    member.stop().await;
}

#[tokio::test]
async fn probing_answers_any_method() {
    let (member, _dir) = member().await;
    for method in ["GET", "POST", "PUT"] {
        let (head, body) = ask(&member, &case("", method, "/raft/probing", 200, "")).await;
        assert_eq!(
            (head.status(), head.header("content-type")),
            (200, Some("text/plain; charset=utf-8"))
        );
        let text = String::from_utf8(body).unwrap();
        assert!(
            text.starts_with("{\"OK\":true,\"Now\":\"20") && text.ends_with("Z\"}\n"),
            "{text}"
        );
    }
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
    ask(
        &member,
        &case("", "POST", "/raft", 204, "").body(encoded(&vote)),
    )
    .await;
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
