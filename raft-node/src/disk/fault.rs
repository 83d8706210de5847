//! An in-memory file system that forgets, tears and fails, for tests.
//!
//! What is written is visible at once and durable only after a sync. A crash keeps, of everything not
//! synced, what a seed decides: for each 512-byte sector any version it had since the last sync, for each
//! file any of its lengths, for each directory a prefix of its name changes. A [`Plan`] stops the disk in
//! the middle of its n-th operation, or fails that one; a failed sync leaves its sectors clean and not
//! durable, as Linux does. Depends on nothing; same seed and same calls, same disk.

use std::{
    collections::HashMap,
    io,
    path::{Component, Path},
    sync::Arc,
};

use parking_lot::Mutex;

use self::{
    handle::FaultFile,
    nodes::{Dir, File, NameChange, Node, Random},
};
use super::{Access, Disk, DiskFile};

mod handle;
mod nodes;

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

    /// Ends this disk as a process does that is killed, and returns the disk that the next one finds: with
    /// all that was written, of which a later crash may still take what was not synced.
    pub fn kill(&self) -> FaultDisk {
        let state = &mut *self.state.lock();
        state.stopped = true;
        let mut nodes = state.nodes.clone();
        for node in nodes.values_mut() {
            if let Node::File(file) = node {
                file.lock = None;
            }
        }
        FaultDisk {
            state: Arc::new(Mutex::new(State {
                nodes,
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

#[cfg(test)]
mod tests;
