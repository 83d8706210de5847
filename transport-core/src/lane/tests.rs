//! What a lane keeps, merges, refuses and in which order it yields.

use bytes::Bytes;

use super::*;

fn message(kind: MessageType, term: u64) -> Message {
    Message {
        msg_type: kind as i32,
        term,
        ..Message::default()
    }
}

fn heartbeat(term: u64, commit: u64, context: &'static [u8]) -> Message {
    Message {
        commit,
        context: Bytes::from_static(context),
        ..message(MessageType::Heartbeat, term)
    }
}

fn append(index: u64, bytes: usize) -> Message {
    let data = Bytes::from(vec![0; bytes]);
    Message {
        index,
        entries: vec![Entry {
            data,
            ..Entry::default()
        }],
        ..message(MessageType::Append, 1)
    }
}

fn drain(lane: &mut Lane) -> Vec<Message> {
    let mut messages = Vec::new();
    lane.drain(usize::MAX, &mut messages);
    messages
}

fn lane(bulk_bytes: usize) -> Lane {
    let control_bytes = 4 * size_of::<Message>();
    Lane::new(
        Budget {
            control_bytes,
            bulk_bytes,
        },
        None,
    )
}

#[test]
fn heartbeats_come_first_then_control_then_bulk_each_in_order() {
    let mut lane = Lane::new(Budget::default(), None);
    for pushed in [
        append(1, 10),
        message(MessageType::AppendResponse, 1),
        append(2, 10),
        message(MessageType::HeartbeatResponse, 1),
        message(MessageType::RequestVote, 2),
        heartbeat(1, 0, b""),
    ] {
        assert_eq!(lane.push(pushed).unwrap(), Pushed::Queued);
    }
    assert_eq!(lane.len(), 6);
    let drained = drain(&mut lane);
    let kinds: Vec<i32> = drained.iter().map(|m| m.msg_type).collect();
    assert_eq!(kinds, [8, 9, 4, 5, 3, 3]);
    assert_eq!((drained[4].index, drained[5].index), (1, 2));
    assert!(lane.is_empty());
    assert_eq!(lane.bytes(), 0);
}

#[test]
fn a_full_bulk_queue_refuses_bulk_and_takes_heartbeats() {
    let mut lane = lane(2 * footprint(&append(0, 100)));
    lane.push(append(1, 100)).unwrap();
    lane.push(append(2, 100)).unwrap();
    let refused = lane.push(append(3, 100)).unwrap_err();
    assert_eq!(refused.reason, DropReason::BulkFull);
    assert_eq!(refused.message, append(3, 100));
    lane.push(heartbeat(1, 7, b"")).unwrap();
    lane.push(message(MessageType::AppendResponse, 1)).unwrap();
    assert_eq!(drain(&mut lane).len(), 4);
    lane.push(append(3, 100)).unwrap();
}

#[test]
fn a_full_control_queue_refuses_control() {
    let mut lane = lane(0);
    for _ in 0..4 {
        lane.push(message(MessageType::RequestVote, 1)).unwrap();
    }
    let refused = lane.push(message(MessageType::RequestVote, 1));
    assert_eq!(refused.unwrap_err().reason, DropReason::ControlFull);
}

#[test]
fn an_empty_queue_takes_a_message_larger_than_its_bound() {
    let mut lane = lane(10);
    lane.push(append(1, 1000)).unwrap();
    assert!(lane.push(append(2, 1)).is_err());
}

#[test]
fn the_newest_heartbeat_wins() {
    let mut lane = lane(0);
    lane.push(heartbeat(1, 5, b"")).unwrap();
    assert_eq!(lane.push(heartbeat(1, 6, b"")).unwrap(), Pushed::Merged);
    assert_eq!(drain(&mut lane), [heartbeat(1, 6, b"")]);
}

#[test]
fn a_context_is_replaced_by_a_newer_context_or_a_higher_term_only() {
    for (held, pushed, kept) in [
        (
            heartbeat(2, 5, b"a"),
            heartbeat(2, 6, b""),
            heartbeat(2, 6, b"a"),
        ),
        (
            heartbeat(2, 5, b"a"),
            heartbeat(2, 6, b"b"),
            heartbeat(2, 6, b"b"),
        ),
        (
            heartbeat(2, 5, b""),
            heartbeat(2, 6, b"b"),
            heartbeat(2, 6, b"b"),
        ),
        (
            heartbeat(2, 5, b"a"),
            heartbeat(3, 6, b""),
            heartbeat(3, 6, b""),
        ),
        (
            heartbeat(2, 5, b"a"),
            heartbeat(1, 6, b"b"),
            heartbeat(2, 5, b"a"),
        ),
    ] {
        let mut lane = lane(0);
        lane.push(held).unwrap();
        lane.push(pushed).unwrap();
        assert_eq!(drain(&mut lane), [kept]);
    }
}

#[test]
fn responses_and_requests_have_slots_of_their_own() {
    let mut lane = lane(0);
    lane.push(heartbeat(1, 0, b"x")).unwrap();
    lane.push(message(MessageType::HeartbeatResponse, 1))
        .unwrap();
    assert_eq!(lane.len(), 2);
}

