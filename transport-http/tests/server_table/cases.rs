//! The cases that no other file has: what every handler checks, probing, and what nobody handles.

use crate::{
    CLUSTER_TEXT, NO_CLUSTER, NO_VERSION, PEER, TELLS_CLUSTER, TELLS_VERSION,
    case::{Case, PLAIN, Rule, case},
    stream_path,
};

/// Of each handler, as the versions and the cluster are its second check.
pub fn compatibility() -> Vec<Case> {
    let mut cases = Vec::new();
    for (own, method, path, tells_version) in [
        (
            Rule::Stream(2),
            "GET",
            stream_path("message", PEER),
            TELLS_VERSION,
        ),
        (Rule::Pipeline(2), "POST", "/raft".to_owned(), NO_VERSION),
        (
            Rule::Snapshot(2),
            "POST",
            "/raft/snapshot".to_owned(),
            NO_VERSION,
        ),
    ] {
        let refused = |rule, name, text: &str| {
            case(rule, name, (method, &path), 412, text).expect(&[TELLS_CLUSTER, tells_version])
        };
        let older = |name| refused(Rule::Compatibility(1), name, "incompatible version\n");
        let newer = |name| refused(Rule::Compatibility(2), name, "incompatible version\n");
        let foreign = |name| refused(Rule::Compatibility(3), name, "cluster ID mismatch\n");
        cases.extend([
            older("sender below our minimum").header("X-Server-Version", "2.3.0"),
            older("no version means 2.0.0").header("X-Server-Version", ""),
            older("a version Go panics on").header("X-Server-Version", "3.6"),
            older("a version with a letter").header("X-Server-Version", "v3.6.0"),
            newer("sender's minimum above us").header("X-Min-Cluster-Version", "3.9.0"),
            newer("minimum a minor above us").header("X-Min-Cluster-Version", "3.7.0-alpha.0"),
            newer("a minimum that is no version").header("X-Min-Cluster-Version", "\u{e4}"),
            foreign("another cluster").header("X-Etcd-Cluster-ID", "1"),
            foreign("no cluster").header("X-Etcd-Cluster-ID", ""),
            foreign("the cluster padded").header("X-Etcd-Cluster-ID", format!("0{CLUSTER_TEXT}")),
            refused(own, "before all that follows", "incompatible version\n")
                .header("X-Server-Version", "2.3.0")
                .header("X-Etcd-Cluster-ID", "1")
                .header("X-Raft-To", "1"),
        ]);
    }
    cases
}

pub fn probing() -> Vec<Case> {
    let probe = |name, method| {
        case(Rule::Probing(1), name, (method, "/raft/probing"), 200, "")
            .around("{\"OK\":true,\"Now\":\"20", "Z\"}\n")
            .only(&[PLAIN])
    };
    vec![
        probe("healthy, and the time", "GET"),
        probe("for every method", "POST"),
        probe("whatever the method", "PUT"),
        probe("no header is checked", "GET")
            .header("X-Etcd-Cluster-ID", "1")
            .header("X-Server-Version", "2.3.0"),
    ]
}

pub fn elsewhere() -> Vec<Case> {
    let unknown = |name, method, path| {
        case(
            Rule::Elsewhere(1),
            name,
            (method, path),
            404,
            "404 page not found\n",
        )
    };
    let not_ours = |name, path: &str| {
        let fallback = format!("fallback {path}\n");
        case(Rule::Elsewhere(2), name, ("GET", path), 418, fallback).only(&[])
    };
    vec![
        unknown("unknown under our prefix", "GET", "/raft/foo").expect(&[NO_CLUSTER]),
        unknown("our prefix and a slash", "GET", "/raft/"),
        unknown("deeper than snapshot", "POST", "/raft/snapshot/x"),
        not_ours("not ours", "/raftx"),
        not_ours("not ours either", "/version"),
    ]
}
