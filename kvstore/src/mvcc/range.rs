//! The Range operation: revision, limit, filters, order and what is left out of the answer.
//!
//! etcd: server/etcdserver/txn/range.go, in the form 3.6 has.

use std::cmp::Ordering;

use super::{interval::KeyInterval, view::ReadView};
use crate::{
    error::ApplyError,
    pb::{
        etcdserverpb::{
            RangeRequest, RangeResponse, ResponseHeader,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
};

/// Executes `request` on `view`. The header holds the view's revision, not the one asked for.
pub(crate) fn range(
    view: &ReadView<'_>,
    request: &RangeRequest,
) -> Result<RangeResponse, ApplyError> {
    let at = view.resolve(request.revision)?;
    let interval = KeyInterval::new(&request.key, &request.range_end);
    let mut response = RangeResponse {
        header: Some(ResponseHeader {
            revision: view.current,
            ..Default::default()
        }),
        ..Default::default()
    };
    let fetch_limit = if request.count_only {
        0
    } else {
        fetch_limit(request)
    };
    let (revisions, count) = view.revisions(interval, at, fetch_limit)?;
    response.count = count as i64;
    if request.count_only {
        return Ok(response);
    }
    let mut kvs = view.fetch_all(&revisions)?;
    if has_filters(request) {
        kvs.retain(|kv| passes_filters(request, kv));
    }
    sort(request, &mut kvs);
    if let Some(limit) = limit(request)
        && kvs.len() > limit
    {
        kvs.truncate(limit);
        response.more = true;
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Default::default());
    }
    response.kvs = kvs;
    Ok(response)
}

fn limit(request: &RangeRequest) -> Option<usize> {
    (request.limit > 0).then(|| usize::try_from(request.limit).unwrap_or(usize::MAX))
}

/// How many records must be looked at. One more than asked for tells whether there is more; with filters or an
/// explicit order any record may be among the answer. An order of NONE with another target than the key sorts only
/// the records within the limit, as etcd does.
fn fetch_limit(request: &RangeRequest) -> usize {
    let by_key = request.sort_order == SortOrder::None as i32
        || (request.sort_order == SortOrder::Ascend as i32
            && request.sort_target == SortTarget::Key as i32);
    match limit(request) {
        Some(limit) if by_key && !has_filters(request) => limit.saturating_add(1),
        _ => usize::MAX,
    }
}

fn has_filters(request: &RangeRequest) -> bool {
    [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ] != [0; 4]
}

fn passes_filters(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within =
        |value: i64, min: i64, max: i64| (max == 0 || value <= max) && (min == 0 || value >= min);
    within(
        kv.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && within(
        kv.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// Sorts records that come in key order. Records that compare equal stay in key order; numbers that are no order or
/// target leave everything in key order (an entry may hold such a request: an older proposer did not check).
fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let Ok(target) = SortTarget::try_from(request.sort_target) else {
        return;
    };
    let descending = match SortOrder::try_from(request.sort_order) {
        Ok(SortOrder::None) if target == SortTarget::Key => return,
        Ok(SortOrder::None | SortOrder::Ascend) => false,
        Ok(SortOrder::Descend) => true,
        Err(_) => return,
    };
    let compare = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    kvs.sort_by(|a, b| {
        if descending {
            compare(b, a)
        } else {
            compare(a, b)
        }
    });
}

/// Whether sort order and target exist. A proposer must check this before it logs a transaction: members before 3.6
/// panic when they execute such a range.
pub fn is_valid_sort(request: &RangeRequest) -> bool {
    SortOrder::try_from(request.sort_order).is_ok()
        && SortTarget::try_from(request.sort_target).is_ok()
}
