//! One behaviour of the driver per test, with a hand on every input.

use bytes::Bytes;
use transport_core::raftpb::{Entry, MessageType, SnapshotMetadata};

use super::{
    bench::{Bench, append, change, from, proposal},
    *,
};
use crate::proposals::Proposal;

#[test]
fn a_leader_sends_in_parallel_with_its_write_and_one_message_per_turn() {
    let mut bench = Bench::new(3).lead();
    bench
        .driver
        .propose(bench.now, vec![proposal(1), proposal(2)]);
    bench.driver.propose(bench.now, vec![proposal(3)]);
    bench.settle();
    let appends = bench.sent(MessageType::Append);
    let shape: Vec<_> = appends.iter().map(|m| (m.to, m.entries.len())).collect();
    assert_eq!(shape.len(), 2, "one per follower: {shape:?}");
    assert!(shape.iter().all(|(_, entries)| *entries == 3));
    assert_eq!(bench.jobs.len(), 1, "and nothing is durable yet");
    assert!(bench.jobs[0].sync && bench.jobs[0].messages.is_empty());
}

#[test]
fn a_follower_promises_only_what_is_durable() {
    let mut bench = Bench::new(3);
    bench.receive(append(2, 1, 1, 2));
    bench.receive(Message {
        commit: 1,
        ..from(2, MessageType::Heartbeat, 2)
    });
    bench.propose(7);
    let kinds: Vec<_> = bench.sent.drain(..).map(|m| m.msg_type).collect();
    let (beat, prop) = (
        MessageType::HeartbeatResponse as i32,
        MessageType::Propose as i32,
    );
    assert_eq!(kinds, [beat, prop], "these leave at once");
    bench.persist();
    let acks = bench.sent(MessageType::AppendResponse);
    assert_eq!(acks.iter().map(|m| m.index).collect::<Vec<_>>(), [3]);
    // The same append again, while nothing is being written: the answer needs no disk.
    bench.receive(append(2, 1, 1, 2));
    assert_eq!(bench.sent(MessageType::AppendResponse).len(), 1);
}

#[test]
fn nothing_is_applied_before_it_is_durable() {
    let mut bench = Bench::new(3);
    bench.receive(Message {
        commit: 3,
        ..append(2, 1, 1, 2)
    });
    assert!(bench.tasks.is_empty(), "committed, but not durable here");
    bench.persist();
    let ApplyTask::Entries { entries, .. } = &bench.tasks[0] else {
        panic!("entries")
    };
    assert_eq!(entries.len(), 2);
}

#[test]
fn elections_wait_for_the_disk() {
    let mut bench = Bench::new(3);
    bench.receive(append(2, 1, 1, 2));
    for _ in 0..50 {
        bench.tick();
    }
    bench.receive(from(2, MessageType::TimeoutNow, 2));
    assert_eq!(bench.driver.numbers().role, Role::Follower);
    bench.persist();
    assert_eq!(bench.driver.numbers().role, Role::Candidate, "obeyed late");
    bench.persist();
    let votes = bench.sent(MessageType::RequestVote);
    assert_eq!(votes.len(), 2);
    assert_eq!(&votes[0].context[..], b"CampaignTransfer");
}

#[test]
fn reads_wait_for_the_first_commit_of_a_term() {
    let mut bench = Bench::new(3).elect();
    bench.driver.read(bench.now, 1);
    bench.settle();
    assert!(
        bench.sent(MessageType::Heartbeat).is_empty(),
        "not asked yet"
    );
    bench.persist();
    bench.acknowledge(2, 2);
    let beats = bench.sent(MessageType::Heartbeat);
    assert_eq!(beats[0].context.len(), 24);
    let term = bench.driver.numbers().term;
    bench.receive(Message {
        context: beats[0].context.clone(),
        ..from(3, MessageType::HeartbeatResponse, term)
    });
    assert_eq!(bench.reads, [(1, 2)]);
}

#[test]
fn a_remote_read_is_answered_with_its_own_context() {
    let mut bench = Bench::new(3).lead();
    let theirs = Bytes::from_static(b"8 bytes.");
    bench.driver.read(bench.now, 5);
    bench.receive(Message {
        entries: vec![Entry {
            data: theirs.clone(),
            ..Entry::default()
        }],
        ..from(3, MessageType::ReadIndex, 0)
    });
    let beats = bench.sent(MessageType::Heartbeat);
    let context = beats[0].context.clone();
    assert_ne!(context, theirs, "names in raft are ours");
    assert_eq!(beats.len(), 2, "both reads share a question");
    let term = bench.driver.numbers().term;
    bench.receive(Message {
        context,
        ..from(2, MessageType::HeartbeatResponse, term)
    });
    let answers = bench.sent(MessageType::ReadIndexResponse);
    assert_eq!(
        (answers[0].to, answers[0].index, answers[0].term),
        (3, 2, term)
    );
    assert_eq!(answers[0].entries[0].data, theirs);
    assert_eq!(bench.reads, [(5, 2)]);
}

