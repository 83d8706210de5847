//! The standard health service, `grpc.health.v1`, by which load balancers and clients choose members.
//!
//! Depends on tonic-health for the protocol and on `layer` for counting. Invariant: only the server as a whole has a
//! status, under the empty name; it says "serving" until [`Health::set_serving`] says otherwise (etcd:
//! v3rpc/health.go).

use std::convert::Infallible;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};
use tower::{Layer, Service};

use super::{
    layer::{GrpcLayer, GrpcService},
    wire::ResponseBody,
};

/// What the paths of its methods begin with.
pub const PREFIX: &str = "/grpc.health.v1.Health/";

/// The name that stands for the server as a whole.
const WHOLE: &str = "";

/// The health service and the handle to its status.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    service: GrpcService<HealthServer<HealthService>>,
}

impl Health {
    /// A service that reports "serving".
    pub fn new(layer: &GrpcLayer) -> Health {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        Health {
            reporter,
            service: layer.layer(HealthServer::new(service)),
        }
    }

    /// Tells clients whether to come here; those that watch are told at once.
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.reporter.set_service_status(WHOLE, status).await;
    }

    /// Serves one call.
    pub async fn call(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let mut service = self.service.clone();
        match service.call(request).await {
            Ok(response) => response.map(ResponseBody::stream),
            Err(never) => {
                let never: Infallible = never;
                match never {}
            }
        }
    }
}
