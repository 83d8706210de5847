//! A remote: somebody to answer who is not (yet) a member here. Pipeline only.
//!
//! A node that joins or lags knows members it cannot have as peers yet, and is known to members that are not its
//! own. Invariant: a remote never becomes a peer; when the id is also a peer, the peer gets the messages.
//!
//! etcd: server/etcdserver/api/rafthttp/remote.go.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    lane::{DropReason, Refused},
};

use crate::{
    environment::Environment, log_gate::LogGate, metrics::PeerMetrics, net::PeerUrl,
    outbound::Outbound, pipeline::Pipeline, url_picker::UrlPicker,
};

pub(crate) struct Remote {
    id: MemberId,
    /// Created by the owner, not by a header: never dropped for want of use.
    pub(crate) pinned: bool,
    pipeline: Arc<Pipeline>,
    pub(crate) metrics: Arc<PeerMetrics>,
    paused: AtomicBool,
    used: Mutex<Instant>,
    full: LogGate,
    cancel: CancellationToken,
}

impl Remote {
    /// A remote whose tasks have not begun.
    pub(crate) fn new(
        env: &Arc<Environment>,
        id: MemberId,
        urls: Vec<PeerUrl>,
        pinned: bool,
    ) -> Remote {
        let metrics = if pinned {
            env.metrics.peer(id)
        } else {
            env.metrics.introduced(id)
        };
        let metrics = Arc::new(metrics);
        let cancel = env.cancel.child_token();
        let pipeline = Arc::new(Pipeline {
            peer: id,
            env: Arc::clone(env),
            queue: Pipeline::queue(env, &metrics),
            picker: Arc::new(UrlPicker::new(urls)),
            activity: None,
            follower: None,
            metrics: Arc::clone(&metrics),
            cancel: cancel.clone(),
        });
        Remote {
            id,
            pinned,
            pipeline,
            metrics,
            paused: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            full: LogGate::default(),
            cancel,
        }
    }

    /// Tells that it is there.
    pub(crate) fn announce(&self) {
        tracing::info!(
            "local-member-id" = %self.pipeline.env.config.id,
            "remote-peer-id" = %self.id,
            "started remote peer pipeline"
        );
    }

    /// Queues a message; a full queue drops it without a report to raft, which does not track remotes.
    pub(crate) fn send(&self, message: Outbound) {
        if self.paused.load(Ordering::Relaxed) {
            self.pipeline.queue.dropped(DropReason::Paused, 1);
            return;
        }
        *self.used.lock() = Instant::now();
        if let Err(Refused { message, reason }) = self.pipeline.send(message) {
            self.metrics.sent_failures.increment(1);
            if let Some(held_back) = self.full.open() {
                tracing::warn!(
                    "message-type" = ?message.as_ref().kind(),
                    "remote-peer-id" = %self.id,
                    reason = %reason,
                    "held-back" = held_back,
                    "dropped Raft message since sending buffer is full (overloaded network)"
                );
            }
        }
    }

    /// When a message was last sent to it.
    pub(crate) fn used(&self) -> Instant {
        *self.used.lock()
    }

    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
        self.pipeline.queue.clear(DropReason::Paused);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Tells the workers to end; the transport's tracker joins them.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        self.pipeline.queue.stop();
    }
}
