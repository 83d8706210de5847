//! Users and roles as other members log them.

mod common;

use std::sync::Arc;

use bytes::Bytes;
use kvstore::{
    Store,
    backend::{Backend, Bucket, memory::MemoryBackend},
    pb::etcdserverpb::{
        AuthRoleAddRequest, AuthUserGetRequest, AuthUserGrantRoleRequest, InternalRaftRequest,
    },
};

use common::{Log, config};

/// Members up to 3.6 take such names from anybody, as long as auth is off.
#[test]
fn names_need_not_be_text() {
    let backend = Arc::new(MemoryBackend::default());
    let mut log = Log::on(backend.clone());
    let (user, role) = (
        Bytes::from_static(b"\xffu"),
        Bytes::from_static(b"r\xc0\x80"),
    );
    // The addition of a user as a member of 3.6 logs it: header, and {name, hashed password}.
    let add = b"\xa2\x06\x02\x08\x07\xe2\x44\x0e\x0a\x02\xffu\x22\x08JDJhJA==";
    let added = log.try_apply_bytes(Bytes::from_static(add)).unwrap();
    assert!(added.outcome.is_ok(), "{:?}", added.outcome);
    log.ok(InternalRaftRequest {
        auth_role_add: Some(AuthRoleAddRequest { name: role.clone() }),
        ..Default::default()
    });
    log.ok(InternalRaftRequest {
        auth_user_grant_role: Some(AuthUserGrantRoleRequest {
            user: user.clone(),
            role: role.clone(),
        }),
        ..Default::default()
    });
    log.ok(InternalRaftRequest {
        auth_user_get: Some(AuthUserGetRequest { name: user.clone() }),
        ..Default::default()
    });
    log.store.close().unwrap();

    let row = backend.view().unwrap().get(Bucket::AuthUsers, &user);
    let expected = b"\x0a\x02\xffu\x12\x04$2a$\x1a\x03r\xc0\x80\x22\x00";
    assert_eq!(row.unwrap().unwrap(), expected);
    let again = Store::open_on(config(), backend).unwrap();
    let auth = again.reader().auth();
    assert_eq!(auth.user(&user).unwrap().roles, [role]);
}
