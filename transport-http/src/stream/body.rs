//! The response body that is a stream: the connection asks for the next frame, and gets everything that waits in one.
//!
//! Runs in the connection's task. Invariant: bytes leave at least every third of the read timeout, so that the
//! peer can tell a silent network from an idle raft; and dropping the body, which is how a broken connection ends, is
//! told to the writer.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time,
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use transport_core::{
    frame::EncodeError,
    lane::DropReason,
    raftpb::{Message, MessageType},
    status::Action,
};

use crate::{
    metrics::{FlushCause, TIMED_EVERY},
    stream::{
        Encoder,
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
    buffer: BytesMut,
    batch: Vec<Message>,
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
            buffer: BytesMut::new(),
            batch: Vec::new(),
            batches: 0,
            heartbeat_at,
            timer: Box::pin(sleep_until(heartbeat_at)),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            match self.writer.take(self.number, &mut self.batch, cx) {
                Taken::Replaced => return Poll::Ready(None),
                Taken::Batch { bytes, is_all } => {
                    // More than the frame takes, as a message in memory is larger than on the wire.
                    self.buffer.reserve(bytes);
                    let cause = if is_all {
                        FlushCause::Drained
                    } else {
                        FlushCause::Full
                    };
                    if let Some(frame) = self.encode_batch(cause) {
                        return Poll::Ready(Some(Ok(frame)));
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
                return Poll::Ready(self.heartbeat().map(Ok));
            }
            self.timer.as_mut().reset(self.heartbeat_at);
        }
    }

    /// One frame of everything in the batch; `None` if none of it could be encoded.
    fn encode_batch(&mut self, cause: FlushCause) -> Option<Frame<Bytes>> {
        let begun = time::Instant::now();
        let (mut sent, mut appends) = (0, false);
        let mut batch = std::mem::take(&mut self.batch);
        for message in batch.drain(..) {
            match self.encoder.encode(&message, &mut self.buffer) {
                Ok(bytes) => {
                    sent += bytes;
                    appends |= message.msg_type == MessageType::Append as i32;
                }
                Err(error) => self.not_encoded(&message, error),
            }
        }
        self.batch = batch;
        if self.buffer.is_empty() {
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

    fn heartbeat(&mut self) -> Option<Frame<Bytes>> {
        // Idle for a whole period: give back what a burst needed.
        if self.batch.capacity() > IDLE_BATCH {
            self.batch = Vec::new();
        }
        if self.buffer.capacity() > IDLE_BUFFER_BYTES {
            self.buffer = BytesMut::new();
        }
        self.writer.shrink();
        match self
            .encoder
            .encode(&Message::link_heartbeat(), &mut self.buffer)
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

    /// Hands the buffer over; `sent` is its size as etcd counts it.
    fn frame(&mut self, sent: usize, cause: FlushCause) -> Frame<Bytes> {
        let bytes = self.buffer.split().freeze();
        self.heartbeat_at = Instant::now() + self.writer.heartbeat_period();
        self.writer.metrics.sent_bytes.increment(sent as u64);
        let metrics = &self.writer.stream_metrics;
        metrics.flush_bytes.record(bytes.len() as f64);
        metrics.flushes.count(cause, 1);
        Frame::data(bytes)
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
