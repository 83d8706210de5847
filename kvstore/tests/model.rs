//! The store against a model that keeps every state it ever was in: same answers now and in the past, after
//! compactions, and after crashes that lose whatever was not in the backend.

mod common;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::*},
    },
};

use common::*;
use kvstore::{
    ApplyError, Store, StoreConfig,
    backend::{Backend, BackendError, Batch, View, memory::MemoryBackend},
    pb::{
        etcdserverpb::{DeleteRangeRequest, RangeRequest, TxnRequest, request_op::Request},
        mvccpb::KeyValue,
    },
};
use proptest::prelude::*;

/// A backend that remembers which commits a crash would leave behind.
#[derive(Default)]
struct CutBackend {
    live: MemoryBackend,
    kept: Mutex<Vec<Batch>>,
    cut: AtomicBool,
}

impl CutBackend {
    /// What a restart finds: the commits before the cut.
    fn after_crash(&self) -> Arc<CutBackend> {
        let next = CutBackend::default();
        for batch in self.kept.lock().unwrap().drain(..) {
            next.commit(&batch).unwrap();
        }
        Arc::new(next)
    }
}

impl Backend for CutBackend {
    fn commit(&self, batch: &Batch) -> Result<(), BackendError> {
        if !self.cut.load(Acquire) {
            self.kept.lock().unwrap().push(batch.clone());
        }
        self.live.commit(batch)
    }

    fn view(&self) -> Result<Arc<dyn View>, BackendError> {
        self.live.view()
    }

    fn size(&self) -> u64 {
        self.live.size()
    }

    fn size_in_use(&self) -> u64 {
        self.live.size_in_use()
    }
}

type State = BTreeMap<Vec<u8>, KeyValue>;

/// Every state the keys were in, by revision; the first is revision 1.
struct Model {
    states: Vec<State>,
    compacted: i64,
}

impl Model {
    fn current(&self) -> i64 {
        self.states.len() as i64
    }

    fn at(&self, revision: i64) -> &State {
        &self.states[revision as usize - 1]
    }

    /// Applies the operations of one transaction, each a put or the delete of an interval.
    fn run(&mut self, ops: &[Change]) {
        let mut state = self.at(self.current()).clone();
        let main = self.current() + 1;
        let mut changed = false;
        for op in ops {
            match op {
                Change::Put(key, value) => {
                    let old = state.get(key);
                    let kv = KeyValue {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        create_revision: old.map_or(main, |old| old.create_revision),
                        mod_revision: main,
                        version: old.map_or(1, |old| old.version + 1),
                        lease: 0,
                    };
                    state.insert(key.clone(), kv);
                    changed = true;
                }
                Change::Delete(key, end) => {
                    let before = state.len();
                    state.retain(|at, _| !inside(at, key, end));
                    changed |= state.len() != before;
                }
            }
        }
        if changed {
            self.states.push(state);
        }
    }
}

fn inside(at: &[u8], key: &[u8], end: &[u8]) -> bool {
    match end {
        [] => at == key,
        [0] => at >= key,
        end => at >= key && at < end,
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<Change>),
    /// Compact so many revisions below the present one.
    Compact(i64),
    /// Bring everything into the backend.
    Flush,
    /// Nothing reaches the backend from here on.
    Cut,
    /// Crash and replay.
    Restart,
    /// Close in good order and open again.
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b')], 1..4)
}

fn end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![2 => Just(vec![]), 1 => Just(vec![0]), 3 => key()]
}

