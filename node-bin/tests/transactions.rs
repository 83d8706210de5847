//! What the proposer's check lets pass, every member can apply: generated transactions go through both.

use std::sync::Arc;

use bytes::Bytes;
use kvstore::{
    Store, StoreConfig,
    backend::memory::MemoryBackend,
    pb::etcdserverpb::{
        Compare, DeleteRangeRequest, InternalRaftRequest, LeaseGrantRequest, PutRequest,
        RangeRequest, RequestHeader, RequestOp, TxnRequest, compare::TargetUnion,
        request_op::Request,
    },
};
use node_bin::grpc::check;
use proptest::prelude::*;
use prost::Message;

const OPS_MAX: usize = 128;

fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => (b'a'..=b'f').prop_map(|letter| Bytes::from(vec![letter])),
        1 => Just(Bytes::from_static(b"\0")),
    ]
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        3 => Just(Bytes::from_static(b"\0")),
        2 => key(),
        1 => Just(Bytes::from_static(b"\0\0")),
    ]
}

fn put() -> impl Strategy<Value = Request> {
    let lease = prop_oneof![4 => Just(0), 2 => Just(7), 1 => Just(8)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (key(), lease, flags).prop_map(|(key, lease, (ignore_value, ignore_lease, prev_kv))| {
        Request::RequestPut(PutRequest {
            key,
            value: if ignore_value { "" } else { "v" }.into(),
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        })
    })
}

fn range() -> impl Strategy<Value = Request> {
    (key(), range_end(), -1..40_i64, 0..3_i64).prop_map(|(key, range_end, revision, limit)| {
        Request::RequestRange(RangeRequest {
            key,
            range_end,
            // Most at the present revision.
            revision: if revision > 20 { 0 } else { revision },
            limit,
            ..Default::default()
        })
    })
}

fn delete() -> impl Strategy<Value = Request> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| {
        Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
            prev_kv,
        })
    })
}

fn compare() -> impl Strategy<Value = Compare> {
    (key(), range_end(), -1..6_i32, -1..6_i32, 0..4_i64).prop_map(
        |(key, range_end, result, target, version)| Compare {
            result,
            target,
            key,
            range_end,
            target_union: Some(TargetUnion::Version(version)),
        },
    )
}

fn transaction() -> impl Strategy<Value = TxnRequest> {
    let op = prop_oneof![4 => put(), 2 => delete(), 1 => range()];
    let leaf = op.prop_map(|request| RequestOp {
        request: Some(request),
    });
    let ops = leaf.prop_recursive(4, 24, 4, |inner| {
        let list = || prop::collection::vec(inner.clone(), 0..4);
        (prop::collection::vec(compare(), 0..2), list(), list()).prop_map(
            |(compare, success, failure)| RequestOp {
                request: Some(Request::RequestTxn(TxnRequest {
                    compare,
                    success,
                    failure,
                })),
            },
        )
    });
    let list = prop::collection::vec(ops, 1..5);
    (prop::collection::vec(compare(), 0..2), list, 0..60_usize).prop_map(
        |(compare, success, depth)| {
            let txn = TxnRequest {
                compare,
                success,
                failure: Vec::new(),
            };
            // Mostly shallow, now and then about as deep as is allowed.
            wrapped(txn, depth.saturating_sub(20) * usize::from(depth > 50))
        },
    )
}

fn wrapped(txn: TxnRequest, depth: usize) -> TxnRequest {
    (0..depth).fold(txn, |inner, _| TxnRequest {
        success: vec![RequestOp {
            request: Some(Request::RequestTxn(inner)),
        }],
        ..Default::default()
    })
}

fn entry(id: u64, mut request: InternalRaftRequest) -> Bytes {
    request.header = Some(RequestHeader {
        id,
        ..Default::default()
    });
    request.encode_to_vec().into()
}

fn store() -> Store {
    let config = StoreConfig::new("unused");
    let mut store = Store::open_on(config, Arc::new(MemoryBackend::default())).expect("open");
    let grant = InternalRaftRequest {
        lease_grant: Some(LeaseGrantRequest { id: 7, ttl: 100 }),
        ..Default::default()
    };
    store.apply(1, 1, &entry(1, grant)).expect("grant");
    for (index, key) in (2..).zip(["a", "b", "d", "e"]) {
        let put = InternalRaftRequest {
            put: Some(PutRequest {
                key: key.into(),
                lease: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        store
            .apply(index, 1, &entry(index, put))
            .expect("a first key");
    }
    store
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_the_check_passes_has_an_answer_on_every_member(
        transactions in prop::collection::vec(transaction(), 20..40)
    ) {
        let mut store = store();
        let mut index = store.applied().0;
        for request in transactions {
            if check::txn(&request, OPS_MAX).is_err() {
                continue;
            }
            index += 1;
            let data = entry(index, InternalRaftRequest { txn: Some(request.clone()), ..Default::default() });
            let applied = store.apply(index, 1, &data);
            prop_assert!(applied.is_ok(), "{:?} for {request:?}", applied.map(drop));
        }
    }
}

/// The one a check of what a request names cannot see: it passes the check of every etcd, and ends its members.
#[test]
fn what_would_end_every_member_is_not_proposed() {
    let op = |request| RequestOp {
        request: Some(request),
    };
    let delete = Request::RequestDeleteRange(DeleteRangeRequest {
        key: "a".into(),
        range_end: Bytes::from_static(b"\0"),
        prev_kv: false,
    });
    let put = Request::RequestPut(PutRequest {
        key: "b".into(),
        ignore_value: true,
        ..Default::default()
    });
    let txn = TxnRequest {
        success: vec![op(delete), op(put)],
        ..Default::default()
    };
    assert!(check::txn(&txn, OPS_MAX).is_err());
}
