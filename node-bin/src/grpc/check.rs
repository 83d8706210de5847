//! What is wrong with a request before anybody looks at the store (etcd: v3rpc/key.go).
//!
//! Pure functions over the generated messages. Invariant: a transaction that passes puts no key twice in one of its
//! outcomes, finds there every key whose value or lease it keeps, and is read by every member's decoder: all members
//! that apply it rely on that.

use std::collections::HashSet;

use kvstore::{
    ApplyError, KeyInterval, KeySet, is_valid_sort,
    pb::etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
    },
};

/// Checks a range.
pub fn range(request: &RangeRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() {
        return Err(ApplyError::EmptyKey);
    }
    if is_valid_sort(request) {
        Ok(())
    } else {
        Err(ApplyError::InvalidSortOption)
    }
}

/// Checks a put.
pub fn put(request: &PutRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() {
        return Err(ApplyError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApplyError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApplyError::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), ApplyError> {
    if request.key.is_empty() {
        Err(ApplyError::EmptyKey)
    } else {
        Ok(())
    }
}

/// Transactions that may lie in one another, the outermost counted. Protobuf decoders commonly stop at a hundred
/// messages within each other; in the log this many are 99.
pub const NESTING_MAX: usize = 48;

/// Checks a transaction with everything in it; `ops_max` is `--max-txn-ops`.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), ApplyError> {
    shape(request, ops_max, NESTING_MAX)?;
    for outcome in [&request.success, &request.failure] {
        writes(outcome)?;
        kept_keys(outcome, None)?;
    }
    Ok(())
}

/// The number of operations and each of them. What a level uses up its inner transactions cannot use.
fn shape(request: &TxnRequest, ops_max: usize, depth_max: usize) -> Result<(), ApplyError> {
    let Some(deeper) = depth_max.checked_sub(1) else {
        return Err(ApplyError::TooManyOps);
    };
    let ops = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let Some(left) = ops_max.checked_sub(ops) else {
        return Err(ApplyError::TooManyOps);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(ApplyError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => shape(request, left, deeper)?,
            None => return Err(ApplyError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one outcome of a transaction may write.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletions: KeySet<'a>,
}

/// Collects the writes of one list of operations, both outcomes of inner transactions included, and finds keys put
/// twice or put and deleted. A key in both outcomes of one inner transaction is fine: only one of them happens.
fn writes(ops: &[RequestOp]) -> Result<Writes<'_>, ApplyError> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            match KeyInterval::new(&request.key, &request.range_end) {
                // etcd does not see what such a deletion overlaps either, and requests must fare alike.
                KeyInterval::From(_) => {}
                interval => all.deletions.add(interval),
            }
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else {
            continue;
        };
        let (success, failure) = (writes(&request.success)?, writes(&request.failure)?);
        for key in &success.puts {
            all.put(key, false)?;
        }
        for key in &failure.puts {
            all.put(key, success.puts.contains(key))?;
        }
        all.deletions.add_all(success.deletions);
        all.deletions.add_all(failure.deletions);
    }
    for op in ops {
        if let Some(Request::RequestPut(request)) = &op.request {
            all.put(&request.key, false)?;
        }
    }
    Ok(all)
}

/// Finds puts that keep the value or the lease of a key which a deletion to the last key takes from them first, in
/// this list or in an outcome of an inner transaction. etcd accepts those, and all its members end when they apply
/// them. `deleted_from` is where the lowest such deletion so far begins; returned is the lowest after these.
fn kept_keys<'a>(
    ops: &'a [RequestOp],
    deleted_from: Option<&'a [u8]>,
) -> Result<Option<&'a [u8]>, ApplyError> {
    let lower = |a: Option<&'a [u8]>, b: Option<&'a [u8]>| a.into_iter().chain(b).min();
    let mut from = deleted_from;
    for op in ops {
        match &op.request {
            Some(Request::RequestDeleteRange(request)) => {
                let deleted = KeyInterval::new(&request.key, &request.range_end);
                if let KeyInterval::From(key) = deleted {
                    from = lower(from, Some(key));
                }
            }
            Some(Request::RequestPut(put)) => {
                let keeps = put.ignore_value || put.ignore_lease;
                if keeps && from.is_some_and(|from| from <= &put.key[..]) {
                    return Err(ApplyError::DuplicateKey);
                }
            }
            Some(Request::RequestTxn(inner)) => {
                let success = kept_keys(&inner.success, from)?;
                from = lower(success, kept_keys(&inner.failure, from)?);
            }
            Some(Request::RequestRange(_)) | None => {}
        }
    }
    Ok(from)
}

