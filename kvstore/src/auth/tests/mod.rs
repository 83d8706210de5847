//! The auth rules as a client of the log meets them: requests go in, answers and rows come out.

mod checks;

use prost::Message;

use super::*;
use crate::{
    backend::{Backend, memory::MemoryBackend},
    error::ApplyError::{self, *},
    pb::{
        authpb::{Permission, UserAddOptions, permission::Type},
        etcdserverpb::*,
    },
    response::Response,
};

type Outcome = Result<Response, ApplyError>;

/// A store and the backend its rows go to.
#[derive(Default)]
struct Bench {
    auth: AuthStore,
    backend: MemoryBackend,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::default();
        let mut batch = Batch::default();
        bench.auth.ensure_initialised(&mut batch);
        bench.backend.commit(&batch).unwrap();
        bench
    }

    /// Two users: root, who may do everything, and u with role r, which may write [a, c) and read b.
    fn enabled() -> Bench {
        let mut bench = Bench::new();
        for name in ["root", "u"] {
            bench.ok(user_add(name));
        }
        bench.ok(grant_role("root", "root"));
        bench.ok(role_add("r"));
        bench.ok(grant("r", "a", "c", Type::Write));
        bench.ok(grant("r", "b", "", Type::Read));
        bench.ok(grant_role("u", "r"));
        bench.ok(enable());
        bench
    }

    fn apply(&mut self, request: InternalRaftRequest) -> Outcome {
        let mut batch = Batch::default();
        let outcome = self
            .auth
            .apply(&request, 42, &mut batch)
            .expect("an auth request");
        if outcome.is_err() {
            assert!(
                batch.is_empty(),
                "a refused request wrote rows: {request:?}"
            );
        }
        self.backend.commit(&batch).unwrap();
        outcome
    }

    fn ok(&mut self, request: InternalRaftRequest) -> Response {
        self.apply(request).unwrap()
    }

    /// What is read back from the backend.
    fn reloaded(&self) -> AuthStore {
        AuthStore::load(&*self.backend.view().unwrap()).unwrap()
    }

    fn check(
        &self,
        username: &str,
        revision: u64,
        request: InternalRaftRequest,
    ) -> Result<(), ApplyError> {
        let header = RequestHeader {
            id: 1,
            username: username.to_owned().into(),
            auth_revision: revision,
        };
        let lease_keys = |lease| match lease {
            7 => vec![Bytes::from_static(b"b")],
            8 => vec![Bytes::from_static(b"b"), Bytes::from_static(b"x")],
            _ => Vec::new(),
        };
        self.auth.check(Some(&header), &request, &lease_keys)
    }
}

fn request(fill: impl FnOnce(&mut InternalRaftRequest)) -> InternalRaftRequest {
    let mut request = InternalRaftRequest {
        id: 77,
        ..Default::default()
    };
    fill(&mut request);
    request
}

fn user_add(name: &str) -> InternalRaftRequest {
    request(|r| {
        r.auth_user_add = Some(AuthUserAddRequest {
            name: name.to_owned().into(),
            hashed_password: "JDJhJA==".into(),
            ..Default::default()
        })
    })
}

fn user_delete(name: &str) -> InternalRaftRequest {
    request(|r| {
        r.auth_user_delete = Some(AuthUserDeleteRequest {
            name: name.to_owned().into(),
        })
    })
}

fn role_add(name: &str) -> InternalRaftRequest {
    request(|r| {
        r.auth_role_add = Some(AuthRoleAddRequest {
            name: name.to_owned().into(),
        })
    })
}

fn role_delete(role: &str) -> InternalRaftRequest {
    request(|r| {
        r.auth_role_delete = Some(AuthRoleDeleteRequest {
            role: role.to_owned().into(),
        })
    })
}

fn grant_role(user: &str, role: &str) -> InternalRaftRequest {
    let (user, role) = (user.to_owned().into(), role.to_owned().into());
    request(|r| r.auth_user_grant_role = Some(AuthUserGrantRoleRequest { user, role }))
}

fn revoke_role(name: &str, role: &str) -> InternalRaftRequest {
    let (name, role) = (name.to_owned().into(), role.to_owned().into());
    request(|r| r.auth_user_revoke_role = Some(AuthUserRevokeRoleRequest { name, role }))
}

fn grant(role: &str, key: &'static str, end: &'static str, kind: Type) -> InternalRaftRequest {
    let perm = Permission {
        perm_type: kind as i32,
        key: key.into(),
        range_end: end.into(),
    };
    request(|r| {
        r.auth_role_grant_permission = Some(AuthRoleGrantPermissionRequest {
            name: role.to_owned().into(),
            perm: Some(perm),
        })
    })
}

fn revoke(role: &str, key: &'static str, end: &'static str) -> InternalRaftRequest {
    request(|r| {
        r.auth_role_revoke_permission = Some(AuthRoleRevokePermissionRequest {
            role: role.to_owned().into(),
            key: key.into(),
            range_end: end.into(),
        })
    })
}

