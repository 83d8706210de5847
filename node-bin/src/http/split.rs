//! One port for gRPC and HTTP: calls go to the gRPC services, everything else to the HTTP endpoints (etcd:
//! server/embed/serve.go, `grpcHandlerFunc`).
//!
//! Depends on `tower`. Invariant: a request with gRPC's content type never reaches an HTTP endpoint.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body as AxumBody};
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version, header};
use http_body::Body;
use tower::Service;

use super::error;

/// Serves both; either may be missing when each has URLs of its own.
#[derive(Clone)]
pub struct Split<G> {
    /// The gRPC services.
    pub grpc: Option<G>,
    /// The HTTP endpoints.
    pub http: Option<Router>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<G, R, B> Service<Request<B>> for Split<G>
where
    G: Service<Request<B>, Response = Response<R>, Error = Infallible>,
    G::Future: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<AxumBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The HTTP endpoints are always ready.
        self.grpc
            .as_mut()
            .map_or(Poll::Ready(Ok(())), |grpc| grpc.poll_ready(context))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match (&mut self.grpc, &mut self.http) {
            (Some(grpc), _) if is_grpc(&request) => {
                let answer = grpc.call(request);
                Box::pin(async move { answer.await.map(|response| response.map(AxumBody::new)) })
            }
            (_, Some(http)) => Box::pin(http.call(request)),
            _ => {
                let refused = error(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "this URL serves gRPC only",
                );
                Box::pin(std::future::ready(Ok(refused.map(AxumBody::from))))
            }
        }
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    request.version() == Version::HTTP_2
        && content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    fn services() -> Split<Router> {
        Split {
            grpc: Some(Router::new().fallback(async || "grpc")),
            http: Some(Router::new().route("/x", get(async || "http"))),
        }
    }

    async fn ask(split: Split<Router>, version: Version, content_type: &str) -> (u16, String) {
        let builder = Request::builder()
            .uri("/x")
            .version(version)
            .header("content-type", content_type);
        let response = split
            .oneshot(builder.body(AxumBody::empty()).unwrap())
            .await
            .unwrap();
        let status = response.status().as_u16();
        let body = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn calls_and_requests_part_ways() {
        let grpc = "application/grpc+proto";
        assert_eq!(ask(services(), Version::HTTP_2, grpc).await.1, "grpc");
        assert_eq!(ask(services(), Version::HTTP_11, grpc).await.1, "http");
        assert_eq!(
            ask(services(), Version::HTTP_2, "text/plain").await.1,
            "http"
        );
        let grpc_only = Split {
            http: None,
            ..services()
        };
        assert_eq!(ask(grpc_only, Version::HTTP_11, "text/plain").await.0, 415);
        let http_only = Split {
            grpc: None,
            ..services()
        };
        assert_eq!(ask(http_only, Version::HTTP_2, grpc).await.1, "http");
    }
}
