//! The gRPC services over real sockets, in front of a real store.

mod backend;
mod cluster;
mod kv;
mod maintenance;
mod rules;
mod server;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use kvstore::{
    pb::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse},
    quota::Quota,
};
use node_bin::{
    config::{FeatureGates, MetricsDetail},
    grpc::{
        layer::GrpcLimits,
        metrics::GrpcMetrics,
        server::{Endpoint, ServerOptions, serve},
        services::{ServiceOptions, Services},
    },
    metrics::{Metrics, ServerMetrics},
    version::ANNOUNCED,
};
use prost::Message;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint as ChannelEndpoint},
};

use backend::TestMember;

/// Largest message the test server takes.
const RECEIVE_MAX: usize = 200_000;

/// A server on a port of the loopback interface.
struct Server {
    member: Arc<TestMember>,
    services: Services<TestMember>,
    metrics: Metrics,
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn service_options() -> ServiceOptions {
    ServiceOptions {
        limits: GrpcLimits {
            receive_max: RECEIVE_MAX,
            slow: Duration::from_secs(60),
        },
        txn_ops_max: 4,
        quota: Quota::new(0),
        version: ANNOUNCED,
    }
}

fn server_options() -> ServerOptions {
    ServerOptions {
        connections_max: 100,
        ..ServerOptions::default()
    }
}

impl Server {
    async fn start() -> Server {
        Server::with(service_options(), server_options()).await
    }

    async fn with(services: ServiceOptions, options: ServerOptions) -> Server {
        let member = TestMember::new();
        let metrics = Metrics::new().unwrap();
        let grpc = GrpcMetrics::register(&*metrics.recorder(), MetricsDetail::Extensive);
        let server =
            ServerMetrics::register(metrics.recorder(), ANNOUNCED, &FeatureGates::default());
        let services = Services::new(Arc::clone(&member), grpc, Arc::new(server), services);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint {
            grpc: Some(services.clone()),
            http: Router::new().route("/version", get(|| async { "three" })),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(listener, endpoint, options, stop.clone()));
        Server {
            member,
            services,
            metrics,
            address,
            stop,
            task,
        }
    }

    async fn client(&self) -> Client {
        let endpoint = ChannelEndpoint::from_shared(format!("http://{}", self.address)).unwrap();
        Client {
            channel: endpoint.connect().await.unwrap(),
            metadata: vec![("client-api-version", "3.6")],
        }
    }

    /// The value of a series in the rendered metrics.
    fn metric(&self, series: &str) -> f64 {
        let text = self.metrics.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} in\n{text}"))
            .parse()
            .unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

#[derive(Clone)]
struct Client {
    channel: Channel,
    metadata: Vec<(&'static str, &'static str)>,
}

impl Client {
    fn with(&self, key: &'static str, value: &'static str) -> Client {
        let mut client = self.clone();
        client.metadata.push((key, value));
        client
    }

    /// Calls `package.Service/Method`.
    async fn call<Q, A>(&self, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client =
            tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.unwrap();
        let mut request = Request::new(request);
        for (key, value) in &self.metadata {
            request.metadata_mut().insert(*key, value.parse().unwrap());
        }
        let path = format!("/{method}").parse().unwrap();
        let codec = tonic_prost::ProstCodec::<Q, A>::default();
        client
            .unary(request, path, codec)
            .await
            .map(|response| response.into_inner())
    }

    async fn put(&self, key: &str, value: &str) -> Result<PutResponse, Status> {
        self.call("etcdserverpb.KV/Put", put_of(key, value)).await
    }

    async fn get(&self, key: &str) -> Result<RangeResponse, Status> {
        self.call("etcdserverpb.KV/Range", range_of(key)).await
    }
}

fn put_of(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_string().into(),
        value: value.to_string().into(),
        ..Default::default()
    }
}

fn range_of(key: &str) -> RangeRequest {
    RangeRequest {
        key: key.to_string().into(),
        ..Default::default()
    }
}

/// What a refused call looks like to its client.
fn refusal<A: std::fmt::Debug>(result: Result<A, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_string())
}

/// Lets other tasks run until something has happened.
async fn until(what: impl Fn() -> bool) {
    let happens = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), happens)
        .await
        .expect("it never happened");
}
