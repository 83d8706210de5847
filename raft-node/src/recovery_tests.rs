//! What raft starts with, for each way a log and a state machine can meet.

use std::sync::{Arc, atomic::AtomicU64};

use transport_core::raftpb::{ConfChange, Entry, Snapshot, SnapshotMetadata};

use super::*;
use crate::ConfChangeVerdict;

#[derive(Default)]
struct Standing {
    applied: (u64, u64),
    conf_state: Option<ConfState>,
    /// Where an installation ends.
    installs_to: u64,
}

impl StateMachine for Standing {
    type Response = ();
    type Image = ();

    fn applied(&self) -> (u64, u64) {
        self.applied
    }
    fn stored_conf_state(&self) -> Option<ConfState> {
        self.conf_state.clone()
    }
    fn durable(&self) -> Arc<AtomicU64> {
        Arc::default()
    }
    fn apply(&mut self, _entry: Entry) -> Option<(u64, ())> {
        unreachable!("nothing is applied while starting")
    }
    fn conf_change(&mut self, _: &Entry, _: &ConfChange) -> ConfChangeVerdict<()> {
        unreachable!("nothing is applied while starting")
    }
    fn conf_state(&mut self, _index: u64, _term: u64, _state: ConfState) {}
    fn flush_batch(&mut self) {}
    fn image(&mut self) -> Result<(Snapshot, ()), SnapshotError> {
        unreachable!("nothing is sent while starting")
    }
    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        unreachable!("nothing is taken while starting")
    }
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        let metadata = snapshot.metadata.clone().unwrap_or_default();
        self.applied = (self.installs_to, metadata.term);
        self.conf_state = metadata.conf_state;
        Ok(())
    }
    fn leadership(&mut self, _is_leader: bool, _term: u64) {}
}

fn voters(voters: &[u64]) -> ConfState {
    ConfState {
        voters: voters.into(),
        ..ConfState::default()
    }
}

/// A log with a snapshot at 10 (none at 0) and entries of the given terms after it.
fn contents(snapshot: u64, terms: &[u64], term: u64, vote: u64, commit: u64) -> Contents {
    let metadata = SnapshotMetadata {
        conf_state: Some(voters(&[1, 2])),
        index: snapshot,
        term: 2,
    };
    let entries = (snapshot + 1..).zip(terms);
    Contents {
        snapshot: (snapshot > 0).then(|| Snapshot {
            metadata: Some(metadata),
            ..Snapshot::default()
        }),
        hard_state: HardState { term, vote, commit },
        entries: entries
            .map(|(index, term)| Entry {
                index,
                term: *term,
                ..Entry::default()
            })
            .collect(),
    }
}

fn standing(index: u64, term: u64) -> Standing {
    Standing {
        applied: (index, term),
        conf_state: (index > 0).then(|| voters(&[1, 2, 3])),
        ..Standing::default()
    }
}

/// Applied index, configuration and hard state (term, vote, commit).
fn start(
    contents: Contents,
    mut machine: Standing,
) -> Result<(u64, ConfState, [u64; 3]), StartError> {
    let Initial { log, applied } = recover(contents, &mut machine)?;
    let state = raft::Storage::initial_state(&log).expect("in memory");
    let hard = state.hard_state;
    Ok((
        applied,
        log.conf_state(),
        [hard.term, hard.vote, hard.commit],
    ))
}

#[test]
fn an_empty_log_joins_and_a_first_one_begins() {
    let joins = start(Contents::default(), Standing::default()).expect("an empty log");
    assert_eq!(joins, (0, ConfState::default(), [0, 0, 0]));
    let begins = start(contents(0, &[1, 1, 1], 1, 0, 3), Standing::default());
    assert_eq!(
        begins.expect("a new cluster"),
        (0, ConfState::default(), [1, 0, 3])
    );
}

#[test]
fn the_state_machine_decides_where_to_go_on() {
    // It is ahead of the snapshot, and of the commit index that was written without a sync.
    let ahead = start(contents(10, &[2, 3, 3], 3, 2, 11), standing(12, 3));
    assert_eq!(ahead.expect("sound"), (12, voters(&[1, 2, 3]), [3, 2, 12]));
    // It knows no configuration: the log is gone through from the snapshot on.
    let unknowing = Standing {
        conf_state: None,
        ..standing(12, 3)
    };
    let again = start(contents(10, &[2, 3, 3], 3, 2, 12), unknowing);
    assert_eq!(again.expect("sound"), (10, voters(&[1, 2]), [3, 2, 12]));
}

#[test]
fn a_snapshot_newer_than_the_state_machine_is_installed() {
    let machine = Standing {
        installs_to: 10,
        ..standing(4, 1)
    };
    let installed = start(contents(10, &[2], 2, 0, 10), machine);
    assert_eq!(installed.expect("sound"), (10, voters(&[1, 2]), [2, 0, 10]));
    let machine = Standing {
        installs_to: 9,
        ..standing(4, 1)
    };
    let failed = start(contents(10, &[2], 2, 0, 10), machine);
    assert!(matches!(failed, Err(StartError::Snapshot(_))));
}

#[test]
fn a_term_that_only_entries_know_is_taken_without_a_vote() {
    let torn = start(contents(10, &[2, 5], 4, 3, 10), standing(10, 2));
    assert_eq!(torn.expect("sound").2, [5, 0, 10]);
}

#[test]
fn contradictions_are_refused() {
    let lost = start(contents(10, &[2], 2, 0, 11), standing(15, 2));
    assert!(matches!(
        lost,
        Err(StartError::LogLost {
            last: 11,
            needed: 15,
            what: "applied"
        })
    ));
    let lost = start(contents(10, &[2], 2, 0, 13), standing(10, 2));
    assert!(matches!(
        lost,
        Err(StartError::LogLost {
            needed: 13,
            what: "committed",
            ..
        })
    ));
    let other = start(contents(10, &[2, 3], 3, 0, 12), standing(12, 9));
    assert!(matches!(
        other,
        Err(StartError::Mismatch {
            index: 12,
            applied: 9,
            logged: 3
        })
    ));
    let mut gap = contents(10, &[2, 3], 3, 0, 12);
    gap.entries.remove(0);
    assert!(matches!(
        start(gap, standing(10, 2)),
        Err(StartError::Damaged(_))
    ));
    let back = contents(10, &[3, 2], 3, 0, 12);
    assert!(matches!(
        start(back, standing(10, 2)),
        Err(StartError::Damaged(_))
    ));
    let mut bare = contents(10, &[2], 2, 0, 10);
    let metadata = bare.snapshot.as_mut().and_then(|s| s.metadata.as_mut());
    metadata.expect("it has").conf_state = None;
    assert!(matches!(
        start(bare, standing(10, 2)),
        Err(StartError::Damaged(_))
    ));
}
