//! Names, types, labels and buckets as etcd has them, through the exporter dashboards read.

mod common;

use std::sync::Arc;

use common::{
    message,
    raw::{Raw, open_stream, request},
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use transport_core::{MemberId, raftpb::MessageType};
use transport_http::{
    NoSnapshots, ProcessError, SharedRecorder, SnapDir, Transport, TransportConfig,
    histogram_buckets,
};

#[tokio::test]
async fn a_scrape_has_etcds_names() {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in histogram_buckets() {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), &buckets)
            .unwrap();
    }
    let recorder = builder.build_recorder();
    let scrape = recorder.handle();
    let recorder: SharedRecorder = Arc::new(recorder);
    let config = TransportConfig::new(MemberId(0xa), common::CLUSTER, recorder.clone());
    let member = common::Member::start(1).await;
    let transport =
        Transport::start(config, Arc::clone(&member.raft), Arc::new(NoSnapshots)).unwrap();
    transport
        .add_peer(MemberId(0xb), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let _sink = SnapDir::new(std::env::temp_dir(), &recorder);
    let text = scrape.render();
    for (name, kind, series) in [
        (
            "etcd_network_active_peers",
            "gauge",
            "etcd_network_active_peers{Local=\"a\",Remote=\"b\"} 0",
        ),
        (
            "etcd_network_disconnected_peers_total",
            "counter",
            "{Local=\"a\",Remote=\"b\"} 0",
        ),
        (
            "etcd_network_peer_sent_bytes_total",
            "counter",
            "etcd_network_peer_sent_bytes_total{To=\"b\"} 0",
        ),
        (
            "etcd_network_peer_received_bytes_total",
            "counter",
            "_total{From=\"0\"} 0",
        ),
        (
            "etcd_network_peer_sent_failures_total",
            "counter",
            "_failures_total{To=\"b\"} ",
        ),
        (
            "etcd_network_peer_received_failures_total",
            "counter",
            "_failures_total{From=\"b\"} 0",
        ),
    ] {
        assert!(
            text.contains(&format!("# TYPE {name} {kind}\n")),
            "{name} in\n{text}"
        );
        assert!(text.contains(series), "{series} in\n{text}");
    }
    // A peer that is gone leaves the scrape, and comes back with what it had counted.
    let ended = transport.ended_series();
    assert_eq!(ended.strip(text.clone()), text);
    transport.remove_peer(MemberId(0xb));
    common::soon("its last task to end", async {
        while ended.strip(scrape.render()).contains("\"b\"") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(ended.strip(scrape.render()).contains("{From=\"0\"}"));
    transport
        .add_peer(MemberId(0xb), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    assert!(ended.strip(scrape.render()).contains("Remote=\"b\""));
    transport.stop().await;
    member.stop().await;
}

/// Refuses whatever raft gets.
async fn refusing() -> common::Member {
    let member = common::Member::start(1).await;
    *member.raft.answer.lock().unwrap() = Err(ProcessError::Dropped("no".to_owned()));
    member
}

#[tokio::test]
async fn what_a_post_brings_in_vain_is_counted_by_reason() {
    let member = refusing().await;
    for (kind, status, reason) in [
        (0, 204, "local_type"),
        (99, 204, "unknown_type"),
        (14, 500, "refused"),
    ] {
        let mut raw = Raw::connect(member.address).await;
        raw.write(request("POST", "/raft", &[("Content-Length", "2")]))
            .await;
        raw.write([8, kind]).await;
        assert_eq!(raw.head().await.unwrap().status(), status, "{reason}");
        let dropped =
            format!("rafthttp_dropped_messages_total{{Remote=unknown,queue=post,reason={reason}}}");
        assert_eq!(member.recorder.value(&dropped), 1.0, "{reason}");
    }
    let refused = "rafthttp_refused_requests_total{endpoint=message,cause=raft}";
    assert_eq!(member.recorder.value(refused), 1.0);
    let (_, head) = open_stream(member.address, "message", 2, 1).await;
    assert_eq!(head.status(), 404);
    let refused = "rafthttp_refused_requests_total{endpoint=stream,cause=sender_not_found}";
    assert_eq!(member.recorder.value(refused), 1.0);
    member.stop().await;
}

#[tokio::test]
async fn what_raft_does_not_take_from_a_stream_is_counted() {
    let (a, b) = common::pair().await;
    *b.raft.answer.lock().unwrap() = Err(ProcessError::Dropped("no".to_owned()));
    let counted = "rafthttp_dropped_messages_total{Remote=1,queue=receive,reason=refused}";
    (a.transport).send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    b.recorder.until(counted, |count| count == 1.0).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn streams_tell_why_they_are_dialled_again_and_why_they_write() {
    let (a, b) = common::pair().await;
    let drained = "rafthttp_flushes_total{stream=streamMsg,cause=drained}";
    let heartbeat = "rafthttp_flushes_total{stream=streamMsg,cause=heartbeat}";
    assert_eq!(a.recorder.value(drained), 0.0);
    assert!(a.recorder.value(heartbeat) >= 1.0, "with the headers");
    (a.transport).send(vec![message(MessageType::TimeoutNow, 1, 2)]);
    a.recorder.until(drained, |writes| writes == 1.0).await;
    let waits = "rafthttp_queue_wait_seconds{queue=streamMsg}";
    assert_eq!(a.recorder.value(waits), 1.0);
    // It ends properly, and is gone for good.
    b.stop().await;
    let ended = "rafthttp_reconnects_total{Remote=2,stream=streamMsg,cause=ended}";
    a.recorder.until(ended, |streams| streams == 1.0).await;
    let failed = "rafthttp_dial_failures_total{Remote=2,stream=streamMsg,cause=connect}";
    a.recorder.until(failed, |dials| dials >= 1.0).await;
    a.stop().await;
}

#[test]
fn buckets_are_etcds() {
    let buckets = histogram_buckets();
    let of = |name: &str| &buckets.iter().find(|(known, _)| *known == name).unwrap().1;
    let round_trip = of("etcd_network_peer_round_trip_time_seconds");
    assert_eq!(
        (round_trip.len(), round_trip[0], round_trip[15]),
        (16, 0.0001, 3.2768)
    );
    for name in [
        "etcd_network_snapshot_send_total_duration_seconds",
        "etcd_network_snapshot_receive_total_duration_seconds",
        "etcd_snap_db_save_total_duration_seconds",
    ] {
        assert_eq!(
            (of(name).len(), of(name)[0], of(name)[9]),
            (10, 0.1, 51.2),
            "{name}"
        );
    }
    let fsync = of("etcd_snap_db_fsync_duration_seconds");
    assert_eq!((fsync.len(), fsync[0], fsync[13]), (14, 0.001, 8.192));
}
