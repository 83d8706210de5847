//! Whether a peer can be reached, as all its channels see it together: one log line and one count per transition.
//!
//! Wraps the pure status of transport-core. Invariant: after [`close`](Activity::close) nothing changes any more,
//! and the gauge no longer counts this peer; whatever still runs for it cannot bring it back.
//!
//! etcd: server/etcdserver/api/rafthttp/peer_status.go.

use std::{fmt, sync::Arc, time::Instant};

use parking_lot::Mutex;
use transport_core::{
    MemberId,
    status::{Action, PeerStatus, Source, Transition},
};

use crate::metrics::PeerMetrics;

pub(crate) struct Activity {
    local: MemberId,
    peer: MemberId,
    status: Mutex<(PeerStatus, bool)>,
    metrics: Arc<PeerMetrics>,
}

impl Activity {
    pub(crate) fn new(local: MemberId, peer: MemberId, metrics: Arc<PeerMetrics>) -> Self {
        Activity {
            local,
            peer,
            status: Mutex::new((PeerStatus::new(), false)),
            metrics,
        }
    }

    /// Something got through.
    pub(crate) fn activate(&self) {
        let mut status = self.status.lock();
        if status.1 || status.0.activate(Instant::now()) != Transition::Activated {
            return;
        }
        self.metrics.active.increment(1.0);
        drop(status);
        tracing::info!("local-member-id" = %self.local, "peer-id" = %self.peer, "peer became active");
    }

    /// Something failed.
    pub(crate) fn deactivate(&self, source: Source, action: Action, reason: &dyn fmt::Display) {
        let mut status = self.status.lock();
        if status.1 {
            return;
        }
        if status.0.deactivate() == Transition::Deactivated {
            self.metrics.active.decrement(1.0);
            self.metrics.disconnected.increment(1);
            drop(status);
            tracing::warn!(
                "local-member-id" = %self.local,
                "peer-id" = %self.peer,
                source = %source,
                action = %action,
                error = %reason,
                "peer became inactive (message send to peer failed)"
            );
        } else {
            drop(status);
            tracing::debug!(
                "peer-id" = %self.peer,
                source = %source,
                action = %action,
                error = %reason,
                "peer is inactive"
            );
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.status.lock().0.is_active()
    }

    pub(crate) fn active_since(&self) -> Option<Instant> {
        self.status.lock().0.active_since()
    }

    /// The peer is gone.
    pub(crate) fn close(&self) {
        let mut status = self.status.lock();
        if !status.1 && status.0.deactivate() == Transition::Deactivated {
            self.metrics.active.decrement(1.0);
        }
        status.1 = true;
    }
}
