//! What is wrong with a request before anybody looks at the store (etcd: v3rpc/key.go).
//!
//! Pure functions over the generated messages. Invariant: a transaction that passes writes no key twice in one of its
//! outcomes, which every member that applies it relies on.

use std::collections::HashSet;

use kvstore::{
    ApplyError, is_valid_sort,
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

/// Checks a transaction with everything in it; `ops_max` is `--max-txn-ops`.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), ApplyError> {
    shape(request, ops_max)?;
    writes(&request.success)?;
    writes(&request.failure)?;
    Ok(())
}

/// The number of operations and each of them. What a level uses up its inner transactions cannot use.
fn shape(request: &TxnRequest, ops_max: usize) -> Result<(), ApplyError> {
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
            Some(Request::RequestTxn(request)) => shape(request, left)?,
            None => return Err(ApplyError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one outcome of a transaction may write.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletions: Intervals<'a>,
}

/// Collects the writes of one list of operations, both outcomes of inner transactions included, and finds keys put
/// twice or put and deleted. A key in both outcomes of one inner transaction is fine: only one of them happens.
fn writes(ops: &[RequestOp]) -> Result<Writes<'_>, ApplyError> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            all.deletions.add(&request.key, &request.range_end);
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

/// Deleted keys: disjoint half-open intervals, sorted. A single key is `[key, key + "\0")`.
#[derive(Default)]
struct Intervals<'a> {
    sorted: Vec<(&'a [u8], End<'a>)>,
}

/// Where an interval ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End<'a> {
    /// Right after this key.
    After(&'a [u8]),
    /// Before this key.
    Before(&'a [u8]),
}

impl End<'_> {
    fn lies_after(&self, key: &[u8]) -> bool {
        match self {
            End::After(last) => key <= *last,
            End::Before(end) => key < *end,
        }
    }

    /// Whether this end lies beyond another: everything below the other is below this one too.
    fn covers(&self, other: &End<'_>) -> bool {
        match (self, other) {
            (End::After(a), End::After(b))
            | (End::Before(a), End::Before(b))
            | (End::After(a), End::Before(b)) => a >= b,
            (End::Before(a), End::After(b)) => a > b,
        }
    }
}

impl<'a> Intervals<'a> {
    /// Adds what a deletion names. An end that is not beyond the start adds nothing, and that includes the one-byte
    /// end that means "to the last key": etcd does not see those overlap either, and requests must fare alike.
    fn add(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        let end = if range_end.is_empty() {
            End::After(key)
        } else {
            End::Before(range_end)
        };
        if end.lies_after(key) {
            self.insert(key, end);
        }
    }

    fn add_all(&mut self, other: Intervals<'a>) {
        other
            .sorted
            .into_iter()
            .for_each(|(key, end)| self.insert(key, end));
    }

    fn insert(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        // Everything from the first interval that reaches the start to the last that begins before the end.
        let first = self
            .sorted
            .partition_point(|(_, other)| !other.lies_after(start));
        let last = self
            .sorted
            .partition_point(|(other, _)| end.lies_after(other))
            .max(first);
        for (other_start, other_end) in self.sorted.drain(first..last) {
            start = start.min(other_start);
            if other_end.covers(&end) {
                end = other_end;
            }
        }
        self.sorted.insert(first, (start, end));
    }

    fn contains(&self, key: &[u8]) -> bool {
        let next = self.sorted.partition_point(|(start, _)| *start <= key);
        next > 0 && self.sorted[next - 1].1.lies_after(key)
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
    fn inner_transactions_use_what_their_level_leaves() {
        let nested = |ops: usize| vec![txn_op(vec![put_op("a"); ops], vec![])];
        let with = |success, max| {
            shape(
                &TxnRequest {
                    success,
                    ..Default::default()
                },
                max,
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

    #[test]
    fn intervals_hold_what_was_added_in_any_order() {
        let keys: Vec<Vec<u8>> = (b'a'..=b'z')
            .flat_map(|c| [vec![c], vec![c, 0], vec![c, b'm']])
            .collect();
        let mut seed = 7_u32;
        let mut pick = |bound: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % bound
        };
        for _ in 0..500 {
            let mut intervals = Intervals::default();
            let mut plain = Vec::new();
            for _ in 0..pick(12) {
                let (a, b) = (&keys[pick(keys.len())], &keys[pick(keys.len())]);
                let end: &[u8] = if pick(3) == 0 { b"" } else { b };
                intervals.add(a, end);
                plain.push((a, end));
            }
            for key in &keys {
                let held = plain.iter().any(|(a, end)| {
                    if end.is_empty() {
                        key == *a
                    } else {
                        key >= *a && &key[..] < *end
                    }
                });
                assert_eq!(intervals.contains(key), held, "{key:?} in {plain:?}");
            }
            assert!(
                intervals
                    .sorted
                    .windows(2)
                    .all(|pair| !pair[0].1.lies_after(pair[1].0))
            );
        }
    }
}
