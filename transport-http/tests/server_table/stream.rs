//! GET `/raft/stream/…`.

use crate::{
    LOCAL, NO_CLUSTER, NO_VERSION, PEER, REMOVED, TELLS_CLUSTER, TELLS_VERSION,
    case::{Case, Rule, case},
    stream_path,
};

/// `urls` is where somebody listens.
pub fn cases(urls: &str) -> Vec<Case> {
    let mut cases = refused_before_the_sender();
    cases.extend(refused_for_sender_or_receiver(urls));
    cases.extend(accepted());
    cases
}

fn refused(
    check: u8,
    name: &'static str,
    path: impl ToString,
    status: u16,
    text: &'static str,
) -> Case {
    case(Rule::Stream(check), name, ("GET", path), status, text)
        .expect(&[TELLS_CLUSTER, TELLS_VERSION])
}

fn refused_before_the_sender() -> Vec<Case> {
    let mut cases = Vec::new();
    for method in ["PUT", "POST", "DELETE"] {
        let asked = (method, stream_path("message", PEER));
        cases.push(
            case(
                Rule::Stream(1),
                "only GET",
                asked,
                405,
                "Method Not Allowed\n",
            )
            .header("X-Server-Version", "")
            .expect(&[("allow", "GET"), NO_CLUSTER, NO_VERSION]),
        );
    }
    for kind in ["strange", "message/message", "msgApp", ""] {
        let path = stream_path(kind, PEER);
        cases.push(refused(3, "neither stream", path, 404, "invalid path\n"));
    }
    for from in ["", "xyz", "0x1", "-1", "+1", "11112222333344445"] {
        let path = format!("/raft/stream/message/{from}");
        cases.push(refused(4, "sender is no id", path, 404, "invalid from\n"));
    }
    let asked = ("GET", "/raft/stream");
    let moved = "<a href=\"/raft/stream/\">Moved Permanently</a>.\n\n";
    cases.extend([
        refused(3, "no kind", "/raft/stream/", 404, "invalid path\n"),
        case(Rule::Stream(3), "the mux adds the slash", asked, 301, moved).only(&[
            ("location", "/raft/stream/"),
            ("content-type", "text/html; charset=utf-8"),
            NO_CLUSTER,
        ]),
        case(
            Rule::Stream(3),
            "for every method",
            ("POST", "/raft/stream?a=b"),
            301,
            "",
        )
        .only(&[("location", "/raft/stream/?a=b")]),
    ]);
    cases
}

fn refused_for_sender_or_receiver(urls: &str) -> Vec<Case> {
    let unknown = |name, from| {
        refused(
            6,
            name,
            stream_path("message", from),
            404,
            "error sender not found\n",
        )
    };
    let to_another =
        |name, kind| refused(7, name, stream_path(kind, PEER), 412, "to field mismatch\n");
    vec![
        refused(
            5,
            "removed sender",
            stream_path("msgapp", REMOVED),
            410,
            "removed member\n",
        ),
        unknown("unknown sender", 0x1234),
        unknown("unknown sender that can be answered", 0x71)
            .header("X-PeerURLs", urls)
            .introduces(0x71),
        to_another("meant for another", "message").header("X-Raft-To", "1"),
        to_another("meant for nobody", "msgapp"),
        to_another("our id padded", "message").header("X-Raft-To", format!("0{LOCAL:x}")),
    ]
}

fn accepted() -> Vec<Case> {
    // Upper case and leading zeros in the path are tolerated, as Go tolerates them.
    let accepted = |name, kind: &str| {
        let path = format!("/raft/stream/{kind}/0{PEER:X}");
        case(Rule::Stream(8), name, ("GET", path), 200, "")
            .header("X-Raft-To", format!("{LOCAL:x}"))
            .only(&[
                TELLS_CLUSTER,
                TELLS_VERSION,
                ("transfer-encoding", "chunked"),
            ])
            .names(&[
                "Date",
                "Transfer-Encoding",
                "X-Etcd-Cluster-Id",
                "X-Server-Version",
            ])
    };
    let link_heartbeat = [
        &[0][..],
        // The length, then the message: of type 8, and nothing else.
        &[0, 0, 0, 0, 0, 0, 0, 2, 8, 8],
    ];
    vec![
        accepted("appends", "msgapp").endless(link_heartbeat[0]),
        accepted("messages", "message").endless(link_heartbeat[1]),
    ]
}
