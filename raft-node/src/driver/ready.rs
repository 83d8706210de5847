//! The contract with raft-rs' asynchronous Ready: what leaves when, what is written in which order, and
//! when raft learns of it.

use std::time::Duration;

use raft::{Ready, StateRole, eraftpb};
use transport_core::raftpb::{ConfChange, Entry, EntryType, Message, MessageType, Snapshot};

use super::{Driver, jobs::InFlight};
use crate::{
    Leadership,
    apply::ApplyTask,
    conf_change,
    log::entry_bytes,
    outbound,
    persist::{Job, WalTask},
    read_index::Origin,
};

impl Driver {
    /// Handles one Ready. raft is not stepped in here.
    pub(super) fn ready(&mut self, now: Duration) {
        let mut ready = self.raw.ready();
        self.number = ready.number();
        self.notice_leadership();
        for state in ready.take_read_states() {
            self.read_confirmed(&state.request_ctx, state.index);
        }
        let held = self.send_now(now, &mut ready);
        let committed = ready.take_committed_entries();
        self.store_and_write(now, ready, held);
        if committed
            .iter()
            .any(|e| e.get_entry_type() == eraftpb::EntryType::EntryConfChange)
        {
            // Of two members one may be left, which cannot find out again what the other committed.
            self.write_lazy_state(now);
        }
        self.hand_out(committed);
    }

    /// Sends what may leave at once and returns what must wait until this Ready is durable.
    ///
    /// A leader's messages leave in parallel with its own write. Of the others only what promises
    /// durability waits: raft-rs would hold back all of a follower's messages, and with them every
    /// linearizable read for the length of an fsync.
    fn send_now(&mut self, now: Duration, ready: &mut Ready) -> Vec<Message> {
        let at_once = ready.take_messages();
        let (waiting, free): (Vec<_>, Vec<_>) = ready
            .take_persisted_messages()
            .into_iter()
            .map(Message::from)
            .partition(promises_durability);
        let at_once = at_once.into_iter().map(Message::from).chain(free).collect();
        self.dispatch(now, at_once);
        waiting
    }

    fn dispatch(&mut self, now: Duration, messages: Vec<Message>) {
        let out = outbound::process(messages, now, &mut self.heartbeats, &*self.is_removed);
        self.effects.send.extend(out.send);
        for message in out.snapshots {
            self.send_snapshot(message);
        }
        for (to, since) in out.late {
            self.metrics.heartbeat_send_failures.increment(1);
            tracing::warn!(
                local_member_id = %self.id,
                remote_peer_id = %to,
                since_last = ?since,
                expected = ?self.config.tick,
                "leader failed to send out heartbeat on time; took too long, leader is overloaded \
                 likely from slow disk"
            );
        }
    }

    /// Snapshot and entries into the in-memory log, the job to the disk, then raft may go on.
    fn store_and_write(&mut self, now: Duration, mut ready: Ready, held: Vec<Message>) {
        let snapshot = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let entries = ready.take_entries();
        let store = self.raw.mut_store();
        if let Some(snapshot) = &snapshot {
            let metadata = snapshot.get_metadata();
            store.restore((metadata.index, metadata.term));
            store.set_conf_state(metadata.get_conf_state().clone());
            let conf_state = metadata.get_conf_state().clone().into();
            self.installing.push_back((metadata.index, conf_state));
        }
        if let Err(error) = store.append(&entries) {
            self.fatal(error);
        }
        let sync = ready.must_sync();
        let number = ready.number();
        if let Some(state) = ready.hs() {
            self.lazy_state = Some(state.clone().into());
        }
        self.raw.advance_append_async(ready);
        // A commit index alone is not worth a write: it rides with the next job or the next tick, and is
        // found again from the leader or the state machine when it is lost.
        let hard_state = if sync { self.lazy_state.take() } else { None };
        let bytes = entries.iter().map(entry_bytes).sum();
        let job = Job {
            number,
            snapshot: snapshot.map(Snapshot::from),
            entries: entries.into_iter().map(Entry::from).collect(),
            hard_state,
            sync,
            messages: Vec::new(),
        };
        self.write(now, job, bytes, held);
    }

    fn write(&mut self, now: Duration, mut job: Job, bytes: usize, held: Vec<Message>) {
        if !job.sync && self.jobs.is_empty() {
            // Nothing to wait for.
            self.dispatch(now, held);
            self.raw.on_persist_ready(job.number);
            return;
        }
        let out = outbound::process(held, now, &mut self.heartbeats, &*self.is_removed);
        job.messages = out.send;
        if !job.sync && job.messages.is_empty() {
            // Reported together with the job before it.
            return;
        }
        self.jobs.add(InFlight {
            number: job.number,
            sync: job.sync,
            since: now,
            bytes,
            snapshot: job.snapshot.clone(),
        });
        self.effects.wal.push(WalTask::Ready(job));
    }

    /// Writes the commit index when nothing else has carried it for a tick.
    pub(super) fn flush_lazy_state(&mut self, now: Duration) {
        if self.jobs.is_empty() {
            self.write_lazy_state(now);
        }
    }

