//! What members ask each other besides raft: the cluster's members and version, promotions, hashes (etcd:
//! api/etcdhttp/peer.go, etcdserver/corrupt.go).
//!
//! Depends on [`PeerState`] for what the member knows. Invariant: nothing here is answered 403, which a member of
//! another implementation takes for its own removal.

use std::future::Future;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use serde::Deserialize;
use transport_core::{ClusterId, MemberId};

use super::{CLUSTER_ID, JSON, answer, error, method_not_allowed, not_found};
use crate::member::{MemberInfo, Versions, info::go_json};

/// Largest request body that is read.
const BODY_MAX: usize = 64 * 1024;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const PROMOTE: &str = "/members/promote/";

/// The hash of the keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// Current revision.
    pub revision: i64,
    /// The hash.
    pub hash: u32,
    /// Compacted revision it depends on.
    pub compact_revision: i64,
    /// Revision up to which it was taken.
    pub hash_revision: i64,
}

/// Why a learner was not promoted; the texts are what other members look for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromoteError {
    /// No such member.
    #[error("membership: ID not found")]
    NotFound,
    /// It is a voter.
    #[error("membership: can only promote a learner member")]
    NotLearner,
    /// It lags behind.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    NotReady,
    /// The leader did not answer in time.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What the endpoints ask the member.
pub trait PeerState: Send + Sync + 'static {
    /// This member's cluster.
    fn cluster_id(&self) -> ClusterId;
    /// The cluster's members, by ascending id.
    fn members(&self) -> Vec<MemberInfo>;
    /// What `/version` answers.
    fn versions(&self) -> Versions;
    /// Promotes a learner as the caller with this token and returns the members after it.
    fn promote(
        &self,
        id: MemberId,
        authorization: Option<String>,
    ) -> impl Future<Output = Result<Vec<MemberInfo>, PromoteError>> + Send;
    /// Hashes the keyspace at a revision, 0 for the current one. The error is its text.
    fn hash_kv(&self, revision: i64) -> impl Future<Output = Result<HashKv, String>> + Send;
}

/// Answers a request that is not raft's.
pub async fn handle<S, B>(state: &S, request: Request<B>) -> Response<Bytes>
where
    S: PeerState,
    B: Body,
    B::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    let id = state.cluster_id();
    let path = head.uri.path();
    let allowed = if path.starts_with(PROMOTE) {
        Method::POST
    } else {
        Method::GET
    };
    let known = matches!(
        path,
        "/version" | "/members" | "/members/hashkv" | "/downgrade/enabled"
    );
    if (known || path.starts_with(PROMOTE)) && head.method != allowed {
        return method_not_allowed(if allowed == Method::POST {
            "POST"
        } else {
            "GET"
        });
    }
    match path {
        "/version" => answer(StatusCode::OK, JSON, state.versions().json()),
        "/members" => of_cluster(id, member_list(&state.members())),
        "/members/hashkv" => hash_kv(state, &head.headers, body).await,
        // Downgrades are not supported, so none is ever going on.
        "/downgrade/enabled" => of_cluster(
            id,
            answer(
                StatusCode::OK,
                HeaderValue::from_static("text/plain"),
                "false",
            ),
        ),
        // Not 404: that would mean that the lease asked about does not exist.
        "/leases" | "/leases/internal" => error(
            StatusCode::NOT_IMPLEMENTED,
            "lease requests of members are not supported yet",
        ),
        _ => match path.strip_prefix(PROMOTE) {
            Some(member) => of_cluster(id, promote(state, member, &head.headers).await),
            None => not_found(),
        },
    }
}

fn of_cluster(id: ClusterId, mut answer: Response<Bytes>) -> Response<Bytes> {
    // Hexadecimal digits are always a valid header.
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        answer.headers_mut().insert(CLUSTER_ID, id);
    }
    answer
}

fn member_list(members: &[MemberInfo]) -> Response<Bytes> {
    // Texts and numbers cannot fail to be written. Go's encoder ends with a line break.
    answer(
        StatusCode::OK,
        JSON,
        go_json(&members).unwrap_or_default() + "\n",
    )
}

