//! The engine of the apply thread: committed entries into the state machine.
//!
//! Results and the applied index leave only after a batch is published, so that whoever has a result finds
//! it in the next read. A configuration change stops the engine until raft has answered with the
//! configuration that follows. Depends on the two traits only. Invariant: entries are applied in order and
//! once; of those the state machine contained at start only configuration changes reach it again.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, atomic::Ordering},
};

use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfState, Entry, EntryType, Message, Snapshot},
};

use crate::{StateMachine, Transport, admit::parse_conf_change};

/// Entries that are worth no thread of their own, and their bytes.
const AT_ONCE_ENTRIES_MAX: usize = 8;
const AT_ONCE_BYTES_MAX: usize = 16 << 10;

/// What the raft task hands to the apply thread.
pub(crate) enum ApplyTask {
    /// Committed and durable entries.
    Entries { entries: Vec<Entry>, bytes: usize },
    /// A received snapshot, durable.
    Install(Box<Snapshot>),
    /// A snapshot message that needs its image.
    Send(Box<Message>),
    /// A snapshot for the `.snap` file is due.
    TakeSnapshot,
    /// Leadership was won or lost.
    Leadership { is_leader: bool, term: u64 },
}

/// What the engine has to say.
pub(crate) struct Applied<R> {
    /// Results of requests, by id.
    pub responses: Vec<(u64, R)>,
    /// Everything up to it is published; and the bytes of entries since the last report.
    pub index: Option<(u64, usize)>,
    /// Waits for [`Applier::conf_state`].
    pub conf_change: Option<ConfChange>,
    /// An answer to [`ApplyTask::TakeSnapshot`].
    pub taken: Option<Option<Snapshot>>,
    /// Members to which no snapshot could be sent.
    pub unsent: Vec<MemberId>,
}

/// The state machine and what waits for it.
pub(crate) struct Applier<S: StateMachine, T> {
    machine: S,
    transport: Arc<T>,
    /// Contained in the state machine when the node started.
    contained: u64,
    queue: VecDeque<ApplyTask>,
    entries: VecDeque<Entry>,
    /// Of the batch being applied; reported with its end.
    bytes: usize,
    /// Applied in this batch, not published.
    last: Option<u64>,
    responses: Vec<(u64, S::Response)>,
    waiting: Option<Changing<S::Response>>,
}

/// A configuration change whose configuration raft has yet to give.
struct Changing<R> {
    entry: Entry,
    /// For its proposer.
    response: Option<(u64, R)>,
}

/// An entry or snapshot the node cannot go on after.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("committed entry {index} is of kind {kind}, which no member of etcd can apply")]
    Kind { index: u64, kind: i32 },
    #[error("committed entry {index} holds no configuration change")]
    ConfChange { index: u64 },
    #[error("committed entry {index} follows {last}")]
    Order { index: u64, last: u64 },
    #[error("installing the snapshot at index {index}: {source}")]
    Install {
        index: u64,
        source: crate::SnapshotError,
    },
}

impl<S: StateMachine, T: Transport<S::Image>> Applier<S, T> {
    pub fn new(machine: S, transport: Arc<T>) -> Self {
        Applier {
            contained: machine.applied().0,
            machine,
            transport,
            queue: VecDeque::new(),
            entries: VecDeque::new(),
            bytes: 0,
            last: None,
            responses: Vec::new(),
            waiting: None,
        }
    }

    #[cfg(test)]
    pub fn machine(&self) -> &S {
        &self.machine
    }

    /// Adds tasks; [`run`](Applier::run) works them off.
    pub fn add(&mut self, tasks: impl IntoIterator<Item = ApplyTask>) {
        self.queue.extend(tasks);
    }

    /// Whether these tasks, by a caller that must not be kept, take no longer than to wake the apply thread.
    /// To be asked only while that thread has nothing to do.
    pub fn applies_at_once(&self, tasks: &[ApplyTask]) -> bool {
        let [ApplyTask::Entries { entries, bytes }] = tasks else {
            return false;
        };
        debug_assert!(self.queue.is_empty() && self.entries.is_empty() && self.last.is_none());
        let quick = |entry: &Entry| {
            entry.kind() == Some(EntryType::Normal) && self.machine.applies_at_once(entry)
        };
        entries.len() <= AT_ONCE_ENTRIES_MAX
            && *bytes <= AT_ONCE_BYTES_MAX
            && entries.iter().all(quick)
    }

    /// Works until nothing is left (`None`) or something is to be said. After a report with a
    /// configuration change, [`conf_state`](Applier::conf_state) comes first.
    pub fn run(&mut self) -> Result<Option<Applied<S::Response>>, ApplyError> {
        debug_assert!(self.waiting.is_none(), "raft has to answer first");
        loop {
            while let Some(entry) = self.entries.pop_front() {
                // What comes before a configuration change is published first: between the change and
                // raft's answer nothing may become durable.
                if self.last.is_some() && entry.kind() == Some(EntryType::ConfChange) {
                    self.entries.push_front(entry);
                    break;
                }
                if let Some(change) = self.entry(entry)? {
                    return Ok(Some(Applied {
                        conf_change: Some(change),
                        ..Applied::default()
                    }));
                }
            }
            if self.last.is_some() {
                return Ok(Some(self.publish()));
            }
            let Some(task) = self.queue.pop_front() else {
                return Ok(None);
            };
            if let Some(report) = self.task(task)? {
                return Ok(Some(report));
            }
        }
    }

