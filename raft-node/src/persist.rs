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

/// What the raft task hands to the wal thread.
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

impl WalTask {
    /// Entries it brings.
    pub fn entries(&self) -> u64 {
        match self {
            WalTask::Ready(job) => job.entries.len() as u64,
            WalTask::Snapshot(_) => 0,
        }
    }
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

#[cfg(test)]
mod tests {
    use transport_core::raftpb::{MessageType, SnapshotMetadata};

    use super::*;

    #[derive(Default)]
    struct Calls {
        made: Vec<String>,
        fails_at: usize,
    }

    impl Calls {
        fn call(&mut self, name: String) -> Result<(), StorageError> {
            self.made.push(name);
            if self.made.len() == self.fails_at {
                return Err(StorageError::NotEmpty(transport_core::MemberId(1)));
            }
            Ok(())
        }
    }

    impl LogStore for Calls {
        fn append(
            &mut self,
            state: Option<&HardState>,
            entries: &[Entry],
        ) -> Result<(), StorageError> {
            self.call(format!(
                "append {} {:?}",
                entries.len(),
                state.map(|s| s.commit)
            ))
        }
        fn sync(&mut self) -> Result<(), StorageError> {
            self.call("sync".into())
        }
        fn save_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), StorageError> {
            let index = snapshot.metadata.as_ref().map_or(0, |m| m.index);
            self.call(format!("snapshot {index}"))
        }
    }

    fn job(number: u64, sync: bool) -> Job {
        Job {
            number,
            sync,
            ..Job::default()
        }
    }

    fn entries(number: u64) -> Job {
        Job {
            entries: vec![Entry::default()],
            ..job(number, true)
        }
    }

    fn snapshot(index: u64) -> Snapshot {
        Snapshot {
            metadata: Some(SnapshotMetadata {
                index,
                ..SnapshotMetadata::default()
            }),
            ..Snapshot::default()
        }
    }

    fn acknowledgement(index: u64) -> Vec<Message> {
        vec![Message {
            msg_type: MessageType::AppendResponse as i32,
            to: 2,
            index,
            ..Message::default()
        }]
    }

    fn run(jobs: Vec<WalTask>) -> (Vec<String>, Durable) {
        let (mut store, mut tasks) = (Calls::default(), jobs);
        let durable = persist(&mut store, &mut tasks).expect("nothing fails");
        assert!(tasks.is_empty());
        (store.made, durable)
    }

    #[test]
    fn jobs_share_a_sync_and_answer_once() {
        let acknowledging = |number, index| Job {
            messages: acknowledgement(index),
            ..entries(number)
        };
        let (made, durable) = run(vec![
            WalTask::Ready(acknowledging(1, 5)),
            WalTask::Ready(acknowledging(2, 6)),
        ]);
        assert_eq!(made, ["append 1 None", "append 1 None", "sync"]);
        assert_eq!(durable.number, Some(2));
        assert_eq!(durable.messages, acknowledgement(6));
    }

    #[test]
    fn a_commit_index_is_written_and_not_synced() {
        let state = Some(HardState {
            commit: 7,
            ..HardState::default()
        });
        let commit = Job {
            hard_state: state,
            ..job(3, false)
        };
        let (made, durable) = run(vec![WalTask::Ready(commit)]);
        assert_eq!(
            (made, durable.number),
            (vec!["append 0 Some(7)".into()], Some(3))
        );
        let messages = Job {
            messages: acknowledgement(1),
            ..job(4, false)
        };
        let (made, durable) = run(vec![WalTask::Ready(messages)]);
        assert!(made.is_empty() && durable.messages.len() == 1);
    }

    #[test]
    fn snapshots_come_before_what_follows_them() {
        let received = Job {
            snapshot: Some(snapshot(50)),
            ..entries(4)
        };
        let (made, durable) = run(vec![
            WalTask::Ready(entries(3)),
            WalTask::Ready(received),
            WalTask::Snapshot(Box::new(snapshot(52))),
        ]);
        assert_eq!(
            made,
            [
                "append 1 None",
                "snapshot 50",
                "append 1 None",
                "snapshot 52"
            ]
        );
        assert_eq!((durable.number, durable.saved), (Some(4), vec![52]));
    }

    #[test]
    fn nothing_is_promised_after_a_failure() {
        for fails_at in 1..=3 {
            let mut store = Calls {
                fails_at,
                ..Calls::default()
            };
            let mut tasks = vec![WalTask::Ready(entries(1)), WalTask::Ready(entries(2))];
            assert!(persist(&mut store, &mut tasks).is_err());
            assert_eq!(store.made.len(), fails_at, "and nothing is tried again");
        }
    }
}
