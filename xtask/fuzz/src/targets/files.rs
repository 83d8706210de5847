//! The readers of files that another program may have written: logs, snapshot files, databases.

use std::{io, ops::ControlFlow, path::Path};

use kvstore::bolt::read::{BoltFile, ReadAt};
use raft_node::{
    disk::{Disk, fault::FaultDisk},
    snap, wal,
};

/// A log of one segment; a second reading tells the same.
pub fn wal(data: &[u8]) {
    let dir = Path::new("wal");
    let disk = with_file(dir, "0000000000000000-0000000000000000.wal", data);
    let read = || {
        let state = wal::verify(&disk, dir, None).map_err(|error| error.to_string());
        let snapshots = wal::snapshots(&disk, dir).map_err(|error| error.to_string());
        (state, snapshots)
    };
    assert_eq!(read(), read());
}

/// A snapshot file.
pub fn snap(data: &[u8]) {
    let dir = Path::new("snap");
    let name = "0000000000000001-0000000000000001.snap";
    let disk = with_file(dir, name, data);
    let _ = snap::read(&disk, &dir.join(name));
}

fn with_file(dir: &Path, name: &str, data: &[u8]) -> FaultDisk {
    let disk = FaultDisk::new(0);
    disk.create_dir(dir)
        .expect("a disk without a plan does not fail");
    disk.create(&dir.join(name))
        .expect("a disk without a plan does not fail");
    disk.set_content(&dir.join(name), data)
        .expect("the file is there");
    disk
}

/// A bbolt file: every bucket is walked to its end, and no row is longer than the file.
pub fn bolt(data: &[u8]) {
    let Ok(file) = BoltFile::from_source(Memory(data.to_vec())) else {
        return;
    };
    let names: Vec<Vec<u8>> = file.buckets().map(<[u8]>::to_vec).collect();
    for name in names {
        let mut rows = 0_usize;
        let _ = file.scan(&name, &mut |key, value| {
            assert!(key.len() <= data.len() && value.len() <= data.len());
            rows += 1;
            // Pages that lead back to themselves must be noticed, not followed.
            assert!(rows <= data.len());
            ControlFlow::Continue(())
        });
    }
}

/// The tree of members in a snapshot; what is read is rendered, and read back the same.
pub fn v2store(data: &[u8]) {
    let _ = kvstore::v2store::holds_client_keys(data);
    if let Ok(membership) = kvstore::v2store::parse(data) {
        let rendered = kvstore::v2store::render(&membership);
        let again = kvstore::v2store::parse(&rendered).expect("its own rendering");
        assert_eq!(kvstore::v2store::render(&again), rendered);
    }
}

/// A file in memory.
struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.saturating_add(buffer.len());
        let bytes = self.0.get(begin..end);
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
