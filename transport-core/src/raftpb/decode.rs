//! Reading raft messages from bytes that nobody vouches for.
//!
//! Written by hand rather than left to the derive for two reasons: entries are counted before room is made
//! for them, so that memory stays within a small multiple of the input, and payloads stay slices of it.
//! Fields may come in any order; absent ones read as zero; unknown ones are skipped.
//!
//! Invariant: no input panics, and no input of n bytes makes a message of more than 14 n bytes plus 64 KiB.

use bytes::Bytes;

use super::{
    ConfChange, ConfState, Entry, HardState, Message, MessageType, Snapshot, SnapshotMetadata,
    reader::Reader,
};

/// Ids in one list of a [`ConfState`]. Raft groups have a handful of members; the bound is what keeps a
/// list of one-byte ids from growing eightfold in memory.
pub const CONF_STATE_IDS_MAX: usize = 1024;

/// Entries a message may always have, however small they are.
const ENTRIES_FREE: usize = 64;

/// Past [`ENTRIES_FREE`], the wire bytes an entry must have on average. An entry of a log has a term and an
/// index, hence six bytes with its key and length; without the bound an empty one costs its sender two
/// bytes and us 56.
const ENTRY_BYTES_MEAN_MIN: usize = 4;

/// Why bytes are not a raft message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a field, or a length points past the end.
    #[error("unexpected EOF")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("integer overflow")]
    VarintOverflow,
    /// A field number protobuf does not allow.
    #[error("illegal field number {0}")]
    FieldNumber(u64),
    /// A known field in the form of another one, or a group.
    #[error("wrong wire type {wire_type} for field {number}")]
    WireType {
        /// Number of the field.
        number: u64,
        /// Its wire type, 0 to 7.
        wire_type: u64,
    },
    /// More entries than a message of its length can honestly have.
    #[error("{count} entries in {bytes} bytes")]
    TooManyEntries {
        /// Entries of the message.
        count: usize,
        /// Length of the message.
        bytes: usize,
    },
    /// More than [`CONF_STATE_IDS_MAX`] ids in one list of a configuration.
    #[error("too many members in a configuration")]
    TooManyMembers,
}

/// Reads a [`Message`]. Payloads are slices of `bytes`, which lives as long as any of them.
///
/// A snapshot without content on any kind but [`MessageType::Snapshot`] reads as absent: etcd 3.4 and 3.5
/// put one into every message.
pub fn decode_message(bytes: Bytes) -> Result<Message, DecodeError> {
    message_in(&bytes, 0, bytes.len())
}

/// Reads an [`Entry`]; its data is a slice of `bytes`.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, DecodeError> {
    let mut entry = Entry::default();
    entry_into(&mut entry, &bytes, 0, bytes.len())?;
    Ok(entry)
}

/// Reads a [`ConfChange`], the data of a configuration entry; its context is a slice of `bytes`.
pub fn decode_conf_change(bytes: Bytes) -> Result<ConfChange, DecodeError> {
    let mut reader = Reader::new(&bytes, 0, bytes.len());
    let mut change = ConfChange::default();
    while let Some(key) = reader.key()? {
        match key {
            0x08 => change.id = reader.varint()?,
            0x10 => change.change_type = reader.varint()? as i32,
            0x18 => change.node_id = reader.varint()?,
            0x22 => change.context = reader.payload()?,
            _ => reader.skip(key, 4)?,
        }
    }
    Ok(change)
}

/// Reads a [`Snapshot`]; its data is a slice of `bytes`.
pub fn decode_snapshot(bytes: Bytes) -> Result<Snapshot, DecodeError> {
    let mut snapshot = Snapshot::default();
    merge_snapshot(&mut snapshot, Reader::new(&bytes, 0, bytes.len()))?;
    Ok(snapshot)
}

/// Reads a [`ConfState`].
pub fn decode_conf_state(bytes: Bytes) -> Result<ConfState, DecodeError> {
    let mut state = ConfState::default();
    merge_conf_state(&mut state, Reader::new(&bytes, 0, bytes.len()))?;
    Ok(state)
}

/// Reads a [`HardState`].
pub fn decode_hard_state(bytes: Bytes) -> Result<HardState, DecodeError> {
    let mut reader = Reader::new(&bytes, 0, bytes.len());
    let mut state = HardState::default();
    while let Some(key) = reader.key()? {
        match key {
            0x08 => state.term = reader.varint()?,
            0x10 => state.vote = reader.varint()?,
            0x18 => state.commit = reader.varint()?,
            _ => reader.skip(key, 3)?,
        }
    }
    Ok(state)
}

