//! What a member does by itself: publish its name and URLs, keep the cluster version, compact history, advance its
//! first election, see to what applied entries ask for.
//!
//! Each is a task over a running [`Member`] that ends with its token. Depends on the pure rules beside it.
//! Invariant: nothing here changes replicated state but through the log.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use kvstore::{
    ApplyError, Duty,
    pb::etcdserverpb::{AlarmRequest, AlarmType, CompactionRequest, alarm_request::AlarmAction},
    version::{Version, decide_cluster_version},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    auto_compaction::AutoCompactor,
    boot::{self, BootError},
    cluster_version,
    election::{self, Advance},
    join,
    publish::{self, Form},
    replica::Followup,
    serving::Member,
};
use crate::{
    config::url,
    grpc::{
        backend::{Proposal, ServerBackend},
        error::ServerError,
    },
    version,
};

/// Time between two looks at all members' versions (etcd: etcdserver/server.go, `monitorVersionInterval`).
const VERSION_INTERVAL: Duration = Duration::from_secs(4);
/// Pause after a failed attempt to publish.
const PUBLISH_RETRY: Duration = Duration::from_millis(100);
/// How long silent members may keep this one from publishing itself.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(10);
/// How long a member that was removed goes on, so that the others learn that it knows.
const REMOVED_GRACE: Duration = Duration::from_secs(1);

/// Why a member ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was removed from the cluster. Not a failure.
    Removed,
    /// It cannot go on.
    Fatal(String),
}

/// The versions the other members report, `None` for those that do not answer. All are asked at once, so that those
/// out of reach take no more time than one of them.
async fn others(member: &Member) -> Vec<Option<Version>> {
    let members = member.reader.members();
    let others = members.iter().filter(|other| other.id != member.id());
    let asked = others.map(|other| {
        join::versions(
            &member.peers,
            other.id,
            &other.peer_urls,
            member.config.request_timeout(),
        )
    });
    let told = join_all(asked).await;
    told.into_iter()
        .map(|versions| versions.and_then(|versions| versions.server()))
        .collect()
}

/// The form in which this member may publish itself; nobody is asked once the cluster's version is decided.
async fn publish_form(member: &Member, patience_over: bool) -> Option<Form> {
    let decided = member.reader.cluster_version();
    match publish::form_by_cluster(decided) {
        Some(form) => Some(form),
        None => publish::form(decided, &others(member).await, patience_over),
    }
}

/// Tells the cluster this member's name and client URLs until that is in the log.
///
/// # Errors
/// `OtherMember` when the cluster knows another member by this name. What the store knew at the start may have been
/// older than that, so it is looked at once more when everything that was committed is here.
pub async fn publish(member: &Member, stop: &CancellationToken) -> Result<(), BootError> {
    let patient_until = Instant::now() + PUBLISH_PATIENCE;
    let client_urls = url::strings(&member.config.advertise_client_urls);
    let attempts = async {
        loop {
            let patience_over = Instant::now() > patient_until;
            let caught_up = member.linearizable().await.is_ok();
            if caught_up && let Some(form) = publish_form(member, patience_over).await {
                boot::is_ours(&member.config, member.id(), &member.reader.members())?;
                let id = member.request_ids.next();
                let entry =
                    publish::entry(form, id, member.id(), &member.config.name, &client_urls);
                match member.submit(id, entry.into()).await {
                    Ok(_) => return Ok::<(), BootError>(()),
                    Err(error) => {
                        tracing::warn!(local_member_id = %member.id(), %error, "failed to publish local member to cluster through raft");
                    }
                }
            }
            tokio::time::sleep(PUBLISH_RETRY).await;
        }
    };
    if let Some(published) = stop.run_until_cancelled(attempts).await {
        published?;
        tracing::info!(
            local_member_id = %member.id(), local_member_attributes = ?(&member.config.name, &client_urls),
            cluster_id = %member.responder.cluster_id, "published local member to cluster through raft"
        );
    }
    Ok(())
}

/// While this member leads, keeps the cluster version at the lowest version of all members.
pub async fn monitor_versions(member: Arc<Member>, stop: CancellationToken) {
    let mut leadership = member.node.leadership();
    let rounds = async {
        loop {
            // A new leader looks at once; the version of a new cluster must not wait.
            let _ = tokio::time::timeout(VERSION_INTERVAL, leadership.changed()).await;
            if member.is_leader() {
                update_version(&member).await;
            }
        }
    };
    stop.run_until_cancelled(rounds).await;
}