#[test]
fn a_commit_index_is_not_worth_a_write_of_its_own() {
    let mut bench = Bench::new(3).lead();
    bench.tick();
    bench.persist();
    bench.propose(1);
    bench.persist();
    bench.acknowledge(2, 3);
    assert!(bench.jobs.is_empty(), "committed, and nothing to write");
    bench.propose(2);
    let state = bench.jobs[0].hard_state.expect("rides with the next job");
    assert_eq!(state.commit, 3);
    bench.persist();
    bench.acknowledge(2, 4);
    bench.tick();
    assert!(
        !bench.jobs[0].sync,
        "or is written, unsynced, at the next tick"
    );
    assert_eq!(bench.jobs[0].hard_state.map(|s| s.commit), Some(4));
}

#[test]
fn a_stalled_disk_costs_leadership_but_no_heartbeat() {
    let mut bench = Bench::new(3).lead();
    bench.propose(1);
    bench.acknowledge(3, 3);
    bench.sent.clear();
    let mut heirs = Vec::new();
    while heirs.is_empty() {
        bench.tick();
        assert_eq!(bench.sent(MessageType::Heartbeat).len(), 2);
        let term = bench.driver.numbers().term;
        bench.receive(from(3, MessageType::HeartbeatResponse, term));
        heirs = bench.sent(MessageType::TimeoutNow);
        assert!(bench.now < 4 * bench.driver.config.disk_stall_max);
    }
    assert_eq!(heirs[0].to, 3, "whose log is complete");
    bench.propose(2);
    assert!(
        bench.failed.is_empty(),
        "held until the new leader is known"
    );
}

#[test]
fn a_leader_survives_its_own_removal() {
    let mut bench = Bench::new(3).lead();
    bench.propose(1);
    bench.event(Event::ConfChange(change(1, 1)));
    assert_eq!(bench.conf_states[0].voters, [2, 3]);
    // Its entry becomes durable, then committed by the others: raft-rs looks for its progress both times.
    bench.persist();
    bench.acknowledge(2, 3);
    bench.acknowledge(3, 3);
    assert_eq!(bench.driver.numbers().committed, 3);
    bench.propose(2);
    assert_eq!(bench.failed, [(2, ProposeError::Removed)]);
    bench.driver.read(bench.now, 1);
    bench.settle();
    assert!(bench.reads.is_empty(), "it can no longer answer alone");
    assert!(bench.driver.progress().iter().all(|(id, _)| id.0 != 1));
}

#[test]
fn configuration_changes_have_etcds_numbers() {
    let mut bench = Bench::new(3).lead();
    let learner = change(3, 4);
    bench.receive(Message {
        entries: vec![Entry {
            entry_type: 1,
            data: learner.encode_gogo(),
            ..Entry::default()
        }],
        ..from(2, MessageType::Propose, 0)
    });
    let appended = &bench.jobs[0].entries[0];
    assert_eq!(
        (appended.entry_type, &appended.data),
        (1, &learner.encode_gogo())
    );
    bench.event(Event::ConfChange(learner));
    bench.event(Event::ConfChange(change(2, 3)));
    let state = bench.conf_states.last().expect("two answers");
    assert_eq!(
        (&state.voters[..], &state.learners[..]),
        (&[1, 2, 3][..], &[4][..])
    );

    // A second one before the first is applied: refused here, an empty entry for a remote proposer.
    let another = Proposal {
        kind: transport_core::raftpb::EntryType::ConfChange,
        data: change(1, 2).encode_gogo(),
        ..proposal(5)
    };
    bench.driver.propose(bench.now, vec![another]);
    bench.settle();
    assert_eq!(bench.failed, [(5, ProposeError::ConfChangePending)]);
    bench.jobs.clear();
    bench.receive(Message {
        entries: vec![Entry {
            entry_type: 1,
            data: change(1, 2).encode_gogo(),
            ..Entry::default()
        }],
        ..from(2, MessageType::Propose, 0)
    });
    assert_eq!(
        bench.jobs[0].entries[0],
        Entry {
            index: 4,
            term: 2,
            ..Entry::default()
        }
    );
}

