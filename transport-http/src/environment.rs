//! What every peer and remote of one transport shares.

use std::{future::Future, sync::Arc};

use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport_core::handshake::Identity;

use crate::{
    client::Dialer, config::TransportConfig, metrics::Metrics, pace::Pace, reports::Reports,
    sent::SentEntries,
};

/// Configuration, connections, tasks. Every task of the transport is spawned through it, and so is joined.
pub(crate) struct Environment {
    pub(crate) config: TransportConfig,
    pub(crate) identity: Arc<Identity>,
    pub(crate) dialer: Dialer,
    pub(crate) metrics: Metrics,
    pub(crate) sent: SentEntries,
    pub(crate) reports: Arc<dyn Reports>,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    /// The runtime it was started in: peers may be added from threads outside of it.
    pub(crate) runtime: Handle,
    /// Snapshots under way to any peer.
    pub(crate) snapshot_sends: Arc<Semaphore>,
    pub(crate) snapshot_pace: Arc<Pace>,
}

impl Environment {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // The tracker holds the handle; `stop` waits for all of them.
        drop(self.tracker.spawn_on(task, &self.runtime));
    }
}
