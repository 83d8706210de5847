//! One row per rule: a message that raft must not see, and the same one made right.

use transport_core::raftpb::SnapshotMetadata;

use super::*;

/// This member is 1 in term 5; its log is 1..=10, committed up to 7, with term 3 up to 6 and 5 above.
fn decide(
    message: &Message,
    is_leader: bool,
    backlog: Option<DropReason>,
) -> Result<MessageType, DropReason> {
    let term_at = |index: u64| match index {
        0 => Some(0),
        1..=6 => Some(3),
        7..=10 => Some(5),
        _ => None,
    };
    let view = View {
        id: MemberId(1),
        term: 5,
        is_leader,
        committed: 7,
        last_index: 10,
        term_at: &term_at,
        is_removed: &|id| id == MemberId(9),
        backlog,
    };
    admit(message, &view)
}

fn message(kind: MessageType) -> Message {
    Message {
        msg_type: kind as i32,
        to: 1,
        from: 2,
        term: 5,
        ..Message::default()
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        ..Entry::default()
    }
}

fn append(index: u64, log_term: u64, entries: &[(u64, u64)]) -> Message {
    Message {
        index,
        log_term,
        entries: entries.iter().map(|(i, t)| entry(*i, *t)).collect(),
        ..message(MessageType::Append)
    }
}

fn typed(entry_type: i32, data: &'static [u8]) -> Message {
    let mut message = append(10, 5, &[(11, 5)]);
    message.entries[0].entry_type = entry_type;
    message.entries[0].data = Bytes::from_static(data);
    message
}

fn snapshot_of(index: u64, term: u64, conf_state: Option<ConfState>) -> Message {
    Message {
        snapshot: Some(Box::new(Snapshot {
            data: Bytes::new(),
            metadata: Some(SnapshotMetadata {
                conf_state,
                index,
                term,
            }),
        })),
        ..message(MessageType::Snapshot)
    }
}

fn voters(voters: &[u64], learners: &[u64]) -> Option<ConfState> {
    Some(ConfState {
        voters: voters.into(),
        learners: learners.into(),
        ..ConfState::default()
    })
}

fn proposal(entries: Vec<Entry>) -> Message {
    Message {
        term: 0,
        entries,
        ..message(MessageType::Propose)
    }
}

fn check(rows: Vec<(&str, Message, Result<MessageType, DropReason>)>, is_leader: bool) {
    for (name, message, expected) in rows {
        assert_eq!(decide(&message, is_leader, None), expected, "{name}");
    }
}

#[test]
fn envelope_rules() {
    use DropReason as D;
    use MessageType as T;
    let beat = || message(T::Heartbeat);
    check(
        vec![
            ("plain", beat(), Ok(T::Heartbeat)),
            (
                "unknown kind",
                Message {
                    msg_type: 99,
                    ..beat()
                },
                Err(D::UnknownType),
            ),
            ("local kind", message(T::Hup), Err(D::Local)),
            ("storage kind", message(T::StorageAppend), Err(D::Local)),
            (
                "other receiver",
                Message { to: 3, ..beat() },
                Err(D::NotForUs),
            ),
            (
                "nobody",
                Message { from: 0, ..beat() },
                Err(D::InvalidSender),
            ),
            (
                "ourselves",
                Message { from: 1, ..beat() },
                Err(D::InvalidSender),
            ),
            (
                "removed",
                Message { from: 9, ..beat() },
                Err(D::RemovedSender),
            ),
            (
                "no term",
                Message { term: 0, ..beat() },
                Err(D::InvalidTerm),
            ),
            (
                "huge term",
                Message {
                    term: u64::MAX,
                    ..beat()
                },
                Err(D::OutOfRange),
            ),
            (
                "huge hint",
                Message {
                    reject_hint: u64::MAX,
                    ..beat()
                },
                Err(D::OutOfRange),
            ),
            ("transfer", message(T::TransferLeader), Err(D::NotLeader)),
        ],
        false,
    );
    check(
        vec![(
            "transfer",
            message(T::TransferLeader),
            Ok(T::TransferLeader),
        )],
        true,
    );
}

