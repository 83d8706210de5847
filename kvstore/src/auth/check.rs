//! What a request needs: permissions on its keys, or to be an administrator.
//!
//! Every member makes these checks when it applies an entry, on the name and auth revision in the entry's header, so
//! they decide alike (etcd: server/etcdserver/apply/apply_auth.go; server/auth/store.go).

use bytes::Bytes;

use super::{AuthStore, has_root_role, ranges::UserRanges};
use crate::{
    error::ApplyError,
    pb::etcdserverpb::{
        DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestHeader, RequestOp, TxnRequest,
        request_op::Request,
    },
};

/// The keys attached to a lease.
pub type LeaseKeys<'a> = dyn Fn(i64) -> Vec<Bytes> + 'a;

/// Who asks, under which auth revision that was established.
#[derive(Clone, Copy, Debug, Default)]
struct Caller<'a> {
    username: &'a [u8],
    revision: u64,
}

/// What is to be done with keys.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

impl AuthStore {
    /// Whether the request may be applied. `lease_keys` yields the keys attached to a lease.
    pub fn check(
        &self,
        header: Option<&RequestHeader>,
        request: &InternalRaftRequest,
        lease_keys: &LeaseKeys<'_>,
    ) -> Result<(), ApplyError> {
        if !self.enabled {
            return Ok(());
        }
        let caller = header.map_or_else(Caller::default, |header| Caller {
            username: &header.username,
            revision: header.auth_revision,
        });
        let check = Check {
            auth: self,
            caller,
            lease_keys,
        };
        if needs_admin(request) {
            self.check_admin(caller.username)?;
        }
        check.keys_of(request)?;
        if let Some(get) = &request.auth_user_get
            && get.name != caller.username
        {
            self.check_admin(caller.username)?;
        }
        if let Some(get) = &request.auth_role_get
            && !self.has_role(caller.username, &get.role)
        {
            self.check_admin(caller.username)?;
        }
        Ok(())
    }

    /// Whether a user may read a range now, for reads that do not go through the log. `auth_revision` is the one
    /// under which the user was established; 0 if nobody was.
    pub fn check_range(
        &self,
        username: &[u8],
        auth_revision: u64,
        key: &Bytes,
        range_end: &Bytes,
    ) -> Result<(), ApplyError> {
        let caller = Caller {
            username,
            revision: auth_revision,
        };
        self.check_keys(caller, key, range_end, Access::Read)
    }

    /// Whether a transaction may be executed now, for those that do not go through the log.
    pub fn check_txn(
        &self,
        username: &[u8],
        auth_revision: u64,
        txn: &TxnRequest,
        lease_keys: &LeaseKeys<'_>,
    ) -> Result<(), ApplyError> {
        let caller = Caller {
            username,
            revision: auth_revision,
        };
        let check = Check {
            auth: self,
            caller,
            lease_keys,
        };
        check.txn(txn)
    }

    /// Whether a user is an administrator. The revision under which that was established does not matter.
    pub fn check_admin(&self, username: &[u8]) -> Result<(), ApplyError> {
        if !self.enabled {
            return Ok(());
        }
        if username.is_empty() {
            return Err(ApplyError::UserEmpty);
        }
        let user = self.user(username).ok_or(ApplyError::UserNotFound)?;
        if has_root_role(user) {
            Ok(())
        } else {
            Err(ApplyError::PermissionDenied)
        }
    }

    fn has_role(&self, username: &[u8], role: &Bytes) -> bool {
        self.user(username)
            .is_some_and(|user| user.roles.iter().any(|held| held == role))
    }

