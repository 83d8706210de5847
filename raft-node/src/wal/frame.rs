//! Frames and records: the bytes of a segment.
//!
//! A frame is an 8-byte little-endian length, a protobuf record {1 type, 2 crc, 3 data} and zeros up to
//! the next multiple of 8; the length's top byte is `0x80 | padding` when there is padding. The crc is
//! CRC-32C over the data of every record since the log began. Fields are written as etcd up to 3.6
//! writes them, zeros included, so that equal logs have equal bytes. Pure: no I/O. Reading never
//! allocates. etcd: server/storage/wal/encoder.go, decoder.go, walpb/record.proto.

use std::ops::Range;

use prost::Message as _;
use transport_core::raftpb::{Entry, HardState};

use super::{Metadata, WalSnapshot};

pub(crate) const LENGTH_BYTES: usize = 8;

/// Most bytes that a frame has besides its record's data.
pub(crate) const FRAME_OVERHEAD_BYTES: usize = LENGTH_BYTES + 2 + 6 + 11 + 7;

/// Most bytes of an encoded entry besides its payload.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 4 * 11;

/// What a record holds; numbered as on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordType {
    Metadata = 1,
    Entry = 2,
    State = 3,
    Crc = 4,
    Snapshot = 5,
}

impl RecordType {
    pub(crate) fn from_number(number: u64) -> Option<RecordType> {
        Some(match number {
            1 => RecordType::Metadata,
            2 => RecordType::Entry,
            3 => RecordType::State,
            4 => RecordType::Crc,
            5 => RecordType::Snapshot,
            _ => return None,
        })
    }
}

/// Appends a record whose data is the concatenation of `pieces`, and advances the running crc.
fn put_record(out: &mut Vec<u8>, crc: &mut u32, kind: RecordType, pieces: &[&[u8]]) {
    let mut data_len = 0;
    for piece in pieces {
        *crc = crc32c::crc32c_append(*crc, piece);
        data_len += piece.len();
    }
    let mut head = Varints::new();
    head.field(1, kind as u64);
    head.field(2, u64::from(*crc));
    head.length(3, data_len);
    put_frame(out, head.bytes(), pieces);
}

fn put_frame(out: &mut Vec<u8>, head: &[u8], pieces: &[&[u8]]) {
    let record_len = head.len() + pieces.iter().map(|piece| piece.len()).sum::<usize>();
    let (length, padding) = encode_length(record_len);
    out.reserve(LENGTH_BYTES + record_len + padding);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(head);
    for piece in pieces {
        out.extend_from_slice(piece);
    }
    out.resize(out.len() + padding, 0);
}

/// The record that opens a segment: the crc that the segments before it ended with.
pub(crate) fn put_crc(out: &mut Vec<u8>, crc: u32) {
    let mut head = Varints::new();
    head.field(1, RecordType::Crc as u64);
    head.field(2, u64::from(crc));
    put_frame(out, head.bytes(), &[]);
}

pub(crate) fn put_metadata(out: &mut Vec<u8>, crc: &mut u32, raw: &[u8]) {
    put_record(out, crc, RecordType::Metadata, &[raw]);
}

pub(crate) fn put_entry(out: &mut Vec<u8>, crc: &mut u32, entry: &Entry) {
    let mut fields = Varints::new();
    // An enum travels as a sign-extended 64-bit varint.
    fields.field(1, i64::from(entry.entry_type) as u64);
    fields.field(2, entry.term);
    fields.field(3, entry.index);
    if entry.data.is_empty() {
        put_record(out, crc, RecordType::Entry, &[fields.bytes()]);
    } else {
        fields.length(4, entry.data.len());
        put_record(out, crc, RecordType::Entry, &[fields.bytes(), &entry.data]);
    }
}

pub(crate) fn put_state(out: &mut Vec<u8>, crc: &mut u32, state: &HardState) {
    let mut fields = Varints::new();
    fields.field(1, state.term);
    fields.field(2, state.vote);
    fields.field(3, state.commit);
    put_record(out, crc, RecordType::State, &[fields.bytes()]);
}

pub(crate) fn put_snapshot(out: &mut Vec<u8>, crc: &mut u32, snapshot: &WalSnapshot) {
    let mut fields = Varints::new();
    fields.field(1, snapshot.index);
    fields.field(2, snapshot.term);
    match &snapshot.conf_state {
        None => put_record(out, crc, RecordType::Snapshot, &[fields.bytes()]),
        Some(conf_state) => {
            let encoded = conf_state.encode_to_vec();
            fields.length(3, encoded.len());
            put_record(out, crc, RecordType::Snapshot, &[fields.bytes(), &encoded]);
        }
    }
}

