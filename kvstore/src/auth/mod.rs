//! Users, roles and permissions, as replicated state.
//!
//! This module holds the state and its rows; `apply` the requests that change it, `check` what a request needs,
//! `ranges` the arithmetic on key ranges, `password` the hashing. Tokens are not kept here.
//!
//! Names are bytes: members up to 3.6 take any from their clients, text or not, and log them.
//!
//! Invariant: the state changes only through applied requests, every change raises the revision except turning auth
//! on, and every member answers every request the same (etcd: server/auth/store.go).

mod apply;
mod check;
mod password;
mod ranges;

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

use bytes::Bytes;
use prost::Message;

use self::ranges::UserRanges;
use crate::{
    backend::{BackendError, Batch, Bucket, View, WHOLE},
    pb::authpb::{Role, User},
};

/// The user without whom auth cannot be on.
const ROOT_USER: &str = "root";
/// The role that may do everything.
const ROOT_ROLE: &str = "root";

const ENABLED: &[u8] = b"authEnabled";
const REVISION: &[u8] = b"authRevision";

/// The auth state. A clone shares everything until one of them changes.
#[derive(Clone, Debug, Default)]
pub struct AuthStore {
    enabled: bool,
    revision: u64,
    users: Arc<BTreeMap<Bytes, User>>,
    roles: Arc<BTreeMap<Bytes, Role>>,
    /// What each user may do, from the two above.
    ranges: Arc<HashMap<Bytes, UserRanges>>,
}

impl AuthStore {
    /// Reads the buckets `auth`, `authUsers` and `authRoles`.
    pub fn load(view: &dyn View) -> Result<AuthStore, BackendError> {
        let mut store = AuthStore {
            enabled: view.get(Bucket::Auth, ENABLED)?.as_deref() == Some(&[1]),
            revision: match view.get(Bucket::Auth, REVISION)? {
                Some(row) => u64::from_be_bytes(row.as_slice().try_into().map_err(|_| {
                    BackendError::Damaged(format!("the auth revision is {row:02x?}"))
                })?),
                None => 0,
            },
            users: Arc::new(load_rows(view, Bucket::AuthUsers)?),
            roles: Arc::new(load_rows(view, Bucket::AuthRoles)?),
            ranges: Arc::default(),
        };
        store.refresh();
        Ok(store)
    }

    /// Gives a store that was never used its first revision, as every member does when it first starts.
    pub fn ensure_initialised(&mut self, batch: &mut Batch) {
        if self.revision == 0 {
            self.commit_revision(batch);
        }
    }

    /// Whether auth is on.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// How often the state was changed; a request that was checked under an older one is refused.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The user of that name.
    pub fn user(&self, name: impl AsRef<[u8]>) -> Option<&User> {
        self.users.get(name.as_ref())
    }

    /// The role of that name.
    pub fn role(&self, name: impl AsRef<[u8]>) -> Option<&Role> {
        self.roles.get(name.as_ref())
    }

    fn commit_revision(&mut self, batch: &mut Batch) {
        self.revision += 1;
        batch.put(Bucket::Auth, REVISION, self.revision.to_be_bytes().to_vec());
    }

    fn set_enabled(&mut self, enabled: bool, batch: &mut Batch) {
        self.enabled = enabled;
        batch.put(Bucket::Auth, ENABLED, vec![u8::from(enabled)]);
    }

    fn put_user(&mut self, user: User, batch: &mut Batch) {
        batch.put(Bucket::AuthUsers, user.name.clone(), user.encode_to_vec());
        Arc::make_mut(&mut self.users).insert(user.name.clone(), user);
    }

    fn put_role(&mut self, role: Role, batch: &mut Batch) {
        batch.put(Bucket::AuthRoles, role.name.clone(), role.encode_to_vec());
        Arc::make_mut(&mut self.roles).insert(role.name.clone(), role);
    }

    /// Works out anew what every user may do.
    fn refresh(&mut self) {
        let ranges = |user: &User| {
            let roles = user.roles.iter().filter_map(|role| self.role(role));
            UserRanges::new(roles.flat_map(|role| &role.key_permission))
        };
        let all = self
            .users
            .iter()
            .map(|(name, user)| (name.clone(), ranges(user)));
        self.ranges = Arc::new(all.collect());
    }
}

fn has_root_role(user: &User) -> bool {
    user.roles.iter().any(|role| role == ROOT_ROLE)
}

fn load_rows<M: Message + Default>(
    view: &dyn View,
    bucket: Bucket,
) -> Result<BTreeMap<Bytes, M>, BackendError> {
    let mut rows = BTreeMap::new();
    let mut damaged = None;
    view.scan(bucket, WHOLE, &mut |key, value| match M::decode(value) {
        Ok(row) => {
            rows.insert(Bytes::copy_from_slice(key), row);
            ControlFlow::Continue(())
        }
        Err(error) => {
            let key = String::from_utf8_lossy(key);
            damaged = Some(format!("{}/{key}: {error}", bucket.name()));
            ControlFlow::Break(())
        }
    })?;
    damaged.map_or(Ok(rows), |reason| Err(BackendError::Damaged(reason)))
}

#[cfg(test)]
mod tests;
