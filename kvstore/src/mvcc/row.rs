//! The rows of bucket `key`: writing them, and reading the parts that restoring and hashing need without an
//! allocation.
//!
//! Invariant: the bytes of a row are those etcd writes for the same change: `mvccpb.KeyValue` in ascending field
//! order without zero fields, a tombstone with the key alone.

use bytes::Bytes;
use prost::{
    Message,
    encoding::{encode_varint, encoded_len_varint},
};

use super::revision::{ROW_KEY_LEN, RowKey};
use crate::pb::mvccpb::KeyValue;

/// A row as it goes to the backend; both parts share one allocation.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub key: Bytes,
    pub value: Bytes,
}

/// What a put writes.
pub(crate) struct Put<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
    pub create: i64,
    pub version: i64,
    pub lease: i64,
}

impl Row {
    /// The row of a put at `at`.
    pub fn put(at: RowKey, put: &Put<'_>) -> Row {
        debug_assert!(!at.tombstone);
        // Three numbers of at most 11 bytes each with their tags, two lengths, the mod revision.
        let room = ROW_KEY_LEN + put.key.len() + put.value.len() + 4 * 11 + 2 * 6;
        Row::build(at, room, |row| {
            write_bytes(row, 1, put.key);
            write_int(row, 2, put.create);
            write_int(row, 3, at.revision.main);
            write_int(row, 4, put.version);
            write_bytes(row, 5, put.value);
            write_int(row, 6, put.lease);
        })
    }

    /// The row of a deletion at `at`.
    pub fn tombstone(at: RowKey, key: &[u8]) -> Row {
        debug_assert!(at.tombstone);
        Row::build(at, ROW_KEY_LEN + 1 + key.len() + 6, |row| {
            write_bytes(row, 1, key)
        })
    }

    fn build(at: RowKey, room: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Row {
        let mut row = Vec::with_capacity(room);
        at.write(&mut row);
        let split = row.len();
        fill(&mut row);
        let row = Bytes::from(row);
        Row {
            key: row.slice(..split),
            value: row.slice(split..),
        }
    }
}

fn write_bytes(row: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        row.push(field << 3 | 2);
        encode_varint(bytes.len() as u64, row);
        row.extend_from_slice(bytes);
    }
}

fn write_int(row: &mut Vec<u8>, field: u8, value: i64) {
    if value != 0 {
        row.push(field << 3);
        encode_varint(value as u64, row);
    }
}

/// Decodes a row's value; its parts share the row's buffer.
pub(crate) fn decode(value: Bytes) -> Result<KeyValue, prost::DecodeError> {
    KeyValue::decode(value)
}

/// Whether a row holds what every reader of it relies on.
pub(crate) fn is_readable(key: &[u8], value: &Bytes) -> bool {
    RowKey::parse(key).is_some()
        && RowHead::parse(value).is_some()
        && KeyValue::decode(value.clone()).is_ok()
}

/// Bytes of the encoded form of `kv`, as etcd counts the size of what was put.
pub(crate) fn put_bytes(key: &[u8], value: &[u8]) -> usize {
    let field = |bytes: &[u8]| 1 + encoded_len_varint(bytes.len() as u64) + bytes.len();
    field(key) + field(value)
}

/// The parts of a row that restoring and hashing need, borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RowHead<'a> {
    pub key: &'a [u8],
    pub create: i64,
    pub version: i64,
    pub lease: i64,
}

impl<'a> RowHead<'a> {
    /// Reads a row's value; `None` when it is not a `KeyValue`. An empty one is: `etcdutl snapshot restore
    /// --bump-revision` writes such a row.
    pub fn parse(value: &'a [u8]) -> Option<RowHead<'a>> {
        let mut head = RowHead::default();
        let mut rest = value;
        while !rest.is_empty() {
            let tag = take_varint(&mut rest)?;
            match (tag >> 3, tag & 7) {
                (1, 2) => head.key = take_bytes(&mut rest)?,
                (2, 0) => head.create = take_varint(&mut rest)? as i64,
                (4, 0) => head.version = take_varint(&mut rest)? as i64,
                (6, 0) => head.lease = take_varint(&mut rest)? as i64,
                (_, 0) => drop(take_varint(&mut rest)?),
                (_, 2) => drop(take_bytes(&mut rest)?),
                (_, 1) => rest = rest.get(8..)?,
                (_, 5) => rest = rest.get(4..)?,
                _ => return None,
            }
        }
        Some(head)
    }
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(from).ok()
}

fn take_bytes<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(from)?).ok()?;
    let (bytes, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mvcc::Revision;

    fn at(main: i64, tombstone: bool) -> RowKey {
        RowKey {
            revision: Revision::new(main, 0),
            tombstone,
        }
    }

    #[test]
    fn a_tombstone_holds_its_key_alone() {
        let row = Row::tombstone(at(9, true), b"gone");
        assert_eq!(&row.value[..], b"\x0a\x04gone");
        assert_eq!(row.key.len(), 18);
    }

    #[test]
    fn an_empty_row_is_a_row() {
        assert_eq!(RowHead::parse(b""), Some(RowHead::default()));
        assert_eq!(RowHead::parse(b"\x0a\x05abc"), None);
        assert_eq!(RowHead::parse(b"\x0b"), None);
    }

    proptest! {
        #[test]
        fn rows_are_what_prost_writes(
            key in proptest::collection::vec(any::<u8>(), 0..40),
            value in proptest::collection::vec(any::<u8>(), 0..300),
            create in 1..i64::MAX, main in 1..i64::MAX, version in 1..i64::MAX, lease in any::<i64>(),
        ) {
            let put = Put { key: &key, value: &value, create, version, lease };
            let row = Row::put(at(main, false), &put);
            let kv = KeyValue {
                key: key.clone().into(),
                create_revision: create,
                mod_revision: main,
                version,
                value: value.clone().into(),
                lease,
            };
            prop_assert_eq!(&row.value[..], &kv.encode_to_vec()[..]);
            prop_assert_eq!(RowHead::parse(&row.value), Some(RowHead { key: &key, create, version, lease }));
            prop_assert_eq!(decode(row.value).unwrap(), kv);
        }

        #[test]
        fn any_bytes_parse_as_prost_says(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            // Ours need not refuse all that prost refuses, but must accept all that it accepts, with the same key.
            if let Ok(kv) = KeyValue::decode(&bytes[..]) {
                // Groups are skipped by prost and never written by anybody.
                if let Some(head) = RowHead::parse(&bytes) {
                    prop_assert_eq!(head.key, &kv.key[..]);
                }
            }
        }
    }
}