fn enable() -> InternalRaftRequest {
    request(|r| r.auth_enable = Some(AuthEnableRequest {}))
}

fn disable() -> InternalRaftRequest {
    request(|r| r.auth_disable = Some(AuthDisableRequest {}))
}

fn change_password(name: &str, hashed: &str) -> InternalRaftRequest {
    request(|r| {
        r.auth_user_change_password = Some(AuthUserChangePasswordRequest {
            name: name.to_owned().into(),
            hashed_password: hashed.to_owned().into(),
            ..Default::default()
        })
    })
}

fn authenticate(name: &str) -> InternalRaftRequest {
    request(|r| {
        r.authenticate = Some(InternalAuthenticateRequest {
            name: name.to_owned().into(),
            simple_token: "abcdefghijklmnop".into(),
            ..Default::default()
        })
    })
}

#[test]
fn revisions_as_observed_in_etcd() {
    let mut bench = Bench::new();
    assert_eq!(bench.auth.revision(), 1);
    for change in [
        user_add("root"),
        user_add("u"),
        role_add("r"),
        grant("r", "a", "", Type::Read),
        grant_role("u", "r"),
        grant_role("root", "root"),
    ] {
        bench.ok(change);
    }
    assert_eq!(bench.auth.revision(), 7);
    bench.ok(enable());
    bench.ok(enable());
    assert_eq!((bench.auth.revision(), bench.auth.enabled()), (7, true));
    bench.ok(disable());
    bench.ok(disable());
    assert_eq!((bench.auth.revision(), bench.auth.enabled()), (8, false));
    let loaded = bench.reloaded();
    assert_eq!((loaded.revision(), loaded.enabled()), (8, false));
}

#[test]
fn refusals() {
    let mut bench = Bench::new();
    assert_eq!(bench.apply(enable()), Err(RootUserNotExist));
    bench.ok(user_add("root"));
    assert_eq!(bench.apply(enable()), Err(RootRoleNotExist));
    bench.ok(grant_role("root", "root"));
    bench.ok(role_add("root"));
    bench.ok(role_add("r"));
    let cases = [
        (user_add(""), UserEmpty),
        (user_add("root"), UserExists),
        (user_delete("x"), UserNotFound),
        (change_password("x", ""), UserNotFound),
        (change_password("root", "%%"), AuthFailed),
        (grant_role("x", "r"), UserNotFound),
        (grant_role("root", "x"), RoleNotFound),
        (revoke_role("x", "r"), UserNotFound),
        (revoke_role("root", "r"), RoleNotGranted),
        (role_add(""), RoleEmpty),
        (role_add("r"), RoleExists),
        (role_delete("x"), RoleNotFound),
        (grant("x", "a", "", Type::Read), RoleNotFound),
        (grant("r", "", "", Type::Read), InvalidAuthManagement),
        (grant("r", "b", "a", Type::Read), InvalidAuthManagement),
        (revoke("x", "a", ""), RoleNotFound),
        (revoke("r", "a", ""), PermissionNotGranted),
        (authenticate("root"), AuthNotEnabled),
        (
            request(|r| r.auth_user_get = Some(AuthUserGetRequest { name: "x".into() })),
            UserNotFound,
        ),
        (
            request(|r| r.auth_role_get = Some(AuthRoleGetRequest { role: "x".into() })),
            RoleNotFound,
        ),
        (
            request(|r| {
                let name = "r".into();
                let perm = None;
                r.auth_role_grant_permission = Some(AuthRoleGrantPermissionRequest { name, perm })
            }),
            PermissionNotGiven,
        ),
    ];
    let revision = bench.auth.revision();
    for (request, error) in cases {
        assert_eq!(bench.apply(request.clone()), Err(error), "{request:?}");
    }
    bench.ok(enable());
    for request in [
        user_delete("root"),
        role_delete("root"),
        revoke_role("root", "root"),
    ] {
        assert_eq!(bench.apply(request), Err(InvalidAuthManagement));
    }
    assert_eq!(bench.apply(authenticate("x")), Err(AuthFailed));
    assert_eq!(bench.auth.revision(), revision);
    bench.ok(disable());
    for request in [
        revoke_role("root", "root"),
        role_delete("root"),
        user_delete("root"),
    ] {
        bench.ok(request);
    }
}

#[test]
fn rows_are_etcds() {
    let mut bench = Bench::new();
    bench.ok(user_add("u"));
    bench.ok(role_add("r"));
    bench.ok(grant("r", "k", "", Type::Readwrite));
    bench.ok(grant_role("u", "r"));
    let view = bench.backend.view().unwrap();
    let row = |bucket, key: &str| view.get(bucket, key.as_bytes()).unwrap();
    let user = b"\x0a\x01u\x12\x04$2a$\x1a\x01r\x22\x00";
    assert_eq!(row(Bucket::AuthUsers, "u").as_deref(), Some(&user[..]));
    let role = b"\x0a\x01r\x12\x05\x08\x02\x12\x01k";
    assert_eq!(row(Bucket::AuthRoles, "r").as_deref(), Some(&role[..]));
    assert_eq!(
        row(Bucket::Auth, "authRevision"),
        Some(5u64.to_be_bytes().to_vec())
    );
    assert_eq!(row(Bucket::Auth, "authEnabled"), None);
}

