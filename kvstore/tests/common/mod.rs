//! What the tests of the public API share: a store with the log that feeds it, and requests in one line.
#![allow(dead_code)]

use std::sync::Arc;

use bytes::Bytes;
use kvstore::{
    Applied, ApplyError, FatalError, Response, Store, StoreConfig,
    backend::{Backend, memory::MemoryBackend},
    pb::{
        etcdserverpb::{
            AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, InternalRaftRequest,
            LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse, RequestHeader, RequestOp,
            TxnRequest, TxnResponse, alarm_request::AlarmAction, request_op::Request,
        },
        mvccpb::KeyValue,
    },
};
use prost::Message;

/// A store and the entries it was given, as a member's log would hold them.
pub struct Log {
    pub store: Store,
    pub entries: Vec<Bytes>,
}

impl Log {
    pub fn new() -> Self {
        Log::on(Arc::new(MemoryBackend::default()))
    }

    pub fn on(backend: Arc<dyn Backend>) -> Self {
        Log::with(config(), backend)
    }

    pub fn with(config: StoreConfig, backend: Arc<dyn Backend>) -> Self {
        Log {
            store: Store::open_on(config, backend).unwrap(),
            entries: Vec::new(),
        }
    }

    /// Applies a request as the next entry and publishes it.
    pub fn apply(&mut self, request: InternalRaftRequest) -> Applied {
        self.try_apply(request).unwrap()
    }

    pub fn try_apply(&mut self, mut request: InternalRaftRequest) -> Result<Applied, FatalError> {
        let index = self.entries.len() as u64 + 1;
        request.header.get_or_insert_with(RequestHeader::default).id = index;
        self.try_apply_bytes(request.encode_to_vec().into())
    }

    pub fn try_apply_bytes(&mut self, data: Bytes) -> Result<Applied, FatalError> {
        self.entries.push(data.clone());
        let applied = self.store.apply(self.entries.len() as u64, 1, &data)?;
        self.store.publish()?;
        Ok(applied)
    }

    pub fn ok(&mut self, request: InternalRaftRequest) -> Response {
        self.apply(request).outcome.unwrap()
    }

    pub fn err(&mut self, request: InternalRaftRequest) -> ApplyError {
        self.apply(request).outcome.unwrap_err()
    }

    /// Main revision after a put.
    pub fn put(&mut self, key: &str, value: &str) -> i64 {
        self.apply(internal(put(key, value))).revision
    }

    pub fn delete(&mut self, key: &str, end: &str) -> i64 {
        match self.ok(internal(delete(key, end))) {
            Response::DeleteRange(response) => response.deleted,
            other => panic!("{other:?}"),
        }
    }

    pub fn grant(&mut self, id: i64) {
        self.ok(InternalRaftRequest {
            lease_grant: Some(LeaseGrantRequest { id, ttl: 100 }),
            ..Default::default()
        });
    }

    pub fn compact(&mut self, revision: i64) -> Result<Response, ApplyError> {
        self.apply(InternalRaftRequest {
            compaction: Some(CompactionRequest {
                revision,
                physical: false,
            }),
            ..Default::default()
        })
        .outcome
    }

    /// Key=value of a range, separated by blanks.
    pub fn show(&self, request: &RangeRequest) -> String {
        match self.store.reader().range(request) {
            Ok(response) => show_kvs(&response.kvs),
            Err(error) => error.to_string(),
        }
    }
}

pub fn config() -> StoreConfig {
    StoreConfig::new("unused")
}

pub fn show_kvs(kvs: &[kvstore::pb::mvccpb::KeyValue]) -> String {
    let show = |kv: &kvstore::pb::mvccpb::KeyValue| {
        format!(
            "{}={}",
            String::from_utf8_lossy(&kv.key),
            String::from_utf8_lossy(&kv.value)
        )
    };
    kvs.iter().map(show).collect::<Vec<_>>().join(" ")
}

/// A request in the form in which it is logged.
pub fn internal(request: impl Into<Request>) -> InternalRaftRequest {
    let mut internal = InternalRaftRequest::default();
    match request.into() {
        Request::RequestPut(put) => internal.put = Some(put),
        Request::RequestRange(range) => internal.range = Some(range),
        Request::RequestDeleteRange(delete) => internal.delete_range = Some(delete),
        Request::RequestTxn(txn) => internal.txn = Some(txn),
    }
    internal
}

pub fn op(request: Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

pub fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

pub fn put(key: &str, value: &str) -> Request {
    Request::RequestPut(put_request(key, value))
}

pub fn range_request(key: &str, end: &str) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        ..Default::default()
    }
}

pub fn range(key: &str, end: &str) -> Request {
    Request::RequestRange(range_request(key, end))
}

pub fn delete(key: &str, end: &str) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        prev_kv: false,
    })
}

pub fn txn(request: TxnRequest) -> Request {
    Request::RequestTxn(request)
}

pub fn range_of(log: &Log, request: &RangeRequest) -> RangeResponse {
    log.store.reader().range(request).unwrap()
}

/// The record of a key that is there.
pub fn get(log: &Log, key: &str) -> KeyValue {
    range_of(log, &range_request(key, "")).kvs.swap_remove(0)
}

pub fn run_txn(log: &mut Log, request: TxnRequest) -> TxnResponse {
    match log.ok(internal(txn(request))) {
        Response::Txn(response) => response,
        other => panic!("{other:?}"),
    }
}

/// a=1 (2), b=2 (3), c=3 (4), a=4 (5), d=0 (6): modified out of key order, values too.
pub fn five() -> Log {
    let mut log = Log::new();
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "3"), ("a", "4"), ("d", "0")] {
        log.put(key, value);
    }
    log
}

/// What a member asks about an alarm of `member_id`.
pub fn alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> InternalRaftRequest {
    InternalRaftRequest {
        alarm: Some(AlarmRequest {
            action: action as i32,
            member_id,
            alarm: alarm as i32,
        }),
        ..Default::default()
    }
}
