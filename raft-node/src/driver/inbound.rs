//! Received messages: through the rules, then into raft.

use std::time::Duration;

use bytes::Bytes;
use raft::StateRole;
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType},
};

use super::Driver;
use crate::{
    admit::{self, DropReason, View},
    read_index::Origin,
};

/// Payloads below this are copied out of the buffer they were received in, which they would keep alive.
const COPY_BELOW_BYTES: usize = 16 << 10;

impl Driver {
    /// Takes a received message, if the rules admit it.
    pub fn message(&mut self, now: Duration, message: Message) {
        match self.admit(&message) {
            Ok(kind) => self.step(now, kind, message),
            Err(reason) => self.dropped(now, reason, &message),
        }
    }

    pub(super) fn admit(&self, message: &Message) -> Result<MessageType, DropReason> {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let term_at = |index| {
            // raft-rs answers 0 for positions it does not have.
            let known = index + 1 >= log.first_index() && index <= log.last_index();
            log.term(index).ok().filter(|_| known)
        };
        admit::admit(
            message,
            &View {
                id: self.id,
                term: raft.term,
                is_leader: raft.state == StateRole::Leader,
                committed: log.committed,
                last_index: log.last_index(),
                term_at: &term_at,
                is_removed: &*self.is_removed,
                backlog: self.backlog(),
            },
        )
    }

    fn step(&mut self, now: Duration, kind: MessageType, mut message: Message) {
        match kind {
            MessageType::ReadIndex if self.is_leader() => {
                let context = message.entries.pop().unwrap_or_default().data;
                let from = MemberId(message.from);
                self.reads.add(
                    now,
                    Origin::Remote {
                        from,
                        context: Bytes::copy_from_slice(&context),
                    },
                );
                return;
            }
            MessageType::Append | MessageType::Propose => own_payloads(&mut message),
            _ => {}
        }
        let from = message.from;
        let Ok(mut message) = raft::eraftpb::Message::try_from(message) else {
            self.metrics.message_dropped(DropReason::UnknownType);
            return;
        };
        if kind == MessageType::TimeoutNow && !self.may_campaign() {
            self.timeout_now = Some(message);
            return;
        }
        let stepped = if kind == MessageType::Propose && self.is_leader() {
            let appended = self.append_as_leader(message.take_entries().into_vec());
            self.asked_by_follower();
            appended
        } else {
            self.raw.step(message)
        };
        match stepped {
            Ok(()) => {}
            Err(raft::Error::StepPeerNotFound) => {
                self.metrics.message_dropped(DropReason::UnknownMember);
            }
            Err(raft::Error::ProposalDropped) => {
                self.metrics.message_dropped(DropReason::ProposalDropped);
            }
            Err(error) => {
                tracing::warn!(remote_peer_id = %MemberId(from), %error, "raft refused a message");
            }
        }
        self.election.settle(&mut self.raw.raft);
    }

    fn dropped(&mut self, now: Duration, reason: DropReason, message: &Message) {
        self.metrics.message_dropped(reason);
        let from = MemberId(message.from);
        match reason {
            DropReason::LogLost if !self.log_lost => {
                self.log_lost = true;
                tracing::error!(
                    local_member_id = %self.id,
                    remote_peer_id = %from,
                    commit = message.commit,
                    last_index = self.raw.raft.raft_log.last_index(),
                    "the leader counts on entries this member does not have: its log was lost; \
                     remove the member and add it again"
                );
            }
            DropReason::ConflictsCommitted if now >= self.conflict_quiet_until => {
                self.conflict_quiet_until = now + Duration::from_secs(10);
                tracing::error!(
                    local_member_id = %self.id,
                    remote_peer_id = %from,
                    term = message.term,
                    index = message.index,
                    "a message contradicts entries that are committed here"
                );
            }
            _ => tracing::debug!(
                remote_peer_id = %from,
                message_type = message.msg_type,
                reason = reason.as_str(),
                "dropped a message"
            ),
        }
    }

    pub(super) fn retry_timeout_now(&mut self) {
        if self.timeout_now.is_some()
            && self.may_campaign()
            && let Some(message) = self.timeout_now.take()
        {
            // raft ignores it if the term has moved on.
            let _ = self.raw.step(message);
            self.election.settle(&mut self.raw.raft);
        }
    }

    /// Reports once that received entries are being dropped, and once that they no longer are.
    pub(super) fn notice_backlog(&mut self) {
        let backlog = self.backlog();
        if self.backlog == backlog {
            return;
        }
        let before = std::mem::replace(&mut self.backlog, backlog);
        match (backlog, before) {
            (Some(reason), _) => tracing::warn!(
                local_member_id = %self.id,
                reason = reason.as_str(),
                unapplied_bytes = self.unapplied_bytes,
                unwritten_bytes = self.jobs.bytes(),
                "too far behind; dropping received entries"
            ),
            (None, Some(reason)) => tracing::info!(
                local_member_id = %self.id,
                reason = reason.as_str(),
                "caught up; taking received entries again"
            ),
            (None, None) => {}
        }
    }

    /// Why received entries have nowhere to go, if so.
    fn backlog(&self) -> Option<DropReason> {
        if self.unapplied_bytes > self.config.apply_backlog_bytes_max {
            Some(DropReason::ApplyBacklog)
        } else if self.jobs.bytes() > self.config.wal_backlog_bytes_max {
            Some(DropReason::WalBacklog)
        } else {
            None
        }
    }
}

/// Copies small payloads, so that a few bytes in the log do not keep a whole receive buffer alive.
fn own_payloads(message: &mut Message) {
    for entry in &mut message.entries {
        if entry.data.len() < COPY_BELOW_BYTES {
            entry.data = Bytes::copy_from_slice(&entry.data);
        }
    }
}
