//! The Put, DeleteRange and Txn operations on an open transaction.
//!
//! A transaction is decided first (compares of every level against the state before it), then the branches it takes
//! are validated as a whole, then they are executed; after the validation nothing can fail for a reason of the
//! request (etcd: server/etcdserver/txn/{txn,put,delete}.go).

use super::{
    interval::KeyInterval, intervals::KeySet, range::range, view::ReadView, write::WriteTxn,
};
use crate::{
    error::ApplyError,
    lease::Leases,
    pb::{
        etcdserverpb::{
            Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
            RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
            compare::{CompareResult, CompareTarget, TargetUnion},
            request_op::Request,
            response_op::Response,
        },
        mvccpb::KeyValue,
    },
};

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader {
        revision,
        ..Default::default()
    })
}

/// Executes a put, checking it first.
pub(crate) fn put(txn: &mut WriteTxn<'_>, request: &PutRequest) -> Result<PutResponse, ApplyError> {
    check_lease(&txn.leases().read(), request)?;
    let previous = previous(txn, request)?;
    if ignores(request) && previous.is_none() {
        return Err(ApplyError::KeyNotFound);
    }
    Ok(put_checked(txn, request, previous))
}

fn put_checked(
    txn: &mut WriteTxn<'_>,
    request: &PutRequest,
    previous: Option<KeyValue>,
) -> PutResponse {
    let (mut value, mut lease) = (request.value.clone(), request.lease);
    if let Some(kv) = &previous {
        if request.ignore_value {
            value = kv.value.clone();
        }
        if request.ignore_lease {
            lease = kv.lease;
        }
    }
    txn.put(&request.key, &value, lease);
    PutResponse {
        header: header(txn.revision()),
        prev_kv: previous.filter(|_| request.prev_kv),
    }
}

/// Executes a delete.
pub(crate) fn delete_range(
    txn: &mut WriteTxn<'_>,
    request: &DeleteRangeRequest,
) -> Result<DeleteRangeResponse, ApplyError> {
    let interval = KeyInterval::new(&request.key, &request.range_end);
    let prev_kvs = if request.prev_kv {
        let view = txn.view();
        view.collect(interval, view.current)?
    } else {
        Vec::new()
    };
    let deleted = txn.delete(interval) as i64;
    Ok(DeleteRangeResponse {
        header: header(txn.revision()),
        deleted,
        prev_kvs,
    })
}

fn ignores(request: &PutRequest) -> bool {
    request.ignore_value || request.ignore_lease
}

/// The record before a put, if the request asks for anything of it.
fn previous(txn: &WriteTxn<'_>, request: &PutRequest) -> Result<Option<KeyValue>, ApplyError> {
    if ignores(request) || request.prev_kv {
        txn.view().get(&request.key, txn.revision())
    } else {
        Ok(None)
    }
}

fn check_lease(leases: &Leases, request: &PutRequest) -> Result<(), ApplyError> {
    if request.lease != 0 && !leases.exists(request.lease) {
        return Err(ApplyError::LeaseNotFound);
    }
    Ok(())
}

