//! The requests that read and change the auth state, as they come out of the log.
//!
//! etcd: server/auth/store.go, the methods of `authStore`; server/etcdserver/apply/apply.go. The checks of who may do
//! this are made before (`check`).

use bytes::Bytes;

use super::{AuthStore, ROOT_ROLE, ROOT_USER, has_root_role, password, ranges};
use crate::{
    backend::{Batch, Bucket},
    error::ApplyError,
    pb::{
        authpb::{Permission, Role, User, permission::Type},
        etcdserverpb::{
            AuthDisableResponse, AuthEnableResponse, AuthRoleAddRequest, AuthRoleAddResponse,
            AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest, AuthRoleGetResponse,
            AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse, AuthRoleListResponse,
            AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusResponse,
            AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
            AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
            AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest,
            AuthUserGrantRoleResponse, AuthUserListResponse, AuthUserRevokeRoleRequest,
            AuthUserRevokeRoleResponse, AuthenticateResponse, InternalAuthenticateRequest,
            InternalRaftRequest, ResponseHeader,
        },
    },
    response::Response,
};

type Done = Result<(), ApplyError>;

impl AuthStore {
    /// Carries out the auth request in `request`; `None` if it holds none. `revision` is the store's, for the header
    /// of the answer.
    ///
    /// The token of an `Authenticate` answer is the prefix its proposer chose: the full token, which every member
    /// knows from then on, is that, a dot and the index of the entry.
    pub fn apply(
        &mut self,
        request: &InternalRaftRequest,
        revision: i64,
        batch: &mut Batch,
    ) -> Option<Result<Response, ApplyError>> {
        let header = Some(ResponseHeader {
            revision,
            ..Default::default()
        });
        self.read(request, header)
            .or_else(|| self.switch(request, header, batch))
            .or_else(|| self.change_users(request, header, batch))
            .or_else(|| self.change_roles(request, header, batch))
    }

    fn read(
        &self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
    ) -> Option<Result<Response, ApplyError>> {
        if let Some(request) = &request.authenticate {
            let token = self.authenticate(request);
            return Some(
                token.map(|token| Response::Authenticate(AuthenticateResponse { header, token })),
            );
        }
        if request.auth_status.is_some() {
            return Some(Ok(Response::AuthStatus(AuthStatusResponse {
                header,
                enabled: self.enabled,
                auth_revision: self.revision,
            })));
        }
        if let Some(AuthUserGetRequest { name }) = &request.auth_user_get {
            let user = self.user(name).ok_or(ApplyError::UserNotFound);
            return Some(user.map(|user| {
                let roles = user.roles.clone();
                Response::AuthUserGet(AuthUserGetResponse { header, roles })
            }));
        }
        if request.auth_user_list.is_some() {
            let users = self.users.keys().cloned().collect();
            return Some(Ok(Response::AuthUserList(AuthUserListResponse {
                header,
                users,
            })));
        }
        if let Some(AuthRoleGetRequest { role }) = &request.auth_role_get {
            return Some(
                self.permissions_of(role)
                    .map(|perm| Response::AuthRoleGet(AuthRoleGetResponse { header, perm })),
            );
        }
        if request.auth_role_list.is_some() {
            let roles = self.roles.keys().cloned().collect();
            return Some(Ok(Response::AuthRoleList(AuthRoleListResponse {
                header,
                roles,
            })));
        }
        None
    }

    fn switch(
        &mut self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
        batch: &mut Batch,
    ) -> Option<Result<Response, ApplyError>> {
        if request.auth_enable.is_some() {
            let done = self.enable(batch);
            return Some(done.map(|()| Response::AuthEnable(AuthEnableResponse { header })));
        }
        if request.auth_disable.is_some() {
            self.disable(batch);
            return Some(Ok(Response::AuthDisable(AuthDisableResponse { header })));
        }
        None
    }

    fn change_users(
        &mut self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
        batch: &mut Batch,
    ) -> Option<Result<Response, ApplyError>> {
        use Response::*;
        let (done, response) = if let Some(add) = &request.auth_user_add {
            let done = self.add_user(add, request_id(request), batch);
            (done, AuthUserAdd(AuthUserAddResponse { header }))
        } else if let Some(delete) = &request.auth_user_delete {
            let done = self.delete_user(delete, batch);
            (done, AuthUserDelete(AuthUserDeleteResponse { header }))
        } else if let Some(change) = &request.auth_user_change_password {
            let done = self.change_password(change, request_id(request), batch);
            (
                done,
                AuthUserChangePassword(AuthUserChangePasswordResponse { header }),
            )
        } else if let Some(grant) = &request.auth_user_grant_role {
            let done = self.grant_role(grant, batch);
            (
                done,
                AuthUserGrantRole(AuthUserGrantRoleResponse { header }),
            )
        } else if let Some(revoke) = &request.auth_user_revoke_role {
            let done = self.revoke_role(revoke, batch);
            (
                done,
                AuthUserRevokeRole(AuthUserRevokeRoleResponse { header }),
            )
        } else {
            return None;
        };
        Some(done.map(|()| response))
    }

