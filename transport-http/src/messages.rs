//! Messages on their way to the channels, taken from the front in runs that belong together.
//!
//! Invariant: order is kept, and looking at the next message does not move it.

use std::vec;

use transport_core::raftpb::Message;

pub(crate) struct Messages<'a>(vec::Drain<'a, Message>);

impl Messages<'_> {
    /// The next one, left where it is.
    pub(crate) fn first(&self) -> Option<&Message> {
        self.0.as_slice().first()
    }

    /// The next one if it belongs to the run.
    #[inline]
    pub(crate) fn next_if(&mut self, belongs: impl FnOnce(&Message) -> bool) -> Option<Message> {
        if self.first().is_some_and(belongs) {
            self.0.next()
        } else {
            None
        }
    }
}

impl<'a> From<&'a mut Vec<Message>> for Messages<'a> {
    fn from(messages: &'a mut Vec<Message>) -> Self {
        Messages(messages.drain(..))
    }
}
