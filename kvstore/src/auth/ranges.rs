//! What a user may read and write: the union of the ranges of all its roles.
//!
//! A range is open at its end when that is empty, and then the end lies behind every key; an empty *begin* does too,
//! since no key is empty (etcd: server/auth/range_perm_cache.go, pkg/adt, `BytesAffineComparable`).
//!
//! Invariant: the ranges of a union are ascending and neither overlap nor touch.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::pb::authpb::{Permission, permission::Type};

/// The ranges one user may read, and write.
#[derive(Clone, Debug, Default)]
pub(super) struct UserRanges {
    pub read: Ranges,
    pub write: Ranges,
}

impl UserRanges {
    pub fn new<'a>(permissions: impl Iterator<Item = &'a Permission>) -> UserRanges {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let range = Range::new(&permission.key, &permission.range_end);
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(range),
                Ok(Type::Write) => write.push(range),
                Ok(Type::Readwrite) => {
                    read.push(range.clone());
                    write.push(range);
                }
                // Of a kind this version does not know: it permits nothing.
                Err(_) => {}
            }
        }
        UserRanges {
            read: Ranges::union(read),
            write: Ranges::union(write),
        }
    }
}

/// Keys from `begin` up to but not including `end`; either is behind every key when it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    begin: Bytes,
    end: Bytes,
}

impl Range {
    /// The range that a key and a `range_end` of the API name.
    fn new(key: &Bytes, range_end: &Bytes) -> Range {
        let end = match range_end[..] {
            [] => [key, &[0][..]].concat().into(),
            [0] => Bytes::new(),
            _ => range_end.clone(),
        };
        Range {
            begin: key.clone(),
            end,
        }
    }

    /// Where `other` lies seen from this range. etcd's comparison to the letter: for ranges that are not empty it
    /// is what it looks like, for those that are (end before begin) it decides what is permitted all the same.
    fn compare(&self, other: &Range) -> Ordering {
        if order(&self.begin, &other.begin).is_lt() && order(&self.end, &other.begin).is_le() {
            Ordering::Less
        } else if order(&self.begin, &other.end).is_ge() {
            Ordering::Greater
        } else {
            Ordering::Equal
        }
    }

    fn is_within(&self, outer: &Range) -> bool {
        order(&outer.begin, &self.begin).is_le() && order(&outer.end, &self.end).is_ge()
    }
}

/// The order of bounds, in which the empty one is the last.
fn order(a: &[u8], b: &[u8]) -> Ordering {
    a.is_empty().cmp(&b.is_empty()).then_with(|| a.cmp(b))
}

/// A union of ranges.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(Vec<Range>);

impl Ranges {
    fn union(mut ranges: Vec<Range>) -> Ranges {
        ranges.sort_by(|a, b| order(&a.begin, &b.begin));
        let mut union: Vec<Range> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match union.last_mut() {
                Some(last) if order(&last.end, &range.begin).is_ge() => {
                    if order(&range.end, &last.end).is_gt() {
                        last.end = range.end;
                    }
                }
                _ => union.push(range),
            }
        }
        Ranges(union)
    }

    /// Whether every key that a key and a `range_end` of the API name is in the union.
    pub fn contain(&self, key: &Bytes, range_end: &Bytes) -> bool {
        let wanted = Range::new(key, range_end);
        if range_end.is_empty() || order(&wanted.begin, &wanted.end).is_lt() {
            // Only the last range that begins at or before it can hold it.
            let behind = self
                .0
                .partition_point(|range| order(&range.begin, key).is_le());
            let candidate = behind.checked_sub(1).map(|at| &self.0[at]);
            return candidate
                .is_some_and(|range| wanted.compare(range).is_eq() && wanted.is_within(range));
        }
        let met = || self.0.iter().filter(|range| wanted.compare(range).is_eq());
        // Ranges of a union do not touch, so more than one leaves a gap.
        met().count() == 1 && met().all(|range| wanted.is_within(range))
    }
}

