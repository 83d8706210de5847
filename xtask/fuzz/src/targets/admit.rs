//! Messages a peer could send, against a raft in whatever state the ones before brought it to.
//!
//! The input is read as a list of steps. Numbers in it are distances from raft's own term and indexes, because
//! a random 64-bit number is never near anything. Held: what [`raft_node::admit::admit`] lets through, raft-rs
//! survives.

use bytes::Bytes;
use raft::{Config, RawNode, StateRole, eraftpb, storage::MemStorage};
use raft_node::admit::{View, admit as rules};
use transport_core::{
    MemberId,
    raftpb::{
        ConfState, Entry, Message, MessageType, Snapshot, SnapshotMetadata, conf_change_to_raft,
        decode_conf_change,
    },
};

const ID: u64 = 1;
const REMOVED: u64 = 9;
/// Enough to elect, to be elected, to fall behind and to be caught up.
const STEPS_MAX: usize = 256;

/// See the module.
pub fn admit(data: &[u8]) {
    let mut input = Input(data);
    let mut member = Member::new();
    for _ in 0..STEPS_MAX {
        let Some(kind) = input.byte() else { break };
        match kind {
            0..=23 => member.receive(input.message(i32::from(kind), &member.raw)),
            24..=31 => drop(member.raw.tick()),
            32 => drop(member.raw.campaign()),
            33..=40 => drop(member.raw.propose(vec![], input.take(3).to_vec())),
            _ => member.receive(input.message(MessageType::Append as i32, &member.raw)),
        }
        member.settle();
    }
}

struct Member {
    raw: RawNode<MemStorage>,
    storage: MemStorage,
}

impl Member {
    fn new() -> Member {
        let storage = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![4]));
        let config = Config {
            id: ID,
            election_tick: 10,
            heartbeat_tick: 1,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let mut raw =
            RawNode::new(&config, storage.clone(), &logger).expect("a valid configuration");
        // raft-rs would draw it, and the same input would do different things.
        raw.raft.set_randomized_election_timeout(13);
        Member { raw, storage }
    }

    fn receive(&mut self, message: Message) {
        let raft = &self.raw.raft;
        let log = &raft.raft_log;
        let term_at = |index| {
            let known = index + 1 >= log.first_index() && index <= log.last_index();
            log.term(index).ok().filter(|_| known)
        };
        let view = View {
            id: MemberId(ID),
            term: raft.term,
            is_leader: raft.state == StateRole::Leader,
            committed: log.committed,
            last_index: log.last_index(),
            term_at: &term_at,
            is_removed: &|id| id == MemberId(REMOVED),
            backlog: None,
        };
        let Ok(kind) = rules(&message, &view) else {
            return;
        };
        // A leader's proposals and reads do not go through `step`.
        if raft.state == StateRole::Leader
            && matches!(kind, MessageType::Propose | MessageType::ReadIndex)
        {
            return;
        }
        let message = eraftpb::Message::try_from(message).expect("an admitted kind");
        let _ = self.raw.step(message);
        self.raw.raft.set_randomized_election_timeout(13);
    }

    /// Does what a `Ready` asks for, at once.
    fn settle(&mut self) {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let mut store = self.storage.wl();
            if !ready.snapshot().is_empty() {
                store
                    .apply_snapshot(ready.snapshot().clone())
                    .expect("raft asked for it");
            }
            store
                .append(ready.entries())
                .expect("raft's entries are contiguous");
            if let Some(state) = ready.hs() {
                store.set_hardstate(state.clone());
            }
            drop(store);
            let committed = ready.take_committed_entries();
            self.apply(committed);
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.storage.wl().mut_hard_state().set_commit(commit);
            }
            let committed = light.take_committed_entries();
            self.apply(committed);
            self.raw.advance_apply();
            self.raw.raft.set_randomized_election_timeout(13);
        }
    }

    fn apply(&mut self, entries: Vec<eraftpb::Entry>) {
        for entry in entries {
            if entry.get_entry_type() != eraftpb::EntryType::EntryConfChange {
                continue;
            }
            let change = decode_conf_change(entry.data).expect("only such are admitted");
            let change = conf_change_to_raft(&change).expect("only such are admitted");
            // The state machine refuses what would leave nobody.
            if let Ok(state) = self.raw.apply_conf_change(&change) {
                self.storage.wl().set_conf_state(state);
            }
        }
    }
}

