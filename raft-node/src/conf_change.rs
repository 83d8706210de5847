//! Configuration changes between etcd's numbering and raft-rs.
//!
//! A change is proposed and decoded by our own codec only and translated at the last moment. Depends on
//! raft-rs. Invariant: a leader always finds its own progress, even after it removed itself; raft-rs
//! panics without it as soon as an entry becomes durable or committed.

use raft::{Changer, RawNode, StateRole, eraftpb};
use transport_core::raftpb::{ConfChange, ConfChangeType, ConfState, conf_change_to_raft};

use crate::log::Log;

/// raft-rs refused a change that the state machine had accepted.
#[derive(Debug, thiserror::Error)]
#[error("applying {change:?} to the raft configuration: {reason}")]
pub(crate) struct Refused {
    change: ConfChange,
    reason: String,
}

/// The configuration that follows when an accepted change meets `state`; one of node 0 changes nothing. Ids
/// ascend.
pub(crate) fn follow(state: &ConfState, change: &ConfChange) -> ConfState {
    let mut next = state.clone();
    let id = change.node_id;
    let kind = change.kind().filter(|_| id != 0);
    if let Some(kind) = kind.filter(|kind| *kind != ConfChangeType::UpdateNode) {
        next.voters.retain(|voter| *voter != id);
        next.learners.retain(|learner| *learner != id);
        match kind {
            ConfChangeType::AddNode => next.voters.push(id),
            ConfChangeType::AddLearnerNode => next.learners.push(id),
            _ => {}
        }
    }
    next.voters.sort_unstable();
    next.learners.sort_unstable();
    next
}

/// Applies a committed change, already validated, to raft; returns its configuration, ids ascending.
pub(crate) fn apply(raw: &mut RawNode<Log>, change: &ConfChange) -> Result<ConfState, Refused> {
    let refused = |reason: String| Refused {
        change: change.clone(),
        reason,
    };
    let theirs =
        conf_change_to_raft(change).ok_or_else(|| refused("unknown kind of change".into()))?;
    let state = if theirs.node_id == 0 {
        // raft-rs would skip it too, but not in an empty configuration.
        raw.raft.prs().conf().to_conf_state()
    } else {
        raw.apply_conf_change(&theirs)
            .map_err(|error| refused(error.to_string()))?
    };
    keep_own_progress(raw).map_err(|error| refused(error.to_string()))?;
    let mut state = ConfState::from(state);
    state.voters.sort_unstable();
    state.learners.sort_unstable();
    Ok(state)
}

/// Gives a leader that is no longer in its configuration a progress that counts for nothing. It goes on
/// replicating, so that the others learn of its removal, until its process ends.
fn keep_own_progress(raw: &mut RawNode<Log>) -> raft::Result<()> {
    let raft = &mut raw.raft;
    let id = raft.id;
    if raft.state != StateRole::Leader || raft.prs().get(id).is_some() {
        return Ok(());
    }
    // Its kind is the default one: a voter.
    let add = eraftpb::ConfChangeSingle {
        node_id: id,
        ..Default::default()
    };
    let (_, progress) = Changer::new(raft.prs()).simple(&[add])?;
    let next = raft.raft_log.last_index();
    let unchanged = raft.prs().conf().clone();
    raft.mut_prs().apply_conf(unchanged, progress, next);
    Ok(())
}

/// Whether this member votes in the current configuration.
pub(crate) fn is_voter(raw: &RawNode<Log>) -> bool {
    raw.raft.prs().conf().voters().contains(raw.raft.id)
}
