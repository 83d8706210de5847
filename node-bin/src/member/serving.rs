//! The member as its services see it: requests become proposals, reads wait for their index, changes of the
//! membership are checked and proposed.
//!
//! Depends on the node, the store's reader and the transport. Invariant: every wait has the request timeout
//! as its deadline, and an error says whether the request may still be carried out.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use kvstore::{
    Reader, Response,
    membership::{self, json},
    pb::etcdserverpb::RequestHeader,
};
use parking_lot::Mutex;
use raft_node::{Node, ProposeError, ReadError, Status, TransferError};
use tokio::time::timeout;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfChangeType},
};

use super::{
    RequestIds,
    asking::PeerClient,
    inbound::PeerTransport,
    limits, reconfig,
    reconfig::Voter,
    replica::Answer,
    timeout::{self as timeouts, Circumstances},
};
use crate::{
    config::{Config, Url},
    grpc::{
        backend::{Proposal, ServerBackend},
        error::ServerError,
        header::Responder,
    },
    metrics::ServerMetrics,
};

/// Pause before a configuration change is proposed again because another one was under way.
const CONF_CHANGE_RETRY: Duration = Duration::from_millis(100);

/// A running member.
pub struct Member {
    /// Its id and its cluster's.
    pub responder: Responder,
    /// How it was set up.
    pub config: Arc<Config>,
    /// raft.
    pub node: Node<Answer>,
    /// The store.
    pub reader: Reader,
    /// The ways to the other members.
    pub transport: PeerTransport,
    /// Asks other members' HTTP endpoints.
    pub peers: PeerClient,
    /// Ids of its requests.
    pub request_ids: RequestIds,
    /// Its own metrics.
    pub metrics: Arc<ServerMetrics>,
    /// When the present leader became known.
    pub leader_elected: Mutex<Option<Instant>>,
}

impl Member {
    /// This member's id.
    pub fn id(&self) -> MemberId {
        self.responder.member_id
    }

