//! What the member must hold: the entries it was seen to apply, and two states made of them.
//!
//! [`Ledger`] is written by the state machine of every life: an entry that was applied once is at its index for
//! ever. [`Model`] is etcd's key space in its simplest form, and beside it the store itself on a backend that no
//! fault reaches, for the checksums.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use kvstore::{
    KeyValueHash, Reader, Store, StoreConfig,
    backend::memory::MemoryBackend,
    pb::{
        etcdserverpb::{
            Compare, DeleteRangeRequest, InternalRaftRequest, PutRequest, RequestOp, TxnRequest,
            compare::TargetUnion, request_op::Request,
        },
        mvccpb::KeyValue,
    },
};
use parking_lot::Mutex;
use prost::Message;
use transport_core::raftpb::{ConfState, Entry, decode_conf_change};

/// Entries that were applied, by index from 1 on.
#[derive(Default)]
pub struct Ledger(Mutex<Pages>);

#[derive(Default)]
struct Pages {
    entries: Vec<Entry>,
    conf_states: HashMap<u64, ConfState>,
    broken: Option<String>,
}

impl Ledger {
    /// An entry is applied.
    pub fn applied(&self, entry: &Entry) {
        let pages = &mut *self.0.lock();
        let next = pages.entries.len() as u64 + 1;
        let found = match entry.index.cmp(&next) {
            std::cmp::Ordering::Equal => {
                pages.entries.push(entry.clone());
                return;
            }
            std::cmp::Ordering::Greater => {
                format!("entry {} is applied after {}", entry.index, next - 1)
            }
            std::cmp::Ordering::Less => {
                let before = &pages.entries[entry.index as usize - 1];
                if before == entry {
                    return;
                }
                format!(
                    "entry {} was of term {} and is of term {}",
                    entry.index, before.term, entry.term
                )
            }
        };
        pages.broken.get_or_insert(found);
    }

    /// raft's configuration after the entry at `index`.
    pub fn conf_state(&self, index: u64, state: &ConfState) {
        self.0.lock().conf_states.insert(index, state.clone());
    }

    /// What an entry contradicted.
    pub fn broken(&self) -> Option<String> {
        self.0.lock().broken.clone()
    }

    /// Index of the last one applied.
    pub fn last(&self) -> u64 {
        self.0.lock().entries.len() as u64
    }
}

/// What one request did to the keys.
pub struct Done {
    /// The key space's revision after it.
    pub revision: i64,
    /// The keys it wrote, with their values, and those it deleted.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
}

/// The key space after a prefix of the ledger.
pub struct Model {
    rows: BTreeMap<Bytes, KeyValue>,
    revision: i64,
    pub compacted: i64,
    applied: u64,
    done: HashMap<u64, Done>,
    twin: Store,
}

impl Model {
    pub fn new() -> Self {
        let twin = Store::open_on(
            StoreConfig::new("unused"),
            Arc::new(MemoryBackend::default()),
        );
        Model {
            rows: BTreeMap::new(),
            revision: 1,
            compacted: -1,
            applied: 0,
            done: HashMap::new(),
            twin: twin.expect("an empty backend in memory"),
        }
    }

    /// Takes in what the ledger has beyond it.
    pub fn follow(&mut self, ledger: &Ledger) -> Result<(), String> {
        let (new, conf_states) = {
            let pages = ledger.0.lock();
            (
                pages.entries[self.applied as usize..].to_vec(),
                pages.conf_states.clone(),
            )
        };
        for entry in new {
            self.applied = entry.index;
            if entry.entry_type != 0 {
                let change =
                    decode_conf_change(entry.data.clone()).map_err(|error| error.to_string())?;
                self.twin
                    .conf_change(entry.index, &change)
                    .map_err(|error| error.to_string())?;
                let state = conf_states.get(&entry.index).cloned().unwrap_or_default();
                self.twin
                    .set_conf_state(entry.index, entry.term, &state)
                    .map_err(|error| error.to_string())?;
                continue;
            }
            self.twin
                .apply(entry.index, entry.term, &entry.data)
                .map_err(|error| error.to_string())?;
            if !entry.data.is_empty() {
                let request = InternalRaftRequest::decode(&entry.data[..])
                    .map_err(|error| error.to_string())?;
                self.apply(&request);
            }
        }
        self.twin.publish().map_err(|error| error.to_string())
    }

