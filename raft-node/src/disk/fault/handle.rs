//! An open file of a [`FaultDisk`](super::FaultDisk).

use std::{io, sync::Arc};

use parking_lot::Mutex;

use super::{
    Fate, State,
    nodes::{File, Node},
};
use crate::disk::DiskFile;

pub(super) struct FaultFile {
    pub(super) state: Arc<Mutex<State>>,
    pub(super) number: u64,
    pub(super) handle: u64,
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
