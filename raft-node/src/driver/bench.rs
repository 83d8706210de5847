//! A driver with a hand on every input, for tests of one behaviour at a time.

use bytes::Bytes;
use transport_core::{
    ClusterId,
    raftpb::{Entry, MessageType},
};

use super::*;
use crate::{persist::Job, proposals::Proposal};

/// Member 1 of a cluster, its configuration applied, and what came out of it.
pub(super) struct Bench {
    pub driver: Driver,
    pub now: Duration,
    pub sent: Vec<Message>,
    pub jobs: Vec<Job>,
    pub tasks: Vec<ApplyTask>,
    pub failed: Vec<(u64, ProposeError)>,
    pub reads: Vec<(u64, u64)>,
    pub conf_states: Vec<ConfState>,
}

impl Bench {
    pub fn new(members: u64) -> Self {
        Bench::with(members, |_| {})
    }

    pub fn with(members: u64, adjust: impl FnOnce(&mut NodeConfig)) -> Self {
        let mut config = NodeConfig {
            seed: Some(1),
            ..NodeConfig::new(MemberId(1), ClusterId(1), Arc::new(metrics::NoopRecorder))
        };
        adjust(&mut config);
        let conf_state = ConfState {
            voters: (1..=members).collect(),
            ..ConfState::default()
        };
        let entry = raft::eraftpb::Entry {
            index: 1,
            term: 1,
            ..Default::default()
        };
        let state = HardState {
            term: 1,
            vote: 0,
            commit: 1,
        };
        let log = Log::new((0, 0), vec![entry], state.into(), conf_state.into());
        let metrics = Arc::new(Metrics::register(&metrics::NoopRecorder));
        let driver = Driver::new(config, log, 1, Arc::new(|_| false), metrics);
        Bench {
            driver: driver.expect("a valid configuration"),
            now: Duration::ZERO,
            sent: Vec::new(),
            jobs: Vec::new(),
            tasks: Vec::new(),
            failed: Vec::new(),
            reads: Vec::new(),
            conf_states: Vec::new(),
        }
    }

    pub fn settle(&mut self) {
        let effects = self.driver.settle(self.now);
        assert_eq!(effects.fatal, None);
        self.sent.extend(effects.send);
        for task in effects.wal {
            if let WalTask::Ready(job) = task {
                self.jobs.push(job);
            }
        }
        self.tasks.extend(effects.apply);
        self.failed.extend(effects.failed_proposals);
        self.reads.extend(effects.confirmed_reads);
        self.conf_states.extend(effects.conf_states);
    }

    pub fn tick(&mut self) {
        self.now += self.driver.config.tick;
        self.driver.tick(self.now);
        self.settle();
    }

    pub fn receive(&mut self, message: Message) {
        self.driver.message(self.now, Message { to: 1, ..message });
        self.settle();
    }

    pub fn event(&mut self, event: Event) {
        self.driver.event(self.now, event);
        self.settle();
    }

    /// All jobs so far become durable, and what they held back leaves.
    pub fn persist(&mut self) {
        while let Some(last) = self.jobs.last().map(|job| job.number) {
            let held = self.jobs.drain(..).flat_map(|job| job.messages);
            self.sent.extend(held.collect::<Vec<_>>());
            self.event(Event::Persisted { number: last });
        }
    }

    /// Everything handed out so far is applied.
    pub fn apply(&mut self) {
        for task in std::mem::take(&mut self.tasks) {
            if let ApplyTask::Entries { entries, bytes } = task
                && let Some(last) = entries.last()
            {
                self.event(Event::Applied {
                    index: last.index,
                    bytes,
                });
            }
        }
    }

    pub fn sent(&mut self, kind: MessageType) -> Vec<Message> {
        let (wanted, others) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition(|m| m.msg_type == kind as i32);
        self.sent = others;
        wanted
    }

    /// Wins an election; the entry of the new term is neither durable nor committed.
    pub fn elect(mut self) -> Self {
        while self.sent(MessageType::RequestPreVote).is_empty() && !self.driver.is_leader() {
            self.tick();
            self.persist();
        }
        let term = self.driver.numbers().term;
        self.receive(from(2, MessageType::RequestPreVoteResponse, term + 1));
        self.persist();
        self.receive(from(2, MessageType::RequestVoteResponse, term + 1));
        self.persist_vote();
        self
    }

    pub fn persist_vote(&mut self) {
        assert!(self.driver.is_leader());
        self.sent.clear();
    }

    /// Leads, with the entry of its term committed and applied.
    pub fn lead(self) -> Self {
        let mut bench = self.elect();
        bench.persist();
        let last = bench.driver.numbers().last_index;
        let members = bench.driver.progress().len() as u64;
        for peer in 2..=members {
            bench.acknowledge(peer, last);
        }
        bench.apply();
        bench.persist();
        bench.sent.clear();
        bench
    }

    pub fn acknowledge(&mut self, peer: u64, index: u64) {
        let term = self.driver.numbers().term;
        self.receive(Message {
            index,
            ..from(peer, MessageType::AppendResponse, term)
        });
    }

    pub fn propose(&mut self, id: u64) {
        self.driver.propose(self.now, vec![proposal(id)]);
        self.settle();
    }
}

pub(super) fn from(peer: u64, kind: MessageType, term: u64) -> Message {
    Message {
        msg_type: kind as i32,
        from: peer,
        to: 1,
        term,
        ..Message::default()
    }
}

pub(super) fn proposal(id: u64) -> Proposal {
    Proposal {
        id,
        kind: transport_core::raftpb::EntryType::Normal,
        data: Bytes::from_static(b"data"),
        room: None,
    }
}

pub(super) fn append(term: u64, index: u64, log_term: u64, count: u64) -> Message {
    let entry = |i| Entry {
        index: index + i,
        term,
        data: Bytes::from_static(b"data"),
        ..Entry::default()
    };
    Message {
        index,
        log_term,
        entries: (1..=count).map(entry).collect(),
        ..from(2, MessageType::Append, term)
    }
}

pub(super) fn change(change_type: i32, node_id: u64) -> ConfChange {
    ConfChange {
        id: 9,
        change_type,
        node_id,
        context: Bytes::new(),
    }
}
