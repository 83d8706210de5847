//! The metrics of the server itself: versions, features, health checks, requests by kind of client.
//!
//! Depends on the `metrics` facade. Invariant: handles are resolved once; the one label whose values come from clients
//! has a bounded number of them.

use std::collections::HashMap;

use metrics::{Counter, Gauge, Key, KeyName, Label, Level, Metadata, Recorder};
use parking_lot::RwLock;
use transport_core::MemberId;

use crate::{
    config::{FeatureGates, features::GATES},
    metrics::SharedRecorder,
    version::{self, Version},
};

/// Client versions that get a series of their own; the rest share `other`.
const CLIENT_VERSIONS_MAX: usize = 32;

/// Longest client version that gets a series of its own.
const CLIENT_VERSION_LEN_MAX: usize = 32;

const CLIENT_REQUESTS: &str = "etcd_server_client_requests_total";

/// The two kinds of gRPC calls etcd tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// One request, one answer.
    Unary,
    /// Anything else.
    Stream,
}

impl RequestKind {
    fn as_str(self) -> &'static str {
        match self {
            RequestKind::Unary => "unary",
            RequestKind::Stream => "stream",
        }
    }
}

/// The checks behind `/livez` and `/readyz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthCheck {
    /// No corruption alarm stands.
    DataCorruption,
    /// The store answers a local read.
    SerializableRead,
    /// The cluster answers a read.
    LinearizableRead,
    /// This member has a vote.
    NonLearner,
}

impl HealthCheck {
    /// All, in the order they are run and reported in.
    pub const ALL: [HealthCheck; 4] = [
        HealthCheck::DataCorruption,
        HealthCheck::SerializableRead,
        HealthCheck::LinearizableRead,
        HealthCheck::NonLearner,
    ];

    /// Its name in paths, texts and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthCheck::DataCorruption => "data_corruption",
            HealthCheck::SerializableRead => "serializable_read",
            HealthCheck::LinearizableRead => "linearizable_read",
            HealthCheck::NonLearner => "non_learner",
        }
    }
}

/// The server's metrics. What happens with every request is resolved once, what is rare when it happens.
pub struct ServerMetrics {
    recorder: SharedRecorder,
    /// `/health` said true.
    pub health_success: Counter,
    /// `/health` said false.
    pub health_failures: Counter,
    /// Learners that became voters while this member led.
    pub learner_promote_successes: Counter,
    requests: RwLock<HashMap<RequestKind, HashMap<String, Counter>>>,
}

impl ServerMetrics {
    /// Describes everything and registers what has a value from the start.
    pub fn register(
        recorder: SharedRecorder,
        version: Version,
        features: &FeatureGates,
    ) -> ServerMetrics {
        for (name, text) in COUNTERS {
            recorder.describe_counter(KeyName::from_const_str(name), None, text.into());
        }
        for (name, text) in GAUGES {
            recorder.describe_gauge(KeyName::from_const_str(name), None, text.into());
        }
        let metrics = ServerMetrics {
            health_success: counter(&*recorder, "etcd_server_health_success", &[]),
            health_failures: counter(&*recorder, "etcd_server_health_failures", &[]),
            learner_promote_successes: counter(
                &*recorder,
                "etcd_server_learner_promote_successes",
                &[],
            ),
            requests: RwLock::default(),
            recorder,
        };
        metrics
            .gauge(
                "etcd_server_version",
                &[("server_version", &version.to_string())],
            )
            .set(1.0);
        let compiler = format!("rust{}", version::COMPILER);
        metrics
            .gauge(
                "etcd_server_go_version",
                &[("server_go_version", &compiler)],
            )
            .set(1.0);
        for gate in &GATES {
            let labels = [("name", gate.name), ("stage", gate.stage.as_str())];
            metrics
                .gauge("etcd_server_feature_enabled", &labels)
                .set(f64::from(features.in_effect(gate)));
        }
        metrics
    }

    /// Shows this member's id.
    pub fn identify(&self, id: MemberId) {
        self.gauge("etcd_server_id", &[("server_id", &id.to_string())])
            .set(1.0);
    }

    /// Counts a call of a client that says it has this API version.
    pub fn request(&self, kind: RequestKind, client_version: &str) {
        if let Some(counter) = self
            .requests
            .read()
            .get(&kind)
            .and_then(|counters| counters.get(client_version))
        {
            return counter.increment(1);
        }
        let mut requests = self.requests.write();
        let counters = requests.entry(kind).or_default();
        let fits =
            counters.len() < CLIENT_VERSIONS_MAX && client_version.len() <= CLIENT_VERSION_LEN_MAX;
        let version = if fits { client_version } else { "other" };
        let labels = [("type", kind.as_str()), ("client_api_version", version)];
        counters
            .entry(version.into())
            .or_insert_with(|| counter(&*self.recorder, CLIENT_REQUESTS, &labels))
            .increment(1);
    }