pub(crate) fn encode_metadata(metadata: &Metadata) -> Vec<u8> {
    let mut fields = Varints::new();
    fields.field(1, metadata.node_id.0);
    fields.field(2, metadata.cluster_id.0);
    fields.bytes().to_vec()
}

/// A few varint fields on the stack.
struct Varints {
    bytes: [u8; 48],
    len: usize,
}

impl Varints {
    fn new() -> Self {
        Varints {
            bytes: [0; 48],
            len: 0,
        }
    }

    fn field(&mut self, number: u8, value: u64) {
        self.push(number << 3);
        self.varint(value);
    }

    /// The head of a length-delimited field; its bytes follow elsewhere.
    fn length(&mut self, number: u8, len: usize) {
        self.push(number << 3 | 2);
        self.varint(len as u64);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn push(&mut self, byte: u8) {
        // At most four fields of 1 + 10 bytes are ever written: 44 of 48.
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn encode_length(record_len: usize) -> (u64, usize) {
    let padding = padding_of(record_len as u64);
    let mut length = record_len as u64;
    if padding != 0 {
        length |= (0x80 | padding) << 56;
    }
    (length, padding as usize)
}

fn padding_of(record_len: u64) -> u64 {
    (8 - record_len % 8) % 8
}

/// A length field that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// Space that was never written.
    Zero,
    /// The bytes of record and padding that follow.
    Frame { record: u64, padding: u64 },
    /// Not a length that any writer writes.
    Invalid,
}

pub(crate) fn decode_length(bytes: [u8; LENGTH_BYTES]) -> Length {
    let word = u64::from_le_bytes(bytes);
    if word == 0 {
        return Length::Zero;
    }
    let record = word & !(0xff << 56);
    let padding = padding_of(record);
    let top = word >> 56;
    let expected = if padding == 0 { 0 } else { 0x80 | padding };
    if record == 0 || top != expected {
        return Length::Invalid;
    }
    Length::Frame { record, padding }
}

/// A parsed record; `data` is its place in the bytes it was parsed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: u64,
    pub(crate) crc: u32,
    pub(crate) data: Range<usize>,
}

/// Parses a whole record. Unknown fields are stepped over.
pub(crate) fn decode_record(bytes: &[u8]) -> Option<Record> {
    let mut record = Record {
        kind: 0,
        crc: 0,
        data: 0..0,
    };
    let mut at = 0;
    while at < bytes.len() {
        let tag = varint(bytes, &mut at)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => record.kind = varint(bytes, &mut at)?,
            (2, 0) => record.crc = u32::try_from(varint(bytes, &mut at)?).ok()?,
            (3, 2) => record.data = delimited(bytes, &mut at)?,
            (0..=3, _) => return None,
            (_, 0) => {
                varint(bytes, &mut at)?;
            }
            (_, 1) => skip(bytes, &mut at, 8)?,
            (_, 2) => {
                delimited(bytes, &mut at)?;
            }
            (_, 5) => skip(bytes, &mut at, 4)?,
            _ => return None,
        }
    }
    Some(record)
}

/// What the first bytes of a record say about its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefix {
    /// The record is so long.
    Says(u64),
    /// The bytes end inside of the prefix.
    Short,
    /// Not how a record begins.
    Bad,
}

/// Looks at the head of a record: type, crc and, where data follows, its length.
///
/// A damaged length field shows when it disagrees with this. Every etcd writes the fields in this order.
pub(crate) fn record_prefix(bytes: &[u8]) -> Prefix {
    let mut at = 0;
    for number in [1u64, 2] {
        match bytes.get(at) {
            None => return Prefix::Short,
            Some(&tag) if u64::from(tag) == number << 3 => at += 1,
            Some(_) => return Prefix::Bad,
        }
        match varint(bytes, &mut at) {
            Some(value) if number == 1 && RecordType::from_number(value).is_none() => {
                return Prefix::Bad;
            }
            Some(RECORD_CRC) if number == 1 => return crc_prefix(bytes, at),
            Some(_) => {}
            None => return cut_or_bad(bytes, at),
        }
    }
    match bytes.get(at) {
        None => return Prefix::Short,
        Some(0x1a) => at += 1,
        Some(_) => return Prefix::Bad,
    }
    match varint(bytes, &mut at) {
        Some(data) => match (at as u64).checked_add(data) {
            Some(record) => Prefix::Says(record),
            None => Prefix::Bad,
        },
        None => cut_or_bad(bytes, at),
    }
}