/// Whether a permission may name this range (etcd: `isValidPermissionRange`).
pub(super) fn is_valid(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == [0] || key < range_end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permission(key: impl Into<Bytes>, end: impl Into<Bytes>, kind: Type) -> Permission {
        Permission {
            perm_type: kind as i32,
            key: key.into(),
            range_end: end.into(),
        }
    }

    fn readable(permissions: &[(&'static str, &'static str)]) -> Ranges {
        let permissions: Vec<_> = permissions
            .iter()
            .map(|(key, end)| permission(*key, *end, Type::Read))
            .collect();
        UserRanges::new(permissions.iter()).read
    }

    #[test]
    fn containment_table() {
        // (permitted, key, range_end, outcome)
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static str,
            &'static str,
            bool,
        );
        let cases: &[Case] = &[
            (&[("a", "")], "a", "", true),
            (&[("a", "")], "a\0", "", false),
            (&[("a", "")], "a", "a\0", true),
            (&[("a", "")], "a", "b", false),
            (&[("a", "c")], "a", "", true),
            (&[("a", "c")], "c", "", false),
            (&[("a", "c")], "b", "c", true),
            (&[("a", "c")], "b", "d", false),
            (&[("a", "c")], "b", "\0", false),
            // Two that touch cover what spans both; two with a gap do not.
            (&[("a", "c"), ("c", "e")], "b", "d", true),
            (&[("c", "e"), ("a", "c")], "a", "e", true),
            (&[("a", "c"), ("d", "e")], "b", "e", false),
            (&[("a", "d"), ("b", "c")], "a", "d", true),
            (&[("a", ""), ("a\0", "c")], "a", "c", true),
            // Open ends.
            (&[("b", "\0")], "b", "\0", true),
            (&[("b", "\0")], "z", "", true),
            (&[("b", "\0")], "a", "\0", false),
            (&[("b", "\0")], "c", "zz", true),
            (&[("\0", "\0")], "\0", "\0", true),
            (&[("a", "m"), ("k", "\0")], "b", "\0", true),
            // Ends before begins: permitted only where the begin is.
            (&[("a", "z")], "d", "b", true),
            (&[("e", "z")], "d", "b", false),
            (&[], "a", "", false),
            (&[], "a", "b", false),
            // The empty key is behind every key.
            (&[("a", "\0")], "", "", false),
        ];
        for (permitted, key, end, outcome) in cases {
            let ranges = readable(permitted);
            let contained = ranges.contain(&Bytes::from(*key), &Bytes::from(*end));
            assert_eq!(contained, *outcome, "{key:?} {end:?} in {permitted:?}");
        }
    }

    #[test]
    fn kinds_are_kept_apart() {
        let permissions = [
            permission("r", "", Type::Read),
            permission("w", "", Type::Write),
            permission("b", "", Type::Readwrite),
            Permission {
                perm_type: 9,
                key: "x".into(),
                range_end: Bytes::new(),
            },
        ];
        let ranges = UserRanges::new(permissions.iter());
        let may = |ranges: &Ranges, key: &'static str| ranges.contain(&key.into(), &Bytes::new());
        assert!(may(&ranges.read, "r") && may(&ranges.read, "b") && !may(&ranges.read, "w"));
        assert!(may(&ranges.write, "w") && may(&ranges.write, "b") && !may(&ranges.write, "r"));
        assert!(!may(&ranges.read, "x") && !may(&ranges.write, "x"));
    }

    #[test]
    fn valid_permission_ranges() {
        assert!(is_valid(b"a", b"") && is_valid(b"a", b"b") && is_valid(b"a", b"\0"));
        assert!(
            !is_valid(b"", b"")
                && !is_valid(b"", b"\0")
                && !is_valid(b"b", b"a")
                && !is_valid(b"b", b"b")
        );
    }

    proptest! {
        /// A range is contained exactly if each of its keys is, over an alphabet small enough to list them.
        #[test]
        fn containment_is_per_key(
            permitted in proptest::collection::vec((1u8..9, 0u8..10), 0..5),
            key in 1u8..9,
            end in 0u8..10,
        ) {
            // 0 stands for one key, 9 for no end.
            let name = |end: u8| match end {
                0 => Bytes::new(),
                9 => Bytes::from_static(&[0]),
                end => vec![end].into(),
            };
            let covers = |begin: u8, end: u8, key: u8| match end {
                0 => key == begin,
                end => (begin..end).contains(&key),
            };
            prop_assume!(end == 0 || end > key);
            let permissions: Vec<_> = permitted
                .iter()
                .filter(|(begin, end)| *end == 0 || end > begin)
                .map(|(begin, end)| (*begin, *end))
                .collect();
            let ranges = UserRanges::new(
                permissions
                    .iter()
                    .map(|(begin, end)| permission(vec![*begin], name(*end), Type::Read))
                    .collect::<Vec<_>>()
                    .iter(),
            )
            .read;
            let contained = ranges.contain(&vec![key].into(), &name(end));
            let each = |wanted: &dyn Fn(u8) -> bool| (1u8..9).all(|k| {
                !wanted(k) || permissions.iter().any(|(begin, end)| covers(*begin, *end, k))
            });
            if end == 0 {
                prop_assert_eq!(contained, each(&|k| k == key));
            } else if contained {
                prop_assert!(each(&|k| covers(key, end, k)));
            } else {
                // Between the keys listed lie others, which single-key permissions do not cover.
                let spans: Vec<_> = permissions.iter().filter(|(_, end)| *end != 0).collect();
                let covered = (key..end.min(9)).all(|k| spans.iter().any(|(b, e)| covers(*b, *e, k)))
                    && (end != 9 || spans.iter().any(|(_, e)| *e == 9));
                prop_assert!(!covered);
            }
        }
    }
}
