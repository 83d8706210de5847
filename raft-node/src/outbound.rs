//! What happens to raft's messages before they leave.
//!
//! etcd: server/etcdserver/raft.go, `processMessages`. Pure; depends on message types only. Invariant: the
//! order of what remains is the order raft gave it (etcd 3.7 reverses it, which is correct but slow).

use std::{collections::HashMap, time::Duration};

use transport_core::{
    MemberId,
    raftpb::{Message, MessageType},
};

/// Sorted messages.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Outbound {
    /// To be sent as they are.
    pub send: Vec<Message>,
    /// Snapshot messages, which still need their body.
    pub snapshots: Vec<Message>,
    /// Heartbeats that leave late, with the time since the one before.
    pub late: Vec<(MemberId, Duration)>,
}

/// Removes what must not leave, takes out snapshots and watches heartbeats.
pub(crate) fn process(
    messages: Vec<Message>,
    now: Duration,
    heartbeats: &mut Heartbeats,
    is_removed: &dyn Fn(MemberId) -> bool,
) -> Outbound {
    let mut out = Outbound::default();
    out.send.reserve(messages.len());
    for message in messages {
        let to = MemberId(message.to);
        if to.0 == 0 || is_removed(to) {
            continue;
        }
        match message.kind() {
            Some(MessageType::Snapshot) => out.snapshots.push(message),
            Some(MessageType::Heartbeat) => {
                out.late
                    .extend(heartbeats.observe(to, now).map(|since| (to, since)));
                out.send.push(message);
            }
            _ => out.send.push(message),
        }
    }
    newest_append_responses(&mut out.send);
    out
}

/// Leaves only the newest append response to each member, unless an older one acknowledges more.
pub(crate) fn newest_append_responses(messages: &mut Vec<Message>) {
    let is_response = |m: &Message| m.msg_type == MessageType::AppendResponse as i32;
    if messages.iter().filter(|m| is_response(m)).nth(1).is_none() {
        return;
    }
    // The newest response so far per member, walking backwards: whether it acknowledges, and what.
    let mut newest: HashMap<u64, (bool, u64)> = HashMap::new();
    let mut keep: Vec<bool> = messages
        .iter()
        .rev()
        .map(|message| {
            if !is_response(message) {
                return true;
            }
            match newest.get_mut(&message.to) {
                None => {
                    newest.insert(message.to, (!message.reject, message.index));
                    true
                }
                Some((acknowledges, index)) => {
                    let more = *acknowledges && !message.reject && message.index > *index;
                    *index = (*index).max(if more { message.index } else { 0 });
                    more
                }
            }
        })
        .collect();
    messages.retain(|_| keep.pop().unwrap_or(true));
}

/// When the last heartbeat to each member left.
///
/// etcd: pkg/contention/contention.go.
pub(crate) struct Heartbeats {
    late_after: Duration,
    last: HashMap<MemberId, Duration>,
}

impl Heartbeats {
    /// Heartbeats are late when two intervals lie between them.
    pub fn new(interval: Duration) -> Self {
        Heartbeats {
            late_after: interval * 2,
            last: HashMap::new(),
        }
    }

    /// Another leader or term: the next heartbeats are first ones.
    pub fn reset(&mut self) {
        self.last.clear();
    }

    fn observe(&mut self, to: MemberId, now: Duration) -> Option<Duration> {
        let since = now.saturating_sub(self.last.insert(to, now)?);
        (since > self.late_after).then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType, to: u64, index: u64) -> Message {
        Message {
            msg_type: kind as i32,
            to,
            from: 1,
            index,
            ..Message::default()
        }
    }

    fn run(messages: Vec<Message>) -> Outbound {
        let mut heartbeats = Heartbeats::new(Duration::from_millis(100));
        process(messages, Duration::ZERO, &mut heartbeats, &|id| {
            id == MemberId(9)
        })
    }

    #[test]
    fn order_is_kept_and_removed_members_get_nothing() {
        use MessageType as T;
        let messages: Vec<_> = (1..=4).map(|i| message(T::Append, 2 + i % 2, i)).collect();
        assert_eq!(run(messages.clone()).send, messages);
        assert!(
            run(vec![message(T::Append, 9, 1), message(T::Append, 0, 1)])
                .send
                .is_empty()
        );
    }

    #[test]
    fn snapshots_are_taken_out() {
        use MessageType as T;
        let messages = vec![message(T::Snapshot, 2, 0), message(T::Append, 3, 1)];
        let out = run(messages.clone());
        assert_eq!(
            (out.snapshots, out.send),
            (messages[..1].into(), messages[1..].into())
        );
    }

    #[test]
    fn only_the_newest_append_response_per_member_survives() {
        use MessageType as T;
        let reject = Message {
            reject: true,
            ..message(T::AppendResponse, 2, 3)
        };
        let out = run(vec![
            reject,
            message(T::AppendResponse, 2, 4),
            message(T::HeartbeatResponse, 2, 0),
            message(T::AppendResponse, 3, 1),
            message(T::AppendResponse, 2, 5),
        ]);
        let left: Vec<_> = out
            .send
            .iter()
            .map(|m| (m.to, m.msg_type, m.index))
            .collect();
        let (ack, beat) = (T::AppendResponse as i32, T::HeartbeatResponse as i32);
        assert_eq!(left, [(2, beat, 0), (3, ack, 1), (2, ack, 5)]);
    }

    #[test]
    fn an_acknowledgement_of_more_is_not_lost() {
        use MessageType as T;
        let out = run(vec![
            message(T::AppendResponse, 2, 7),
            message(T::AppendResponse, 2, 10),
            message(T::AppendResponse, 2, 4),
        ]);
        let left: Vec<_> = out.send.iter().map(|m| m.index).collect();
        assert_eq!(left, [10, 4]);
    }

    #[test]
    fn heartbeats_are_late_after_two_intervals() {
        let mut heartbeats = Heartbeats::new(Duration::from_millis(100));
        let mut beat = |ms| {
            let messages = vec![message(MessageType::Heartbeat, 2, 0)];
            let now = Duration::from_millis(ms);
            process(messages, now, &mut heartbeats, &|_| false).late
        };
        assert!(beat(0).is_empty());
        assert!(beat(200).is_empty());
        assert_eq!(beat(401), [(MemberId(2), Duration::from_millis(201))]);
        heartbeats.reset();
        assert_eq!(
            heartbeats.observe(MemberId(2), Duration::from_secs(9)),
            None
        );
    }
}
