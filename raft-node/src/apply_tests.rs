//! The apply engine over a state machine that writes down what it is told.

use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use transport_core::raftpb::{ConfChangeType, SnapshotMetadata};

use super::*;
use crate::{ConfChangeVerdict, SnapshotError};

/// The request in an entry that takes long.
const SLOW: u8 = 99;

#[derive(Default)]
struct Diary {
    applied: (u64, u64),
    told: Vec<String>,
    /// Members whose changes are refused.
    refused: u64,
    fails: bool,
    durable: u64,
}

impl StateMachine for Diary {
    type Response = u64;
    type Image = ();

    fn applied(&self) -> (u64, u64) {
        self.applied
    }
    fn stored_conf_state(&self) -> Option<ConfState> {
        None
    }
    fn durable(&self) -> Arc<AtomicU64> {
        Arc::new(self.durable.into())
    }
    fn apply(&mut self, entry: Entry) -> Option<(u64, u64)> {
        self.applied = (entry.index, entry.term);
        self.told.push(format!("entry {}", entry.index));
        entry.data.first().map(|id| (u64::from(*id), entry.index))
    }
    fn applies_at_once(&self, entry: &Entry) -> bool {
        entry.data[..] != [SLOW]
    }
    fn conf_change(&mut self, entry: &Entry, change: &ConfChange) -> ConfChangeVerdict<u64> {
        self.applied.0 = self.applied.0.max(entry.index);
        self.told.push(format!("change {}", entry.index));
        ConfChangeVerdict {
            accepted: change.node_id != self.refused,
            response: entry.index,
        }
    }
    fn conf_state(&mut self, index: u64, _term: u64, conf_state: ConfState) {
        self.told
            .push(format!("configuration {index} {:?}", conf_state.voters));
    }
    fn flush_batch(&mut self) {
        self.told.push("flush".into());
    }
    fn image(&mut self) -> Result<(Snapshot, ()), SnapshotError> {
        if self.fails {
            return Err(SnapshotError::new("taking an image", "no memory"));
        }
        Ok((at(self.applied.0), ()))
    }
    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        if self.fails {
            return Err(SnapshotError::new("taking a snapshot", "no memory"));
        }
        Ok(Some(at(self.applied.0)))
    }
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        if self.fails {
            return Err(SnapshotError::new("installing", "no file"));
        }
        self.applied.0 = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        self.told.push(format!("install {}", self.applied.0));
        Ok(())
    }
    fn leadership(&mut self, is_leader: bool, term: u64) {
        self.told.push(format!("leader {is_leader} {term}"));
    }
}

#[derive(Default)]
struct Sent(Mutex<Vec<Message>>);

impl Transport<()> for Sent {
    fn send(&self, _messages: Vec<Message>) {}
    fn send_snapshot(&self, message: Message, _image: ()) {
        self.0.lock().push(message);
    }
    fn is_removed(&self, _id: MemberId) -> bool {
        false
    }
}

fn at(index: u64) -> Snapshot {
    Snapshot {
        data: bytes::Bytes::new(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: vec![1, 2],
                ..ConfState::default()
            }),
            index,
            term: 1,
        }),
    }
}

fn normal(index: u64, id: u8) -> Entry {
    Entry {
        term: 1,
        index,
        data: vec![id].into(),
        ..Entry::default()
    }
}

fn change(index: u64, node_id: u64) -> Entry {
    let change = ConfChange {
        id: 7,
        change_type: ConfChangeType::AddNode as i32,
        node_id,
        ..ConfChange::default()
    };
    Entry {
        entry_type: 1,
        data: change.encode_gogo(),
        ..normal(index, 0)
    }
}

fn engine(machine: Diary) -> (Applier<Diary, Sent>, Arc<Sent>) {
    let sent = Arc::new(Sent::default());
    (Applier::new(machine, sent.clone()), sent)
}

fn entries(entries: Vec<Entry>) -> ApplyTask {
    ApplyTask::Entries { entries, bytes: 10 }
}

fn voters(voters: &[u64]) -> ConfState {
    ConfState {
        voters: voters.into(),
        ..ConfState::default()
    }
}

