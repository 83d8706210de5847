//! A stream's connection as both its own task and whoever sends reach it.
//!
//! A message that comes alone is written by the sender at once: waking the connection's task, which would do the same
//! a moment later, is a third of such a message's cost. Whatever comes in numbers is left to the task, which finds
//! more by the time it runs. Invariant: only the task's waker is ever registered, so the task is woken by whatever
//! the connection waits for, no matter who polled it last; and a sender never waits for the task.

use std::{
    future::poll_fn,
    io,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;

use crate::stream::outgoing::Outgoing;

/// Most bytes of memory that a message may have to be written by its sender.
pub(crate) const ALONE_BYTES_MAX: usize = 16 << 10;

pub(crate) struct Line(Mutex<State>);

struct State {
    outgoing: Outgoing,
    /// How it ended while its sender wrote.
    ended: Option<io::Result<()>>,
}

impl Line {
    /// Writes what the stream's body yields until that ends, or the connection does.
    pub(crate) async fn run(outgoing: Outgoing) -> io::Result<()> {
        let state = State {
            outgoing,
            ended: None,
        };
        let line = Arc::new(Line(Mutex::new(state)));
        line.0.lock().outgoing.announce(Arc::downgrade(&line));
        poll_fn(|cx| line.poll(cx)).await
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        match state.ended.take() {
            Some(ended) => Poll::Ready(ended),
            None => state.outgoing.poll(cx),
        }
    }

    /// Writes what waits, as the task would. False if the task has to see to it.
    fn write_now(&self, task: &Waker) -> bool {
        let Some(mut state) = self.0.try_lock() else {
            return false;
        };
        if state.ended.is_some() {
            return false;
        }
        match state.outgoing.poll(&mut Context::from_waker(task)) {
            Poll::Pending => true,
            Poll::Ready(ended) => {
                state.ended = Some(ended);
                false
            }
        }
    }
}

/// A connection that has something to write.
pub(crate) struct Due {
    /// Of its task, which waits for messages.
    pub(crate) task: Waker,
    /// Set if there is a single small message to write.
    pub(crate) alone: Option<Weak<Line>>,
}

impl Due {
    fn write(self) {
        let line = self.alone.and_then(|line| line.upgrade());
        if !line.is_some_and(|line| line.write_now(&self.task)) {
            self.task.wake();
        }
    }
}

/// The connections that have something to write once a batch of messages is queued, so that a batch wakes each once.
#[derive(Default)]
pub(crate) struct Dues {
    first: Option<Due>,
    others: Vec<Due>,
}

impl Dues {
    pub(crate) fn push(&mut self, due: Due) {
        match self.first {
            None => self.first = Some(due),
            Some(_) => self.others.push(due),
        }
    }

    /// Lets all of them write.
    pub(crate) fn write(self) {
        self.first
            .into_iter()
            .chain(self.others)
            .for_each(Due::write);
    }
}
