//! What the KV service answers.

use std::sync::atomic::Ordering::SeqCst;

use kvstore::{
    pb::etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, CompactionRequest, CompactionResponse, Compare,
        DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseHeader, TxnRequest, TxnResponse,
        alarm_request::AlarmAction, request_op::Request, response_op,
    },
    quota::Quota,
};
use tonic::Code;

use super::{
    Server,
    backend::{CLUSTER, MEMBER, REQUEST_MAX, TERM},
    put_of, range_of, refusal, server_options, service_options,
};

fn header_at(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: CLUSTER.0,
        member_id: MEMBER.0,
        revision,
        raft_term: TERM,
    })
}

fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

fn prefix_of(key: &str, end: &str) -> RangeRequest {
    RangeRequest {
        range_end: end.to_string().into(),
        ..range_of(key)
    }
}

#[tokio::test]
async fn writes_and_reads_carry_the_header_of_the_member_and_their_revision() {
    let server = Server::start().await;
    let client = server.client().await;
    assert_eq!(client.put("a", "1").await.unwrap().header, header_at(2));
    assert_eq!(client.put("b", "2").await.unwrap().header, header_at(3));

    let range = client.get("a").await.unwrap();
    assert_eq!(
        (range.header, range.kvs.len(), range.count),
        (header_at(3), 1, 1)
    );
    assert_eq!(range.kvs[0].value, "1");

    let range: RangeResponse = client
        .call("etcdserverpb.KV/Range", prefix_of("a", "z"))
        .await
        .unwrap();
    assert_eq!((range.header, range.count), (header_at(3), 2));

    let delete = DeleteRangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        prev_kv: true,
    };
    let deleted: DeleteRangeResponse = client
        .call("etcdserverpb.KV/DeleteRange", delete)
        .await
        .unwrap();
    assert_eq!(
        (deleted.header, deleted.deleted, deleted.prev_kvs.len()),
        (header_at(4), 2, 2)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_read_waits_for_the_majority_unless_it_is_serializable() {
    let server = Server::start().await;
    let client = server.client().await;
    let reads = || server.member.reads.load(SeqCst);
    client.get("a").await.unwrap();
    assert_eq!(reads(), 1);

    let serializable = RangeRequest {
        serializable: true,
        ..range_of("a")
    };
    let _: RangeResponse = client
        .call("etcdserverpb.KV/Range", serializable.clone())
        .await
        .unwrap();
    assert_eq!(reads(), 1);

    let txn = |success: RangeRequest, failure: RangeRequest| TxnRequest {
        success: vec![op(Request::RequestRange(success))],
        failure: vec![op(Request::RequestRange(failure))],
        ..Default::default()
    };
    let both = txn(serializable.clone(), serializable.clone());
    let _: TxnResponse = client.call("etcdserverpb.KV/Txn", both).await.unwrap();
    assert_eq!(reads(), 1);
    let one = txn(serializable, range_of("a"));
    let _: TxnResponse = client.call("etcdserverpb.KV/Txn", one).await.unwrap();
    assert_eq!(reads(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_transaction_writes_under_one_revision() {
    let server = Server::start().await;
    let client = server.client().await;
    let txn = TxnRequest {
        compare: vec![Compare {
            key: "a".into(),
            ..Default::default()
        }],
        success: vec![
            op(Request::RequestPut(put_of("a", "1"))),
            op(Request::RequestRange(prefix_of("a", "z"))),
        ],
        ..Default::default()
    };
    let response: TxnResponse = client.call("etcdserverpb.KV/Txn", txn).await.unwrap();
    assert_eq!((response.header, response.succeeded), (header_at(2), true));
    let Some(response_op::Response::ResponseRange(range)) = &response.responses[1].response else {
        panic!("{response:?}")
    };
    assert_eq!(range.kvs[0].value, "1");
    // Only the outer header says who answers.
    assert_eq!(range.header.map(|header| header.member_id), Some(0));

    let read = TxnRequest {
        success: vec![op(Request::RequestRange(prefix_of("a", "z")))],
        ..Default::default()
    };
    let response: TxnResponse = client.call("etcdserverpb.KV/Txn", read).await.unwrap();
    assert_eq!(
        (
            response.header,
            response.succeeded,
            response.responses.len()
        ),
        (header_at(2), true, 1)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_physical_compaction_answers_once_the_rows_are_gone() {
    let server = Server::start().await;
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put("a", value).await.unwrap();
    }
    let compaction = CompactionRequest {
        revision: 3,
        physical: true,
    };
    let response: CompactionResponse = client
        .call("etcdserverpb.KV/Compact", compaction)
        .await
        .unwrap();
    assert_eq!(response.header, header_at(4));
    assert_eq!(
        node_bin::grpc::backend::ServerBackend::reader(&*server.member).finished_compaction(),
        3
    );

    let again: Result<CompactionResponse, _> =
        client.call("etcdserverpb.KV/Compact", compaction).await;
    assert_eq!(refusal(again).0, Code::OutOfRange);
    server.stop().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_with_etcd_s_texts_and_codes() {
    let server = Server::start().await;
    let client = server.client().await;
    for value in ["1", "2", "3"] {
        client.put("a", value).await.unwrap();
    }
    let compaction = CompactionRequest {
        revision: 3,
        physical: false,
    };
    let _: CompactionResponse = client
        .call("etcdserverpb.KV/Compact", compaction)
        .await
        .unwrap();
    let range =
        |request: RangeRequest| client.call::<_, RangeResponse>("etcdserverpb.KV/Range", request);
    let put = |request: PutRequest| client.call::<_, PutResponse>("etcdserverpb.KV/Put", request);
    let txn = |success: Vec<RequestOp>| {
        let request = TxnRequest {
            success,
            ..Default::default()
        };
        client.call::<_, TxnResponse>("etcdserverpb.KV/Txn", request)
    };

    let empty = refusal(range(range_of("")).await);
    assert_eq!(
        empty,
        (
            Code::InvalidArgument,
            "etcdserver: key is not provided".into()
        )
    );
    assert_eq!(refusal(put(put_of("", "v")).await), empty);
    let nothing = DeleteRangeRequest::default();
    assert_eq!(
        refusal(
            client
                .call::<_, DeleteRangeResponse>("etcdserverpb.KV/DeleteRange", nothing)
                .await
        ),
        empty
    );

    let at = |revision| RangeRequest {
        revision,
        ..range_of("a")
    };
    let sorted = RangeRequest {
        sort_target: 9,
        ..range_of("a")
    };
    let cases = [
        (
            refusal(range(at(99)).await),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            refusal(range(at(2)).await),
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (
            refusal(range(sorted).await),
            Code::InvalidArgument,
            "etcdserver: invalid sort option",
        ),
        (
            refusal(
                put(PutRequest {
                    ignore_value: true,
                    ..put_of("a", "v")
                })
                .await,
            ),
            Code::InvalidArgument,
            "etcdserver: value is provided",
        ),
        (
            refusal(
                put(PutRequest {
                    ignore_lease: true,
                    lease: 5,
                    ..put_of("a", "v")
                })
                .await,
            ),
            Code::InvalidArgument,
            "etcdserver: lease is provided",
        ),
        (
            refusal(
                put(PutRequest {
                    ignore_value: true,
                    ..put_of("new", "")
                })
                .await,
            ),
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
        (
            refusal(
                put(PutRequest {
                    lease: 5,
                    ..put_of("a", "v")
                })
                .await,
            ),
            Code::NotFound,
            "etcdserver: requested lease not found",
        ),
        (
            refusal(txn(vec![op(Request::RequestRange(range_of("a"))); 5]).await),
            Code::InvalidArgument,
            "etcdserver: too many operations in txn request",
        ),
        (
            refusal(txn(vec![op(Request::RequestPut(put_of("a", ""))); 2]).await),
            Code::InvalidArgument,
            "etcdserver: duplicate key given in txn request",
        ),
        (
            refusal(txn(vec![RequestOp { request: None }]).await),
            Code::InvalidArgument,
            "etcdserver: key not found",
        ),
        (
            refusal(client.put("a", &"x".repeat(REQUEST_MAX)).await),
            Code::InvalidArgument,
            "etcdserver: request is too large",
        ),
    ];
    for (refused, code, text) in cases {
        assert_eq!(refused, (code, text.to_string()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_full_store_raises_the_alarm_once_and_still_reads_and_deletes() {
    let mut options = service_options();
    options.quota = Quota::new(1);
    let server = Server::with(options, server_options()).await;
    let client = server.client().await;
    let no_space = (
        Code::ResourceExhausted,
        "etcdserver: mvcc: database space exceeded".to_string(),
    );
    let before = server.member.status_applied();
    assert_eq!(refusal(client.put("a", "1").await), no_space);
    assert_eq!(refusal(client.put("a", "1").await), no_space);
    assert_eq!(
        server.member.status_applied(),
        before + 1,
        "one alarm was proposed"
    );

    let get = AlarmRequest::default();
    let alarms: AlarmResponse = client
        .call("etcdserverpb.Maintenance/Alarm", get)
        .await
        .unwrap();
    let raised = AlarmMember {
        member_id: MEMBER.0,
        alarm: 1,
    };
    assert_eq!(alarms.alarms, [raised]);
    assert_eq!(client.get("a").await.unwrap().count, 0);
    let delete = DeleteRangeRequest {
        key: "a".into(),
        ..Default::default()
    };
    let _: DeleteRangeResponse = client
        .call("etcdserverpb.KV/DeleteRange", delete)
        .await
        .unwrap();

    let disarm = AlarmRequest {
        action: AlarmAction::Deactivate as i32,
        member_id: MEMBER.0,
        alarm: 1,
    };
    let disarmed: AlarmResponse = client
        .call("etcdserverpb.Maintenance/Alarm", disarm)
        .await
        .unwrap();
    assert_eq!(disarmed.alarms, [raised]);
    server.stop().await;
}
