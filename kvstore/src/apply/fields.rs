//! The fields of a protobuf message, one after the other, without knowing what the message is.
//!
//! Depends on prost's varints. Invariant: any bytes yield fields and then perhaps one error, in time proportional to
//! their length; values are slices of the data.

use bytes::Bytes;
use prost::encoding::decode_varint;

/// What a field holds.
pub(super) enum Value {
    Number(u64),
    Bytes(Bytes),
    /// A number of fixed size, which no request has.
    Fixed,
}

/// One field.
pub(super) struct Field<'a> {
    pub number: u64,
    pub value: Value,
    /// All its bytes, tag included.
    pub raw: &'a [u8],
}

/// The bytes are no message.
#[derive(Debug)]
pub(super) struct Malformed;

/// Walks the top-level fields of `data`; ends at the first error.
pub(super) fn fields(data: &Bytes) -> impl Iterator<Item = Result<Field<'_>, Malformed>> {
    let mut rest = &data[..];
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let begin = rest;
        let field = next(data, &mut rest).map(|(number, value)| Field {
            number,
            value,
            raw: &begin[..begin.len() - rest.len()],
        });
        if field.is_none() {
            rest = &[];
        }
        Some(field.ok_or(Malformed))
    })
}

fn next(data: &Bytes, rest: &mut &[u8]) -> Option<(u64, Value)> {
    let tag = decode_varint(rest).ok()?;
    let value = match tag & 7 {
        0 => Value::Number(decode_varint(rest).ok()?),
        1 => {
            *rest = rest.get(8..)?;
            Value::Fixed
        }
        2 => {
            let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (bytes, behind) = rest.split_at_checked(len)?;
            *rest = behind;
            Value::Bytes(data.slice_ref(bytes))
        }
        5 => {
            *rest = rest.get(4..)?;
            Value::Fixed
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}
