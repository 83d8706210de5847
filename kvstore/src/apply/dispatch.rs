//! Every request kind of the v3 log, and the layers around it: alarms, then auth, then the space quota.
//!
//! etcd: server/etcdserver/apply/{uber_applier,corrupt,capped,auth,quota,backend}.go. A request that a layer refuses
//! changes nothing and consumes no revision.

use super::{EntryContext, Machine};
use crate::{
    backend::Bucket,
    error::{ApplyError, FatalError},
    mvcc::{
        KeyInterval,
        compact::Job,
        keyspace::Keyspace,
        range::range,
        restore::{SCHEDULED_COMPACT, compact_row},
        txn,
        view::ReadView,
        write::WriteTxn,
    },
    pb::etcdserverpb::{
        AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, CompactionResponse,
        InternalRaftRequest, LeaseCheckpointRequest, LeaseCheckpointResponse, LeaseGrantRequest,
        LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse, ResponseHeader, TxnRequest,
        alarm_request::AlarmAction,
    },
    pb::membershippb::{ClusterMemberAttrSetRequest, DowngradeInfoSetRequest},
    quota::{LEASE_COST, cost_of_put, cost_of_txn},
    response::{Duty, Response},
    version::storage_version,
};

type Outcome = Result<Response, ApplyError>;

impl Machine {
    /// Applies a request; the name is the one etcd's metric gives the operation.
    pub(super) fn dispatch(
        &mut self,
        entry: &mut EntryContext,
        request: &InternalRaftRequest,
    ) -> Result<(&'static str, Outcome), FatalError> {
        if let Some(named) = self.cluster_request(entry, request)? {
            return Ok((named, Ok(Response::Empty)));
        }
        let op = name(request).ok_or_else(|| FatalError::UnknownRequest {
            index: entry.index,
            reason: "it holds no request this version knows".into(),
        })?;
        if let Err(error) = self
            .alarms_permit(request)
            .and_then(|()| self.auth_permits(request))
        {
            return Ok((op, Err(error)));
        }
        Ok((op, self.execute(entry, request)?))
    }

