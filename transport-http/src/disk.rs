//! The disk work of snapshots, one step at a time.
//!
//! A step is a read or a few writes, and has a blocking thread for as long as it lasts; nothing that waits for the
//! network holds one. Work that never blocks runs where it is asked for, so that it takes no time a simulated clock
//! does not know of. Invariant: the steps of one transfer never overlap, so each owns what it works on.

use std::io;

/// Runs one step; `blocks` says whether it needs a thread.
pub(crate) async fn step<T: Send + 'static>(
    blocks: bool,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if !blocks {
        return work();
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Drops what holds a file: closing one, or removing it, may take a disk's time as well.
pub(crate) async fn let_go<T: Send + 'static>(blocks: bool, held: T) -> io::Result<()> {
    step(blocks, move || {
        drop(held);
        Ok(())
    })
    .await
}
