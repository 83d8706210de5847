//! The file operations that the WAL and the snapshot files need, as traits.
//!
//! [`RealDisk`] is the operating system's file system; [`fault::FaultDisk`] is an in-memory one that
//! forgets, tears and fails under a seed; [`Unsynced`] never waits for either. Everything above speaks to the traits only, so the same code
//! is what runs and what is tested. Invariant: a method that returned `Ok` has taken effect for later
//! reads; it is *durable* only after [`DiskFile::sync_data`] on the file or, for names,
//! [`Disk::sync_dir`] on the directory.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

#[doc(hidden)]
pub mod fault;
mod real;
mod unsynced;

pub use real::RealDisk;
pub use unsynced::Unsynced;

/// A file system, reduced to what a log store uses. Errors are the operating system's.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Creates a directory and its missing parents, private to the owner (mode 0700), and makes the new
    /// names durable. An existing directory is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Creates an empty file private to the owner (mode 0600), or empties an existing one; open for
    /// reading and writing.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>>;

    /// Moves a file or directory, atomically replacing a file (or empty directory) of the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all it holds.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Names in a directory, ascending. Names that are not UTF-8 are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether a file or directory of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// How [`Disk::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// An open file. Positions are given with each call; there is no cursor.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Length in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `bytes` at `offset`, extending the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Reserves space up to `size` bytes and makes the file at least that long. The new part reads as
    /// zeros. A file system that cannot reserve is no error: the length is then all that changes.
    fn allocate(&self, size: u64) -> io::Result<()>;

    /// Cuts the file to `size` bytes.
    fn truncate(&self, size: u64) -> io::Result<()>;

    /// Makes content and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;

    /// Takes the exclusive lock of the file, until this handle is dropped; false when another handle,
    /// in this process or elsewhere, holds it.
    fn try_lock(&self) -> io::Result<bool>;
}

/// Zeros are written in steps of at most this many bytes.
pub(crate) const ZERO_STEP_BYTES: usize = 1 << 20;

static ZEROS: [u8; ZERO_STEP_BYTES] = [0; ZERO_STEP_BYTES];

/// Writes zeros over `[from, to)`, at most [`ZERO_STEP_BYTES`] in one go.
pub(crate) fn zero_fill(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut offset = from;
    while offset < to {
        let step = (to - offset).min(ZERO_STEP_BYTES as u64);
        // `step` is at most ZERO_STEP_BYTES, so it fits.
        file.write_at(&ZEROS[..step as usize], offset)?;
        offset += step;
    }
    Ok(())
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
pub(crate) fn read_full(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// The directory that holds `path`; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
