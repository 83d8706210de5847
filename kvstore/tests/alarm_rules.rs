//! Alarms: who raises them, and what they refuse.

mod common;

use std::sync::Arc;

use AlarmAction::{Activate, Deactivate, Get};
use AlarmType::{Corrupt, None as All, Nospace};
use common::*;
use kvstore::{
    ApplyError, Code, Duty, Response, StoreConfig,
    backend::memory::MemoryBackend,
    pb::etcdserverpb::{
        AlarmMember, AlarmResponse, AlarmType, CompactionRequest, InternalRaftRequest,
        LeaseCheckpoint, LeaseCheckpointRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest,
        TxnRequest, alarm_request::AlarmAction, request_op::Request,
    },
};

fn alarms(log: &mut Log, request: InternalRaftRequest) -> Vec<(u64, i32)> {
    match log.ok(request) {
        Response::Alarm(AlarmResponse { alarms, .. }) => {
            let pair = |alarm: &AlarmMember| (alarm.member_id, alarm.alarm);
            alarms.iter().map(pair).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn alarms_are_raised_listed_and_lowered() {
    let backend = Arc::new(MemoryBackend::default());
    let mut log = Log::on(backend.clone());
    assert_eq!(alarms(&mut log, alarm(Get, 0, All)), []);
    assert_eq!(alarms(&mut log, alarm(Activate, 7, All)), []);
    assert_eq!(alarms(&mut log, alarm(Activate, 7, Nospace)), [(7, 1)]);
    assert_eq!(alarms(&mut log, alarm(Activate, 7, Nospace)), [(7, 1)]);
    assert_eq!(alarms(&mut log, alarm(Activate, 0, Corrupt)), [(0, 2)]);
    assert_eq!(alarms(&mut log, alarm(Get, 0, All)), [(7, 1), (0, 2)]);
    assert_eq!(alarms(&mut log, alarm(Get, 0, Corrupt)), [(0, 2)]);
    assert_eq!(alarms(&mut log, alarm(Deactivate, 8, Nospace)), []);
    assert_eq!(alarms(&mut log, alarm(Deactivate, 0, Corrupt)), [(0, 2)]);
    log.store.close().unwrap();
    let reopened = kvstore::Store::open_on(config(), backend).unwrap();
    assert_eq!(reopened.reader().alarms().len(), 1);
}

/// One request of each kind the alarms are about.
fn kinds() -> Vec<(&'static str, InternalRaftRequest)> {
    let txn_of = |request: Request| {
        internal(txn(TxnRequest {
            success: vec![op(request)],
            ..Default::default()
        }))
    };
    vec![
        ("put", internal(put("k", "v"))),
        ("range", internal(range("k", ""))),
        ("delete", internal(delete("none", ""))),
        ("writing txn", txn_of(put("k", "v"))),
        ("deleting txn", txn_of(delete("none", ""))),
        (
            "compaction",
            InternalRaftRequest {
                compaction: Some(CompactionRequest {
                    revision: 99,
                    physical: false,
                }),
                ..Default::default()
            },
        ),
        (
            "grant",
            InternalRaftRequest {
                lease_grant: Some(LeaseGrantRequest { id: 5, ttl: 10 }),
                ..Default::default()
            },
        ),
        (
            "revoke",
            InternalRaftRequest {
                lease_revoke: Some(LeaseRevokeRequest { id: 99 }),
                ..Default::default()
            },
        ),
        (
            "checkpoint",
            InternalRaftRequest {
                lease_checkpoint: Some(LeaseCheckpointRequest {
                    checkpoints: vec![LeaseCheckpoint {
                        id: 5,
                        remaining_ttl: 3,
                    }],
                }),
                ..Default::default()
            },
        ),
    ]
}

#[test]
fn alarms_refuse_what_they_are_about() {
    let cases: [(AlarmType, ApplyError, &[&str]); 2] = [
        (
            Nospace,
            ApplyError::NoSpace,
            &["put", "writing txn", "grant"],
        ),
        (
            Corrupt,
            ApplyError::Corrupt,
            &[
                "put",
                "range",
                "delete",
                "writing txn",
                "deleting txn",
                "compaction",
                "grant",
                "revoke",
            ],
        ),
    ];
    for (kind, error, refused) in cases {
        let mut log = Log::new();
        log.ok(alarm(Activate, 1, kind));
        for (name, request) in kinds() {
            let applied = log.apply(request);
            let is_refused = applied.outcome == Err(error.clone());
            assert_eq!(is_refused, refused.contains(&name), "{kind:?} {name}");
            assert_eq!(applied.revision, 1, "a refusal consumes no revision");
            assert_eq!(applied.duty, None);
        }
        log.ok(alarm(Deactivate, 1, kind));
        log.ok(internal(put("k", "v")));
    }
    assert_eq!(ApplyError::NoSpace.code(), Code::ResourceExhausted);
    assert_eq!(ApplyError::Corrupt.code(), Code::DataLoss);
}

#[test]
fn over_its_quota_a_member_executes_refuses_and_has_the_alarm_raised() {
    let small = StoreConfig {
        quota_bytes: 1,
        ..config()
    };
    let mut log = Log::with(small, Arc::new(MemoryBackend::default()));
    let applied = log.apply(internal(put("k", "v")));
    assert_eq!(applied.outcome, Err(ApplyError::NoSpace));
    assert_eq!(
        (applied.revision, applied.events.len()),
        (2, 1),
        "executed as on every member"
    );
    assert_eq!(applied.duty, Some(Duty::RaiseNoSpace));
    assert_eq!(log.show(&range_request("k", "")), "k=v");
    // What costs nothing, or fails for a reason of its own, is answered as ever.
    log.ok(internal(delete("k", "")));
    let missing = PutRequest {
        lease: 4,
        ..put_request("k", "v")
    };
    assert_eq!(
        log.err(internal(Request::RequestPut(missing))),
        ApplyError::LeaseNotFound
    );
    // Once the alarm stands it is not asked for again, and nothing is executed.
    log.ok(alarm(Activate, 1, Nospace));
    let applied = log.apply(internal(put("k", "v")));
    assert_eq!(
        (applied.outcome, applied.duty),
        (Err(ApplyError::NoSpace), None)
    );
    assert_eq!(log.show(&range_request("k", "")), "");
}
