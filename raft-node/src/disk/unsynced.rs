//! A disk that never waits: etcd's `--unsafe-no-fsync` (etcd: server/storage/wal, `SetUnsafeNoFsync`).
//!
//! Depends on the disk it wraps for everything else. Invariant: what was written survives the process, since the
//! operating system has it, but not the machine.

use std::{io, path::Path};

use super::{Access, Disk, DiskFile};

/// Wraps a disk and takes every sync for done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unsynced<D>(pub D);

impl<D: Disk> Disk for Unsynced<D> {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.0.create(path)?;
        Ok(Box::new(UnsyncedFile(file)))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let file = self.0.open(path, access)?;
        Ok(Box::new(UnsyncedFile(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.0.remove_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct UnsyncedFile(Box<dyn DiskFile>);

impl DiskFile for UnsyncedFile {
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.0.allocate(size)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.truncate(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.0.try_lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fault::FaultDisk;

    #[test]
    fn nothing_is_synced_and_all_the_rest_is_done() {
        let memory = FaultDisk::new(1);
        let disk = Unsynced(memory.clone());
        let path = Path::new("file");
        let file = disk.create(path).unwrap();
        file.write_at(b"bytes", 0).unwrap();
        let before = memory.operations();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new(".")).unwrap();
        assert_eq!(memory.operations(), before);
        assert!(disk.exists(path).unwrap());
        let after = memory.kill();
        assert_eq!(after.content(path).unwrap(), b"bytes");
    }
}
