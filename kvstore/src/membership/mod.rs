//! Who is in the cluster, as replicated state: members, members that were removed, cluster version, downgrade.
//!
//! Configuration changes are validated against it by every member when they are applied; a change that is refused
//! here is a no-op for raft. [`json`] holds the forms that members exchange and store.
//!
//! Invariant: an id that was removed never comes back, no two members share a peer URL, and every member of the
//! cluster decides the same on the same entry (etcd: server/etcdserver/api/membership/cluster.go).

pub mod json;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfChangeType},
};

use self::json::Context;
use crate::{
    backend::{BackendError, Batch, Bucket, View, WHOLE},
    error::ApplyError,
    v2store::{self, V2StoreError},
    version::{BACKEND_MEMBERSHIP_SINCE, Version},
};

const CLUSTER_VERSION: &[u8] = b"clusterVersion";
const DOWNGRADE: &[u8] = b"downgrade";
/// What a row of bucket `members_removed` says.
const REMOVED: &[u8] = b"removed";

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// URLs it is reached at by the others.
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    pub is_learner: bool,
    /// Its name; empty until it has published itself.
    pub name: String,
    /// URLs it serves clients at; empty until it has published itself.
    pub client_urls: Vec<String>,
}

/// The replicated membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
    cluster_version: Option<Version>,
    /// Target of a downgrade that is going on.
    downgrade: Option<String>,
}

/// Why a configuration change is refused. The texts are what etcd answers a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The id belonged to a member that was removed.
    #[error("etcdserver: member not found")]
    IdRemoved,
    /// No member has the id.
    #[error("etcdserver: member not found")]
    IdNotFound,
    /// A member has the id.
    #[error("etcdserver: member ID already exist")]
    IdExists,
    /// Another member has one of the peer URLs.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// A member to be promoted is a voter.
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    /// There are as many learners as there may be.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// The change does not say whom it is about. No member proposes such a change, and Go's stop at it.
    #[error("a configuration change cannot be understood: {0}")]
    Malformed(String),
}

impl MembershipError {
    /// What the proposer is answered; `None` for a change that makes the member stop.
    pub fn refusal(&self) -> Option<ApplyError> {
        Some(match self {
            MembershipError::IdRemoved | MembershipError::IdNotFound => ApplyError::MemberNotFound,
            MembershipError::IdExists => ApplyError::MemberExists,
            MembershipError::PeerUrlExists => ApplyError::PeerUrlExists,
            MembershipError::NotLearner => ApplyError::MemberNotLearner,
            MembershipError::TooManyLearners => ApplyError::TooManyLearners,
            MembershipError::Malformed(_) => return None,
        })
    }
}

/// What a configuration change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// A member joined.
    Added {
        /// Its id.
        id: MemberId,
        /// Its peer URLs.
        urls: Vec<String>,
        /// Whether it has no vote.
        learner: bool,
    },
    /// A learner became a voter.
    Promoted {
        /// Its id.
        id: MemberId,
    },
    /// A member has other peer URLs.
    Updated {
        /// Its id.
        id: MemberId,
        /// The new URLs.
        urls: Vec<String>,
    },
    /// A member left for good.
    Removed {
        /// Its id.
        id: MemberId,
    },
}

/// A member published itself that never was one: this member's state is not the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("member {0} published its attributes and was never added")]
pub struct UnknownMember(pub MemberId);

/// A change in the form in which it is decided.
enum Change {
    Add(Member),
    Promote(MemberId),
    Update(Member),
    Remove(MemberId),
}

impl Membership {
    /// Reads the buckets `members`, `members_removed` and `cluster`.
    pub fn load(view: &dyn View) -> Result<Membership, BackendError> {
        let mut membership = Membership::default();
        each_row(view, Bucket::Members, |id, row| {
            let member = Member {
                id,
                ..json::parse_member(row)?
            };
            membership.members.insert(id, member);
            Ok(())
        })?;
        each_row(view, Bucket::MembersRemoved, |id, _| {
            membership.removed.insert(id);
            Ok(())
        })?;
        if let Some(row) = view.get(Bucket::Cluster, CLUSTER_VERSION)? {
            let version = String::from_utf8_lossy(&row).parse();
            membership.cluster_version =
                Some(version.map_err(|error| damaged(CLUSTER_VERSION, error))?);
        }
        if let Some(row) = view.get(Bucket::Cluster, DOWNGRADE)? {
            membership.downgrade =
                json::parse_downgrade(&row).map_err(|error| damaged(DOWNGRADE, error))?;
        }
        Ok(membership)
    }

    /// Reads the document in a snapshot's data.
    pub fn from_v2store(document: &[u8]) -> Result<Membership, V2StoreError> {
        v2store::parse(document)
    }