/// Reads the message in `buffer[start..end]`.
pub(crate) fn message_in(buffer: &Bytes, start: usize, end: usize) -> Result<Message, DecodeError> {
    let mut reader = Reader::new(buffer, start, end);
    let mut message = Message::default();
    while let Some(key) = reader.key()? {
        match key {
            0x08 => message.msg_type = reader.varint()? as i32,
            0x10 => message.to = reader.varint()?,
            0x18 => message.from = reader.varint()?,
            0x20 => message.term = reader.varint()?,
            0x28 => message.log_term = reader.varint()?,
            0x30 => message.index = reader.varint()?,
            0x3a => {
                if message.entries.is_empty() {
                    message.entries = room_for_entries(reader.clone(), end - start)?;
                }
                let nested = reader.nested()?;
                merge_entry(message.entries.push_mut(Entry::default()), nested)?;
            }
            0x40 => message.commit = reader.varint()?,
            0x4a => merge_snapshot(message.snapshot.get_or_insert_default(), reader.nested()?)?,
            0x50 => message.reject = reader.varint()? != 0,
            0x58 => message.reject_hint = reader.varint()?,
            0x62 => message.context = reader.payload()?,
            _ => reader.skip(key, 12)?,
        }
    }
    if message.msg_type != MessageType::Snapshot as i32
        && message.snapshot.as_deref().is_some_and(Snapshot::is_empty)
    {
        message.snapshot = None;
    }
    Ok(message)
}

/// Reads the entry in `buffer[start..end]` into an empty one, where it stays: it is not small.
pub(crate) fn entry_into(
    entry: &mut Entry,
    buffer: &Bytes,
    start: usize,
    end: usize,
) -> Result<(), DecodeError> {
    merge_entry(entry, Reader::new(buffer, start, end))
}

#[inline]
fn merge_entry(entry: &mut Entry, mut reader: Reader<'_>) -> Result<(), DecodeError> {
    while let Some(key) = reader.key()? {
        match key {
            0x08 => entry.entry_type = reader.varint()? as i32,
            0x10 => entry.term = reader.varint()?,
            0x18 => entry.index = reader.varint()?,
            0x22 => entry.data = reader.payload()?,
            _ => reader.skip(key, 4)?,
        }
    }
    Ok(())
}

/// Makes room for exactly the entries of a message, the key of the first of which has been read.
fn room_for_entries(ahead: Reader<'_>, message_bytes: usize) -> Result<Vec<Entry>, DecodeError> {
    let count = count_entries(ahead)?;
    if count > ENTRIES_FREE + message_bytes / ENTRY_BYTES_MEAN_MIN {
        let bytes = message_bytes;
        return Err(DecodeError::TooManyEntries { count, bytes });
    }
    Ok(Vec::with_capacity(count))
}

fn count_entries(mut ahead: Reader<'_>) -> Result<usize, DecodeError> {
    ahead.nested()?;
    let mut count = 1;
    while let Some(key) = ahead.key()? {
        if key == 0x3a {
            ahead.nested()?;
            count += 1;
        } else {
            ahead.skip(key, 0)?;
        }
    }
    Ok(count)
}

/// Later occurrences of a nested message add to earlier ones, as protobuf has it.
fn merge_snapshot(snapshot: &mut Snapshot, mut reader: Reader<'_>) -> Result<(), DecodeError> {
    while let Some(key) = reader.key()? {
        match key {
            0x0a => snapshot.data = reader.payload()?,
            0x12 => merge_metadata(snapshot.metadata.get_or_insert_default(), reader.nested()?)?,
            _ => reader.skip(key, 2)?,
        }
    }
    Ok(())
}

fn merge_metadata(
    metadata: &mut SnapshotMetadata,
    mut reader: Reader<'_>,
) -> Result<(), DecodeError> {
    while let Some(key) = reader.key()? {
        match key {
            0x0a => merge_conf_state(
                metadata.conf_state.get_or_insert_default(),
                reader.nested()?,
            )?,
            0x10 => metadata.index = reader.varint()?,
            0x18 => metadata.term = reader.varint()?,
            _ => reader.skip(key, 3)?,
        }
    }
    Ok(())
}

fn merge_conf_state(state: &mut ConfState, mut reader: Reader<'_>) -> Result<(), DecodeError> {
    while let Some(key) = reader.key()? {
        match key {
            0x08 | 0x0a => ids(&mut state.voters, key, &mut reader)?,
            0x10 | 0x12 => ids(&mut state.learners, key, &mut reader)?,
            0x18 | 0x1a => ids(&mut state.voters_outgoing, key, &mut reader)?,
            0x20 | 0x22 => ids(&mut state.learners_next, key, &mut reader)?,
            0x28 => state.auto_leave = reader.varint()? != 0,
            _ => reader.skip(key, 5)?,
        }
    }
    Ok(())
}

/// One id, or a packed list of them.
fn ids(into: &mut Vec<u64>, key: u64, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    if key & 7 == super::reader::VARINT {
        return push_id(into, reader.varint()?);
    }
    let mut packed = reader.nested()?;
    while packed.remaining() > 0 {
        push_id(into, packed.varint()?)?;
    }
    Ok(())
}

