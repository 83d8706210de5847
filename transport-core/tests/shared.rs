//! Entries that are encoded once: the same bytes as encoded anew, whoever they are for and however the log changes,
//! and never another entry's.

mod support;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use transport_core::{
    frame::{message, msgappv2},
    raftpb::*,
};

use support::entry;

fn entries(first: u64, term: u64, sizes: &[usize]) -> Vec<Entry> {
    let entries = (first..).zip(sizes).map(|(index, size)| Entry {
        entry_type: 0,
        term,
        index,
        data: vec![index as u8; *size].into(),
    });
    entries.collect()
}

fn append(entries: &[Entry]) -> Message {
    let (index, term) = entries
        .first()
        .map_or((0, 0), |e| (e.index.wrapping_sub(1), e.term));
    Message {
        msg_type: MessageType::Append as i32,
        to: 2,
        from: 1,
        term,
        log_term: term,
        index,
        entries: entries.to_vec(),
        commit: index,
        ..Message::default()
    }
}

fn all(mut output: Output) -> Vec<u8> {
    let pieces = std::iter::from_fn(|| output.pop());
    pieces.flat_map(|piece| piece.to_vec()).collect()
}

/// One follower's streams, each beside one whose entries are always encoded anew.
#[derive(Default)]
struct Follower {
    compact: [msgappv2::Encoder; 2],
    whole: [message::Encoder; 2],
}

impl Follower {
    /// Whether the entries were shared.
    fn send(&mut self, cache: &mut EntryCache, entries: &[Entry]) -> bool {
        let plain = append(entries);
        let mut bare = plain.clone();
        let Some(shared) = cache.share(&mut bare) else {
            assert_eq!(bare, plain, "as it was");
            // Both ways would be the same one; the stream must still come as far.
            for encoder in &mut self.compact {
                encoder.encode(&plain, &mut BytesMut::new()).unwrap();
            }
            return false;
        };
        assert_eq!(shared.len(), entries.len());
        assert!(bare.entries.is_empty());
        let mut outputs = [(); 6].map(|()| Output::new());
        let [a, b, c, d, e, f] = &mut outputs;
        assert_eq!(
            self.compact[0].encode(&plain, a),
            self.compact[1].encode_shared(&bare, &shared, b)
        );
        assert_eq!(
            self.whole[0].encode(&plain, c),
            self.whole[1].encode_shared(&bare, &shared, d)
        );
        encode_message(&plain, e);
        encode_message_shared(&bare, &shared, f);
        assert_eq!(f.len(), shared_len(&bare, &shared));
        let [a, b, c, d, e, f] = outputs.map(all);
        assert!(a == b, "compact or whole, on the append stream");
        assert!(c == d, "on the message stream");
        assert!(e == f, "by itself");
        true
    }
}

/// What may happen to a leader's log and its followers.
#[derive(Clone, Debug)]
enum Step {
    Propose(Vec<(i32, usize)>),
    /// The log is another one from somewhere in its last entries on, in the same term (which raft never does) or in
    /// a later one.
    Rewrite {
        back: u64,
        later: bool,
        sizes: Vec<usize>,
    },
    Send {
        follower: usize,
        most: usize,
    },
    /// A follower's position changes by so much back.
    Back {
        follower: usize,
        by: u64,
    },
    Reconnect {
        follower: usize,
    },
    Clear,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0usize..100, 2 => 100usize..4200, 1 => 4000usize..20_000]
}

fn step() -> impl Strategy<Value = Step> {
    let follower = || 0usize..4;
    let propose = vec((0i32..3, size()), 1..12).prop_map(Step::Propose);
    let rewrite = (0u64..12, any::<bool>(), vec(size(), 0..6));
    let rewrite = rewrite.prop_map(|(back, later, sizes)| Step::Rewrite { back, later, sizes });
    let send = (follower(), 1usize..20).prop_map(|(follower, most)| Step::Send { follower, most });
    let back = (follower(), 1u64..30).prop_map(|(follower, by)| Step::Back { follower, by });
    let reconnect = follower().prop_map(|follower| Step::Reconnect { follower });
    prop_oneof![4 => propose, 1 => rewrite, 12 => send, 1 => back, 1 => reconnect, 1 => Just(Step::Clear)]
}

