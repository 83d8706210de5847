//! The engine around `raft::RawNode`: inputs and the time go in, effects come out.
//!
//! No thread, clock or I/O lives here: [`Driver`] is a value that the raft task feeds and whose
//! [`Effects`] it carries out; a simulation does the same in virtual time. `inbound` takes received
//! messages, `ready` holds the contract with raft-rs' asynchronous Ready, `requests` proposals and reads,
//! `commits` when followers hear of a commit, `snapshots` what log compaction needs.
//!
//! Invariants, each of which raft-rs would end the process over: nothing is stepped between `ready` and
//! `advance_append_async`; Readys are reported persisted in order; the applied index only rises and follows
//! a snapshot only once that is durable and installed; elections start only while everything is durable.

#[cfg(test)]
mod bench;
mod commits;
#[cfg(test)]
mod fuzz_tests;
mod inbound;
mod jobs;
mod ready;
mod requests;
mod snapshots;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use raft::{Config, RawNode, StateRole};
use tokio::sync::oneshot;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfState, HardState, Message, Snapshot},
};

use self::{commits::Commits, jobs::Jobs, snapshots::Snapshots};
use crate::{
    Leadership, NodeConfig, ProposeError, ReadError, Role, TransferError,
    admit::DropReason,
    apply::ApplyTask,
    conf_change,
    election::Election,
    log::Log,
    metrics::Metrics,
    outbound::Heartbeats,
    persist::WalTask,
    proposals::{Appended, Forwarded, Held},
    read_index::ReadIndex,
};

/// Tells whether a member was removed for good.
pub(crate) type IsRemoved = Arc<dyn Fn(MemberId) -> bool + Send + Sync>;

/// What others tell the raft task.
#[derive(Debug)]
pub(crate) enum Event {
    /// The job of this Ready and all before it are durable.
    Persisted { number: u64 },
    /// The state machine published everything up to `index`, `bytes` of entries since it last said so.
    Applied { index: u64, bytes: usize },
    /// A committed configuration change, validated; of node 0 when refused. Answered with the
    /// configuration that follows.
    ConfChange(ConfChange),
    /// What the state machine gave for a `.snap` file, if anything.
    SnapshotTaken(Option<Box<Snapshot>>),
    /// The `.snap` file and its record are durable.
    SnapshotSaved { index: u64 },
    /// Messages to a member were lost.
    Unreachable(MemberId),
    /// How sending a snapshot ended.
    SnapshotReport { to: MemberId, ok: bool },
    /// Leadership is to move.
    Transfer {
        to: MemberId,
        reply: oneshot::Sender<Result<(), TransferError>>,
    },
    /// A snapshot of everything up to `index` is wanted.
    ForceSnapshot { index: u64 },
    /// The first election may come earlier by that many ticks.
    AdvanceElection { ticks: usize },
}

/// What is to be done outside. Order within each list matters, order between lists does not, except that
/// whoever persists must not be overtaken by whoever applies; the driver hands out only durable entries.
#[derive(Default)]
pub(crate) struct Effects {
    pub send: Vec<Message>,
    pub wal: Vec<WalTask>,
    pub apply: Vec<ApplyTask>,
    /// Answers to [`Event::ConfChange`].
    pub conf_states: Vec<ConfState>,
    pub failed_proposals: Vec<(u64, ProposeError)>,
    /// Tickets of reads and their index.
    pub confirmed_reads: Vec<(u64, u64)>,
    pub failed_reads: Vec<(u64, ReadError)>,
    pub leadership: Option<Leadership>,
    /// The node cannot go on.
    pub fatal: Option<String>,
}

/// See the module.
pub(crate) struct Driver {
    raw: RawNode<Log>,
    id: MemberId,
    config: NodeConfig,
    is_removed: IsRemoved,
    metrics: Arc<Metrics>,
    election: Election,
    heartbeats: Heartbeats,
    reads: ReadIndex,
    held: Held,
    appended: Appended,
    forwarded: Forwarded,
    commits: Commits,
    jobs: Jobs,
    snapshots: Snapshots,
    /// Number of the last Ready.
    number: u64,
    /// A commit index worth writing, but not worth a write of its own.
    lazy_state: Option<HardState>,
    /// Received snapshots the state machine has not installed, by index, with their configuration.
    installing: VecDeque<(u64, ConfState)>,
    /// The configuration at the state machine's index. raft's own runs ahead of it from the moment a
    /// snapshot is stepped until it is installed.
    configuration: ConfState,
    /// Came while an election was not possible.
    timeout_now: Option<raft::eraftpb::Message>,
    /// Committed entries the state machine has not applied.
    unapplied_bytes: usize,
    leadership: Leadership,
    log_lost: bool,
    /// Contradictions are not reported again before.
    conflict_quiet_until: Duration,
    /// As last reported.
    backlog: Option<DropReason>,
    effects: Effects,
}

