//! One write transaction: puts and deletes that share a main revision.
//!
//! Everything happens in memory: the index, the pending rows and the batch that the backend will be given. Leases
//! are attached and detached as keys change (etcd: server/storage/mvcc/kvstore_txn.go, `storeTxnWrite`).
//!
//! Invariant: changes are numbered 0, 1, 2… in the order in which they are made; a transaction without a change
//! leaves the revision as it was.

use bytes::Bytes;
use parking_lot::RwLock;

use super::{
    event::{Event, EventKind},
    interval::KeyInterval,
    keyspace::Keyspace,
    pending::Appender,
    revision::{Revision, RowKey},
    row::{self, Put, Row},
    view::ReadView,
};
use crate::{
    backend::{Batch, Bucket},
    lease::Leases,
};

/// The apply thread's side of the keys: revisions it has made and not published yet.
pub(crate) struct Writer {
    appender: Appender,
    /// Main revision of the last transaction with a change.
    pub current: i64,
    /// Revision of the last compaction.
    pub compacted: i64,
}

impl Writer {
    /// A writer that goes on after `current`.
    pub fn new(current: i64, compacted: i64) -> Self {
        Writer {
            appender: Appender::default(),
            current,
            compacted,
        }
    }
}

/// Counts of what a transaction did, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub puts: u32,
    pub deletes: u32,
    pub put_bytes: u64,
}

/// A transaction under way.
pub(crate) struct WriteTxn<'a> {
    keyspace: &'a Keyspace,
    writer: &'a mut Writer,
    leases: &'a RwLock<Leases>,
    batch: &'a mut Batch,
    events: &'a mut Vec<Event>,
    changes: Changes,
}

impl<'a> WriteTxn<'a> {
    /// Begins a transaction. Rows go to `batch`, events to `events`.
    pub fn begin(
        keyspace: &'a Keyspace,
        writer: &'a mut Writer,
        leases: &'a RwLock<Leases>,
        batch: &'a mut Batch,
        events: &'a mut Vec<Event>,
    ) -> Self {
        WriteTxn {
            keyspace,
            writer,
            leases,
            batch,
            events,
            changes: Changes::default(),
        }
    }

    /// The revision visible now: that of the transaction once it changed something.
    pub fn revision(&self) -> i64 {
        self.writer.current + i64::from(self.changed() > 0)
    }

    /// The keys as they are now, own changes included.
    pub fn view(&self) -> ReadView<'_> {
        let pair = self.keyspace.pairs.load();
        ReadView::new(self.keyspace, pair, self.revision(), self.writer.compacted)
    }

    /// The lease table.
    pub fn leases(&self) -> &RwLock<Leases> {
        self.leases
    }

    /// Writes `key`.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let at = self.next();
        let generation = self.keyspace.index.put(key, at);
        let existed = generation.version > 1;
        let row = Row::put(
            RowKey {
                revision: at,
                tombstone: false,
            },
            &Put {
                key,
                value,
                create: generation.create,
                version: generation.version,
                lease,
            },
        );
        self.changes.puts += 1;
        self.changes.put_bytes += row::put_bytes(key, value) as u64;
        self.attach(key, lease, existed);
        self.note(EventKind::Put, at, row);
    }

    /// Deletes the keys of `interval` that exist and returns how many there were.
    pub fn delete(&mut self, interval: KeyInterval<'_>) -> usize {
        let first = self.next();
        let keyspace = self.keyspace;
        let before = self.changes.deletes;
        keyspace
            .index
            .delete(interval, first.main, first.sub, |key, at| {
                self.changes.deletes += 1;
                let row_key = RowKey {
                    revision: at,
                    tombstone: true,
                };
                let leased = self.leases.read().lease_of(key);
                if leased != 0 {
                    self.leases.write().detach(leased, key);
                }
                self.note(EventKind::Delete, at, Row::tombstone(row_key, key));
            });
        (self.changes.deletes - before) as usize
    }

    /// Ends the transaction and returns what it did; the writer's revision then includes it.
    pub fn end(self) -> Changes {
        self.writer.current = self.revision();
        self.changes
    }

    fn changed(&self) -> u32 {
        self.changes.puts + self.changes.deletes
    }

    fn next(&self) -> Revision {
        Revision::new(self.writer.current + 1, self.changed())
    }

    fn attach(&self, key: &[u8], lease: i64, existed: bool) {
        let old = if existed {
            self.leases.read().lease_of(key)
        } else {
            0
        };
        if old == lease {
            return;
        }
        let mut leases = self.leases.write();
        if old != 0 {
            leases.detach(old, key);
        }
        if lease != 0 {
            leases.attach(lease, Bytes::copy_from_slice(key));
        }
    }

    fn note(&mut self, kind: EventKind, at: Revision, row: Row) {
        let key = RowKey {
            revision: at,
            tombstone: kind == EventKind::Delete,
        };
        self.writer
            .appender
            .push(&self.keyspace.pairs, key, row.value.clone());
        self.events.push(Event::new(kind, at, row.value.clone()));
        self.batch.put(Bucket::Key, row.key, row.value);
    }
}
