//! Who may do what: every row of the permission table.

use super::*;

fn put(key: &'static str, lease: i64, prev_kv: bool) -> PutRequest {
    PutRequest {
        key: key.into(),
        lease,
        prev_kv,
        ..Default::default()
    }
}

fn delete(key: &'static str, end: &'static str, prev_kv: bool) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.into(),
        range_end: end.into(),
        prev_kv,
    }
}

fn range(key: &'static str, end: &'static str) -> RangeRequest {
    RangeRequest {
        key: key.into(),
        range_end: end.into(),
        ..Default::default()
    }
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp {
        request: Some(request),
    }
}

#[test]
fn key_permissions_table() {
    use request_op::Request::*;
    let bench = Bench::enabled();
    let revision = bench.auth.revision();
    let txn = |compare: &[&'static str], success: Vec<RequestOp>, failure: Vec<RequestOp>| {
        let compare = compare.iter().map(|key| Compare {
            key: Bytes::from(*key),
            ..Default::default()
        });
        request(|r| {
            r.txn = Some(TxnRequest {
                compare: compare.collect(),
                success,
                failure,
            })
        })
    };
    let nested = |op| {
        RequestTxn(TxnRequest {
            failure: vec![op],
            ..Default::default()
        })
    };
    // u may write [a, c) and read b. (request, whether u may)
    let cases = [
        (request(|r| r.put = Some(put("a", 0, false))), true),
        (request(|r| r.put = Some(put("a", 0, true))), false),
        (request(|r| r.put = Some(put("b", 0, true))), true),
        (request(|r| r.put = Some(put("c", 0, false))), false),
        (request(|r| r.put = Some(put("a", 7, false))), true),
        (request(|r| r.put = Some(put("a", 8, false))), false),
        (request(|r| r.put = Some(put("a", 9, false))), true),
        (request(|r| r.range = Some(range("b", ""))), true),
        (request(|r| r.range = Some(range("a", ""))), false),
        (request(|r| r.range = Some(range("b", "c"))), false),
        (
            request(|r| r.delete_range = Some(delete("a", "c", false))),
            true,
        ),
        (
            request(|r| r.delete_range = Some(delete("a", "d", false))),
            false,
        ),
        (
            request(|r| r.delete_range = Some(delete("a", "c", true))),
            false,
        ),
        (
            request(|r| r.delete_range = Some(delete("b", "", true))),
            true,
        ),
        (
            request(|r| r.lease_revoke = Some(LeaseRevokeRequest { id: 7 })),
            true,
        ),
        (
            request(|r| r.lease_revoke = Some(LeaseRevokeRequest { id: 8 })),
            false,
        ),
        (
            txn(&["b"], vec![op(RequestPut(put("a", 0, false)))], vec![]),
            true,
        ),
        (txn(&["a"], vec![], vec![]), false),
        (
            txn(
                &[],
                vec![op(RequestRange(range("b", "")))],
                vec![op(RequestRange(range("a", "")))],
            ),
            false,
        ),
        (
            txn(
                &[],
                vec![op(RequestDeleteRange(delete("a", "c", true)))],
                vec![],
            ),
            false,
        ),
        (
            txn(
                &[],
                vec![op(nested(op(RequestPut(put("a", 0, false)))))],
                vec![],
            ),
            true,
        ),
        (
            txn(
                &[],
                vec![op(nested(op(RequestPut(put("x", 0, false)))))],
                vec![],
            ),
            false,
        ),
        (
            txn(
                &[],
                vec![op(nested(op(RequestPut(put("a", 8, false)))))],
                vec![],
            ),
            false,
        ),
        (txn(&[], vec![RequestOp { request: None }], vec![]), true),
        // Not checked when applied.
        (
            request(|r| r.compaction = Some(CompactionRequest::default())),
            true,
        ),
        (
            request(|r| r.lease_grant = Some(LeaseGrantRequest::default())),
            true,
        ),
        (
            request(|r| r.lease_checkpoint = Some(LeaseCheckpointRequest::default())),
            true,
        ),
        (request(|r| r.alarm = Some(AlarmRequest::default())), true),
        (authenticate("u"), true),
    ];
    for (request, permitted) in cases {
        let outcome = bench.check("u", revision, request.clone());
        let expected = if permitted {
            Ok(())
        } else {
            Err(PermissionDenied)
        };
        assert_eq!(outcome, expected, "{request:?}");
        assert_eq!(bench.check("root", revision, request), Ok(()));
    }
}

