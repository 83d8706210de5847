//! A message of every kind that members send each other, with every field its kind uses set.

use bytes::Bytes;
use transport_core::raftpb::{
    ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata,
};

/// The term of all messages that have one.
const TERM: u64 = 5;
/// An entry that fits into no buffer of 1 MiB, which Go reuses below that size.
const LARGE_ENTRY_BYTES: usize = (1 << 20) + 4097;

/// Every kind, some in several forms; the appends make a full frame, compact ones, an empty one and a gap.
pub fn all(from: u64, to: u64) -> Vec<Message> {
    let mut messages = appends(from, to);
    messages.extend(others(from, to));
    messages.push(snapshot(from, to, 77));
    messages
}

fn of(kind: MessageType, from: u64, to: u64) -> Message {
    Message {
        msg_type: kind as i32,
        from,
        to,
        term: TERM,
        ..Message::default()
    }
}

fn entry(index: u64, kind: EntryType, data: Vec<u8>) -> Entry {
    Entry {
        entry_type: kind as i32,
        term: TERM,
        index,
        data: data.into(),
    }
}

/// Appends in the order of a leader.
pub fn appends(from: u64, to: u64) -> Vec<Message> {
    let append = |log_term, index, entries: Vec<Entry>| Message {
        log_term,
        index,
        entries,
        commit: index,
        ..of(MessageType::Append, from, to)
    };
    let normal = |index, bytes| entry(index, EntryType::Normal, vec![index as u8; bytes]);
    vec![
        append(4, 9, vec![normal(10, 0)]),
        append(TERM, 10, vec![normal(11, 3), normal(12, 300)]),
        append(TERM, 12, Vec::new()),
        append(
            TERM,
            12,
            vec![
                entry(13, EntryType::ConfChange, vec![8, 1]),
                entry(14, EntryType::ConfChangeV2, vec![9; 40]),
            ],
        ),
        append(TERM, 14, vec![normal(15, LARGE_ENTRY_BYTES)]),
        append(TERM, 30, vec![normal(31, 1)]),
    ]
}

/// All kinds but appends and snapshots.
fn others(from: u64, to: u64) -> Vec<Message> {
    let context = Bytes::from_static(b"\x00read\xff");
    let proposal = Entry {
        data: Bytes::from_static(b"proposed"),
        ..Entry::default()
    };
    let with = |kind, change: &dyn Fn(&mut Message)| {
        let mut message = of(kind, from, to);
        change(&mut message);
        message
    };
    use MessageType as Kind;
    vec![
        with(Kind::Propose, &|m| {
            (m.term, m.entries) = (0, vec![proposal.clone(), proposal.clone()]);
        }),
        with(Kind::AppendResponse, &|m| m.index = 12),
        with(Kind::AppendResponse, &|m| {
            (m.index, m.reject, m.reject_hint, m.log_term) = (12, true, 8, 4);
        }),
        with(Kind::RequestVote, &|m| {
            (m.index, m.log_term) = (u64::MAX, 4);
            m.context = Bytes::from_static(b"CampaignTransfer");
        }),
        with(Kind::RequestVoteResponse, &|m| m.reject = true),
        with(Kind::RequestPreVote, &|m| (m.index, m.log_term) = (31, 5)),
        with(Kind::RequestPreVoteResponse, &|_| {}),
        with(Kind::Heartbeat, &|m| {
            (m.commit, m.context) = (300, context.clone());
        }),
        with(Kind::HeartbeatResponse, &|m| m.context = context.clone()),
        with(Kind::TransferLeader, &|m| m.term = 0),
        with(Kind::TimeoutNow, &|_| {}),
        with(Kind::ReadIndex, &|m| {
            (m.term, m.entries) = (0, vec![proposal.clone()]);
        }),
        with(Kind::ReadIndexResponse, &|m| {
            (m.index, m.entries) = (12, vec![proposal.clone()]);
        }),
    ]
}

/// A snapshot of `index`, in a cluster with voters, learners, and a change of both under way.
pub fn snapshot(from: u64, to: u64, index: u64) -> Message {
    let conf_state = ConfState {
        voters: vec![from, to],
        learners: vec![u64::MAX],
        voters_outgoing: vec![from],
        learners_next: vec![3],
        auto_leave: true,
    };
    Message {
        snapshot: Some(Box::new(Snapshot {
            data: Bytes::from_static(b"{\"members\":{}}"),
            metadata: Some(SnapshotMetadata {
                conf_state: Some(conf_state),
                index,
                term: 4,
            }),
        })),
        ..of(MessageType::Snapshot, from, to)
    }
}
