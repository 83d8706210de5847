//! What the Cluster service answers.

use std::sync::atomic::Ordering::SeqCst;

use kvstore::pb::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, ResponseHeader,
};
use node_bin::grpc::error::ServerError;
use tonic::Code;

use super::{
    Server,
    backend::{CLUSTER, MEMBER, TERM},
    refusal,
};

fn urls(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

#[tokio::test]
async fn the_membership_is_listed_and_changed() {
    let server = Server::start().await;
    let client = server.client().await;
    let header = Some(ResponseHeader {
        cluster_id: CLUSTER.0,
        member_id: MEMBER.0,
        revision: 0,
        raft_term: TERM,
    });
    let list = |linearizable| {
        client.call::<_, MemberListResponse>(
            "etcdserverpb.Cluster/MemberList",
            MemberListRequest { linearizable },
        )
    };
    let listed = list(false).await.unwrap();
    assert_eq!(
        (
            listed.header,
            listed.members.len(),
            server.member.reads.load(SeqCst)
        ),
        (header, 1, 0)
    );
    assert_eq!(
        (listed.members[0].id, &*listed.members[0].name),
        (MEMBER.0, "first")
    );
    list(true).await.unwrap();
    assert_eq!(server.member.reads.load(SeqCst), 1);

    let add = MemberAddRequest {
        peer_urls: urls(&["http://b:2", " http://a:1"]),
        is_learner: true,
    };
    let added: MemberAddResponse = client
        .call("etcdserverpb.Cluster/MemberAdd", add)
        .await
        .unwrap();
    let learner = added.member.unwrap();
    assert_eq!(
        (added.header, added.members.len(), learner.is_learner),
        (header, 2, true)
    );
    assert_eq!(learner.peer_urls, ["http://a:1", "http://b:2"]);

    let promote = MemberPromoteRequest { id: learner.id };
    let promoted: MemberPromoteResponse = client
        .call("etcdserverpb.Cluster/MemberPromote", promote)
        .await
        .unwrap();
    assert!(!promoted.members.iter().any(|member| member.is_learner));

    let update = MemberUpdateRequest {
        id: learner.id,
        peer_urls: urls(&["http://c:3"]),
    };
    let updated: MemberUpdateResponse = client
        .call("etcdserverpb.Cluster/MemberUpdate", update)
        .await
        .unwrap();
    let member = updated
        .members
        .iter()
        .find(|member| member.id == learner.id)
        .unwrap();
    assert_eq!(member.peer_urls, ["http://c:3"]);

    let remove = MemberRemoveRequest { id: learner.id };
    let removed: MemberRemoveResponse = client
        .call("etcdserverpb.Cluster/MemberRemove", remove)
        .await
        .unwrap();
    assert_eq!((removed.header, removed.members.len()), (header, 1));
    server.stop().await;
}

#[tokio::test]
async fn changes_that_cannot_be_are_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let add = |texts: &[&str]| {
        let request = MemberAddRequest {
            peer_urls: urls(texts),
            is_learner: false,
        };
        client.call::<_, MemberAddResponse>("etcdserverpb.Cluster/MemberAdd", request)
    };
    let update = |id, texts: &[&str]| {
        let request = MemberUpdateRequest {
            id,
            peer_urls: urls(texts),
        };
        client.call::<_, MemberUpdateResponse>("etcdserverpb.Cluster/MemberUpdate", request)
    };
    let bad_urls = (
        Code::InvalidArgument,
        "etcdserver: given member URLs are invalid".to_string(),
    );
    assert_eq!(refusal(add(&[]).await), bad_urls);
    assert_eq!(refusal(add(&["localhost"]).await), bad_urls);
    assert_eq!(refusal(update(MEMBER.0, &["http://a"]).await), bad_urls);

    let taken = (
        Code::FailedPrecondition,
        "etcdserver: Peer URLs already exists".to_string(),
    );
    assert_eq!(refusal(add(&["http://127.0.0.1:2380"]).await), taken);
    let not_found = (Code::NotFound, "etcdserver: member not found".to_string());
    assert_eq!(refusal(update(9, &["http://a:1"]).await), not_found);
    let remove = client.call::<_, MemberRemoveResponse>(
        "etcdserverpb.Cluster/MemberRemove",
        MemberRemoveRequest { id: 9 },
    );
    assert_eq!(refusal(remove.await), not_found);
    let promote = |id| {
        client.call::<_, MemberPromoteResponse>(
            "etcdserverpb.Cluster/MemberPromote",
            MemberPromoteRequest { id },
        )
    };
    let voter = (
        Code::FailedPrecondition,
        "etcdserver: can only promote a learner member".to_string(),
    );
    assert_eq!(refusal(promote(MEMBER.0).await), voter);

    server
        .member
        .failures
        .lock()
        .push_back(ServerError::NotEnoughStartedMembers);
    let unsafe_change = (
        Code::Unknown,
        "etcdserver: re-configuration failed due to not enough started members".to_string(),
    );
    assert_eq!(refusal(add(&["http://d:1"]).await), unsafe_change);
    server.stop().await;
}
