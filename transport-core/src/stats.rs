//! What a member knows of its own traffic and of its followers, as etcd's v2 statistics report it.
//!
//! Plain values fed by their owner; times come from the caller. Only members up to 3.5 serve these
//! documents, so nothing here is meant for a hot path.
//!
//! Invariant: the JSON is what Go would print: same keys, order, number and time formats.
//!
//! etcd: api/v2stats/{leader,server,queue}.go.

mod json;
mod server;

use std::{collections::BTreeMap, time::Duration};

pub use server::{ServerStats, StateType};

use crate::MemberId;
use json::{float, string};

/// How sending appends to one follower went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FollowerStats {
    current_ms: f64,
    average_ms: f64,
    average_square: f64,
    deviation_ms: f64,
    minimum_ms: f64,
    maximum_ms: f64,
    failures: u64,
    successes: u64,
}

impl Default for FollowerStats {
    fn default() -> Self {
        FollowerStats {
            current_ms: 0.0,
            average_ms: 0.0,
            average_square: 0.0,
            deviation_ms: 0.0,
            // Go starts from 2^63, and shows it until the first success.
            minimum_ms: (1u64 << 63) as f64,
            maximum_ms: 0.0,
            failures: 0,
            successes: 0,
        }
    }
}

impl FollowerStats {
    /// An append was sent, which took so long.
    pub fn succeed(&mut self, took: Duration) {
        let before = self.successes as f64;
        let now = took.as_secs_f64() * 1e3;
        self.successes += 1;
        let count = self.successes as f64;
        self.current_ms = now;
        self.average_ms = (self.average_ms * before + now) / count;
        self.average_square = (self.average_square * before + now * now) / count;
        // Rounding may take the variance of equal samples below zero.
        let variance = self.average_square - self.average_ms * self.average_ms;
        self.deviation_ms = variance.max(0.0).sqrt();
        self.minimum_ms = self.minimum_ms.min(now);
        self.maximum_ms = self.maximum_ms.max(now);
    }

    /// An append could not be sent.
    pub fn fail(&mut self) {
        self.failures += 1;
    }

    /// Appends sent.
    pub fn successes(&self) -> u64 {
        self.successes
    }

    /// Appends that could not be sent.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The JSON object etcd has for a follower; milliseconds.
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"latency":{{"current":{},"average":{},"standardDeviation":{},"minimum":{},"maximum":{}}},"counts":{{"fail":{},"success":{}}}}}"#,
            float(self.current_ms),
            float(self.average_ms),
            float(self.deviation_ms),
            float(self.minimum_ms),
            float(self.maximum_ms),
            self.failures,
            self.successes,
        )
    }
}

/// What a leader knows of its followers. A follower comes in with its first report and is bounded by the
/// membership its owner removes from.
#[derive(Clone, Debug)]
pub struct LeaderStats {
    leader: MemberId,
    followers: BTreeMap<MemberId, FollowerStats>,
}

impl LeaderStats {
    /// The statistics of `leader`, without followers.
    pub fn new(leader: MemberId) -> Self {
        LeaderStats {
            leader,
            followers: BTreeMap::new(),
        }
    }

    /// The statistics of a follower, which is added when new.
    pub fn follower(&mut self, id: MemberId) -> &mut FollowerStats {
        self.followers.entry(id).or_default()
    }

    /// Forgets a follower.
    pub fn remove(&mut self, id: MemberId) {
        self.followers.remove(&id);
    }

    /// The document of `/v2/stats/leader`.
    pub fn to_json(&self) -> String {
        // Go sorts keys as text, which for unpadded ids is not their order.
        let sorted: BTreeMap<String, String> = self
            .followers
            .iter()
            .map(|(id, stats)| (id.to_string(), stats.to_json()))
            .collect();
        let followers: Vec<String> = sorted
            .iter()
            .map(|(id, stats)| format!("{}:{stats}", string(id)))
            .collect();
        let leader = string(&self.leader.to_string());
        let followers = followers.join(",");
        format!(r#"{{"leader":{leader},"followers":{{{followers}}}}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_and_with_followers() {
        let mut stats = LeaderStats::new(MemberId(0xabc));
        assert_eq!(stats.to_json(), r#"{"leader":"abc","followers":{}}"#);
        stats.follower(MemberId(0x2));
        let follower = stats.follower(MemberId(0x10));
        follower.succeed(Duration::from_micros(1500));
        follower.succeed(Duration::from_micros(500));
        follower.fail();
        let fresh = r#"{"latency":{"current":0,"average":0,"standardDeviation":0,"minimum":9223372036854776000,"maximum":0},"counts":{"fail":0,"success":0}}"#;
        let used = r#"{"latency":{"current":0.5,"average":1,"standardDeviation":0.5,"minimum":0.5,"maximum":1.5},"counts":{"fail":1,"success":2}}"#;
        assert_eq!(
            stats.to_json(),
            format!(r#"{{"leader":"abc","followers":{{"10":{used},"2":{fresh}}}}}"#)
        );
        stats.remove(MemberId(0x10));
        stats.remove(MemberId(0x2));
        assert_eq!(stats.to_json(), r#"{"leader":"abc","followers":{}}"#);
    }

    #[test]
    fn equal_samples_have_no_deviation() {
        let mut stats = FollowerStats::default();
        for _ in 0..1000 {
            stats.succeed(Duration::from_nanos(1234567));
        }
        assert!(stats.deviation_ms.is_finite() && stats.deviation_ms < 1e-3);
        assert_eq!((stats.successes(), stats.failures()), (1000, 0));
    }
}
