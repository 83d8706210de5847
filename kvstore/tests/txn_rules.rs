//! The rules of transactions: compares, the order of changes, refusals, and which of them only read.

mod common;

use common::*;
use kvstore::{
    ApplyError, Event, EventKind,
    pb::etcdserverpb::{
        Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult as Is, CompareTarget as Of, TargetUnion},
        request_op::Request,
        response_op,
    },
};

fn compare(key: &str, of: Of, is: Is, target: TargetUnion) -> Compare {
    Compare {
        result: is as i32,
        target: of as i32,
        key: key.to_owned().into(),
        range_end: Default::default(),
        target_union: Some(target),
    }
}

#[test]
fn compares() {
    let mut log = Log::new();
    log.grant(7);
    log.put("k", "b"); // 2
    log.ok(internal(Request::RequestPut(PutRequest {
        lease: 7,
        ..put_request("k", "b")
    }))); // 3
    log.put("l", "b"); // 4
    use {Is::*, TargetUnion::*};
    let missing = |of, is, target| compare("none", of, is, target);
    let over = |end: &str, mut compare: Compare| {
        compare.range_end = end.to_owned().into();
        compare
    };
    let value = |text: &str| Value(text.to_owned().into());
    let cases = [
        (compare("k", Of::Value, Equal, value("b")), true),
        (compare("k", Of::Value, Greater, value("a")), true),
        (compare("k", Of::Value, Less, value("ba")), true),
        (compare("k", Of::Value, NotEqual, value("b")), false),
        (compare("k", Of::Version, Equal, Version(2)), true),
        (compare("k", Of::Create, Equal, CreateRevision(2)), true),
        (compare("k", Of::Mod, Equal, ModRevision(3)), true),
        (compare("k", Of::Mod, Less, ModRevision(3)), false),
        (compare("k", Of::Lease, Equal, Lease(7)), true),
        (compare("l", Of::Lease, Equal, Lease(0)), true),
        // A target that does not fit counts as zero, a value as empty.
        (compare("k", Of::Version, Equal, ModRevision(2)), false),
        (compare("k", Of::Version, Greater, ModRevision(9)), true),
        (compare("k", Of::Value, Greater, Version(1)), true),
        // A missing key is zeroes, and has no value at all.
        (missing(Of::Version, Equal, Version(0)), true),
        (missing(Of::Create, Less, CreateRevision(1)), true),
        (missing(Of::Mod, NotEqual, ModRevision(0)), false),
        (missing(Of::Lease, Equal, Lease(0)), true),
        (missing(Of::Value, Equal, value("")), false),
        (missing(Of::Value, NotEqual, value("x")), false),
        // Over a range every key must satisfy; an empty one counts as missing.
        (over("m", compare("k", Of::Value, Equal, value("b"))), true),
        (
            over("\0", compare("k", Of::Version, Equal, Version(1))),
            false,
        ),
        (
            over("\0", compare("k", Of::Mod, Greater, ModRevision(2))),
            true,
        ),
        (
            over("z", compare("x", Of::Version, Equal, Version(0))),
            true,
        ),
        (
            over("z", compare("x", Of::Value, NotEqual, value("a"))),
            false,
        ),
        (
            over("a", compare("k", Of::Version, Equal, Version(0))),
            true,
        ),
    ];
    for (compare, holds) in cases {
        let request = TxnRequest {
            compare: vec![compare.clone()],
            ..Default::default()
        };
        let read = log.store.reader().txn_read_only(&request).unwrap();
        assert_eq!(read.succeeded, holds, "{compare:?}");
        let logged = run_txn(&mut log, request);
        assert_eq!(logged.succeeded, holds, "{compare:?}");
        assert_eq!(logged.header.unwrap().revision, 4);
    }
    let unknown = Compare {
        target: 77,
        result: 0,
        ..Default::default()
    };
    assert!(
        run_txn(
            &mut log,
            TxnRequest {
                compare: vec![unknown],
                ..Default::default()
            }
        )
        .succeeded
    );
}

fn shape(response: &TxnResponse) -> String {
    let one = |op: &kvstore::pb::etcdserverpb::ResponseOp| match &op.response {
        Some(response_op::Response::ResponseRange(r)) => {
            format!("range@{}[{}]", r.header.unwrap().revision, show_kvs(&r.kvs))
        }
        Some(response_op::Response::ResponsePut(r)) => {
            format!("put@{}", r.header.unwrap().revision)
        }
        Some(response_op::Response::ResponseDeleteRange(r)) => {
            format!("del{}@{}", r.deleted, r.header.unwrap().revision)
        }
        Some(response_op::Response::ResponseTxn(r)) => format!("txn({})", shape(r)),
        None => "none".into(),
    };
    let ops: Vec<String> = response.responses.iter().map(one).collect();
    format!("{}:{}", response.succeeded, ops.join(" "))
}

