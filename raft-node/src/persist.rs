//! Group commit: the engine of the wal thread.
//!
//! Everything that queued up during one sync is written and shares the next one. Depends on [`LogStore`]
//! only. Invariant: tasks are written in order, and what they promise (messages, numbers) comes out only
//! once they are durable. A failed write or sync is never repeated: it ends the node.

use transport_core::raftpb::{Entry, HardState, Message, Snapshot};

use crate::{
    outbound::newest_append_responses,
    storage::{LogStore, StorageError},
};

/// What the raft thread hands to the wal thread.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are the large one"
)]
pub(crate) enum WalTask {
    /// Of one Ready.
    Ready(Job),
    /// A snapshot this member took of itself: the `.snap` file and its record.
    Snapshot(Box<Snapshot>),
}

/// What one Ready wants on disk.
#[derive(Default)]
pub(crate) struct Job {
    /// Of the Ready.
    pub number: u64,
    /// Received from the leader; comes before the entries.
    pub snapshot: Option<Snapshot>,
    pub entries: Vec<Entry>,
    /// Comes after the entries, so that it never commits what is not there.
    pub hard_state: Option<HardState>,
    /// Whether it must be synced.
    pub sync: bool,
    /// Leave once it is durable.
    pub messages: Vec<Message>,
}

/// What became durable.
#[derive(Default)]
pub(crate) struct Durable {
    /// The last Ready of the batch.
    pub number: Option<u64>,
    /// To be sent now.
    pub messages: Vec<Message>,
    /// Own snapshots now on disk.
    pub saved: Vec<u64>,
}

/// Writes a batch of tasks and empties it.
pub(crate) fn persist(
    store: &mut dyn LogStore,
    tasks: &mut Vec<WalTask>,
) -> Result<Durable, StorageError> {
    let mut durable = Durable::default();
    let mut sync = false;
    for task in tasks.drain(..) {
        match task {
            WalTask::Ready(job) => {
                sync |= job.sync;
                durable.number = Some(job.number);
                durable.messages.extend(write(store, job)?);
            }
            WalTask::Snapshot(snapshot) => {
                store.save_snapshot(&snapshot)?;
                // That syncs what came before as well.
                sync = false;
                durable.saved.extend(snapshot.metadata.map(|m| m.index));
            }
        }
    }
    if sync {
        store.sync()?;
    }
    newest_append_responses(&mut durable.messages);
    Ok(durable)
}

fn write(store: &mut dyn LogStore, job: Job) -> Result<Vec<Message>, StorageError> {
    let Job {
        snapshot,
        entries,
        hard_state,
        messages,
        ..
    } = job;
    if let Some(snapshot) = &snapshot {
        store.save_snapshot(snapshot)?;
    }
    if hard_state.is_some() || !entries.is_empty() {
        store.append(hard_state.as_ref(), &entries)?;
    }
    Ok(messages)
}
