//! The state machine that raft drives: the store, and what a member must do when it changes.
//!
//! Membership changes reach the transport in the order of the log, so that a message for a member that was
//! just added finds its peer. Depends on kvstore and on the transport's handle. Invariant: the apply thread
//! is its only caller, and an entry it cannot apply ends the process rather than being skipped.

use std::{
    fmt::Display,
    panic::resume_unwind,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use kvstore::{
    ApplyError, Duty, Image, Response, Store,
    membership::{MembershipError, MembershipEvent},
    version::{Version, detect_downgrade},
};
use raft_node::{ConfChangeVerdict, SnapshotError, StateMachine};
use tokio::sync::mpsc;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfState, Entry, Snapshot},
};

use super::{inbound::PeerTransport, received::Received};

/// Duties that wait to be seen to. One that finds no room is repeated by the entry that brings it up next; the
/// removal of this member has a place of its own.
pub const DUTIES_MAX: usize = 1024;

/// What a proposer gets back.
#[derive(Debug)]
pub enum Answer {
    /// A request was applied, or refused by the replicated state.
    Applied(Result<Response, ApplyError>),
    /// A configuration change was carried out, or refused by the membership.
    Membership(Result<(), MembershipError>),
}

/// What follows from an applied entry beside its answer.
#[derive(Debug)]
pub enum Followup {
    /// The store asks for it.
    Duty(Duty),
    /// This member was removed from the cluster.
    SelfRemoved,
    /// This member began or ceased to lead.
    Leadership {
        /// Whether it leads now.
        is_leader: bool,
    },
}

/// The store as raft's state machine.
pub struct Replica {
    store: Store,
    local: MemberId,
    transport: PeerTransport,
    received: Arc<Received>,
    followups: mpsc::Sender<Followup>,
    /// Room for the one duty that nothing brings up again.
    removal: Option<mpsc::OwnedPermit<Followup>>,
    version: Version,
    warn_after: Duration,
}

impl Replica {
    /// Wraps an open store. `followups` should be drained; its bound is [`DUTIES_MAX`]. `version` is this member's.
    pub fn new(
        store: Store,
        local: MemberId,
        transport: PeerTransport,
        received: Arc<Received>,
        followups: mpsc::Sender<Followup>,
        version: Version,
        warn_after: Duration,
    ) -> Replica {
        let replica = Replica {
            store,
            local,
            transport,
            received,
            removal: followups.clone().try_reserve_owned().ok(),
            followups,
            version,
            warn_after,
        };
        replica.connect_members();
        replica
    }

    /// Makes every member of the store's membership a peer of the transport, and nobody else.
    fn connect_members(&self) {
        self.transport.remove_all_peers();
        for member in self.store.reader().members() {
            if member.id != self.local {
                self.connect(member.id, &member.peer_urls);
            }
        }
    }

    fn connect(&self, id: MemberId, urls: &[String]) {
        if let Err(error) = self.transport.add_peer(id, urls) {
            tracing::error!(remote_peer_id = %id, %error, "a member's peer URLs cannot be used");
        }
    }

    fn follow_up(&self, followup: Followup) {
        if self.followups.try_send(followup).is_err() {
            tracing::warn!("too many duties wait; one was dropped");
        }
    }

    fn removed(&mut self) {
        // Once is enough: the member ends.
        if let Some(permit) = self.removal.take() {
            permit.send(Followup::SelfRemoved);
        }
    }

    fn membership_changed(&mut self, event: &MembershipEvent) {
        match event {
            MembershipEvent::Added { id, urls, learner } => {
                tracing::info!(
                    local_member_id = %self.local, added_peer_id = %id, added_peer_peer_urls = ?urls,
                    added_peer_is_learner = learner, "added member"
                );
                if *id != self.local {
                    self.connect(*id, urls);
                }
            }
            MembershipEvent::Promoted { id } => {
                tracing::info!(local_member_id = %self.local, promoted_member_id = %id, "promote member");
            }
            MembershipEvent::Updated { id, urls } => {
                if *id != self.local
                    && let Err(error) = self.transport.update_peer(*id, urls)
                {
                    tracing::error!(remote_peer_id = %id, %error, "a member's peer URLs cannot be used");
                }
            }
            MembershipEvent::Removed { id } => {
                tracing::info!(local_member_id = %self.local, removed_remote_peer_id = %id, "removed member");
                if *id == self.local {
                    self.removed();
                } else {
                    self.transport.remove_peer(*id);
                }
            }
        }
    }
}