#[test]
fn append_rules() {
    use DropReason as D;
    let ok = Ok(MessageType::Append);
    let mut gogo = typed(1, b"");
    gogo.entries[0].data = ConfChange::default().encode_gogo();
    check(
        vec![
            ("extends", append(10, 5, &[(11, 5), (12, 5)]), ok),
            ("empty", append(10, 5, &[]), ok),
            ("from the beginning", append(0, 0, &[(1, 3)]), ok),
            (
                "before the log ends, older leader's tail",
                append(8, 5, &[(9, 5)]),
                ok,
            ),
            ("beyond the log", append(90, 5, &[(91, 5)]), ok),
            (
                "beyond the log with term 0",
                append(90, 0, &[(91, 5)]),
                Err(D::InvalidEntries),
            ),
            (
                "position 0 with a term",
                append(0, 1, &[]),
                Err(D::InvalidEntries),
            ),
            ("gap", append(10, 5, &[(12, 5)]), Err(D::InvalidEntries)),
            (
                "repeats",
                append(10, 5, &[(11, 5), (11, 5)]),
                Err(D::InvalidEntries),
            ),
            ("term 0", append(0, 0, &[(1, 0)]), Err(D::InvalidEntries)),
            (
                "terms go back",
                append(10, 5, &[(11, 4)]),
                Err(D::InvalidEntries),
            ),
            (
                "term of the future",
                append(10, 5, &[(11, 6)]),
                Err(D::InvalidEntries),
            ),
            (
                "log term of the future",
                append(10, 6, &[]),
                Err(D::InvalidEntries),
            ),
            (
                "committed differs",
                append(5, 3, &[(6, 4)]),
                Err(D::ConflictsCommitted),
            ),
            (
                "anchor differs",
                append(7, 4, &[]),
                Err(D::ConflictsCommitted),
            ),
            ("uncommitted may differ", append(7, 5, &[(8, 5)]), ok),
            ("change", gogo, ok),
            (
                "change that cannot be read",
                typed(1, b"\xff\xff"),
                Err(D::InvalidConfChange),
            ),
            (
                "change of unknown kind",
                typed(1, b"\x10\x07"),
                Err(D::InvalidConfChange),
            ),
            ("joint", typed(2, b""), Err(D::JointConsensus)),
            ("unknown kind", typed(7, b""), Err(D::InvalidEntries)),
        ],
        false,
    );
    // An old leader's claims about what is committed do not matter: raft answers with the newer term.
    let stale = Message {
        term: 4,
        ..append(5, 3, &[(6, 4)])
    };
    assert_eq!(decide(&stale, false, None), ok);
    for reason in [D::ApplyBacklog, D::WalBacklog] {
        let message = append(10, 5, &[(11, 5)]);
        assert_eq!(decide(&message, false, Some(reason)), Err(reason));
    }
}

#[test]
fn commit_rules() {
    use DropReason as D;
    use MessageType as T;
    let beat = |commit, term| Message {
        commit,
        term,
        ..message(T::Heartbeat)
    };
    let ack = |index, reject, term| Message {
        index,
        reject,
        term,
        ..message(T::AppendResponse)
    };
    check(
        vec![
            ("last", beat(10, 5), Ok(T::Heartbeat)),
            ("beyond", beat(11, 5), Err(D::LogLost)),
            ("beyond, newer leader", beat(11, 6), Err(D::LogLost)),
            ("beyond, old leader", beat(11, 4), Ok(T::Heartbeat)),
            ("ack, not leader", ack(11, false, 5), Ok(T::AppendResponse)),
        ],
        false,
    );
    check(
        vec![
            ("ack of the last", ack(10, false, 5), Ok(T::AppendResponse)),
            ("ack beyond", ack(11, false, 5), Err(D::AheadOfLog)),
            ("reject beyond", ack(11, true, 5), Ok(T::AppendResponse)),
            (
                "ack of another term",
                ack(11, false, 6),
                Ok(T::AppendResponse),
            ),
        ],
        true,
    );
}

