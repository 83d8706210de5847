//! POST `/raft`.

use bytes::BytesMut;
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType, encode_message},
};
use transport_http::ProcessError;

use crate::{
    LIMIT, LOCAL, NO_CLUSTER, NO_VERSION, PEER, TELLS_CLUSTER,
    case::{Case, Rule, case},
    common::{append, message},
};

/// `urls` is where somebody listens.
pub fn cases(urls: &str) -> Vec<Case> {
    let mut cases = refused();
    cases.extend(refused_by_raft());
    cases.extend(delivered(urls));
    cases
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    encode_message(message, &mut bytes);
    bytes.to_vec()
}

fn refused() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["GET", "PUT", "DELETE"] {
        let asked = (method, "/raft");
        cases.push(
            case(
                Rule::Pipeline(1),
                "only POST",
                asked,
                405,
                "Method Not Allowed\n",
            )
            .header("X-Etcd-Cluster-ID", "")
            .expect(&[("allow", "POST"), NO_CLUSTER, NO_VERSION]),
        );
    }
    let refused = |check, name, text| {
        let asked = ("POST", "/raft");
        case(Rule::Pipeline(check), name, asked, 400, text).expect(&[TELLS_CLUSTER, NO_VERSION])
    };
    let unread = |name| refused(3, name, "error reading raft message\n");
    let whole = encoded(&append(PEER, LOCAL, 3, 10));
    cases.extend([
        unread("a body that ends early").body(&whole[..]).missing(1),
        unread("a body that never begins").missing(10),
        unread("a body over the limit").body(vec![0; LIMIT + 1]),
        refused(4, "garbage", "error unmarshalling raft message\n").body("garbage"),
        refused(4, "half a message", "error unmarshalling raft message\n")
            .body(&whole[..whole.len() - 1]),
    ]);
    cases
}

/// etcd means to answer 403 to the first two and never does, as the error's method is not the one it looks for.
fn refused_by_raft() -> Vec<Case> {
    let heard = append(PEER, LOCAL, 3, 10);
    let refused = |check, name, error| {
        let text = "error processing raft message\n";
        case(Rule::Pipeline(check), name, ("POST", "/raft"), 500, text)
            .body(encoded(&heard))
            .raft(error)
            .delivers(heard.clone())
            .expect(&[TELLS_CLUSTER, NO_VERSION])
    };
    vec![
        refused(
            5,
            "a sender raft knows as removed",
            ProcessError::Removed(MemberId(PEER)),
        ),
        refused(5, "meant for another", ProcessError::NotForUs(MemberId(9))),
        refused(6, "raft has stopped", ProcessError::Stopped),
        refused(6, "raft is busy", ProcessError::Dropped("busy".to_owned())),
    ]
}

fn delivered(urls: &str) -> Vec<Case> {
    let delivered = |name| {
        case(Rule::Pipeline(7), name, ("POST", "/raft"), 204, "").only(&[
            TELLS_CLUSTER,
            NO_VERSION,
            ("content-length", ""),
        ])
    };
    let dropped = |name, message: &Message| delivered(name).body(encoded(message));
    let heartbeat = message(MessageType::Heartbeat, PEER, LOCAL);
    let unknown = Message {
        msg_type: 99,
        ..message(MessageType::Hup, PEER, LOCAL)
    };
    vec![
        delivered("a message")
            .body(encoded(&heartbeat))
            .delivers(heartbeat),
        delivered("an empty body is a message"),
        dropped("of a local kind", &message(MessageType::Hup, PEER, LOCAL)),
        dropped(
            "of another local kind",
            &message(MessageType::StorageApply, PEER, LOCAL),
        ),
        dropped("of no kind we know", &unknown),
        delivered("a sender with URLs")
            .header("X-Server-From", "72")
            .header("X-PeerURLs", urls)
            .introduces(0x72),
        delivered("sender without URLs").header("X-Server-From", "77"),
        delivered("URLs that are none")
            .header("X-Server-From", "77")
            .header("X-PeerURLs", "not a url,,http://a/b"),
        delivered("a sender that is no id")
            .header("X-Server-From", "nobody")
            .header("X-PeerURLs", "http://127.0.0.1:1"),
    ]
}