impl Driver {
    /// A driver over a log in which everything is durable. `applied` is contained in the state machine, and
    /// the log's configuration is the one at that index.
    pub fn new(
        config: NodeConfig,
        log: Log,
        applied: u64,
        is_removed: IsRemoved,
        metrics: Arc<Metrics>,
    ) -> Result<Self, raft::Error> {
        let mut election = Election::new(config.seed, config.election_ticks);
        let nonce = election.nonce();
        let snapshots = Snapshots::new(&log);
        let configuration = conf_change::follow(&log.conf_state(), &ConfChange::default());
        let mut raw = RawNode::new(
            &raft_config(&config, applied),
            log,
            &crate::logger::logger(),
        )?;
        election.settle(&mut raw.raft);
        Ok(Driver {
            id: config.id,
            is_removed,
            metrics,
            election,
            heartbeats: Heartbeats::new(config.tick * config.heartbeat_ticks as u32),
            reads: ReadIndex::new(config.id, nonce, config.read_retry, config.request_timeout),
            held: Held::default(),
            appended: Appended::default(),
            forwarded: Forwarded::default(),
            commits: Commits::default(),
            jobs: Jobs::default(),
            snapshots,
            number: 0,
            lazy_state: None,
            installing: VecDeque::new(),
            configuration,
            timeout_now: None,
            unapplied_bytes: 0,
            leadership: Leadership::default(),
            log_lost: false,
            conflict_quiet_until: Duration::ZERO,
            backlog: None,
            effects: Effects::default(),
            raw,
            config,
        })
    }

