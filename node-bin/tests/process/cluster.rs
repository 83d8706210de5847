//! Members that meet each other.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use kvstore::pb::etcdserverpb::{
    CompactionRequest, CompactionResponse, MemberAddRequest, MemberAddResponse,
    MemberPromoteRequest, MemberPromoteResponse, RangeRequest, RangeResponse,
};
use node_bin::metrics::scrape::{Family, Scrape, parse_families};
use serde_json::Value;

use crate::member::{Member, Ports, SERVING, command, eventually, get, refusal, request, url};

/// Members `n0`, `n1`, … of one cluster, below one directory.
struct Cluster {
    data: tempfile::TempDir,
    ports: Vec<Ports>,
    flags: Vec<String>,
}

impl Cluster {
    fn new(members: usize, flags: &[&str]) -> Cluster {
        Cluster {
            data: tempfile::tempdir().unwrap(),
            ports: (0..members).map(|_| Ports::free()).collect(),
            flags: flags.iter().map(ToString::to_string).collect(),
        }
    }

    fn path(&self, at: usize) -> PathBuf {
        self.data.path().join(format!("n{at}"))
    }

    fn command(&self, at: usize) -> Command {
        let members = self.ports.iter().enumerate();
        let members: Vec<String> = members
            .map(|(at, ports)| format!("n{at}={}", url(ports.peer)))
            .collect();
        let mut command = command(&format!("n{at}"), &self.path(at), self.ports[at]);
        command
            .args(["--initial-cluster", &members.join(",")])
            .args(&self.flags);
        command
    }

    fn start(&self) -> Vec<Member> {
        let members: Vec<_> = (0..self.ports.len())
            .map(|at| Member::spawn(self.command(at), self.ports[at]))
            .collect();
        members.iter().for_each(Member::wait_healthy);
        members
    }
}

/// Puts the leader first; there is one, since the members are healthy.
fn leader_first(members: &mut [Member]) {
    let mut at = None;
    eventually("led", || {
        at = members.iter().position(Member::leads);
        at.is_some()
    });
    members.swap(0, at.unwrap());
}

/// Families of Go members that ours do not have, with the reason.
const NOT_OURS: [(&str, &str); 4] = [
    ("etcd_debugging_store_", "of the v2 store, which is gone"),
    (
        "etcd_grpc_proxy_",
        "of etcd's proxy, which is another program",
    ),
    (
        "etcd_debugging_server_watch_send_loop_",
        "since 3.7, and this member is one of 3.6",
    ),
    (
        "etcd_server_request_duration_seconds",
        "since 3.7, and this member is one of 3.6",
    ),
];

/// The lists are of the families that a leader and a follower of three Go members export, which are the same ones.
#[test]
fn leader_and_followers_export_what_go_members_do() {
    let cluster = Cluster::new(3, &["--metrics=extensive"]);
    let mut members = cluster.start();
    leader_first(&mut members);
    for member in &members {
        member.put("key", "value").unwrap();
        let range = RangeRequest {
            key: "key".into(),
            ..Default::default()
        };
        let found: RangeResponse = member.call("/etcdserverpb.KV/Range", range).unwrap();
        assert_eq!(found.count, 1);
    }
    let compaction = CompactionRequest {
        revision: 3,
        physical: true,
    };
    let _: CompactionResponse = members[0]
        .call("/etcdserverpb.KV/Compact", compaction)
        .unwrap();

    let mut left_out: BTreeSet<&(&str, &str)> = BTreeSet::new();
    for list in [
        include_str!("../fixtures/metrics-3.6.16.txt"),
        include_str!("../fixtures/metrics-3.7.3.txt"),
    ] {
        let mut expected = parse_families(list).unwrap();
        expected.retain(|Family { name, .. }| {
            let exception = NOT_OURS.iter().find(|(prefix, _)| name.starts_with(prefix));
            left_out.extend(exception);
            exception.is_none()
        });
        for member in &members {
            // Some are of connections that may still be under way.
            let mut differences = Vec::new();
            eventually("without differences", || {
                let text = get(member.ports.metrics, "/metrics").1;
                let now = Scrape::parse(&text).unwrap().differences(&expected);
                if now != differences {
                    // What is left in the end is what the test fails for.
                    eprintln!("{now:#?}");
                }
                differences = now;
                differences.is_empty()
            });
        }
    }
    assert_eq!(left_out.len(), NOT_OURS.len(), "an exception is not needed");

    // Only the leader promotes; the others say so in a way that has the asker ask again.
    let promote = |member: &Member| request(member.ports.peer, "POST", "/members/promote/7", "");
    assert_eq!(promote(&members[0]).unwrap().0, 404);
    assert_eq!(promote(&members[1]).unwrap().0, 500);
}

#[test]
fn a_leader_that_ends_hands_leadership_over() {
    let cluster = Cluster::new(3, &[]);
    let mut members = cluster.start();
    leader_first(&mut members);
    members[0].signal_to_end();
    let (log, code) = members[0].end();
    assert_eq!(code, Some(0));
    let transferred = |line: &&Value| line["msg"] == "leadership transferred";
    let to = log.iter().find(transferred).unwrap()["new-leader-member-id"].clone();
    let id = format!("server_id=\"{}\"", to.as_str().unwrap());
    let is_next = |member: &&Member| get(member.ports.metrics, "/metrics").1.contains(&id);
    let leader = members[1..].iter().find(is_next).unwrap();
    eventually("led by the one it went to", || leader.leads());
    leader.put("key", "value").unwrap();
}