#[test]
fn snapshot_rules() {
    use DropReason as D;
    let ok = Ok(MessageType::Snapshot);
    let joint = Some(ConfState {
        voters_outgoing: vec![1],
        ..voters(&[1, 2], &[]).unwrap_or_default()
    });
    let leaving = Some(ConfState {
        auto_leave: true,
        ..voters(&[1, 2], &[]).unwrap_or_default()
    });
    check(
        vec![
            ("plain", snapshot_of(20, 5, voters(&[1, 2], &[3])), ok),
            (
                "without",
                message(MessageType::Snapshot),
                Err(D::InvalidSnapshot),
            ),
            (
                "index 0",
                snapshot_of(0, 5, voters(&[1], &[])),
                Err(D::InvalidSnapshot),
            ),
            (
                "term 0",
                snapshot_of(20, 0, voters(&[1], &[])),
                Err(D::InvalidSnapshot),
            ),
            (
                "newer than its leader",
                snapshot_of(20, 6, voters(&[1], &[])),
                Err(D::InvalidSnapshot),
            ),
            (
                "huge",
                snapshot_of(u64::MAX, 5, voters(&[1], &[])),
                Err(D::OutOfRange),
            ),
            (
                "no configuration",
                snapshot_of(20, 5, None),
                Err(D::InvalidSnapshot),
            ),
            (
                "no voters",
                snapshot_of(20, 5, voters(&[], &[1])),
                Err(D::InvalidSnapshot),
            ),
            (
                "twice",
                snapshot_of(20, 5, voters(&[1, 1], &[])),
                Err(D::InvalidSnapshot),
            ),
            (
                "voter and learner",
                snapshot_of(20, 5, voters(&[1], &[1])),
                Err(D::InvalidSnapshot),
            ),
            (
                "nobody",
                snapshot_of(20, 5, voters(&[0, 1], &[])),
                Err(D::InvalidSnapshot),
            ),
            ("joint", snapshot_of(20, 5, joint), Err(D::InvalidSnapshot)),
            (
                "leaving",
                snapshot_of(20, 5, leaving),
                Err(D::InvalidSnapshot),
            ),
            (
                "differs from committed",
                snapshot_of(7, 4, voters(&[1], &[])),
                Err(D::ConflictsCommitted),
            ),
        ],
        false,
    );
}

#[test]
fn proposal_and_read_rules() {
    use DropReason as D;
    use MessageType as T;
    let change = Entry {
        entry_type: 1,
        data: Bytes::from_static(b"\x0b\x0b\x0b"),
        ..Entry::default()
    };
    let joint = Entry {
        entry_type: 2,
        ..Entry::default()
    };
    let read = |entries| Message {
        term: 0,
        entries,
        ..message(T::ReadIndex)
    };
    let long = Entry {
        data: vec![0; 1025].into(),
        ..Entry::default()
    };
    let answer = |entries| Message {
        entries,
        ..message(T::ReadIndexResponse)
    };
    check(
        vec![
            ("proposal", proposal(vec![entry(0, 0)]), Ok(T::Propose)),
            (
                "own proposal",
                Message {
                    from: 1,
                    ..proposal(vec![entry(0, 0)])
                },
                Ok(T::Propose),
            ),
            ("empty", proposal(vec![]), Err(D::InvalidEntries)),
            (
                "with term",
                Message {
                    term: 5,
                    ..proposal(vec![entry(0, 0)])
                },
                Err(D::InvalidTerm),
            ),
            (
                "bad change",
                proposal(vec![entry(0, 0), change]),
                Err(D::InvalidConfChange),
            ),
            ("joint", proposal(vec![joint]), Err(D::JointConsensus)),
            ("read", read(vec![entry(0, 0)]), Ok(T::ReadIndex)),
            (
                "read of ourselves",
                Message {
                    from: 1,
                    ..read(vec![entry(0, 0)])
                },
                Err(D::InvalidSender),
            ),
            ("read of nothing", read(vec![]), Err(D::InvalidRead)),
            (
                "read of two",
                read(vec![entry(0, 0); 2]),
                Err(D::InvalidRead),
            ),
            (
                "read with a long context",
                read(vec![long]),
                Err(D::InvalidRead),
            ),
            (
                "read with term",
                Message {
                    term: 5,
                    ..read(vec![entry(0, 0)])
                },
                Err(D::InvalidTerm),
            ),
            (
                "answer",
                answer(vec![entry(0, 0)]),
                Ok(T::ReadIndexResponse),
            ),
            ("answer to nothing", answer(vec![]), Err(D::InvalidRead)),
        ],
        true,
    );
    let refused = decide(&proposal(vec![entry(0, 0)]), true, Some(D::ApplyBacklog));
    assert_eq!(refused, Err(D::ApplyBacklog));
}
