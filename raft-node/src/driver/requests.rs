//! Local proposals and all reads on their way into raft.

use std::time::Duration;

use raft::{StateRole, eraftpb};
use transport_core::raftpb::EntryType;

use super::Driver;
use crate::{ProposeError, ReadError, conf_change, proposals::Proposal, read_index::Origin};

/// Whether proposals can go on at this moment.
enum Path {
    Open,
    /// No leader is known, or leadership is moving.
    Wait,
    /// This member leads but is no longer part of the configuration.
    Removed,
}

impl Driver {
    /// Takes local proposals; all of one turn become as few messages as their bound allows.
    pub fn propose(&mut self, now: Duration, proposals: Vec<Proposal>) {
        self.held.add(now, proposals);
    }

    /// Takes the readers of one turn, kept elsewhere under `ticket`.
    pub fn read(&mut self, now: Duration, ticket: u64) {
        self.reads.add(now, Origin::Local(ticket));
    }

    pub(super) fn flush_held(&mut self, now: Duration) {
        while !self.held.is_empty() {
            match self.path() {
                Path::Wait => return,
                Path::Removed => {
                    let taken = self.held.take_message();
                    self.fail(&taken, &ProposeError::Removed);
                }
                Path::Open => {
                    let taken = self.held.take_message();
                    self.propose_now(now, taken);
                }
            }
        }
    }

    fn path(&self) -> Path {
        let raft = &self.raw.raft;
        let leads = raft.state == StateRole::Leader;
        if leads && !conf_change::is_voter(&self.raw) {
            Path::Removed
        } else if raft.leader_id == raft::INVALID_ID || (leads && raft.lead_transferee.is_some()) {
            Path::Wait
        } else {
            Path::Open
        }
    }

    fn propose_now(&mut self, now: Duration, proposals: Vec<Proposal>) {
        let leads = self.is_leader();
        let raft = &self.raw.raft;
        let changes = proposals
            .first()
            .is_some_and(|p| p.kind == EntryType::ConfChange);
        if leads && changes && raft.has_pending_conf() {
            // raft would put an empty entry in its place, and nobody would ever answer.
            self.fail(&proposals, &ProposeError::ConfChangePending);
            return;
        }
        let term = raft.term;
        let first = raft.raft_log.last_index() + 1;
        let ids: Vec<u64> = proposals.iter().map(|p| p.id).collect();
        let entries: Vec<_> = proposals.into_iter().map(Proposal::into_entry).collect();
        let proposed = if leads {
            self.append_as_leader(entries)
        } else {
            let mut message = eraftpb::Message::default();
            message.set_msg_type(eraftpb::MessageType::MsgPropose);
            message.from = raft.id;
            message.set_entries(entries.into());
            self.raw.step(message)
        };
        match proposed {
            Ok(()) if leads => {
                for (index, id) in (first..).zip(ids) {
                    self.appended.add(index, term, id);
                }
            }
            // On its way to the leader; what becomes of it is open.
            Ok(()) => self.forwarded.add(now, term, ids),
            Err(error) => {
                tracing::debug!(%error, count = ids.len(), "raft refused proposals");
                let refused = ids
                    .into_iter()
                    .map(|id| (id, ProposeError::TooManyRequests));
                self.effects.failed_proposals.extend(refused);
            }
        }
    }

    /// Does what raft-rs does with a proposal at the leader, except that it never looks into configuration
    /// changes: raft-rs would parse them with its own numbering, refuse a learner's addition, and do so with
    /// a codec that must not see bytes from the network.
    pub(super) fn append_as_leader(
        &mut self,
        mut entries: Vec<eraftpb::Entry>,
    ) -> raft::Result<()> {
        let voter = conf_change::is_voter(&self.raw);
        let raft = &mut self.raw.raft;
        if !voter || raft.lead_transferee.is_some() {
            return Err(raft::Error::ProposalDropped);
        }
        let first = raft.raft_log.last_index() + 1;
        let pending_before = raft.pending_conf_index;
        for (index, entry) in (first..).zip(&mut entries) {
            if entry.get_entry_type() == eraftpb::EntryType::EntryNormal {
                continue;
            }
            if raft.has_pending_conf() {
                // As in etcd, an empty entry takes its place.
                *entry = eraftpb::Entry::default();
            } else {
                raft.pending_conf_index = index;
            }
        }
        if !raft.append_entry(&mut entries) {
            raft.pending_conf_index = pending_before;
            return Err(raft::Error::ProposalDropped);
        }
        self.tell_commit();
        Ok(())
    }

    fn fail(&mut self, proposals: &[Proposal], error: &ProposeError) {
        let failed = proposals.iter().map(|p| (p.id, error.clone()));
        self.effects.failed_proposals.extend(failed);
    }

    /// Asks for indexes, while there is somebody who can answer.
    pub(super) fn flush_reads(&mut self, now: Duration) {
        if !self.can_ask() {
            return;
        }
        while let Some(context) = self.reads.ask(now) {
            self.raw.read_index(context);
        }
    }

    /// A leader can answer only once an entry of its term is committed (raft-rs would drop the question
    /// without a word) and while it is a voter (a sole other voter would not be asked).
    fn can_ask(&self) -> bool {
        let raft = &self.raw.raft;
        match raft.state {
            StateRole::Leader => raft.commit_to_current_term() && conf_change::is_voter(&self.raw),
            StateRole::Follower => raft.leader_id != raft::INVALID_ID,
            StateRole::Candidate | StateRole::PreCandidate => false,
        }
    }

    /// Gives up what waited too long, and has slow questions repeated.
    pub(super) fn expire(&mut self, now: Duration) {
        let since = now.saturating_sub(self.config.request_timeout);
        self.forwarded.forget(since);
        let expired = self.held.expire(since);
        let failed = expired.into_iter().map(|id| (id, ProposeError::NoLeader));
        self.effects.failed_proposals.extend(failed);

        let (expired, slow) = self.reads.tick(now);
        self.metrics.slow_read_indexes.increment(slow as u64);
        self.metrics
            .read_indexes_failed
            .increment(expired.len() as u64);
        let failed = expired
            .into_iter()
            .map(|ticket| (ticket, ReadError::Timeout));
        self.effects.failed_reads.extend(failed);
    }
}