#[test]
fn an_earlier_change_leaves_a_restored_configuration_alone() {
    let mut bench = Bench::new(3);
    bench.receive(Message {
        commit: 3,
        ..append(2, 1, 1, 2)
    });
    bench.persist();
    let conf_state = ConfState {
        voters: vec![1, 2],
        ..ConfState::default()
    };
    bench.receive(Message {
        snapshot: Some(Box::new(Snapshot {
            data: Bytes::new(),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index: 50,
                term: 2,
            }),
        })),
        ..from(2, MessageType::Snapshot, 2)
    });
    // The state machine only now meets a change at index 3, which the snapshot has left behind.
    bench.event(Event::ConfChange(change(0, 4)));
    assert_eq!(
        bench.conf_states[0].voters,
        [1, 2, 3, 4],
        "what the entry means there"
    );
    assert!(!bench.driver.raw.raft.prs().conf().voters().contains(4));
    bench.persist();
    bench.event(Event::Applied { index: 3, bytes: 0 });
    bench.event(Event::Applied {
        index: 50,
        bytes: 0,
    });
    bench.event(Event::ConfChange(change(0, 5)));
    assert_eq!(bench.conf_states[1].voters, [1, 2, 5]);
    assert!(bench.driver.raw.raft.prs().conf().voters().contains(5));
}

#[test]
fn a_backlog_drops_appends_and_keeps_heartbeats() {
    let mut bench = Bench::with(3, |config| config.apply_backlog_bytes_max = 100);
    bench.receive(Message {
        commit: 4,
        ..append(2, 1, 1, 3)
    });
    bench.persist();
    assert!(bench.driver.numbers().backlogged);
    bench.sent.clear();
    bench.receive(append(2, 4, 2, 1));
    assert_eq!(bench.driver.numbers().last_index, 4, "dropped");
    bench.receive(from(2, MessageType::Heartbeat, 2));
    assert_eq!(bench.sent(MessageType::HeartbeatResponse).len(), 1);
    bench.apply();
    bench.receive(append(2, 4, 2, 1));
    assert_eq!(bench.driver.numbers().last_index, 5);
}

#[test]
fn a_single_member_leads_with_its_first_tick() {
    let mut bench = Bench::new(1);
    bench.tick();
    assert!(bench.driver.is_leader());
    bench.propose(1);
    bench.persist();
    bench.driver.read(bench.now, 3);
    bench.settle();
    assert_eq!(bench.reads, [(3, 3)], "nobody has to be asked");
}

#[test]
fn the_first_election_can_be_brought_nearer_but_not_forced() {
    let mut bench = Bench::new(3);
    bench.event(Event::AdvanceElection { ticks: 8 });
    assert_eq!(bench.driver.raw.raft.election_elapsed, 8);
    bench.event(Event::AdvanceElection { ticks: 1000 });
    assert_eq!(bench.driver.raw.raft.election_elapsed, 9);
    bench.receive(from(2, MessageType::Heartbeat, 2));
    bench.event(Event::AdvanceElection { ticks: 8 });
    assert_eq!(
        bench.driver.raw.raft.election_elapsed, 0,
        "there is a leader"
    );
}

#[test]
fn a_snapshot_that_is_wanted_is_asked_for_until_it_is_there() {
    let mut bench = Bench::new(1);
    bench.tick();
    for id in 0..5 {
        bench.propose(id);
    }
    bench.persist();
    bench.apply();
    bench.tick();
    assert!(bench.tasks.is_empty(), "none is due");
    let snapshot = |bench: &Bench, index| Snapshot {
        data: Bytes::new(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(bench.driver.configuration.clone()),
            index,
            term: 2,
        }),
    };
    bench.event(Event::ForceSnapshot { index: 5 });
    // At first only an older state is durable.
    for index in [3, 6] {
        bench.tick();
        assert!(matches!(bench.tasks.pop(), Some(ApplyTask::TakeSnapshot)));
        let taken = Some(Box::new(snapshot(&bench, index)));
        bench.event(Event::SnapshotTaken(taken));
        bench.event(Event::SnapshotSaved { index });
    }
    bench.tick();
    assert!(bench.tasks.is_empty());
    assert_eq!(bench.driver.numbers().snapshot_index, 6);
}

#[test]
fn log_and_snapshot_stay_behind_what_is_durable() {
    let mut bench = Bench::with(1, |config| {
        config.snapshot_count = 10;
        config.catch_up_entries = 3;
    });
    bench.tick();
    for id in 0..20 {
        bench.propose(id);
    }
    bench.persist();
    bench.apply();
    bench.tick();
    assert!(matches!(bench.tasks.pop(), Some(ApplyTask::TakeSnapshot)));
    let snapshot = Snapshot {
        data: Bytes::new(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(bench.driver.configuration.clone()),
            index: 8,
            term: 2,
        }),
    };
    let taken = Event::SnapshotTaken(Some(Box::new(snapshot)));
    bench.driver.event(bench.now, taken);
    let effects = bench.driver.settle(bench.now);
    assert!(matches!(effects.wal.last(), Some(WalTask::Snapshot(_))));
    assert_eq!(
        bench.driver.raw.store().first(),
        1,
        "not before the file is durable"
    );
    bench.event(Event::SnapshotSaved { index: 8 });
    assert_eq!(
        bench.driver.raw.store().first(),
        6,
        "three entries stay for those that lag"
    );
    assert_eq!(bench.driver.numbers().snapshot_index, 8);
}
