//! Random requests: puts, deletes and transactions over few keys, and now and then a compaction.

use bytes::Bytes;
use kvstore::{
    Response,
    pb::etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RequestHeader, RequestOp,
        TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
    },
};
use node_bin::grpc::backend::Proposal;
use rand::{Rng, rngs::StdRng};

const KEYS: usize = 12;

/// A request and its id in the cluster.
pub struct Workload {
    next_id: u64,
}

impl Workload {
    pub fn new() -> Self {
        Workload { next_id: 1 }
    }

    /// The next request: its id and the entry's data. `revision` is about the present one.
    pub fn next(&mut self, random: &mut StdRng, revision: i64) -> (u64, Bytes) {
        let id = self.next_id;
        self.next_id += 1;
        let proposal = match random.random_range(0..100) {
            0..55 => Proposal::Put(put(random, id)),
            55..70 => Proposal::DeleteRange(delete(random)),
            70..97 => Proposal::Txn(txn(random, id)),
            _ => Proposal::Compaction(CompactionRequest {
                revision: (revision - random.random_range(0..20)).max(1),
                physical: false,
            }),
        };
        (
            id,
            proposal.encode(&RequestHeader {
                id,
                ..RequestHeader::default()
            }),
        )
    }
}

fn name(number: usize) -> Bytes {
    format!("key-{number:02}").into()
}

fn key(random: &mut StdRng) -> Bytes {
    name(random.random_range(0..KEYS))
}

/// A value that only the request with this id has.
fn value(random: &mut StdRng, id: u64) -> Bytes {
    let filling = match random.random_range(0..20) {
        0 => random.random_range(1500..5000),
        1..5 => 0,
        _ => random.random_range(0..400),
    };
    let mut value = format!("of request {id}:").into_bytes();
    // Zeros look like space never written.
    let byte = if random.random_bool(0.3) {
        0
    } else {
        random.random()
    };
    value.resize(value.len() + filling, byte);
    value.into()
}

fn put(random: &mut StdRng, id: u64) -> PutRequest {
    PutRequest {
        key: key(random),
        value: value(random, id),
        ..PutRequest::default()
    }
}

fn delete(random: &mut StdRng) -> DeleteRangeRequest {
    let from = random.random_range(0..KEYS);
    let range_end = if random.random_bool(0.3) {
        name(from + random.random_range(1..4))
    } else {
        Bytes::new()
    };
    DeleteRangeRequest {
        key: name(from),
        range_end,
        prev_kv: random.random_bool(0.5),
    }
}

fn txn(random: &mut StdRng, id: u64) -> TxnRequest {
    let compared = key(random);
    let compare = Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Version as i32,
        key: compared,
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::Version(random.random_range(0..3))),
    };
    TxnRequest {
        compare: vec![compare],
        success: ops(random, id),
        failure: ops(random, id),
    }
}

/// Up to three writes of different keys.
fn ops(random: &mut StdRng, id: u64) -> Vec<RequestOp> {
    let first = random.random_range(0..KEYS);
    let count = random.random_range(0..4);
    let op = |number: usize, random: &mut StdRng| {
        let key = name((first + number) % KEYS);
        if random.random_bool(0.3) {
            Request::RequestDeleteRange(DeleteRangeRequest {
                key,
                ..DeleteRangeRequest::default()
            })
        } else {
            Request::RequestPut(PutRequest {
                key,
                value: value(random, id),
                ..PutRequest::default()
            })
        }
    };
    (0..count)
        .map(|number| RequestOp {
            request: Some(op(number, random)),
        })
        .collect()
}

/// The revision a response gives; `None` where it does not tell when the request took effect.
pub fn revision(response: &Response) -> Option<i64> {
    let header = match response {
        Response::Put(put) => &put.header,
        Response::DeleteRange(delete) => &delete.header,
        Response::Txn(txn) => &txn.header,
        _ => return None,
    };
    header.as_ref().map(|header| header.revision)
}
