//! Transactions that only other members' proposers let pass: they are in the log, so they must have an answer.

mod common;

use bytes::Bytes;
use kvstore::{
    ApplyError, FatalError, Response,
    pb::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request, response_op},
};

use common::{Log, delete, internal, op, put, put_request, range_request, txn};

fn keep(key: &str) -> RequestOp {
    op(Request::RequestPut(PutRequest {
        ignore_value: true,
        ..put_request(key, "")
    }))
}

fn transaction(success: Vec<RequestOp>) -> TxnRequest {
    TxnRequest {
        success,
        ..Default::default()
    }
}

/// A put below `depth - 1` transactions that hold nothing but the next one.
fn nested(depth: usize) -> TxnRequest {
    let innermost = transaction(vec![op(put("k", "deep"))]);
    (1..depth).fold(innermost, |inner, _| transaction(vec![op(txn(inner))]))
}

#[test]
fn a_put_that_keeps_what_its_transaction_deleted_is_refused_before_anything_is_written() {
    let all = || op(delete("b", "\0"));
    let cases = [
        vec![all(), keep("b")],
        vec![op(put("a", "new")), all(), keep("c")],
        vec![op(delete("b", "")), keep("b")],
        vec![op(delete("a", "d")), keep("c")],
        vec![op(txn(transaction(vec![all()]))), keep("c")],
        vec![all(), op(txn(transaction(vec![keep("c")])))],
        vec![keep("missing")],
    ];
    for ops in cases {
        let mut log = Log::new();
        log.put("b", "1");
        let before = log.put("c", "2");
        let applied = log.apply(internal(txn(transaction(ops.clone()))));
        assert_eq!(applied.outcome, Err(ApplyError::KeyNotFound), "{ops:?}");
        assert_eq!((applied.revision, applied.events.len()), (before, 0));
        assert_eq!(log.show(&range_request("\0", "\0")), "b=1 c=2");
    }
    let mut log = Log::new();
    log.put("b", "1");
    log.put("c", "2");
    let ops = vec![keep("c"), op(delete("c", "\0")), keep("b")];
    log.ok(internal(txn(transaction(ops))));
    assert_eq!(log.show(&range_request("\0", "\0")), "b=1");
}

#[test]
fn transactions_deeper_than_protobuf_decoders_go_are_carried_out() {
    let mut log = Log::new();
    for depth in [1, 48, 50, 128, 256] {
        let applied = log.apply(internal(txn(nested(depth))));
        let Ok(Response::Txn(response)) = applied.outcome else {
            panic!("{depth}: {:?}", applied.outcome);
        };
        let (mut level, mut levels) = (&response, 1);
        while let Some(response_op::Response::ResponseTxn(inner)) = &level.responses[0].response {
            (level, levels) = (inner, levels + 1);
        }
        assert_eq!(levels, depth);
        assert!(matches!(
            level.responses[0].response,
            Some(response_op::Response::ResponsePut(_))
        ));
    }
    assert_eq!(log.show(&range_request("k", "")), "k=deep");
    let refused = log.try_apply(internal(txn(nested(257))));
    assert!(
        matches!(&refused, Err(FatalError::UnknownRequest { reason, .. }) if reason.contains("256 deep"))
    );
}

#[test]
fn a_damaged_request_says_what_is_wrong_with_it() {
    let mut log = Log::new();
    let refused = log.try_apply_bytes(Bytes::from_static(b"\x22\x05\x0a\x01k"));
    assert!(matches!(refused, Err(FatalError::UnknownRequest { .. })));
}