const RECORD_CRC: u64 = RecordType::Crc as u64;

/// A crc record ends after its crc.
fn crc_prefix(bytes: &[u8], mut at: usize) -> Prefix {
    match bytes.get(at) {
        None => return Prefix::Short,
        Some(0x10) => at += 1,
        Some(_) => return Prefix::Bad,
    }
    match varint(bytes, &mut at) {
        Some(_) => Prefix::Says(at as u64),
        None => cut_or_bad(bytes, at),
    }
}

fn cut_or_bad(bytes: &[u8], at: usize) -> Prefix {
    if bytes.len() - at < 10 {
        Prefix::Short
    } else {
        Prefix::Bad
    }
}

/// Moves `at` past the varint only when there is a whole one.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for (i, &byte) in bytes.get(*at..)?.iter().take(10).enumerate() {
        if i == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *at += i + 1;
            return Some(value);
        }
    }
    None
}

fn delimited(bytes: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let len = usize::try_from(varint(bytes, at)?).ok()?;
    let start = *at;
    skip(bytes, at, len)?;
    Some(start..*at)
}

fn skip(bytes: &[u8], at: &mut usize, len: usize) -> Option<()> {
    let end = at.checked_add(len)?;
    if end > bytes.len() {
        return None;
    }
    *at = end;
    Some(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// Record and frame of one entry, as a 3.6.16 member wrote them.
    #[test]
    fn an_entry_has_etcds_bytes() {
        let entry = Entry {
            entry_type: 0,
            term: 2,
            index: 4,
            data: Bytes::from_static(b"hi"),
        };
        let (mut out, mut crc) = (Vec::new(), 0);
        put_entry(&mut out, &mut crc, &entry);
        let data = [8, 0, 16, 2, 24, 4, 34, 2, b'h', b'i'];
        assert_eq!(crc, crc32c::crc32c(&data));
        let Length::Frame { record, padding } =
            decode_length(out[..8].try_into().expect("eight bytes"))
        else {
            panic!("no frame: {out:?}");
        };
        assert_eq!(out.len() as u64, 8 + record + padding);
        let parsed = decode_record(&out[8..8 + record as usize]).expect("a record");
        assert_eq!(parsed.kind, RecordType::Entry as u64);
        assert_eq!(parsed.crc, crc);
        assert_eq!(out[8..][parsed.data], data);
    }

    #[test]
    fn a_length_with_wrong_padding_bits_is_invalid() {
        assert_eq!(decode_length([0; 8]), Length::Zero);
        assert_eq!(
            decode_length([16, 0, 0, 0, 0, 0, 0, 0]),
            Length::Frame {
                record: 16,
                padding: 0
            }
        );
        assert_eq!(
            decode_length([15, 0, 0, 0, 0, 0, 0, 0x81]),
            Length::Frame {
                record: 15,
                padding: 1
            }
        );
        for bad in [
            [15, 0, 0, 0, 0, 0, 0, 0],
            [15, 0, 0, 0, 0, 0, 0, 0x82],
            [16, 0, 0, 0, 0, 0, 0, 0x80],
            [0, 0, 0, 0, 0, 0, 0, 0x80],
        ] {
            assert_eq!(decode_length(bad), Length::Invalid, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_not_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(record) = decode_record(&bytes) {
                prop_assert!(record.data.end <= bytes.len());
            }
            record_prefix(&bytes);
        }

        #[test]
        fn the_prefix_says_what_was_written(
            entry_type in 0..3i32, term: u64, index: u64,
            data in proptest::collection::vec(any::<u8>(), 0..300),
            before: u32,
        ) {
            let entry = Entry { entry_type, term, index, data: data.into() };
            let (mut out, mut crc) = (Vec::new(), before);
            put_entry(&mut out, &mut crc, &entry);
            prop_assert!(out.len() <= FRAME_OVERHEAD_BYTES + ENTRY_OVERHEAD_BYTES + entry.data.len());
            prop_assert_eq!(out.len() % 8, 0);
            let Length::Frame { record, .. } = decode_length(out[..8].try_into()?) else {
                return Err(TestCaseError::fail("no frame"));
            };
            let bytes = &out[8..8 + record as usize];
            prop_assert_eq!(record_prefix(bytes), Prefix::Says(record));
            let parsed = decode_record(bytes).expect("a record");
            for cut in 0..parsed.data.start {
                prop_assert_eq!(record_prefix(&bytes[..cut]), Prefix::Short);
            }
            prop_assert_eq!(Entry::decode(&bytes[parsed.data])?, entry);
        }
    }
}
