//! A set of keys, made of the intervals that requests name.
//!
//! Invariant: the intervals are disjoint, so that a key is looked for in one of them; adding one costs no more than
//! what it swallows.

use std::{collections::BTreeMap, ops::Bound};

use super::interval::KeyInterval;

/// A set of keys.
#[derive(Clone, Debug, Default)]
pub struct KeySet<'a> {
    intervals: BTreeMap<&'a [u8], End<'a>>,
}

/// Where an interval ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End<'a> {
    /// Right after this key.
    After(&'a [u8]),
    /// Before this key.
    Before(&'a [u8]),
    /// Behind the last key.
    Never,
}

impl End<'_> {
    fn lies_after(&self, key: &[u8]) -> bool {
        match self {
            End::After(last) => key <= *last,
            End::Before(end) => key < *end,
            End::Never => true,
        }
    }

    /// Whether this end lies beyond another: everything below the other is below this one too.
    fn covers(&self, other: &End<'_>) -> bool {
        match (self, other) {
            (End::Never, _) => true,
            (_, End::Never) => false,
            (End::After(a), End::After(b))
            | (End::Before(a), End::Before(b))
            | (End::After(a), End::Before(b)) => a >= b,
            (End::Before(a), End::After(b)) => a > b,
        }
    }
}

impl<'a> KeySet<'a> {
    /// Adds the keys of an interval.
    pub fn add(&mut self, interval: KeyInterval<'a>) {
        let (start, end) = match interval {
            KeyInterval::One(key) => (key, End::After(key)),
            KeyInterval::From(key) => (key, End::Never),
            KeyInterval::Between(key, end) => (key, End::Before(end)),
        };
        if end.lies_after(start) {
            self.insert(start, end);
        }
    }

    /// Adds the keys of another set.
    pub fn add_all(&mut self, other: KeySet<'a>) {
        for (start, end) in other.intervals {
            self.insert(start, end);
        }
    }

    /// Whether `key` was added.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.last_from(key)
            .is_some_and(|(_, end)| end.lies_after(key))
    }

    /// The last interval that begins at `key` or before.
    fn last_from(&self, key: &[u8]) -> Option<(&'a [u8], End<'a>)> {
        let until = (Bound::Unbounded, Bound::Included(key));
        let last = self.intervals.range::<[u8], _>(until).next_back();
        last.map(|(start, end)| (*start, *end))
    }

    fn insert(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if let Some((before, reach)) = self.last_from(start)
            && reach.lies_after(start)
        {
            if reach.covers(&end) {
                return;
            }
            start = before;
        }
        loop {
            let behind = (Bound::Included(start), Bound::Unbounded);
            let next = self.intervals.range::<[u8], _>(behind).next();
            let Some((next, reach)) = next.map(|(next, reach)| (*next, *reach)) else {
                break;
            };
            if !end.lies_after(next) {
                break;
            }
            self.intervals.remove(next);
            if reach.covers(&end) {
                end = reach;
            }
        }
        self.intervals.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_added_in_any_order() {
        let keys: Vec<Vec<u8>> = (b'a'..=b'z')
            .flat_map(|c| [vec![c], vec![c, 0], vec![c, b'm']])
            .collect();
        let mut seed = 7_u32;
        let mut pick = |bound: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) as usize % bound
        };
        for _ in 0..500 {
            let mut set = KeySet::default();
            let mut plain = Vec::new();
            for _ in 0..pick(12) {
                let (a, b) = (&keys[pick(keys.len())], &keys[pick(keys.len())]);
                let end: &[u8] = match pick(9) {
                    0..3 => b"",
                    3 => b"\0",
                    _ => b,
                };
                let interval = KeyInterval::new(a, end);
                if plain.len() % 3 == 2 {
                    let mut other = KeySet::default();
                    other.add(interval);
                    set.add_all(other);
                } else {
                    set.add(interval);
                }
                plain.push(interval);
            }
            for key in &keys {
                let held = plain.iter().any(|interval| interval.contains(key));
                assert_eq!(set.contains(key), held, "{key:?} in {plain:?}");
            }
            let intervals: Vec<_> = set.intervals.iter().collect();
            assert!(
                intervals
                    .windows(2)
                    .all(|pair| !pair[0].1.lies_after(pair[1].0))
            );
        }
    }
}