    /// Requests of the cluster itself: neither alarms nor auth hold them back.
    fn cluster_request(
        &mut self,
        entry: &mut EntryContext,
        request: &InternalRaftRequest,
    ) -> Result<Option<&'static str>, FatalError> {
        Ok(Some(if let Some(set) = &request.cluster_version_set {
            self.set_cluster_version(entry, &set.ver)?;
            "ClusterVersionSet"
        } else if let Some(set) = &request.cluster_member_attr_set {
            self.set_attributes(entry, set)?;
            "ClusterMemberAttrSet"
        } else if let Some(set) = &request.downgrade_info_set {
            self.set_downgrade(set);
            "DowngradeInfoSet"
        } else if request.downgrade_version_test.is_some() {
            "DowngradeVersionTest"
        } else {
            return Ok(None);
        }))
    }

    fn set_attributes(
        &mut self,
        entry: &EntryContext,
        set: &ClusterMemberAttrSetRequest,
    ) -> Result<(), FatalError> {
        let attributes = set.member_attributes.clone().unwrap_or_default();
        self.publish_attributes(
            entry,
            set.member_id,
            attributes.name,
            attributes.client_urls,
        )
    }

    fn set_downgrade(&mut self, set: &DowngradeInfoSetRequest) {
        let target = set.enabled.then(|| set.ver.clone());
        self.membership.set_downgrade(target, &mut self.batch);
        self.side_changed = true;
    }

    fn alarms_permit(&self, request: &InternalRaftRequest) -> Result<(), ApplyError> {
        let writes_or_reads = request.put.is_some()
            || request.range.is_some()
            || request.delete_range.is_some()
            || request.txn.is_some()
            || request.compaction.is_some()
            || request.lease_grant.is_some()
            || request.lease_revoke.is_some();
        if writes_or_reads && self.alarms.is_active(AlarmType::Corrupt) {
            return Err(ApplyError::Corrupt);
        }
        let grows = request.put.is_some()
            || request.lease_grant.is_some()
            || request.txn.as_ref().is_some_and(|txn| cost_of_txn(txn) > 0);
        if grows && self.alarms.is_active(AlarmType::Nospace) {
            return Err(ApplyError::NoSpace);
        }
        Ok(())
    }

    fn auth_permits(&self, request: &InternalRaftRequest) -> Result<(), ApplyError> {
        if !self.auth.enabled() {
            return Ok(());
        }
        let leases = self.leases.read();
        self.auth.check(request.header.as_ref(), request, &|lease| {
            leases.keys(lease)
        })
    }

    fn execute(
        &mut self,
        entry: &mut EntryContext,
        request: &InternalRaftRequest,
    ) -> Result<Outcome, FatalError> {
        if let Some(request) = &request.range {
            let view = now(&self.keyspace, self.writer.current, self.writer.compacted);
            return Ok(range(&view, request).map(Response::Range));
        }
        if let Some(request) = &request.put {
            let outcome = self.write(entry, |txn| txn::put(txn, request).map(Response::Put));
            return Ok(self.within_quota(entry, cost_of_put(request), outcome));
        }
        if let Some(request) = &request.delete_range {
            let run = |txn: &mut WriteTxn<'_>| txn::delete_range(txn, request);
            return Ok(self.write(entry, run).map(Response::DeleteRange));
        }
        if let Some(request) = &request.txn {
            let outcome = self.txn(entry, request)?;
            return Ok(self.within_quota(entry, cost_of_txn(request), outcome));
        }
        if let Some(request) = &request.compaction {
            return Ok(self.compact(entry, request).map(Response::Compaction));
        }
        if let Some(request) = &request.lease_grant {
            let outcome = self.grant(request);
            return Ok(self.within_quota(entry, LEASE_COST, outcome));
        }
        if let Some(request) = &request.lease_revoke {
            return Ok(self.revoke(entry, request));
        }
        if let Some(request) = &request.lease_checkpoint {
            return Ok(self.checkpoint(request));
        }
        if let Some(request) = &request.alarm {
            return Ok(Ok(Response::Alarm(self.alarm(request))));
        }
        let revision = self.writer.current;
        let outcome = self.auth.apply(request, revision, &mut self.batch);
        self.side_changed = true;
        outcome.ok_or_else(|| FatalError::UnknownRequest {
            index: entry.index,
            reason: "it holds no request this version knows".into(),
        })
    }

    /// Runs `run` in a write transaction.
    fn write<T>(
        &mut self,
        entry: &mut EntryContext,
        run: impl FnOnce(&mut WriteTxn<'_>) -> T,
    ) -> T {
        let mut txn = WriteTxn::begin(
            &self.keyspace,
            &mut self.writer,
            &self.leases,
            &mut self.batch,
            &mut entry.events,
        );
        let outcome = run(&mut txn);
        self.metrics.changed(&txn.end());
        outcome
    }

    fn txn(
        &mut self,
        entry: &mut EntryContext,
        request: &TxnRequest,
    ) -> Result<Outcome, FatalError> {
        let index = entry.index;
        self.write(entry, |txn| {
            let path = match txn::prepare(txn, request) {
                Ok(path) => path,
                Err(refused) => return Ok(Err(refused)),
            };
            match txn::execute(txn, &path, request) {
                Ok(response) => Ok(Ok(Response::Txn(response))),
                Err(error) => Err(FatalError::Impossible {
                    index,
                    reason: format!("a transaction failed after it was checked: {error}"),
                }),
            }
        })
    }

    /// Answers "no space" for what was executed over this member's quota, and has the alarm raised.
    fn within_quota(&self, entry: &mut EntryContext, cost: u64, outcome: Outcome) -> Outcome {
        let used = self.sizes.total();
        if outcome.is_err() || self.quota.has_room(used, cost) {
            return outcome;
        }
        if !self.alarms.is_active(AlarmType::Nospace) {
            entry.duty = Some(Duty::RaiseNoSpace);
        }
        Err(ApplyError::NoSpace)
    }

    fn compact(
        &mut self,
        entry: &mut EntryContext,
        request: &CompactionRequest,
    ) -> Result<CompactionResponse, ApplyError> {
        let (at, previous) = (request.revision, self.writer.compacted);
        if at <= previous {
            return Err(ApplyError::Compacted);
        }
        if at > self.writer.current {
            return Err(ApplyError::FutureRevision);
        }
        self.jobs.push(Job {
            at,
            previous,
            hash: self.keyspace.finished() == previous,
        });
        self.writer.compacted = at;
        self.batch
            .put(Bucket::Meta, SCHEDULED_COMPACT, compact_row(at));
        entry.duty = Some(Duty::Compacted(at));
        Ok(CompactionResponse {
            header: self.header(),
        })
    }

    fn grant(&mut self, request: &LeaseGrantRequest) -> Outcome {
        let ttl = self
            .leases
            .write()
            .grant(request.id, request.ttl, &mut self.batch)?;
        self.metrics.lease_granted(ttl);
        Ok(Response::LeaseGrant(LeaseGrantResponse {
            header: self.header(),
            id: request.id,
            ttl,
            error: String::new(),
        }))
    }

    /// The keys go in one transaction, in key order.
    fn revoke(&mut self, entry: &mut EntryContext, request: &LeaseRevokeRequest) -> Outcome {
        let keys = self.leases.write().revoke(request.id, &mut self.batch)?;
        self.write(entry, |txn| {
            for key in &keys {
                txn.delete(KeyInterval::One(key));
            }
        });
        self.metrics.lease_revoked();
        Ok(Response::LeaseRevoke(LeaseRevokeResponse {
            header: self.header(),
        }))
    }

    fn checkpoint(&mut self, request: &LeaseCheckpointRequest) -> Outcome {
        // Written since 3.6, which names its storage version for it.
        let persist = storage_version(self.membership.cluster_version()).is_some();
        let mut leases = self.leases.write();
        for checkpoint in &request.checkpoints {
            leases.checkpoint(
                checkpoint.id,
                checkpoint.remaining_ttl,
                persist,
                &mut self.batch,
            )?;
        }
        drop(leases);
        Ok(Response::LeaseCheckpoint(LeaseCheckpointResponse {
            header: self.header(),
        }))
    }

    fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let (member, alarm) = (request.member_id, request.alarm);
        let alarms = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                return AlarmResponse {
                    header: None,
                    alarms: self.alarms.list(alarm),
                };
            }
            Ok(AlarmAction::Activate) if alarm != AlarmType::None as i32 => {
                Some(self.alarms.activate(member, alarm, &mut self.batch))
            }
            Ok(AlarmAction::Deactivate) => self.alarms.deactivate(member, alarm, &mut self.batch),
            _ => None,
        };
        if alarms.is_some() {
            let raised = request.action == AlarmAction::Activate as i32;
            let kind = AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
            self.metrics.alarm(member, kind, raised);
            self.side_changed = true;
        }
        AlarmResponse {
            header: None,
            alarms: alarms.into_iter().collect(),
        }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            revision: self.writer.current,
            ..Default::default()
        })
    }
}

