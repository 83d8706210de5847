//! All gRPC services of the client port, and the way from a path to the one that serves it.
//!
//! Unary methods are served through `call`, in a table of paths; the health service and whatever streams go through
//! `layer` to tonic. Depends on every service. Invariant: a method of etcd's that is not served answers
//! `Unimplemented` and says so; clients fall back on that code.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::body::Incoming;
use kvstore::{pb::etcdserverpb::RangeRequest, quota::Quota};
use tonic::Status;
use tower::{Layer, Service};

use super::{
    backend::ServerBackend,
    call::{Call, Calls, Method},
    cluster::Cluster,
    health::{self, Health},
    kv::Kv,
    layer::{Gate, GrpcLayer, GrpcLimits, GrpcService, RemoteAddr},
    maintenance::Maintenance,
    metrics::GrpcMetrics,
    wire::ResponseBody,
};
use crate::{metrics::ServerMetrics, version::Version};

/// What a message may be larger than the largest request in it (etcd: v3rpc/grpc.go).
const OVERHEAD_BYTES: u64 = 512 * 1024;

/// The largest message a client may send, for this `--max-request-bytes`.
pub fn receive_max(max_request_bytes: u64) -> usize {
    usize::try_from(max_request_bytes.saturating_add(OVERHEAD_BYTES)).unwrap_or(usize::MAX)
}

/// Settings of the services.
#[derive(Clone, Copy, Debug)]
pub struct ServiceOptions {
    /// Size of messages, and when a call is slow.
    pub limits: GrpcLimits,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// `--quota-backend-bytes`.
    pub quota: Quota,
    /// The version this member announces.
    pub version: Version,
}

/// All services; cheap to clone.
pub struct Services<B> {
    shared: Arc<Shared<B>>,
}

