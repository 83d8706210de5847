//! Whether an answer is so large that encoding it would keep a thread that serves sockets.
//!
//! raft shares those threads: what keeps one for longer delays heartbeats and every put. Depends on the messages alone.
//! Invariant: the look takes no longer than encoding an answer that is just not large.

use kvstore::pb::{
    etcdserverpb::{
        AlarmResponse, CompactionResponse, DeleteRangeResponse, HashKvResponse, HashResponse,
        MemberAddResponse, MemberListResponse, MemberPromoteResponse, MemberRemoveResponse,
        MemberUpdateResponse, MoveLeaderResponse, PutResponse, RangeResponse, StatusResponse,
        TxnResponse, response_op,
    },
    mvccpb::KeyValue,
};
use prost::Message;

/// From this many bytes on an answer is large; encoding less takes about a tenth of a millisecond.
const LARGE_BYTES: usize = 256 << 10;
/// What a record weighs beside its key and value.
const RECORD_BYTES: usize = 64;

/// The answer to a unary call.
pub trait Answer: Message + Send + Sized + 'static {
    /// Whether it is to be encoded, and dropped, elsewhere.
    fn is_large(&self) -> bool {
        !Room(LARGE_BYTES).has(|room| self.fits(room))
    }

    /// Takes the room of the records in it, as long as there is room.
    fn fits(&self, _room: &mut Room) -> bool {
        true
    }
}

/// Bytes that may still come.
pub struct Room(usize);

impl Room {
    fn has(mut self, fits: impl FnOnce(&mut Room) -> bool) -> bool {
        fits(&mut self)
    }

    fn take(&mut self, bytes: usize) -> bool {
        let left = self.0.checked_sub(bytes);
        self.0 = left.unwrap_or_default();
        left.is_some()
    }

    fn take_all<'a>(&mut self, records: impl IntoIterator<Item = &'a KeyValue>) -> bool {
        records
            .into_iter()
            .all(|record| self.take(RECORD_BYTES + record.key.len() + record.value.len()))
    }
}

impl Answer for RangeResponse {
    fn fits(&self, room: &mut Room) -> bool {
        room.take_all(&self.kvs)
    }
}

impl Answer for PutResponse {
    fn fits(&self, room: &mut Room) -> bool {
        room.take_all(&self.prev_kv)
    }
}

impl Answer for DeleteRangeResponse {
    fn fits(&self, room: &mut Room) -> bool {
        room.take_all(&self.prev_kvs)
    }
}

impl Answer for TxnResponse {
    fn fits(&self, room: &mut Room) -> bool {
        use response_op::Response as R;
        let results = self.responses.iter();
        results
            .filter_map(|op| op.response.as_ref())
            .all(|result| match result {
                R::ResponseRange(range) => range.fits(room),
                R::ResponsePut(put) => put.fits(room),
                R::ResponseDeleteRange(deleted) => deleted.fits(room),
                R::ResponseTxn(nested) => nested.fits(room),
            })
    }
}

impl Answer for AlarmResponse {}
impl Answer for CompactionResponse {}
impl Answer for HashKvResponse {}
impl Answer for HashResponse {}
impl Answer for MemberAddResponse {}
impl Answer for MemberListResponse {}
impl Answer for MemberPromoteResponse {}
impl Answer for MemberRemoveResponse {}
impl Answer for MemberUpdateResponse {}
impl Answer for MoveLeaderResponse {}
impl Answer for StatusResponse {}

#[cfg(test)]
mod tests {
    use kvstore::pb::etcdserverpb::ResponseOp;

    use super::*;

    fn records(count: usize, value_bytes: usize) -> Vec<KeyValue> {
        let record = KeyValue {
            key: "key".into(),
            value: vec![b'v'; value_bytes].into(),
            ..Default::default()
        };
        vec![record; count]
    }

    fn range(count: usize, value_bytes: usize) -> RangeResponse {
        RangeResponse {
            kvs: records(count, value_bytes),
            ..Default::default()
        }
    }

    fn txn(results: Vec<response_op::Response>) -> TxnResponse {
        let responses = results.into_iter().map(|result| ResponseOp {
            response: Some(result),
        });
        TxnResponse {
            responses: responses.collect(),
            ..Default::default()
        }
    }

    #[test]
    fn many_records_or_long_ones_make_an_answer_large() {
        assert!(!range(0, 0).is_large() && !range(1000, 100).is_large());
        assert!(range(10_000, 0).is_large() && range(1, LARGE_BYTES).is_large());
        let deleted = |count| DeleteRangeResponse {
            prev_kvs: records(count, 100),
            ..Default::default()
        };
        assert!(!deleted(1).is_large() && deleted(10_000).is_large());
        let put = |value_bytes| PutResponse {
            prev_kv: records(1, value_bytes).pop(),
            ..Default::default()
        };
        assert!(!put(100).is_large() && put(1 << 20).is_large());
        assert!(!PutResponse::default().is_large() && !StatusResponse::default().is_large());
    }

    #[test]
    fn the_results_of_a_transaction_count_together() {
        use response_op::Response as R;
        let half = || R::ResponseRange(range(1, LARGE_BYTES / 2));
        assert!(!txn(vec![half()]).is_large());
        assert!(txn(vec![half(), half()]).is_large());
        let nested = R::ResponseTxn(txn(vec![half()]));
        assert!(txn(vec![half(), nested]).is_large());
    }
}
