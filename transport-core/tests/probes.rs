//! Every answer a real member gave to a probe of its peer port is the answer the rules give.

mod support;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use transport_core::{
    ClusterId, MemberId,
    frame::snapshot::{ENVELOPE_BYTES_MAX, EnvelopeDecoder},
    handshake::*,
    raftpb::decode_message,
};

use support::{find, fixture, header};

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

/// What came out: a status, headers, and a body.
type Answer = (StatusCode, HeaderMap, String);

fn answer(verdict: Verdict, endpoint: Endpoint) -> Answer {
    let headers = verdict.headers(&identity(), endpoint);
    (verdict.status(), headers, verdict.body())
}

/// A peer port made of nothing but the rules.
fn serve(method: &Method, path: &str, headers: &HeaderMap, body: &[u8], removed: bool) -> Answer {
    let local = identity();
    let members = Members { removed };
    if path.starts_with(STREAM_PATH) {
        return match check_stream(&local, method, path, headers, &members) {
            Ok(_) => (StatusCode::OK, local.stream_headers(), String::new()),
            Err(verdict) => answer(verdict, Endpoint::Stream),
        };
    }
    let endpoint = match path {
        RAFT_PATH => Endpoint::Raft,
        SNAPSHOT_PATH => Endpoint::Snapshot,
        other => panic!("{other}"),
    };
    if let Err(verdict) = check_post(&local, method, headers) {
        return answer(verdict, endpoint);
    }
    let body = Bytes::copy_from_slice(body);
    let refused = match endpoint {
        Endpoint::Raft if removed => Some(Verdict::MessageRefused),
        Endpoint::Raft => decode_message(body)
            .err()
            .map(|_| Verdict::MessageMalformed),
        _ => {
            let mut decoder = EnvelopeDecoder::new(ENVELOPE_BYTES_MAX);
            let error = decoder.feed(body).err().unwrap_or_else(|| decoder.finish());
            let cause = error.to_string();
            Some(Verdict::SnapshotMalformed { cause })
        }
    };
    match refused {
        Some(verdict) => answer(verdict, endpoint),
        None => (
            StatusCode::NO_CONTENT,
            local.cluster_headers(),
            String::new(),
        ),
    }
}

/// A request sent with curl, and what the member answered.
struct Probe {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
    removed: bool,
    /// `None`: the connection was closed without an answer.
    answer: Option<Answer>,
}

fn probes() -> Vec<Probe> {
    const HOST: &[u8] = b" http://127.0.0.1:12380";
    let mut rest = &fixture("http-error-probes-3.5.1.txt")[..];
    let mut found = Vec::new();
    let mut removed = false;
    while let Some(at) = find(rest, b"##### ") {
        removed |= find(&rest[..at], b" removed from cluster ").is_some();
        let block = &rest[at + 5..];
        let url = find(block, HOST).unwrap();
        let (options, block) = (&block[..url], &block[url + HOST.len()..]);
        let line = find(block, b"\n").unwrap();
        let end = find(block, b" [rc=").unwrap();
        let path = str::from_utf8(&block[..line]).unwrap().to_owned();
        let answer = (line < end).then(|| parse_answer(&block[line + 1..end]));
        rest = &block[end..];
        if path.starts_with(STREAM_PATH) || path == RAFT_PATH || path == SNAPSHOT_PATH {
            let (method, headers, body) = parse_options(options);
            found.push(Probe {
                method,
                path,
                headers,
                body,
                removed,
                answer: answer.flatten(),
            });
        }
    }
    found
}

/// `-X METHOD`, `-H Name:value` and `--data-binary bytes`.
fn parse_options(options: &[u8]) -> (Method, HeaderMap, Vec<u8>) {
    let mut method = Method::GET;
    let mut headers = HeaderMap::new();
    let mut body = Vec::new();
    let mut words = options.split(|b| *b == b' ').filter(|w| !w.is_empty());
    while let Some(option) = words.next() {
        let value = words.next().unwrap();
        match option {
            b"-X" => method = Method::from_bytes(value).unwrap(),
            b"-H" => {
                headers.extend([header(str::from_utf8(value).unwrap())].map(|(n, v)| (Some(n), v)))
            }
            b"--data-binary" => body = value.to_vec(),
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    (method, headers, body)
}

fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let end = find(bytes, b"\r\n\r\n")?;
    let head = str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
    let body = String::from_utf8(bytes[end + 4..].to_vec()).unwrap();
    Some((status, lines.map(header).collect(), body))
}

#[test]
fn real_answers_are_ours() {
    let probes = probes();
    assert_eq!(probes.len(), 21);
    for probe in probes {
        let Probe {
            method,
            path,
            headers,
            body,
            removed,
            answer,
        } = probe;
        let what = format!("{method} {path} {headers:?}");
        let (status, ours, text) = serve(&method, &path, &headers, &body, removed);
        let Some((theirs_status, mut theirs, theirs_text)) = answer else {
            // A version that is no triple: there the handler panicked.
            assert_eq!(
                (status, &text[..]),
                (StatusCode::PRECONDITION_FAILED, "incompatible version\n")
            );
            continue;
        };
        assert_eq!(status, theirs_status, "{what}");
        assert_eq!(text, theirs_text, "{what}");
        // What the HTTP library adds.
        theirs.remove("date");
        theirs.remove("transfer-encoding");
        if let Some(length) = theirs.remove("content-length") {
            assert_eq!(length, text.len().to_string(), "{what}");
        }
        assert_eq!(ours, theirs, "{what}");
    }
}