proptest! {
    #[test]
    fn what_is_shared_is_what_would_be_encoded(
        steps in vec(step(), 1..50),
        bound in prop_oneof![Just(0usize), Just(30_000), Just(ENTRY_CACHE_BYTES)],
    ) {
        let mut cache = EntryCache::new(bound);
        let mut log: Vec<Entry> = Vec::new();
        let mut term = 1;
        let mut positions = [0u64; 4];
        let mut followers: [Follower; 4] = Default::default();
        let mut filler = 0u8;
        let mut add = |log: &mut Vec<Entry>, term, entry_type, size| {
            filler = filler.wrapping_add(1);
            let index = log.len() as u64 + 1;
            log.push(Entry { entry_type, term, index, data: vec![filler; size].into() });
        };
        for step in steps {
            match step {
                Step::Propose(new) => {
                    new.into_iter().for_each(|(kind, size)| add(&mut log, term, kind, size));
                }
                Step::Rewrite { back, later, sizes } => {
                    log.truncate(log.len().saturating_sub(back as usize));
                    term += u64::from(later);
                    sizes.into_iter().for_each(|size| add(&mut log, term, 0, size));
                    let end = log.len() as u64;
                    positions.iter_mut().for_each(|position| *position = end.min(*position));
                }
                Step::Send { follower, most } => {
                    let from = positions[follower] as usize;
                    let to = log.len().min(from + most);
                    followers[follower].send(&mut cache, &log[from..to]);
                    positions[follower] = to as u64;
                    prop_assert!(cache.bytes() <= bound);
                }
                Step::Back { follower, by } => {
                    positions[follower] = positions[follower].saturating_sub(by);
                }
                Step::Reconnect { follower } => followers[follower] = Follower::default(),
                Step::Clear => cache.clear(),
            }
        }
    }

    #[test]
    fn any_entries_are_shared_as_they_are(mut entries in vec(entry(), 1..8), first in any::<u64>(), gap in 0usize..20) {
        let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
        prop_assert!(cache.share(&mut append(&entries[..0])).is_none());
        for (at, entry) in entries.iter_mut().enumerate() {
            let skipped = u64::from(at >= gap && gap > 0);
            entry.index = first.wrapping_add(at as u64 + skipped);
        }
        let count = entries.len();
        let whole = first.checked_add(count as u64).is_some() && (gap == 0 || gap >= count);
        for _ in 0..2 {
            prop_assert_eq!(Follower::default().send(&mut cache, &entries), whole);
        }
        prop_assert_eq!(cache.take_encoded(), if whole { count as u64 } else { 0 });
    }
}

#[test]
fn four_followers_cost_one_encode_of_each_entry() {
    let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
    let mut followers: [Follower; 4] = Default::default();
    let sizes: Vec<usize> = (0..400).map(|n| n * 37 % 9000).collect();
    let log = entries(1, 1, &sizes);
    for batch in log.chunks(8) {
        for follower in &mut followers[..3] {
            assert!(follower.send(&mut cache, batch));
        }
    }
    // One lags, and gets the same in other pieces.
    for batch in log[200..].chunks(5) {
        assert!(followers[3].send(&mut cache, batch));
    }
    assert_eq!(cache.take_encoded(), 400);
    assert_eq!(cache.take_encoded(), 0);
}

#[test]
fn an_entry_is_not_taken_for_another_of_the_same_index_and_term() {
    let large = REFERENCE_BYTES_MIN;
    let sizes = [0, 1, 64, 65, large - 1, large, large + 1];
    for old in sizes {
        for new in sizes {
            for (same_bytes, before) in [(true, 3), (false, 3), (true, 0), (false, 0)] {
                let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
                // Behind the one in question lies another, whose payload ends the run.
                let held = entries(7, 1, &[before, old, large]);
                let mut follower = Follower::default();
                assert!(follower.send(&mut cache, &held));
                assert_eq!(cache.take_encoded(), 3);
                let mut other = entries(7, 1, &[before, new, large]);
                if !same_bytes {
                    other[1].data = Bytes::from(vec![99; new]);
                }
                assert!(follower.send(&mut cache, &other));
                let is_same = other[1].data == held[1].data;
                assert_eq!(cache.take_encoded(), if is_same { 0 } else { 2 });
            }
        }
    }
    let held = entries(7, 1, &[64]);
    for change in [
        |entry: &mut Entry| entry.term = 2,
        |entry: &mut Entry| entry.entry_type = 1,
    ] {
        let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
        assert!(Follower::default().send(&mut cache, &held));
        let mut other = held.clone();
        change(&mut other[0]);
        assert!(Follower::default().send(&mut cache, &other));
        assert_eq!(cache.take_encoded(), 2);
    }
}

#[test]
fn the_cache_keeps_the_newest_within_its_bound() {
    let bound = 100_000;
    let mut cache = EntryCache::new(bound);
    let mut follower = Follower::default();
    let log = entries(1, 1, &[1000; 1000]);
    for batch in log.chunks(10) {
        assert!(follower.send(&mut cache, batch));
        assert!(cache.bytes() <= bound, "{}", cache.bytes());
    }
    assert_eq!(cache.take_encoded(), 1000);
    assert!(follower.send(&mut cache, &log[950..]), "held");
    assert!(!follower.send(&mut cache, &log[..10]), "gone");
    assert_eq!(cache.take_encoded(), 0);
    // A new leader's log, of which the old one's was cut off.
    let new = entries(5, 2, &[64; 3]);
    assert!(follower.send(&mut cache, &new));
    assert_eq!(cache.take_encoded(), 3);
    // More than the bound at once.
    let most = entries(8, 2, &[1000; 200]);
    assert!(follower.send(&mut cache, &most));
    assert!(cache.bytes() <= bound);
    assert_eq!(cache.take_encoded(), 200);
    cache.clear();
    assert_eq!(cache.bytes(), 0);
    assert!(follower.send(&mut cache, &new), "from anywhere again");
}

#[test]
fn no_large_payload_is_copied() {
    let mut cache = EntryCache::new(ENTRY_CACHE_BYTES);
    let log = entries(1, 1, &[10, REFERENCE_BYTES_MIN, 20]);
    let mut bare = append(&log);
    let shared = cache.share(&mut bare).unwrap();
    let mut output = Output::new();
    let mut encoder = msgappv2::Encoder::new();
    encoder.encode_shared(&bare, &shared, &mut output).unwrap();
    let pieces = std::iter::from_fn(|| output.pop());
    let kept = pieces.filter(|piece| piece.as_ptr() == log[1].data.as_ptr());
    assert_eq!(kept.count(), 1);
}
