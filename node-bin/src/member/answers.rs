//! What the HTTP endpoints ask the member, answered from the store, raft and the transport.
//!
//! Depends on the running member. Invariant: what takes long runs where it blocks no other request.

use kvstore::{
    ApplyError,
    pb::etcdserverpb::{AlarmType, RangeRequest},
    version::storage_version,
};
use raft_node::Role;
use serde_json::json;
use transport_core::{ClusterId, MemberId};

use super::{MemberInfo, Versions, serving::Member};
use crate::{
    grpc::{backend::ServerBackend, error::ServerError, layer::Gate},
    http::{
        client::{Alarm, ClientState},
        peer::{HashKv, PeerState, PromoteError},
    },
};

/// The key whose range the health checks read; it need not exist.
const HEALTH_KEY: &[u8] = b"health";

fn info(member: kvstore::membership::Member) -> MemberInfo {
    let kvstore::membership::Member {
        id,
        peer_urls,
        is_learner,
        name,
        client_urls,
    } = member;
    MemberInfo {
        id,
        peer_urls,
        is_learner,
        name,
        client_urls,
    }
}

fn versions(member: &Member) -> Versions {
    let cluster = member.reader.cluster_version();
    Versions::new(
        &member.config.server_version.to_string(),
        cluster,
        storage_version(cluster),
    )
}

impl PeerState for Member {
    fn cluster_id(&self) -> ClusterId {
        self.responder.cluster_id
    }

    fn members(&self) -> Vec<MemberInfo> {
        self.reader.members().into_iter().map(info).collect()
    }

    fn versions(&self) -> Versions {
        versions(self)
    }

    async fn promote(
        &self,
        id: MemberId,
        _authorization: Option<String>,
    ) -> Result<Vec<MemberInfo>, PromoteError> {
        match self.promote_here(id).await {
            Ok(members) => Ok(members.into_iter().map(info).collect()),
            Err(ServerError::Apply(ApplyError::MemberNotFound)) => Err(PromoteError::NotFound),
            Err(ServerError::Apply(ApplyError::MemberNotLearner)) => Err(PromoteError::NotLearner),
            Err(ServerError::LearnerNotReady) => Err(PromoteError::NotReady),
            Err(ServerError::Timeout) => Err(PromoteError::Timeout),
            Err(error) => Err(PromoteError::Other(error.to_string())),
        }
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKv, String> {
        let reader = self.reader.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let (hash, current) = reader.hash_kv(revision)?;
            let hash_revision = if revision == 0 { current } else { revision };
            Ok(HashKv {
                revision: current,
                hash: hash.hash,
                compact_revision: hash.compact_revision,
                hash_revision,
            })
        });
        match hashed.await {
            Ok(outcome) => outcome.map_err(|error: ApplyError| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Gate for Member {
    fn has_leader(&self) -> bool {
        self.node.status().leader.is_some()
    }

    fn is_learner(&self) -> bool {
        ServerBackend::is_learner(self)
    }
}

impl ClientState for Member {
    fn alarms(&self) -> Vec<Alarm> {
        let kinds = self
            .reader
            .alarms()
            .into_iter()
            .filter_map(|alarm| AlarmType::try_from(alarm.alarm).ok());
        kinds
            .filter_map(|kind| match kind {
                AlarmType::Nospace => Some(Alarm::NoSpace),
                AlarmType::Corrupt => Some(Alarm::Corrupt),
                AlarmType::None => None,
            })
            .collect()
    }

    fn versions(&self) -> Versions {
        versions(self)
    }

    async fn read(&self, serializable: bool) -> Result<(), String> {
        if !serializable {
            self.linearizable()
                .await
                .map_err(|error| error.to_string())?;
        }
        let request = RangeRequest {
            key: HEALTH_KEY.into(),
            limit: 1,
            ..Default::default()
        };
        self.reader
            .range(&request)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn raft_status(&self) -> serde_json::Value {
        let status = self.node.status();
        json!({
            "id": status.id.to_string(),
            "term": status.term,
            "lead": status.leader.unwrap_or_default().to_string(),
            "raftState": match status.role {
                Role::Follower => "StateFollower",
                Role::PreCandidate => "StatePreCandidate",
                Role::Candidate => "StateCandidate",
                Role::Leader => "StateLeader",
            },
            "commit": status.committed,
            "applied": status.applied,
        })
    }
}
