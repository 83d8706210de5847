//! The space quota: what a request costs, and whether there is room for it.
//!
//! The check is local to each member: a member that finds itself over its quota executes the request all the same,
//! answers "no space" and has the alarm raised, which is replicated (etcd: server/storage/quota.go).

use crate::pb::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};

/// Quota in bytes when none is given.
pub const DEFAULT_QUOTA_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// What the metadata of a key is taken to weigh.
const KEY_OVERHEAD: u64 = 256;
/// What a lease is taken to weigh.
pub const LEASE_COST: u64 = 64;

/// A limit on the size of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    limit: Option<u64>,
}

impl Quota {
    /// The quota that `--quota-backend-bytes` names: negative for none, 0 for the default.
    pub fn new(bytes: i64) -> Self {
        Quota {
            limit: match bytes {
                ..0 => None,
                0 => Some(DEFAULT_QUOTA_BYTES),
                _ => Some(bytes as u64),
            },
        }
    }

    /// The limit in bytes, if there is one.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Whether something that costs `cost` fits beside `used` bytes. What costs nothing always fits.
    pub fn has_room(&self, used: u64, cost: u64) -> bool {
        cost == 0
            || self
                .limit
                .is_none_or(|limit| used.saturating_add(cost) < limit)
    }
}

/// Cost of a put.
pub fn cost_of_put(put: &PutRequest) -> u64 {
    KEY_OVERHEAD + (put.key.len() + put.value.len()) as u64
}

/// Cost of a transaction: its dearer branch.
pub fn cost_of_txn(txn: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| -> u64 {
        ops.iter()
            .map(|op| match &op.request {
                Some(Request::RequestPut(put)) => cost_of_put(put),
                Some(Request::RequestTxn(txn)) => cost_of_txn(txn),
                _ => 0,
            })
            .sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::RangeRequest;

    fn put(value: usize) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: "k".into(),
                value: vec![0; value].into(),
                ..Default::default()
            })),
        }
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch() {
        let nested = RequestOp {
            request: Some(Request::RequestTxn(TxnRequest {
                failure: vec![put(1000)],
                ..Default::default()
            })),
        };
        let range = RequestOp {
            request: Some(Request::RequestRange(RangeRequest::default())),
        };
        let txn = TxnRequest {
            success: vec![put(10), put(20)],
            failure: vec![range.clone(), nested],
            ..Default::default()
        };
        assert_eq!(cost_of_txn(&txn), 257 + 1000);
        let reads = TxnRequest {
            success: vec![range],
            ..Default::default()
        };
        assert_eq!(cost_of_txn(&reads), 0);
    }

    #[test]
    fn room() {
        assert_eq!(Quota::new(0).limit(), Some(DEFAULT_QUOTA_BYTES));
        assert!(Quota::new(-1).has_room(u64::MAX, 1));
        let quota = Quota::new(1000);
        assert!(quota.has_room(742, 257));
        assert!(!quota.has_room(743, 257));
        assert!(quota.has_room(5000, 0));
    }
}
