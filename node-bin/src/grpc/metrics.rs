//! The metrics of gRPC calls, as go-grpc-middleware names them.
//!
//! Depends on the `metrics` facade. Invariant: every method has all its series from the start, at zero, so that a rate
//! over them never misses the first call.

use std::{collections::HashMap, sync::Arc, time::Duration};

use metrics::{Counter, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use tonic::Code;

use crate::{config::MetricsDetail, metrics::RequestKind};

/// How a method's messages flow; a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Unary,
    ServerStream,
    BidiStream,
}

impl Flow {
    fn as_str(self) -> &'static str {
        match self {
            Flow::Unary => "unary",
            Flow::ServerStream => "server_stream",
            Flow::BidiStream => "bidi_stream",
        }
    }
}

use Flow::{BidiStream, ServerStream, Unary};

const AUTH: &str = "etcdserverpb.Auth";
const CLUSTER: &str = "etcdserverpb.Cluster";
const HEALTH: &str = "grpc.health.v1.Health";
const KV: &str = "etcdserverpb.KV";
const LEASE: &str = "etcdserverpb.Lease";
const MAINTENANCE: &str = "etcdserverpb.Maintenance";
const WATCH: &str = "etcdserverpb.Watch";

const METHODS: [(&str, &str, Flow); 44] = [
    (AUTH, "AuthDisable", Unary),
    (AUTH, "AuthEnable", Unary),
    (AUTH, "AuthStatus", Unary),
    (AUTH, "Authenticate", Unary),
    (AUTH, "RoleAdd", Unary),
    (AUTH, "RoleDelete", Unary),
    (AUTH, "RoleGet", Unary),
    (AUTH, "RoleGrantPermission", Unary),
    (AUTH, "RoleList", Unary),
    (AUTH, "RoleRevokePermission", Unary),
    (AUTH, "UserAdd", Unary),
    (AUTH, "UserChangePassword", Unary),
    (AUTH, "UserDelete", Unary),
    (AUTH, "UserGet", Unary),
    (AUTH, "UserGrantRole", Unary),
    (AUTH, "UserList", Unary),
    (AUTH, "UserRevokeRole", Unary),
    (CLUSTER, "MemberAdd", Unary),
    (CLUSTER, "MemberList", Unary),
    (CLUSTER, "MemberPromote", Unary),
    (CLUSTER, "MemberRemove", Unary),
    (CLUSTER, "MemberUpdate", Unary),
    (HEALTH, "Check", Unary),
    (HEALTH, "List", Unary),
    (HEALTH, "Watch", ServerStream),
    (KV, "Compact", Unary),
    (KV, "DeleteRange", Unary),
    (KV, "Put", Unary),
    (KV, "Range", Unary),
    (KV, "Txn", Unary),
    (LEASE, "LeaseGrant", Unary),
    (LEASE, "LeaseKeepAlive", BidiStream),
    (LEASE, "LeaseLeases", Unary),
    (LEASE, "LeaseRevoke", Unary),
    (LEASE, "LeaseTimeToLive", Unary),
    (MAINTENANCE, "Alarm", Unary),
    (MAINTENANCE, "Defragment", Unary),
    (MAINTENANCE, "Downgrade", Unary),
    (MAINTENANCE, "Hash", Unary),
    (MAINTENANCE, "HashKV", Unary),
    (MAINTENANCE, "MoveLeader", Unary),
    (MAINTENANCE, "Snapshot", ServerStream),
    (MAINTENANCE, "Status", Unary),
    (WATCH, "Watch", BidiStream),
];

/// The label values of the codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Handles of one method.
pub struct MethodMetrics {
    /// Whether the method counts as unary or as a stream.
    pub kind: RequestKind,
    /// Calls begun.
    pub started: Counter,
    /// Messages received.
    pub received: Counter,
    /// Messages sent.
    pub sent: Counter,
    handled: [Counter; 17],
    seconds: Option<Histogram>,
}

impl MethodMetrics {
    /// Records the end of a call.
    pub fn handled(&self, code: Code, after: Duration) {
        self.handled[(code as usize).min(CODES.len() - 1)].increment(1);
        if let Some(seconds) = &self.seconds {
            seconds.record(after.as_secs_f64());
        }
    }
}

/// Handles of all methods, and of what all of them have in common.
pub struct GrpcMetrics {
    methods: HashMap<String, Arc<MethodMetrics>>,
    /// Bytes of messages received.
    pub received_bytes: Counter,
    /// Bytes of messages sent.
    pub sent_bytes: Counter,
}

