//! What an entry may hold, who may refuse it, and what the member owes afterwards.

mod common;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::*;
use kvstore::{
    ApplyError, Code, Duty, FatalError, Response, StoreConfig,
    backend::memory::MemoryBackend,
    pb::{
        etcdserverpb::{
            AlarmType, CompactionRequest, DowngradeVersionTestRequest, InternalRaftRequest,
            LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestHeader,
            alarm_request::AlarmAction, request_op::Request,
        },
        membershippb::ClusterVersionSetRequest,
    },
    version::Version,
};
use prost::Message;

fn fatal(data: &[u8]) -> String {
    let mut log = Log::new();
    match log.try_apply_bytes(Bytes::copy_from_slice(data)) {
        Err(error @ FatalError::UnknownRequest { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_applied_is_fatal() {
    let header = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 9,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(fatal(&header.encode_to_vec()).contains("no request this version knows"));
    // A request of a newer member: field 777.
    let unknown = [&header.encode_to_vec()[..], b"\xca\x30\x02\x08\x01"].concat();
    assert!(fatal(&unknown).contains("no request this version knows"));
    let bare = InternalRaftRequest {
        put: Some(PutRequest::default()),
        ..Default::default()
    };
    assert!(fatal(&bare.encode_to_vec()).contains("neither id nor header"));
    assert!(fatal(b"\xff\xff\xff").contains("entry 1"));
}

#[test]
fn an_unknown_field_beside_a_known_request_is_ignored() {
    let mut log = Log::new();
    let mut put = internal(put("k", "v"));
    put.header = Some(RequestHeader {
        id: 5,
        ..Default::default()
    });
    let data = [&put.encode_to_vec()[..], b"\xca\x30\x02\x08\x01"].concat();
    let applied = log.try_apply_bytes(data.into()).unwrap();
    assert_eq!((applied.request_id, applied.revision), (Some(5), 2));
}

#[test]
fn every_entry_advances_the_index_whatever_becomes_of_it() {
    let mut log = Log::new();
    log.try_apply_bytes(Bytes::new()).unwrap();
    log.err(InternalRaftRequest {
        lease_revoke: Some(LeaseRevokeRequest { id: 3 }),
        ..Default::default()
    });
    log.put("k", "v");
    assert_eq!(log.store.applied(), (3, 1));
    log.store.flush().unwrap();
    assert_eq!(
        log.store
            .durable()
            .load(std::sync::atomic::Ordering::Acquire),
        3
    );
    // What is applied already is recognised, and answers nobody; a gap is refused.
    let again = log.store.apply(2, 1, &log.entries[2].clone()).unwrap();
    assert_eq!(
        (again.request_id, again.revision, again.events.len()),
        (None, 2, 0)
    );
    assert!(matches!(
        log.store.apply(5, 1, &Bytes::new()),
        Err(FatalError::Impossible { index: 5, .. })
    ));
}

fn v2(method: &str, path: &str, val: &str) -> Bytes {
    // With all the zero fields Go writes.
    let request = kvstore::pb::etcdserverpb::Request {
        id: Some(42),
        method: Some(method.into()),
        path: Some(path.into()),
        val: Some(val.into()),
        dir: Some(false),
        prev_value: Some(String::new()),
        time: Some(0),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

#[test]
fn v2_requests_set_the_cluster_version_or_change_nothing() {
    let mut log = Log::new();
    let set = log
        .try_apply_bytes(v2("PUT", "/0/version", "3.5.0"))
        .unwrap();
    let current = Version::new(3, 5, 0);
    assert_eq!(set.request_id, Some(42));
    assert_eq!(
        set.duty,
        Some(Duty::ClusterVersion {
            previous: None,
            current
        })
    );
    for (method, path) in [
        ("QGET", ""),
        ("SYNC", ""),
        ("PUT", "/1/mine"),
        ("DELETE", "/1/mine"),
        ("POST", "/1/q"),
    ] {
        let applied = log.try_apply_bytes(v2(method, path, "x")).unwrap();
        assert_eq!(
            (applied.outcome, applied.duty),
            (Ok(Response::Empty), None),
            "{method}"
        );
    }
    assert_eq!(log.store.reader().cluster_version(), Some(current));
    let broken = log.try_apply_bytes(v2("PUT", "/0/version", "three"));
    assert!(matches!(broken, Err(FatalError::Impossible { .. })));
}

#[test]
fn the_cluster_version_may_fall_which_the_member_is_told() {
    let mut log = Log::new();
    let set = |ver: &str| InternalRaftRequest {
        cluster_version_set: Some(ClusterVersionSetRequest { ver: ver.into() }),
        ..Default::default()
    };
    log.ok(set("3.6.0"));
    let applied = log.apply(set("3.5.0"));
    let (previous, current) = (Some(Version::new(3, 6, 0)), Version::new(3, 5, 0));
    assert_eq!(
        applied.duty,
        Some(Duty::ClusterVersion { previous, current })
    );
    let test = InternalRaftRequest {
        downgrade_version_test: Some(DowngradeVersionTestRequest::default()),
        ..Default::default()
    };
    assert_eq!(log.ok(test), Response::Empty);
}

#[test]
fn leases_are_granted_once_and_for_at_least_the_minimum() {
    let mut log = Log::new();
    let grant = |id, ttl| InternalRaftRequest {
        lease_grant: Some(LeaseGrantRequest { id, ttl }),
        ..Default::default()
    };
    let Response::LeaseGrant(response) = log.ok(grant(1, 1)) else {
        panic!()
    };
    assert_eq!((response.id, response.ttl), (1, 2));
    assert_eq!(log.err(grant(1, 5)), ApplyError::LeaseExists);
    assert_eq!(
        log.err(grant(2, 9_000_000_001)),
        ApplyError::LeaseTtlTooLarge
    );
    log.ok(grant(2, 9_000_000_000));
}

#[test]
fn compaction_tells_the_member_what_to_wait_for() {
    let mut log = Log::new();
    log.put("k", "1");
    log.put("k", "2");
    let applied = log.apply(InternalRaftRequest {
        compaction: Some(CompactionRequest {
            revision: 3,
            physical: true,
        }),
        ..Default::default()
    });
    assert_eq!(applied.duty, Some(Duty::Compacted(3)));
    let reader = log.store.reader();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while reader.finished_compaction() < 3 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(log.show(&range_request("k", "")), "k=2");
}

#[test]
fn every_error_has_the_text_and_code_of_etcd() {
    use Code::*;
    let table = [
        (
            ApplyError::EmptyKey,
            InvalidArgument,
            "etcdserver: key is not provided",
        ),
        (
            ApplyError::KeyNotFound,
            InvalidArgument,
            "etcdserver: key not found",
        ),
        (
            ApplyError::LeaseNotFound,
            NotFound,
            "etcdserver: requested lease not found",
        ),
        (
            ApplyError::Compacted,
            OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        ),
        (
            ApplyError::FutureRevision,
            OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        ),
        (
            ApplyError::LeaseTtlTooLarge,
            OutOfRange,
            "etcdserver: too large lease TTL",
        ),
        (
            ApplyError::NoSpace,
            ResourceExhausted,
            "etcdserver: mvcc: database space exceeded",
        ),
        (
            ApplyError::LeaseExists,
            FailedPrecondition,
            "etcdserver: lease already exists",
        ),
        (
            ApplyError::PermissionDenied,
            PermissionDenied,
            "etcdserver: permission denied",
        ),
        (
            ApplyError::InvalidAuthToken,
            Unauthenticated,
            "etcdserver: invalid auth token",
        ),
        (ApplyError::Corrupt, DataLoss, "etcdserver: corrupt cluster"),
        (
            ApplyError::RootRoleNotExist,
            FailedPrecondition,
            "etcdserver: root user does not have root role",
        ),
        (
            ApplyError::AuthOldRevision,
            InvalidArgument,
            "etcdserver: revision of auth store is old",
        ),
    ];
    for (error, code, text) in table {
        assert_eq!((error.code(), error.to_string()), (code, text.to_owned()));
    }
}

#[test]
fn answers_are_counted_under_etcds_names() {
    #[derive(Default)]
    struct Seen(Mutex<Vec<String>>);
    impl metrics::Recorder for Seen {
        fn describe_counter(
            &self,
            _: metrics::KeyName,
            _: Option<metrics::Unit>,
            _: metrics::SharedString,
        ) {
        }
        fn describe_gauge(
            &self,
            _: metrics::KeyName,
            _: Option<metrics::Unit>,
            _: metrics::SharedString,
        ) {
        }
        fn describe_histogram(
            &self,
            _: metrics::KeyName,
            _: Option<metrics::Unit>,
            _: metrics::SharedString,
        ) {
        }
        fn register_counter(
            &self,
            key: &metrics::Key,
            _: &metrics::Metadata<'_>,
        ) -> metrics::Counter {
            self.0.lock().unwrap().push(key.to_string());
            metrics::Counter::noop()
        }
        fn register_gauge(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
            self.0.lock().unwrap().push(key.to_string());
            metrics::Gauge::noop()
        }
        fn register_histogram(
            &self,
            key: &metrics::Key,
            _: &metrics::Metadata<'_>,
        ) -> metrics::Histogram {
            self.0.lock().unwrap().push(key.to_string());
            metrics::Histogram::noop()
        }
    }
    let seen = Arc::new(Seen::default());
    let observed = StoreConfig {
        recorder: seen.clone(),
        ..config()
    };
    let mut log = Log::with(observed, Arc::new(MemoryBackend::default()));
    log.put("k", "v");
    log.err(internal(Request::RequestPut(PutRequest {
        lease: 4,
        ..put_request("k", "v")
    })));
    log.ok(alarm(AlarmAction::Activate, 0xab, AlarmType::Nospace));
    let names = seen.0.lock().unwrap().clone();
    for expected in [
        "etcd_mvcc_put_total",
        "etcd_disk_backend_commit_duration_seconds",
        "etcd_server_apply_duration_seconds, [version = v3, op = Put, success = true]",
        "etcd_server_apply_duration_seconds, [version = v3, op = Put, success = false]",
        "etcd_debugging_server_alarms, [server_id = ab, alarm_type = NOSPACE]",
        "etcd_server_range_duration_seconds, [success = true]",
    ] {
        assert!(
            names.iter().any(|name| name.contains(expected)),
            "{expected} in {names:#?}"
        );
    }
}
