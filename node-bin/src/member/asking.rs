//! Asking other members' HTTP endpoints: who is in the cluster, which version they run, to promote a learner.
//!
//! Depends on the transport's small client. Invariant: answers are bounded in time and size.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use kvstore::{
    ApplyError,
    membership::{Member, json},
};
use transport_core::{ClusterId, MemberId};
use transport_http::client::Client;

use super::join::{ANSWER_MAX, Answer, Ask};
use crate::{
    grpc::error::ServerError,
    http::peer::{PromoteError, read_promotion},
};

const CLUSTER_ID: &str = "x-etcd-cluster-id";

/// Asks over the connections the transport would use.
#[derive(Clone)]
pub struct PeerClient {
    client: Client,
    cluster_id: Option<ClusterId>,
}

impl PeerClient {
    /// `cluster_id` is sent along once it is known.
    pub fn new(client: Client, cluster_id: Option<ClusterId>) -> PeerClient {
        PeerClient { client, cluster_id }
    }

    fn headers(&self) -> HeaderMap {
        let id = self
            .cluster_id
            .and_then(|id| HeaderValue::from_str(&id.to_string()).ok());
        id.map(|id| (http::HeaderName::from_static(CLUSTER_ID), id))
            .into_iter()
            .collect()
    }

    /// Asks the leader at `url` to promote a learner; `None` when another URL should be tried
    /// (etcd: etcdserver/cluster_util.go, `promoteMemberHTTP`).
    pub async fn promote(
        &self,
        url: &str,
        id: MemberId,
        within: Duration,
    ) -> Option<Result<Vec<Member>, ServerError>> {
        let built = Request::builder()
            .method(Method::POST)
            .uri(format!("{url}/members/promote/{}", id.0));
        let mut request = built.body(Bytes::new()).ok()?;
        *request.headers_mut() = self.headers();
        let answer = self.client.send(request, within, ANSWER_MAX).await;
        let answer = answer
            .inspect_err(|error| tracing::warn!(url, %error, "failed to forward a promotion"))
            .ok()?;
        match read_promotion(answer.status(), answer.body()) {
            Ok(_) => json::parse_members(answer.body()).ok().map(Ok),
            Err(PromoteError::Timeout) => Some(Err(ServerError::Timeout)),
            Err(PromoteError::NotReady) => Some(Err(ServerError::LearnerNotReady)),
            Err(PromoteError::NotLearner) => Some(Err(ApplyError::MemberNotLearner.into())),
            Err(PromoteError::NotFound) => Some(Err(ApplyError::MemberNotFound.into())),
            Err(PromoteError::Other(error)) => {
                tracing::warn!(url, error, "failed to forward a promotion");
                None
            }
        }
    }
}

impl Ask for PeerClient {
    async fn get(&self, url: &str, within: Duration) -> Result<Answer, String> {
        let answer = self
            .client
            .get(url, self.headers(), within, ANSWER_MAX)
            .await;
        let (status, headers, body) = answer.map_err(|error| error.to_string())?;
        let cluster_id = headers
            .get(CLUSTER_ID)
            .and_then(|id| id.to_str().ok())
            .map(str::to_owned);
        Ok(Answer {
            status: status.as_u16(),
            cluster_id,
            body: body.to_vec(),
        })
    }
}
