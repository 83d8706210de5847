//! What the Maintenance and health services answer.

use std::sync::atomic::Ordering::SeqCst;

use kvstore::pb::{
    etcdserverpb::{
        AlarmRequest, AlarmResponse, DowngradeInfo, HashKvRequest, HashKvResponse, HashRequest,
        HashResponse, InternalRaftRequest, MoveLeaderRequest, MoveLeaderResponse, StatusRequest,
        StatusResponse, alarm_request::AlarmAction,
    },
    membershippb::ClusterVersionSetRequest,
};
use node_bin::{grpc::error::ServerError, version::ANNOUNCED};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::{
    Server,
    backend::{MEMBER, TERM},
    refusal,
};

#[tokio::test]
async fn the_status_describes_the_member_without_asking_others() {
    let server = Server::start().await;
    let client = server.client().await;
    let status =
        || client.call::<_, StatusResponse>("etcdserverpb.Maintenance/Status", StatusRequest {});
    client.put("a", "1").await.unwrap();
    server.member.flush();

    let at_first = status().await.unwrap();
    assert_eq!(
        at_first
            .header
            .map(|header| (header.member_id, header.revision)),
        Some((MEMBER.0, 2))
    );
    assert_eq!(
        (at_first.version, at_first.storage_version),
        (ANNOUNCED.to_string(), String::new())
    );
    assert_eq!(
        (at_first.leader, at_first.raft_term, at_first.is_learner),
        (MEMBER.0, TERM, false)
    );
    assert_eq!((at_first.raft_index, at_first.raft_applied_index), (2, 2));
    assert_eq!(
        (at_first.db_size_quota, at_first.downgrade_info),
        (2 << 30, Some(DowngradeInfo::default()))
    );
    assert!(at_first.db_size >= at_first.db_size_in_use && at_first.db_size_in_use > 0);
    assert!(at_first.errors.is_empty());

    let version = ClusterVersionSetRequest {
        ver: "3.6.0".into(),
    };
    server
        .member
        .apply(InternalRaftRequest {
            cluster_version_set: Some(version),
            ..Default::default()
        })
        .unwrap();
    let alarm = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: 7,
        alarm: 2,
    };
    let raised: AlarmResponse = client
        .call("etcdserverpb.Maintenance/Alarm", alarm)
        .await
        .unwrap();
    assert_eq!(raised.alarms.len(), 1);
    server.member.leader.store(0, SeqCst);
    let later = status().await.unwrap();
    assert_eq!((later.leader, &*later.storage_version), (0, "3.6.0"));
    assert_eq!(
        later.errors,
        ["etcdserver: no leader", "memberID:7 alarm:CORRUPT "]
    );
    server.stop().await;
}

#[tokio::test]
async fn hashes_are_of_the_revision_asked_for() {
    let server = Server::start().await;
    let client = server.client().await;
    let hash_kv = |revision| {
        client.call::<_, HashKvResponse>(
            "etcdserverpb.Maintenance/HashKV",
            HashKvRequest { revision },
        )
    };
    client.put("greeting", "hello").await.unwrap();
    let first = hash_kv(0).await.unwrap();
    // What etcd 3.6.16 answers after the same put.
    assert_eq!(
        (first.hash, first.compact_revision, first.hash_revision),
        (553_681_342, -1, 2)
    );
    assert_eq!(
        first
            .header
            .map(|header| (header.revision, header.raft_term)),
        Some((2, TERM))
    );

    client.put("greeting", "again").await.unwrap();
    assert_eq!(hash_kv(2).await.unwrap().hash, first.hash);
    assert_ne!(hash_kv(0).await.unwrap().hash, first.hash);
    let future = "etcdserver: mvcc: required revision is a future revision".to_string();
    assert_eq!(refusal(hash_kv(99).await), (Code::OutOfRange, future));

    server.member.flush();
    let hash: HashResponse = client
        .call("etcdserverpb.Maintenance/Hash", HashRequest {})
        .await
        .unwrap();
    assert_ne!(hash.hash, 0);
    assert_eq!(hash.header.map(|header| header.revision), Some(3));
    server.stop().await;
}

#[tokio::test]
async fn leadership_moves_from_the_leader_to_a_voter() {
    let server = Server::start().await;
    let client = server.client().await;
    let move_to = |target_id| {
        client.call::<_, MoveLeaderResponse>(
            "etcdserverpb.Maintenance/MoveLeader",
            MoveLeaderRequest { target_id },
        )
    };
    let bad = (
        Code::FailedPrecondition,
        "etcdserver: bad leader transferee".to_string(),
    );
    assert_eq!(refusal(move_to(9).await), bad);
    server
        .member
        .failures
        .lock()
        .push_back(ServerError::TimeoutLeaderTransfer);
    let slow = (
        Code::Unknown,
        "etcdserver: request timed out, leader transfer took too long".to_string(),
    );
    assert_eq!(refusal(move_to(MEMBER.0).await), slow);
    assert_eq!(
        move_to(MEMBER.0).await.unwrap(),
        MoveLeaderResponse::default()
    );
    server.member.leader.store(9, SeqCst);
    let not_leader = (
        Code::FailedPrecondition,
        "etcdserver: not leader".to_string(),
    );
    assert_eq!(refusal(move_to(MEMBER.0).await), not_leader);
    server.stop().await;
}

#[tokio::test]
async fn health_is_what_it_was_set_to() {
    let server = Server::start().await;
    let client = server.client().await;
    let check = |service: &str| {
        let service = service.to_string();
        client.call::<_, HealthCheckResponse>(
            "grpc.health.v1.Health/Check",
            HealthCheckRequest { service },
        )
    };
    assert_eq!(check("").await.unwrap().status, 1);
    server.services.health().set_serving(false).await;
    assert_eq!(check("").await.unwrap().status, 2);
    assert_eq!(refusal(check("etcdserverpb.KV").await).0, Code::NotFound);
    let series = "grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"grpc.health.v1.Health\",grpc_method=\"Check\"}";
    assert_eq!(server.metric(series), 3.0);
    server.stop().await;
}