    /// raft's answer to a configuration change.
    pub fn conf_state(&mut self, state: ConfState) {
        if let Some(Changing { entry, response }) = self.waiting.take() {
            if entry.index > self.contained {
                self.machine.conf_state(entry.index, entry.term, state);
            }
            self.responses.extend(response);
            self.last = Some(entry.index);
        }
    }

    fn task(&mut self, task: ApplyTask) -> Result<Option<Applied<S::Response>>, ApplyError> {
        let mut report = Applied::default();
        match task {
            ApplyTask::Entries { entries, bytes } => {
                self.entries = entries.into();
                self.bytes += bytes;
                return Ok(None);
            }
            ApplyTask::Install(snapshot) => {
                let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
                // One that the state machine has passed already changes nothing.
                if index > self.machine.applied().0 {
                    self.machine
                        .install(&snapshot)
                        .map_err(|source| ApplyError::Install { index, source })?;
                    self.machine.flush_batch();
                }
                report.index = Some((index, 0));
            }
            ApplyTask::Send(message) => report.unsent.extend(self.send(*message)),
            ApplyTask::TakeSnapshot => {
                report.taken = Some(self.take_snapshot());
            }
            ApplyTask::Leadership { is_leader, term } => {
                self.machine.leadership(is_leader, term);
                return Ok(None);
            }
        }
        Ok(Some(report))
    }

    /// Applies one entry; a configuration change that raft has to apply is returned.
    fn entry(&mut self, entry: Entry) -> Result<Option<ConfChange>, ApplyError> {
        let index = entry.index;
        let contained = index <= self.contained;
        let last = self.last.unwrap_or_else(|| self.machine.applied().0);
        if !contained && index != last + 1 {
            return Err(ApplyError::Order { index, last });
        }
        match entry.kind() {
            Some(EntryType::Normal) => {
                if !contained {
                    self.responses.extend(self.machine.apply(entry));
                }
                self.last = Some(index);
                Ok(None)
            }
            Some(EntryType::ConfChange) => {
                let change =
                    parse_conf_change(&entry.data).ok_or(ApplyError::ConfChange { index })?;
                Ok(Some(self.conf_change(entry, change, contained)))
            }
            _ => Err(ApplyError::Kind {
                index,
                kind: entry.entry_type,
            }),
        }
    }

    fn conf_change(&mut self, entry: Entry, mut change: ConfChange, contained: bool) -> ConfChange {
        let verdict = self.machine.conf_change(&entry, &change);
        self.waiting = Some(Changing {
            entry,
            // Nobody waits for the second answer to a change of long ago.
            response: (!contained).then_some((change.id, verdict.response)),
        });
        if !verdict.accepted {
            change.node_id = 0;
        }
        change
    }

    /// Ends the batch.
    fn publish(&mut self) -> Applied<S::Response> {
        let mut report = Applied::default();
        if let Some(index) = self.last.take() {
            self.machine.flush_batch();
            // The bytes of a batch count until all of it is applied.
            let done = self.entries.is_empty() && self.waiting.is_none();
            let bytes = if done { mem::take(&mut self.bytes) } else { 0 };
            report.index = Some((index, bytes));
            report.responses = mem::take(&mut self.responses);
        }
        report
    }

    /// A snapshot for the `.snap` file, unless a crash would take some of what it stands for.
    fn take_snapshot(&mut self) -> Option<Snapshot> {
        let snapshot = self.machine.durable_snapshot().unwrap_or_else(|error| {
            tracing::error!(%error, "the state machine gave no snapshot; trying again later");
            None
        })?;
        let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
        let durable = self.machine.durable().load(Ordering::Acquire);
        if index > durable {
            tracing::error!(
                index,
                durable,
                "the state machine gave a snapshot that is not durable"
            );
            return None;
        }
        Some(snapshot)
    }

    /// Sends a snapshot of now, which may be newer than the one raft had in mind. The member to which it
    /// cannot be sent is returned.
    fn send(&mut self, mut message: Message) -> Option<MemberId> {
        let to = MemberId(message.to);
        let wanted = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        let wanted = wanted.map_or(0, |m| m.index);
        match self.machine.image() {
            Ok((snapshot, image)) => {
                let metadata = snapshot.metadata.as_ref();
                let index = metadata.map_or(0, |m| m.index);
                let members = metadata.and_then(|m| m.conf_state.as_ref());
                let knows =
                    members.is_some_and(|s| s.voters.contains(&to.0) || s.learners.contains(&to.0));
                // A member that was just added would refuse an image it is not part of.
                if index < wanted || !knows {
                    tracing::warn!(remote_peer_id = %to, index, wanted, knows, "the image is too old to be sent");
                    return Some(to);
                }
                message.snapshot = Some(Box::new(snapshot));
                self.transport.send_snapshot(message, image);
                None
            }
            Err(error) => {
                tracing::warn!(remote_peer_id = %to, %error, "no image to send");
                Some(to)
            }
        }
    }
}

impl<R> Default for Applied<R> {
    fn default() -> Self {
        Applied {
            responses: Vec::new(),
            index: None,
            conf_change: None,
            taken: None,
            unsent: Vec::new(),
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
