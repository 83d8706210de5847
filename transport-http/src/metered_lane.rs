//! A lane that counts: what waits, how long, and what is dropped.
//!
//! Wraps transport-core's lane, which reads no clock and knows no metrics; kept behind its user's lock. Invariant: what
//! goes in comes out or is counted as dropped, and the time of the oldest message is known, at one look at the clock per
//! batch.

use std::time::Instant;

use transport_core::{
    lane::{Budget, DropReason, Lane, Pushed, Queued, Refused, SharedBudget},
    raftpb::Message,
};

use crate::metrics::QueueMetrics;

pub(crate) struct MeteredLane<T = Message> {
    lane: Lane<T>,
    metrics: QueueMetrics,
    /// Since when something waits.
    since: Option<Instant>,
    stopped: bool,
}

impl<T: Queued> MeteredLane<T> {
    pub(crate) fn new(budget: Budget, shared: SharedBudget, metrics: QueueMetrics) -> Self {
        MeteredLane {
            lane: Lane::new(budget, Some(shared)),
            metrics,
            since: None,
            stopped: false,
        }
    }

    /// As [`Lane::push`]; what is refused is counted. After a stop everything is.
    #[allow(clippy::result_large_err)] // the message goes back by move, as it came
    pub(crate) fn push(&mut self, message: T) -> Result<Pushed, Refused<T>> {
        if self.stopped {
            return Err(self.refuse(message, DropReason::Stopped));
        }
        let pushed = self.lane.push(message);
        match &pushed {
            Ok(_) => {
                self.since.get_or_insert_with(Instant::now);
                self.metrics.bytes.set(self.lane.bytes() as f64);
            }
            Err(refused) => self.dropped(refused.reason, 1),
        }
        pushed
    }

    /// [`push`](Self::push) for each of `messages`; whether any was queued. What is refused goes to `refused`.
    pub(crate) fn push_all(
        &mut self,
        messages: impl Iterator<Item = T>,
        mut refused: impl FnMut(Refused<T>),
    ) -> bool {
        if self.stopped {
            messages.for_each(|message| refused(self.refuse(message, DropReason::Stopped)));
            return false;
        }
        let metrics = &self.metrics;
        let queued = self.lane.push_all(messages, |back| {
            metrics.dropped(back.reason, 1);
            refused(back);
        });
        if !self.lane.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
        self.metrics.bytes.set(self.lane.bytes() as f64);
        queued
    }

    /// Refuses a message without looking at it.
    pub(crate) fn refuse(&self, message: T, reason: DropReason) -> Refused<T> {
        self.dropped(reason, 1);
        Refused { message, reason }
    }

    /// As [`Lane::drain`].
    pub(crate) fn drain(&mut self, bytes_max: usize, into: &mut Vec<T>) -> usize {
        let bytes = self.lane.drain(bytes_max, into);
        if let Some(since) = self.since.take() {
            let now = Instant::now();
            self.metrics.wait.record(now.duration_since(since));
            self.since = (!self.lane.is_empty()).then_some(now);
            self.metrics.bytes.set(self.lane.bytes() as f64);
        }
        bytes
    }

    /// Drops everything; how many messages that were.
    pub(crate) fn clear(&mut self, reason: DropReason) -> usize {
        let messages = self.lane.clear().messages;
        self.since = None;
        self.metrics.bytes.set(0.0);
        self.dropped(reason, messages);
        messages
    }

    /// Drops everything, and whatever comes from now on; how many messages that were.
    pub(crate) fn stop(&mut self) -> usize {
        self.stopped = true;
        self.clear(DropReason::Stopped)
    }

    /// Counts messages dropped on their way to or from this lane.
    pub(crate) fn dropped(&self, reason: DropReason, count: usize) {
        self.metrics.dropped(reason, count);
    }

    /// As [`Lane::shrink`].
    pub(crate) fn shrink(&mut self) {
        self.lane.shrink();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lane.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lane.bytes()
    }

    pub(crate) fn len(&self) -> usize {
        self.lane.len()
    }
}
