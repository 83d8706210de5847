//! The Maintenance service: status, hashes, alarms, leadership (etcd: v3rpc/maintenance.go).
//!
//! Everything but alarms is about the member that answers; the status needs no quorum. Hashes scan the whole store and
//! run beside the threads that serve sockets.

use std::sync::Arc;

use kvstore::{
    Response,
    pb::etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DowngradeInfo, HashKvRequest,
        HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
        ResponseHeader, StatusRequest, StatusResponse,
    },
    quota::Quota,
    version::storage_version,
};
use transport_core::MemberId;

use super::{
    backend::{Proposal, ServerBackend},
    blocking::blocking,
    error::ServerError,
    kv::unexpected,
};
use crate::version::Version;

/// The Maintenance service.
pub struct Maintenance<B> {
    backend: Arc<B>,
    version: Version,
    quota: Quota,
}

impl<B: ServerBackend> Maintenance<B> {
    /// `version` is what the member announces.
    pub fn new(backend: Arc<B>, version: Version, quota: Quota) -> Maintenance<B> {
        Maintenance {
            backend,
            version,
            quota,
        }
    }

    /// Describes the member that answers.
    pub async fn status(&self, _: StatusRequest) -> Result<StatusResponse, ServerError> {
        let (raft, reader) = (self.backend.status(), self.backend.reader());
        let membership = reader.membership();
        let storage_version = storage_version(membership.cluster_version());
        let mut errors = Vec::new();
        if raft.leader.is_none() {
            errors.push(ServerError::NoLeader.to_string());
        }
        errors.extend(reader.alarms().iter().map(alarm_text));
        let mut header = None;
        self.fill(&mut header);
        Ok(StatusResponse {
            header,
            version: self.version.to_string(),
            db_size: signed(reader.size()),
            leader: raft.leader.map_or(0, |leader| leader.0),
            raft_index: raft.committed,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors,
            db_size_in_use: signed(reader.size_in_use()),
            is_learner: self.backend.is_learner(),
            storage_version: storage_version
                .map_or_else(String::new, |version| version.to_string()),
            db_size_quota: self.quota.limit().map_or(0, signed),
            downgrade_info: Some(DowngradeInfo {
                enabled: membership.downgrade().is_some(),
                target_version: membership.downgrade().unwrap_or_default().into(),
            }),
        })
    }

    /// Hashes the whole backend; not comparable between members.
    pub async fn hash(&self, _: HashRequest) -> Result<HashResponse, ServerError> {
        let reader = self.backend.reader().clone();
        let (hash, revision) = blocking(move || reader.hash()).await??;
        Ok(HashResponse {
            header: self.header_at(revision),
            hash,
        })
    }

    /// Hashes the keys' history up to a revision; equal on members that have compacted alike.
    pub async fn hash_kv(&self, request: HashKvRequest) -> Result<HashKvResponse, ServerError> {
        let reader = self.backend.reader().clone();
        let (hash, revision) = blocking(move || reader.hash_kv(request.revision)).await??;
        Ok(HashKvResponse {
            header: self.header_at(revision),
            hash: hash.hash,
            compact_revision: hash.compact_revision,
            hash_revision: hash.revision,
        })
    }

    /// Reads, raises or clears alarms; all three through the log.
    pub async fn alarm(&self, request: AlarmRequest) -> Result<AlarmResponse, ServerError> {
        match self.backend.propose(Proposal::Alarm(request)).await? {
            Response::Alarm(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Hands leadership to another member; only the leader can.
    pub async fn move_leader(
        &self,
        request: MoveLeaderRequest,
    ) -> Result<MoveLeaderResponse, ServerError> {
        let raft = self.backend.status();
        if raft.leader != Some(raft.id) {
            return Err(ServerError::NotLeader);
        }
        let target = MemberId(request.target_id);
        self.backend.move_leader(target).await?;
        Ok(MoveLeaderResponse { header: None })
    }

    fn header_at(&self, revision: i64) -> Option<ResponseHeader> {
        let mut header = Some(ResponseHeader {
            revision,
            ..Default::default()
        });
        self.fill(&mut header);
        header
    }

    fn fill(&self, header: &mut Option<ResponseHeader>) {
        let backend = &*self.backend;
        let revision = || backend.reader().revision();
        backend
            .responder()
            .fill(header, backend.status().term, revision);
    }
}

/// Sizes are signed on the wire.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// An alarm as Go prints the message.
fn alarm_text(alarm: &AlarmMember) -> String {
    let mut text = String::new();
    if alarm.member_id != 0 {
        text += &format!("memberID:{} ", alarm.member_id);
    }
    match AlarmType::try_from(alarm.alarm) {
        Ok(AlarmType::None) => {}
        Ok(kind) => text += &format!("alarm:{} ", kind.as_str_name()),
        Err(_) => text += &format!("alarm:{} ", alarm.alarm),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_read_as_go_prints_them() {
        let text = |member_id, alarm| alarm_text(&AlarmMember { member_id, alarm });
        assert_eq!(
            text(9_372_538_179_322_589_801, 1),
            "memberID:9372538179322589801 alarm:NOSPACE "
        );
        assert_eq!(text(0, 2), "alarm:CORRUPT ");
        assert_eq!(text(1, 7), "memberID:1 alarm:7 ");
    }
}
