//! Snapshots as raft's log needs them: when one is due, what may be forgotten after it, and those on their
//! way to other members.
//!
//! Invariant: nothing above the index of a durable `.snap` file is compacted, nothing above what raft has
//! applied, and nothing a member that is receiving a snapshot needs next.

use std::{collections::HashMap, time::Duration};

use raft::SnapshotStatus;
use transport_core::{
    MemberId,
    raftpb::{Message, Snapshot},
};

use super::Driver;
use crate::{admit, apply::ApplyTask, log::Log, persist::WalTask};

/// Snapshots being sent at the same time; a further one fails at once, and raft tries again later.
/// etcd: server/etcdserver/raft.go, `maxInFlightMsgSnap`.
const SENDING_MAX: usize = 16;

/// How long a member that received a snapshot may take to ask for what follows.
/// etcd: server/etcdserver/server.go, `releaseDelayAfterSnapshot`.
const GRACE: Duration = Duration::from_secs(30);

/// In-memory log above which nobody's catching up holds a compaction back, in bytes.
const LOG_BYTES_MAX: usize = 512 << 20;

/// The bookkeeping.
pub(crate) struct Snapshots {
    /// Index of the last one on disk.
    last: u64,
    /// Somebody wants one that contains this index.
    wanted: u64,
    /// Whether one is being taken.
    taking: bool,
    /// Applied since the last one.
    bytes: u64,
    sending: HashMap<MemberId, Sending>,
    failed: Vec<MemberId>,
}

struct Sending {
    /// Entries after it are needed next.
    index: u64,
    /// Set once it has arrived.
    until: Option<Duration>,
}

impl Snapshots {
    pub fn new(log: &Log) -> Self {
        Snapshots {
            last: log.first() - 1,
            wanted: 0,
            taking: false,
            bytes: log.bytes() as u64,
            sending: HashMap::new(),
            failed: Vec::new(),
        }
    }

    /// Index of the last snapshot on disk.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// A snapshot of everything up to `index` is due; it is asked for until there is one.
    pub fn force(&mut self, index: u64) {
        self.wanted = self.wanted.max(index);
    }

    pub fn applied(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// A snapshot of the leader is on disk.
    pub fn received(&mut self, snapshot: &Snapshot) {
        let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        if index > self.last {
            self.last = index;
            self.bytes = 0;
        }
    }

    fn on_the_way(&self) -> usize {
        self.sending.values().filter(|s| s.until.is_none()).count()
    }
}

impl Driver {
    /// Has the state machine asked for a snapshot when enough was applied since the last one.
    pub(super) fn maybe_snapshot(&mut self, now: Duration) {
        self.snapshots
            .sending
            .retain(|_, sending| sending.until.is_none_or(|until| until > now));
        let applied = self.raw.raft.raft_log.applied;
        let entries = applied.saturating_sub(self.snapshots.last);
        let due = entries > self.config.snapshot_count
            || self.snapshots.wanted > self.snapshots.last
            || (entries > 0 && self.snapshots.bytes > self.config.snapshot_bytes);
        if due && !self.snapshots.taking && self.installing.is_empty() {
            self.snapshots.taking = true;
            self.effects.apply.push(ApplyTask::TakeSnapshot);
        }
    }

    pub(super) fn snapshot_taken(&mut self, now: Duration, snapshot: Option<Snapshot>) {
        self.snapshots.taking = false;
        let Some(snapshot) = snapshot else { return };
        let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        // What is durable may lag far behind what is applied; then there is nothing new yet.
        if index <= self.snapshots.last || index > self.raw.raft.raft_log.applied {
            return;
        }
        if !admit::is_usable(&snapshot) {
            self.fatal(format!(
                "the state machine gave an unusable snapshot at index {index}"
            ));
            return;
        }
        self.snapshots.taking = true;
        // Its record counts only after a hard state that commits it.
        self.write_lazy_state(now);
        self.effects.wal.push(WalTask::Snapshot(Box::new(snapshot)));
    }

    pub(super) fn snapshot_saved(&mut self, now: Duration, index: u64) {
        self.snapshots.taking = false;
        if index <= self.snapshots.last {
            return;
        }
        self.snapshots.last = index;
        self.snapshots.bytes = 0;
        let log = self.raw.store();
        let mut to = log.catch_up_from(
            index,
            self.config.catch_up_entries,
            self.config.catch_up_bytes,
        );
        if log.bytes() < LOG_BYTES_MAX {
            let sending = self.snapshots.sending.values();
            let needed = sending.filter(|s| s.until.is_none_or(|until| until > now));
            to = needed.map(|s| s.index).fold(to, u64::min);
        }
        if let Err(error) = self.raw.mut_store().compact(to) {
            self.fatal(error);
            return;
        }
        tracing::info!(
            local_member_id = %self.id,
            snapshot_index = index,
            compact_index = to,
            "saved a snapshot and compacted the raft log"
        );
    }

    /// Diverts a snapshot message to the state machine, which sends it with an image of its own.
    pub(super) fn send_snapshot(&mut self, message: Message) {
        let to = MemberId(message.to);
        if self.snapshots.on_the_way() >= SENDING_MAX {
            self.snapshots.failed.push(to);
            return;
        }
        let metadata = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        let index = metadata.map_or(0, |m| m.index);
        self.snapshots
            .sending
            .insert(to, Sending { index, until: None });
        self.effects.apply.push(ApplyTask::Send(Box::new(message)));
    }

    pub(super) fn snapshot_report(&mut self, now: Duration, to: MemberId, ok: bool) {
        if ok {
            if let Some(sending) = self.snapshots.sending.get_mut(&to) {
                sending.until = Some(now + GRACE);
            }
        } else {
            self.snapshots.sending.remove(&to);
        }
        self.report(to, ok);
    }

    /// raft must learn of those that were not even tried, or it would wait for their end.
    pub(super) fn report_failed_sends(&mut self) {
        for to in std::mem::take(&mut self.snapshots.failed) {
            self.report(to, false);
        }
    }

    fn report(&mut self, to: MemberId, ok: bool) {
        let status = if ok {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(to.0, status);
    }
}