    /// Takes what another thread reports.
    pub fn event(&mut self, now: Duration, event: Event) {
        match event {
            Event::Persisted { number } => self.persisted(number),
            Event::Applied { index, bytes } => self.applied(index, bytes),
            Event::ConfChange(change) => self.conf_change(&change),
            Event::SnapshotTaken(snapshot) => self.snapshot_taken(now, snapshot.map(|s| *s)),
            Event::SnapshotSaved { index } => self.snapshot_saved(now, index),
            Event::Unreachable(id) => self.raw.report_unreachable(id.0),
            Event::SnapshotReport { to, ok } => self.snapshot_report(now, to, ok),
            Event::Transfer { to, reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.transfer(to));
            }
            Event::ForceSnapshot { index } => self.snapshots.force(index),
            Event::AdvanceElection { ticks } => self.election.advance(&mut self.raw.raft, ticks),
        }
        self.election.settle(&mut self.raw.raft);
    }

    /// One tick of the clock.
    pub fn tick(&mut self, now: Duration) {
        // An election needs everything durable, so its clock stands still meanwhile. A leader's heartbeats
        // and its check for a quorum go on.
        if self.is_leader() || self.may_campaign() {
            self.election.advance_alone(&mut self.raw.raft);
            self.raw.tick();
            self.election.settle(&mut self.raw.raft);
        }
        self.watch_disk(now);
        self.notice_backlog();
        self.expire(now);
        self.flush_lazy_state(now);
        self.maybe_snapshot(now);
    }

    /// What is left to write when the node stops.
    pub fn stop(&mut self, now: Duration) -> Effects {
        self.write_lazy_state(now);
        std::mem::take(&mut self.effects)
    }

    /// Proposes, asks and drains raft until nothing is left to do; to be called after a turn's inputs.
    pub fn settle(&mut self, now: Duration) -> Effects {
        loop {
            self.report_failed_sends();
            self.retry_timeout_now();
            self.flush_held(now);
            self.flush_reads(now);
            self.flush_commit(now);
            if self.effects.fatal.is_some() || !self.raw.has_ready() {
                break;
            }
            self.ready(now);
        }
        std::mem::take(&mut self.effects)
    }

    fn conf_change(&mut self, change: &ConfChange) {
        let next = conf_change::follow(&self.configuration, change);
        let pending = self.raw.raft.raft_log.unstable_snapshot().is_some();
        // While raft is at the configuration of a later snapshot, an earlier change is none of its business.
        if self.installing.is_empty() && !pending {
            match conf_change::apply(&mut self.raw, change) {
                Ok(state) if state == next => {}
                Ok(state) => {
                    self.fatal(format!(
                        "{change:?} made {state:?} of raft's configuration, not {next:?}"
                    ));
                    return;
                }
                Err(error) => {
                    self.fatal(error);
                    return;
                }
            }
            self.raw.mut_store().set_conf_state(next.clone().into());
        }
        self.configuration = next.clone();
        self.effects.conf_states.push(next);
    }

    fn transfer(&mut self, to: MemberId) -> Result<(), TransferError> {
        if !self.is_leader() {
            return Err(TransferError::NotLeader);
        }
        if !self.raw.raft.prs().conf().voters().contains(to.0) {
            return Err(TransferError::NotVoter(to));
        }
        // A successor need not find out by itself what is committed: it may be alone by then.
        self.tell_commit_now();
        self.raw.transfer_leader(to.0);
        Ok(())
    }

    /// Hands leadership over when the disk has not finished a write for too long.
    fn watch_disk(&mut self, now: Duration) {
        let stalled = self
            .jobs
            .oldest_sync()
            .map(|since| now.saturating_sub(since));
        let Some(stalled) = stalled.filter(|s| *s >= self.config.disk_stall_max) else {
            return;
        };
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.lead_transferee.is_some() {
            return;
        }
        let voters = raft.prs().conf().voters();
        let heir = raft
            .prs()
            .iter()
            .filter(|(id, p)| **id != raft.id && p.recent_active && voters.contains(**id))
            .max_by_key(|(id, p)| (p.matched, **id))
            .map(|(id, _)| *id);
        if let Some(heir) = heir {
            tracing::warn!(
                local_member_id = %self.id,
                transferee = %MemberId(heir),
                stalled = ?stalled,
                "the disk does not finish a write; handing leadership over"
            );
            self.raw.transfer_leader(heir);
        }
    }

    /// Whether everything raft has is durable and installed, as an election needs it.
    fn may_campaign(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        !self.jobs.has_sync()
            && self.installing.is_empty()
            && log.unstable_entries().is_empty()
            && log.unstable_snapshot().is_none()
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn fatal(&mut self, reason: impl ToString) {
        self.effects.fatal.get_or_insert_with(|| reason.to_string());
    }
}

/// What the rest of the node shows of the driver's state.
pub(crate) struct Numbers {
    pub term: u64,
    pub leader: u64,
    pub role: Role,
    pub committed: u64,
    pub last_index: u64,
    pub snapshot_index: u64,
    pub log_lost: bool,
    pub backlogged: bool,
}

impl Driver {
    pub fn numbers(&self) -> Numbers {
        let raft = &self.raw.raft;
        Numbers {
            term: raft.term,
            leader: raft.leader_id,
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            committed: raft.raft_log.committed,
            last_index: raft.raft_log.last_index(),
            snapshot_index: self.snapshots.last(),
            log_lost: self.log_lost,
            backlogged: self.unapplied_bytes > self.config.apply_backlog_bytes_max,
        }
    }

    /// How far each member's log is known to match, at a leader; empty elsewhere.
    pub fn progress(&self) -> Vec<(MemberId, u64)> {
        if !self.is_leader() {
            return Vec::new();
        }
        let prs = self.raw.raft.prs();
        let member = |id| prs.conf().voters().contains(id) || prs.conf().learners().contains(&id);
        let known = prs.iter().filter(|(id, _)| member(**id));
        known.map(|(id, p)| (MemberId(*id), p.matched)).collect()
    }
}

fn raft_config(config: &NodeConfig, applied: u64) -> Config {
    Config {
        id: config.id.0,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied,
        max_size_per_msg: config.append_bytes_max,
        max_inflight_msgs: config.appends_in_flight_max,
        max_committed_size_per_ready: config.committed_bytes_max,
        max_uncommitted_size: config.uncommitted_bytes_max,
        check_quorum: true,
        pre_vote: config.pre_vote,
        // The driver does it, later: see `commits`.
        skip_bcast_commit: true,
        ..Config::default()
    }
}