    /// The membership that a database and the snapshot it came with hold together.
    ///
    /// From cluster version 3.5 on it is the database's, corrected where 3.5 promoted a learner in the document
    /// alone. Before, it is the document's (etcd: server/etcdserver/api/membership/cluster.go,
    /// `SyncLearnerPromotionIfNeeded`). Without a document it is the database's.
    pub fn merge(database: Membership, document: Option<Membership>) -> Membership {
        let Some(document) = document else {
            return database;
        };
        if database
            .cluster_version
            .is_none_or(|version| version < BACKEND_MEMBERSHIP_SINCE)
        {
            return document;
        }
        let mut merged = database;
        for (id, member) in &mut merged.members {
            member.is_learner &= document.member(*id).is_none_or(|member| member.is_learner);
        }
        merged
    }

    pub(crate) fn new(
        members: impl IntoIterator<Item = Member>,
        removed: impl IntoIterator<Item = MemberId>,
        cluster_version: Option<Version>,
    ) -> Membership {
        Membership {
            members: members
                .into_iter()
                .map(|member| (member.id, member))
                .collect(),
            removed: removed.into_iter().collect(),
            cluster_version,
            downgrade: None,
        }
    }

    /// Writes the rows that turn `self`'s buckets into `target`'s.
    pub(crate) fn write_difference(&self, target: &Membership, batch: &mut Batch) {
        for id in self
            .members
            .keys()
            .filter(|id| !target.members.contains_key(id))
        {
            batch.delete(Bucket::Members, row_key(*id));
        }
        for id in self.removed.difference(&target.removed) {
            batch.delete(Bucket::MembersRemoved, row_key(*id));
        }
        for (id, member) in &target.members {
            if self.members.get(id) != Some(member) {
                write_member(member, batch);
            }
        }
        for id in target.removed.difference(&self.removed) {
            batch.put(Bucket::MembersRemoved, row_key(*id), REMOVED);
        }
        match target.cluster_version {
            Some(version) if self.cluster_version != Some(version) => write_version(version, batch),
            None if self.cluster_version.is_some() => {
                batch.delete(Bucket::Cluster, CLUSTER_VERSION)
            }
            _ => {}
        }
    }

    /// Whether a configuration change is allowed. `max_learners` must be the same on every member.
    pub fn validate(
        &self,
        change: &ConfChange,
        max_learners: usize,
    ) -> Result<(), MembershipError> {
        self.decide(change, max_learners).map(drop)
    }

    /// Carries out a change that [`Self::validate`] allowed.
    pub fn apply(
        &mut self,
        change: &ConfChange,
        batch: &mut Batch,
    ) -> Result<MembershipEvent, MembershipError> {
        // How many learners there may be was decided by the validation.
        Ok(match self.decide(change, usize::MAX)? {
            Change::Add(member) => {
                write_member(&member, batch);
                let (id, urls, learner) = (member.id, member.peer_urls.clone(), member.is_learner);
                self.members.insert(id, member);
                MembershipEvent::Added { id, urls, learner }
            }
            Change::Promote(id) => {
                self.alter(id, batch, |member| member.is_learner = false);
                MembershipEvent::Promoted { id }
            }
            Change::Update(Member {
                id,
                peer_urls: urls,
                ..
            }) => {
                self.alter(id, batch, |member| member.peer_urls.clone_from(&urls));
                MembershipEvent::Updated { id, urls }
            }
            Change::Remove(id) => {
                self.members.remove(&id);
                self.removed.insert(id);
                batch.delete(Bucket::Members, row_key(id));
                batch.put(Bucket::MembersRemoved, row_key(id), REMOVED);
                MembershipEvent::Removed { id }
            }
        })
    }

    /// The rules, in the order in which etcd tries them.
    fn decide(&self, change: &ConfChange, max_learners: usize) -> Result<Change, MembershipError> {
        let id = MemberId(change.node_id);
        if self.is_removed(id) {
            return Err(MembershipError::IdRemoved);
        }
        let kind = ConfChangeType::try_from(change.change_type)
            .map_err(|_| malformed(format!("its kind is {}", change.change_type)))?;
        if kind == ConfChangeType::RemoveNode {
            self.existing(id)?;
            return Ok(Change::Remove(id));
        }
        let adds = kind != ConfChangeType::UpdateNode;
        if !adds {
            self.existing(id)?;
        }
        let Context { member, is_promote } =
            json::parse_context(&change.context).map_err(|error| malformed(error.to_string()))?;
        if adds && is_promote {
            if !self.existing(id)?.is_learner {
                return Err(MembershipError::NotLearner);
            }
            return self.about(id, &member).map(|()| Change::Promote(id));
        }
        if adds && self.members.contains_key(&id) {
            return Err(MembershipError::IdExists);
        }
        self.free_urls(id, &member.peer_urls)?;
        if !adds {
            return self.about(id, &member).map(|()| Change::Update(member));
        }
        let learners = self
            .members
            .values()
            .filter(|member| member.is_learner)
            .count();
        let adds_learner = kind == ConfChangeType::AddLearnerNode && member.is_learner;
        if adds_learner && learners >= max_learners {
            return Err(MembershipError::TooManyLearners);
        }
        self.about(id, &member).map(|()| Change::Add(member))
    }

