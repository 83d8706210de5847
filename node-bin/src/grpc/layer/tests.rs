//! Calls through the layer, with a service in front of them that echoes or refuses.

use std::sync::atomic::{AtomicBool, Ordering};

use http_body_util::BodyExt;
use http_body_util::Full;

use super::*;
use crate::{
    config::{FeatureGates, MetricsDetail},
    metrics::{Metrics, scrape::Scrape},
    version,
};

const PUT: &str = "/etcdserverpb.KV/Put";

#[derive(Default)]
struct Member {
    led: AtomicBool,
    learner: AtomicBool,
}

impl Gate for Member {
    fn has_leader(&self) -> bool {
        self.led.load(Ordering::Relaxed)
    }

    fn is_learner(&self) -> bool {
        self.learner.load(Ordering::Relaxed)
    }
}

/// Reads the request whole and sends it back, with status 0 behind it; an error of the body becomes the status.
#[derive(Clone)]
struct Echo;

impl Service<Request<tonic::body::Body>> for Echo {
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            Ok(match request.into_body().collect().await {
                Ok(body) => {
                    let trailers =
                        HeaderMap::from_iter([(Status::GRPC_STATUS, "0".parse().unwrap())]);
                    let body =
                        Full::new(body.to_bytes()).with_trailers(async { Some(Ok(trailers)) });
                    Response::new(tonic::body::Body::new(body))
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

struct Fixture {
    metrics: Metrics,
    member: Arc<Member>,
    service: GrpcService<Echo>,
}

fn fixture() -> Fixture {
    let metrics = Metrics::new().unwrap();
    let member = Arc::new(Member::default());
    let recorder = metrics.recorder();
    let grpc = GrpcMetrics::register(&*recorder, MetricsDetail::Extensive);
    let server = ServerMetrics::register(recorder, version::ANNOUNCED, &FeatureGates::default());
    let limits = GrpcLimits {
        receive_max: 100,
        slow: Duration::from_secs(1),
    };
    let service =
        GrpcLayer::new(grpc, Arc::new(server), Arc::clone(&member) as _, limits).layer(Echo);
    Fixture {
        metrics,
        member,
        service,
    }
}

fn framed(length: usize) -> Bytes {
    let mut body = vec![0];
    body.extend((length as u32).to_be_bytes());
    body.extend(vec![1; length]);
    body.into()
}

fn call(path: &str, headers: &[(&str, &[u8])], body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::post(path).body(Full::new(body)).unwrap();
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        request
            .headers_mut()
            .insert(name, http::HeaderValue::from_bytes(value).unwrap());
    }
    request
}

impl Fixture {
    async fn status(&mut self, request: Request<Full<Bytes>>) -> (Code, String) {
        let response = self.service.call(request).await.unwrap();
        let headers = response.headers().clone();
        let trailers = response
            .into_body()
            .collect()
            .await
            .unwrap()
            .trailers()
            .cloned()
            .unwrap_or_default();
        let status = Status::from_header_map(&headers)
            .or_else(|| Status::from_header_map(&trailers))
            .unwrap();
        (status.code(), status.message().into())
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let scrape = Scrape::parse(&self.metrics.render()).unwrap();
        let matching = |sample: &&crate::metrics::scrape::Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.label(label) == Some(value))
        };
        scrape
            .values(name)
            .filter(matching)
            .map(|sample| sample.value)
            .sum()
    }
}

#[tokio::test]
async fn a_call_is_counted_with_its_messages_and_bytes() {
    let mut fixture = fixture();
    let body = [framed(10), framed(0)].concat().into();
    let headers: [(&str, &[u8]); 1] = [("client-api-version", b"3.5")];
    assert_eq!(
        fixture.status(call(PUT, &headers, body)).await,
        (Code::Ok, String::new())
    );
    let method = [("grpc_method", "Put"), ("grpc_service", "etcdserverpb.KV")];
    assert_eq!(fixture.value("grpc_server_started_total", &method), 1.0);
    assert_eq!(
        fixture.value("grpc_server_msg_received_total", &method),
        2.0
    );
    assert_eq!(fixture.value("grpc_server_msg_sent_total", &method), 2.0);
    assert_eq!(
        fixture.value("grpc_server_handled_total", &[("grpc_code", "OK")]),
        1.0
    );
    assert_eq!(fixture.value("grpc_server_handled_total", &[]), 1.0);
    assert_eq!(
        fixture.value("etcd_network_client_grpc_received_bytes_total", &[]),
        10.0
    );
    assert_eq!(
        fixture.value("etcd_network_client_grpc_sent_bytes_total", &[]),
        10.0
    );
    let client = [("type", "unary"), ("client_api_version", "3.5")];
    assert_eq!(
        fixture.value("etcd_server_client_requests_total", &client),
        1.0
    );
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let mut fixture = fixture();
    let (code, message) = fixture.status(call(PUT, &[], framed(101))).await;
    assert_eq!(
        (code, message.as_str()),
        (
            Code::ResourceExhausted,
            "grpc: received message larger than max (101 vs. 100)"
        )
    );
    assert_eq!(
        fixture.value(
            "grpc_server_handled_total",
            &[("grpc_code", "ResourceExhausted")]
        ),
        1.0
    );
}

#[tokio::test]
async fn who_asks_for_a_leader_is_refused_without_one() {
    let mut fixture = fixture();
    let hasleader: [(&str, &[u8]); 1] = [("hasleader", b"true")];
    let refused = (Code::Unavailable, "etcdserver: no leader".to_string());
    assert_eq!(
        fixture.status(call(PUT, &hasleader, framed(1))).await,
        refused
    );
    assert_eq!(
        fixture
            .status(call(PUT, &[("hasleader", b"no")], framed(1)))
            .await
            .0,
        Code::Ok
    );
    fixture.member.led.store(true, Ordering::Relaxed);
    assert_eq!(
        fixture.status(call(PUT, &hasleader, framed(1))).await.0,
        Code::Ok
    );
    assert_eq!(
        fixture.value("grpc_server_handled_total", &[("grpc_code", "Unavailable")]),
        1.0
    );
}

#[tokio::test]
async fn learners_serve_three_methods() {
    let mut fixture = fixture();
    fixture.member.learner.store(true, Ordering::Relaxed);
    let refused = (
        Code::FailedPrecondition,
        "etcdserver: rpc not supported for learner".to_string(),
    );
    for path in [
        PUT,
        "/etcdserverpb.Watch/Watch",
        "/etcdserverpb.Cluster/MemberList",
    ] {
        assert_eq!(
            fixture.status(call(path, &[], framed(1))).await,
            refused,
            "{path}"
        );
    }
    for path in FOR_LEARNERS {
        assert_eq!(
            fixture.status(call(path, &[], framed(1))).await.0,
            Code::Ok,
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_client_version_must_be_text() {
    let mut fixture = fixture();
    let (code, message) = fixture
        .status(call(PUT, &[("client-api-version", b"\xff\xfe")], framed(1)))
        .await;
    assert_eq!(
        (code, message.as_str()),
        (
            Code::InvalidArgument,
            "etcdserver: invalid client api version"
        )
    );
}

#[tokio::test]
async fn a_client_that_goes_away_is_counted_as_canceled() {
    let mut fixture = fixture();
    drop(fixture.service.call(call(PUT, &[], framed(1))));
    let response = fixture
        .service
        .call(call(PUT, &[], framed(1)))
        .await
        .unwrap();
    drop(response);
    assert_eq!(
        fixture.value("grpc_server_handled_total", &[("grpc_code", "Canceled")]),
        2.0
    );
    assert_eq!(fixture.value("grpc_server_handled_total", &[]), 2.0);
}