    /// Proposes an entry whose request id is `id` and waits for its answer.
    pub async fn submit(&self, id: u64, data: Bytes) -> Result<Response, ServerError> {
        let status = self.node.status();
        limits::may_propose(
            data.len(),
            self.config.max_request_bytes,
            status.committed,
            status.applied,
        )?;
        let begun = Instant::now();
        let answer = match timeout(self.config.request_timeout(), self.node.propose(id, data)).await
        {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.propose_error(&error, begun)),
            Err(_) => return Err(self.timed_out(begun)),
        };
        match answer {
            Answer::Applied(outcome) => Ok(outcome?),
            Answer::Membership(_) => Err(ServerError::Other(
                "etcdserver: answer to another request".into(),
            )),
        }
    }

    fn propose_error(&self, error: &ProposeError, begun: Instant) -> ServerError {
        match error {
            // etcd waits for a leader as long and says the same.
            ProposeError::NoLeader => self.timed_out(begun),
            ProposeError::TooManyRequests => ServerError::TooManyRequests,
            ProposeError::Superseded => ServerError::LeaderChanged,
            ProposeError::LeaderLost => ServerError::TimeoutDueToLeaderFail,
            ProposeError::Stopped | ProposeError::Removed => ServerError::Stopped,
            other => ServerError::Other(format!("etcdserver: {other}")),
        }
    }

    /// The error of a request begun then that has had its time.
    fn timed_out(&self, begun: Instant) -> ServerError {
        let since = begun.elapsed();
        let connected = |id: MemberId| {
            id == self.id()
                || self
                    .transport
                    .active_since(id)
                    .is_some_and(|active| active.elapsed() >= since)
        };
        let status = self.node.status();
        let connected_since_begun = match status.leader {
            None => true,
            Some(leader) if leader != self.id() => connected(leader),
            Some(_) => {
                let members = self.reader.members();
                let voters: Vec<_> = members.iter().filter(|member| !member.is_learner).collect();
                voters.iter().filter(|voter| connected(voter.id)).count() > voters.len() / 2
            }
        };
        timeouts::error(&Circumstances {
            begun,
            leader_elected: *self.leader_elected.lock(),
            election_timeout: self.config.election_timeout(),
            connected_since_begun,
        })
    }

    /// Proposes a configuration change and waits until it is applied here.
    async fn configure(
        &self,
        kind: ConfChangeType,
        node: MemberId,
        context: Vec<u8>,
    ) -> Result<(), ServerError> {
        let begun = Instant::now();
        let attempts = async {
            loop {
                let change = ConfChange {
                    id: self.request_ids.next(),
                    change_type: kind as i32,
                    node_id: node.0,
                    context: context.clone().into(),
                };
                match self.node.propose_conf_change(change).await {
                    Err(ProposeError::ConfChangePending) => {
                        tokio::time::sleep(CONF_CHANGE_RETRY).await
                    }
                    other => return other,
                }
            }
        };
        match timeout(self.config.request_timeout(), attempts).await {
            Ok(Ok(Answer::Membership(Ok(())))) => Ok(()),
            Ok(Ok(Answer::Membership(Err(error)))) => Err(match error.refusal() {
                Some(refusal) => ServerError::Apply(refusal),
                None => ServerError::Other(error.to_string()),
            }),
            Ok(Ok(Answer::Applied(_))) => Err(ServerError::Other(
                "etcdserver: answer to another request".into(),
            )),
            Ok(Err(error)) => Err(self.propose_error(&error, begun)),
            Err(_) => Err(self.timed_out(begun)),
        }
    }

    /// The voters, with how long this member has been connected to each.
    pub fn voters(&self) -> Vec<Voter> {
        let voters = self
            .reader
            .members()
            .into_iter()
            .filter(|member| !member.is_learner);
        voters
            .map(|member| Voter {
                id: member.id,
                started: !member.name.is_empty(),
                connected: if member.id == self.id() {
                    Some(Duration::MAX)
                } else {
                    self.transport
                        .active_since(member.id)
                        .map(|since| since.elapsed())
                },
            })
            .collect()
    }

    fn strictly(
        &self,
        check: impl FnOnce(&[Voter]) -> Result<(), ServerError>,
    ) -> Result<(), ServerError> {
        if !self.config.strict_reconfig_check {
            return Ok(());
        }
        check(&self.voters()).inspect_err(|error| {
            tracing::warn!(local_member_id = %self.id(), %error, "rejecting a change of the membership");
        })
    }

    /// Gives a learner a vote, which only the leader may do.
    ///
    /// # Errors
    /// `NotLeader` when this member does not lead, or has only just begun to: whoever asks should ask again.
    pub async fn promote_here(&self, id: MemberId) -> Result<Vec<membership::Member>, ServerError> {
        let outcome = self.promote_as_leader(id).await;
        match &outcome {
            Ok(_) => self.metrics.learner_promote_successes.increment(1),
            // The leader's to count.
            Err(ServerError::NotLeader) => {}
            // Texts that are made up on the way would make series without end.
            Err(ServerError::Other(_)) => self.metrics.learner_promote_failed("other"),
            Err(error) => self.metrics.learner_promote_failed(&error.to_string()),
        }
        outcome
    }

    async fn promote_as_leader(
        &self,
        id: MemberId,
    ) -> Result<Vec<membership::Member>, ServerError> {
        if !self.is_leader() {
            return Err(ServerError::NotLeader);
        }
        let member = self
            .reader
            .member(id)
            .ok_or(kvstore::ApplyError::MemberNotFound)?;
        if !member.is_learner {
            return Err(kvstore::ApplyError::MemberNotLearner.into());
        }
        reconfig::is_learner_ready(&self.node.progress(), self.id(), id)?;
        self.strictly(reconfig::may_promote)?;
        self.configure(ConfChangeType::AddNode, id, json::promotion(id))
            .await?;
        Ok(self.reader.members())
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.node.status().leader == Some(self.id())
    }
}

impl ServerBackend for Member {
    fn responder(&self) -> Responder {
        self.responder
    }

    fn status(&self) -> Status {
        self.node.status()
    }

    fn is_learner(&self) -> bool {
        let membership = self.reader.membership();
        membership
            .member(self.id())
            .is_some_and(|member| member.is_learner)
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }

    async fn propose(&self, proposal: Proposal) -> Result<Response, ServerError> {
        let id = self.request_ids.next();
        let data = proposal.encode(&RequestHeader {
            id,
            ..Default::default()
        });
        self.submit(id, data).await
    }

    async fn linearizable(&self) -> Result<(), ServerError> {
        let begun = Instant::now();
        match timeout(self.config.request_timeout(), self.node.read_index()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(ReadError::TooManyRequests)) => Err(ServerError::TooManyRequests),
            Ok(Err(ReadError::Stopped)) => Err(ServerError::Stopped),
            Ok(Err(_)) | Err(_) => Err(self.timed_out(begun)),
        }
    }

    async fn member_add(
        &self,
        peer_urls: Vec<Url>,
        is_learner: bool,
    ) -> Result<(membership::Member, Vec<membership::Member>), ServerError> {
        self.strictly(|voters| reconfig::may_add(voters, is_learner))?;
        let peer_urls: Vec<String> = peer_urls.iter().map(ToString::to_string).collect();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let id = MemberId::derive(&peer_urls, "", Some(now));
        let member = membership::Member {
            id,
            peer_urls,
            is_learner,
            ..Default::default()
        };
        let kind = if is_learner {
            ConfChangeType::AddLearnerNode
        } else {
            ConfChangeType::AddNode
        };
        self.configure(kind, id, json::member(&member)).await?;
        Ok((member, self.reader.members()))
    }

    async fn member_remove(&self, id: MemberId) -> Result<Vec<membership::Member>, ServerError> {
        let is_learner = self
            .reader
            .member(id)
            .is_some_and(|member| member.is_learner);
        self.strictly(|voters| reconfig::may_remove(voters, self.id(), id, is_learner))?;
        self.configure(ConfChangeType::RemoveNode, id, Vec::new())
            .await?;
        Ok(self.reader.members())
    }

    async fn member_update(
        &self,
        id: MemberId,
        peer_urls: Vec<Url>,
    ) -> Result<Vec<membership::Member>, ServerError> {
        let peer_urls = peer_urls.iter().map(ToString::to_string).collect();
        let member = membership::Member {
            id,
            peer_urls,
            ..Default::default()
        };
        self.configure(ConfChangeType::UpdateNode, id, json::member(&member))
            .await?;
        Ok(self.reader.members())
    }

    async fn member_promote(&self, id: MemberId) -> Result<Vec<membership::Member>, ServerError> {
        let begun = Instant::now();
        let forwarding = async {
            loop {
                match self.promote_here(id).await {
                    Err(ServerError::NotLeader) => {}
                    outcome => return outcome,
                }
                let leader = self.node.status().leader.filter(|id| *id != self.id());
                let leader = leader.and_then(|leader| self.reader.member(leader));
                for url in leader.iter().flat_map(|leader| &leader.peer_urls) {
                    if let Some(told) = self
                        .peers
                        .promote(url, id, self.config.request_timeout())
                        .await
                    {
                        return told;
                    }
                }
                tokio::time::sleep(CONF_CHANGE_RETRY).await;
            }
        };
        match timeout(self.config.request_timeout(), forwarding).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.timed_out(begun)),
        }
    }

    async fn move_leader(&self, to: MemberId) -> Result<(), ServerError> {
        let is_voter = self
            .reader
            .member(to)
            .is_some_and(|member| !member.is_learner);
        if !is_voter {
            return Err(ServerError::BadLeaderTransferee);
        }
        let mut leadership = self.node.leadership();
        let moved = async {
            match self.node.transfer_leadership(to).await {
                Ok(()) => {}
                Err(TransferError::NotLeader) => return Err(ServerError::NotLeader),
                Err(TransferError::NotVoter(_)) => return Err(ServerError::BadLeaderTransferee),
                Err(_) => return Err(ServerError::Stopped),
            }
            match leadership.wait_for(|now| now.leader == Some(to)).await {
                Ok(_) => Ok(()),
                Err(_) => Err(ServerError::Stopped),
            }
        };
        match timeout(self.config.request_timeout(), moved).await {
            Ok(outcome) => outcome,
            Err(_) => Err(ServerError::TimeoutLeaderTransfer),
        }
    }
}