/// Which branches a transaction and those within it take, in the order of execution.
pub(crate) struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    /// Evaluates every compare against `view`.
    pub fn decide(view: &ReadView<'_>, request: &TxnRequest) -> Result<Path, ApplyError> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !holds(view, compare)? {
                succeeded = false;
                break;
            }
        }
        let mut path = Path {
            succeeded,
            nested: Vec::new(),
        };
        for op in path.branch(request) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                path.nested.push(Path::decide(view, nested)?);
            }
        }
        Ok(path)
    }

    fn branch<'r>(&self, request: &'r TxnRequest) -> &'r [RequestOp] {
        if self.succeeded {
            &request.success
        } else {
            &request.failure
        }
    }

    /// Checks the operations that will run against the state before the transaction and against `deleted`, what those
    /// before them delete. A proposer lets no transaction put and delete one key, but as in etcd it does not see that
    /// a deletion to the last key (`range_end` of one zero byte) covers a put.
    pub fn check<'r>(
        &self,
        view: &ReadView<'_>,
        leases: &Leases,
        request: &'r TxnRequest,
        deleted: &mut KeySet<'r>,
    ) -> Result<(), ApplyError> {
        let mut nested = self.nested.iter();
        for op in self.branch(request) {
            match &op.request {
                Some(Request::RequestRange(range)) => check_range(view, range)?,
                Some(Request::RequestPut(put)) => {
                    check_lease(leases, put)?;
                    if ignores(put)
                        && (deleted.contains(&put.key)
                            || view.get(&put.key, view.current)?.is_none())
                    {
                        return Err(ApplyError::KeyNotFound);
                    }
                }
                Some(Request::RequestTxn(txn)) => {
                    if let Some(path) = nested.next() {
                        path.check(view, leases, txn, deleted)?;
                    }
                }
                Some(Request::RequestDeleteRange(delete)) => {
                    deleted.add(KeyInterval::new(&delete.key, &delete.range_end));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// Within a transaction only 0 means "now": a negative revision counts as one that is long compacted.
fn check_range(view: &ReadView<'_>, request: &RangeRequest) -> Result<(), ApplyError> {
    match request.revision {
        0 => Ok(()),
        revision if revision > view.current => Err(ApplyError::FutureRevision),
        revision if revision < view.compacted => Err(ApplyError::Compacted),
        _ => Ok(()),
    }
}

/// Decides and checks a transaction that may write. An error is the answer to the request.
pub(crate) fn prepare(txn: &WriteTxn<'_>, request: &TxnRequest) -> Result<Path, ApplyError> {
    let view = txn.view();
    let path = Path::decide(&view, request)?;
    path.check(&view, &txn.leases().read(), request, &mut KeySet::default())?;
    Ok(path)
}

/// Executes a transaction that was prepared. An error is no answer to the request: something was written already,
/// or the store is damaged.
pub(crate) fn execute(
    txn: &mut WriteTxn<'_>,
    path: &Path,
    request: &TxnRequest,
) -> Result<TxnResponse, ApplyError> {
    let mut response = execute_level(txn, path, request)?;
    response.header = header(txn.revision());
    Ok(response)
}

fn execute_level(
    txn: &mut WriteTxn<'_>,
    path: &Path,
    request: &TxnRequest,
) -> Result<TxnResponse, ApplyError> {
    let mut nested = path.nested.iter();
    let mut responses = Vec::with_capacity(path.branch(request).len());
    for op in path.branch(request) {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => {
                Some(Response::ResponseRange(range(&txn.view(), request)?))
            }
            Some(Request::RequestPut(request)) => {
                let previous = previous(txn, request)?;
                if ignores(request) && previous.is_none() {
                    // Deleted by this transaction itself, which `Path::check` has seen.
                    return Err(ApplyError::KeyNotFound);
                }
                Some(Response::ResponsePut(put_checked(txn, request, previous)))
            }
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(delete_range(txn, request)?))
            }
            Some(Request::RequestTxn(request)) => match nested.next() {
                Some(path) => Some(Response::ResponseTxn(execute_level(txn, path, request)?)),
                None => None,
            },
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse {
        header: Some(ResponseHeader::default()),
        succeeded: path.succeeded,
        responses,
    })
}

/// Decides, checks and executes a transaction for which [`is_read_only`] holds; other operations get no response.
pub(crate) fn txn_read_only(
    view: &ReadView<'_>,
    request: &TxnRequest,
) -> Result<TxnResponse, ApplyError> {
    let path = Path::decide(view, request)?;
    for op in path.branch(request) {
        if let Some(Request::RequestRange(range)) = &op.request {
            check_range(view, range)?;
        }
    }
    let run = |op: &RequestOp| {
        let response = match &op.request {
            Some(Request::RequestRange(request)) => {
                Some(Response::ResponseRange(range(view, request)?))
            }
            _ => None,
        };
        Ok(ResponseOp { response })
    };
    Ok(TxnResponse {
        header: header(view.current),
        succeeded: path.succeeded,
        responses: path
            .branch(request)
            .iter()
            .map(run)
            .collect::<Result<_, ApplyError>>()?,
    })
}

/// Whether a transaction holds ranges alone, so that it need not go through the log. One within it makes it a
/// write, whatever that holds (etcd: txn.go, `IsTxnReadonly`).
pub fn is_read_only(request: &TxnRequest) -> bool {
    let reads = |op: &RequestOp| matches!(op.request, Some(Request::RequestRange(_)));
    request.success.iter().all(reads) && request.failure.iter().all(reads)
}

/// Whether `compare` holds for every key it names; a key that does not exist counts as zeroes, except that its
/// value equals nothing.
fn holds(view: &ReadView<'_>, compare: &Compare) -> Result<bool, ApplyError> {
    let interval = KeyInterval::new(&compare.key, &compare.range_end);
    let (revisions, _) = view.revisions(interval, view.current, usize::MAX)?;
    if revisions.is_empty() {
        let by_value = compare.target == CompareTarget::Value as i32;
        return Ok(!by_value && compare_record(compare, &KeyValue::default()));
    }
    for revision in &revisions {
        let kv = if compare.target == CompareTarget::Mod as i32 {
            // The commonest compare needs no row.
            KeyValue {
                mod_revision: revision.main,
                ..Default::default()
            }
        } else {
            view.fetch_all(std::slice::from_ref(revision))?
                .swap_remove(0)
        };
        if !compare_record(compare, &kv) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn compare_record(compare: &Compare, kv: &KeyValue) -> bool {
    // A value of another target than the one named counts as zero.
    let number = |of: i64, pick: fn(&TargetUnion) -> Option<i64>| {
        of.cmp(&compare.target_union.as_ref().and_then(pick).unwrap_or(0))
    };
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => number(kv.version, |target| match target {
            TargetUnion::Version(version) => Some(*version),
            _ => None,
        }),
        Ok(CompareTarget::Create) => number(kv.create_revision, |target| match target {
            TargetUnion::CreateRevision(revision) => Some(*revision),
            _ => None,
        }),
        Ok(CompareTarget::Mod) => number(kv.mod_revision, |target| match target {
            TargetUnion::ModRevision(revision) => Some(*revision),
            _ => None,
        }),
        Ok(CompareTarget::Lease) => number(kv.lease, |target| match target {
            TargetUnion::Lease(lease) => Some(*lease),
            _ => None,
        }),
        Ok(CompareTarget::Value) => match &compare.target_union {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_ref().cmp(b"".as_slice()),
        },
        // etcd compares nothing for a target it does not know: equal.
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