#[test]
fn lists_are_sorted_and_a_repeated_grant_changes_nothing() {
    let mut bench = Bench::new();
    for name in ["v", "root", "u"] {
        bench.ok(user_add(name));
    }
    for name in ["s", "r"] {
        bench.ok(role_add(name));
        bench.ok(grant_role("u", name));
    }
    let revision = bench.auth.revision();
    bench.ok(grant_role("u", "r"));
    assert_eq!(bench.auth.revision(), revision);
    let Response::AuthUserGet(user) = bench.ok(request(|r| {
        r.auth_user_get = Some(AuthUserGetRequest { name: "u".into() })
    })) else {
        panic!("another response")
    };
    assert_eq!(user.roles, ["r", "s"]);
    assert_eq!(user.header.unwrap().revision, 42);
    let Response::AuthUserList(list) =
        bench.ok(request(|r| r.auth_user_list = Some(AuthUserListRequest {})))
    else {
        panic!("another response")
    };
    assert_eq!(list.users, ["root", "u", "v"]);
    bench.ok(role_delete("r"));
    assert_eq!(bench.auth.user("u").unwrap().roles, ["s"]);
    assert_eq!(bench.reloaded().user("u").unwrap().roles, ["s"]);
}

#[test]
fn permissions_of_a_role_are_sorted_and_replaced() {
    let mut bench = Bench::new();
    bench.ok(role_add("r"));
    bench.ok(role_add("root"));
    for (key, end) in [("m", ""), ("a", "c"), ("z", "")] {
        bench.ok(grant("r", key, end, Type::Read));
    }
    bench.ok(grant("r", "m", "", Type::Write));
    let get = |bench: &mut Bench, role: &str| {
        let role = role.to_owned().into();
        match bench.ok(request(|r| {
            r.auth_role_get = Some(AuthRoleGetRequest { role })
        })) {
            Response::AuthRoleGet(role) => role.perm,
            other => panic!("{other:?}"),
        }
    };
    let permissions = get(&mut bench, "r");
    let keys: Vec<_> = permissions
        .iter()
        .map(|permission| &permission.key[..])
        .collect();
    assert_eq!(keys, [b"a", b"m", b"z"]);
    assert_eq!(permissions[1].perm_type, Type::Write as i32);
    bench.ok(revoke("r", "m", ""));
    assert_eq!(get(&mut bench, "r").len(), 2);
    let root = get(&mut bench, "root");
    assert_eq!(
        (&root[0].key[..], &root[0].range_end[..]),
        (&b""[..], &b"\0"[..])
    );
}

#[test]
fn users_without_password_cannot_log_in() {
    let mut bench = Bench::enabled();
    bench.ok(request(|r| {
        r.auth_user_add = Some(AuthUserAddRequest {
            name: "cert".into(),
            hashed_password: "JDJhJA==".into(),
            options: Some(UserAddOptions { no_password: true }),
            ..Default::default()
        })
    }));
    assert_eq!(bench.auth.user("cert").unwrap().password, "");
    assert_eq!(bench.apply(authenticate("cert")), Err(AuthFailed));
    let Response::Authenticate(answer) = bench.ok(authenticate("u")) else {
        panic!("another response")
    };
    assert_eq!(answer.token, "abcdefghijklmnop");
}

#[test]
fn a_user_row_without_options_stays_without() {
    let mut bench = Bench::new();
    let user = User {
        name: "old".into(),
        password: "x".into(),
        ..Default::default()
    };
    let mut batch = Batch::default();
    batch.put(Bucket::AuthUsers, "old", user.encode_to_vec());
    bench.backend.commit(&batch).unwrap();
    bench.auth = bench.reloaded();
    bench.ok(role_add("r"));
    bench.ok(grant_role("old", "r"));
    assert_eq!(bench.reloaded().user("old").unwrap().options, None);
}

#[test]
fn damaged_rows_are_errors() {
    for (bucket, key) in [
        (Bucket::AuthUsers, "u"),
        (Bucket::AuthRoles, "r"),
        (Bucket::Auth, "authRevision"),
    ] {
        let backend = MemoryBackend::default();
        let mut batch = Batch::default();
        batch.put(bucket, key, vec![0xff; 3]);
        backend.commit(&batch).unwrap();
        let loaded = AuthStore::load(&*backend.view().unwrap());
        assert!(
            matches!(loaded, Err(BackendError::Damaged(_))),
            "{bucket:?}"
        );
    }
}
