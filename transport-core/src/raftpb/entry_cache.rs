//! The entries that were encoded last, so that what several members get is encoded once.
//!
//! A leader sends the same entries to every follower, most of them at once and some to one that lags a little.
//! [`EntryCache::share`] encodes what it has not seen and refers to its own bytes for the rest. It holds a part of
//! one log: entries without gaps, up to the newest. Invariant: an entry is only ever taken for another if term,
//! index, type and every byte of the data are the same, and the cache holds no more than its bound.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::{
    Entry, Message,
    encode::{encode_prefixed_entry, entry_len, nested_len},
    shared::SharedEntries,
    target::{REFERENCE_BYTES_MIN, Target},
};

/// What a cache holds at most, in bytes: 4 MiB. Who lags further behind is served from memory that is not shared.
pub const ENTRY_CACHE_BYTES: usize = 4 << 20;

/// How much memory is asked for at once, at first and when much is encoded.
const CHUNK_BYTES: std::ops::RangeInclusive<usize> = 4 << 10..=64 << 10;

/// See the module's description.
#[derive(Debug)]
pub struct EntryCache {
    /// Index of the first entry.
    first: u64,
    entries: VecDeque<Cached>,
    runs: VecDeque<Run>,
    /// Number of the first run, which only grows.
    first_run: u64,
    bytes: usize,
    bytes_max: usize,
    /// Where the next run is written; between two calls it is empty.
    buffer: BytesMut,
    encoded: u64,
}

/// Entries that lie together, each behind its length.
#[derive(Debug)]
struct Run {
    prefixed: Bytes,
    /// What the last entry ends in, if it is long enough to be kept where it is.
    payload: Bytes,
}

impl Run {
    fn bytes(&self) -> usize {
        size_of::<Run>() + self.prefixed.len() + self.payload.len()
    }
}

/// An entry, and where it is in its run.
#[derive(Clone, Copy, Debug)]
struct Cached {
    term: u64,
    entry_type: i32,
    run: u64,
    start: usize,
    end: usize,
    /// Its data are the last bytes before the end, or the payload of the run if they are long enough for that.
    data_len: usize,
}

impl Cached {
    /// Whether its data are the payload of the run.
    fn is_kept(&self) -> bool {
        self.data_len >= REFERENCE_BYTES_MIN
    }

    /// Length of the entry without its prefix.
    fn len(&self) -> usize {
        self.end - self.start - 8 + if self.is_kept() { self.data_len } else { 0 }
    }
}

/// The run being written, and the payload that ends it.
struct Open<'a> {
    buffer: &'a mut BytesMut,
    payload: Bytes,
}

impl Target for Open<'_> {
    fn reserve(&mut self, bytes: usize) {
        self.buffer.reserve(bytes);
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() < REFERENCE_BYTES_MIN {
            self.buffer.extend_from_slice(payload);
        } else {
            self.payload = payload.clone();
        }
    }
}

impl EntryCache {
    /// An empty cache, which holds no memory. `bytes_max` is its bound.
    pub fn new(bytes_max: usize) -> Self {
        EntryCache {
            first: 0,
            entries: VecDeque::new(),
            runs: VecDeque::new(),
            first_run: 0,
            bytes: 0,
            bytes_max,
            buffer: BytesMut::new(),
            encoded: 0,
        }
    }

    /// Takes the entries out of a message in exchange for their encoded form. `None`, and nothing is changed, if there
    /// are none, if they are not those behind the message's index, or if they begin before what is held: then they
    /// are encoded as part of the message.
    pub fn share(&mut self, message: &mut Message) -> Option<SharedEntries> {
        let entries = &message.entries[..];
        let first = entries.first()?;
        first.index.checked_add(entries.len() as u64)?;
        let mut indexes = (first.index..).zip(entries);
        if first.index != message.index.wrapping_add(1)
            || indexes.any(|(index, entry)| entry.index != index)
            || !self.begins_at(first)
        {
            return None;
        }
        let known = self.known(entries);
        for entry in &entries[known..] {
            self.encode(entry);
        }
        self.close_run(Bytes::new());
        let shared = self.collect(first.index, entries.len());
        self.evict();
        if shared.is_some() {
            message.entries = Vec::new();
        }
        shared
    }

    /// How many entries were encoded since this was asked last.
    pub fn take_encoded(&mut self) -> u64 {
        std::mem::take(&mut self.encoded)
    }