#[test]
fn only_a_few_quick_entries_are_applied_at_once() {
    let (engine, _) = engine(Diary::default());
    let many = (1..=AT_ONCE_ENTRIES_MAX as u64 + 1).map(|index| normal(index, 1));
    let large = ApplyTask::Entries {
        entries: vec![normal(1, 1)],
        bytes: AT_ONCE_BYTES_MAX + 1,
    };
    let two = [
        entries(vec![normal(1, 1)]),
        ApplyTask::Leadership {
            is_leader: true,
            term: 2,
        },
    ];
    assert!(engine.applies_at_once(&[entries(vec![normal(1, 1), normal(2, 2)])]));
    assert!(!engine.applies_at_once(&[entries(vec![normal(1, 1), normal(2, SLOW)])]));
    assert!(!engine.applies_at_once(&[entries(vec![normal(1, 1), change(2, 3)])]));
    assert!(!engine.applies_at_once(&[entries(many.collect())]));
    assert!(!engine.applies_at_once(&[large]));
    assert!(!engine.applies_at_once(&two));
    assert!(!engine.applies_at_once(&[ApplyTask::TakeSnapshot]));
}

#[test]
fn results_come_with_a_published_batch() {
    let (mut engine, _) = engine(Diary::default());
    engine.add([
        entries(vec![normal(1, 0), normal(2, 20)]),
        entries(vec![normal(3, 30)]),
    ]);
    let first = engine.run().expect("sound").expect("a batch");
    assert_eq!(first.index, Some((2, 10)));
    assert_eq!(first.responses, [(0, 1), (20, 2)]);
    assert_eq!(engine.machine().told, ["entry 1", "entry 2", "flush"]);
    let second = engine.run().expect("sound").expect("a batch");
    assert_eq!(
        (second.index, second.responses),
        (Some((3, 10)), vec![(30, 3)])
    );
    assert!(engine.run().expect("sound").is_none());
}

#[test]
fn a_change_waits_for_raft_between_two_batches() {
    let (mut engine, _) = engine(Diary {
        refused: 5,
        ..Diary::default()
    });
    engine.add([entries(vec![
        normal(1, 1),
        change(2, 4),
        change(3, 5),
        normal(4, 1),
    ])]);
    let before = engine.run().expect("sound").expect("what came before");
    assert_eq!((before.index, before.conf_change), (Some((1, 0)), None));
    let asks = engine.run().expect("sound").expect("a question");
    assert!(asks.index.is_none() && asks.responses.is_empty());
    assert_eq!(asks.conf_change.map(|c| c.node_id), Some(4));
    engine.conf_state(voters(&[1, 4]));
    // Published before the next change: nothing is flushed inside of one.
    let answered = engine.run().expect("sound").expect("a batch");
    assert_eq!(
        (answered.index, answered.responses),
        (Some((2, 0)), vec![(7, 2)])
    );
    let refused = engine.run().expect("sound").expect("a question");
    assert_eq!(
        refused.conf_change.map(|c| c.node_id),
        Some(0),
        "raft applies it to nobody"
    );
    engine.conf_state(voters(&[1, 4]));
    let rest = engine.run().expect("sound").expect("a batch");
    assert_eq!(
        (rest.index, rest.responses),
        (Some((4, 10)), vec![(7, 3), (1, 4)])
    );
    let told = [
        "entry 1",
        "flush",
        "change 2",
        "configuration 2 [1, 4]",
        "flush",
        "change 3",
        "configuration 3 [1, 4]",
        "entry 4",
        "flush",
    ];
    assert_eq!(engine.machine().told, told);
}

#[test]
fn what_the_machine_contains_is_not_applied_again() {
    let (mut engine, _) = engine(Diary {
        applied: (3, 1),
        ..Diary::default()
    });
    engine.add([entries(vec![
        normal(1, 1),
        change(2, 4),
        normal(3, 1),
        normal(4, 9),
    ])]);
    assert!(
        engine
            .run()
            .expect("sound")
            .expect("a batch")
            .responses
            .is_empty()
    );
    let asks = engine.run().expect("sound").expect("a question");
    assert_eq!(
        asks.conf_change.map(|c| c.node_id),
        Some(4),
        "raft's part is done again"
    );
    engine.conf_state(voters(&[1, 4]));
    let rest = engine.run().expect("sound").expect("a batch");
    assert_eq!((rest.index, rest.responses), (Some((4, 10)), vec![(9, 4)]));
    assert_eq!(
        engine.machine().told,
        ["flush", "change 2", "entry 4", "flush"]
    );
}

