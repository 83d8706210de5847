//! A small etcd v3 client over the generated stubs: what checks and loads need, nothing else.

use std::time::Duration;

use kvstore::pb::etcdserverpb::{
    HashKvRequest, Member, MemberAddRequest, MemberListRequest, MemberRemoveRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    generated::etcdserverpb::{
        cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient,
    },
    workspace::Outcome,
};

/// Deadline of connecting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Deadline of one call.
pub const CALL_DEADLINE: Duration = Duration::from_secs(8);
/// The largest answer that is taken.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// One member's HashKV answer: hash, compact revision and revision at hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C over the keyspace.
    pub hash: u32,
    /// Compact revision it was computed at.
    pub compact_revision: i64,
}

/// Calls to one member.
#[derive(Clone)]
pub struct Client {
    /// Its URL.
    pub endpoint: String,
    /// The KV service.
    pub kv: KvClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

impl Client {
    /// Connects when first used, and again whenever the connection is gone.
    pub fn lazy(endpoint: &str) -> Outcome<Client> {
        let channel = Endpoint::from_shared(endpoint.to_string())
            .map_err(|error| format!("{endpoint}: {error}"))?
            .connect_timeout(CONNECT_DEADLINE)
            .timeout(CALL_DEADLINE)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Client {
            endpoint: endpoint.to_string(),
            kv: KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel),
        })
    }

    /// Puts and returns the revision.
    pub async fn put(&mut self, key: &[u8], value: &[u8]) -> Outcome<i64> {
        let request = PutRequest {
            key: key.to_vec().into(),
            value: value.to_vec().into(),
            ..Default::default()
        };
        let answer = self
            .kv
            .put(request)
            .await
            .map_err(|status| self.failed("put", &status))?;
        Ok(answer.into_inner().header.unwrap_or_default().revision)
    }

    /// The value of `key`, read linearizably.
    pub async fn get(&mut self, key: &[u8]) -> Outcome<Option<Vec<u8>>> {
        let request = RangeRequest {
            key: key.to_vec().into(),
            ..Default::default()
        };
        let answer = self.range(request).await?;
        Ok(answer.kvs.first().map(|kv| kv.value.to_vec()))
    }

    /// Any range.
    pub async fn range(&mut self, request: RangeRequest) -> Outcome<RangeResponse> {
        match self.kv.range(request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.failed("range", &status)),
        }
    }

    /// The hash of the keyspace at `revision`, 0 for the current one.
    pub async fn hash_kv(&mut self, revision: i64) -> Outcome<HashKv> {
        let answer = self
            .maintenance
            .hash_kv(HashKvRequest { revision })
            .await
            .map_err(|status| self.failed("hash the keyspace", &status))?
            .into_inner();
        Ok(HashKv {
            hash: answer.hash,
            compact_revision: answer.compact_revision,
        })
    }

    /// What the member says of itself.
    pub async fn status(&mut self) -> Outcome<StatusResponse> {
        match self.maintenance.status(StatusRequest {}).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.failed("status", &status)),
        }
    }

    /// Moves leadership to `target`; only the leader does it.
    pub async fn move_leader(&mut self, target: u64) -> Outcome {
        match self
            .maintenance
            .move_leader(MoveLeaderRequest { target_id: target })
            .await
        {
            Ok(_) => Ok(()),
            Err(status) => Err(self.failed("move leadership", &status)),
        }
    }

    /// The members, as a linearizable read.
    pub async fn members(&mut self) -> Outcome<Vec<Member>> {
        match self
            .cluster
            .member_list(MemberListRequest { linearizable: true })
            .await
        {
            Ok(answer) => Ok(answer.into_inner().members),
            Err(status) => Err(self.failed("list members", &status)),
        }
    }

    /// Adds a voter and returns its id.
    pub async fn member_add(&mut self, peer_url: &str) -> Outcome<u64> {
        let request = MemberAddRequest {
            peer_urls: vec![peer_url.to_string()],
            is_learner: false,
        };
        match self.cluster.member_add(request).await {
            Ok(answer) => Ok(answer.into_inner().member.unwrap_or_default().id),
            Err(status) => Err(self.failed("add a member", &status)),
        }
    }

    /// Removes a member.
    pub async fn member_remove(&mut self, id: u64) -> Outcome {
        match self.cluster.member_remove(MemberRemoveRequest { id }).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.failed("remove a member", &status)),
        }
    }

    fn failed(&self, what: &str, status: &tonic::Status) -> String {
        format!(
            "cannot {what} via {}: {:?}: {}",
            self.endpoint,
            status.code(),
            status.message()
        )
    }
}