#[test]
fn a_transaction_is_decided_on_the_state_before_it_and_reads_its_own_writes() {
    let mut log = Log::new();
    log.put("k", "1"); // 2
    log.put("x", "1"); // 3
    let is = |key: &str, text: &str| {
        compare(
            key,
            Of::Value,
            Is::Equal,
            TargetUnion::Value(text.to_owned().into()),
        )
    };
    let nested = TxnRequest {
        // Still 1 in the state before the transaction, though the branch has written 2 by then.
        compare: vec![is("k", "1")],
        success: vec![op(put("n", "yes")), op(range("k", ""))],
        failure: vec![op(put("n", "no"))],
    };
    let old = RangeRequest {
        revision: 3,
        ..range_request("\0", "\0")
    };
    let response = run_txn(
        &mut log,
        TxnRequest {
            compare: vec![is("k", "1"), is("x", "1")],
            success: vec![
                op(range("k", "")),
                op(delete("none", "")),
                op(put("k", "2")),
                op(range("k", "")),
                op(txn(nested.clone())),
                RequestOp::default(),
                op(delete("x", "")),
                op(Request::RequestRange(old)),
                op(range("\0", "\0")),
            ],
            failure: vec![op(put("k", "failed"))],
        },
    );
    assert_eq!(
        shape(&response),
        "true:range@3[k=1] del0@3 put@4 range@4[k=2] txn(true:put@4 range@4[k=2]) none del1@4 \
         range@4[k=1 x=1] range@4[k=2 n=yes]"
    );
    assert_eq!(response.header.unwrap().revision, 4);
    assert_eq!(log.store.reader().revision(), 4);

    let response = run_txn(
        &mut log,
        TxnRequest {
            compare: vec![is("k", "1")],
            success: vec![op(put("never", "1"))],
            failure: vec![op(txn(nested)), op(put("f", "1"))],
        },
    );
    assert_eq!(shape(&response), "false:txn(false:put@5) put@5");
    assert_eq!(log.show(&range_request("\0", "\0")), "f=1 k=2 n=no");
}

#[test]
fn changes_of_a_transaction_are_numbered_in_the_order_of_execution() {
    let mut log = Log::new();
    for key in ["c", "a", "b"] {
        log.put(key, "x");
    }
    let applied = log.apply(internal(txn(TxnRequest {
        success: vec![op(put("z", "1")), op(delete("a", "c")), op(put("y", "2"))],
        ..Default::default()
    })));
    let show = |event: &Event| {
        let kv = event.key_value();
        let kind = if event.kind() == EventKind::Put {
            "put"
        } else {
            "del"
        };
        format!(
            "{} {kind} {} v{} @{}",
            event.revision(),
            String::from_utf8_lossy(&kv.key),
            kv.version,
            kv.mod_revision
        )
    };
    let events: Vec<String> = applied.events.iter().map(show).collect();
    let expected = [
        "5.0 put z v1 @5",
        "5.1 del a v0 @5",
        "5.2 del b v0 @5",
        "5.3 put y v1 @5",
    ];
    assert_eq!(events, expected);
    let deleted = applied.events[1].to_pb();
    assert_eq!((deleted.r#type, deleted.prev_kv), (1, None));
}

#[test]
fn a_transaction_that_is_refused_writes_nothing() {
    let mut log = five();
    log.compact(3).unwrap();
    let at = |revision| {
        Request::RequestRange(RangeRequest {
            revision,
            ..range_request("a", "")
        })
    };
    let lease = Request::RequestPut(PutRequest {
        lease: 99,
        ..put_request("a", "z")
    });
    let ignore = Request::RequestPut(PutRequest {
        ignore_value: true,
        ..put_request("none", "")
    });
    let cases = [
        (at(7), ApplyError::FutureRevision),
        (at(2), ApplyError::Compacted),
        (at(-1), ApplyError::Compacted),
        (lease, ApplyError::LeaseNotFound),
        (ignore, ApplyError::KeyNotFound),
    ];
    for (request, error) in cases {
        let nested = TxnRequest {
            success: vec![op(request.clone())],
            ..Default::default()
        };
        for last in [request.clone(), txn(nested)] {
            let request = TxnRequest {
                success: vec![op(put("a", "written")), op(last)],
                ..Default::default()
            };
            let applied = log.apply(internal(txn(request)));
            assert_eq!((applied.outcome, applied.revision), (Err(error.clone()), 6));
            assert!(applied.events.is_empty());
        }
        // In the branch that is not taken it does not matter.
        let request = TxnRequest {
            failure: vec![op(request)],
            ..Default::default()
        };
        assert!(run_txn(&mut log, request).succeeded);
    }
    assert_eq!(get(&log, "a").value, "4");
}

#[test]
fn read_only_is_ranges_alone() {
    let request = |ops: Vec<RequestOp>| TxnRequest {
        failure: ops,
        ..Default::default()
    };
    assert!(kvstore::is_read_only(&request(vec![op(range("a", ""))])));
    assert!(kvstore::is_read_only(&request(vec![])));
    assert!(!kvstore::is_read_only(&request(vec![op(put("a", ""))])));
    assert!(!kvstore::is_read_only(&request(vec![RequestOp::default()])));
    assert!(!kvstore::is_read_only(&request(vec![op(txn(
        TxnRequest::default()
    ))])));

    let log = five();
    let read = TxnRequest {
        compare: vec![compare(
            "a",
            Of::Version,
            Is::Equal,
            TargetUnion::Version(2),
        )],
        success: vec![op(range("a", "c")), op(range("d", ""))],
        ..Default::default()
    };
    let response = log.store.reader().txn_read_only(&read).unwrap();
    assert_eq!(shape(&response), "true:range@6[a=4 b=2] range@6[d=0]");
}
