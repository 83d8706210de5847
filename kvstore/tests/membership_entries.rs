//! Configuration changes and published attributes as the log brings them, over crashes and replays.

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::*;
use kvstore::{
    Duty, FatalError, Response, Store, StoreConfig,
    backend::{Backend, Bucket, memory::MemoryBackend},
    membership::{MembershipError, MembershipEvent},
    pb::{
        etcdserverpb::{InternalRaftRequest, RequestHeader},
        membershippb::{Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest},
    },
};
use prost::Message;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfChangeType, ConfState, Snapshot},
};

fn add(id: u64, kind: ConfChangeType) -> ConfChange {
    let learner = if kind == ConfChangeType::AddLearnerNode {
        r#","isLearner":true"#
    } else {
        ""
    };
    let context = format!(r#"{{"id":{id},"peerURLs":["http://127.0.0.1:{id}"]{learner}}}"#);
    ConfChange {
        id: 1000 + id,
        change_type: kind as i32,
        node_id: id,
        context: context.into(),
    }
}

fn remove(id: u64) -> ConfChange {
    ConfChange {
        id: 2000 + id,
        change_type: ConfChangeType::RemoveNode as i32,
        node_id: id,
        context: Bytes::new(),
    }
}

fn publish_attributes(id: u64, name: &str) -> Bytes {
    let request = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 77,
            ..Default::default()
        }),
        cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
            member_id: id,
            member_attributes: Some(Attributes {
                name: name.into(),
                client_urls: vec![format!("http://{name}:2379")],
            }),
        }),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

fn quick() -> StoreConfig {
    StoreConfig {
        flush_interval: Duration::from_millis(1),
        member_id: MemberId(1),
        ..config()
    }
}

#[derive(Clone)]
enum Entry {
    Normal(Bytes),
    Change(ConfChange),
}
use Entry::{Change, Normal};

/// Runs entries from the first on, as a node does: a change, then what raft is in after it. Returns what each change
/// was answered.
fn run(
    store: &mut Store,
    entries: &[Entry],
    voters: &mut Vec<u64>,
) -> Vec<Result<MembershipEvent, MembershipError>> {
    let mut answers = Vec::new();
    for (index, entry) in (1..).zip(entries) {
        match entry {
            Normal(data) => drop(store.apply(index, 1, data).unwrap()),
            Change(change) => {
                let answer = store.conf_change(index, change);
                match &answer {
                    Ok(MembershipEvent::Added {
                        id, learner: false, ..
                    }) => voters.push(id.0),
                    Ok(MembershipEvent::Removed { id }) => voters.retain(|voter| *voter != id.0),
                    _ => {}
                }
                let state = ConfState {
                    voters: voters.clone(),
                    ..Default::default()
                };
                store.set_conf_state(index, 1, &state).unwrap();
                answers.push(answer);
            }
        }
        store.publish().unwrap();
    }
    answers
}

fn entries() -> Vec<Entry> {
    use ConfChangeType::{AddLearnerNode, AddNode};
    vec![
        Change(add(1, AddNode)),
        Change(add(2, AddNode)),
        Normal(Bytes::new()),
        Normal(publish_attributes(1, "one")),
        Change(add(2, AddNode)), // refused: exists
        Change(add(3, AddLearnerNode)),
        Change(add(4, AddLearnerNode)), // refused: one learner is enough
        Change(remove(2)),
        Normal(publish_attributes(2, "late")), // ignored: removed
        Change(add(2, AddNode)),               // refused: removed for good
        Change(remove(9)),                     // refused: never there
    ]
}

fn shape(answers: &[Result<MembershipEvent, MembershipError>]) -> Vec<bool> {
    answers.iter().map(Result::is_ok).collect()
}

const ACCEPTED: [bool; 8] = [true, true, false, true, false, true, false, false];