    /// Bytes held: no more than the bound.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        *self = EntryCache {
            first_run: self.first_run + self.runs.len() as u64,
            encoded: self.encoded,
            ..EntryCache::new(self.bytes_max)
        };
    }

    /// Makes the cache one that entries from `entry` on can be taken from or added to; false if it holds newer ones.
    fn begins_at(&mut self, entry: &Entry) -> bool {
        let next = self.first + self.entries.len() as u64;
        // Terms grow with the index: if this is newer, what is held is of a log that was cut off below it.
        let is_cut_off = |front: &Cached| entry.index < self.first && front.term < entry.term;
        if entry.index > next || self.entries.front().is_none_or(is_cut_off) {
            self.clear();
            self.first = entry.index;
        }
        entry.index >= self.first
    }

    /// How many of `entries`, from the first on, are held. If one is held differently, it and all after it are dropped.
    fn known(&mut self, entries: &[Entry]) -> usize {
        let at = self.offset(entries[0].index);
        let held = self.entries.range(at..).zip(entries);
        let known = held
            .take_while(|(cached, entry)| self.is(cached, entry))
            .count();
        if known < entries.len() {
            self.truncate(at + known);
        }
        known
    }

    /// Where the entry of an index is, which is not before the first.
    fn offset(&self, index: u64) -> usize {
        (index - self.first) as usize
    }

    #[inline]
    fn is(&self, cached: &Cached, entry: &Entry) -> bool {
        if cached.term != entry.term || cached.entry_type != entry.entry_type {
            return false;
        }
        let run = self.run(cached);
        if cached.data_len != entry.data.len() {
            return false;
        }
        if !cached.is_kept() {
            return run.prefixed[cached.end - cached.data_len..cached.end] == entry.data[..];
        }
        // A payload that is held cannot have moved: the same place means the same bytes.
        run.payload.as_ptr() == entry.data.as_ptr() || run.payload == entry.data
    }

    fn run(&self, cached: &Cached) -> &Run {
        &self.runs[(cached.run - self.first_run) as usize]
    }

    fn encode(&mut self, entry: &Entry) {
        let length = entry_len(entry);
        let is_kept = entry.data.len() >= REFERENCE_BYTES_MIN;
        let needed = 8 + length - if is_kept { entry.data.len() } else { 0 };
        if self.buffer.capacity() - self.buffer.len() < needed {
            self.close_run(Bytes::new());
            let (least, most) = CHUNK_BYTES.into_inner();
            self.buffer = BytesMut::with_capacity(self.bytes.clamp(least, most).max(needed));
        }
        let start = self.buffer.len();
        let mut open = Open {
            buffer: &mut self.buffer,
            payload: Bytes::new(),
        };
        encode_prefixed_entry(entry, length, &mut open);
        let payload = open.payload;
        debug_assert_eq!(self.buffer.len() - start, needed);
        self.entries.push_back(Cached {
            term: entry.term,
            entry_type: entry.entry_type,
            run: self.first_run + self.runs.len() as u64,
            start,
            end: self.buffer.len(),
            data_len: entry.data.len(),
        });
        self.bytes += size_of::<Cached>();
        self.encoded += 1;
        if is_kept {
            self.close_run(payload);
        }
    }

    /// Makes a run of what is in the buffer.
    fn close_run(&mut self, payload: Bytes) {
        if self.buffer.is_empty() {
            return;
        }
        let prefixed = self.buffer.split().freeze();
        let run = Run { prefixed, payload };
        self.bytes += run.bytes();
        self.runs.push_back(run);
    }

    /// The encoded form of `count` entries from `index` on.
    fn collect(&self, index: u64, count: usize) -> Option<SharedEntries> {
        let at = self.offset(index);
        let mut entries = self.entries.range(at..at + count).peekable();
        let mut payload = None;
        let pieces = std::iter::from_fn(|| {
            if let Some(payload) = payload.take() {
                return Some((payload, 0));
            }
            let first = entries.next()?;
            let mut last = first;
            let mut nested = nested_len(first.len());
            while let Some(next) = entries.next_if(|next| next.run == first.run) {
                nested += nested_len(next.len());
                last = next;
            }
            let run = self.run(first);
            if last.is_kept() {
                payload = Some(run.payload.clone());
            }
            Some((run.prefixed.slice(first.start..last.end), nested))
        });
        SharedEntries::new(pieces, count)
    }

    /// Drops all entries but the first `count`, and the runs that have none any more.
    fn truncate(&mut self, count: usize) {
        if count == self.entries.len() {
            return;
        }
        self.bytes -= (self.entries.len() - count) * size_of::<Cached>();
        self.entries.truncate(count);
        let runs_end = self
            .entries
            .back()
            .map_or(self.first_run, |last| last.run + 1);
        while self.first_run + self.runs.len() as u64 > runs_end
            && let Some(run) = self.runs.pop_back()
        {
            self.bytes -= run.bytes();
        }
    }

    /// Drops the oldest runs with their entries until the bound is kept.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(run) = self.runs.pop_front()
        {
            self.bytes -= run.bytes();
            while self
                .entries
                .front()
                .is_some_and(|front| front.run == self.first_run)
            {
                self.entries.pop_front();
                self.first += 1;
                self.bytes -= size_of::<Cached>();
            }
            self.first_run += 1;
        }
    }
}