/// What the apply thread itself sees. It needs no pin: it is the one that lets compaction begin.
fn now(keyspace: &Keyspace, current: i64, compacted: i64) -> ReadView<'_> {
    ReadView::new(keyspace, keyspace.pairs.load(), current, compacted)
}

/// The operation's name in etcd's metric; `None` when the request holds none that is known.
fn name(request: &InternalRaftRequest) -> Option<&'static str> {
    // In the order in which etcd looks.
    let kinds = [
        (request.range.is_some(), "Range"),
        (request.put.is_some(), "Put"),
        (request.delete_range.is_some(), "DeleteRange"),
        (request.txn.is_some(), "Txn"),
        (request.compaction.is_some(), "Compaction"),
        (request.lease_grant.is_some(), "LeaseGrant"),
        (request.lease_revoke.is_some(), "LeaseRevoke"),
        (request.lease_checkpoint.is_some(), "LeaseCheckpoint"),
        (request.alarm.is_some(), "Alarm"),
        (request.authenticate.is_some(), "Authenticate"),
        (request.auth_enable.is_some(), "AuthEnable"),
        (request.auth_disable.is_some(), "AuthDisable"),
        (request.auth_status.is_some(), "unknown"),
        (request.auth_user_add.is_some(), "AuthUserAdd"),
        (request.auth_user_delete.is_some(), "AuthUserDelete"),
        (
            request.auth_user_change_password.is_some(),
            "AuthUserChangePassword",
        ),
        (request.auth_user_grant_role.is_some(), "AuthUserGrantRole"),
        (request.auth_user_get.is_some(), "AuthUserGet"),
        (
            request.auth_user_revoke_role.is_some(),
            "AuthUserRevokeRole",
        ),
        (request.auth_role_add.is_some(), "AuthRoleAdd"),
        (
            request.auth_role_grant_permission.is_some(),
            "AuthRoleGrantPermission",
        ),
        (request.auth_role_get.is_some(), "AuthRoleGet"),
        (
            request.auth_role_revoke_permission.is_some(),
            "AuthRoleRevokePermission",
        ),
        (request.auth_role_delete.is_some(), "AuthRoleDelete"),
        (request.auth_user_list.is_some(), "AuthUserList"),
        (request.auth_role_list.is_some(), "AuthRoleList"),
    ];
    kinds.iter().find(|(is, _)| *is).map(|(_, name)| *name)
}
