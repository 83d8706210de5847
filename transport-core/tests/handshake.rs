//! The handshake's rules row by row, and on the headers of captured requests.

mod support;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use transport_core::{ClusterId, MemberId, handshake::*};

use support::exchanges;

const LOCAL: MemberId = MemberId(0xb66b_2921_ec55_2136);
const PEER: MemberId = MemberId(0x8129_e037_1791_2765);
const CLUSTER: ClusterId = ClusterId(0x5d94_8785_6336_506b);

fn identity() -> Identity {
    Identity::new(LOCAL, CLUSTER, Version::new(3, 5, 1))
}

/// One peer, possibly removed.
struct Members {
    removed: bool,
}

impl Membership for Members {
    fn is_removed(&self, id: MemberId) -> bool {
        self.removed && id == PEER
    }

    fn is_peer(&self, id: MemberId) -> bool {
        !self.removed && id == PEER
    }
}

#[test]
fn a_captured_stream_request_is_accepted_and_is_what_we_would_send() {
    for (name, version) in [
        ("stream-request-3.6.16.http", Version::new(3, 6, 16)),
        ("stream-request-3.7.3.http", Version::new(3, 7, 3)),
    ] {
        let request = exchanges(name).remove(0);
        let theirs = Headers::new(&request.headers);
        let to: MemberId = theirs.raft_to().unwrap().parse().unwrap();
        let cluster: ClusterId = theirs.cluster_id().unwrap().parse().unwrap();
        let path = request.start.split(' ').nth(1).unwrap();

        struct Everyone;
        impl Membership for Everyone {
            fn is_removed(&self, _: MemberId) -> bool {
                false
            }
            fn is_peer(&self, _: MemberId) -> bool {
                true
            }
        }
        let local = Identity::new(to, cluster, Version::new(3, 6, 0));
        let accepted = check_stream(&local, &Method::GET, path, &request.headers, &Everyone);
        let accepted = accepted.unwrap();
        assert_eq!(accepted.kind, StreamKind::MsgAppV2);
        assert_eq!(Some(accepted.from), theirs.server_from());

        let mut dialler = Identity::new(accepted.from, cluster, version);
        dialler.peer_urls = theirs.peer_urls();
        let ours = dialler.request_headers(Some(to));
        let mut theirs = request.headers.clone();
        for name in ["host", "user-agent", "accept-encoding"] {
            theirs.remove(name);
        }
        assert_eq!(ours, theirs);
        assert_eq!(accepted.kind.path(dialler.id), path);
    }
}

#[test]
fn captured_posts_are_accepted_with_their_introduction() {
    for name in [
        "pipeline-posts-from-3.5.1.http",
        "snapshot-post-head-3.7.3.http",
        "probing-3.6.16.http",
        "probing-3.7.3.http",
    ] {
        for request in exchanges(name) {
            let mut words = request.start.split(' ');
            if words.next() != Some("POST") || words.next() == Some(PROBING_PATH) {
                continue;
            }
            let theirs = Headers::new(&request.headers);
            let cluster = theirs.cluster_id().unwrap().parse().unwrap();
            let local = Identity::new(LOCAL, cluster, Version::new(3, 6, 0));
            let introduction = check_post(&local, &Method::POST, &request.headers).unwrap();
            let introduction = introduction.unwrap();
            assert_eq!(Some(introduction.id), theirs.server_from());
            assert_eq!(introduction.urls.len(), 1);
        }
    }
}

