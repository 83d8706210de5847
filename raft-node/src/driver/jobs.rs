//! What is on its way to the disk.
//!
//! Invariant: numbers ascend, and a number counts as durable only with all before it.

use std::{collections::VecDeque, time::Duration};

use transport_core::raftpb::Snapshot;

/// One job at the wal thread.
pub(crate) struct InFlight {
    /// Of its Ready.
    pub number: u64,
    /// Whether it must be synced before it counts.
    pub sync: bool,
    /// When it was handed over.
    pub since: Duration,
    /// Of its entries.
    pub bytes: usize,
    /// A received snapshot, to be installed once durable.
    pub snapshot: Option<Snapshot>,
}

/// The jobs not finished yet, oldest first.
#[derive(Default)]
pub(crate) struct Jobs {
    queue: VecDeque<InFlight>,
    bytes: usize,
    syncs: usize,
}

impl Jobs {
    pub fn add(&mut self, job: InFlight) {
        self.bytes += job.bytes;
        self.syncs += usize::from(job.sync);
        self.queue.push_back(job);
    }

    /// Everything up to `number` is durable; returns the snapshots among it.
    pub fn finish(&mut self, number: u64) -> Vec<Snapshot> {
        let mut snapshots = Vec::new();
        while let Some(job) = self.queue.pop_front_if(|job| job.number <= number) {
            self.bytes -= job.bytes;
            self.syncs -= usize::from(job.sync);
            snapshots.extend(job.snapshot);
        }
        snapshots
    }

    /// Number of the oldest unfinished job.
    pub fn oldest(&self) -> Option<u64> {
        self.queue.front().map(|job| job.number)
    }

    /// Since when the oldest job that must be synced is under way.
    pub fn oldest_sync(&self) -> Option<Duration> {
        self.queue.iter().find(|job| job.sync).map(|job| job.since)
    }

    pub fn has_sync(&self) -> bool {
        self.syncs > 0
    }

    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
