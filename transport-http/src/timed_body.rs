//! A request body under deadlines: one for each read, one for the progress of the whole.
//!
//! Depends on hyper's body and the clock. Invariant: however a sender spaces its bytes, it brings
//! `body_progress_bytes` per window of waiting or is given up; the time a slow disk of ours takes is not its fault and
//! does not count.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use crate::config::TransportConfig;

pub(crate) struct TimedBody {
    body: Incoming,
    read_timeout: Duration,
    progress: Progress,
}

/// What came, and how long it was waited for, in the current window.
struct Progress {
    bytes_min: u64,
    window: Duration,
    bytes: u64,
    waited: Duration,
}

impl Progress {
    /// Whether the sender is fast enough.
    fn suffices(&mut self, bytes: usize, waited: Duration) -> bool {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < self.window {
            return true;
        }
        let suffices = self.bytes >= self.bytes_min;
        (self.bytes, self.waited) = (0, Duration::ZERO);
        suffices
    }
}

fn too_slow(text: &'static str) -> Option<io::Result<Bytes>> {
    Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
}

impl TimedBody {
    pub(crate) fn new(body: Incoming, config: &TransportConfig) -> Self {
        TimedBody {
            body,
            read_timeout: config.read_timeout,
            progress: Progress {
                bytes_min: config.limits.body_progress_bytes,
                window: config.limits.body_progress_window,
                bytes: 0,
                waited: Duration::ZERO,
            },
        }
    }

    /// The next piece, `None` at a proper end.
    pub(crate) async fn chunk(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let begun = Instant::now();
            let frame = match timeout(self.read_timeout, self.body.frame()).await {
                Ok(frame) => frame?,
                Err(_) => return too_slow("the sender is silent"),
            };
            match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) if self.progress.suffices(data.len(), begun.elapsed()) => {
                    return Some(Ok(data));
                }
                Ok(Ok(_)) => return too_slow("the sender is too slow"),
                // Trailers.
                Ok(Err(_)) => {}
                Err(error) => {
                    return Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, error)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_of_waiting_must_bring_its_bytes() {
        let mut progress = Progress {
            bytes_min: 100,
            window: Duration::from_secs(10),
            bytes: 0,
            waited: Duration::ZERO,
        };
        let second = Duration::from_secs(1);
        assert!((0..9).all(|_| progress.suffices(11, second)));
        assert!(progress.suffices(1, second), "100 in 10 s");
        assert!((0..9).all(|_| progress.suffices(11, second)));
        assert!(!progress.suffices(0, second), "99 in 10 s");
        // A fast sender never fills a window.
        assert!((0..1000).all(|_| progress.suffices(1 << 20, Duration::ZERO)));
    }
}
