//! The history of one key: the revisions that changed it, ascending, tombstones marked.
//!
//! A tombstone ends a generation and the next put begins one; so a flat list says the same as etcd's list of
//! generations (etcd: server/storage/mvcc/key_index.go) in 40 bytes for a key that was written once.
//!
//! Invariant: marks are strictly ascending; `create` and `version` describe the generation that is alive at the end
//! and are 0 when the last mark is a tombstone.

use super::revision::{MAX_SUB, Revision};

const TOMBSTONE: u32 = MAX_SUB + 1;

/// One change of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    main: i64,
    /// Sub revision; the top bit says tombstone.
    sub: u32,
}

impl Mark {
    fn new(revision: Revision, tombstone: bool) -> Self {
        debug_assert!(revision.sub <= MAX_SUB);
        Mark {
            main: revision.main,
            sub: revision.sub | if tombstone { TOMBSTONE } else { 0 },
        }
    }

    fn is_tombstone(self) -> bool {
        self.sub & TOMBSTONE != 0
    }

    fn revision(self) -> Revision {
        Revision::new(self.main, self.sub & MAX_SUB)
    }
}

/// Most keys have one mark, which then needs no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Marks {
    One(Mark),
    Many(Vec<Mark>),
}

impl Marks {
    fn as_slice(&self) -> &[Mark] {
        match self {
            Marks::One(mark) => std::slice::from_ref(mark),
            Marks::Many(marks) => marks,
        }
    }
}

/// What a put needs to know of the key, and what its row then says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Main revision of the put that created the key.
    pub create: i64,
    /// Puts since then, from 1.
    pub version: i64,
}

/// The history of one key; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct History {
    marks: Marks,
    create: i64,
    version: i64,
}

impl History {
    /// The history that a put which creates the key begins.
    pub fn created(at: Revision) -> Self {
        Self::restored(at, at.main, 1)
    }

    /// The history of a key whose first remaining row is a put at `at`.
    pub fn restored(at: Revision, create: i64, version: i64) -> Self {
        History {
            marks: Marks::One(Mark::new(at, false)),
            create,
            version,
        }
    }

    /// The history of a key whose first remaining row is a tombstone.
    pub fn restored_tombstone(at: Revision) -> Self {
        History {
            marks: Marks::One(Mark::new(at, true)),
            create: 0,
            version: 0,
        }
    }

    /// Notes a put and returns the generation it belongs to.
    pub fn put(&mut self, at: Revision) -> Generation {
        if self.is_alive() {
            self.version += 1;
        } else {
            (self.create, self.version) = (at.main, 1);
        }
        self.push(Mark::new(at, false));
        Generation {
            create: self.create,
            version: self.version,
        }
    }

    /// Notes a tombstone; false, and nothing noted, when the key is not alive.
    pub fn delete(&mut self, at: Revision) -> bool {
        let alive = self.is_alive();
        if alive {
            (self.create, self.version) = (0, 0);
            self.push(Mark::new(at, true));
        }
        alive
    }

    /// Whether the key exists after its last change.
    pub fn is_alive(&self) -> bool {
        !self.last().is_tombstone()
    }

    /// Revision of the last change.
    pub fn last_revision(&self) -> Revision {
        self.last().revision()
    }

    /// The put whose value is the key's at main revision `at`; `None` when it does not exist then.
    pub fn at(&self, at: i64) -> Option<Revision> {
        let marks = self.marks.as_slice();
        let last = marks[marks.len() - 1];
        let mark = if last.main <= at {
            last
        } else {
            marks[marks
                .partition_point(|mark| mark.main <= at)
                .checked_sub(1)?]
        };
        (!mark.is_tombstone()).then(|| mark.revision())
    }

    /// How many marks a compaction at `at` takes: all that are superseded at `at`, and a tombstone below `at`
    /// itself. A tombstone at exactly `at` stays, so that a watch that begins there sees it (etcd from 3.4.34 and
    /// 3.5.16; HashKV leaves such a row out, so that older members agree).
    fn superseded(&self, at: i64) -> usize {
        let marks = self.marks.as_slice();
        match marks.partition_point(|mark| mark.main <= at) {
            0 => 0,
            n if marks[n - 1].is_tombstone() && marks[n - 1].main < at => n,
            n => n - 1,
        }
    }

    /// Whether a compaction at `at` leaves a row of this key that is not newer than `at`.
    pub fn keeps_row(&self, at: i64) -> bool {
        let marks = self.marks.as_slice();
        match marks.partition_point(|mark| mark.main <= at) {
            0 => false,
            n => !marks[n - 1].is_tombstone() || marks[n - 1].main == at,
        }
    }