#[test]
fn what_does_not_fit_a_slot_queues_as_control() {
    let mut lane = lane(0);
    let large: &[u8] = &[7; SLOT_BYTES_MAX];
    lane.push(heartbeat(1, 0, large)).unwrap();
    lane.push(heartbeat(1, 1, b"")).unwrap();
    let stranger = Message {
        from: 9,
        ..heartbeat(1, 2, b"")
    };
    assert_eq!(lane.push(stranger.clone()).unwrap_err().message, stranger);
    let commits: Vec<u64> = drain(&mut lane).iter().map(|m| m.commit).collect();
    assert_eq!(commits, [1, 0]);
    lane.push(heartbeat(1, 1, b"")).unwrap();
    lane.push(stranger.clone()).unwrap();
    assert_eq!(drain(&mut lane), [heartbeat(1, 1, b""), stranger]);
}

#[test]
fn a_batch_is_bounded_and_never_empty() {
    let mut lane = Lane::new(Budget::default(), None);
    for index in 0..10 {
        lane.push(append(index, 1000)).unwrap();
    }
    let one = footprint(&append(0, 1000));
    let mut batch = Vec::new();
    assert_eq!(lane.drain(1, &mut batch), one);
    assert_eq!(lane.drain(2 * one, &mut batch), 2 * one);
    assert_eq!(lane.drain(2 * one + 1, &mut batch), 3 * one);
    assert_eq!(lane.bytes(), 4 * one);
    let indexes: Vec<u64> = batch.iter().map(|m| m.index).collect();
    assert_eq!(indexes, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn lanes_share_a_budget_and_give_it_back() {
    let one = footprint(&append(0, 100));
    let shared = SharedBudget::new(2 * one);
    let mut first = Lane::new(Budget::default(), Some(shared.clone()));
    let mut second = Lane::new(Budget::default(), Some(shared.clone()));
    first.push(append(1, 100)).unwrap();
    second.push(append(1, 100)).unwrap();
    let refused = second.push(append(2, 100)).unwrap_err();
    assert_eq!(refused.reason, DropReason::ProcessFull);
    second.push(heartbeat(1, 1, b"")).unwrap();
    assert_eq!(shared.used(), 2 * one);
    drain(&mut first);
    assert_eq!(shared.used(), one);
    let bytes = second.bytes();
    assert_eq!(second.clear(), Cleared { messages: 2, bytes });
    assert_eq!(shared.used(), 0);
    first.push(append(1, 100)).unwrap();
    drop(first);
    assert_eq!(shared.used(), 0);
}

#[test]
fn many_at_once_draw_on_the_budget_as_one_by_one() {
    let one = footprint(&append(0, 100));
    for (room, taken) in [
        (0, 1),
        (one, 1),
        (3 * one, 3),
        (3 * one + 1, 3),
        (usize::MAX, 5),
    ] {
        let shared = SharedBudget::new(room);
        let mut lane = Lane::new(Budget::default(), Some(shared.clone()));
        let mut refused = Vec::new();
        let queued = lane.push_all((0..5).map(|index| append(index, 100)), |back| {
            assert_eq!(back.reason, DropReason::ProcessFull);
            refused.push(back.message.index);
        });
        assert!(queued);
        assert_eq!(refused, (taken..5).collect::<Vec<u64>>(), "{room}");
        assert_eq!(shared.used(), taken as usize * one, "{room}");
    }
}

#[test]
fn many_at_once_tell_whether_somebody_must_wake() {
    let mut lane = Lane::new(Budget::default(), None);
    let beats = || [heartbeat(1, 1, b""), heartbeat(1, 2, b"")].into_iter();
    assert!(lane.push_all(beats(), |_| unreachable!()));
    assert!(!lane.push_all(beats(), |_| unreachable!()));
    assert_eq!(drain(&mut lane), [heartbeat(1, 2, b"")]);
}

#[test]
fn reasons_have_distinct_labels() {
    let labels: std::collections::BTreeSet<_> = DropReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .collect();
    assert_eq!(labels.len(), DropReason::ALL.len());
}

#[test]
fn every_known_kind_has_a_class() {
    for number in 0..=24 {
        let message = Message {
            msg_type: number,
            ..Message::default()
        };
        let class = match number {
            8 => Class::Heartbeat,
            9 => Class::HeartbeatResponse,
            2 | 3 | 7 | 24 => Class::Bulk,
            _ => Class::Control,
        };
        assert_eq!(Class::of(&message), class, "{number}");
    }
}

#[test]
fn a_lane_that_shrinks_keeps_what_waits_and_little_more() {
    let mut lane = Lane::new(Budget::default(), None);
    for index in 0..1000 {
        lane.push(message(MessageType::Append, index)).unwrap();
    }
    let mut drained = Vec::new();
    lane.drain(1, &mut drained);
    lane.shrink();
    assert!(lane.bulk.messages.capacity() >= 999);
    lane.drain(usize::MAX, &mut drained);
    lane.shrink();
    assert!(lane.bulk.messages.capacity() <= 2 * QUEUE_MESSAGES_KEPT);
    assert_eq!((drained.len(), lane.bytes()), (1000, 0));
}
