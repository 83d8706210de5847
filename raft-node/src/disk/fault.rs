//! An in-memory file system that forgets, tears and fails, for tests.
//!
//! What is written is visible at once and durable only after a sync. A crash keeps, of everything not
//! synced, what a seed decides: for each 512-byte sector any version it had since the last sync, for each
//! file any of its lengths, for each directory a prefix of its name changes. A [`Plan`] stops the disk in
//! the middle of its n-th operation, or fails that one; a failed sync leaves its sectors clean and not
//! durable, as Linux does. Depends on nothing; same seed and same calls, same disk.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Component, Path},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Access, Disk, DiskFile};

const SECTOR: usize = 512;
const ROOT: u64 = 0;

/// When the disk misbehaves. Operations count from 1; see [`FaultDisk::operations`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Plan {
    /// In the middle of this operation everything stops, as if power was lost.
    pub stop_at: Option<u64>,
    /// This operation fails, maybe half done.
    pub fail_at: Option<(u64, io::ErrorKind)>,
}

/// The disk; clones are the same disk.
#[derive(Clone)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    nodes: HashMap<u64, Node>,
    next_node: u64,
    next_handle: u64,
    random: Random,
    plan: Plan,
    operations: u64,
    stopped: bool,
}

enum Node {
    File(File),
    Dir(Dir),
}

#[derive(Clone, Default)]
struct File {
    content: Vec<u8>,
    durable: Vec<u8>,
    /// Contents that a sector had after the last sync, the present one last.
    dirty: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// Lengths since the last sync.
    lengths: Vec<usize>,
    lock: Option<u64>,
}

#[derive(Clone, Default)]
struct Dir {
    names: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    changes: Vec<NameChange>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Unset(String),
    Rename(String, String),
}

impl FaultDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let mut nodes = HashMap::new();
        nodes.insert(ROOT, Node::Dir(Dir::default()));
        FaultDisk {
            state: Arc::new(Mutex::new(State {
                nodes,
                next_node: ROOT + 1,
                next_handle: 1,
                random: Random(seed),
                plan: Plan::default(),
                operations: 0,
                stopped: false,
            })),
        }
    }

    /// Sets when the disk misbehaves.
    pub fn plan(&self, plan: Plan) {
        self.state.lock().plan = plan;
    }

    /// Operations so far that change something or make it durable.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Whether the plan has stopped the disk.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Ends this disk and returns what survives of it. Operations count from 0 again, without a plan.
    pub fn crash(&self) -> FaultDisk {
        let state = &mut *self.state.lock();
        state.stopped = true;
        let State { nodes, random, .. } = state;
        let mut survivors = HashMap::new();
        // In order, so that a seed decides the same each time.
        let mut numbers: Vec<_> = nodes.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let survivor = match &nodes[&number] {
                Node::File(file) => Node::File(file.survivor(random)),
                Node::Dir(dir) => Node::Dir(dir.survivor(random)),
            };
            survivors.insert(number, survivor);
        }
        FaultDisk {
            state: Arc::new(Mutex::new(State {
                nodes: survivors,
                next_node: state.next_node,
                next_handle: 1,
                random: Random(state.random.next()),
                plan: Plan::default(),
                operations: 0,
                stopped: false,
            })),
        }
    }

    /// The present content of a file.
    pub fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.state.lock();
        let number = state.resolve(path)?;
        state.file(number).map(|file| file.content.clone())
    }

    /// Replaces the content of a file, durably, outside of any plan.
    pub fn set_content(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let number = match state.resolve(path) {
            Ok(number) => number,
            Err(_) => state.create(path)?,
        };
        let (dir, _) = state.resolve_parent(path)?;
        state.dir(dir)?.sync();
        let file = state.file_mut(number)?;
        file.content = bytes.to_vec();
        file.durable = bytes.to_vec();
        file.dirty.clear();
        file.lengths.clear();
        Ok(())
    }
}

impl std::fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultDisk")
    }
}

