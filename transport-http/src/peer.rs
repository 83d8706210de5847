//! A peer: a member of the cluster, and every channel to and from it.
//!
//! Two stream readers that dial it, two stream writers it dials, a pipeline, an inbox with its workers, a prober
//! and one snapshot at a time. Invariant: [`send`](Peer::send) never waits, and each message it cannot queue is
//! counted, reported to raft and logged once in a while.
//!
//! etcd: server/etcdserver/api/rafthttp/peer.go.

use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId,
    handshake::StreamKind,
    lane::{DropReason, Refused},
    raftpb::{Message, MessageType},
    route::{Channel, pick},
    stats::FollowerStats,
};

use crate::{
    activity::Activity,
    environment::Environment,
    inbox::Inbox,
    log_gate::LogGate,
    metrics::PeerMetrics,
    net::PeerUrl,
    outbound::{Outbound, Outbounds},
    pipeline::Pipeline,
    prober::Prober,
    raft::{OutgoingSnapshot, Raft, SnapshotStatus},
    snapshot_sender::{SnapshotSender, SnapshotSlot},
    stream::{
        line::Dues,
        queue,
        reader::StreamReader,
        writer::{Idle, StreamWriter},
    },
    url_picker::UrlPicker,
};

pub(crate) struct Peer {
    id: MemberId,
    env: Arc<Environment>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) follower: Arc<Mutex<FollowerStats>>,
    picker: Arc<UrlPicker>,
    probe_picker: Arc<UrlPicker>,
    msgapp: Arc<StreamWriter>,
    message: Arc<StreamWriter>,
    pipeline: Arc<Pipeline>,
    paused: Arc<AtomicBool>,
    snapshot_under_way: Arc<AtomicBool>,
    dropped: LogGate,
    cancel: CancellationToken,
}

impl Peer {
    /// A peer whose tasks have not begun.
    pub(crate) fn new(env: &Arc<Environment>, id: MemberId, urls: Vec<PeerUrl>) -> Peer {
        let metrics = Arc::new(env.metrics.peer(id));
        let activity = Arc::new(Activity::new(env.config.id, id, Arc::clone(&metrics)));
        let follower = Arc::new(Mutex::new(FollowerStats::default()));
        let writer = |kind| {
            let (env, activity) = (Arc::clone(env), Arc::clone(&activity));
            Arc::new(StreamWriter::new(
                kind,
                id,
                env,
                activity,
                Arc::clone(&metrics),
                Arc::clone(&follower),
            ))
        };
        let picker = Arc::new(UrlPicker::new(urls.clone()));
        let cancel = env.cancel.child_token();
        let pipeline = Arc::new(Pipeline {
            peer: id,
            env: Arc::clone(env),
            queue: Pipeline::queue(env, &metrics),
            picker: Arc::clone(&picker),
            activity: Some(Arc::clone(&activity)),
            follower: Some(Arc::clone(&follower)),
            metrics: Arc::clone(&metrics),
            cancel: cancel.clone(),
        });
        Peer {
            id,
            env: Arc::clone(env),
            msgapp: writer(StreamKind::MsgAppV2),
            message: writer(StreamKind::Message),
            probe_picker: Arc::new(UrlPicker::new(urls)),
            picker,
            pipeline,
            activity,
            metrics,
            follower,
            paused: Arc::default(),
            snapshot_under_way: Arc::default(),
            dropped: LogGate::default(),
            cancel,
        }
    }

    /// Starts every task of the peer.
    pub(crate) fn start<R: Raft>(&self, raft: &Arc<R>) {
        let env = &self.env;
        let inbox = Arc::new(Inbox::new(env, self.id, Arc::clone(&self.metrics)));
        env.spawn(Arc::clone(&inbox).work_receive(Arc::clone(raft), self.cancel.clone()));
        env.spawn(Arc::clone(&inbox).work_proposals(Arc::clone(raft), self.cancel.clone()));
        for kind in StreamKind::ALL {
            let reader = StreamReader {
                kind,
                peer: self.id,
                env: Arc::clone(env),
                picker: Arc::clone(&self.picker),
                activity: Arc::clone(&self.activity),
                metrics: Arc::clone(&self.metrics),
                stream_metrics: self.metrics.stream_in(queue(kind)),
                inbox: Arc::clone(&inbox),
                paused: Arc::clone(&self.paused),
                refused: LogGate::default(),
                opened: LogGate::default(),
                closed: LogGate::default(),
            };
            env.spawn(reader.run(self.cancel.clone()));
        }
        let prober = Prober {
            peer: self.id,
            picker: Arc::clone(&self.probe_picker),
            dialer: env.dialer.clone(),
            answer_timeout: env.config.read_timeout,
            round_trip: self.metrics.round_trip.clone(),
        };
        env.spawn(prober.run(self.cancel.clone()));
    }