impl GrpcMetrics {
    /// Describes and registers everything; the histogram of durations only in detail.
    pub fn register(recorder: &dyn Recorder, detail: MetricsDetail) -> GrpcMetrics {
        for (name, text) in HELP {
            recorder.describe_counter(KeyName::from_const_str(name), None, text.into());
        }
        recorder.describe_histogram(
            KeyName::from_const_str(SECONDS),
            None,
            "Time from a call's first byte to its end.".into(),
        );
        let methods = METHODS.iter().map(|(service, method, flow)| {
            (
                format!("/{service}/{method}"),
                Arc::new(MethodMetrics::register(
                    recorder, detail, service, method, *flow,
                )),
            )
        });
        let counter = |name| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        GrpcMetrics {
            methods: methods.collect(),
            received_bytes: counter("etcd_network_client_grpc_received_bytes_total"),
            sent_bytes: counter("etcd_network_client_grpc_sent_bytes_total"),
        }
    }

    /// The handles of a method by its path, `/package.Service/Method`.
    pub fn method(&self, path: &str) -> Option<&Arc<MethodMetrics>> {
        self.methods.get(path)
    }
}

impl MethodMetrics {
    fn register(
        recorder: &dyn Recorder,
        detail: MetricsDetail,
        service: &'static str,
        method: &'static str,
        flow: Flow,
    ) -> MethodMetrics {
        let labels = vec![
            Label::from_static_parts("grpc_type", flow.as_str()),
            Label::from_static_parts("grpc_service", service),
            Label::from_static_parts("grpc_method", method),
        ];
        let counter =
            |name| recorder.register_counter(&Key::from_parts(name, labels.clone()), &METADATA);
        let handled = |code| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("grpc_code", code));
            recorder.register_counter(
                &Key::from_parts("grpc_server_handled_total", labels),
                &METADATA,
            )
        };
        let seconds = (detail == MetricsDetail::Extensive).then(|| {
            recorder.register_histogram(&Key::from_parts(SECONDS, labels.clone()), &METADATA)
        });
        MethodMetrics {
            kind: if flow == Unary {
                RequestKind::Unary
            } else {
                RequestKind::Stream
            },
            started: counter("grpc_server_started_total"),
            received: counter("grpc_server_msg_received_total"),
            sent: counter("grpc_server_msg_sent_total"),
            handled: CODES.map(handled),
            seconds,
        }
    }
}

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

const SECONDS: &str = "grpc_server_handling_seconds";

const HELP: [(&str, &str); 6] = [
    ("grpc_server_started_total", "gRPC calls begun."),
    ("grpc_server_handled_total", "gRPC calls ended, by code."),
    (
        "grpc_server_msg_received_total",
        "Messages received in gRPC calls.",
    ),
    ("grpc_server_msg_sent_total", "Messages sent in gRPC calls."),
    (
        "etcd_network_client_grpc_received_bytes_total",
        "Bytes of messages received from gRPC clients.",
    ),
    (
        "etcd_network_client_grpc_sent_bytes_total",
        "Bytes of messages sent to gRPC clients.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Metrics, scrape::Scrape};

    #[test]
    fn every_method_has_its_series_at_zero() {
        let metrics = Metrics::new().unwrap();
        let grpc = GrpcMetrics::register(&*metrics.recorder(), MetricsDetail::Basic);
        let scrape = Scrape::parse(&metrics.render()).unwrap();
        assert_eq!(scrape.values("grpc_server_started_total").count(), 44);
        assert_eq!(scrape.values("grpc_server_handled_total").count(), 748);
        assert!(!scrape.families.contains_key(SECONDS));
        assert!(grpc.method("/etcdserverpb.KV/Put").is_some() && grpc.method("/x.Y/Z").is_none());
    }

    #[test]
    fn codes_are_counted_under_their_names() {
        let metrics = Metrics::new().unwrap();
        let grpc = GrpcMetrics::register(&*metrics.recorder(), MetricsDetail::Extensive);
        let put = grpc.method("/etcdserverpb.KV/Put").unwrap();
        put.handled(Code::Unauthenticated, Duration::from_millis(3));
        let scrape = Scrape::parse(&metrics.render()).unwrap();
        let counted = scrape
            .values("grpc_server_handled_total")
            .find(|sample| sample.value == 1.0)
            .unwrap();
        assert_eq!(
            (counted.label("grpc_code"), counted.label("grpc_method")),
            (Some("Unauthenticated"), Some("Put"))
        );
    }
}
