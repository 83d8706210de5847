//! The framing of the stream `msgapp`: appends, most of them in a compact form, and link heartbeats.
//!
//! The first byte of a frame tells its kind: 0 a link heartbeat and nothing more; 2 a whole message behind
//! its length; 1 the compact form: a count, each entry behind its length, and the commit index. All integers
//! are 64-bit big-endian. Both ends remember the (term, index) up to which the stream has come; the compact
//! form is for an append that begins exactly there, so that all its other fields can be restored.
//!
//! Invariant: the memory starts at (0, 0) with each connection and moves only by frames of 1 and 2, the same
//! way on both ends.
//!
//! etcd: rafthttp/msgappv2_codec.go.

use bytes::Bytes;

use super::{EncodeError, FRAME_BYTES_MAX, FrameError, checked_len, input::Input, put_whole};
use crate::{
    MemberId,
    raftpb::{
        Carried, Entry, Message, MessageType, SharedEntries, Target, append_form_len, encoded_len,
        nested_len,
    },
};

const LINK_HEARTBEAT: u8 = 0;
const COMPACT: u8 = 1;
const FULL: u8 = 2;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    term: u64,
    index: u64,
}

impl Position {
    /// Where a whole message with these entries leaves the stream.
    fn after<E: Carried + ?Sized>(message: &Message, entries: &E) -> Position {
        Position {
            term: message.term,
            index: entries.last_index(message),
        }
    }

    /// Whether `message` continues here and loses nothing in the compact form.
    fn continues(self, message: &Message) -> bool {
        message.index == self.index
            && message.log_term == self.term
            && message.term == message.log_term
            && !message.reject
            && message.reject_hint == 0
            && message.snapshot.is_none()
            && message.context.is_empty()
    }
}

/// Appends messages to a stream body. One per connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Encoder {
    position: Position,
}

impl Encoder {
    /// An encoder for a new connection.
    pub fn new() -> Self {
        Encoder::default()
    }

    /// Appends one frame and returns the length of its message as protobuf, whatever form it took: what
    /// etcd counts as sent.
    pub fn encode(
        &mut self,
        message: &Message,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        if message.is_link_heartbeat() {
            to.put_slice(&[LINK_HEARTBEAT]);
            return Ok(encoded_len(message));
        }
        self.append(message, &message.entries[..], to)
    }

    /// [`encode`](Self::encode) for a message that carries `entries`; its own list is empty.
    pub fn encode_shared(
        &mut self,
        message: &Message,
        entries: &SharedEntries,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        debug_assert!(message.entries.is_empty(), "the entries are in one place");
        self.append(message, entries, to)
    }

    fn append<E: Carried + ?Sized>(
        &mut self,
        message: &Message,
        entries: &E,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        if message.msg_type != MessageType::Append as i32 {
            return Err(EncodeError::NotAppend(message.msg_type));
        }
        if self.position.continues(message) {
            self.compact(message, entries, to)
        } else {
            self.full(message, entries, to)
        }
    }

    fn compact<E: Carried + ?Sized>(
        &mut self,
        message: &Message,
        entries: &E,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        let lengths = entries.lengths();
        let frame = 17 + lengths.prefixed;
        if frame as u64 > FRAME_BYTES_MAX {
            return Err(EncodeError::TooLong(frame));
        }
        to.reserve(frame - lengths.kept);
        to.put_slice(&head(COMPACT, lengths.count));
        entries.put_prefixed(to);
        to.put_slice(&message.commit.to_be_bytes());
        self.position.index = self.position.index.wrapping_add(lengths.count as u64);
        Ok(append_form_len(message, lengths.nested))
    }

    fn full<E: Carried + ?Sized>(
        &mut self,
        message: &Message,
        entries: &E,
        to: &mut impl Target,
    ) -> Result<usize, EncodeError> {
        let length = put_whole(message, entries, |length| head(FULL, length), to)?;
        self.position = Position::after(message, entries);
        Ok(length)
    }
}

/// A tag and the number behind it.
#[inline]
fn head(tag: u8, number: usize) -> [u8; 9] {
    let mut head = [tag; 9];
    head[1..].copy_from_slice(&(number as u64).to_be_bytes());
    head
}

/// What a decoder expects next.
#[derive(Debug)]
enum Expect {
    Tag,
    FullLength,
    Full(usize),
    Count,
    EntryLength,
    Entry(usize),
    Commit,
}

/// Takes messages out of a stream body. One per connection.
#[derive(Debug)]
pub struct Decoder {
    input: Input,
    local: MemberId,
    remote: MemberId,
    position: Position,
    expect: Expect,
    /// Entries of the compact frame being read, and how many are still to come.
    entries: Vec<Entry>,
    missing: u64,
    /// What its entries so far take in a whole message.
    nested: usize,
    /// Bytes the frame being read may still have.
    budget: u64,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder for a new connection from `remote` to `local`. The compact form carries neither id, so
    /// these are what its messages get.
    pub fn new(local: MemberId, remote: MemberId) -> Self {
        Decoder {
            input: Input::default(),
            local,
            remote,
            position: Position::default(),
            expect: Expect::Tag,
            entries: Vec::new(),
            missing: 0,
            nested: 0,
            budget: FRAME_BYTES_MAX,
            failed: None,
        }
    }

