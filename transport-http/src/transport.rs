//! The public handle: who the peers are, and the way to them.
//!
//! Invariant: [`send`](Transport::send) never waits and keeps the order of what it is given per channel; after
//! [`stop`](Transport::stop) no task of the transport runs any more.
//!
//! etcd: server/etcdserver/api/rafthttp/transport.go, `Transport`.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Weak},
    time::Instant,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport_core::{
    MemberId,
    handshake::{Introduction, Membership},
    lane::{DropReason, SharedBudget},
    raftpb::Message,
    stats::LeaderStats,
};

use crate::{
    client::Dialer,
    config::TransportConfig,
    environment::Environment,
    error::{CriticalError, StartError, UrlError},
    log_gate::LogGate,
    metrics::{EndedSeries, Metrics, PeerMetrics},
    net::PeerUrl,
    outbound::{Outbounds, has_appends},
    pace::Pace,
    peer::Peer,
    raft::{OutgoingSnapshot, Raft, SnapshotSink, SnapshotStatus},
    remote::Remote,
    reports::Owner,
    roster::{CurrentRoster, REMOTE_SWEEP, Roster},
    sent::{SentEntries, give_back},
    stream::line::Dues,
};

/// Exchanges raft messages with the other members of a cluster. Cheap to clone: all clones are one transport.
pub struct Transport<R: Raft>(Arc<Shared<R>>);

pub(crate) struct Shared<R: Raft> {
    pub(crate) env: Arc<Environment>,
    pub(crate) owner: Arc<Owner<R>>,
    pub(crate) sink: Arc<dyn SnapshotSink>,
    roster: CurrentRoster,
    /// Snapshots being received.
    pub(crate) snapshot_receives: Arc<Semaphore>,
    /// Bodies of POSTs in progress.
    pub(crate) posted: SharedBudget,
    refused_remotes: LogGate,
}

impl<R: Raft> Transport<R> {
    /// Starts a transport without peers, inside a tokio runtime. Received databases go to `sink`.
    pub fn start(
        config: TransportConfig,
        raft: Arc<R>,
        sink: Arc<dyn SnapshotSink>,
    ) -> Result<Self, StartError> {
        let runtime = Handle::try_current()?;
        if config.id == MemberId(0) {
            return Err(StartError::NoMemberId);
        }
        for (name, limit) in [
            ("dial_timeout", config.dial_timeout.is_zero()),
            ("read_timeout", config.read_timeout.is_zero()),
            ("write_timeout", config.write_timeout.is_zero()),
            ("limits.flush_bytes", config.limits.flush_bytes == 0),
            ("limits.connections", config.limits.connections == 0),
        ] {
            if limit {
                return Err(StartError::Zero(name));
            }
        }
        let owner = Arc::new(Owner {
            raft,
            critical: watch::Sender::new(None),
        });
        let metrics = Metrics::new(config.recorder.clone(), config.id);
        let env = Arc::new(Environment {
            identity: Arc::new(config.identity()),
            dialer: Dialer::new(&config),
            sent: SentEntries::new(&metrics),
            metrics,
            reports: Arc::clone(&owner) as _,
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
            runtime,
            snapshot_sends: Arc::new(Semaphore::new(config.limits.snapshot_sends)),
            snapshot_pace: Arc::new(Pace::new(config.limits.snapshot_bytes_per_second)),
            config,
        });
        let limits = &env.config.limits;
        let transport = Transport(Arc::new(Shared {
            owner,
            sink,
            roster: CurrentRoster::default(),
            snapshot_receives: Arc::new(Semaphore::new(limits.snapshot_receives)),
            posted: SharedBudget::new(limits.post_total_bytes),
            refused_remotes: LogGate::default(),
            env,
        }));
        let env = &transport.0.env;
        env.spawn(sweep(Arc::downgrade(&transport.0), env.cancel.clone()));
        env.spawn(give_back(Arc::clone(env)));
        Ok(transport)
    }