/// The bytes not yet used.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A number near `center`; now and then 0, far beyond it, or the largest there is.
    fn near(&mut self, center: u64) -> u64 {
        match self.byte().unwrap_or(8) {
            0 => 0,
            1 => u64::MAX,
            2 => center.saturating_add(1 << 61),
            distance => center
                .saturating_add(u64::from(distance % 16))
                .saturating_sub(8),
        }
    }

    fn message(&mut self, kind: i32, raw: &RawNode<MemStorage>) -> Message {
        let log = &raw.raft.raft_log;
        let id = |byte: Option<u8>| u64::from(byte.unwrap_or(2) % 11);
        let shape = self.byte().unwrap_or_default();
        let index = match shape % 3 {
            0 => self.near(log.last_index()),
            1 => self.near(log.committed),
            _ => self.near(log.first_index()),
        };
        let known = log.term(index).unwrap_or_default();
        let to = if shape & 0x40 == 0 {
            ID
        } else {
            id(self.byte())
        };
        let term = match MessageType::try_from(kind) {
            Ok(MessageType::Propose | MessageType::ReadIndex) if shape & 0x20 == 0 => 0,
            _ => self.near(raw.raft.term),
        };
        Message {
            msg_type: kind,
            to,
            from: id(self.byte()),
            term,
            log_term: if shape & 0x10 == 0 {
                known
            } else {
                self.near(known)
            },
            index,
            entries: self.entries(index, term.max(1)),
            commit: self.near(log.committed),
            snapshot: (kind == MessageType::Snapshot as i32)
                .then(|| self.snapshot(index, term))
                .map(Box::new),
            reject: shape & 0x08 != 0,
            reject_hint: self.near(log.last_index()),
            context: Bytes::copy_from_slice(self.take(usize::from(shape & 0x80 != 0) * 8)),
        }
    }

    fn entries(&mut self, index: u64, term: u64) -> Vec<Entry> {
        let count = self.byte().unwrap_or_default() % 4;
        (1..=u64::from(count))
            .map(|at| {
                let shape = self.byte().unwrap_or_default();
                let is_change = shape & 0x1c == 0x1c;
                let data = if is_change {
                    Bytes::copy_from_slice(&[0x10, shape & 3, 0x18, shape >> 5])
                } else {
                    Bytes::copy_from_slice(self.take(usize::from(shape & 3)))
                };
                Entry {
                    entry_type: i32::from(is_change),
                    term: if shape & 0x80 == 0 {
                        term
                    } else {
                        self.near(term)
                    },
                    index: index.wrapping_add(if shape & 0x60 == 0x60 { at + 1 } else { at }),
                    data,
                }
            })
            .collect()
    }

    fn snapshot(&mut self, index: u64, term: u64) -> Snapshot {
        let shape = self.byte().unwrap_or_default();
        let voters = (1..=3).filter(|id| shape >> id & 1 == 0).collect();
        let outgoing = if shape & 0x10 == 0 { vec![] } else { vec![2] };
        let state = ConfState {
            voters,
            learners: if shape & 0x20 == 0 { vec![4] } else { vec![] },
            voters_outgoing: outgoing,
            auto_leave: shape & 0x40 != 0,
            ..ConfState::default()
        };
        let metadata = SnapshotMetadata {
            conf_state: Some(state),
            index,
            term: self.near(term),
        };
        Snapshot {
            data: Bytes::new(),
            metadata: (shape & 0x80 == 0).then_some(metadata),
        }
    }
}