/// Ends the apply thread, and with it the process: what was committed cannot be applied here.
fn cannot_go_on(error: impl Display) -> ! {
    // The node catches this at the thread's end and reports it as the reason why the member stops. Not a panic of its
    // own, which would be logged where it is raised, before the reason.
    resume_unwind(Box::new(error.to_string()))
}

impl StateMachine for Replica {
    type Response = Answer;
    type Image = Image;

    fn applied(&self) -> (u64, u64) {
        self.store.applied()
    }

    fn stored_conf_state(&self) -> Option<ConfState> {
        (self.store.applied().0 > 0).then(|| ConfState::clone(&self.store.reader().conf_state()))
    }

    fn durable(&self) -> Arc<AtomicU64> {
        self.store.durable()
    }

    fn apply(&mut self, entry: Entry) -> Option<(u64, Answer)> {
        let started = std::time::Instant::now();
        let applied = match self.store.apply(entry.index, entry.term, &entry.data) {
            Ok(applied) => applied,
            Err(error) => cannot_go_on(error),
        };
        if let Some(duty) = applied.duty {
            if let Duty::ClusterVersion { current, .. } = duty
                && let Err(error) = detect_downgrade(self.version, Some(current))
            {
                cannot_go_on(error);
            }
            self.follow_up(Followup::Duty(duty));
        }
        if started.elapsed() > self.warn_after {
            tracing::warn!(
                took = ?started.elapsed(), expected_duration = ?self.warn_after, index = entry.index,
                "apply request took too long"
            );
        }
        Some((applied.request_id?, Answer::Applied(applied.outcome)))
    }

    fn applies_at_once(&self, entry: &Entry) -> bool {
        self.store.applies_at_once(&entry.data)
    }

    fn conf_change(&mut self, entry: &Entry, change: &ConfChange) -> ConfChangeVerdict<Answer> {
        let verdict = self.store.conf_change(entry.index, change);
        match &verdict {
            Ok(event) => self.membership_changed(event),
            // Nobody knows what the other members made of it, and Go's stop.
            Err(error @ MembershipError::Malformed(_)) => cannot_go_on(error),
            Err(error) => {
                tracing::warn!(%error, index = entry.index, "a configuration change is refused")
            }
        }
        ConfChangeVerdict {
            accepted: verdict.is_ok(),
            response: Answer::Membership(verdict.map(drop)),
        }
    }

    fn conf_state(&mut self, index: u64, term: u64, conf_state: ConfState) {
        if let Err(error) = self.store.set_conf_state(index, term, &conf_state) {
            cannot_go_on(error);
        }
    }

    fn flush_batch(&mut self) {
        if let Err(error) = self.store.publish() {
            cannot_go_on(error);
        }
    }

    fn image(&mut self) -> Result<(Snapshot, Image), SnapshotError> {
        let image = self
            .store
            .image()
            .map_err(|error| SnapshotError::new("taking an image of the store", error))?;
        Ok((image.snapshot().clone(), image))
    }

    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        self.store
            .durable_snapshot()
            .map_err(|error| SnapshotError::new("taking a snapshot of the store", error))
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        let imported = self.received.to_install(snapshot, self.store.applied().0)?;
        let action = format!("installing {}", imported.display());
        let failed = |error: &dyn Display| SnapshotError::new(action.clone(), error);
        self.store
            .install(&imported, &metadata)
            .map_err(|error| failed(&error))?;
        self.received.release(metadata.index);
        detect_downgrade(self.version, self.store.reader().cluster_version())
            .map_err(|error| failed(&error))?;
        self.connect_members();
        if self.store.reader().is_removed(self.local) {
            self.removed();
        }
        tracing::info!(
            snapshot_index = metadata.index,
            snapshot_term = metadata.term,
            "applied snapshot"
        );
        Ok(())
    }

    fn leadership(&mut self, is_leader: bool, _term: u64) {
        self.follow_up(Followup::Leadership { is_leader });
    }
}