    fn change_roles(
        &mut self,
        request: &InternalRaftRequest,
        header: Option<ResponseHeader>,
        batch: &mut Batch,
    ) -> Option<Result<Response, ApplyError>> {
        use Response::*;
        let (done, response) = if let Some(add) = &request.auth_role_add {
            let done = self.add_role(add, batch);
            (done, AuthRoleAdd(AuthRoleAddResponse { header }))
        } else if let Some(delete) = &request.auth_role_delete {
            let done = self.delete_role(delete, batch);
            (done, AuthRoleDelete(AuthRoleDeleteResponse { header }))
        } else if let Some(grant) = &request.auth_role_grant_permission {
            let done = self.grant_permission(grant, batch);
            (
                done,
                AuthRoleGrantPermission(AuthRoleGrantPermissionResponse { header }),
            )
        } else if let Some(revoke) = &request.auth_role_revoke_permission {
            let done = self.revoke_permission(revoke, batch);
            (
                done,
                AuthRoleRevokePermission(AuthRoleRevokePermissionResponse { header }),
            )
        } else {
            return None;
        };
        Some(done.map(|()| response))
    }

    /// The password was checked by the proposer; here it only matters that the user may log in at all.
    fn authenticate(&self, request: &InternalAuthenticateRequest) -> Result<Bytes, ApplyError> {
        if !self.enabled {
            return Err(ApplyError::AuthNotEnabled);
        }
        match self.user(&request.name) {
            Some(user) if !has_no_password(user) => Ok(request.simple_token.clone()),
            _ => Err(ApplyError::AuthFailed),
        }
    }

    fn permissions_of(&self, role: &Bytes) -> Result<Vec<Permission>, ApplyError> {
        let found = self.role(role).ok_or(ApplyError::RoleNotFound)?;
        if role == ROOT_ROLE {
            return Ok(vec![Permission {
                perm_type: Type::Readwrite as i32,
                key: Bytes::new(),
                range_end: Bytes::from_static(&[0]),
            }]);
        }
        Ok(found.key_permission.clone())
    }

    /// Turning auth on does not raise the revision.
    fn enable(&mut self, batch: &mut Batch) -> Done {
        if self.enabled {
            return Ok(());
        }
        let root = self.user(ROOT_USER).ok_or(ApplyError::RootUserNotExist)?;
        if !has_root_role(root) {
            return Err(ApplyError::RootRoleNotExist);
        }
        self.set_enabled(true, batch);
        Ok(())
    }

    fn disable(&mut self, batch: &mut Batch) {
        if self.enabled {
            self.set_enabled(false, batch);
            self.commit_revision(batch);
        }
    }

    /// Ends a change.
    fn changed(&mut self, batch: &mut Batch) -> Done {
        self.commit_revision(batch);
        self.refresh();
        Ok(())
    }

    fn add_user(&mut self, add: &AuthUserAddRequest, id: u64, batch: &mut Batch) -> Done {
        if add.name.is_empty() {
            return Err(ApplyError::UserEmpty);
        }
        if self.user(&add.name).is_some() {
            return Err(ApplyError::UserExists);
        }
        let options = add.options.unwrap_or_default();
        let password = if options.no_password {
            Bytes::new()
        } else {
            password::select(&add.password, &add.hashed_password, (id, &add.name))?
        };
        let user = User {
            name: add.name.clone(),
            password,
            roles: Vec::new(),
            options: Some(options),
        };
        self.put_user(user, batch);
        self.changed(batch)
    }

    fn delete_user(&mut self, delete: &AuthUserDeleteRequest, batch: &mut Batch) -> Done {
        if self.enabled && delete.name == ROOT_USER {
            return Err(ApplyError::InvalidAuthManagement);
        }
        let users = std::sync::Arc::make_mut(&mut self.users);
        let user = users.remove(&delete.name).ok_or(ApplyError::UserNotFound)?;
        batch.delete(Bucket::AuthUsers, user.name);
        self.changed(batch)
    }

    fn change_password(
        &mut self,
        change: &AuthUserChangePasswordRequest,
        id: u64,
        batch: &mut Batch,
    ) -> Done {
        let user = self.user(&change.name).ok_or(ApplyError::UserNotFound)?;
        let password = if has_no_password(user) {
            Bytes::new()
        } else {
            password::select(
                &change.password,
                &change.hashed_password,
                (id, &change.name),
            )?
        };
        let user = User {
            password,
            ..user.clone()
        };
        self.put_user(user, batch);
        self.changed(batch)
    }

