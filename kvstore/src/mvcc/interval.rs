//! Which keys a request names: etcd's `key` and `range_end` rules in one type.
//!
//! etcd: server/etcdserver/txn/delete.go, `mkGteRange`; api/etcdserverpb, `RangeRequest.range_end`.

use std::ops::Bound;

/// The keys a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyInterval<'a> {
    /// One key: `range_end` is empty.
    One(&'a [u8]),
    /// Every key from this one on: `range_end` is one zero byte.
    From(&'a [u8]),
    /// The keys from the first up to but not including the second. May be empty.
    Between(&'a [u8], &'a [u8]),
}

impl<'a> KeyInterval<'a> {
    /// The interval that `key` and `range_end` name.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => KeyInterval::One(key),
            [0] => KeyInterval::From(key),
            end => KeyInterval::Between(key, end),
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyInterval::Between(key, end) if end <= key)
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match *self {
            KeyInterval::One(one) => key == one,
            KeyInterval::From(first) => key >= first,
            KeyInterval::Between(first, end) => key >= first && key < end,
        }
    }

    /// The bounds of a sorted map's part that holds these keys. Not to be used when [`Self::is_empty`]: such bounds
    /// may be in the wrong order.
    pub(crate) fn bounds(&self) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
        match *self {
            KeyInterval::One(key) => (Bound::Included(key), Bound::Included(key)),
            KeyInterval::From(key) => (Bound::Included(key), Bound::Unbounded),
            KeyInterval::Between(key, end) => (Bound::Included(key), Bound::Excluded(end)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_end_rules() {
        // (key, range_end, keys that are in, keys that are not)
        type Case<'a> = (&'a [u8], &'a [u8], &'a [&'a [u8]], &'a [&'a [u8]]);
        let cases: &[Case<'_>] = &[
            (b"b", b"", &[b"b"], &[b"a", b"ba", b"c"]),
            (b"b", b"\0", &[b"b", b"ba", b"\xff\xff"], &[b"a", b""]),
            (b"b", b"d", &[b"b", b"bz", b"c"], &[b"a", b"d", b"da"]),
            (b"b", b"b", &[], &[b"b", b"a", b"c"]),
            (b"d", b"b", &[], &[b"b", b"c", b"d"]),
            (b"\0", b"\0", &[b"\0", b"a", b"\xff"], &[]),
            (b"", b"\0", &[b"\0", b"a"], &[]),
            (b"a", b"\0\0", &[], &[b"a", b"\0"]),
        ];
        for (key, end, inside, outside) in cases {
            let interval = KeyInterval::new(key, end);
            assert!(inside.iter().all(|k| interval.contains(k)), "{interval:?}");
            assert!(
                outside.iter().all(|k| !interval.contains(k)),
                "{interval:?}"
            );
            assert!(!interval.is_empty() || inside.is_empty());
        }
        assert!(KeyInterval::new(b"d", b"b").is_empty());
        assert!(KeyInterval::new(b"b", b"b").is_empty());
    }
}
