//! Transactions within transactions, deeper than the protobuf decoder goes.
//!
//! Every level is two messages deep, so prost's limit of 100 ends at 49 of them, while a Go member takes from its
//! clients as many as `--max-txn-ops` allows, 128 by default. What is in the log must be applied, so the two
//! messages that contain each other are taken apart here. Depends on `fields`. Invariant: the depth of the recursion
//! is bounded by [`NESTING_MAX`], whatever the bytes.

use bytes::Bytes;
use prost::Message;

use super::fields::{Field, Malformed, Value, fields};
use crate::pb::etcdserverpb::{
    Compare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, request_op::Request,
};

/// Transactions that may lie in one another, the outermost counted. Twice what Go members take by default; the
/// stack of the apply thread holds more.
pub const NESTING_MAX: usize = 256;

/// The field of `InternalRaftRequest` that holds a transaction.
const TXN: u64 = 6;

/// Decodes a request whose transaction is too deep for prost.
pub(super) fn decode(data: &Bytes) -> Result<InternalRaftRequest, String> {
    let (mut rest, mut found) = (Vec::new(), None);
    for field in fields(data) {
        let field = field.map_err(malformed)?;
        match field.number {
            TXN => found = Some(txn(&message(field)?, 1)?),
            _ => rest.extend_from_slice(field.raw),
        }
    }
    let mut request = InternalRaftRequest::decode(Bytes::from(rest)).map_err(to_text)?;
    request.txn = found;
    Ok(request)
}

fn txn(data: &Bytes, depth: usize) -> Result<TxnRequest, String> {
    if depth > NESTING_MAX {
        return Err(format!("its transactions are more than {NESTING_MAX} deep"));
    }
    let mut txn = TxnRequest::default();
    for field in fields(data) {
        let field = field.map_err(malformed)?;
        match field.number {
            1 => txn.compare.push(decoded::<Compare>(field)?),
            2 => txn.success.push(op(&message(field)?, depth)?),
            3 => txn.failure.push(op(&message(field)?, depth)?),
            _ => {}
        }
    }
    Ok(txn)
}

fn op(data: &Bytes, depth: usize) -> Result<RequestOp, String> {
    let mut request = None;
    for field in fields(data) {
        let field = field.map_err(malformed)?;
        request = Some(match field.number {
            1 => Request::RequestRange(decoded::<RangeRequest>(field)?),
            2 => Request::RequestPut(decoded::<PutRequest>(field)?),
            3 => Request::RequestDeleteRange(decoded::<DeleteRangeRequest>(field)?),
            4 => Request::RequestTxn(txn(&message(field)?, depth + 1)?),
            _ => continue,
        });
    }
    Ok(RequestOp { request })
}

fn message(field: Field<'_>) -> Result<Bytes, String> {
    match field.value {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Number(_) | Value::Fixed => Err(malformed(Malformed)),
    }
}

fn decoded<M: Message + Default>(field: Field<'_>) -> Result<M, String> {
    M::decode(message(field)?).map_err(to_text)
}

fn malformed(_: Malformed) -> String {
    "its transaction cannot be taken apart".into()
}

fn to_text(error: prost::DecodeError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pb::etcdserverpb::{RequestHeader, compare::TargetUnion};

    /// A transaction with something of everything, and another one of the kind `depth - 1` levels down.
    fn nested(depth: usize) -> TxnRequest {
        let op = |request| RequestOp {
            request: Some(request),
        };
        let put = PutRequest {
            key: format!("k{depth}").into(),
            value: "v".into(),
            ..Default::default()
        };
        let mut txn = TxnRequest {
            compare: vec![Compare {
                key: "c".into(),
                target_union: Some(TargetUnion::Version(depth as i64)),
                ..Default::default()
            }],
            success: vec![op(Request::RequestPut(put)), RequestOp::default()],
            failure: vec![
                op(Request::RequestRange(RangeRequest::default())),
                op(Request::RequestDeleteRange(DeleteRangeRequest::default())),
            ],
        };
        if depth > 1 {
            txn.success.push(op(Request::RequestTxn(nested(depth - 1))));
        }
        txn
    }

    fn request(depth: usize) -> InternalRaftRequest {
        InternalRaftRequest {
            header: Some(RequestHeader {
                id: 7,
                ..Default::default()
            }),
            txn: Some(nested(depth)),
            ..Default::default()
        }
    }

    #[test]
    fn it_reads_what_prost_reads_and_deeper() {
        for depth in [1, 2, 20, 49, 50, 128, NESTING_MAX] {
            let request = request(depth);
            let data = Bytes::from(request.encode_to_vec());
            let by_prost = InternalRaftRequest::decode(data.clone());
            assert_eq!(by_prost.is_ok(), depth < 50, "{depth}");
            assert_eq!(decode(&data).as_ref(), Ok(&request), "{depth}");
        }
        let data = Bytes::from(request(NESTING_MAX + 1).encode_to_vec());
        let error = decode(&data).unwrap_err();
        assert_eq!(error, "its transactions are more than 256 deep");
    }

    #[test]
    fn bytes_that_are_nothing_but_depth_do_not_use_up_the_stack() {
        let wrap = |tag: u8, inner: Vec<u8>| {
            let mut outer = vec![tag];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.extend(inner);
            outer
        };
        // A transaction as the fourth field of an operation that is the second field of a transaction.
        let data = (0..2000).fold(Vec::new(), |data, _| wrap(0x12, wrap(0x22, data)));
        assert!(txn(&data.into(), 1).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(txn(&data.clone().into(), 1));
            drop(decode(&data.into()));
        }
    }
}