async fn promote<S: PeerState>(state: &S, member: &str, headers: &HeaderMap) -> Response<Bytes> {
    let Ok(id) = member.parse::<u64>().map(MemberId) else {
        return error(
            StatusCode::NOT_FOUND,
            &format!("member {member} not found in cluster"),
        );
    };
    let token = headers
        .get(header::AUTHORIZATION)
        .and_then(|token| token.to_str().ok())
        .map(str::to_string);
    let failure = match state.promote(id, token).await {
        Ok(members) => return member_list(&members),
        Err(failure) => failure,
    };
    tracing::warn!(member_id = %id, error = %failure, "failed to promote a member");
    match failure {
        PromoteError::NotFound => error(StatusCode::NOT_FOUND, &failure.to_string()),
        PromoteError::NotLearner | PromoteError::NotReady => {
            error(StatusCode::PRECONDITION_FAILED, &failure.to_string())
        }
        PromoteError::Timeout => error(StatusCode::REQUEST_TIMEOUT, &failure.to_string()),
        PromoteError::Other(_) => {
            let body = "{\"message\":\"Internal Server Error\"}";
            answer(StatusCode::INTERNAL_SERVER_ERROR, JSON, body)
        }
    }
}

/// Reads what another member answered to a promotion that was forwarded to it.
pub fn read_promotion(status: StatusCode, body: &[u8]) -> Result<Vec<MemberInfo>, PromoteError> {
    let text = String::from_utf8_lossy(body);
    let unknown = || PromoteError::Other(format!("member promote: unknown error({text})"));
    match status {
        StatusCode::OK => {
            serde_json::from_slice(body).map_err(|error| PromoteError::Other(error.to_string()))
        }
        StatusCode::REQUEST_TIMEOUT => Err(PromoteError::Timeout),
        StatusCode::NOT_FOUND => Err(PromoteError::NotFound),
        // The longer text contains the shorter one's tail, so it is looked for first.
        StatusCode::PRECONDITION_FAILED => {
            let known = [PromoteError::NotReady, PromoteError::NotLearner];
            Err(known
                .into_iter()
                .find(|error| text.contains(&error.to_string()))
                .unwrap_or_else(unknown))
        }
        _ => Err(unknown()),
    }
}

#[derive(Deserialize)]
struct HashKvQuestion {
    #[serde(default)]
    revision: i64,
}

async fn hash_kv<S, B>(state: &S, headers: &HeaderMap, body: B) -> Response<Bytes>
where
    S: PeerState,
    B: Body,
    B::Error: Into<BoxError>,
{
    let id = state.cluster_id();
    let asked = headers
        .get(CLUSTER_ID)
        .map(HeaderValue::as_bytes)
        .filter(|asked| !asked.is_empty());
    if asked.is_some_and(|asked| asked != id.to_string().as_bytes()) {
        return error(StatusCode::PRECONDITION_FAILED, "cluster ID mismatch");
    }
    let Ok(body) = Limited::new(body, BODY_MAX).collect().await else {
        return error(StatusCode::BAD_REQUEST, "error reading body");
    };
    let question: HashKvQuestion = match serde_json::from_slice(&body.to_bytes()) {
        Ok(question) => question,
        Err(failure) => {
            tracing::warn!(error = %failure, "failed to unmarshal request");
            return error(StatusCode::BAD_REQUEST, "error unmarshalling request");
        }
    };
    match state.hash_kv(question.revision).await {
        Ok(hash) => of_cluster(id, answer(StatusCode::OK, JSON, hash_json(&hash))),
        Err(failure) => {
            tracing::warn!(
                requested_revision = question.revision,
                error = failure,
                "failed to get hashKV"
            );
            error(StatusCode::BAD_REQUEST, &failure)
        }
    }
}