    /// Queues messages, each for the member in its `to`. Never waits; messages without a target are ignored, and
    /// those to members nobody knows are counted.
    pub fn send(&self, mut messages: Vec<Message>) {
        if messages.is_empty() {
            return;
        }
        let roster = self.roster();
        let mut dues = Dues::default();
        // Nobody else gets what a single peer does.
        let shares = roster.peers.len() > 1 && has_appends(&messages);
        let mut messages = if shares {
            self.0.env.sent.share(&mut messages)
        } else {
            Outbounds::new(&mut messages, None)
        };
        while let Some(to) = messages.first().map(|message| message.to) {
            if let Some(peer) = roster.peers.get(&to) {
                // All that follow for the same peer, too.
                peer.send(&mut messages, &mut dues);
                continue;
            }
            let Some(message) = messages.next() else {
                break;
            };
            if to == 0 {
                continue;
            }
            if let Some(remote) = roster.remotes.get(&to) {
                remote.send(message);
            } else {
                let unrouted = &self.0.env.metrics.unrouted;
                unrouted.count(DropReason::UnknownPeer, 1);
                tracing::debug!(
                    "message-type" = ?message.as_ref().kind(),
                    "unknown-target-peer-id" = %MemberId(to),
                    "ignored message send request; unknown remote peer target"
                );
            }
        }
        // Only now: a connection that writes earlier would write what is there, a message at a time.
        dues.write();
    }

    /// Sends a snapshot with its database, in the background. How it ends is reported to raft, also when the peer
    /// is unknown.
    pub fn send_snapshot(&self, mut snapshot: OutgoingSnapshot) {
        let to = snapshot.message.to;
        if let Some(peer) = self.roster().peers.get(&to) {
            return peer.send_snapshot(snapshot);
        }
        tracing::warn!("remote-peer-id" = %MemberId(to), "refused to send database snapshot to an unknown peer");
        self.0
            .owner
            .raft
            .report_snapshot(MemberId(to), SnapshotStatus::Failure);
        snapshot.finish(false);
    }

    /// Starts talking to a member. Ignored if it is a peer already, is the local member, or the transport is
    /// stopped.
    pub fn add_peer(&self, id: MemberId, urls: &[String]) -> Result<(), UrlError> {
        let parsed = PeerUrl::parse_list(urls)?;
        if self.refuses(id) || self.roster().peers.contains_key(&id.0) {
            return Ok(());
        }
        // A stop that comes now waits for what is begun here.
        let _begun = self.0.env.tracker.token();
        let peer = Arc::new(Peer::new(&self.0.env, id, parsed));
        let is_new = self.0.roster.change(|roster| {
            let is_new = !self.refuses(id) && !roster.peers.contains_key(&id.0);
            if is_new {
                roster.peers.insert(id.0, Arc::clone(&peer));
            }
            is_new
        });
        if !is_new {
            return Ok(());
        }
        peer.start(&self.0.owner.raft);
        tracing::info!(
            "local-member-id" = %self.0.env.config.id,
            "remote-peer-id" = %id,
            "remote-peer-urls" = ?urls,
            "added remote peer"
        );
        Ok(())
    }

    /// Makes a member reachable that is not a peer (yet), by pipeline only. Ignored if the id is known already.
    pub fn add_remote(&self, id: MemberId, urls: &[String]) -> Result<(), UrlError> {
        self.insert_remote(id, PeerUrl::parse_list(urls)?, true);
        Ok(())
    }

    /// Replaces a peer's URLs; open connections stay. Unknown ids are ignored.
    pub fn update_peer(&self, id: MemberId, urls: &[String]) -> Result<(), UrlError> {
        let parsed = PeerUrl::parse_list(urls)?;
        let Some(peer) = self.roster().peers.get(&id.0).cloned() else {
            return Ok(());
        };
        peer.update(parsed);
        tracing::info!(
            "local-member-id" = %self.0.env.config.id,
            "remote-peer-id" = %id,
            "remote-peer-urls" = ?urls,
            "updated remote peer"
        );
        Ok(())
    }

    /// Stops talking to a member; its streams end properly. Unknown ids are ignored.
    pub fn remove_peer(&self, id: MemberId) {
        let (peer, remote) = self.0.roster.change(|roster| roster.remove(id));
        if let Some(remote) = remote {
            remote.stop();
        }
        if let Some(peer) = peer {
            self.stop_peer(id, &peer);
        }
    }

