//! Ids of requests, unique among the members that can have one in flight (etcd: pkg/idutil/id.go).
//!
//! Depends on nothing. Invariant: two members never give the same id, because an answer finds its waiter by it and
//! each member's ids begin with 16 bits of its own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use transport_core::MemberId;

const SUFFIX_BITS: u32 = 48;
const SUFFIX_MASK: u64 = (1 << SUFFIX_BITS) - 1;
const MILLIS_MASK: u64 = (1 << 40) - 1;

/// Gives out ids: 16 bits of the member's id, then a counter of 48 bits that starts at the time of the start in
/// milliseconds times 256.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    suffix: AtomicU64,
}

impl RequestIds {
    /// A generator for a member started at the given time.
    pub fn new(member: MemberId, started: SystemTime) -> RequestIds {
        let millis = started
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis() as u64;
        RequestIds {
            prefix: member.0 << SUFFIX_BITS,
            suffix: AtomicU64::new((millis & MILLIS_MASK) << 8),
        }
    }

    /// The next id.
    pub fn next(&self) -> u64 {
        let suffix = self.suffix.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.prefix | (suffix & SUFFIX_MASK)
    }

    /// The next id as a lease's: positive and not zero.
    pub fn next_lease(&self) -> i64 {
        loop {
            let id = (self.next() & i64::MAX as u64) as i64;
            if id != 0 {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_id_holds_member_time_and_count() {
        // etcd's own test: member 0x12, started at 0x3456 ms.
        let ids = RequestIds::new(MemberId(0x12), UNIX_EPOCH + Duration::from_millis(0x3456));
        assert_eq!(ids.next(), 0x0012_0000_0034_5601);
        assert_eq!(ids.next(), 0x0012_0000_0034_5602);
    }

    #[test]
    fn the_counter_wraps_below_the_member() {
        let ids = RequestIds {
            prefix: 0xab << SUFFIX_BITS,
            suffix: AtomicU64::new(SUFFIX_MASK),
        };
        assert_eq!(ids.next(), 0xab << SUFFIX_BITS);
        assert_eq!(ids.next(), 0xab << SUFFIX_BITS | 1);
    }

    #[test]
    fn lease_ids_are_positive() {
        let ids = RequestIds::new(MemberId(0xffff), UNIX_EPOCH);
        assert!((0..10).all(|_| ids.next_lease() > 0));
        let ids = RequestIds {
            prefix: 0,
            suffix: AtomicU64::new(SUFFIX_MASK),
        };
        assert_eq!(ids.next_lease(), 1);
    }
}
