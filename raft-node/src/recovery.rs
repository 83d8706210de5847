//! From what the disk and the state machine hold to what raft starts with.
//!
//! Depends on the two only. Invariants: raft starts at the state machine's applied index with the
//! configuration stored with it, so the two can never disagree; nothing is believed that contradicts the
//! log; a snapshot newer than the state machine is installed first.

use transport_core::raftpb::{ConfState, HardState};

use crate::{
    SnapshotError, StateMachine, StorageError,
    admit::{is_plain, is_usable},
    log::Log,
    storage::Contents,
    wal::Metadata,
};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Raft runs in a tokio runtime, and there is none here.
    #[error("not inside a tokio runtime")]
    NoRuntime,
    /// A setting raft refuses.
    #[error("invalid configuration: {0}")]
    Config(String),
    /// The log belongs to another member or cluster.
    #[error(
        "the log belongs to member {} of cluster {}, not to member {} of cluster {}",
        found.node_id, found.cluster_id, expected.node_id, expected.cluster_id
    )]
    WrongMember {
        /// In the log.
        found: Metadata,
        /// Asked for.
        expected: Metadata,
    },
    /// The log ends before what was committed or applied: its tail was lost.
    #[error(
        "the log ends at index {last}, but index {needed} was already {what}: its tail was lost"
    )]
    LogLost {
        /// Where it ends.
        last: u64,
        /// Where it should reach.
        needed: u64,
        /// How that is known.
        what: &'static str,
    },
    /// State machine and log are not of one history.
    #[error(
        "the state machine has applied index {index} in term {applied}, the log has term {logged} there"
    )]
    Mismatch {
        /// Applied.
        index: u64,
        /// Term according to the state machine.
        applied: u64,
        /// Term according to the log.
        logged: u64,
    },
    /// The entries do not follow each other, or the snapshot is none.
    #[error("the log cannot be used: {0}")]
    Damaged(String),
    /// The state machine could not take over the snapshot the log starts from.
    #[error("{0}")]
    Snapshot(#[from] SnapshotError),
    /// The log could not be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// What raft starts with.
pub(crate) struct Initial {
    pub log: Log,
    /// Contained in the state machine, and the index the configuration is of.
    pub applied: u64,
}

/// Brings state machine and log together.
pub(crate) fn recover<S: StateMachine>(
    contents: Contents,
    machine: &mut S,
) -> Result<Initial, StartError> {
    let Contents {
        snapshot,
        mut hard_state,
        entries,
    } = contents;
    let mut base = (0, 0);
    let mut base_state = ConfState::default();
    if let Some(snapshot) = snapshot {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        if !is_usable(&snapshot) {
            let text = format!(
                "the snapshot at index {} has no configuration",
                metadata.index
            );
            return Err(StartError::Damaged(text));
        }
        base = (metadata.index, metadata.term);
        base_state = metadata.conf_state.unwrap_or_default();
        if machine.applied().0 < metadata.index {
            tracing::info!(
                index = metadata.index,
                "installing a snapshot newer than the state machine"
            );
            machine.install(&snapshot)?;
            let (reached, needed) = (machine.applied().0, metadata.index);
            if reached < needed {
                let text = format!("installing it only reached index {reached}");
                let action = format!("the snapshot at index {needed}");
                return Err(SnapshotError::new(action, text).into());
            }
        }
    }
    let mut last = base;
    for entry in &entries {
        if entry.index != last.0 + 1 || entry.term < last.1 {
            let text = format!("entry {} follows entry {}", entry.index, last.0);
            return Err(StartError::Damaged(text));
        }
        last = (entry.index, entry.term);
    }
    let (contained, contained_term) = machine.applied();
    complete(&mut hard_state, last, base.0, contained)?;

    // The state machine's own pair of index and configuration. Only a state machine that stored none (one
    // written by etcd 3.4) goes through the configuration entries since the snapshot again.
    let stored = machine.stored_conf_state().filter(is_plain);
    let (applied, conf_state) = match stored {
        Some(stored) if contained > 0 => (contained, stored),
        _ => (base.0, base_state),
    };
    let entries = entries
        .into_iter()
        .map(raft::eraftpb::Entry::try_from)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StartError::Damaged(error.to_string()))?;
    let log = Log::new(base, entries, hard_state.into(), conf_state.into());
    match log.term_at(contained) {
        Some(logged) if contained_term != 0 && logged != contained_term => {
            Err(StartError::Mismatch {
                index: contained,
                applied: contained_term,
                logged,
            })
        }
        _ => Ok(Initial { log, applied }),
    }
}

/// Raises the hard state to what snapshot, state machine and entries prove.
///
/// A commit index alone is written without a sync, so it may be older than what was applied. A term may be
/// missing when only the entries of a torn write survived; nobody was voted for in it, or a hard state
/// would say so.
fn complete(
    state: &mut HardState,
    last: (u64, u64),
    snapshot: u64,
    contained: u64,
) -> Result<(), StartError> {
    for (needed, what) in [(contained, "applied"), (state.commit, "committed")] {
        if needed > last.0 {
            return Err(StartError::LogLost {
                last: last.0,
                needed,
                what,
            });
        }
    }
    state.commit = state.commit.max(snapshot).max(contained);
    if state.term < last.1 {
        state.term = last.1;
        state.vote = 0;
    }
    Ok(())
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