impl<'a> Writes<'a> {
    /// Adds a put; `again` allows for one that is there already.
    fn put(&mut self, key: &'a [u8], again: bool) -> Result<(), ApplyError> {
        let new = self.puts.insert(key);
        if (new || again) && !self.deletions.contains(key) {
            Ok(())
        } else {
            Err(ApplyError::DuplicateKey)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvstore::pb::etcdserverpb::Compare;

    use super::*;

    fn put_op(key: &'static str) -> RequestOp {
        let request = PutRequest {
            key: key.into(),
            ..Default::default()
        };
        RequestOp {
            request: Some(Request::RequestPut(request)),
        }
    }

    fn delete_op(key: &'static str, range_end: &'static [u8]) -> RequestOp {
        let request = DeleteRangeRequest {
            key: key.into(),
            range_end: Bytes::from_static(range_end),
            prev_kv: false,
        };
        RequestOp {
            request: Some(Request::RequestDeleteRange(request)),
        }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                compare: vec![],
                success,
                failure,
            })),
        }
    }

    fn checked(success: Vec<RequestOp>) -> Result<(), ApplyError> {
        txn(
            &TxnRequest {
                success,
                ..Default::default()
            },
            128,
        )
    }

    #[test]
    fn single_requests() {
        assert_eq!(range(&RangeRequest::default()), Err(ApplyError::EmptyKey));
        let sort = RangeRequest {
            key: "k".into(),
            sort_target: 9,
            ..Default::default()
        };
        assert_eq!(range(&sort), Err(ApplyError::InvalidSortOption));
        assert_eq!(put(&PutRequest::default()), Err(ApplyError::EmptyKey));
        let value = PutRequest {
            key: "k".into(),
            value: "v".into(),
            ignore_value: true,
            ..Default::default()
        };
        assert_eq!(put(&value), Err(ApplyError::ValueProvided));
        let lease = PutRequest {
            key: "k".into(),
            lease: 1,
            ignore_lease: true,
            ..Default::default()
        };
        assert_eq!(put(&lease), Err(ApplyError::LeaseProvided));
        assert_eq!(
            delete_range(&DeleteRangeRequest::default()),
            Err(ApplyError::EmptyKey)
        );
    }

    #[test]
    fn a_key_is_written_once_in_each_outcome() {
        let duplicate = Err(ApplyError::DuplicateKey);
        let cases = [
            (vec![put_op("a"), put_op("b")], Ok(())),
            (vec![put_op("a"), put_op("a")], duplicate.clone()),
            (vec![delete_op("a", b"c"), delete_op("b", b"d")], Ok(())),
            (vec![put_op("a"), delete_op("a", b"")], duplicate.clone()),
            (vec![put_op("ab"), delete_op("a", b"")], Ok(())),
            (vec![put_op("b"), delete_op("a", b"c")], duplicate.clone()),
            (vec![put_op("c"), delete_op("a", b"c")], Ok(())),
            (vec![put_op("b"), delete_op("c", b"a")], Ok(())),
            // etcd does not see this one either.
            (vec![put_op("b"), delete_op("a", b"\0")], Ok(())),
            (vec![txn_op(vec![put_op("a")], vec![put_op("a")])], Ok(())),
            (
                vec![put_op("a"), txn_op(vec![put_op("a")], vec![])],
                duplicate.clone(),
            ),
            (
                vec![
                    txn_op(vec![put_op("a")], vec![]),
                    txn_op(vec![], vec![put_op("a")]),
                ],
                duplicate.clone(),
            ),
            (
                vec![delete_op("a", b"z"), txn_op(vec![], vec![put_op("b")])],
                duplicate.clone(),
            ),
            (
                vec![put_op("b"), txn_op(vec![delete_op("a", b"z")], vec![])],
                duplicate.clone(),
            ),
            (
                vec![
                    txn_op(vec![delete_op("a", b"z")], vec![]),
                    txn_op(vec![put_op("b")], vec![]),
                ],
                duplicate.clone(),
            ),
            (
                vec![txn_op(
                    vec![txn_op(vec![put_op("a"), put_op("a")], vec![])],
                    vec![],
                )],
                duplicate,
            ),
        ];
        for (ops, result) in cases {
            assert_eq!(checked(ops.clone()), result, "{ops:?}");
        }
        let other = TxnRequest {
            failure: vec![put_op("a"), put_op("a")],
            ..Default::default()
        };
        assert_eq!(txn(&other, 128), Err(ApplyError::DuplicateKey));
    }

    #[test]
    fn a_key_that_is_kept_is_not_deleted_first() {
        let keep = |key: &'static str, value: bool| {
            let request = PutRequest {
                key: key.into(),
                ignore_value: value,
                ignore_lease: !value,
                ..Default::default()
            };
            RequestOp {
                request: Some(Request::RequestPut(request)),
            }
        };
        let all = || delete_op("b", b"\0");
        let refused = Err(ApplyError::DuplicateKey);
        let cases = [
            (vec![all(), keep("b", true)], refused.clone()),
            (vec![all(), keep("c", false)], refused.clone()),
            (vec![all(), keep("a", true)], Ok(())),
            (vec![all(), put_op("c")], Ok(())),
            (vec![keep("c", true), all()], Ok(())),
            (
                vec![all(), delete_op("x", b"\0"), keep("c", true)],
                refused.clone(),
            ),
            (
                vec![txn_op(vec![], vec![all()]), keep("c", true)],
                refused.clone(),
            ),
            (
                vec![
                    all(),
                    txn_op(vec![txn_op(vec![], vec![keep("c", true)])], vec![]),
                ],
                refused.clone(),
            ),
            // Only one of the two happens.
            (vec![txn_op(vec![all()], vec![keep("c", true)])], Ok(())),
            (vec![txn_op(vec![all(), keep("c", true)], vec![])], refused),
        ];
        for (ops, result) in cases {
            assert_eq!(checked(ops.clone()), result, "{ops:?}");
        }
    }

    #[test]
    fn transactions_lie_in_one_another_only_so_deep() {
        let nested =
            |depth: usize| (1..depth).fold(vec![put_op("a")], |ops, _| vec![txn_op(ops, vec![])]);
        assert_eq!(checked(nested(NESTING_MAX)), Ok(()));
        assert_eq!(
            checked(nested(NESTING_MAX + 1)),
            Err(ApplyError::TooManyOps)
        );
        let deepest = kvstore::pb::etcdserverpb::InternalRaftRequest {
            txn: Some(TxnRequest {
                success: nested(NESTING_MAX),
                ..Default::default()
            }),
            ..Default::default()
        };
        let data = prost::Message::encode_to_vec(&deepest);
        let read: Result<kvstore::pb::etcdserverpb::InternalRaftRequest, _> =
            prost::Message::decode(&data[..]);
        assert_eq!(read, Ok(deepest));
    }

    #[test]
    fn inner_transactions_use_what_their_level_leaves() {
        let nested = |ops: usize| vec![txn_op(vec![put_op("a"); ops], vec![])];
        let with = |success, max| {
            shape(
                &TxnRequest {
                    success,
                    ..Default::default()
                },
                max,
                NESTING_MAX,
            )
        };
        assert_eq!(with(nested(2), 3), Ok(()));
        assert_eq!(with(nested(3), 3), Err(ApplyError::TooManyOps));
        let compare = vec![
            Compare {
                key: "k".into(),
                ..Default::default()
            };
            4
        ];
        assert_eq!(
            txn(
                &TxnRequest {
                    compare,
                    ..Default::default()
                },
                3
            ),
            Err(ApplyError::TooManyOps)
        );
        assert_eq!(
            txn(
                &TxnRequest {
                    compare: vec![Compare::default()],
                    ..Default::default()
                },
                3
            ),
            Err(ApplyError::EmptyKey)
        );
        assert_eq!(
            checked(vec![RequestOp::default()]),
            Err(ApplyError::KeyNotFound)
        );
        assert_eq!(checked(vec![]), Ok(()));
    }
}
