//! A member's own statistics: its role, its leader, and its append traffic.
//!
//! Rates are those of at most the last 200 appends, and nothing once the newest of them is a second old.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use super::json::{duration, float, string, time};
use crate::MemberId;

/// Samples a rate is taken over.
const SAMPLES_MAX: usize = 200;

/// Age at which samples say nothing about the present any more.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(1);

/// A member's role, printed as etcd's raft prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StateType {
    /// Follower, learners included.
    Follower,
    /// Candidate.
    Candidate,
    /// Leader.
    Leader,
    /// Candidate before it raises the term.
    PreCandidate,
}

impl StateType {
    /// As in the document.
    pub const fn as_str(self) -> &'static str {
        match self {
            StateType::Follower => "StateFollower",
            StateType::Candidate => "StateCandidate",
            StateType::Leader => "StateLeader",
            StateType::PreCandidate => "StatePreCandidate",
        }
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct ServerStats {
    name: String,
    id: MemberId,
    state: StateType,
    start: SystemTime,
    leader: Option<MemberId>,
    leader_start: SystemTime,
    received: Traffic,
    sent: Traffic,
}

impl ServerStats {
    /// The statistics of a member that starts at `now` as a follower without a leader.
    pub fn new(name: impl Into<String>, id: MemberId, now: SystemTime) -> Self {
        ServerStats {
            name: name.into(),
            id,
            state: StateType::Follower,
            start: now,
            leader: None,
            leader_start: now,
            received: Traffic::default(),
            sent: Traffic::default(),
        }
    }

    /// An append of so many bytes came from `leader`. Appends come from leaders only, so the sender is one
    /// and this member is a follower.
    pub fn receive_append(&mut self, leader: MemberId, bytes: usize, now: SystemTime) {
        self.state = StateType::Follower;
        if self.leader != Some(leader) {
            self.leader = Some(leader);
            self.leader_start = now;
        }
        self.received.add(bytes, now);
    }

    /// An append of so many bytes was handed to the transport. Leaders alone send them.
    pub fn send_append(&mut self, bytes: usize, now: SystemTime) {
        self.become_leader(now);
        self.sent.add(bytes, now);
    }

    /// This member was elected.
    pub fn become_leader(&mut self, now: SystemTime) {
        if self.state != StateType::Leader {
            self.state = StateType::Leader;
            self.leader = Some(self.id);
            self.leader_start = now;
        }
    }

    /// The document of `/v2/stats/self`.
    pub fn to_json(&self, now: SystemTime) -> String {
        let uptime = now.duration_since(self.leader_start).unwrap_or_default();
        let leader = self.leader.map(|id| id.to_string()).unwrap_or_default();
        format!(
            r#"{{"name":{},"id":{},"state":"{}","startTime":"{}","leaderInfo":{{"leader":{},"uptime":"{}","startTime":"{}"}},{},{}}}"#,
            string(&self.name),
            string(&self.id.to_string()),
            self.state.as_str(),
            time(self.start),
            string(&leader),
            duration(uptime),
            time(self.leader_start),
            self.received.to_json("recv", now),
            self.sent.to_json("send", now),
        )
    }
}

/// Appends in one direction.
#[derive(Clone, Debug, Default)]
struct Traffic {
    count: u64,
    samples: VecDeque<(SystemTime, usize)>,
}

impl Traffic {
    fn add(&mut self, bytes: usize, now: SystemTime) {
        self.count += 1;
        if self.is_stale(now) {
            self.samples.clear();
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, bytes));
    }

    fn is_stale(&self, now: SystemTime) -> bool {
        let age = |(last, _): &(SystemTime, usize)| now.duration_since(*last).unwrap_or_default();
        self.samples
            .back()
            .is_some_and(|last| age(last) > SAMPLE_AGE_MAX)
    }

    /// Appends and bytes per second.
    fn rates(&self, now: SystemTime) -> (f64, f64) {
        let (Some((first, _)), Some((last, _))) = (self.samples.front(), self.samples.back())
        else {
            return (0.0, 0.0);
        };
        let span = last.duration_since(*first).unwrap_or_default();
        if span.is_zero() || self.is_stale(now) {
            return (0.0, 0.0);
        }
        let bytes: usize = self.samples.iter().map(|(_, bytes)| bytes).sum();
        let seconds = span.as_secs_f64();
        (self.samples.len() as f64 / seconds, bytes as f64 / seconds)
    }

    /// The members of the document for this direction; rates of zero are left out.
    fn to_json(&self, direction: &str, now: SystemTime) -> String {
        let (packages, bandwidth) = self.rates(now);
        let mut text = format!(r#""{direction}AppendRequestCnt":{}"#, self.count);
        for (key, rate) in [("PkgRate", packages), ("BandwidthRate", bandwidth)] {
            if rate != 0.0 {
                text += &format!(r#","{direction}{key}":{}"#, float(rate));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_430_922) + Duration::from_millis(millis)
    }

    #[test]
    fn a_member_that_just_started() {
        let stats = ServerStats::new("m0", MemberId(0xab), at(0));
        assert_eq!(
            stats.to_json(at(0)),
            r#"{"name":"m0","id":"ab","state":"StateFollower","startTime":"2026-11-23T10:48:42Z","leaderInfo":{"leader":"","uptime":"0s","startTime":"2026-11-23T10:48:42Z"},"recvAppendRequestCnt":0,"sendAppendRequestCnt":0}"#
        );
    }

    #[test]
    fn a_follower_and_then_a_leader() {
        let mut stats = ServerStats::new("m0", MemberId(0xab), at(0));
        for step in 0..5 {
            stats.receive_append(MemberId(0xcd), 100, at(500 + step * 100));
        }
        assert_eq!(
            stats.to_json(at(1000)),
            r#"{"name":"m0","id":"ab","state":"StateFollower","startTime":"2026-11-23T10:48:42Z","leaderInfo":{"leader":"cd","uptime":"500ms","startTime":"2026-11-23T10:48:42.5Z"},"recvAppendRequestCnt":5,"recvPkgRate":12.5,"recvBandwidthRate":1250,"sendAppendRequestCnt":0}"#
        );
        stats.send_append(10, at(3000));
        assert_eq!(
            stats.to_json(at(3000)),
            r#"{"name":"m0","id":"ab","state":"StateLeader","startTime":"2026-11-23T10:48:42Z","leaderInfo":{"leader":"ab","uptime":"0s","startTime":"2026-11-23T10:48:45Z"},"recvAppendRequestCnt":5,"sendAppendRequestCnt":1}"#
        );
    }

    #[test]
    fn samples_are_bounded() {
        let mut stats = ServerStats::new("m0", MemberId(1), at(0));
        for step in 0..1000 {
            stats.send_append(1, at(step));
        }
        assert_eq!(stats.sent.samples.len(), SAMPLES_MAX);
        assert_eq!(stats.sent.count, 1000);
    }
}
