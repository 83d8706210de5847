//! An entry is encoded once, however many followers get it, by whatever channel and from whatever position.

mod common;

use common::Member;
use transport_core::raftpb::{Entry, Message, MessageType};

const ENCODES: &str = "rafthttp_entry_encodes_total";

/// A follower, and how far its log is.
struct Follower {
    member: Member,
    position: usize,
}

impl Follower {
    /// What comes next for it, in messages of at most `most` entries.
    fn appends(&self, log: &[Entry], most: usize) -> Vec<Message> {
        let mut index = self.position;
        let append = |entries: &[Entry]| {
            let message = Message {
                msg_type: MessageType::Append as i32,
                from: 1,
                to: self.member.id.0,
                term: 1,
                log_term: 1,
                index: index as u64,
                commit: index as u64,
                entries: entries.to_vec(),
                ..Message::default()
            };
            index += entries.len();
            message
        };
        log[self.position..].chunks(most).map(append).collect()
    }

    /// Gets what was sent, and has all of the log then.
    async fn receive(&mut self, log: &[Entry]) {
        while self.position < log.len() {
            let message = self.member.message().await;
            assert_eq!(message.index, self.position as u64);
            let end = self.position + message.entries.len();
            assert!(message.entries == log[self.position..end]);
            self.position = end;
        }
    }
}

fn attached(follower: &Follower) -> String {
    let id = follower.member.id;
    format!("rafthttp_stream_attached{{Remote={id},stream=streamMsgAppV2}}")
}

fn propose(log: &mut Vec<Entry>, round: usize) {
    for n in 0..1 + round % 7 {
        let size = [0, 17, 64, 256, 1024, 4095, 4096, 20_000][(round + 3 * n) % 8];
        let index = log.len() as u64 + 1;
        log.push(Entry {
            entry_type: 0,
            term: 1,
            index,
            data: vec![index as u8; size].into(),
        });
    }
}

#[tokio::test]
async fn every_entry_is_encoded_once_for_all_followers() {
    let leader = Member::start(1).await;
    let mut followers = Vec::new();
    for id in 2..=6 {
        let member = Member::start(id).await;
        leader.add(&member);
        // The last one asks for no stream: it gets everything by pipeline.
        if id < 6 {
            member.add(&leader);
            member.streams_up(1).await;
        }
        let position = 0;
        followers.push(Follower { member, position });
    }
    let mut log = Vec::new();
    for round in 0..60 {
        propose(&mut log, round);
        let mut batch = Vec::new();
        for (at, follower) in followers.iter().enumerate() {
            match at {
                // One lags, and one has it in small messages.
                2 if round % 5 != 4 => {}
                3 => batch.extend(follower.appends(&log, 2)),
                _ => batch.extend(follower.appends(&log, usize::MAX)),
            }
        }
        leader.transport.send(batch);
        for (at, follower) in followers.iter_mut().enumerate() {
            if at != 2 || round % 5 == 4 {
                follower.receive(&log).await;
            }
        }
        if round == 30 {
            // A stream breaks; raft begins again some way back, in the full form.
            let broken = &mut followers[1];
            broken.member.transport.remove_peer(leader.id);
            let attached = attached(broken);
            leader.recorder.until(&attached, |is| is == 0.0).await;
            broken.member.add(&leader);
            leader.recorder.until(&attached, |is| is == 1.0).await;
            broken.position -= 20;
        }
    }
    for follower in &followers {
        assert_eq!(follower.position, log.len());
    }
    assert_eq!(leader.recorder.value(ENCODES), log.len() as f64);
    leader.stop().await;
    for follower in followers {
        follower.member.stop().await;
    }
}

#[tokio::test]
async fn a_single_follower_has_its_own_encoder() {
    let leader = Member::start(1).await;
    let member = Member::start(2).await;
    leader.add(&member);
    member.add(&leader);
    member.streams_up(1).await;
    let position = 0;
    let mut follower = Follower { member, position };
    let mut log = Vec::new();
    (0..20).for_each(|round| propose(&mut log, round));
    leader.transport.send(follower.appends(&log, 3));
    follower.receive(&log).await;
    assert_eq!(leader.recorder.value(ENCODES), log.len() as f64);
    leader.stop().await;
    follower.member.stop().await;
}