    fn check_keys(
        &self,
        caller: Caller<'_>,
        key: &Bytes,
        range_end: &Bytes,
        access: Access,
    ) -> Result<(), ApplyError> {
        if !self.enabled {
            return Ok(());
        }
        if caller.revision == 0 {
            return Err(ApplyError::UserEmpty);
        }
        if caller.revision < self.revision {
            return Err(ApplyError::AuthOldRevision);
        }
        let user = self
            .user(caller.username)
            .ok_or(ApplyError::PermissionDenied)?;
        if has_root_role(user) {
            return Ok(());
        }
        let permits = |ranges: &UserRanges| {
            let ranges = match access {
                Access::Read => &ranges.read,
                Access::Write => &ranges.write,
            };
            ranges.contain(key, range_end)
        };
        let permitted = self.ranges.get(caller.username).is_some_and(permits);
        if permitted {
            Ok(())
        } else {
            Err(ApplyError::PermissionDenied)
        }
    }
}

struct Check<'a> {
    auth: &'a AuthStore,
    caller: Caller<'a>,
    lease_keys: &'a LeaseKeys<'a>,
}

impl Check<'_> {
    fn keys_of(&self, request: &InternalRaftRequest) -> Result<(), ApplyError> {
        if let Some(range) = &request.range {
            self.read(&range.key, &range.range_end)
        } else if let Some(put) = &request.put {
            self.put(put)
        } else if let Some(delete) = &request.delete_range {
            self.delete(delete)
        } else if let Some(txn) = &request.txn {
            self.txn(txn)
        } else if let Some(revoke) = &request.lease_revoke {
            self.lease(revoke.id)
        } else {
            Ok(())
        }
    }

    fn read(&self, key: &Bytes, range_end: &Bytes) -> Result<(), ApplyError> {
        self.auth
            .check_keys(self.caller, key, range_end, Access::Read)
    }

    fn write(&self, key: &Bytes, range_end: &Bytes) -> Result<(), ApplyError> {
        self.auth
            .check_keys(self.caller, key, range_end, Access::Write)
    }

    fn put(&self, put: &PutRequest) -> Result<(), ApplyError> {
        let one = Bytes::new();
        self.write(&put.key, &one)?;
        // A lease that holds keys of others must not be taken over: its holder could not revoke it any more.
        self.lease(put.lease)?;
        if put.prev_kv {
            self.read(&put.key, &one)
        } else {
            Ok(())
        }
    }

    fn delete(&self, delete: &DeleteRangeRequest) -> Result<(), ApplyError> {
        self.write(&delete.key, &delete.range_end)?;
        if delete.prev_kv {
            self.read(&delete.key, &delete.range_end)
        } else {
            Ok(())
        }
    }

    /// Both branches are checked, whichever will be taken. The depth is bounded by the decoder of the request.
    fn txn(&self, txn: &TxnRequest) -> Result<(), ApplyError> {
        for compare in &txn.compare {
            self.read(&compare.key, &compare.range_end)?;
        }
        for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
            match request {
                Some(Request::RequestRange(range)) => self.read(&range.key, &range.range_end)?,
                Some(Request::RequestPut(put)) => self.put(put)?,
                Some(Request::RequestDeleteRange(delete)) => self.delete(delete)?,
                Some(Request::RequestTxn(nested)) => self.txn(nested)?,
                None => {}
            }
        }
        Ok(())
    }

    fn lease(&self, lease: i64) -> Result<(), ApplyError> {
        if lease == 0 || self.auth.check_admin(self.caller.username).is_ok() {
            return Ok(());
        }
        let keys = (self.lease_keys)(lease);
        keys.iter()
            .try_for_each(|key| self.write(key, &Bytes::new()))
    }
}

/// Requests only an administrator may make.
fn needs_admin(request: &InternalRaftRequest) -> bool {
    request.auth_enable.is_some()
        || request.auth_disable.is_some()
        || request.auth_status.is_some()
        || request.auth_user_add.is_some()
        || request.auth_user_delete.is_some()
        || request.auth_user_change_password.is_some()
        || request.auth_user_grant_role.is_some()
        || request.auth_user_revoke_role.is_some()
        || request.auth_user_list.is_some()
        || request.auth_role_add.is_some()
        || request.auth_role_grant_permission.is_some()
        || request.auth_role_revoke_permission.is_some()
        || request.auth_role_delete.is_some()
        || request.auth_role_list.is_some()
}