    fn existing(&self, id: MemberId) -> Result<&Member, MembershipError> {
        self.member(id).ok_or(MembershipError::IdNotFound)
    }

    /// None of the URLs may belong to a member other than `id`.
    fn free_urls(&self, id: MemberId, urls: &[String]) -> Result<(), MembershipError> {
        let mut others = self.members.values().filter(|member| member.id != id);
        if others.any(|member| member.peer_urls.iter().any(|url| urls.contains(url))) {
            return Err(MembershipError::PeerUrlExists);
        }
        Ok(())
    }

    /// The change and its context must be about the same member.
    fn about(&self, id: MemberId, member: &Member) -> Result<(), MembershipError> {
        if member.id == id {
            return Ok(());
        }
        Err(malformed(format!(
            "it is about member {id} and its context about {}",
            member.id
        )))
    }

    fn alter(&mut self, id: MemberId, batch: &mut Batch, alter: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members.get_mut(&id) {
            alter(member);
            write_member(member, batch);
        }
    }

    /// Takes over what a member publishes of itself. One that was removed meanwhile is ignored.
    ///
    /// # Errors
    /// The member was never added; this member's state cannot be right.
    pub fn set_attributes(
        &mut self,
        id: MemberId,
        name: String,
        client_urls: Vec<String>,
        batch: &mut Batch,
    ) -> Result<(), UnknownMember> {
        if !self.members.contains_key(&id) && !self.is_removed(id) {
            return Err(UnknownMember(id));
        }
        self.alter(id, batch, |member| {
            member.name = name;
            member.client_urls = client_urls;
        });
        Ok(())
    }

    /// Sets the cluster version.
    pub fn set_cluster_version(&mut self, version: Version, batch: &mut Batch) {
        self.cluster_version = Some(version);
        write_version(version, batch);
    }

    /// Begins a downgrade to a version, or ends it.
    pub fn set_downgrade(&mut self, target: Option<String>, batch: &mut Batch) {
        batch.put(
            Bucket::Cluster,
            DOWNGRADE,
            json::downgrade(target.as_deref()),
        );
        self.downgrade = target;
    }

    /// The members, by ascending id.
    pub fn members(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// Whether a member was removed; it can never come back.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// The ids of members that were removed, ascending.
    pub fn removed(&self) -> impl ExactSizeIterator<Item = MemberId> {
        self.removed.iter().copied()
    }

    /// The cluster version; `None` before it is decided.
    pub fn cluster_version(&self) -> Option<Version> {
        self.cluster_version
    }

    /// The target of a downgrade that is going on.
    pub fn downgrade(&self) -> Option<&str> {
        self.downgrade.as_deref()
    }
}

fn malformed(reason: String) -> MembershipError {
    MembershipError::Malformed(reason)
}

fn damaged(row: &[u8], error: impl std::fmt::Display) -> BackendError {
    BackendError::Damaged(format!("row {}: {error}", String::from_utf8_lossy(row)))
}

fn row_key(id: MemberId) -> String {
    id.to_string()
}

fn write_member(member: &Member, batch: &mut Batch) {
    batch.put(Bucket::Members, row_key(member.id), json::member(member));
}

fn write_version(version: Version, batch: &mut Batch) {
    batch.put(Bucket::Cluster, CLUSTER_VERSION, version.to_string());
}

/// Visits the rows of a bucket whose keys are member ids.
fn each_row(
    view: &dyn View,
    bucket: Bucket,
    mut visit: impl FnMut(MemberId, &[u8]) -> Result<(), serde_json::Error>,
) -> Result<(), BackendError> {
    let mut outcome = Ok(());
    view.scan(bucket, WHOLE, &mut |key, row| {
        let id = String::from_utf8_lossy(key).parse::<MemberId>();
        outcome = match id {
            Ok(id) => visit(id, row).map_err(|error| damaged(key, error)),
            Err(error) => Err(damaged(key, error)),
        };
        if outcome.is_err() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    outcome
}

#[cfg(test)]
mod tests;