#[test]
fn tasks_keep_their_order() {
    let (mut engine, sent) = engine(Diary {
        durable: 6,
        ..Diary::default()
    });
    let message = Message {
        to: 2,
        snapshot: Some(at(4).into()),
        ..Message::default()
    };
    engine.add([
        ApplyTask::Leadership {
            is_leader: true,
            term: 2,
        },
        ApplyTask::Install(Box::new(at(5))),
        ApplyTask::Install(Box::new(at(3))),
        entries(vec![normal(6, 1)]),
        ApplyTask::TakeSnapshot,
        ApplyTask::Send(Box::new(message)),
    ]);
    let mut reports = Vec::new();
    while let Some(report) = engine.run().expect("sound") {
        reports.push(report);
    }
    assert_eq!(
        engine.machine().told,
        ["leader true 2", "install 5", "flush", "entry 6", "flush"]
    );
    let indexes: Vec<_> = reports.iter().map(|r| r.index).collect();
    let expected = [Some((5, 0)), Some((3, 0)), Some((6, 10)), None, None];
    assert_eq!(indexes, expected);
    assert_eq!(reports[3].taken, Some(Some(at(6))));
    // The image is newer than what raft asked for, and the message says so.
    assert_eq!(sent.0.lock()[0].snapshot, Some(at(6).into()));
    assert!(reports[4].unsent.is_empty());
}

#[test]
fn an_image_that_fails_or_is_too_old_is_reported() {
    let (mut engine, sent) = engine(Diary {
        fails: true,
        ..Diary::default()
    });
    let message = Message {
        to: 2,
        snapshot: Some(at(4).into()),
        ..Message::default()
    };
    engine.add([
        ApplyTask::Send(Box::new(message.clone())),
        ApplyTask::TakeSnapshot,
    ]);
    let report = engine.run().expect("sound").expect("a report");
    assert_eq!(report.unsent, [MemberId(2)]);
    let report = engine.run().expect("sound").expect("a report");
    assert_eq!(report.taken, Some(None), "tried again later");
    engine.machine.fails = false;
    engine.machine.applied = (3, 1);
    engine.machine.durable = 2;
    engine.add([ApplyTask::TakeSnapshot]);
    let report = engine.run().expect("sound").expect("a report");
    assert_eq!(report.taken, Some(None), "index 3 is not durable");
    engine.add([ApplyTask::Send(Box::new(message))]);
    let report = engine.run().expect("sound").expect("a report");
    assert_eq!(report.unsent, [MemberId(2)], "index 3 is below 4");
    let newcomer = Message {
        to: 3,
        snapshot: Some(at(1).into()),
        ..Message::default()
    };
    engine.add([ApplyTask::Send(Box::new(newcomer))]);
    let report = engine.run().expect("sound").expect("a report");
    assert_eq!(report.unsent, [MemberId(3)], "not in the image yet");
    assert!(sent.0.lock().is_empty());
}

#[test]
fn what_cannot_be_applied_is_an_error() {
    let joint = Entry {
        entry_type: 2,
        ..normal(1, 0)
    };
    let broken = Entry {
        entry_type: 1,
        data: bytes::Bytes::from_static(b"\xff"),
        ..normal(1, 0)
    };
    for (entry, part) in [
        (joint, "kind 2"),
        (broken, "no configuration"),
        (normal(2, 0), "follows 0"),
    ] {
        let (mut engine, _) = engine(Diary::default());
        engine.add([entries(vec![entry])]);
        let error = engine.run().err().expect("an error").to_string();
        assert!(error.contains(part), "{error}");
    }
    let (mut engine, _) = engine(Diary {
        fails: true,
        ..Diary::default()
    });
    engine.add([ApplyTask::Install(Box::new(at(5)))]);
    assert!(matches!(
        engine.run(),
        Err(ApplyError::Install { index: 5, .. })
    ));
}
