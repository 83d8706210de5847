//! The response body that is a stream: the connection asks for the next frame, and gets everything that waits in one,
//! in pieces: what is small is gathered, and large payloads are sent from where they are.
//!
//! Runs in the connection's task. Invariant: bytes leave at least every third of the read timeout, so that the
//! peer can tell a silent network from an idle raft; and dropping the body, which is how a broken connection ends, is
//! told to the writer.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};
use transport_core::{
    frame::EncodeError,
    lane::DropReason,
    raftpb::{Message, MessageType, Output, Target},
    status::Action,
};

use crate::{
    metrics::{FlushCause, TIMED_EVERY},
    outbound::Outbound,
    stream::{
        Encoder,
        line::Line,
        writer::{StreamWriter, Taken},
    },
};

/// What an idle connection may keep for its next frame.
pub(crate) const IDLE_BUFFER_BYTES: usize = 1 << 10;
const IDLE_BATCH: usize = 4;

pub(crate) struct StreamBody {
    writer: Arc<StreamWriter>,
    /// Which of the writer's connections this is.
    number: u64,
    encoder: Encoder,
    output: Output,
    batch: Vec<Outbound>,
    batches: u32,
    heartbeat_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl StreamBody {
    pub(crate) fn new(writer: Arc<StreamWriter>, number: u64) -> Self {
        // The first heartbeat leaves with the headers: the peer knows at once that the stream works.
        let heartbeat_at = Instant::now();
        StreamBody {
            number,
            encoder: Encoder::new(writer.kind),
            writer,
            output: Output::new(),
            batch: Vec::new(),
            batches: 0,
            heartbeat_at,
            timer: Box::pin(sleep_until(heartbeat_at)),
        }
    }

    /// Tells the sender where its messages can be written.
    pub(crate) fn announce(&self, line: Weak<Line>) {
        self.writer.announce(self.number, line);
    }

    /// Waits for the next frame; its length. The caller takes it [piece](Self::next_piece) by piece before it asks
    /// for another one. `None` at the end of the stream.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        debug_assert!(self.output.is_empty(), "the frame before is taken");
        loop {
            match self.writer.take(self.number, &mut self.batch, cx) {
                Taken::Replaced => return Poll::Ready(None),
                Taken::Batch { bytes, is_all } => {
                    // More than the frame takes, as a message in memory is larger than on the wire. A single message
                    // may be larger than that: the encoder knows what it needs.
                    self.output.reserve(bytes.min(self.writer.flush_bytes()));
                    let cause = if is_all {
                        FlushCause::Drained
                    } else {
                        FlushCause::Full
                    };
                    if let Some(frame) = self.encode_batch(cause) {
                        return Poll::Ready(Some(frame));
                    }
                    continue;
                }
                Taken::Nothing => {}
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The timer is moved when it fires, not with each frame.
            if Instant::now() >= self.heartbeat_at {
                return Poll::Ready(self.heartbeat());
            }
            self.timer.as_mut().reset(self.heartbeat_at);
        }
    }

    /// The next piece of the frame; `None` behind its last.
    pub(crate) fn next_piece(&mut self) -> Option<Bytes> {
        self.output.pop()
    }

    /// One frame of everything in the batch; `None` if none of it could be encoded.
    fn encode_batch(&mut self, cause: FlushCause) -> Option<usize> {
        let begun = time::Instant::now();
        let (mut sent, mut appends, mut entries) = (0, false, 0);
        let mut batch = std::mem::take(&mut self.batch);
        for message in &batch {
            match message.frame(&mut self.encoder, &mut self.output) {
                Ok(bytes) => {
                    sent += bytes;
                    entries += message.own_entries();
                    appends |= message.as_ref().msg_type == MessageType::Append as i32;
                }
                Err(error) => self.not_encoded(message.as_ref(), error),
            }
        }
        batch.clear();
        self.batch = batch;
        if entries > 0 {
            self.writer.env.metrics.entry_encodes.increment(entries);
        }
        if self.output.is_empty() {
            return None;
        }
        self.batches = self.batches.wrapping_add(1);
        let is_timed = self.batches.is_multiple_of(TIMED_EVERY);
        if appends || is_timed {
            let took = begun.elapsed();
            if appends {
                self.writer.follower.lock().succeed(took);
            }
            if is_timed {
                self.writer.stream_metrics.encode_seconds.record(took);
            }
        }
        Some(self.frame(sent, cause))
    }

    fn heartbeat(&mut self) -> Option<usize> {
        // Idle for a whole period: give back what a burst needed.
        if self.batch.capacity() > IDLE_BATCH {
            self.batch = Vec::new();
        }
        self.output.shrink(IDLE_BUFFER_BYTES);
        self.writer.shrink();
        match self
            .encoder
            .encode(&Message::link_heartbeat(), &mut self.output)
        {
            Ok(bytes) => {
                let frame = self.frame(bytes, FlushCause::Heartbeat);
                self.timer.as_mut().reset(self.heartbeat_at);
                Some(frame)
            }
            Err(error) => {
                // Cannot be: both framings have a form for it. Ending the stream is the safe answer.
                self.writer.lost(self.number, Action::Heartbeat, &error);
                None
            }
        }
    }

    /// The length of the frame that is complete; `sent` is its size as etcd counts it.
    fn frame(&mut self, sent: usize, cause: FlushCause) -> usize {
        let bytes = self.output.len();
        self.heartbeat_at = Instant::now() + self.writer.heartbeat_period();
        self.writer.metrics.sent_bytes.increment(sent as u64);
        let metrics = &self.writer.stream_metrics;
        metrics.flush_bytes.record(bytes as f64);
        metrics.flushes.count(cause, 1);
        bytes
    }

    /// The message went nowhere, and the stream is as it was before it.
    fn not_encoded(&self, message: &Message, error: EncodeError) {
        self.writer.dropped(DropReason::TooLong);
        self.writer.metrics.sent_failures.increment(1);
        self.writer.env.reports.report_unreachable(self.writer.peer);
        tracing::warn!(
            "message-type" = ?message.kind(),
            "remote-peer-id" = %self.writer.peer,
            error = %error,
            "dropped Raft message that cannot be encoded"
        );
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        self.writer
            .lost(self.number, Action::Write, &"the connection is closed");
    }
}