impl<B> Clone for Services<B> {
    fn clone(&self) -> Self {
        Services {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<B> {
    calls: Calls<B>,
    routes: Vec<(Unary, Method)>,
    kv: Kv<B>,
    cluster: Cluster<B>,
    maintenance: Maintenance<B>,
    health: Health,
    others: GrpcService<Unserved>,
}

/// The unary methods that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unary {
    Range,
    Put,
    Txn,
    DeleteRange,
    Compact,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberList,
    MemberPromote,
    Alarm,
    Status,
    Hash,
    HashKv,
    MoveLeader,
}

/// Their paths, those that are called most first.
const PATHS: [(Unary, &str); 15] = [
    (Unary::Put, "/etcdserverpb.KV/Put"),
    (Unary::Range, "/etcdserverpb.KV/Range"),
    (Unary::Txn, "/etcdserverpb.KV/Txn"),
    (Unary::DeleteRange, "/etcdserverpb.KV/DeleteRange"),
    (Unary::Compact, "/etcdserverpb.KV/Compact"),
    (Unary::MemberAdd, "/etcdserverpb.Cluster/MemberAdd"),
    (Unary::MemberRemove, "/etcdserverpb.Cluster/MemberRemove"),
    (Unary::MemberUpdate, "/etcdserverpb.Cluster/MemberUpdate"),
    (Unary::MemberList, "/etcdserverpb.Cluster/MemberList"),
    (Unary::MemberPromote, "/etcdserverpb.Cluster/MemberPromote"),
    (Unary::Alarm, "/etcdserverpb.Maintenance/Alarm"),
    (Unary::Status, "/etcdserverpb.Maintenance/Status"),
    (Unary::Hash, "/etcdserverpb.Maintenance/Hash"),
    (Unary::HashKv, "/etcdserverpb.Maintenance/HashKV"),
    (Unary::MoveLeader, "/etcdserverpb.Maintenance/MoveLeader"),
];

impl<B: ServerBackend> Services<B> {
    /// The services of one member, for all of its listeners.
    pub fn new(
        backend: Arc<B>,
        grpc: GrpcMetrics,
        server: Arc<ServerMetrics>,
        options: ServiceOptions,
    ) -> Services<B> {
        let routes = PATHS.iter().filter_map(|(unary, path)| {
            let method = Method::new(&grpc, path)?;
            Some((*unary, method))
        });
        let routes: Vec<_> = routes.collect();
        debug_assert_eq!(routes.len(), PATHS.len(), "every method has its metrics");
        let ServiceOptions { limits, quota, .. } = options;
        let calls = Calls::new(Arc::clone(&backend), &grpc, Arc::clone(&server), limits);
        let gate = Arc::new(BackendGate(Arc::clone(&backend)));
        let layer = GrpcLayer::new(grpc, server, gate, limits);
        let shared = Shared {
            calls,
            routes,
            kv: Kv::new(Arc::clone(&backend), quota, options.txn_ops_max),
            cluster: Cluster::new(Arc::clone(&backend)),
            maintenance: Maintenance::new(backend, options.version, quota),
            health: Health::new(&layer),
            others: layer.layer(Unserved),
        };
        Services {
            shared: Arc::new(shared),
        }
    }

    /// The handle to what the health service reports.
    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// Serves one call.
    pub async fn call(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Response<ResponseBody> {
        let shared = &*self.shared;
        let path = request.uri().path();
        let route = shared
            .routes
            .iter()
            .find(|(_, method)| method.path() == path);
        let Some((unary, method)) = route else {
            return Box::pin(shared.other(request, remote)).await;
        };
        let (parts, body) = request.into_parts();
        let call = Call {
            method,
            headers: &parts.headers,
            remote,
        };
        let (calls, kv) = (&shared.calls, &shared.kv);
        match unary {
            Unary::Put => {
                calls
                    .serve(call, body, never, |request| kv.put(request))
                    .await
            }
            Unary::Range => {
                let by_learner = |request: &RangeRequest| request.serializable;
                calls
                    .serve(call, body, by_learner, |request| kv.range(request))
                    .await
            }
            Unary::Txn => {
                calls
                    .serve(call, body, never, |request| kv.txn(request))
                    .await
            }
            rare => Box::pin(shared.rare(*rare, call, body)).await,
        }
    }
}

/// Whether a learner serves a request, for most of them.
fn never<Q>(_: &Q) -> bool {
    false
}

impl<B: ServerBackend> Shared<B> {
    /// Serves the methods that are called seldom; apart from the others so that these need less room.
    async fn rare(&self, unary: Unary, call: Call<'_>, body: Incoming) -> Response<ResponseBody> {
        let (calls, kv) = (&self.calls, &self.kv);
        let (cluster, maintenance) = (&self.cluster, &self.maintenance);
        match unary {
            Unary::Put => calls.serve(call, body, never, |q| kv.put(q)).await,
            Unary::Range => calls.serve(call, body, never, |q| kv.range(q)).await,
            Unary::Txn => calls.serve(call, body, never, |q| kv.txn(q)).await,
            Unary::DeleteRange => calls.serve(call, body, never, |q| kv.delete_range(q)).await,
            Unary::Compact => calls.serve(call, body, never, |q| kv.compact(q)).await,
            Unary::MemberAdd => calls.serve(call, body, never, |q| cluster.add(q)).await,
            Unary::MemberRemove => calls.serve(call, body, never, |q| cluster.remove(q)).await,
            Unary::MemberUpdate => calls.serve(call, body, never, |q| cluster.update(q)).await,
            Unary::MemberList => calls.serve(call, body, never, |q| cluster.list(q)).await,
            Unary::MemberPromote => calls.serve(call, body, never, |q| cluster.promote(q)).await,
            Unary::Alarm => {
                calls
                    .serve(call, body, never, |q| maintenance.alarm(q))
                    .await
            }
            Unary::Status => {
                calls
                    .serve(call, body, |_| true, |q| maintenance.status(q))
                    .await
            }
            Unary::Hash => {
                calls
                    .serve(call, body, never, |q| maintenance.hash(q))
                    .await
            }
            Unary::HashKv => {
                calls
                    .serve(call, body, never, |q| maintenance.hash_kv(q))
                    .await
            }
            Unary::MoveLeader => {
                calls
                    .serve(call, body, never, |q| maintenance.move_leader(q))
                    .await
            }
        }
    }

    async fn other(
        &self,
        mut request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Response<ResponseBody> {
        request.extensions_mut().insert(RemoteAddr(remote));
        if request.uri().path().starts_with(health::PREFIX) {
            return self.health.call(request).await;
        }
        match self.others.clone().call(request).await {
            Ok(response) => response.map(ResponseBody::stream),
            Err(never) => match never {},
        }
    }
}

/// What the layer asks the member.
struct BackendGate<B>(Arc<B>);

impl<B: ServerBackend> Gate for BackendGate<B> {
    fn has_leader(&self) -> bool {
        self.0.status().leader.is_some()
    }

    fn is_learner(&self) -> bool {
        self.0.is_learner()
    }
}

/// Answers what no service serves.
#[derive(Clone, Copy)]
struct Unserved;

/// Services that etcd has and this server has not, or not wholly.
const KNOWN_SERVICES: [&str; 8] = [
    "etcdserverpb.Auth",
    "etcdserverpb.Cluster",
    "etcdserverpb.KV",
    "etcdserverpb.Lease",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Watch",
    "v3electionpb.Election",
    "v3lockpb.Lock",
];

impl Service<Request<tonic::body::Body>> for Unserved {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let status = Status::unimplemented(unserved(request.uri().path()));
        ready(Ok(status.into_http()))
    }
}

/// What is said about a path that is not served; of services that etcd does not have either, grpc-go's words.
fn unserved(path: &str) -> String {
    match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
        Some((service, method)) if KNOWN_SERVICES.contains(&service) => {
            format!(
                "etcdserver: method {method} of service {service} is not implemented by this server"
            )
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {path:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_served_is_said_clearly() {
        let cases = [
            (
                "/etcdserverpb.Watch/Watch",
                "etcdserver: method Watch of service etcdserverpb.Watch is not implemented by this server",
            ),
            ("/some.Thing/Do", "unknown service some.Thing"),
            ("/nothing", "malformed method name: \"/nothing\""),
        ];
        for (path, text) in cases {
            assert_eq!(unserved(path), text);
        }
    }

    #[test]
    fn half_a_mebibyte_more_than_a_request_may_come() {
        assert_eq!(receive_max(1_572_864), 2_097_152);
        assert_eq!(receive_max(u64::MAX), usize::MAX);
    }
}