    fn grant_role(&mut self, grant: &AuthUserGrantRoleRequest, batch: &mut Batch) -> Done {
        let user = self.user(&grant.user).ok_or(ApplyError::UserNotFound)?;
        // Role root need not exist to be granted.
        if grant.role != ROOT_ROLE && self.role(&grant.role).is_none() {
            return Err(ApplyError::RoleNotFound);
        }
        let Err(place) = user.roles.binary_search(&grant.role) else {
            return Ok(());
        };
        let mut user = user.clone();
        user.roles.insert(place, grant.role.clone());
        self.put_user(user, batch);
        self.changed(batch)
    }

    fn revoke_role(&mut self, revoke: &AuthUserRevokeRoleRequest, batch: &mut Batch) -> Done {
        if self.enabled && revoke.name == ROOT_USER && revoke.role == ROOT_ROLE {
            return Err(ApplyError::InvalidAuthManagement);
        }
        let user = self.user(&revoke.name).ok_or(ApplyError::UserNotFound)?;
        let user = without_role(user, &revoke.role).ok_or(ApplyError::RoleNotGranted)?;
        self.put_user(user, batch);
        self.changed(batch)
    }

    fn add_role(&mut self, add: &AuthRoleAddRequest, batch: &mut Batch) -> Done {
        if add.name.is_empty() {
            return Err(ApplyError::RoleEmpty);
        }
        if self.role(&add.name).is_some() {
            return Err(ApplyError::RoleExists);
        }
        let role = Role {
            name: add.name.clone(),
            key_permission: Vec::new(),
        };
        self.put_role(role, batch);
        self.changed(batch)
    }

    fn delete_role(&mut self, delete: &AuthRoleDeleteRequest, batch: &mut Batch) -> Done {
        if self.enabled && delete.role == ROOT_ROLE {
            return Err(ApplyError::InvalidAuthManagement);
        }
        let roles = std::sync::Arc::make_mut(&mut self.roles);
        let role = roles.remove(&delete.role).ok_or(ApplyError::RoleNotFound)?;
        batch.delete(Bucket::AuthRoles, role.name);
        let holders = self
            .users
            .values()
            .filter_map(|user| without_role(user, &delete.role));
        for user in holders.collect::<Vec<_>>() {
            self.put_user(user, batch);
        }
        self.changed(batch)
    }

    fn grant_permission(
        &mut self,
        grant: &AuthRoleGrantPermissionRequest,
        batch: &mut Batch,
    ) -> Done {
        let permission = grant.perm.as_ref().ok_or(ApplyError::PermissionNotGiven)?;
        if !ranges::is_valid(&permission.key, &permission.range_end) {
            return Err(ApplyError::InvalidAuthManagement);
        }
        let mut role = self
            .role(&grant.name)
            .ok_or(ApplyError::RoleNotFound)?
            .clone();
        let permissions = &mut role.key_permission;
        // As etcd does: of several permissions that begin with this key, only the first is compared.
        let place = permissions.partition_point(|other| other.key < permission.key);
        match permissions.get_mut(place) {
            Some(same) if same.key == permission.key && same.range_end == permission.range_end => {
                same.perm_type = permission.perm_type;
            }
            _ => {
                permissions.push(permission.clone());
                sort_permissions(permissions);
            }
        }
        self.put_role(role, batch);
        self.changed(batch)
    }

    fn revoke_permission(
        &mut self,
        revoke: &AuthRoleRevokePermissionRequest,
        batch: &mut Batch,
    ) -> Done {
        let mut role = self
            .role(&revoke.role)
            .ok_or(ApplyError::RoleNotFound)?
            .clone();
        let before = role.key_permission.len();
        role.key_permission
            .retain(|other| other.key != revoke.key || other.range_end != revoke.range_end);
        if role.key_permission.len() == before {
            return Err(ApplyError::PermissionNotGranted);
        }
        self.put_role(role, batch);
        self.changed(batch)
    }
}

/// Sorts by key after one permission was added at the end.
fn sort_permissions(permissions: &mut [Permission]) {
    permissions.sort_by(|a, b| a.key.cmp(&b.key));
}

/// The user without a role, if it holds it.
fn without_role(user: &User, role: &Bytes) -> Option<User> {
    let mut user = user.clone();
    let before = user.roles.len();
    user.roles.retain(|held| held != role);
    (user.roles.len() < before).then_some(user)
}

fn has_no_password(user: &User) -> bool {
    user.options.is_some_and(|options| options.no_password)
}

fn request_id(request: &InternalRaftRequest) -> u64 {
    match (request.id, &request.header) {
        (0, Some(header)) => header.id,
        (id, _) => id,
    }
}
