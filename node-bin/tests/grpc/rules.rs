//! The rules that hold for every call, whatever its service.

use std::sync::atomic::Ordering::SeqCst;

use bytes::Bytes;
use kvstore::{
    ApplyError,
    pb::{
        authpb::UserAddOptions,
        etcdserverpb::{
            AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest,
            InternalRaftRequest, MemberListRequest, MemberListResponse, PutRequest, RangeRequest,
            RangeResponse, StatusRequest, StatusResponse,
        },
    },
};
use node_bin::grpc::error::ServerError::{self, *};
use tonic::Code;

use super::{RECEIVE_MAX, Server, range_of, refusal, until};

const PUT: &str = "grpc_type=\"unary\",grpc_service=\"etcdserverpb.KV\",grpc_method=\"Put\"";

#[tokio::test]
async fn what_goes_wrong_behind_the_services_reaches_the_client_as_etcd_says_it() {
    let server = Server::start().await;
    let client = server.client().await;
    let errors: [(ServerError, Code); 9] = [
        (TooManyRequests, Code::Unknown),
        (Stopped, Code::Unavailable),
        (Timeout, Code::Unavailable),
        (TimeoutDueToLeaderFail, Code::Unavailable),
        (TimeoutDueToConnectionLost, Code::Unavailable),
        (LeaderChanged, Code::Unavailable),
        (TimeoutWaitAppliedIndex, Code::Unavailable),
        (Apply(ApplyError::Corrupt), Code::DataLoss),
        (Apply(ApplyError::AuthOldRevision), Code::InvalidArgument),
    ];
    for (error, code) in errors {
        let text = error.to_string();
        server.member.failures.lock().extend([error.clone(), error]);
        assert_eq!(refusal(client.put("a", "1").await), (code, text.clone()));
        assert_eq!(refusal(client.get("a").await), (code, text));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_wants_a_leader_is_refused_without_one() {
    let server = Server::start().await;
    let client = server.client().await;
    let demanding = client.with("hasleader", "true");
    assert!(demanding.put("a", "1").await.is_ok());
    server.member.leader.store(0, SeqCst);
    assert_eq!(
        refusal(demanding.put("a", "1").await),
        (Code::Unavailable, "etcdserver: no leader".into())
    );
    assert!(
        client
            .with("hasleader", "false")
            .put("a", "1")
            .await
            .is_ok()
    );
    server.stop().await;
}

#[tokio::test]
async fn a_learner_answers_little() {
    let server = Server::start().await;
    let client = server.client().await;
    server.member.learner.store(true, SeqCst);
    let refused = (
        Code::FailedPrecondition,
        "etcdserver: rpc not supported for learner".to_string(),
    );
    assert_eq!(refusal(client.put("a", "1").await), refused);
    assert_eq!(refusal(client.get("a").await), refused);
    let list = client.call::<_, MemberListResponse>(
        "etcdserverpb.Cluster/MemberList",
        MemberListRequest::default(),
    );
    assert_eq!(refusal(list.await), refused);

    let serializable = RangeRequest {
        serializable: true,
        ..range_of("a")
    };
    let range: RangeResponse = client
        .call("etcdserverpb.KV/Range", serializable)
        .await
        .unwrap();
    assert_eq!(range.count, 0);
    let status: StatusResponse = client
        .call("etcdserverpb.Maintenance/Status", StatusRequest {})
        .await
        .unwrap();
    assert!(status.is_learner);
    server.stop().await;
}

#[tokio::test]
async fn nobody_is_served_while_auth_is_on() {
    let server = Server::start().await;
    let client = server.client().await;
    assert!(client.with("token", "whatever").put("a", "1").await.is_ok());
    let root = || "root".to_string();
    let none = InternalRaftRequest::default;
    for request in [
        InternalRaftRequest {
            auth_user_add: Some(AuthUserAddRequest {
                name: root().into(),
                options: Some(UserAddOptions { no_password: true }),
                ..Default::default()
            }),
            ..none()
        },
        InternalRaftRequest {
            auth_role_add: Some(AuthRoleAddRequest {
                name: root().into(),
            }),
            ..none()
        },
        InternalRaftRequest {
            auth_user_grant_role: Some(AuthUserGrantRoleRequest {
                user: root().into(),
                role: root().into(),
            }),
            ..none()
        },
        InternalRaftRequest {
            auth_enable: Some(AuthEnableRequest {}),
            ..none()
        },
    ] {
        server.member.apply(request).unwrap();
    }
    let nobody = (
        Code::InvalidArgument,
        "etcdserver: user name is empty".to_string(),
    );
    assert_eq!(refusal(client.put("a", "1").await), nobody);
    assert_eq!(refusal(client.get("a").await), nobody);
    let unknown = (
        Code::Unauthenticated,
        "etcdserver: invalid auth token".to_string(),
    );
    assert_eq!(refusal(client.with("token", "x.1").get("a").await), unknown);
    assert_eq!(
        refusal(client.with("authorization", "Bearer x").get("a").await),
        unknown
    );
    server.stop().await;
}

#[tokio::test]
async fn messages_are_limited_on_the_way_in_and_not_on_the_way_out() {
    let server = Server::start().await;
    let client = server.client().await;
    let value = Bytes::from(vec![7; RECEIVE_MAX]);
    let put = PutRequest {
        key: "a".into(),
        value,
        ..Default::default()
    };
    let refused = refusal(
        client
            .call::<_, RangeResponse>("etcdserverpb.KV/Put", put.clone())
            .await,
    );
    let size = prost::Message::encoded_len(&put);
    let text = format!("grpc: received message larger than max ({size} vs. {RECEIVE_MAX})");
    assert_eq!(refused, (Code::ResourceExhausted, text));

    for number in 0..60 {
        client
            .put(&format!("k{number}"), &"x".repeat(90_000))
            .await
            .unwrap();
    }
    let all = RangeRequest {
        range_end: "z".into(),
        ..range_of("k")
    };
    let range: RangeResponse = client.call("etcdserverpb.KV/Range", all).await.unwrap();
    assert!(prost::Message::encoded_len(&range) > 5 << 20);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_there_says_so() {
    let server = Server::start().await;
    let client = server.client().await;
    for method in [
        "etcdserverpb.Watch/Watch",
        "etcdserverpb.Lease/LeaseGrant",
        "etcdserverpb.Lease/LeaseKeepAlive",
        "etcdserverpb.Auth/AuthEnable",
        "etcdserverpb.Maintenance/Defragment",
        "etcdserverpb.Maintenance/Snapshot",
        "etcdserverpb.KV/RangeStream",
        "v3lockpb.Lock/Lock",
        "v3electionpb.Election/Campaign",
    ] {
        let (code, text) = refusal(
            client
                .call::<_, RangeResponse>(method, RangeRequest::default())
                .await,
        );
        assert_eq!(code, Code::Unimplemented, "{method}");
        assert!(
            text.ends_with("is not implemented by this server"),
            "{method}: {text}"
        );
    }
    let (code, text) = refusal(
        client
            .call::<_, RangeResponse>("a.B/C", RangeRequest::default())
            .await,
    );
    assert_eq!((code, &*text), (Code::Unimplemented, "unknown service a.B"));
    let series = "grpc_server_handled_total{grpc_type=\"bidi_stream\",grpc_service=\"etcdserverpb.Watch\",\
        grpc_method=\"Watch\",grpc_code=\"Unimplemented\"}";
    assert_eq!(server.metric(series), 1.0);
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_is_none_is_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    // A key that says it is longer than the message.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Wrong {
        #[prost(uint64, tag = "1")]
        key: u64,
    }
    let refused = refusal(
        client
            .call::<_, RangeResponse>("etcdserverpb.KV/Put", Wrong { key: 1 })
            .await,
    );
    assert_eq!(refused.0, Code::Internal);
    assert!(
        refused.1.starts_with("grpc: error unmarshalling request: "),
        "{}",
        refused.1
    );
    server.stop().await;
}

#[tokio::test]
async fn calls_are_counted_by_method_code_and_client() {
    let server = Server::start().await;
    let client = server.client().await;
    client.put("a", "1").await.unwrap();
    client.put("", "1").await.unwrap_err();
    let handled = |code: &str| {
        server.metric(&format!(
            "grpc_server_handled_total{{{PUT},grpc_code=\"{code}\"}}"
        ))
    };
    assert_eq!((handled("OK"), handled("InvalidArgument")), (1.0, 1.0));
    assert_eq!(
        server.metric(&format!("grpc_server_started_total{{{PUT}}}")),
        2.0
    );
    assert_eq!(
        server.metric(&format!("grpc_server_msg_sent_total{{{PUT}}}")),
        1.0
    );
    assert_eq!(
        server.metric("etcd_network_client_grpc_received_bytes_total"),
        6.0 + 3.0
    );
    assert!(server.metric("etcd_network_client_grpc_sent_bytes_total") > 0.0);
    let requests = "etcd_server_client_requests_total{type=\"unary\",client_api_version=\"3.6\"}";
    assert_eq!(server.metric(requests), 2.0);

    // A client that goes away has cancelled its call.
    server
        .member
        .gate
        .forget_permits(tokio::sync::Semaphore::MAX_PERMITS);
    let waits = tokio::spawn(async move { client.put("b", "1").await });
    until(|| server.member.waiting() == 1).await;
    waits.abort();
    until(|| server.member.waiting() == 0).await;
    assert_eq!(handled("Canceled"), 1.0);
    server.stop().await;
}