#[test]
fn changes_are_validated_stored_and_survive() {
    let backend = Arc::new(MemoryBackend::default());
    let mut store = Store::open_on(quick(), backend.clone()).unwrap();
    let answers = run(&mut store, &entries(), &mut Vec::new());
    assert_eq!(shape(&answers), ACCEPTED);
    assert_eq!(answers[2], Err(MembershipError::IdExists));
    assert_eq!(answers[4], Err(MembershipError::TooManyLearners));
    assert_eq!(answers[6], Err(MembershipError::IdRemoved));
    assert_eq!(answers[7], Err(MembershipError::IdNotFound));
    let look = |store: &Store| {
        let reader = store.reader();
        let members: Vec<_> = reader
            .members()
            .iter()
            .map(|member| (member.id.0, member.name.clone(), member.is_learner))
            .collect();
        assert_eq!(
            members,
            [(1, "one".into(), false), (3, String::new(), true)]
        );
        assert!(reader.is_removed(MemberId(2)) && !reader.is_removed(MemberId(9)));
        assert_eq!(reader.conf_state().voters, [1]);
        assert_eq!(store.applied(), (11, 1));
    };
    look(&store);
    store.close().unwrap();
    let conf_state = backend
        .view()
        .unwrap()
        .get(Bucket::Meta, b"confState")
        .unwrap();
    assert_eq!(conf_state.unwrap(), br#"{"voters":[1],"auto_leave":false}"#);
    look(&Store::open_on(quick(), backend).unwrap());
}

#[test]
fn a_replay_answers_each_change_as_it_was_answered() {
    let backend = Arc::new(MemoryBackend::default());
    let mut store = Store::open_on(quick(), backend.clone()).unwrap();
    let (all, mut voters) = (entries(), Vec::new());
    let first = run(&mut store, &all, &mut voters);
    // A snapshot as it was after the first six entries.
    let half = Arc::new(MemoryBackend::default());
    let mut short = Store::open_on(quick(), half).unwrap();
    run(&mut short, &all[..6], &mut Vec::new());
    short.flush().unwrap();
    let snapshot: Snapshot = short.durable_snapshot().unwrap().unwrap();
    assert_eq!(snapshot.metadata.as_ref().unwrap().index, 6);
    let members = store.reader().members();
    store.close().unwrap();

    // raft begins from nothing: every change comes again.
    let mut store = Store::open_on(quick(), backend.clone()).unwrap();
    store.begin_replay(None).unwrap();
    assert_eq!(run(&mut store, &all, &mut Vec::new()), first);
    assert_eq!(
        store.reader().members(),
        members,
        "and changes nothing again"
    );
    store.close().unwrap();

    // raft begins from the snapshot: the later ones come again.
    let mut store = Store::open_on(quick(), backend).unwrap();
    store.begin_replay(Some(&snapshot)).unwrap();
    let mut answers = Vec::new();
    for (index, entry) in (1..).zip(&all).skip(6) {
        match entry {
            Normal(data) => drop(store.apply(index, 1, data).unwrap()),
            Change(change) => {
                answers.push(store.conf_change(index, change));
                store
                    .set_conf_state(index, 1, &ConfState::default())
                    .unwrap();
            }
        }
    }
    assert_eq!(answers, first[4..]);
    assert_eq!(
        store.reader().conf_state().voters,
        [1],
        "what is stored already stays"
    );
}

#[test]
fn a_change_reaches_the_backend_with_its_entry_and_not_before() {
    let backend = Arc::new(MemoryBackend::default());
    let mut store = Store::open_on(quick(), backend.clone()).unwrap();
    store.apply(1, 1, &Bytes::new()).unwrap();
    let change = add(1, ConfChangeType::AddNode);
    store.conf_change(2, &change).unwrap();
    // Whatever is flushed while raft decides does not hold the half of an entry.
    store.flush().unwrap();
    drop(store);
    let mut store = Store::open_on(quick(), backend).unwrap();
    assert_eq!(store.applied().0, 1);
    assert!(store.reader().members().is_empty());
    assert!(
        store.conf_change(2, &change).is_ok(),
        "so it can be applied again"
    );
}

#[test]
fn attributes_of_somebody_who_never_was_a_member_are_fatal() {
    let mut log = Log::new();
    let outcome = log.try_apply_bytes(publish_attributes(5, "five"));
    assert!(matches!(
        outcome,
        Err(FatalError::Impossible { index: 1, .. })
    ));
}

#[test]
fn the_schema_version_follows_the_cluster_version() {
    let backend = Arc::new(MemoryBackend::default());
    let mut log = Log::on(backend.clone());
    let storage = |log: &mut Log| {
        log.store.flush().unwrap();
        let row = backend
            .view()
            .unwrap()
            .get(Bucket::Meta, b"storageVersion")
            .unwrap();
        row.map(|row| String::from_utf8(row).unwrap())
    };
    for (version, expected) in [("3.5.0", None), ("3.6.0", Some("3.6.0")), ("3.5.0", None)] {
        let applied = log.apply(InternalRaftRequest {
            cluster_version_set: Some(ClusterVersionSetRequest {
                ver: version.into(),
            }),
            ..Default::default()
        });
        assert_eq!(applied.outcome, Ok(Response::Empty));
        assert!(matches!(applied.duty, Some(Duty::ClusterVersion { .. })));
        assert_eq!(storage(&mut log).as_deref(), expected);
    }
}
