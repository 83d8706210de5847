//! The life of one member from its start to its end.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use kvstore::pb::etcdserverpb::{RangeRequest, RangeResponse};
use node_bin::metrics::scrape::{Family, Scrape, parse_families};
use serde_json::Value;

use crate::member::{Member, Ports, SERVING, command, eventually, get, refusal};

/// Families of etcd's that a member of one does not have: of other members, of the v2 store and of the gRPC proxy.
fn is_expected(family: &Family) -> bool {
    const OF_PEERS: [&str; 3] = [
        "etcd_network_active_peers",
        "etcd_network_peer_round_trip_time_seconds",
        "etcd_network_peer_sent_bytes_total",
    ];
    let elsewhere = ["etcd_debugging_store_", "etcd_grpc_proxy_"];
    !OF_PEERS.contains(&&*family.name)
        && !elsewhere
            .iter()
            .any(|prefix| family.name.starts_with(prefix))
}

#[test]
fn a_member_serves_probes_and_dashboards_and_ends_in_order() {
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut extensive = command("m", &data.path().join("m"), ports);
    extensive.arg("--metrics=extensive");
    let mut member = Member::spawn(extensive, ports);
    let lines = member.until("ready to serve client requests");
    for line in &lines {
        for key in ["level", "ts", "caller", "msg"] {
            assert!(line[key].is_string(), "{key} is missing in {line}");
        }
        let kebab = line
            .as_object()
            .unwrap()
            .keys()
            .all(|key| !key.contains('_'));
        assert!(kebab, "{line}");
    }
    member.until(SERVING);

    let healthy = (200, "{\"health\":\"true\",\"reason\":\"\"}".to_string());
    for port in [ports.client, ports.metrics] {
        assert_eq!(get(port, "/health"), healthy);
        assert_eq!(get(port, "/livez"), (200, "ok\n".into()));
        assert_eq!(get(port, "/readyz"), (200, "ok\n".into()));
    }
    let (status, versions) = get(ports.client, "/version");
    let versions: Value = serde_json::from_str(&versions).unwrap();
    assert_eq!((status, &versions["etcdserver"]), (200, &"3.6.16".into()));
    assert_eq!(get(ports.metrics, "/version").0, 404);

    let answer = member.put("key", "value").unwrap();
    assert_eq!(answer.header.unwrap().revision, 2);
    let expected = parse_families(include_str!("../fixtures/metrics-3.6.16.txt")).unwrap();
    let expected: Vec<Family> = expected.into_iter().filter(is_expected).collect();
    let scrape = Scrape::parse(&get(ports.metrics, "/metrics").1).unwrap();
    assert_eq!(scrape.differences(&expected), [""; 0]);
    let value = |name: &str| scrape.values(name).next().unwrap().value;
    assert_eq!(
        (
            value("etcd_server_has_leader"),
            value("etcd_server_is_leader")
        ),
        (1.0, 1.0)
    );
    assert!(value("etcd_disk_wal_fsync_duration_seconds_count") > 0.0);
    assert_eq!(value("etcd_network_client_grpc_received_bytes_total"), 12.0);
    assert_eq!(value("etcd_server_client_requests_total"), 1.0);
    let handled: Vec<_> = scrape
        .values("grpc_server_handled_total")
        .filter(|sample| sample.value > 0.0)
        .collect();
    assert_eq!(handled.len(), 1);
    assert_eq!(
        (
            handled[0].label("grpc_method"),
            handled[0].label("grpc_code")
        ),
        (Some("Put"), Some("OK"))
    );

    assert_eq!(member.terminate().code(), Some(0));
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = taken.local_addr().unwrap().port();
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    let ports = Ports {
        client,
        ..Ports::free()
    };
    let error = refusal(command("m", &path, ports));
    assert!(error.contains(&format!("127.0.0.1:{client}")), "{error}");
    assert!(!path.exists());
}

/// Names are asked for again for 30 s.
#[test]
fn a_signal_ends_a_member_that_waits_for_a_name_server() {
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut unknown = command("m", &data.path().join("m"), ports);
    unknown.args(["--initial-cluster", "m=http://a.name.invalid:2380"]);
    let mut member = Member::spawn(unknown, ports);
    member.until("failed to resolve URL host");
    let begun = Instant::now();
    assert_eq!(member.terminate().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn history_is_compacted_as_the_flags_say() {
    let data = tempfile::tempdir().unwrap();
    let flags = [
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=200ms",
    ];
    let member = Member::alone(&data.path().join("m"), &flags);
    let revision = (0..5)
        .map(|_| member.put("key", "value").unwrap().header.unwrap().revision)
        .max()
        .unwrap();
    eventually("compacted", || {
        member.metric("etcd_debugging_mvcc_compact_revision") == Some(revision as f64)
    });
    let old = RangeRequest {
        key: "key".into(),
        revision: revision - 1,
        ..Default::default()
    };
    let refused = member
        .call::<_, RangeResponse>("/etcdserverpb.KV/Range", old)
        .unwrap_err();
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: required revision has been compacted"
    );
}

#[test]
fn what_has_no_effect_is_warned_about_when_a_member_starts() {
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut vain = command("m", &data.path().join("m"), ports);
    vain.args([
        "--bcrypt-cost=12",
        "--experimental-compact-hash-check-enabled",
    ]);
    let mut member = Member::spawn(vain, ports);
    let lines = member.until(SERVING);
    let warned = |key: &str, name: &str| {
        lines
            .iter()
            .any(|line| line["level"] == "warn" && line[key] == name)
    };
    assert!(warned("flag", "bcrypt-cost") && warned("feature-gate", "CompactHashCheck"));
    let metrics = get(ports.metrics, "/metrics").1;
    let gate = "etcd_server_feature_enabled{name=\"CompactHashCheck\",stage=\"ALPHA\"} 0";
    assert!(metrics.contains(gate), "{metrics}");
}