fn change() -> impl Strategy<Value = Change> {
    let value = proptest::collection::vec(any::<u8>(), 0..5);
    prop_oneof![
        4 => (key(), value).prop_map(|(key, value)| Change::Put(key, value)),
        1 => (key(), end()).prop_map(|(key, end)| Change::Delete(key, end)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => change().prop_map(|change| Step::Txn(vec![change])),
        6 => proptest::collection::vec(change(), 2..5).prop_map(Step::Txn),
        2 => (0i64..8).prop_map(Step::Compact),
        2 => Just(Step::Flush),
        1 => Just(Step::Cut),
        1 => Just(Step::Restart),
        1 => Just(Step::Reopen),
    ]
}

fn request(change: &Change) -> Request {
    match change {
        Change::Put(key, value) => Request::RequestPut(kvstore::pb::etcdserverpb::PutRequest {
            key: key.clone().into(),
            value: value.clone().into(),
            ..Default::default()
        }),
        Change::Delete(key, end) => Request::RequestDeleteRange(DeleteRangeRequest {
            key: key.clone().into(),
            range_end: end.clone().into(),
            prev_kv: false,
        }),
    }
}

fn test_config() -> StoreConfig {
    StoreConfig {
        // Small, so that rows come from all three places: pending, cache and backend.
        row_cache_bytes: 4096,
        flush_interval: std::time::Duration::from_millis(1),
        ..config()
    }
}

struct World {
    log: Log,
    backend: Arc<CutBackend>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let backend = Arc::new(CutBackend::default());
        World {
            log: Log::with(test_config(), backend.clone()),
            backend,
            model: Model {
                states: vec![State::new()],
                compacted: -1,
            },
        }
    }

    fn step(mut self, step: Step) -> Self {
        match step {
            Step::Txn(changes) => {
                let internal = match &changes[..] {
                    [one] => internal(request(one)),
                    many => internal(txn(TxnRequest {
                        success: many.iter().map(|change| op(request(change))).collect(),
                        ..Default::default()
                    })),
                };
                self.model.run(&changes);
                let applied = self.log.apply(internal);
                assert!(applied.outcome.is_ok());
                assert_eq!(applied.revision, self.model.current());
            }
            Step::Compact(below) => {
                let at = self.model.current() - below;
                let expected = at > self.model.compacted;
                assert_eq!(self.log.compact(at).is_ok(), expected);
                self.model.compacted = self.model.compacted.max(at);
            }
            Step::Flush => self.log.store.flush().unwrap(),
            Step::Cut => self.backend.cut.store(true, Release),
            Step::Restart => self = self.restart(drop),
            Step::Reopen => self = self.restart(|store| store.close().unwrap()),
        }
        self
    }

    fn restart(self, end: impl FnOnce(Store)) -> Self {
        end(self.log.store);
        let backend = self.backend.after_crash();
        let mut store = Store::open_on(test_config(), backend.clone()).unwrap();
        for (at, data) in self.log.entries.iter().enumerate() {
            store.apply(at as u64 + 1, 1, data).unwrap();
        }
        store.publish().unwrap();
        World {
            log: Log {
                store,
                entries: self.log.entries,
            },
            backend,
            model: self.model,
        }
    }

    fn check(&self, key: &[u8], end: &[u8], back: i64, limit: i64) {
        let reader = self.log.store.reader();
        let current = self.model.current();
        assert_eq!(reader.revision(), current);
        assert_eq!(reader.compact_revision(), self.model.compacted);
        let revision = (current - back).max(1);
        let request = RangeRequest {
            key: key.to_vec().into(),
            range_end: end.to_vec().into(),
            revision,
            limit,
            ..Default::default()
        };
        let answer = reader.range(&request);
        if revision < self.model.compacted {
            assert_eq!(answer, Err(ApplyError::Compacted));
            return;
        }
        let answer = answer.unwrap();
        let expected: Vec<KeyValue> = self
            .model
            .at(revision)
            .iter()
            .filter(|(at, _)| inside(at, key, end))
            .map(|(_, kv)| kv.clone())
            .collect();
        assert_eq!(answer.count, expected.len() as i64);
        let cut = if limit > 0 {
            expected.len().min(limit as usize)
        } else {
            expected.len()
        };
        assert_eq!(answer.kvs, expected[..cut]);
        assert_eq!(answer.more, cut < expected.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_its_model(
        steps in proptest::collection::vec((step(), key(), end(), 0i64..12, 0i64..4), 1..80)
    ) {
        let mut world = World::new();
        for (step, key, end, back, limit) in steps {
            world = world.step(step);
            world.check(&key, &end, back, limit);
            world.check(b"\0", b"\0", back, 0);
        }
        // The whole readable history, and the same from a store that was built from the log alone.
        let twin = Log::new().replay_all(&world.log.entries);
        let (ours, theirs) = (world.log.store.reader(), twin.store.reader());
        for revision in world.model.compacted.max(1)..=world.model.current() {
            world.check(b"\0", b"\0", world.model.current() - revision, 0);
            if revision >= world.model.compacted {
                // One may answer from what its compaction stored, which took the compaction before as done: members
                // compare only what names the same compaction.
                let (ours, theirs) = (ours.hash_kv(revision).unwrap().0, theirs.hash_kv(revision).unwrap().0);
                if ours.compact_revision == theirs.compact_revision {
                    prop_assert_eq!(ours, theirs);
                } else {
                    prop_assert_eq!(revision, world.model.compacted);
                }
            }
        }
    }
}

impl Log {
    fn replay_all(mut self, entries: &[bytes::Bytes]) -> Log {
        for data in entries {
            self.try_apply_bytes(data.clone()).unwrap();
        }
        self
    }
}
