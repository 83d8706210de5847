//! Any sequence of calls, reopenings and crashes leaves a log that equals the model's.

mod support;

use std::sync::Arc;

use proptest::prelude::*;
use raft_node::{
    disk::{Disk, fault::FaultDisk},
    wal::{self, Wal},
};
use support::{Found, Model, Origin, create, dir, entries, options, snapshot, state};

#[derive(Clone, Debug)]
enum Action {
    Append {
        back: u64,
        count: u64,
        len: usize,
        commit: bool,
    },
    Sync,
    Snapshot {
        back: u64,
    },
    Reopen {
        crash: bool,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (0..4u64, 0..6u64, 0..700usize, any::<bool>())
            .prop_map(|(back, count, len, commit)| Action::Append { back, count, len, commit }),
        2 => Just(Action::Sync),
        1 => (0..6u64).prop_map(|back| Action::Snapshot { back }),
        2 => any::<bool>().prop_map(|crash| Action::Reopen { crash }),
    ];
    proptest::collection::vec(action, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_calls_equals_the_model(actions in actions(), seed: u64, small: bool) {
        let segment_bytes = if small { 1024 } else { 4096 };
        let mut disk = FaultDisk::new(seed);
        let mut shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut wal = create(&shared, segment_bytes).expect("create");
        let mut model = Model::default();
        let mut term = 1;
        for action in actions {
            let now = model.found();
            match action {
                Action::Append { back, count, len, commit } => {
                    let floor = now.hard_state.commit.max(now.start.index);
                    let from = (now.last_index() + 1).saturating_sub(back).max(floor + 1);
                    term += u64::from(from <= now.last_index());
                    let batch = if count == 0 { vec![] } else { entries(term, from..=from + count - 1, len) };
                    let last = batch.last().map_or(now.last_index(), |e| e.index);
                    let hard_state = commit.then(|| state(term, 1, last.max(now.hard_state.commit)));
                    wal.append(hard_state.as_ref(), &batch).expect("append");
                    model.append(hard_state.as_ref(), &batch);
                }
                Action::Sync => {
                    wal.sync().expect("sync");
                    model.acknowledge();
                }
                Action::Snapshot { back } => {
                    let index = now.hard_state.commit.saturating_sub(back);
                    if let Some(of) = now.entries.iter().find(|e| e.index == index) {
                        let taken = snapshot(index, of.term);
                        wal.save_snapshot(&taken).expect("save");
                        model.save_snapshot(&taken, Origin::Taken);
                        wal.sync().expect("sync");
                        model.acknowledge();
                        wal.release_to(index).expect("release");
                    }
                }
                Action::Reopen { crash } => {
                    if crash {
                        drop(wal);
                        disk = disk.crash();
                        shared = Arc::new(disk.clone());
                    } else {
                        wal.close().expect("close");
                        model.acknowledge();
                    }
                    let start = wal::snapshots(&*shared, dir()).expect("snapshots").pop();
                    let replay;
                    (wal, replay) = Wal::open(shared.clone(), dir(), start.clone(), options(segment_bytes)).expect("open");
                    model.restart(&Found::of(start, &replay)).map_err(TestCaseError::fail)?;
                }
            }
            prop_assert_eq!(wal.last_index(), model.found().last_index());
        }
    }
}