    fn apply(&mut self, request: &InternalRaftRequest) {
        let mut writes = Vec::new();
        if let Some(put) = &request.put {
            self.put(put, &mut writes);
        }
        if let Some(delete) = &request.delete_range {
            self.delete(delete, &mut writes);
        }
        if let Some(txn) = &request.txn {
            self.txn(txn, &mut writes);
        }
        if let Some(compaction) = &request.compaction
            && compaction.revision > self.compacted
            && compaction.revision <= self.revision
        {
            self.compacted = compaction.revision;
        }
        self.revision += i64::from(!writes.is_empty());
        let id = request.header.as_ref().map_or(0, |header| header.id);
        self.done.insert(
            id,
            Done {
                revision: self.revision,
                writes,
            },
        );
    }

    fn put(&mut self, put: &PutRequest, writes: &mut Vec<(Bytes, Option<Bytes>)>) {
        let main = self.revision + 1;
        let old = self.rows.get(&put.key);
        let row = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision: old.map_or(main, |old| old.create_revision),
            mod_revision: main,
            version: old.map_or(1, |old| old.version + 1),
            lease: 0,
        };
        self.rows.insert(put.key.clone(), row);
        writes.push((put.key.clone(), Some(put.value.clone())));
    }

    fn delete(&mut self, delete: &DeleteRangeRequest, writes: &mut Vec<(Bytes, Option<Bytes>)>) {
        let inside = |key: &Bytes| match &delete.range_end[..] {
            [] => *key == delete.key,
            end => *key >= delete.key && key[..] < *end,
        };
        let gone: Vec<_> = self
            .rows
            .keys()
            .filter(|key| inside(key))
            .cloned()
            .collect();
        for key in gone {
            self.rows.remove(&key);
            writes.push((key, None));
        }
    }

    fn txn(&mut self, txn: &TxnRequest, writes: &mut Vec<(Bytes, Option<Bytes>)>) {
        let holds = txn.compare.iter().all(|compare| self.holds(compare));
        for RequestOp { request } in if holds { &txn.success } else { &txn.failure } {
            match request {
                Some(Request::RequestPut(put)) => self.put(put, writes),
                Some(Request::RequestDeleteRange(delete)) => self.delete(delete, writes),
                _ => {}
            }
        }
    }

    /// Whether a comparison for equality holds.
    fn holds(&self, compare: &Compare) -> bool {
        let row = self.rows.get(&compare.key);
        match &compare.target_union {
            Some(TargetUnion::Version(version)) => row.map_or(0, |row| row.version) == *version,
            Some(TargetUnion::Value(value)) => row.is_some_and(|row| row.value == *value),
            _ => false,
        }
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The rows, by key.
    pub fn rows(&self) -> impl Iterator<Item = &KeyValue> {
        self.rows.values()
    }

    /// What the request with that id did, if it was ever applied.
    pub fn done(&self, id: u64) -> Option<&Done> {
        self.done.get(&id)
    }

    /// The checksum the member should have at `revision`.
    pub fn hash(&self, revision: i64) -> Result<KeyValueHash, String> {
        hash(&self.twin.reader(), revision)
    }
}

/// The checksum at `revision`.
pub fn hash(reader: &Reader, revision: i64) -> Result<KeyValueHash, String> {
    reader
        .hash_kv(revision)
        .map(|(hash, _)| hash)
        .map_err(|error| format!("HashKV of {revision}: {error}"))
}