/// A restart finds its past on disk; what the flags say of the cluster does not count then.
#[test]
fn a_member_may_be_started_again_with_other_urls_and_another_name() {
    let data = tempfile::tempdir().unwrap();
    let mut member = Member::alone(data.path(), &[]);
    member.put("key", "value").unwrap();
    assert_eq!(member.terminate().code(), Some(0));
    let ports = Ports::free();
    let mut renamed = Member::spawn(command("renamed", data.path(), ports), ports);
    renamed.until(SERVING);
    assert_eq!(
        renamed
            .put("key", "value")
            .unwrap()
            .header
            .unwrap()
            .revision,
        3
    );
}

#[test]
fn members_of_different_clusters_refuse_each_other_and_live_on() {
    let one = Cluster::new(2, &["--initial-cluster-token=one"]);
    let two = Cluster {
        data: tempfile::tempdir().unwrap(),
        ports: one.ports.clone(),
        flags: vec!["--initial-cluster-token=two".into()],
    };
    let mut first = Member::spawn(one.command(0), one.ports[0]);
    let mut second = Member::spawn(two.command(1), two.ports[1]);
    let headers = "x-etcd-cluster-id: 7\r\nx-raft-to: 1\r\nx-server-version: 3.6.0\r\n\
                   x-min-cluster-version: 3.0.0\r\n";
    for member in [&first, &second] {
        let mut status = 0;
        eventually("answering", || {
            let path = "/raft/stream/message/1";
            let answer = request(member.ports.peer, "GET", path, headers);
            status = answer.map_or(0, |(status, _)| status);
            status != 0
        });
        assert_eq!(status, 412);
    }
    for member in [&mut first, &mut second] {
        let lines = member.until("request sent was refused by remote peer");
        assert_eq!(lines.last().unwrap()["error"], "cluster ID mismatch");
        assert!(member.is_running());
    }
    // Not earlier: one that has ended refuses nobody.
    for mut member in [first, second] {
        assert_eq!(member.terminate().code(), Some(0));
    }
}

#[test]
fn a_founder_that_lost_its_directory_does_not_found_again() {
    let cluster = Cluster::new(2, &[]);
    let mut members = cluster.start();
    // Healthy comes before published; the URLs of clients are what tells a member that was there before.
    eventually("published", || {
        let (_, members) = get(cluster.ports[0].peer, "/members");
        let members: Vec<Value> = serde_json::from_str(&members).unwrap();
        let has_clients = |member: &Value| {
            let urls = member["clientURLs"].as_array();
            urls.is_some_and(|urls| !urls.is_empty())
        };
        members.len() == 2 && members.iter().all(has_clients)
    });
    assert_eq!(members[1].terminate().code(), Some(0));
    std::fs::remove_dir_all(cluster.path(1)).unwrap();
    let error = refusal(cluster.command(1));
    assert!(
        error.starts_with("member ") && error.ends_with(" has already been bootstrapped"),
        "{error}"
    );
}

#[test]
fn two_founders_that_swapped_their_directories_are_refused() {
    let cluster = Cluster::new(2, &[]);
    for mut member in cluster.start() {
        assert_eq!(member.terminate().code(), Some(0));
    }
    let swapped = cluster.data.path().join("swapped");
    std::fs::rename(cluster.path(0), &swapped).unwrap();
    std::fs::rename(cluster.path(1), cluster.path(0)).unwrap();
    let error = refusal(cluster.command(0));
    assert!(
        error.contains("belongs to member ") && error.contains("called \"n1\""),
        "{error}"
    );
}

/// Starts `name` as one that was added to the cluster of the first member.
fn join(name: &str, data: &Path, ports: Ports, first: Ports) -> Command {
    let list = format!("m={},{name}={}", url(first.peer), url(ports.peer));
    let mut command = command(name, data, ports);
    command.args([
        "--initial-cluster-state=existing",
        "--initial-cluster",
        &list,
    ]);
    command
}

#[test]
fn promotions_are_counted_and_an_added_member_s_directory_is_its_own() {
    let data = tempfile::tempdir().unwrap();
    let leader = Member::alone(&data.path().join("m"), &[]);
    for _ in 0..20 {
        leader.put("key", "value").unwrap();
    }
    let ports = Ports::free();
    let add = MemberAddRequest {
        peer_urls: vec![url(ports.peer)],
        is_learner: true,
    };
    let added: MemberAddResponse = leader.call("/etcdserverpb.Cluster/MemberAdd", add).unwrap();
    let id = added.member.unwrap().id;
    let promote = || {
        let request = MemberPromoteRequest { id };
        leader.call::<_, MemberPromoteResponse>("/etcdserverpb.Cluster/MemberPromote", request)
    };
    let lags = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_eq!(promote().unwrap_err().message(), lags);
    let counted = |line: &str| get(leader.ports.metrics, "/metrics").1.contains(line);
    let failure = format!("etcd_server_learner_promote_failures{{Reason=\"{lags}\"}} 1");
    assert!(counted(&failure) && counted("etcd_server_learner_promote_successes 0"));

    let path = data.path().join("added");
    let mut learner = Member::spawn(join("added", &path, ports, leader.ports), ports);
    learner.until(SERVING);
    eventually("promoted", || promote().is_ok());
    assert!(counted("etcd_server_learner_promote_successes 1"));

    // Killed, so that its store may know less than its log.
    drop(learner);
    let mut mixed_up = command("m", &path, ports);
    mixed_up.args(["--initial-cluster", &format!("m={}", url(ports.peer))]);
    let error = refusal(mixed_up);
    assert!(
        error.contains("belongs to member ") && error.contains("called \"added\""),
        "{error}"
    );
}
