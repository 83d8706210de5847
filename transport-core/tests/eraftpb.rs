//! The conversion to and from the types of the `raft` crate: nothing is lost, copied or misread.

#![cfg(feature = "eraftpb")]

mod support;

use bytes::Bytes;
use proptest::prelude::*;
use raft::eraftpb as theirs;
use transport_core::raftpb::*;

use support::{entry, message, snapshot};

proptest! {
    #[test]
    fn messages_survive(mut message in message()) {
        message.msg_type = message.msg_type.rem_euclid(19);
        for entry in &mut message.entries {
            entry.entry_type = entry.entry_type.rem_euclid(3);
        }
        let is_snapshot = message.msg_type == MessageType::Snapshot as i32;
        message.snapshot = message.snapshot.filter(|s| is_snapshot || !s.is_empty());
        let converted = theirs::Message::try_from(message.clone()).unwrap();
        prop_assert_eq!(converted.get_msg_type() as i32, message.msg_type);
        prop_assert_eq!(converted.get_entries().len(), message.entries.len());
        prop_assert_eq!(converted.has_snapshot(), message.snapshot.is_some());
        prop_assert_eq!(Message::from(converted), message);
    }

    #[test]
    fn entries_and_snapshots_survive(mut entry in entry(), snapshot in snapshot()) {
        entry.entry_type = entry.entry_type.rem_euclid(3);
        let converted = theirs::Entry::try_from(entry.clone()).unwrap();
        prop_assert_eq!(Entry::from(converted), entry);
        let converted = theirs::Snapshot::from(snapshot.clone());
        prop_assert_eq!(Snapshot::from(converted), snapshot);
    }
}

#[test]
fn hard_states_survive() {
    let state = HardState {
        term: 3,
        vote: 7,
        commit: 9,
    };
    let converted = theirs::HardState::from(state);
    assert_eq!(
        (converted.term, converted.vote, converted.commit),
        (3, 7, 9)
    );
    assert_eq!(HardState::from(converted), state);
}

#[test]
fn payloads_are_moved_not_copied() {
    let data = Bytes::from(vec![1; 1000]);
    let context = Bytes::from(vec![2; 100]);
    let message = Message {
        msg_type: MessageType::Append as i32,
        entries: vec![Entry {
            data: data.clone(),
            ..Entry::default()
        }],
        context: context.clone(),
        ..Message::default()
    };
    let converted = theirs::Message::try_from(message).unwrap();
    assert_eq!(converted.get_entries()[0].data.as_ptr(), data.as_ptr());
    assert_eq!(converted.context.as_ptr(), context.as_ptr());
    let back = Message::from(converted);
    assert_eq!(back.entries[0].data.as_ptr(), data.as_ptr());
    assert_eq!(back.context.as_ptr(), context.as_ptr());
}

#[test]
fn kinds_raft_rs_lacks_are_refused_instead_of_read_as_zero() {
    for number in [-1, 19, 20, 21, 22, 23, 24, i32::MAX] {
        let message = Message {
            msg_type: number,
            ..Message::default()
        };
        let refused = theirs::Message::try_from(message);
        assert_eq!(refused, Err(UnknownEnum::MessageType(number)));
    }
    let odd = Entry {
        entry_type: 3,
        ..Entry::default()
    };
    let message = Message {
        msg_type: MessageType::Append as i32,
        entries: vec![odd.clone()],
        ..Message::default()
    };
    assert_eq!(theirs::Entry::try_from(odd), Err(UnknownEnum::EntryType(3)));
    assert_eq!(
        theirs::Message::try_from(message),
        Err(UnknownEnum::EntryType(3))
    );
}

#[test]
fn fields_only_raft_rs_has_are_dropped() {
    let entry = theirs::Entry {
        term: 1,
        context: Bytes::from_static(b"lost"),
        sync_log: true,
        ..Default::default()
    };
    let message = theirs::Message {
        to: 2,
        entries: vec![entry].into(),
        request_snapshot: 5,
        commit_term: 6,
        priority: 7,
        deprecated_priority: 8,
        ..Default::default()
    };
    let ours = Message::from(message);
    let expected = Message {
        to: 2,
        entries: vec![Entry {
            term: 1,
            ..Entry::default()
        }],
        ..Message::default()
    };
    assert_eq!(ours, expected);
}

#[test]
fn an_empty_snapshot_is_none_to_raft_rs() {
    let message = |kind: MessageType| Message {
        msg_type: kind as i32,
        snapshot: Some(Box::default()),
        ..Message::default()
    };
    let has = |kind| {
        theirs::Message::try_from(message(kind))
            .unwrap()
            .has_snapshot()
    };
    assert!(!has(MessageType::Heartbeat));
    assert!(has(MessageType::Snapshot));
}

#[test]
fn configuration_changes_are_renumbered() {
    let change = |change_type: i32| ConfChange {
        id: 9,
        change_type,
        node_id: 7,
        context: Bytes::from_static(b"{}"),
    };
    use theirs::ConfChangeType as T;
    for (number, kind, node_id) in [
        (0, T::AddNode, 7),
        (1, T::RemoveNode, 7),
        (2, T::AddNode, 0),
        (3, T::AddLearnerNode, 7),
    ] {
        let converted = conf_change_to_raft(&change(number)).unwrap();
        assert_eq!(converted.get_change_type(), kind, "{number}");
        assert_eq!((converted.id, converted.node_id), (9, node_id), "{number}");
    }
    assert_eq!(conf_change_to_raft(&change(4)), None);
    assert_eq!(conf_change_to_raft(&change(-1)), None);
}