    /// Adds a piece of the body. Take everything out with [`Decoder::next`] before feeding more: what is
    /// fed and not taken is held. After an error nothing is.
    pub fn feed(&mut self, piece: Bytes) {
        if self.failed.is_none() {
            self.input.feed(piece);
        }
    }

    /// The next message, or `None` until more is fed. Repeats its error once it has failed.
    #[allow(clippy::should_implement_trait)] // an iterator would hide that `None` is not the end
    pub fn next(&mut self) -> Result<Option<Message>, FrameError> {
        Ok(self.next_sized()?.map(|(message, _)| message))
    }

    /// [`next`](Self::next), with the length of the message as protobuf, whatever form it came in: what etcd counts
    /// as received.
    pub fn next_sized(&mut self) -> Result<Option<(Message, usize)>, FrameError> {
        let mut message = Message::default();
        let length = self.next_in(&mut message)?;
        Ok(length.map(|length| (message, length)))
    }

    /// [`next_sized`](Self::next_sized), with the message put where it belongs: to the end of `messages`.
    #[inline]
    pub fn next_into(&mut self, messages: &mut Vec<Message>) -> Result<Option<usize>, FrameError> {
        let next = self.next_in(messages.push_mut(const { Message::empty() }));
        if !matches!(next, Ok(Some(_))) {
            messages.pop();
        }
        next
    }

    /// Reads the next message into an empty one, where it stays: it is not small.
    #[inline]
    fn next_in(&mut self, message: &mut Message) -> Result<Option<usize>, FrameError> {
        if self.failed.is_none()
            && let Some(length) = self.step(message)
        {
            return Ok(Some(length));
        }
        match self.failed {
            None => Ok(None),
            Some(error) => Err(error),
        }
    }

    /// A step, whose error stays. Not a `Result`: this fits registers.
    fn step(&mut self, message: &mut Message) -> Option<usize> {
        self.try_step(message).unwrap_or_else(|error| {
            self.failed = Some(error);
            self.input = Input::default();
            self.entries = Vec::new();
            None
        })
    }

