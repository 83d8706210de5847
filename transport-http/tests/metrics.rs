//! Names, types, labels and buckets as etcd has them, through the exporter dashboards read.

mod common;

use std::sync::Arc;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use transport_core::MemberId;
use transport_http::{
    NoSnapshots, SharedRecorder, SnapDir, Transport, TransportConfig, histogram_buckets,
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
    transport.stop().await;
    member.stop().await;
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
