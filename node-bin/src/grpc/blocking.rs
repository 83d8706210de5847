//! Work that may take longer than a thread that serves sockets can be spared.
//!
//! Runs on tokio's blocking threads, of which there is a bounded number; what waits for one waits in its request's
//! own task.

use super::error::ServerError;

/// Runs a scan of the store, or the encoding of what it found, beside the threads that serve sockets. It ends by itself
/// when its caller is gone.
///
/// # Errors
/// `Other` if the work panicked, `Stopped` if the runtime is going down.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServerError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        if error.is_panic() {
            ServerError::Other("etcdserver: reading the store failed".into())
        } else {
            ServerError::Stopped
        }
    })
}