    /// Whether a compaction at `at` would take something.
    pub fn is_compactable(&self, at: i64) -> bool {
        self.superseded(at) > 0
    }

    /// Takes at most `limit` of the marks a compaction at `at` takes, calling `dropped` for each with whether it is
    /// a tombstone. Returns true when nothing is left of the history and it must be removed.
    pub fn compact(
        &mut self,
        at: i64,
        limit: usize,
        mut dropped: impl FnMut(Revision, bool),
    ) -> bool {
        let take = self.superseded(at).min(limit);
        let marks = self.marks.as_slice();
        marks[..take]
            .iter()
            .for_each(|mark| dropped(mark.revision(), mark.is_tombstone()));
        let rest = &marks[take..];
        match rest {
            [] => return true,
            [one] => self.marks = Marks::One(*one),
            _ if take == 0 => {}
            rest => self.marks = Marks::Many(rest.to_vec()),
        }
        false
    }

    fn last(&self) -> Mark {
        let marks = self.marks.as_slice();
        marks[marks.len() - 1]
    }

    fn push(&mut self, mark: Mark) {
        debug_assert!(self.last_revision() < mark.revision());
        match &mut self.marks {
            Marks::One(first) => self.marks = Marks::Many(vec![*first, mark]),
            Marks::Many(marks) => marks.push(mark),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rev(main: i64) -> Revision {
        Revision::new(main, 0)
    }

    /// put 2, put 4, delete 6, put 8, delete 10.
    fn sample() -> History {
        let mut history = History::created(rev(2));
        history.put(rev(4));
        history.delete(rev(6));
        history.put(rev(8));
        history.delete(rev(10));
        history
    }

    #[test]
    fn small() {
        assert!(size_of::<History>() <= 40);
    }

    #[test]
    fn generations_count_versions_from_one() {
        let mut history = History::created(rev(2));
        assert_eq!(
            history.put(rev(3)),
            Generation {
                create: 2,
                version: 2
            }
        );
        assert!(history.delete(rev(4)));
        assert!(!history.delete(rev(5)));
        assert!(!history.is_alive());
        assert_eq!(
            history.put(rev(7)),
            Generation {
                create: 7,
                version: 1
            }
        );
        assert_eq!(
            history.put(rev(8)),
            Generation {
                create: 7,
                version: 2
            }
        );
    }

    #[test]
    fn at_each_revision() {
        let expect = [
            (1, None),
            (2, Some(2)),
            (3, Some(2)),
            (4, Some(4)),
            (5, Some(4)),
            (6, None),
            (7, None),
            (8, Some(8)),
            (9, Some(8)),
            (10, None),
            (99, None),
        ];
        for (at, main) in expect {
            assert_eq!(sample().at(at), main.map(rev), "at {at}");
        }
    }

    #[test]
    fn compaction_keeps_what_is_readable_and_a_tombstone_at_its_own_revision() {
        // (compacted at, dropped, gone)
        let cases: &[(i64, &[i64], bool)] = &[
            (1, &[], false),
            (2, &[], false),
            (4, &[2], false),
            (5, &[2], false),
            (6, &[2, 4], false),
            (7, &[2, 4, 6], false),
            (9, &[2, 4, 6], false),
            (10, &[2, 4, 6, 8], false),
            (11, &[2, 4, 6, 8, 10], true),
        ];
        for (at, dropped, gone) in cases {
            let mut history = sample();
            let mut seen = Vec::new();
            assert_eq!(
                history.compact(*at, usize::MAX, |revision, _| seen.push(revision.main)),
                *gone
            );
            assert_eq!(&seen, dropped, "at {at}");
            if !gone {
                for read in *at..12 {
                    assert_eq!(history.at(read), sample().at(read), "{at} {read}");
                }
                assert!(!history.is_compactable(*at));
            }
        }
    }

    #[test]
    fn compaction_in_steps_ends_where_one_step_ends() {
        let mut history = sample();
        let mut steps = 0;
        while history.is_compactable(9) {
            assert!(!history.compact(9, 1, |_, _| steps += 1));
            assert_eq!(history.at(9), Some(rev(8)));
        }
        assert_eq!(steps, 3);
    }

    #[test]
    fn several_changes_of_one_transaction() {
        let mut history = History::created(Revision::new(5, 0));
        history.delete(Revision::new(7, 0));
        history.put(Revision::new(7, 1));
        assert_eq!(history.at(7), Some(Revision::new(7, 1)));
        assert_eq!(history.at(6), Some(Revision::new(5, 0)));
    }
}