    pub(super) fn write_lazy_state(&mut self, now: Duration) {
        if let Some(hard_state) = self.lazy_state.take() {
            let job = Job {
                number: self.number,
                hard_state: Some(hard_state),
                ..Job::default()
            };
            self.jobs.add(InFlight {
                number: job.number,
                sync: false,
                since: now,
                bytes: 0,
                snapshot: None,
            });
            self.effects.wal.push(WalTask::Ready(job));
        }
    }

    fn hand_out(&mut self, committed: Vec<eraftpb::Entry>) {
        if committed.is_empty() {
            return;
        }
        for id in self.appended.committed(&committed) {
            let superseded = crate::ProposeError::Superseded;
            self.effects.failed_proposals.push((id, superseded));
        }
        let bytes = committed.iter().map(entry_bytes).sum();
        self.unapplied_bytes += bytes;
        let entries = committed.into_iter().map(Entry::from).collect();
        self.effects
            .apply
            .push(ApplyTask::Entries { entries, bytes });
    }

    /// The wal thread finished everything up to that Ready.
    pub(super) fn persisted(&mut self, number: u64) {
        for snapshot in self.jobs.finish(number) {
            self.snapshots.received(&snapshot);
            self.metrics.snapshot_applying.set(1.0);
            self.effects
                .apply
                .push(ApplyTask::Install(Box::new(snapshot)));
        }
        // Readys without a job of their own are durable with the one before them.
        let durable = self.jobs.oldest().map_or(self.number, |oldest| oldest - 1);
        self.raw.on_persist_ready(durable);
    }

    /// The state machine published everything up to `index`.
    pub(super) fn applied(&mut self, index: u64, bytes: usize) {
        self.unapplied_bytes = self.unapplied_bytes.saturating_sub(bytes);
        self.snapshots.applied(bytes);
        let log = &self.raw.raft.raft_log;
        if index > log.committed.min(log.persisted) {
            self.fatal(format!(
                "the state machine reports index {index} as applied, but only {} is committed and {} durable",
                log.committed, log.persisted
            ));
            return;
        }
        if index > log.applied {
            self.raw.advance_apply_to(index);
            self.give_up_forwarded(index);
        }
        while let Some((_, state)) = self.installing.pop_front_if(|(at, _)| *at <= index) {
            self.configuration = conf_change::follow(&state, &ConfChange::default());
            self.metrics.snapshot_applying.set(0.0);
        }
    }

    /// What was forwarded to an earlier leader and is not answered by now has most likely gone with it. Its
    /// proposers can do better than to wait for their deadline.
    fn give_up_forwarded(&mut self, applied: u64) {
        let term = self.raw.store().term_at(applied).unwrap_or_default();
        let lost = self.forwarded.outlived(term).into_iter();
        let lost = lost.map(|id| (id, crate::ProposeError::LeaderLost));
        self.effects.failed_proposals.extend(lost);
    }

    fn read_confirmed(&mut self, context: &[u8], index: u64) {
        for origin in self.reads.answered(context) {
            match origin {
                Origin::Local(ticket) => self.effects.confirmed_reads.push((ticket, index)),
                Origin::Remote { from, context } => self.effects.send.push(Message {
                    msg_type: MessageType::ReadIndexResponse as i32,
                    to: from.0,
                    from: self.id.0,
                    term: self.raw.raft.term,
                    index,
                    entries: vec![Entry {
                        entry_type: EntryType::Normal as i32,
                        data: context,
                        ..Entry::default()
                    }],
                    ..Message::default()
                }),
            }
        }
    }

    /// Reports a change of leader, term or role once.
    fn notice_leadership(&mut self) {
        let raft = &self.raw.raft;
        let is_self = raft.state == StateRole::Leader;
        let now = Leadership {
            leader: (raft.leader_id != 0).then_some(raft.leader_id.into()),
            term: raft.term,
            is_self,
        };
        let before = std::mem::replace(&mut self.leadership, now);
        if before == now {
            return;
        }
        if now.leader.is_some() && now.leader != before.leader {
            self.metrics.leader_changes.increment(1);
        }
        self.metrics
            .has_leader
            .set(f64::from(u8::from(now.leader.is_some())));
        self.metrics.is_leader.set(f64::from(u8::from(is_self)));
        tracing::info!(
            local_member_id = %self.id,
            term = now.term,
            leader = %now.leader.unwrap_or_default(),
            role = ?raft.state,
            "leadership changed"
        );
        self.heartbeats.reset();
        self.reads.leader_changed();
        self.effects.leadership = Some(now);
        if is_self || before.is_self {
            let term = now.term;
            self.effects.apply.push(ApplyTask::Leadership {
                is_leader: is_self,
                term,
            });
        }
    }
}

fn promises_durability(message: &Message) -> bool {
    use MessageType as T;
    matches!(
        message.kind(),
        Some(
            T::AppendResponse
                | T::RequestVote
                | T::RequestVoteResponse
                | T::RequestPreVote
                | T::RequestPreVoteResponse
        )
    )
}