    /// Records the result of a check behind the given endpoint, `livez` or `readyz`.
    pub fn checked(&self, endpoint: &'static str, check: HealthCheck, passed: bool) {
        let (kind, name) = (("type", endpoint), ("name", check.as_str()));
        self.gauge("etcd_server_healthcheck", &[kind, name])
            .set(f64::from(passed));
        let status = ("status", if passed { "success" } else { "error" });
        counter(
            &*self.recorder,
            "etcd_server_healthchecks_total",
            &[kind, name, status],
        )
        .increment(1);
    }

    /// Counts a learner that could not be promoted.
    pub fn learner_promote_failed(&self, reason: &str) {
        counter(
            &*self.recorder,
            "etcd_server_learner_promote_failures",
            &[("Reason", reason)],
        )
        .increment(1);
    }

    /// Counts a stream that broke: `send` or `receive`, of `watch`, `lease-keepalive` or `snapshot`.
    pub fn stream_failed(&self, direction: &'static str, api: &'static str) {
        let labels = [("Type", direction), ("API", api)];
        counter(
            &*self.recorder,
            "etcd_network_server_stream_failures_total",
            &labels,
        )
        .increment(1);
    }

    fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Gauge {
        self.recorder.register_gauge(&key(name, labels), &METADATA)
    }
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn counter(
    recorder: &dyn Recorder,
    name: &'static str,
    labels: &[(&'static str, &str)],
) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(label, value)| Label::new(*label, value.to_string()))
        .collect();
    Key::from_parts(name, labels)
}

const COUNTERS: [(&str, &str); 7] = [
    (
        "etcd_server_health_success",
        "Requests to /health that were answered with true.",
    ),
    (
        "etcd_server_health_failures",
        "Requests to /health that were answered with false.",
    ),
    (
        "etcd_server_learner_promote_successes",
        "Learners that became voters while this member led.",
    ),
    (
        "etcd_server_learner_promote_failures",
        "Promotions of learners that failed while this member led, by reason.",
    ),
    (
        "etcd_server_healthchecks_total",
        "Checks of /livez and /readyz that were run, by result.",
    ),
    (
        "etcd_network_server_stream_failures_total",
        "Streams of clients that broke, by direction and API.",
    ),
    (
        CLIENT_REQUESTS,
        "gRPC calls, by kind and by the API version the client says it has.",
    ),
];

const GAUGES: [(&str, &str); 5] = [
    ("etcd_server_id", "1 for this member's id."),
    (
        "etcd_server_version",
        "1 for the version this member announces.",
    ),
    (
        "etcd_server_go_version",
        "1 for the toolchain; a server in Go shows Go's version here.",
    ),
    (
        "etcd_server_feature_enabled",
        "1 for a feature that is on, 0 for one that is off.",
    ),
    (
        "etcd_server_healthcheck",
        "Result of the last run of each check: 1 passed, 0 failed.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, scrape::Scrape};

    #[test]
    fn client_versions_cannot_make_series_without_end() {
        let metrics = Metrics::new().unwrap();
        let server = ServerMetrics::register(
            metrics.recorder(),
            version::ANNOUNCED,
            &FeatureGates::default(),
        );
        for number in 0..100 {
            server.request(RequestKind::Unary, &format!("3.{number}"));
        }
        server.request(RequestKind::Unary, "3.0");
        server.request(RequestKind::Stream, &"x".repeat(1000));
        let scrape = Scrape::parse(&metrics.render()).unwrap();
        let values: Vec<_> = scrape.values(CLIENT_REQUESTS).collect();
        assert!(
            values.len() <= 2 * (CLIENT_VERSIONS_MAX + 1),
            "{}",
            values.len()
        );
        assert_eq!(values.iter().map(|sample| sample.value).sum::<f64>(), 102.0);
        let of = |version| {
            values
                .iter()
                .find(|sample| sample.label("client_api_version") == Some(version))
                .unwrap()
        };
        assert_eq!(of("3.0").value, 2.0);
    }

    #[test]
    fn checks_and_failures_have_etcd_s_labels() {
        let metrics = Metrics::new().unwrap();
        let server = ServerMetrics::register(
            metrics.recorder(),
            version::ANNOUNCED,
            &FeatureGates::default(),
        );
        server.checked("readyz", HealthCheck::NonLearner, false);
        server.learner_promote_failed("not ready");
        server.stream_failed("send", "watch");
        let text = metrics.render();
        for line in [
            "etcd_server_healthcheck{type=\"readyz\",name=\"non_learner\"} 0",
            "etcd_server_healthchecks_total{type=\"readyz\",name=\"non_learner\",status=\"error\"} 1",
            "etcd_server_learner_promote_failures{Reason=\"not ready\"} 1",
            "etcd_network_server_stream_failures_total{Type=\"send\",API=\"watch\"} 1",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