fn push_id(into: &mut Vec<u64>, id: u64) -> Result<(), DecodeError> {
    if into.len() == CONF_STATE_IDS_MAX {
        return Err(DecodeError::TooManyMembers);
    }
    into.push(id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_above_twelve_are_skipped_in_every_wire_type() {
        let bytes = [
            &[0x08, 0x08, 0x10, 0x02][..],
            &[0x68, 0x07],                   // 13: Go's vote, raft-rs' request_snapshot
            &[0x72, 0x02, 0x08, 0x01],       // 14: Go's responses
            &[0x70, 0x05],                   // 14: raft-rs' priority
            &[0x79, 1, 2, 3, 4, 5, 6, 7, 8], // 15: eight bytes
            &[0x85, 0x01, 1, 2, 3, 4],       // 16: four bytes
            &[0x18, 0x01],
        ]
        .concat();
        let message = decode_message(bytes.into()).unwrap();
        let expected = Message {
            msg_type: 8,
            to: 2,
            from: 1,
            ..Message::default()
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn malformed_input_is_named() {
        let decode = |bytes: &'static [u8]| decode_message(Bytes::from_static(bytes));
        assert_eq!(decode(&[0x08]), Err(DecodeError::Truncated));
        assert_eq!(decode(&[0x62, 0x05, 1]), Err(DecodeError::Truncated));
        assert_eq!(decode(&[0x79, 1, 2]), Err(DecodeError::Truncated));
        assert_eq!(decode(&[0x00]), Err(DecodeError::FieldNumber(0)));
        let wire_type = |number, wire_type| Err(DecodeError::WireType { number, wire_type });
        assert_eq!(decode(&[0x0a, 0x00]), wire_type(1, 2));
        assert_eq!(decode(&[0x38, 0x00]), wire_type(7, 0));
        assert_eq!(decode(&[0x73, 0x74]), wire_type(14, 3));
        assert_eq!(decode(b"garbage"), wire_type(12, 7));
    }

    #[test]
    fn an_empty_message_is_all_zeros() {
        assert_eq!(decode_message(Bytes::new()), Ok(Message::default()));
    }

    #[test]
    fn empty_entries_are_bounded_by_the_length() {
        let few = Bytes::from(b"\x3a\x00".repeat(64));
        assert_eq!(decode_message(few).unwrap().entries.len(), 64);
        let many = Bytes::from(b"\x3a\x00".repeat(1000));
        assert_eq!(
            decode_message(many),
            Err(DecodeError::TooManyEntries {
                count: 1000,
                bytes: 2000
            })
        );
        let smallest_real = Bytes::from(b"\x3a\x04\x10\x01\x18\x01".repeat(1000));
        assert_eq!(decode_message(smallest_real).unwrap().entries.len(), 1000);
    }

    #[test]
    fn interrupted_runs_of_entries_are_all_read() {
        let bytes = b"\x3a\x02\x18\x01\x3a\x02\x18\x02\x40\x09\x3a\x02\x18\x03".to_vec();
        let message = decode_message(bytes.into()).unwrap();
        let indexes: Vec<u64> = message.entries.iter().map(|e| e.index).collect();
        assert_eq!((indexes, message.commit), (vec![1, 2, 3], 9));
    }

    #[test]
    fn configurations_read_packed_and_unpacked_and_bounded() {
        let mixed = Bytes::from_static(&[0x08, 1, 0x0a, 2, 2, 3, 0x08, 4, 0x12, 1, 9, 0x28, 1]);
        let state = decode_conf_state(mixed).unwrap();
        assert_eq!(state.voters, [1, 2, 3, 4]);
        assert_eq!(state.learners, [9]);
        assert!(state.auto_leave);
        let flood = Bytes::from(b"\x08\x01".repeat(CONF_STATE_IDS_MAX + 1));
        assert_eq!(decode_conf_state(flood), Err(DecodeError::TooManyMembers));
    }

    #[test]
    fn only_a_snapshot_message_keeps_an_empty_snapshot() {
        let snapshot = b"\x4a\x0a\x12\x08\x0a\x02\x28\x00\x10\x00\x18\x00";
        let decode = |kind: u8| {
            let bytes = [&[0x08, kind][..], snapshot].concat();
            decode_message(bytes.into()).unwrap().snapshot
        };
        assert_eq!(decode(8), None);
        assert!(decode(7).is_some_and(|s| s.is_empty()));
    }

    #[test]
    fn repeated_nested_messages_are_merged() {
        // snapshot { data "a" } and later snapshot { metadata { index 3 } }
        let bytes = b"\x08\x07\x4a\x03\x0a\x01a\x4a\x04\x12\x02\x10\x03".to_vec();
        let snapshot = decode_message(bytes.into()).unwrap().snapshot.unwrap();
        assert_eq!(&snapshot.data[..], b"a");
        assert_eq!(snapshot.metadata.unwrap().index, 3);
    }
}