#[test]
fn callers_table() {
    let mut bench = Bench::enabled();
    let revision = bench.auth.revision();
    let write = || request(|r| r.put = Some(put("a", 0, false)));
    let list = || request(|r| r.auth_user_list = Some(AuthUserListRequest {}));
    let user = |name: &str| {
        let name = name.to_owned().into();
        request(|r| r.auth_user_get = Some(AuthUserGetRequest { name }))
    };
    let role = |role: &str| {
        let role = role.to_owned().into();
        request(|r| r.auth_role_get = Some(AuthRoleGetRequest { role }))
    };
    // (name, auth revision, request, outcome)
    let cases = [
        ("u", revision, write(), Ok(())),
        ("u", revision + 1, write(), Ok(())),
        ("u", revision - 1, write(), Err(AuthOldRevision)),
        ("u", 0, write(), Err(UserEmpty)),
        ("", revision, write(), Err(PermissionDenied)),
        ("x", revision, write(), Err(PermissionDenied)),
        ("root", revision - 1, write(), Err(AuthOldRevision)),
        // Administration does not look at the revision.
        ("root", 1, list(), Ok(())),
        ("root", 0, list(), Ok(())),
        ("u", revision, list(), Err(PermissionDenied)),
        ("x", revision, list(), Err(UserNotFound)),
        ("", 0, list(), Err(UserEmpty)),
        ("u", revision, user("u"), Ok(())),
        ("u", revision, user("root"), Err(PermissionDenied)),
        ("root", revision, user("u"), Ok(())),
        ("u", revision, role("r"), Ok(())),
        ("u", revision, role("other"), Err(PermissionDenied)),
        ("", 0, role("r"), Err(UserEmpty)),
        ("root", revision, role("other"), Ok(())),
    ];
    for (name, revision, request, outcome) in cases {
        assert_eq!(
            bench.check(name, revision, request.clone()),
            outcome,
            "{name} {request:?}"
        );
    }
    let admin_only = [
        enable(),
        disable(),
        user_add("x"),
        user_delete("x"),
        change_password("x", ""),
        grant_role("x", "r"),
        revoke_role("x", "r"),
        role_add("x"),
        role_delete("x"),
        grant("r", "a", "", Type::Read),
        revoke("r", "a", ""),
        list(),
        request(|r| r.auth_role_list = Some(AuthRoleListRequest {})),
        request(|r| r.auth_status = Some(AuthStatusRequest {})),
    ];
    for request in &admin_only {
        assert_eq!(
            bench.check("u", revision, request.clone()),
            Err(PermissionDenied),
            "{request:?}"
        );
        assert_eq!(bench.check("root", revision, request.clone()), Ok(()));
    }
    assert_eq!(
        bench.auth.check(None, &write(), &|_| Vec::new()),
        Err(UserEmpty)
    );
    let (b, one) = (Bytes::from_static(b"b"), Bytes::new());
    assert_eq!(bench.auth.check_range(b"u", revision, &b, &one), Ok(()));
    assert_eq!(bench.auth.check_range(b"u", 0, &b, &one), Err(UserEmpty));
    bench.ok(disable());
    for request in admin_only {
        assert_eq!(bench.check("", 0, request), Ok(()));
    }
}

#[test]
fn permissions_follow_every_change_and_a_clone_does_not() {
    let mut bench = Bench::enabled();
    let before = bench.auth.clone();
    let may = |auth: &AuthStore| {
        let (b, one) = (Bytes::from_static(b"b"), Bytes::new());
        auth.check_range(b"u", auth.revision(), &b, &one).is_ok()
    };
    assert!(may(&bench.auth));
    bench.ok(revoke("r", "b", ""));
    assert!(!may(&bench.auth) && may(&before));
    bench.ok(grant("r", "b", "", Type::Read));
    assert!(may(&bench.auth) && may(&bench.reloaded()));
    bench.ok(revoke_role("u", "r"));
    assert!(!may(&bench.auth));
    bench.ok(grant_role("u", "r"));
    bench.ok(role_delete("r"));
    assert!(!may(&bench.auth));
    bench.ok(user_delete("u"));
    assert!(!may(&bench.auth) && may(&before));
}
