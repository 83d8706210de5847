//! POST `/raft/snapshot`.

use bytes::{BufMut, BytesMut};
use transport_core::{MemberId, frame::snapshot::encode_envelope, raftpb::Message};
use transport_http::ProcessError;

use crate::{
    LOCAL, NO_CLUSTER, NO_VERSION, PEER, REMOVED, TELLS_CLUSTER,
    case::{Case, Rule, case},
    common::{append, snapshot},
};

const PATH: &str = "/raft/snapshot";
const NOT_PROTOBUF: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff];

/// `urls` is where somebody listens.
pub fn cases(urls: &str) -> Vec<Case> {
    let mut cases = malformed();
    cases.extend(unsaved());
    cases.extend(refused_by_raft());
    cases.extend(delivered(urls));
    cases
}

fn refused(check: u8, name: &'static str, status: u16, text: impl ToString) -> Case {
    case(Rule::Snapshot(check), name, ("POST", PATH), status, text)
        .expect(&[TELLS_CLUSTER, NO_VERSION])
}

fn with_database(message: &Message) -> Vec<u8> {
    [&encode_envelope(message)[..], b"database"].concat()
}

fn malformed() -> Vec<Case> {
    let mut over = BytesMut::new();
    over.put_u64((64 << 20) + 1);
    let whole = encode_envelope(&snapshot(PEER, LOCAL, 7));
    let without = Message {
        snapshot: None,
        ..snapshot(PEER, LOCAL, 7)
    };
    let malformed = |check, name, cause: &str| {
        let text = format!("failed to decode raft message ({cause})\n");
        refused(check, name, 400, text)
    };
    let too_long = |name| malformed(3, name, "rafthttp: error limit exceeded");
    let short = |name| malformed(4, name, "unexpected EOF");
    vec![
        case(
            Rule::Snapshot(1),
            "only POST",
            ("GET", PATH),
            405,
            "Method Not Allowed\n",
        )
        .expect(&[("allow", "POST"), NO_CLUSTER]),
        too_long("an absurd length").body([0xff; 8]),
        too_long("a length over the limit").body(over),
        short("no body"),
        short("no envelope").body("garbage"),
        short("half an envelope").body(&whole[..20]),
        malformed(4, "an envelope that ends early", "")
            .around("failed to decode raft message (", ")\n")
            .body(&whole[..20])
            .missing(whole.len() - 20),
        malformed(4, "not protobuf", "")
            .around("failed to decode raft message (", ")\n")
            .body(NOT_PROTOBUF),
        malformed(4, "no snapshot in it", "snapshot is missing").body(encode_envelope(&without)),
        refused(5, "another kind", 400, "wrong raft message type\n")
            .body(encode_envelope(&append(PEER, LOCAL, 3, 10))),
    ]
}

fn unsaved() -> Vec<Case> {
    vec![
        refused(
            6,
            "no index",
            500,
            "failed to save KV snapshot (the snapshot has no index)\n",
        )
        .body(encode_envelope(&snapshot(PEER, LOCAL, 0))),
        refused(6, "a database that ends early", 500, "")
            .around("failed to save KV snapshot (", ")\n")
            .body(with_database(&snapshot(PEER, LOCAL, 5)))
            .missing(1),
    ]
}

fn refused_by_raft() -> Vec<Case> {
    let heard = snapshot(PEER, LOCAL, 9);
    let refused_with = |name, error: ProcessError| {
        let text = format!("failed to process raft message ({error})\n");
        refused(7, name, 500, text)
            .body(with_database(&heard))
            .raft(error)
            .delivers(heard.clone())
    };
    // These two are refused before their database is received, in the words of raft.
    let unasked = |name, error: ProcessError, message: &Message| {
        let text = format!("failed to process raft message ({error})\n");
        refused(7, name, 500, text).body(encode_envelope(message))
    };
    vec![
        unasked(
            "not for us",
            ProcessError::NotForUs(MemberId(9)),
            &snapshot(PEER, 9, 7),
        ),
        unasked(
            "from a removed member",
            ProcessError::Removed(MemberId(REMOVED)),
            &snapshot(REMOVED, LOCAL, 7),
        ),
        refused_with(
            "a sender raft knows as removed",
            ProcessError::Removed(MemberId(PEER)),
        ),
        refused_with(
            "meant for another, says raft",
            ProcessError::NotForUs(MemberId(9)),
        ),
        refused_with("raft has stopped", ProcessError::Stopped),
        refused_with("raft is busy", ProcessError::Dropped("busy".to_owned())),
    ]
}

fn delivered(urls: &str) -> Vec<Case> {
    let delivered = |name, index| {
        let message = snapshot(PEER, LOCAL, index);
        case(Rule::Snapshot(8), name, ("POST", PATH), 204, "")
            .body(with_database(&message))
            .delivers(message)
            .only(&[TELLS_CLUSTER, NO_VERSION, ("content-length", "")])
    };
    vec![
        delivered("a snapshot", 7),
        delivered("a sender with URLs", 8)
            .header("X-Server-From", "73")
            .header("X-PeerURLs", urls)
            .introduces(0x73),
    ]
}
