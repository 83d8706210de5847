//! The changes of one entry as watchers will see them: in order, one for each row written.

use bytes::Bytes;

use super::{revision::Revision, row};
use crate::pb::mvccpb::{self, KeyValue};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// It was written; a create when the record's version is 1.
    Put,
    /// It was deleted, by a request or because its lease ended.
    Delete,
}

/// One change. Its record is decoded on demand: most entries have no watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    kind: EventKind,
    revision: Revision,
    row: Bytes,
}

impl Event {
    pub(crate) fn new(kind: EventKind, revision: Revision, row: Bytes) -> Self {
        Event {
            kind,
            revision,
            row,
        }
    }

    /// Put or delete.
    pub fn kind(&self) -> EventKind {
        self.kind
    }

    /// Where in the history it stands.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The record: whole for a put, for a delete the key and `mod_revision`.
    pub fn key_value(&self) -> KeyValue {
        // A row this process encoded itself.
        let mut kv = row::decode(self.row.clone()).unwrap_or_default();
        kv.mod_revision = self.revision.main;
        kv
    }

    /// The event as the watch API sends it, without `prev_kv`.
    pub fn to_pb(&self) -> mvccpb::Event {
        let kind = match self.kind {
            EventKind::Put => mvccpb::event::EventType::Put,
            EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        mvccpb::Event {
            r#type: kind as i32,
            kv: Some(self.key_value()),
            prev_kv: None,
        }
    }
}
