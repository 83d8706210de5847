//! Files and directories that remember what of them is durable, and what may survive a crash.

use std::collections::BTreeMap;

const SECTOR: usize = 512;

#[derive(Clone)]
pub(super) enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Clone, Default)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) durable: Vec<u8>,
    /// Contents that a sector had after the last sync, the present one last.
    pub(super) dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// Lengths since the last sync.
    pub(super) lengths: Vec<usize>,
    pub(super) lock: Option<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable: BTreeMap<String, u64>,
    pub(super) changes: Vec<NameChange>,
}

#[derive(Clone)]
pub(super) enum NameChange {
    Set(String, u64),
    Unset(String),
    Rename(String, String),
}

impl File {
    pub(super) fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.content.len() {
            self.set_length(end);
        }
        self.change(offset, end, |content| {
            content[offset..end].copy_from_slice(bytes);
        });
    }

    pub(super) fn set_length(&mut self, length: usize) {
        let before = self.content.len();
        if length < before {
            self.change(length, before, |content| content.truncate(length));
        } else {
            // Nothing is written: what lies past the end reads as zeros already.
            self.content.resize(length, 0);
        }
        self.lengths.push(length);
    }

    /// Changes `content`, remembering what the sectors of `[from, to)` hold afterwards.
    pub(super) fn change(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.content);
        for index in from / SECTOR..to.div_ceil(SECTOR) {
            let before = sector(&self.durable, index);
            let now = sector(&self.content, index);
            let versions = self.dirty.entry(index).or_insert_with(|| vec![before]);
            if versions.last() != Some(&now) {
                versions.push(now);
            }
        }
    }

    /// Makes the sectors durable that `choose` picks. All are clean afterwards.
    pub(super) fn sync(&mut self, mut choose: impl FnMut() -> bool) {
        let dirty = std::mem::take(&mut self.dirty);
        if !self.lengths.is_empty() && choose() {
            self.durable.resize(self.content.len(), 0);
        }
        self.lengths.clear();
        for index in dirty.into_keys() {
            if choose() {
                let now = sector(&self.content, index);
                // A block that is written takes the length along.
                let end = self.content.len().min((index + 1) * SECTOR);
                if end > self.durable.len() {
                    self.durable.resize(end, 0);
                }
                store(&mut self.durable, index, &now);
            }
        }
    }

    pub(super) fn survivor(&self, random: &mut Random) -> File {
        let lengths = self.lengths.len() as u64;
        let length = match random.below(lengths + 1) {
            0 => self.durable.len(),
            n => self.lengths[n as usize - 1],
        };
        let mut content = self.durable.clone();
        content.resize(length, 0);
        for (index, versions) in &self.dirty {
            let version = &versions[random.below(versions.len() as u64) as usize];
            store(&mut content, *index, version);
        }
        File {
            durable: content.clone(),
            content,
            ..File::default()
        }
    }
}

pub(super) fn sector(bytes: &[u8], index: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    if let Some(there) = bytes.get(index * SECTOR..) {
        let there = &there[..there.len().min(SECTOR)];
        sector[..there.len()].copy_from_slice(there);
    }
    sector
}

/// Stores what of the sector lies inside of `bytes`.
pub(super) fn store(bytes: &mut [u8], index: usize, sector: &[u8; SECTOR]) {
    if let Some(there) = bytes.get_mut(index * SECTOR..) {
        let len = there.len().min(SECTOR);
        there[..len].copy_from_slice(&sector[..len]);
    }
}

impl Dir {
    pub(super) fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    pub(super) fn sync(&mut self) {
        self.durable = self.names.clone();
        self.changes.clear();
    }

    /// Makes the first `count` changes durable.
    pub(super) fn sync_some(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
    }

    pub(super) fn survivor(&self, random: &mut Random) -> Dir {
        let mut dir = self.clone();
        dir.sync_some(random.below(dir.changes.len() as u64 + 1) as usize);
        Dir {
            names: dir.durable.clone(),
            durable: dir.durable,
            changes: Vec::new(),
        }
    }
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Set(name, number) => {
                names.insert(name.clone(), *number);
            }
            NameChange::Unset(name) => {
                names.remove(name);
            }
            NameChange::Rename(from, to) => {
                if let Some(number) = names.remove(from) {
                    names.insert(to.clone(), number);
                }
            }
        }
    }
}

/// SplitMix64: small, and the same on every version of everything.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }
}