    /// [`remove_peer`](Self::remove_peer) for all of them; remotes stay.
    pub fn remove_all_peers(&self) {
        let removed = (self.0.roster).change(|roster| std::mem::take(&mut roster.peers));
        for (id, peer) in removed {
            self.stop_peer(MemberId(id), &peer);
        }
    }

    /// Since when the peer can be reached without a break; `None` while it cannot, or when it is unknown.
    pub fn active_since(&self, id: MemberId) -> Option<Instant> {
        self.roster().peers.get(&id.0)?.active_since()
    }

    /// How many peers can be reached.
    pub fn active_peers(&self) -> usize {
        self.roster()
            .peers
            .values()
            .filter(|peer| peer.active_since().is_some())
            .count()
    }

    /// The peers, by id.
    pub fn peers(&self) -> Vec<MemberId> {
        self.roster().peers.keys().copied().map(MemberId).collect()
    }

    /// How sending appends to each peer went. A stream counts one sample per write.
    pub fn leader_stats(&self) -> LeaderStats {
        let mut stats = LeaderStats::new(self.0.env.config.id);
        for (id, peer) in &self.roster().peers {
            *stats.follower(MemberId(*id)) = *peer.follower.lock();
        }
        stats
    }

    /// For tests: drops what is exchanged with one member, as a cut cable would; connections stay up.
    pub fn cut_peer(&self, id: MemberId) {
        let roster = self.roster();
        roster.peers.get(&id.0).inspect(|peer| peer.pause());
        roster.remotes.get(&id.0).inspect(|remote| remote.pause());
    }

    /// For tests: undoes [`cut_peer`](Self::cut_peer).
    pub fn mend_peer(&self, id: MemberId) {
        let roster = self.roster();
        roster.peers.get(&id.0).inspect(|peer| peer.resume());
        roster.remotes.get(&id.0).inspect(|remote| remote.resume());
    }

    /// For tests: drops what is exchanged with every peer.
    pub fn pause(&self) {
        self.roster().peers.values().for_each(|peer| peer.pause());
    }

    /// For tests: undoes [`pause`](Self::pause).
    pub fn resume(&self) {
        self.roster().peers.values().for_each(|peer| peer.resume());
    }

