//! From a view of the backend to a database file in etcd's format.
//!
//! Every bucket etcd expects is in the file, also when it is empty, and every row as it is in the view: what the
//! receiver checks (consistent index, term, configuration) are rows like the others. Only the version of the schema
//! is decided here: it follows the cluster version and is no replicated state (etcd: etcdserver/version/monitor.go).

use std::{
    io::{self, BufWriter, Seek, Write},
    ops::{Bound, ControlFlow},
};

use crate::{
    backend::{BackendError, Bucket, View, WHOLE},
    bolt::write::BoltWriter,
    membership::Membership,
    version::{Version, storage_version},
};

/// Key of the schema's version in bucket `meta`.
const STORAGE_VERSION: &[u8] = b"storageVersion";
/// Bytes that are gathered for a write.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes the rows of a view at the present place of `to`, flushes, and returns the length of the file, a whole
/// number of pages. Making it durable is the caller's.
///
/// # Errors
/// Those of `to`; of kind `InvalidData` when the view cannot be read, `InvalidInput` when a row has no place in such
/// a file.
pub fn write_bolt(view: &dyn View, to: &mut (impl Write + Seek)) -> io::Result<u64> {
    let cluster_version = Membership::load(view)
        .map_err(unreadable)?
        .cluster_version();
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
    let mut writer = BoltWriter::new(&mut to)?;
    for bucket in Bucket::ALL {
        writer.bucket(bucket.name().as_bytes())?;
        match bucket {
            Bucket::Meta => copy_meta(view, storage_version(cluster_version), &mut writer)?,
            _ => copy(view, bucket, WHOLE, &mut writer)?,
        }
    }
    writer.finish()
}

/// A version above a member's own, or any in a cluster below 3.6, is fatal to Go's members.
fn copy_meta<W: Write + Seek>(
    view: &dyn View,
    version: Option<Version>,
    to: &mut BoltWriter<'_, W>,
) -> io::Result<()> {
    use Bound::{Excluded, Unbounded};
    copy(
        view,
        Bucket::Meta,
        (Unbounded, Excluded(STORAGE_VERSION)),
        to,
    )?;
    if let Some(version) = version {
        to.row(STORAGE_VERSION, version.to_string().as_bytes())?;
    }
    copy(
        view,
        Bucket::Meta,
        (Excluded(STORAGE_VERSION), Unbounded),
        to,
    )
}

fn copy<W: Write + Seek>(
    view: &dyn View,
    bucket: Bucket,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    to: &mut BoltWriter<'_, W>,
) -> io::Result<()> {
    let mut outcome = Ok(());
    let scanned = view.scan(bucket, range, &mut |key, value| {
        outcome = to.row(key, value);
        match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    });
    outcome.and(scanned.map_err(unreadable))
}

fn unreadable(error: BackendError) -> io::Error {
    match error {
        BackendError::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}