    /// Queues the messages for this peer that come first, each on the channel it belongs to.
    pub(crate) fn send(&self, messages: &mut Outbounds<'_>, dues: &mut Dues) {
        let paused = self.paused.load(Ordering::Relaxed);
        let (mut msgapp, mut other) = (self.msgapp.is_attached(), self.message.is_attached());
        let mut carried = None;
        while let Some(message) = carried
            .take()
            .or_else(|| messages.next_if(|message| message.to == self.id.0))
        {
            if paused {
                self.message.dropped(DropReason::Paused);
                continue;
            }
            let Some(kind) = message.as_ref().kind() else {
                self.message.dropped(DropReason::UnknownType);
                continue;
            };
            let channel = pick(kind, msgapp, other);
            let writer = match channel {
                Channel::MsgAppV2 => &self.msgapp,
                Channel::Message => &self.message,
                Channel::Pipeline => {
                    if let Err(refused) = self.pipeline.send(message) {
                        self.not_queued(channel, &refused);
                    }
                    continue;
                }
            };
            let same_channel = |next: &Message| {
                next.to == self.id.0
                    && next
                        .kind()
                        .is_some_and(|kind| pick(kind, msgapp, other) == channel)
            };
            let run = iter::from_fn(|| messages.next_if(same_channel));
            match writer.push_all(message, run, dues) {
                Ok(refused) => refused
                    .iter()
                    .for_each(|back| self.not_queued(channel, back)),
                // The stream broke since the choice: the next channel takes the message.
                Err(Idle(back)) => {
                    match channel {
                        Channel::MsgAppV2 => msgapp = false,
                        _ => other = false,
                    }
                    carried = Some(back);
                }
            }
        }
    }

    fn not_queued(&self, channel: Channel, refused: &Refused<Outbound>) {
        let message = refused.message.as_ref();
        self.env.reports.report_unreachable(self.id);
        if message.kind() == Some(MessageType::Snapshot) {
            self.env
                .reports
                .report_snapshot(self.id, SnapshotStatus::Failure);
        }
        self.metrics.sent_failures.increment(1);
        if let Some(held_back) = self.dropped.open() {
            tracing::warn!(
                "message-type" = ?message.kind(),
                "local-member-id" = %self.env.config.id,
                from = %MemberId(message.from),
                "remote-peer-id" = %self.id,
                "remote-peer-name" = %channel,
                "remote-peer-active" = self.activity.is_active(),
                reason = %refused.reason,
                "held-back" = held_back,
                "dropped internal Raft message since sending buffer is full (overloaded network)"
            );
        }
    }

    /// Sends a snapshot in a task of its own, or fails it at once when one is under way already. A pause does not
    /// concern it.
    pub(crate) fn send_snapshot(&self, mut snapshot: OutgoingSnapshot) {
        let permit = Arc::clone(&self.env.snapshot_sends).try_acquire_owned();
        let Ok(permit) = permit else {
            return self.refuse_snapshot(&mut snapshot, "too many snapshots are being sent");
        };
        if self.cancel.is_cancelled() {
            return self.refuse_snapshot(&mut snapshot, "the peer is stopped");
        }
        if self.snapshot_under_way.swap(true, Ordering::Relaxed) {
            return self.refuse_snapshot(&mut snapshot, "a snapshot is already on its way");
        }
        let sender = SnapshotSender {
            peer: self.id,
            dialer: self.env.dialer.clone(),
            identity: Arc::clone(&self.env.identity),
            picker: Arc::clone(&self.picker),
            activity: Arc::clone(&self.activity),
            reports: Arc::clone(&self.env.reports),
            metrics: Arc::clone(&self.metrics),
            snapshot_metrics: self.env.metrics.snapshot_send(self.id),
            pace: Arc::clone(&self.env.snapshot_pace),
            chunk_timeout: self.env.config.limits.snapshot_chunk_timeout,
            answer_timeout: self.env.config.limits.snapshot_answer_timeout,
        };
        let slot = SnapshotSlot {
            under_way: Arc::clone(&self.snapshot_under_way),
            _permit: permit,
        };
        self.env
            .spawn(sender.run(snapshot, slot, self.cancel.clone()));
    }

    fn refuse_snapshot(&self, snapshot: &mut OutgoingSnapshot, reason: &'static str) {
        tracing::warn!("remote-peer-id" = %self.id, reason, "refused to send database snapshot");
        self.metrics.sent_failures.increment(1);
        self.env
            .metrics
            .snapshot_send(self.id)
            .failures
            .increment(1);
        self.env
            .reports
            .report_snapshot(self.id, SnapshotStatus::Failure);
        snapshot.finish(false);
    }

    /// The writer a stream request of this kind attaches to.
    pub(crate) fn writer(&self, kind: StreamKind) -> &Arc<StreamWriter> {
        match kind {
            StreamKind::MsgAppV2 => &self.msgapp,
            StreamKind::Message => &self.message,
        }
    }

    /// Replaces the URLs; open connections stay.
    pub(crate) fn update(&self, urls: Vec<PeerUrl>) {
        self.probe_picker.update(urls.clone());
        self.picker.update(urls);
    }

    pub(crate) fn active_since(&self) -> Option<Instant> {
        self.activity.active_since()
    }

    /// Drops what is sent and what is received on streams, snapshots apart; connections stay up.
    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Ends the streams and tells every task to end; the transport's tracker joins them.
    pub(crate) fn stop(&self) {
        self.activity.close();
        self.cancel.cancel();
        self.msgapp.stop();
        self.message.stop();
        self.pipeline.queue.stop();
    }
}