    /// Waits for an error after which the owner must stop the member; for ever if there is none.
    pub fn critical_error(&self) -> impl Future<Output = CriticalError> + Send + use<R> {
        let mut errors = self.0.owner.critical.subscribe();
        async move {
            loop {
                if let Some(error) = errors.borrow_and_update().clone() {
                    return error;
                }
                if errors.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Ends every stream properly, stops every task and waits for all of them. Idempotent.
    pub async fn stop(&self) {
        let roster = self.0.roster.change(|roster| {
            self.0.env.cancel.cancel();
            std::mem::take(roster)
        });
        for remote in roster.remotes.values() {
            remote.stop();
        }
        for (id, peer) in &roster.peers {
            self.stop_peer(MemberId(*id), peer);
        }
        self.0.env.tracker.close();
        self.0.env.tracker.wait().await;
    }

    /// Which series of metrics belong to peers that are gone: whoever renders them should leave these out.
    pub fn ended_series(&self) -> EndedSeries {
        self.0.env.metrics.ended().clone()
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &TransportConfig {
        &self.0.env.config
    }

    pub(crate) fn shared(&self) -> &Shared<R> {
        &self.0
    }

    pub(crate) fn roster(&self) -> Arc<Roster> {
        self.0.roster.get()
    }

    /// Adds who introduced itself in a request, unless it is known or must not be known.
    pub(crate) fn introduce(&self, introduction: &Introduction) {
        let id = introduction.id;
        // Most requests come from peers: no need to look at their URLs.
        if self.refuses(id) || self.roster().knows(id) {
            return;
        }
        if self.0.owner.raft.is_id_removed(id) {
            return;
        }
        match PeerUrl::parse_list(&introduction.urls) {
            Ok(urls) => self.insert_remote(id, urls, false),
            Err(error) => {
                if let Some(held_back) = self.0.refused_remotes.open() {
                    tracing::warn!(
                        "remote-peer-id" = %id,
                        error = %error,
                        "held-back" = held_back,
                        "ignored the peer URLs of a request"
                    );
                }
            }
        }
    }

    /// Handles of a peer's metrics, if it is one.
    pub(crate) fn peer_metrics(&self, id: MemberId) -> Option<Arc<PeerMetrics>> {
        let roster = self.roster();
        let peer = roster
            .peers
            .get(&id.0)
            .map(|peer| Arc::clone(&peer.metrics));
        peer.or_else(|| {
            roster
                .remotes
                .get(&id.0)
                .map(|remote| Arc::clone(&remote.metrics))
        })
    }

    fn refuses(&self, id: MemberId) -> bool {
        id == MemberId(0) || id == self.0.env.config.id || self.0.env.cancel.is_cancelled()
    }

    fn insert_remote(&self, id: MemberId, urls: Vec<PeerUrl>, pinned: bool) {
        let remotes_max = self.0.env.config.limits.remotes;
        // Who has no room must not even leave its id in the metrics.
        if !pinned && !self.roster().has_room(remotes_max) {
            return self.refuse_remote(id);
        }
        let _begun = self.0.env.tracker.token();
        let remote = Arc::new(Remote::new(&self.0.env, id, urls, pinned));
        let (fits, ended) = self.0.roster.change(|roster| {
            if self.refuses(id) || roster.knows(id) {
                return (None, Vec::new());
            }
            if pinned {
                roster.remotes.insert(id.0, Arc::clone(&remote));
                return (Some(true), Vec::new());
            }
            let (fits, ended) = roster.introduce(id, Arc::clone(&remote), remotes_max);
            (Some(fits), ended)
        });
        ended.iter().for_each(|remote| remote.stop());
        match fits {
            Some(true) => remote.announce(),
            Some(false) => self.refuse_remote(id),
            None => {}
        }
    }

    fn refuse_remote(&self, id: MemberId) {
        if let Some(held_back) = self.0.refused_remotes.open() {
            tracing::warn!("remote-peer-id" = %id, "held-back" = held_back, "refused a remote: there are too many");
        }
    }

    fn stop_peer(&self, id: MemberId, peer: &Peer) {
        peer.stop();
        tracing::info!(
            "local-member-id" = %self.0.env.config.id,
            "removed-remote-peer-id" = %id,
            "removed remote peer"
        );
    }
}

/// Ends remotes that nobody needs any more, until cancelled.
async fn sweep<R: Raft>(shared: Weak<Shared<R>>, cancel: CancellationToken) {
    while (cancel.run_until_cancelled(sleep(REMOTE_SWEEP)).await).is_some()
        && let Some(shared) = shared.upgrade()
    {
        let roster = shared.roster.get();
        let mut removed: Vec<u64> = roster.remotes.keys().copied().collect();
        removed.retain(|id| shared.owner.raft.is_id_removed(MemberId(*id)));
        if !roster.remotes.is_empty() {
            let ended = shared.roster.change(|roster| roster.sweep(&removed));
            ended.iter().for_each(|remote| remote.stop());
        }
    }
}

/// The last handle is gone without a stop: nobody is left to wait, but every task ends.
impl<R: Raft> Drop for Shared<R> {
    fn drop(&mut self) {
        self.env.cancel.cancel();
        let roster = self.roster.get();
        roster.peers.values().for_each(|peer| peer.stop());
        roster.remotes.values().for_each(|remote| remote.stop());
    }
}

impl<R: Raft> Membership for Transport<R> {
    fn is_removed(&self, id: MemberId) -> bool {
        self.0.owner.raft.is_id_removed(id)
    }

    fn is_peer(&self, id: MemberId) -> bool {
        self.roster().peers.contains_key(&id.0)
    }
}

impl<R: Raft> Clone for Transport<R> {
    fn clone(&self) -> Self {
        Transport(Arc::clone(&self.0))
    }
}

impl<R: Raft> fmt::Debug for Transport<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("config", self.config())
            .field("peers", &self.peers())
            .finish()
    }
}
