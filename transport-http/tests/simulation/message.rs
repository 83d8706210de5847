//! Messages that say what they are: each carries a stamp from which the whole message can be built again.
//!
//! So a receiver can tell a message that was sent from one that was not, bit by bit, without the simulation having
//! to keep a copy of everything.

use bytes::{BufMut, Bytes, BytesMut};
use transport_core::raftpb::{Entry, Message, MessageType, Snapshot, SnapshotMetadata};

/// Members are numbered from 1.
pub type Id = u64;

/// The way a message was sent; between ways there is no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The append stream.
    MsgApp,
    /// The message stream.
    Message,
    /// A POST of its own.
    Pipeline,
    /// A POST with a database behind it.
    Snapshot,
}

/// What keeps its order on a stream. Between classes there is none: heartbeats wait in slots of their own, control
/// overtakes bulk, and proposals are handed to raft apart from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Append,
    Propose,
    Control,
    Heartbeat,
    HeartbeatResponse,
    Snapshot,
}

const WAYS: [Way; 4] = [Way::MsgApp, Way::Message, Way::Pipeline, Way::Snapshot];
const CLASSES: [Class; 6] = [
    Class::Append,
    Class::Propose,
    Class::Control,
    Class::Heartbeat,
    Class::HeartbeatResponse,
    Class::Snapshot,
];
/// Those of messages without a database.
pub const SMALL_CLASSES: &[Class] = CLASSES.split_at(5).0;

/// Which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub from: Id,
    pub to: Id,
    /// How often the sender had been started.
    pub life: u64,
    pub way: Way,
    pub class: Class,
    /// From 1, for each of the above.
    pub number: u64,
    /// Milliseconds of virtual time.
    pub sent_at: u64,
}

const STAMP_BYTES: usize = 8 * 7;

impl Stamp {
    /// The message with this stamp.
    pub fn message(&self) -> Message {
        let message = Message {
            msg_type: self.kind() as i32,
            from: self.from,
            to: self.to,
            // Raft's terms only grow; a heartbeat of an older one would be merged away.
            term: self.life,
            commit: self.number,
            ..Message::default()
        };
        match self.class {
            Class::Append => Message {
                log_term: self.life,
                index: self.number - 1,
                entries: vec![self.entry(self.life, self.number)],
                ..message
            },
            Class::Propose => Message {
                term: 0,
                commit: 0,
                entries: vec![self.entry(0, 0)],
                ..message
            },
            Class::Snapshot => {
                let metadata = SnapshotMetadata {
                    index: self.number,
                    term: self.life,
                    ..SnapshotMetadata::default()
                };
                let snapshot = Snapshot {
                    data: self.encode(),
                    metadata: Some(metadata),
                };
                Message {
                    snapshot: Some(Box::new(snapshot)),
                    ..message
                }
            }
            Class::Control | Class::Heartbeat | Class::HeartbeatResponse => Message {
                context: self.encode(),
                ..message
            },
        }
    }

    /// The stamp of a received message, if the message is exactly the one of that stamp.
    pub fn read(message: &Message) -> Option<Stamp> {
        let data = match (message.entries.first(), &message.snapshot) {
            (Some(entry), _) => &entry.data,
            (None, Some(snapshot)) => &snapshot.data,
            (None, None) => &message.context,
        };
        let stamp = Stamp::decode(data)?;
        (stamp.message() == *message).then_some(stamp)
    }

    fn kind(&self) -> MessageType {
        match self.class {
            Class::Append => MessageType::Append,
            Class::Propose => MessageType::Propose,
            Class::Control => match self.number % 4 {
                0 => MessageType::AppendResponse,
                1 => MessageType::RequestVote,
                2 => MessageType::RequestVoteResponse,
                _ => MessageType::TransferLeader,
            },
            Class::Heartbeat => MessageType::Heartbeat,
            Class::HeartbeatResponse => MessageType::HeartbeatResponse,
            Class::Snapshot => MessageType::Snapshot,
        }
    }

    /// Most entries are small; some are longer than what a socket takes at once.
    fn entry(&self, term: u64, index: u64) -> Entry {
        let padding = match self.number {
            n if n.is_multiple_of(97) => 40_000,
            n if n.is_multiple_of(11) => 3_000,
            n => n as usize % 64,
        };
        let mut data = BytesMut::from(&self.encode()[..]);
        data.put_bytes(self.number as u8, padding);
        Entry {
            term,
            index,
            data: data.freeze(),
            ..Entry::default()
        }
    }

    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(STAMP_BYTES);
        for field in [
            self.from,
            self.to,
            self.life,
            self.way as u64,
            self.class as u64,
            self.number,
            self.sent_at,
        ] {
            bytes.put_u64(field);
        }
        bytes.freeze()
    }

    fn decode(bytes: &[u8]) -> Option<Stamp> {
        let mut fields = [0; STAMP_BYTES / 8];
        for (field, bytes) in fields.iter_mut().zip(bytes.get(..STAMP_BYTES)?.chunks(8)) {
            *field = u64::from_be_bytes(bytes.try_into().ok()?);
        }
        let [from, to, life, way, class, number, sent_at] = fields;
        Some(Stamp {
            from,
            to,
            life,
            way: *WAYS.get(way as usize)?,
            class: *CLASSES.get(class as usize)?,
            number: (number > 0).then_some(number)?,
            sent_at,
        })
    }
}