/// Headers of an acceptable request, with some of them replaced, or left out when empty.
fn headers(changes: &[(&str, &str)]) -> HeaderMap {
    let sender = Identity::new(PEER, CLUSTER, Version::new(3, 6, 0));
    let mut headers = sender.request_headers(Some(LOCAL));
    for (name, value) in changes {
        let name: http::HeaderName = name.parse().unwrap();
        headers.remove(&name);
        if !value.is_empty() {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
    }
    headers
}

fn stream(path: &str, changes: &[(&str, &str)]) -> Result<StreamRequest, Verdict> {
    let members = Members { removed: false };
    check_stream(&identity(), &Method::GET, path, &headers(changes), &members)
}

#[test]
fn stream_requests_row_by_row() {
    let good = "/raft/stream/message/8129e03717912765";
    let accepted = |kind| Ok(StreamRequest { kind, from: PEER });
    let urls = Introduction {
        id: MemberId(0x1234),
        urls: vec!["http://a:1".into(), "http://b:2".into()],
    };
    let message = || accepted(StreamKind::Message);
    for (path, changes, expected) in [
        (good, &[][..], message()),
        (
            "/raft/stream/msgapp/8129e03717912765",
            &[],
            accepted(StreamKind::MsgAppV2),
        ),
        ("/raft/stream/message/008129E03717912765", &[], message()),
        (
            "/raft/stream/message/0x8129e03717912765",
            &[],
            Err(Verdict::InvalidFrom),
        ),
        (
            "/raft/stream/message/+8129e03717912765",
            &[],
            Err(Verdict::InvalidFrom),
        ),
        ("/raft/stream/message", &[], Err(Verdict::InvalidPath)),
        ("/raft/stream/", &[], Err(Verdict::InvalidPath)),
        ("/raft/stream", &[], Err(Verdict::InvalidPath)),
        (
            "/raft/streams/message/8129e03717912765",
            &[],
            Err(Verdict::InvalidPath),
        ),
        (
            "/raft/streammessage/8129e03717912765",
            &[],
            Err(Verdict::InvalidPath),
        ),
        (
            "/raft/stream/message/x/8129e03717912765",
            &[],
            Err(Verdict::InvalidPath),
        ),
        (
            "/raft/stream/message/1234",
            &[],
            Err(Verdict::SenderNotFound(None)),
        ),
        (
            "/raft/stream/message/1234",
            &[("x-peerurls", "http://a:1,http://b:2")],
            Err(Verdict::SenderNotFound(Some(urls))),
        ),
        (good, &[("x-raft-to", "")], Err(Verdict::ToFieldMismatch)),
        (
            good,
            &[("x-raft-to", "B66B2921EC552136")],
            Err(Verdict::ToFieldMismatch),
        ),
        (
            good,
            &[("x-etcd-cluster-id", "")],
            Err(Verdict::ClusterIdMismatch),
        ),
        (
            good,
            &[("x-etcd-cluster-id", "05d9487856336506b")],
            Err(Verdict::ClusterIdMismatch),
        ),
        // Ours is 3.5.1 with a minimum of 3.0.0; only major and minor count.
        (good, &[("x-server-version", "3.0.0-alpha")], message()),
        (good, &[("x-server-version", "4.9.9")], message()),
        (
            good,
            &[("x-server-version", "2.9.9")],
            Err(Verdict::IncompatibleVersion),
        ),
        (
            good,
            &[("x-server-version", "")],
            Err(Verdict::IncompatibleVersion),
        ),
        (
            good,
            &[("x-server-version", "v3.5.0")],
            Err(Verdict::IncompatibleVersion),
        ),
        (good, &[("x-min-cluster-version", "")], message()),
        (good, &[("x-min-cluster-version", "3.5.99")], message()),
        (
            good,
            &[("x-min-cluster-version", "3.6.0")],
            Err(Verdict::IncompatibleVersion),
        ),
        (
            good,
            &[("x-min-cluster-version", "3")],
            Err(Verdict::IncompatibleVersion),
        ),
    ] {
        assert_eq!(stream(path, changes), expected, "{path} {changes:?}");
    }
}

#[test]
fn an_introduction_needs_an_id_and_urls() {
    let post = |changes: &[(&str, &str)]| check_post(&identity(), &Method::POST, &headers(changes));
    assert_eq!(post(&[]), Ok(None));
    assert_eq!(
        post(&[("x-peerurls", ","), ("x-server-from", "1")]),
        Ok(None)
    );
    assert_eq!(
        post(&[("x-peerurls", "http://a:1"), ("x-server-from", "z")]),
        Ok(None)
    );
    let introduction = post(&[("x-peerurls", "http://a:1")]).unwrap().unwrap();
    assert_eq!(
        (introduction.id, &introduction.urls[..]),
        (PEER, &["http://a:1".to_owned()][..])
    );
    let flood = "http://a:1,".repeat(1000);
    let bounded = post(&[("x-peerurls", &flood)]).unwrap().unwrap();
    assert_eq!(bounded.urls.len(), 32);
}

#[test]
fn no_verdict_is_forbidden_and_each_body_ends_in_one_line_feed() {
    let cause = || "x".to_owned();
    for verdict in [
        Verdict::MethodNotAllowed { allow: "GET" },
        Verdict::IncompatibleVersion,
        Verdict::ClusterIdMismatch,
        Verdict::InvalidPath,
        Verdict::InvalidFrom,
        Verdict::RemovedMember,
        Verdict::SenderNotFound(None),
        Verdict::ToFieldMismatch,
        Verdict::MessageUnreadable,
        Verdict::MessageMalformed,
        Verdict::MessageRefused,
        Verdict::SnapshotMalformed { cause: cause() },
        Verdict::SnapshotWrongType,
        Verdict::SnapshotUnsaved { cause: cause() },
        Verdict::SnapshotRefused { cause: cause() },
    ] {
        assert_ne!(verdict.status(), StatusCode::FORBIDDEN);
        assert!(verdict.status().is_client_error() || verdict.status().is_server_error());
        assert_eq!(verdict.body(), format!("{}\n", verdict.text()));
        assert_eq!(verdict.aborts(), verdict == Verdict::MessageRefused);
        assert_eq!(
            verdict.status() == StatusCode::GONE,
            verdict == Verdict::RemovedMember
        );
    }
}

#[test]
fn dial_answers_row_by_row() {
    let local = Version::new(3, 6, 0);
    let code = |code| StatusCode::from_u16(code).unwrap();
    for (version, status, body, expected) in [
        ("3.6.0", 200, "", DialVerdict::Accepted),
        ("3.7.3", 200, "", DialVerdict::Accepted),
        ("4.0.0", 200, "", DialVerdict::Accepted),
        ("3.0.0", 200, "", DialVerdict::Accepted),
        ("2.3.8", 200, "", DialVerdict::Accepted),
        ("2.1.0", 200, "", DialVerdict::Accepted),
        ("2.0.0", 200, "", DialVerdict::Unsupported),
        ("2.4.0", 200, "", DialVerdict::Unsupported),
        ("1.0.0", 200, "", DialVerdict::Unsupported),
        ("", 200, "", DialVerdict::Unsupported),
        ("", 404, "", DialVerdict::Unsupported),
        ("3.6", 200, "", DialVerdict::Unsupported),
        ("3.6.0", 410, "removed member\n", DialVerdict::Removed),
        (
            "3.6.0",
            404,
            "error sender not found\n",
            DialVerdict::NotFound,
        ),
        (
            "3.6.0",
            412,
            "incompatible version\n",
            DialVerdict::IncompatibleVersion,
        ),
        (
            "3.6.0",
            412,
            "cluster ID mismatch",
            DialVerdict::ClusterIdMismatch,
        ),
        (
            "3.6.0",
            412,
            "to field mismatch\n",
            DialVerdict::PreconditionFailed,
        ),
        (
            "3.6.0",
            412,
            "cluster ID mismatch\n\n",
            DialVerdict::PreconditionFailed,
        ),
        ("3.6.0", 412, "", DialVerdict::PreconditionFailed),
        ("3.6.0", 204, "", DialVerdict::Unexpected(code(204))),
        ("3.6.0", 403, "", DialVerdict::Unexpected(code(403))),
        ("3.6.0", 301, "", DialVerdict::Unexpected(code(301))),
        ("3.6.0", 500, "", DialVerdict::Unexpected(code(500))),
    ] {
        let headers = headers(&[("x-server-version", version)]);
        for kind in StreamKind::ALL {
            let verdict = DialVerdict::read(local, kind, code(status), &headers, body.as_bytes());
            assert_eq!(verdict, expected, "{version} {status} {body:?}");
        }
        assert_eq!(DialVerdict::needs_body(code(status)), status == 412);
    }
}

#[test]
fn post_answers_row_by_row() {
    let code = |code| StatusCode::from_u16(code).unwrap();
    for (status, body, expected) in [
        (204, "", PostVerdict::Delivered),
        (200, "", PostVerdict::Unexpected(code(200))),
        (201, "", PostVerdict::Unexpected(code(201))),
        (403, "", PostVerdict::Removed),
        (
            412,
            "incompatible version\n",
            PostVerdict::IncompatibleVersion,
        ),
        (412, "cluster ID mismatch\n", PostVerdict::ClusterIdMismatch),
        (412, "to field mismatch\n", PostVerdict::PreconditionFailed),
        (
            500,
            "error processing raft message\n",
            PostVerdict::Unexpected(code(500)),
        ),
    ] {
        assert_eq!(
            PostVerdict::read(code(status), body.as_bytes()),
            expected,
            "{status}"
        );
    }
}