async fn update_version(member: &Member) {
    let others = others(member).await;
    let own = version::to_store(member.config.server_version);
    let current = member.reader.cluster_version();
    let membership = member.reader.membership();
    let downgrade = membership
        .downgrade()
        .and_then(|target| target.parse().ok());
    let all = others.iter().copied().chain([Some(own)]);
    let decided = match decide_cluster_version(current, all, downgrade) {
        Ok(Some(decided)) => decided,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(%error, "no valid downgrade");
            return;
        }
    };
    let form = publish::form(Some(decided), &others, true).unwrap_or(Form::V3);
    let id = member.request_ids.next();
    let entry = cluster_version::entry(form, id, decided);
    if let Err(error) = member.submit(id, entry.into()).await {
        tracing::warn!(%error, cluster_version = %decided, "failed to update cluster version");
    }
}

/// While this member leads, compacts history as the flags say.
pub async fn compact_history(member: Arc<Member>, stop: CancellationToken) {
    let now = || Instant::now().into_std();
    let mode = member.config.auto_compaction;
    let Some(mut compactor) = AutoCompactor::new(mode, now(), member.reader.revision()) else {
        return;
    };
    let turns = async {
        loop {
            tokio::time::sleep(compactor.pause()).await;
            let revision = member.reader.revision();
            let Some(at) = compactor.turn(now(), revision, member.is_leader()) else {
                continue;
            };
            tracing::info!(revision = at, mode = ?mode, "starting auto compaction");
            let request = CompactionRequest {
                revision: at,
                physical: false,
            };
            match member.propose(Proposal::Compaction(request)).await {
                // Somebody else may have been faster.
                Ok(_) | Err(ServerError::Apply(ApplyError::Compacted)) => {
                    compactor.compacted(now(), at);
                    tracing::info!(revision = at, "completed auto compaction");
                }
                Err(error) => {
                    tracing::warn!(revision = at, %error, "failed auto compaction");
                }
            }
        }
    };
    stop.run_until_cancelled(turns).await;
}

/// Brings the first election nearer once it is clear that no leader is about to be heard.
pub async fn advance_election(member: Arc<Member>, stop: CancellationToken) {
    let config = &member.config;
    let begun = Instant::now();
    let looks = async {
        loop {
            let (members, connected) = (
                member.reader.members().len(),
                member.transport.active_peers(),
            );
            let enabled = config.initial_election_tick_advance;
            match election::advance(
                enabled,
                config.election_ticks(),
                members,
                connected,
                begun.elapsed(),
            ) {
                Advance::Now(ticks) => return member.node.advance_election(ticks as usize),
                Advance::Never => return,
                Advance::Later => tokio::time::sleep(election::WAIT_STEP).await,
            }
        }
    };
    stop.run_until_cancelled(looks).await;
}

/// Keeps the time at which the present leader became known.
pub async fn watch_leader(member: Arc<Member>, stop: CancellationToken) {
    let mut leadership = member.node.leadership();
    let changes = async {
        let mut known = None;
        loop {
            let leader = leadership.borrow_and_update().leader;
            if leader.is_some() && leader != known {
                *member.leader_elected.lock() = Some(std::time::Instant::now());
            }
            known = leader;
            if leadership.changed().await.is_err() {
                return;
            }
        }
    };
    stop.run_until_cancelled(changes).await;
}

/// Sees to what applied entries ask for. Returns why the member must end, if one of them says so.
pub async fn follow_up(
    member: Arc<Member>,
    mut followups: mpsc::Receiver<Followup>,
    stop: CancellationToken,
) -> Option<Ended> {
    loop {
        let followup = stop.run_until_cancelled(followups.recv()).await??;
        match followup {
            Followup::SelfRemoved => {
                tracing::warn!(local_member_id = %member.id(), "this member was removed from the cluster");
                tokio::time::sleep(REMOVED_GRACE).await;
                return Some(Ended::Removed);
            }
            Followup::Duty(Duty::RaiseNoSpace) => raise_no_space(&member).await,
            Followup::Duty(Duty::ClusterVersion { previous, current }) => {
                if previous.is_some_and(|previous| current < previous) {
                    // A member of the older version must not have to read entries of the newer one.
                    tracing::info!("cluster version downgrade detected, forcing snapshot");
                    member.node.force_snapshot(member.node.status().applied);
                }
                tracing::info!(
                    from = previous.map(|version| version.to_string()).unwrap_or_default(), to = %current,
                    cluster_id = %member.responder.cluster_id, "updated cluster version"
                );
            }
            // Who waits for a compaction looks at the store; leadership is followed where it matters.
            Followup::Duty(Duty::Compacted(_)) | Followup::Leadership { .. } => {}
        }
    }
}

async fn raise_no_space(member: &Member) {
    let alarm = AlarmRequest {
        action: AlarmAction::Activate as i32,
        member_id: member.id().0,
        alarm: AlarmType::Nospace as i32,
    };
    match member.propose(Proposal::Alarm(alarm)).await {
        Ok(_) => {
            tracing::warn!(local_member_id = %member.id(), "raised alarm: the database quota is used up")
        }
        Err(error) => tracing::warn!(%error, "failed to raise the alarm for lack of space"),
    }
}
