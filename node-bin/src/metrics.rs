//! The process's metrics: the recorder every layer registers on, and what `/metrics` answers.
//!
//! Names, types, labels and buckets are etcd's, because dashboards and alerts are written for them; `scrape` compares
//! a rendered text with a list of them. Depends on the transport only for which series have ended. Invariant: every histogram has buckets; without
//! them the exporter would make it a summary.

mod buckets;
mod process;
pub mod scrape;
mod server;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::Recorder;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use transport_http::EndedSeries;

pub use self::server::{HealthCheck, RequestKind, ServerMetrics};

/// What the layers register their metrics on.
pub type SharedRecorder = Arc<dyn Recorder + Send + Sync>;

/// Time between two rounds of upkeep. Histogram records are kept one by one until then: at 10^6 records a second a
/// round clears some 40 MB.
const UPKEEP: Duration = Duration::from_secs(2);

/// The metrics of one member; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    recorder: SharedRecorder,
    handle: PrometheusHandle,
    /// Series of peers that were removed: the exporter keeps them, a scrape does not show them.
    ended: Arc<OnceLock<EndedSeries>>,
}

impl Metrics {
    /// A recorder of its own, so that members in one process do not merge.
    pub fn new() -> Result<Metrics, BuildError> {
        let mut builder = PrometheusBuilder::new().set_buckets(&buckets::default())?;
        for (name, buckets) in buckets::table() {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.into()), &buckets)?;
        }
        let recorder = builder.build_recorder();
        Ok(Metrics {
            handle: recorder.handle(),
            recorder: Arc::new(recorder),
            ended: Arc::default(),
        })
    }

    /// Where to register metrics.
    pub fn recorder(&self) -> SharedRecorder {
        Arc::clone(&self.recorder)
    }

    /// From now on the series of peers that are gone are left out. Only the first call counts.
    pub fn leave_out(&self, ended: EndedSeries) {
        // A member has one transport.
        let _ = self.ended.set(ended);
    }

    /// The text of `/metrics`. Takes some 50 µs per KB; the caller decides where to spend them.
    pub fn render(&self) -> String {
        let mut text = self.handle.render();
        if let Some(ended) = self.ended.get() {
            text = ended.strip(text);
        }
        process::render(&mut text);
        text
    }

    /// Keeps histograms small until the token is cancelled. To be run as a task of the member.
    pub async fn upkeep(self, stop: CancellationToken) {
        let mut timer = tokio::time::interval(UPKEEP);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(timer.tick()).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

/// The content type of `/metrics`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::{scrape::Scrape, *};
    use crate::{
        config::{FeatureGates, MetricsDetail},
        grpc::metrics::GrpcMetrics,
        version,
    };

    const FIXTURE: &str = include_str!("../tests/fixtures/metrics-3.6.16.txt");

    /// Everything this crate registers, used once where a label's value comes from outside.
    fn rendered() -> Scrape {
        let metrics = Metrics::new().unwrap();
        let server = ServerMetrics::register(
            metrics.recorder(),
            version::ANNOUNCED,
            &FeatureGates::default(),
        );
        server.identify(transport_core::MemberId(0xa1));
        server.request(RequestKind::Unary, "3.6");
        let _grpc = GrpcMetrics::register(&*metrics.recorder, MetricsDetail::Extensive);
        Scrape::parse(&metrics.render()).unwrap()
    }

    fn is_ours(name: &str) -> bool {
        const OURS: [&str; 13] = [
            "etcd_server_client_requests_total",
            "etcd_server_feature_enabled",
            "etcd_server_go_version",
            "etcd_server_health_failures",
            "etcd_server_health_success",
            "etcd_server_id",
            "etcd_server_version",
            "etcd_server_learner_promote_successes",
            "etcd_network_client_grpc_received_bytes_total",
            "etcd_network_client_grpc_sent_bytes_total",
            "os_fd_limit",
            "os_fd_used",
            "etcd_server_version",
        ];
        OURS.contains(&name) || name.starts_with("grpc_server_") || name.starts_with("process_")
    }

    #[test]
    fn ours_are_etcd_s_by_name_type_labels_and_buckets() {
        let expected = scrape::parse_families(FIXTURE).unwrap();
        let ours: Vec<_> = expected
            .into_iter()
            .filter(|family| is_ours(&family.name))
            .collect();
        assert_eq!(ours.len(), 12 + 5 + 9);
        assert_eq!(rendered().differences(&ours), [""; 0]);
    }

    #[test]
    fn every_histogram_of_etcd_has_its_buckets() {
        let metrics = Metrics::new().unwrap();
        let metadata = metrics::Metadata::new("", metrics::Level::INFO, None);
        let histograms: Vec<_> = scrape::parse_families(FIXTURE)
            .unwrap()
            .into_iter()
            .filter(|family| family.kind == "histogram")
            .map(|family| scrape::Family {
                labels: Default::default(),
                ..family
            })
            .collect();
        for family in &histograms {
            let key = metrics::Key::from_name(family.name.clone());
            metrics
                .recorder
                .register_histogram(&key, &metadata)
                .record(1.0);
        }
        assert!(histograms.len() > 20);
        assert_eq!(
            Scrape::parse(&metrics.render())
                .unwrap()
                .differences(&histograms),
            [""; 0]
        );
    }

    #[tokio::test]
    async fn upkeep_ends_with_its_token() {
        let stop = CancellationToken::new();
        let task = tokio::spawn(Metrics::new().unwrap().upkeep(stop.clone()));
        stop.cancel();
        task.await.unwrap();
    }
}