impl File {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if end > self.content.len() {
            self.set_length(end);
        }
        self.change(offset, end, |content| {
            content[offset..end].copy_from_slice(bytes);
        });
    }

    fn set_length(&mut self, length: usize) {
        let (low, high) = (
            length.min(self.content.len()),
            length.max(self.content.len()),
        );
        self.change(low, high, |content| content.resize(length, 0));
        self.lengths.push(length);
    }

    /// Changes `content`, remembering what the sectors of `[from, to)` hold afterwards.
    fn change(&mut self, from: usize, to: usize, change: impl FnOnce(&mut Vec<u8>)) {
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
    fn sync(&mut self, mut choose: impl FnMut() -> bool) {
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

    fn survivor(&self, random: &mut Random) -> File {
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

fn sector(bytes: &[u8], index: usize) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    if let Some(there) = bytes.get(index * SECTOR..) {
        let there = &there[..there.len().min(SECTOR)];
        sector[..there.len()].copy_from_slice(there);
    }
    sector
}

/// Stores what of the sector lies inside of `bytes`.
fn store(bytes: &mut [u8], index: usize, sector: &[u8; SECTOR]) {
    if let Some(there) = bytes.get_mut(index * SECTOR..) {
        let len = there.len().min(SECTOR);
        there[..len].copy_from_slice(&sector[..len]);
    }
}

impl Dir {
    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn sync(&mut self) {
        self.durable = self.names.clone();
        self.changes.clear();
    }

    /// Makes the first `count` changes durable.
    fn sync_some(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
    }

    fn survivor(&self, random: &mut Random) -> Dir {
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
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
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

/// What the plan says about the operation at hand.
enum Fate {
    Fine,
    /// Do part of it, then return this error.
    Half(io::Error),
}

impl State {
    /// Counts an operation.
    fn begin(&mut self) -> io::Result<Fate> {
        self.running()?;
        self.operations += 1;
        if self.plan.stop_at == Some(self.operations) {
            self.stopped = true;
            return Ok(Fate::Half(stopped()));
        }
        match self.plan.fail_at {
            Some((at, kind)) if at == self.operations => {
                Ok(Fate::Half(io::Error::new(kind, "injected")))
            }
            _ => Ok(Fate::Fine),
        }
    }

    fn running(&self) -> io::Result<()> {
        if self.stopped {
            return Err(stopped());
        }
        Ok(())
    }

    fn resolve(&self, path: &Path) -> io::Result<u64> {
        let mut number = ROOT;
        for name in names(path) {
            let Some(Node::Dir(dir)) = self.nodes.get(&number) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            number = *dir.names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(number)
    }

    fn resolve_parent(&self, path: &Path) -> io::Result<(u64, String)> {
        let mut names = names(path);
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let dir: std::path::PathBuf = names.iter().collect();
        Ok((self.resolve(&dir)?, last))
    }

    fn dir(&mut self, number: u64) -> io::Result<&mut Dir> {
        match self.nodes.get_mut(&number) {
            Some(Node::Dir(dir)) => Ok(dir),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn file(&self, number: u64) -> io::Result<&File> {
        match self.nodes.get(&number) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn file_mut(&mut self, number: u64) -> io::Result<&mut File> {
        match self.nodes.get_mut(&number) {
            Some(Node::File(file)) => Ok(file),
            _ => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn create(&mut self, path: &Path) -> io::Result<u64> {
        if let Ok(number) = self.resolve(path) {
            self.file_mut(number)?.set_length(0);
            return Ok(number);
        }
        self.add(path, Node::File(File::default()))
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<u64> {
        let (dir, name) = self.resolve_parent(path)?;
        let number = self.next_node;
        self.next_node += 1;
        self.nodes.insert(number, node);
        self.dir(dir)?.change(NameChange::Set(name, number));
        Ok(number)
    }
}

fn names(path: &Path) -> Vec<String> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect()
}

fn stopped() -> io::Error {
    io::Error::other("the disk has stopped")
}

impl Disk for FaultDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.running()?;
        if state.resolve(path).is_ok() {
            return Ok(());
        }
        let fate = state.begin()?;
        let mut so_far = std::path::PathBuf::new();
        for name in names(path) {
            so_far.push(name);
            if state.resolve(&so_far).is_err() {
                state.add(&so_far, Node::Dir(Dir::default()))?;
            }
            if matches!(fate, Fate::Fine) {
                let (dir, _) = state.resolve_parent(&so_far)?;
                state.dir(dir)?.sync();
            }
        }
        fate.end(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        let fate = state.begin()?;
        let number = state.create(path)?;
        let handle = self.handle(&mut state, number);
        drop(state);
        fate.end(handle)
    }

    fn open(&self, path: &Path, _access: Access) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.running()?;
        let number = state.resolve(path)?;
        state.file(number)?;
        Ok(self.handle(&mut state, number))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let fate = state.begin()?;
        let (dir, old) = state.resolve_parent(from)?;
        let (target, new) = state.resolve_parent(to)?;
        if dir != target {
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        state.resolve(from)?;
        if matches!(fate, Fate::Fine) || state.random.coin() {
            state.dir(dir)?.change(NameChange::Rename(old, new));
        }
        fate.end(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let number = state.resolve(path)?;
        state.file(number)?;
        let fate = state.begin()?;
        let (dir, name) = state.resolve_parent(path)?;
        state.dir(dir)?.change(NameChange::Unset(name));
        fate.end(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.resolve(path)?;
        let fate = state.begin()?;
        let (dir, name) = state.resolve_parent(path)?;
        state.dir(dir)?.change(NameChange::Unset(name));
        fate.end(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.state.lock();
        state.running()?;
        let number = state.resolve(dir)?;
        Ok(state.dir(number)?.names.keys().cloned().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.state.lock();
        state.running()?;
        Ok(state.resolve(path).is_ok())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let number = state.resolve(dir)?;
        let fate = state.begin()?;
        if matches!(fate, Fate::Fine) {
            state.dir(number)?.sync();
        } else {
            let changes = state.dir(number)?.changes.len() as u64;
            let some = state.random.below(changes + 1) as usize;
            state.dir(number)?.sync_some(some);
        }
        fate.end(())
    }
}

impl Fate {
    fn end<T>(self, value: T) -> io::Result<T> {
        match self {
            Fate::Fine => Ok(value),
            Fate::Half(error) => Err(error),
        }
    }
}

impl FaultDisk {
    fn handle(&self, state: &mut State, number: u64) -> Box<dyn DiskFile> {
        let handle = state.next_handle;
        state.next_handle += 1;
        Box::new(FaultFile {
            state: self.state.clone(),
            number,
            handle,
        })
    }
}

struct FaultFile {
    state: Arc<Mutex<State>>,
    number: u64,
    handle: u64,
}

impl std::fmt::Debug for FaultFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultFile({})", self.number)
    }
}

impl Drop for FaultFile {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if let Ok(file) = state.file_mut(self.number)
            && file.lock == Some(self.handle)
        {
            file.lock = None;
        }
    }
}

impl FaultFile {
    fn change(&self, change: impl FnOnce(&mut File)) -> io::Result<()> {
        let mut state = self.state.lock();
        let fate = state.begin()?;
        change(state.file_mut(self.number)?);
        fate.end(())
    }
}

impl DiskFile for FaultFile {
    fn size(&self) -> io::Result<u64> {
        let state = self.state.lock();
        state.running()?;
        Ok(state.file(self.number)?.content.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state.lock();
        state.running()?;
        let content = &state.file(self.number)?.content;
        let from = content.len().min(offset as usize);
        let len = buf.len().min(content.len() - from);
        buf[..len].copy_from_slice(&content[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let fate = state.begin()?;
        let written = match &fate {
            Fate::Fine => bytes.len(),
            // Memory is copied, and read by devices, in words at least.
            Fate::Half(_) => state.random.below(bytes.len() as u64 + 1) as usize & !7,
        };
        state
            .file_mut(self.number)?
            .write(&bytes[..written], offset as usize);
        fate.end(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.change(|file| {
            if size as usize > file.content.len() {
                file.set_length(size as usize);
            }
        })
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.change(|file| file.set_length(size as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let fate = state.begin()?;
        let State { nodes, random, .. } = &mut *state;
        if let Some(Node::File(file)) = nodes.get_mut(&self.number) {
            match &fate {
                Fate::Fine => file.sync(|| true),
                Fate::Half(_) => file.sync(|| random.coin()),
            }
        }
        fate.end(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.state.lock();
        state.running()?;
        let file = state.file_mut(self.number)?;
        let free = file.lock.is_none_or(|holder| holder == self.handle);
        if free {
            file.lock = Some(self.handle);
        }
        Ok(free)
    }
}

/// SplitMix64: small, and the same on every version of everything.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survivors(prepare: impl Fn(&FaultDisk)) -> Vec<FaultDisk> {
        (0..200)
            .map(|seed| {
                let disk = FaultDisk::new(seed);
                prepare(&disk);
                disk.crash()
            })
            .collect()
    }

    #[test]
    fn what_is_synced_survives_and_the_rest_may_not() {
        let path = Path::new("file");
        let disks = survivors(|disk| {
            let file = disk.create(path).expect("create");
            file.write_at(&[1; 1024], 0).expect("write");
            file.sync_data().expect("sync");
            disk.sync_dir(Path::new(".")).expect("sync");
            file.write_at(&[2; 512], 256).expect("write");
            file.write_at(&[3; 512], 1024).expect("write");
        });
        let contents: Vec<_> = disks
            .iter()
            .map(|disk| disk.content(path).expect("synced"))
            .collect();
        assert!(
            contents
                .iter()
                .all(|c| c[..256] == [1; 256] && c[768..1024] == [1; 256])
        );
        let seen = |bytes: [u8; 2]| contents.iter().any(|c| [c[256], c[512]] == bytes);
        assert!(seen([1, 1]) && seen([1, 2]) && seen([2, 1]) && seen([2, 2]));
        assert!(contents.iter().any(|c| c.len() == 1024));
        assert!(contents.iter().any(|c| c.len() == 1536 && c[1024] == 3));
        assert!(contents.iter().any(|c| c.len() == 1536 && c[1024] == 0));
    }

    #[test]
    fn names_survive_in_order_of_change() {
        let disks = survivors(|disk| {
            disk.create(Path::new("a")).expect("create");
            disk.rename(Path::new("a"), Path::new("b")).expect("rename");
        });
        let exists = |disk: &FaultDisk, name: &str| disk.exists(Path::new(name)).expect("exists");
        let count = |a, b| {
            let same = |disk: &&FaultDisk| (exists(disk, "a"), exists(disk, "b")) == (a, b);
            disks.iter().filter(same).count()
        };
        assert!(count(false, false) > 0 && count(true, false) > 0 && count(false, true) > 0);
        assert_eq!(count(true, true), 0);
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next_one() {
        let path = Path::new("file");
        let mut lost = 0;
        for seed in 0..50 {
            let disk = FaultDisk::new(seed);
            let file = disk.create(path).expect("create");
            file.write_at(&[0; 512], 0).expect("write");
            file.sync_data().expect("sync");
            disk.sync_dir(Path::new(".")).expect("sync");
            file.write_at(&[7; 512], 0).expect("write");
            disk.plan(Plan {
                fail_at: Some((disk.operations() + 1, io::ErrorKind::StorageFull)),
                ..Plan::default()
            });
            assert!(file.sync_data().is_err());
            file.sync_data().expect("nothing is dirty any more");
            assert_eq!(disk.content(path).expect("content"), [7; 512]);
            let after = disk.crash().content(path).expect("content");
            lost += usize::from(after == [0; 512]);
        }
        assert!((10..40).contains(&lost), "{lost}");
    }

    #[test]
    fn a_stopped_disk_answers_nothing() {
        let disk = FaultDisk::new(1);
        disk.plan(Plan {
            stop_at: Some(1),
            ..Plan::default()
        });
        assert!(disk.create(Path::new("a")).is_err());
        assert!(disk.is_stopped());
        assert!(disk.exists(Path::new("a")).is_err());
        assert!(disk.crash().exists(Path::new("a")).is_ok());
    }

    #[test]
    fn one_handle_holds_the_lock_until_it_goes() {
        let disk = FaultDisk::new(1);
        let first = disk.create(Path::new("a")).expect("create");
        let second = disk.open(Path::new("a"), Access::ReadWrite).expect("open");
        assert!(first.try_lock().expect("lock"));
        assert!(!second.try_lock().expect("lock"));
        drop(first);
        assert!(second.try_lock().expect("lock"));
    }
}
