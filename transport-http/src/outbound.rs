//! Messages on their way out, and the bytes they share.
//!
//! A leader sends the same entries to all followers: they are encoded once, in raft's thread, and every message that
//! carries them refers to those bytes. With a single peer there is nothing to share, and its connection encodes.
//! Invariant: the entries of a message are in one of the two places.

use std::vec;

use bytes::BytesMut;
use transport_core::{
    frame::EncodeError,
    lane::{Queued, footprint},
    raftpb::{
        EntryCache, Message, MessageType, Output, SharedEntries, encode_message,
        encode_message_shared, encoded_len, shared_len,
    },
};

use crate::{messages::Messages, stream::Encoder};

/// A message, and its entries if they are encoded already.
#[derive(Debug)]
pub(crate) struct Outbound {
    message: Message,
    entries: Option<SharedEntries>,
}

impl Outbound {
    /// Appends one frame; its size as etcd counts it.
    pub(crate) fn frame(
        &self,
        encoder: &mut Encoder,
        to: &mut Output,
    ) -> Result<usize, EncodeError> {
        match &self.entries {
            None => encoder.encode(&self.message, to),
            Some(entries) => encoder.encode_shared(&self.message, entries, to),
        }
    }

    /// Appends the message by itself.
    pub(crate) fn encode(&self, to: &mut BytesMut) {
        match &self.entries {
            None => encode_message(&self.message, to),
            Some(entries) => encode_message_shared(&self.message, entries, to),
        }
    }

    /// Length of the message by itself, in bytes.
    pub(crate) fn encoded_len(&self) -> usize {
        match &self.entries {
            None => encoded_len(&self.message),
            Some(entries) => shared_len(&self.message, entries),
        }
    }

    /// How many entries are encoded with this message, and for it alone.
    pub(crate) fn own_entries(&self) -> u64 {
        self.message.entries.len() as u64
    }
}

impl From<Message> for Outbound {
    fn from(message: Message) -> Self {
        let entries = None;
        Outbound { message, entries }
    }
}

impl AsRef<Message> for Outbound {
    #[inline]
    fn as_ref(&self) -> &Message {
        &self.message
    }
}

impl AsMut<Message> for Outbound {
    #[inline]
    fn as_mut(&mut self) -> &mut Message {
        &mut self.message
    }
}

impl Queued for Outbound {
    /// Shared bytes are counted in full, as payloads are: any message may be the last to hold them.
    #[inline]
    fn footprint(&self) -> usize {
        let entries = self.entries.as_ref().map_or(0, SharedEntries::bytes);
        footprint(&self.message) + size_of::<Option<SharedEntries>>() + entries
    }
}

/// What is given to the transport at once, taken from the front in runs that belong together.
pub(crate) struct Outbounds<'a> {
    messages: Messages<'a>,
    /// One for each message, or none at all.
    entries: vec::IntoIter<Option<SharedEntries>>,
}

impl<'a> Outbounds<'a> {
    /// With the entries of appends encoded by `cache`, if there is one.
    pub(crate) fn new(messages: &'a mut Vec<Message>, cache: Option<&mut EntryCache>) -> Self {
        let entries = match cache {
            Some(cache) => {
                let share = |message: &mut Message| match is_append(message) {
                    true => cache.share(message),
                    false => None,
                };
                messages.iter_mut().map(share).collect()
            }
            None => Vec::new(),
        };
        Outbounds {
            messages: Messages::from(messages),
            entries: entries.into_iter(),
        }
    }

    /// The next one, left where it is.
    pub(crate) fn first(&self) -> Option<&Message> {
        self.messages.first()
    }

    pub(crate) fn next(&mut self) -> Option<Outbound> {
        self.next_if(|_| true)
    }

    /// The next one if it belongs to the run.
    #[inline]
    pub(crate) fn next_if(&mut self, belongs: impl FnOnce(&Message) -> bool) -> Option<Outbound> {
        let message = self.messages.next_if(belongs)?;
        let entries = self.entries.next().flatten();
        Some(Outbound { message, entries })
    }
}

/// Whether there is anything in `messages` that several members may get.
pub(crate) fn has_appends(messages: &[Message]) -> bool {
    messages.iter().any(is_append)
}

fn is_append(message: &Message) -> bool {
    message.msg_type == MessageType::Append as i32 && !message.entries.is_empty()
}