/// The JSON of Go's message, which leaves out zeros.
fn hash_json(hash: &HashKv) -> String {
    let mut json = serde_json::json!({"header": {"revision": hash.revision}});
    for (name, value) in [
        ("hash", i64::from(hash.hash)),
        ("compact_revision", hash.compact_revision),
        ("hash_revision", hash.hash_revision),
    ] {
        if value != 0 {
            json[name] = value.into();
        }
    }
    json.to_string()
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    struct Member;

    fn foo() -> MemberInfo {
        MemberInfo {
            id: MemberId(9_825_851_460_683_942_701),
            peer_urls: vec!["http://127.0.0.1:30001".into()],
            name: "foo".into(),
            client_urls: vec!["http://127.0.0.1:30000".into()],
            ..MemberInfo::default()
        }
    }

    impl PeerState for Member {
        fn cluster_id(&self) -> ClusterId {
            ClusterId(0x19fc_93ef_ab8e_466f)
        }

        fn members(&self) -> Vec<MemberInfo> {
            vec![foo()]
        }

        fn versions(&self) -> Versions {
            Versions::new("3.6.16", None, None)
        }

        async fn promote(
            &self,
            id: MemberId,
            token: Option<String>,
        ) -> Result<Vec<MemberInfo>, PromoteError> {
            match id.0 {
                1 if token.as_deref() == Some("token") => Ok(vec![foo()]),
                2 => Err(PromoteError::NotLearner),
                3 => Err(PromoteError::NotReady),
                4 => Err(PromoteError::Timeout),
                5 => Err(PromoteError::Other("etcdserver: unhealthy cluster".into())),
                _ => Err(PromoteError::NotFound),
            }
        }

        async fn hash_kv(&self, revision: i64) -> Result<HashKv, String> {
            match revision {
                0 => Ok(HashKv {
                    revision: 1,
                    hash: 1_084_519_789,
                    compact_revision: -1,
                    hash_revision: 1,
                }),
                _ => Err("mvcc: required revision is a future revision".into()),
            }
        }
    }

    async fn ask(
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &'static str,
    ) -> (u16, String, HeaderMap) {
        let builder = Request::builder().method(method).uri(path);
        let builder = headers.iter().fold(builder, |builder, (name, value)| {
            builder.header(*name, *value)
        });
        let (head, body) = handle(&Member, builder.body(Full::new(Bytes::from(body))).unwrap())
            .await
            .into_parts();
        (
            head.status.as_u16(),
            String::from_utf8(body.to_vec()).unwrap(),
            head.headers,
        )
    }

    #[tokio::test]
    async fn members_are_told_with_their_cluster() {
        let (status, body, headers) = ask("GET", "/members", &[], "").await;
        let expected = "[{\"id\":9825851460683942701,\"peerURLs\":[\"http://127.0.0.1:30001\"],\"name\":\"foo\",\
                        \"clientURLs\":[\"http://127.0.0.1:30000\"]}]\n";
        assert_eq!((status, body.as_str()), (200, expected));
        assert_eq!(
            (&headers["x-etcd-cluster-id"], &headers["content-type"]),
            (&HeaderValue::from_static("19fc93efab8e466f"), &JSON)
        );
    }

    #[tokio::test]
    async fn hashes_are_told_as_etcd_tells_them() {
        let hash = "{\"header\":{\"revision\":1},\"hash\":1084519789,\"compact_revision\":-1,\"hash_revision\":1}";
        let cases = [
            ("{\"revision\":0}", 200, hash),
            ("{\"foo\":1}", 200, hash),
            (
                "{\"revision\":99}",
                400,
                "mvcc: required revision is a future revision\n",
            ),
            ("", 400, "error unmarshalling request\n"),
            ("xx", 400, "error unmarshalling request\n"),
            ("{\"revision\":\"1\"}", 400, "error unmarshalling request\n"),
        ];
        for (question, status, text) in cases {
            let (got, body, headers) = ask("GET", "/members/hashkv", &[], question).await;
            assert_eq!(
                (got, headers.contains_key(CLUSTER_ID)),
                (status, status == 200),
                "{question}"
            );
            let same = if status == 200 {
                serde_json::from_str::<serde_json::Value>(&body).unwrap()
                    == serde_json::from_str::<serde_json::Value>(text).unwrap()
            } else {
                body == text
            };
            assert!(same, "{question}: {body}");
        }
        let (status, body, _) = ask(
            "GET",
            "/members/hashkv",
            &[("X-Etcd-Cluster-ID", "1")],
            "{}",
        )
        .await;
        assert_eq!((status, body.as_str()), (412, "cluster ID mismatch\n"));
        let (status, ..) = ask(
            "GET",
            "/members/hashkv",
            &[("X-Etcd-Cluster-ID", "19fc93efab8e466f")],
            "{}",
        )
        .await;
        assert_eq!(status, 200);
        let long: &'static str = Box::leak(" ".repeat(BODY_MAX + 1).into_boxed_str());
        assert_eq!(ask("GET", "/members/hashkv", &[], long).await.0, 400);
    }

    #[tokio::test]
    async fn promotions_fail_with_what_members_look_for() {
        let (status, body, _) = ask(
            "POST",
            "/members/promote/1",
            &[("authorization", "token")],
            "",
        )
        .await;
        assert_eq!((status, body.starts_with("[{\"id\":98258")), (200, true));
        let cases = [
            ("abc", 404, "member abc not found in cluster\n"),
            ("", 404, "member  not found in cluster\n"),
            ("12", 404, "membership: ID not found\n"),
            ("2", 412, "membership: can only promote a learner member\n"),
            (
                "3",
                412,
                "etcdserver: can only promote a learner member which is in sync with leader\n",
            ),
            ("4", 408, "etcdserver: request timed out\n"),
            ("5", 500, "{\"message\":\"Internal Server Error\"}"),
        ];
        for (id, status, text) in cases {
            let (got, body, headers) = ask("POST", &format!("{PROMOTE}{id}"), &[], "").await;
            assert_eq!((got, body.as_str()), (status, text));
            assert!(headers.contains_key(CLUSTER_ID));
        }
    }

    #[test]
    fn a_forwarded_promotion_is_read_back() {
        let read = |status: u16, body: &str| {
            read_promotion(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        assert_eq!(
            read(200, "[{\"id\":1,\"peerURLs\":null}]").map(|members| members.len()),
            Ok(1)
        );
        assert_eq!(read(404, "x"), Err(PromoteError::NotFound));
        assert_eq!(read(408, "x"), Err(PromoteError::Timeout));
        assert_eq!(
            read(412, "membership: can only promote a learner member\n"),
            Err(PromoteError::NotLearner)
        );
        let lagging =
            "etcdserver: can only promote a learner member which is in sync with leader\n";
        assert_eq!(read(412, lagging), Err(PromoteError::NotReady));
        assert!(matches!(read(412, "x"), Err(PromoteError::Other(_))));
        assert!(matches!(read(500, "x"), Err(PromoteError::Other(_))));
    }

    #[tokio::test]
    async fn the_rest_is_answered_as_by_etcd() {
        let cases = [
            (
                "GET",
                "/version",
                200,
                "{\"etcdserver\":\"3.6.16\",\"etcdcluster\":\"not_decided\",\"storage\":\"unknown\"}",
            ),
            ("GET", "/downgrade/enabled", 200, "false"),
            ("GET", "/", 404, "404 page not found\n"),
            ("GET", "/health", 404, "404 page not found\n"),
            ("GET", "/members/", 404, "404 page not found\n"),
            ("GET", "/members/foo", 404, "404 page not found\n"),
            ("POST", "/version", 405, "Method Not Allowed\n"),
            ("POST", "/members", 405, "Method Not Allowed\n"),
            ("POST", "/members/hashkv", 405, "Method Not Allowed\n"),
            ("POST", "/downgrade/enabled", 405, "Method Not Allowed\n"),
            ("GET", "/members/promote/12", 405, "Method Not Allowed\n"),
            (
                "POST",
                "/leases",
                501,
                "lease requests of members are not supported yet\n",
            ),
        ];
        for (method, path, status, text) in cases {
            let (got, body, _) = ask(method, path, &[], "").await;
            assert_eq!((got, body.as_str()), (status, text), "{method} {path}");
        }
    }
}