    /// Whether the body may end here; an error when it would end inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match (self.failed, &self.expect) {
            (Some(error), _) => Err(error),
            (None, Expect::Tag) if self.input.is_empty() => Ok(()),
            _ => Err(FrameError::Truncated),
        }
    }

    #[inline]
    fn try_step(&mut self, message: &mut Message) -> Result<Option<usize>, FrameError> {
        loop {
            match self.expect {
                Expect::Tag => {
                    let Some(tag) = self.input.take_u8() else {
                        break;
                    };
                    self.budget = FRAME_BYTES_MAX;
                    self.expect = match tag {
                        LINK_HEARTBEAT => {
                            *message = Message::link_heartbeat();
                            return Ok(Some(encoded_len(message)));
                        }
                        COMPACT => Expect::Count,
                        FULL => Expect::FullLength,
                        other => return Err(FrameError::UnknownTag(other)),
                    };
                }
                Expect::FullLength => {
                    let Some(length) = self.input.take_u64() else {
                        break;
                    };
                    self.expect = Expect::Full(self.spend(length)?);
                }
                Expect::Full(length) => {
                    let Some(element) = self.input.take(length) else {
                        break;
                    };
                    *message = element.message()?;
                    self.position = Position::after(message, &message.entries[..]);
                    self.expect = Expect::Tag;
                    return Ok(Some(length));
                }
                Expect::Count => {
                    let Some(count) = self.input.take_u64() else {
                        break;
                    };
                    // Each entry costs at least its length field.
                    self.spend(count.saturating_mul(8))?;
                    self.missing = count;
                    self.nested = 0;
                    self.expect_entry();
                }
                Expect::EntryLength => {
                    let Some(length) = self.input.take_u64() else {
                        break;
                    };
                    self.expect = Expect::Entry(self.spend(length)?);
                }
                Expect::Entry(length) => {
                    self.make_room();
                    let Some(element) = self.input.take(length) else {
                        break;
                    };
                    element.entry(self.entries.push_mut(Entry::default()))?;
                    self.nested += nested_len(length);
                    self.missing -= 1;
                    self.expect_entry();
                }
                Expect::Commit => {
                    let Some(commit) = self.input.take_u64() else {
                        break;
                    };
                    self.expect = Expect::Tag;
                    self.restore(message, commit);
                    return Ok(Some(append_form_len(message, self.nested)));
                }
            }
        }
        Ok(None)
    }

    fn expect_entry(&mut self) {
        self.expect = if self.missing == 0 {
            Expect::Commit
        } else {
            Expect::EntryLength
        };
    }

    /// Takes `length` bytes off what the frame may still have.
    fn spend(&mut self, length: u64) -> Result<usize, FrameError> {
        let bytes = checked_len(length, self.budget)?;
        self.budget -= length;
        Ok(bytes)
    }

    /// Room for another entry: for as many as the bytes at hand can hold, and a quarter more than there are
    /// when entries keep coming in small pieces.
    fn make_room(&mut self) {
        let held = self.entries.len();
        if held == self.entries.capacity() {
            let at_hand = 1 + self.input.at_hand() / 8;
            let grown = at_hand.max(held / 4) as u64;
            let more = grown.min(self.missing) as usize;
            if held == 0 {
                // Most frames have one entry; growing is the slower way to make a list.
                self.entries = Vec::with_capacity(more);
            } else {
                self.entries.reserve_exact(more);
            }
        }
    }

    /// Fills in the append a compact frame stands for.
    #[inline]
    fn restore(&mut self, message: &mut Message, commit: u64) {
        let Position { term, index } = self.position;
        message.msg_type = MessageType::Append as i32;
        message.to = self.local.0;
        message.from = self.remote.0;
        message.term = term;
        message.log_term = term;
        message.index = index;
        message.entries = std::mem::take(&mut self.entries);
        message.commit = commit;
        self.position.index = index.wrapping_add(message.entries.len() as u64);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn decoder() -> Decoder {
        Decoder::new(MemberId(2), MemberId(1))
    }

    fn fail(bytes: &[u8]) -> FrameError {
        let mut decoder = decoder();
        decoder.feed(Bytes::copy_from_slice(bytes));
        let error = decoder.next().unwrap_err();
        assert_eq!(decoder.next(), Err(error), "an error stays");
        assert_eq!(decoder.finish(), Err(error));
        error
    }

    fn frame(tag: u8, numbers: &[u64]) -> Vec<u8> {
        let numbers = numbers.iter().flat_map(|n| n.to_be_bytes());
        std::iter::once(tag).chain(numbers).collect()
    }

    #[test]
    fn what_crashes_a_go_member_is_a_stream_error_here() {
        let limit = FRAME_BYTES_MAX;
        let length = u64::MAX;
        assert_eq!(fail(&[3]), FrameError::UnknownTag(3));
        let too_long = FrameError::TooLong { length, limit };
        assert_eq!(fail(&frame(FULL, &[u64::MAX])), too_long);
        assert_eq!(fail(&frame(COMPACT, &[u64::MAX])), too_long);
        let limit = limit - 8;
        let too_long = FrameError::TooLong { length, limit };
        assert_eq!(fail(&frame(COMPACT, &[1, u64::MAX])), too_long);
        let garbage = [&frame(FULL, &[2])[..], &[0xff, 0xff]].concat();
        assert!(matches!(fail(&garbage), FrameError::Decode(_)));
    }

    #[test]
    fn lengths_are_bounded_over_the_whole_frame() {
        let half = FRAME_BYTES_MAX / 2;
        let mut decoder = decoder();
        decoder.feed(frame(COMPACT, &[3, half]).into());
        assert_eq!(decoder.next(), Ok(None));
        assert_eq!(decoder.budget, half - 24);
        assert_eq!(decoder.finish(), Err(FrameError::Truncated));
        assert!(decoder.entries.capacity() <= 1);
    }

    #[test]
    fn an_append_that_would_lose_a_field_goes_out_whole() {
        let plain = Message {
            msg_type: MessageType::Append as i32,
            ..Message::default()
        };
        let odd = Message {
            context: Bytes::from_static(b"x"),
            ..plain.clone()
        };
        let first_byte = |message: &Message| {
            let mut to = BytesMut::new();
            Encoder::new().encode(message, &mut to).unwrap();
            to[0]
        };
        assert_eq!(first_byte(&plain), COMPACT);
        assert_eq!(first_byte(&odd), FULL);
    }

    #[test]
    fn both_ends_count_the_same_bytes() {
        let append = |index: u64, entries: u64| Message {
            msg_type: MessageType::Append as i32,
            to: 2,
            from: 1,
            term: 5,
            log_term: 5,
            index,
            entries: (1..=entries)
                .map(|at| Entry {
                    term: 5,
                    index: index + at,
                    data: vec![7; 300 * at as usize].into(),
                    ..Entry::default()
                })
                .collect(),
            ..Message::default()
        };
        let (mut encoder, mut decoder) = (Encoder::new(), decoder());
        // Full, compact, compact and empty, and the heartbeat.
        let sent = [
            append(9, 1),
            append(10, 3),
            append(13, 0),
            Message::link_heartbeat(),
        ];
        for message in sent {
            let mut body = BytesMut::new();
            let bytes = encoder.encode(&message, &mut body).unwrap();
            decoder.feed(body.freeze());
            assert_eq!(decoder.next_sized(), Ok(Some((message.clone(), bytes))));
            assert_eq!(bytes, encoded_len(&message));
        }
    }

    #[test]
    fn other_kinds_are_refused() {
        let vote = Message {
            msg_type: MessageType::RequestVote as i32,
            to: 2,
            ..Message::default()
        };
        let mut to = BytesMut::new();
        let refused = Encoder::new().encode(&vote, &mut to);
        assert_eq!(refused, Err(EncodeError::NotAppend(5)));
        assert!(to.is_empty());
    }
}
