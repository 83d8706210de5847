//! The receiving side of a stream: dial, decode until it ends, wait, dial again.
//!
//! One task per kind and peer, which also drives its connection. Messages go to the peer's inbox; entry data stay
//! slices of what was read. Invariant: a stream that brings no byte for the read timeout is dropped, so a silent
//! network is noticed within that time; the first retry comes at once, the next ones at the limiter's pace.
//!
//! etcd: server/etcdserver/api/rafthttp/stream.go, `streamReader`.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{self, Duration},
};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use transport_core::{
    MemberId, frame::FrameError, handshake::StreamKind, raftpb::Message, status::Action,
};

use crate::{
    activity::Activity,
    environment::Environment,
    error::{ClientError, CriticalError},
    inbox::Inbox,
    incoming::Incoming,
    limiter::DialLimiter,
    log_gate::LogGate,
    metrics::{LossCause, PeerMetrics, StreamInMetrics, TIMED_EVERY},
    stream::{
        Decoder,
        dial::{DialError, dial},
        source,
    },
    url_picker::UrlPicker,
};

/// How many messages go to the inbox at once at most.
const BATCH_MESSAGES: usize = 32;

/// For how many messages an idle stream keeps room.
const IDLE_BATCH: usize = 4;

/// Why an open stream ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// The peer ended it on purpose: another connection took its place, or it stops.
    #[error("EOF")]
    Ended,
    #[error(transparent)]
    Connection(#[from] ClientError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("no byte for {0:?}")]
    Silent(Duration),
}

impl Lost {
    fn cause(&self) -> LossCause {
        match self {
            Lost::Ended => LossCause::Ended,
            Lost::Connection(_) => LossCause::Connection,
            Lost::Frame(_) => LossCause::Frame,
            Lost::Silent(_) => LossCause::Silent,
        }
    }
}

pub(crate) struct StreamReader {
    pub(crate) kind: StreamKind,
    pub(crate) peer: MemberId,
    pub(crate) env: Arc<Environment>,
    pub(crate) picker: Arc<UrlPicker>,
    pub(crate) activity: Arc<Activity>,
    pub(crate) metrics: Arc<PeerMetrics>,
    pub(crate) stream_metrics: StreamInMetrics,
    pub(crate) inbox: Arc<Inbox>,
    /// While set, frames are read and thrown away.
    pub(crate) paused: Arc<AtomicBool>,
    pub(crate) refused: LogGate,
    pub(crate) opened: LogGate,
    pub(crate) closed: LogGate,
}

impl StreamReader {
    /// Runs until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let limiter = DialLimiter::new(self.env.config.dial_retry_frequency);
        let running = async {
            loop {
                match dial(&self.env, self.kind, self.peer, &self.picker).await {
                    Ok(incoming) => self.receive(incoming).await,
                    Err(error) => self.not_dialled(&error),
                }
                limiter.wait().await;
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = running => {}
        }
    }

    fn not_dialled(&self, error: &DialError) {
        self.stream_metrics.dial_failures.count(error.cause(), 1);
        if error.is_refusal()
            && let Some(held_back) = self.refused.open()
        {
            tracing::warn!(
                "stream-reader-type" = %self.kind,
                "local-member-id" = %self.env.config.id,
                "remote-peer-id" = %self.peer,
                error = %error,
                "held-back" = held_back,
                "request sent was refused by remote peer"
            );
        }
        // An unsupported stream says nothing about the peer but that it is too old.
        if !matches!(error, DialError::Unsupported) {
            self.activity
                .deactivate(source(self.kind), Action::Dial, error);
        }
        if matches!(error, DialError::Removed) {
            let by = self.peer;
            self.env.reports.critical(CriticalError::Removed { by });
        }
    }

    async fn receive(&self, incoming: Incoming) {
        self.activity.activate();
        if let Some(held_back) = self.opened.open() {
            tracing::info!(
                "stream-reader-type" = %self.kind,
                "local-member-id" = %self.env.config.id,
                "remote-peer-id" = %self.peer,
                "held-back" = held_back,
                "established TCP streaming connection with remote peer"
            );
        }
        let lost = self.decode_loop(incoming).await;
        self.stream_metrics.reconnects.count(lost.cause(), 1);
        if let Some(held_back) = self.closed.open() {
            tracing::warn!(
                "stream-reader-type" = %self.kind,
                "local-member-id" = %self.env.config.id,
                "remote-peer-id" = %self.peer,
                error = %lost,
                "held-back" = held_back,
                "lost TCP streaming connection with remote peer"
            );
        }
        if !matches!(lost, Lost::Ended) {
            self.activity
                .deactivate(source(self.kind), Action::Read, &lost);
        }
    }

    async fn decode_loop(&self, mut incoming: Incoming) -> Lost {
        let read_timeout = self.env.config.read_timeout;
        let mut decoder = Decoder::new(self.kind, self.env.config.id, self.peer);
        let mut batch = Vec::new();
        let mut last_byte = Instant::now();
        let mut pieces = 0_u32;
        let mut timer = pin!(sleep_until(last_byte + read_timeout));
        loop {
            let piece = poll_fn(|cx| {
                if let Poll::Ready(piece) = incoming.poll_chunk(cx) {
                    return Poll::Ready(Some(piece));
                }
                // Set again only when it fires, not with each piece.
                while timer.as_mut().poll(cx).is_ready() {
                    let due = last_byte + read_timeout;
                    if Instant::now() >= due {
                        return Poll::Ready(None);
                    }
                    timer.as_mut().reset(due);
                }
                Poll::Pending
            });
            let piece = match piece.await {
                None => return Lost::Silent(read_timeout),
                Some(None) => return decoder.finish().map_or_else(Lost::Frame, |()| Lost::Ended),
                Some(Some(Err(error))) => return error.into(),
                Some(Some(Ok(piece))) => piece,
            };
            last_byte = Instant::now();
            decoder.feed(piece);
            pieces = pieces.wrapping_add(1);
            let timed = pieces.is_multiple_of(TIMED_EVERY).then(time::Instant::now);
            let delivered = self.deliver_all(&mut decoder, &mut batch);
            if let Some(begun) = timed {
                self.stream_metrics.decode_seconds.record(begun.elapsed());
            }
            if let Err(error) = delivered {
                return error.into();
            }
        }
    }

    /// Delivers what is complete.
    fn deliver_all(
        &self,
        decoder: &mut Decoder,
        batch: &mut Vec<Message>,
    ) -> Result<(), FrameError> {
        let (mut received, mut heartbeats) = (0, 0);
        let paused = self.paused.load(Ordering::Relaxed);
        let outcome = loop {
            let bytes = match decoder.next_into(batch) {
                Ok(Some(next)) => next,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            if batch.last().is_some_and(Message::is_link_heartbeat) {
                batch.pop();
                heartbeats += bytes as u64;
                continue;
            }
            received += bytes as u64;
            if paused {
                batch.pop();
                self.inbox.drop_paused();
                continue;
            }
            if batch.len() == BATCH_MESSAGES {
                self.inbox.push_all(batch, &self.activity);
            }
        };
        self.inbox.push_all(batch, &self.activity);
        if received > 0 {
            self.metrics.received_bytes.increment(received);
        } else {
            // Nothing but heartbeats: gives back what a burst needed.
            batch.shrink_to(IDLE_BATCH);
            self.inbox.shrink();
        }
        if heartbeats > 0 {
            let counted = &self.env.metrics.received_heartbeat_bytes;
            counted.increment(heartbeats);
        }
        outcome
    }
}
