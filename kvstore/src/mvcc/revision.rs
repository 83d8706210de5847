//! Revisions and the keys of bucket `key`: 8 bytes main, `_`, 8 bytes sub, and `t` when the row is a tombstone.
//!
//! Invariant: the byte order of row keys is the order of revisions (etcd: server/storage/mvcc/revision.go).

use std::fmt;

/// Length of the row key of a put.
pub const ROW_KEY_LEN: usize = 17;
const TOMBSTONE_MARK: u8 = b't';

/// The place of one change in the history: `main` counts transactions, `sub` the changes within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// Transaction; the store begins at 1 and the first write is 2.
    pub main: i64,
    /// Change within the transaction, from 0.
    pub sub: u32,
}

impl Revision {
    /// A revision from its parts.
    pub const fn new(main: i64, sub: u32) -> Self {
        Revision { main, sub }
    }

    /// The row key of a put at this revision.
    pub fn row_key(self) -> [u8; ROW_KEY_LEN] {
        let mut key = [b'_'; ROW_KEY_LEN];
        key[..8].copy_from_slice(&self.main.to_be_bytes());
        key[9..].copy_from_slice(&u64::from(self.sub).to_be_bytes());
        key
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// The parsed key of a row: where it stands and whether it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Where it stands.
    pub revision: Revision,
    /// Whether it is a tombstone.
    pub tombstone: bool,
}

impl RowKey {
    /// Parses a key of bucket `key`; `None` when it is not one, or its parts are outside of what a store can hold.
    pub fn parse(key: &[u8]) -> Option<RowKey> {
        let tombstone = match key.len() {
            ROW_KEY_LEN => false,
            18 if key[17] == TOMBSTONE_MARK => true,
            _ => return None,
        };
        if key[8] != b'_' {
            return None;
        }
        let main = i64::from_be_bytes(key[..8].try_into().ok()?);
        let sub = u64::from_be_bytes(key[9..ROW_KEY_LEN].try_into().ok()?);
        // The index keeps a flag in the top bit of sub.
        let sub = u32::try_from(sub).ok().filter(|sub| *sub <= MAX_SUB)?;
        (main >= 0).then_some(RowKey {
            revision: Revision { main, sub },
            tombstone,
        })
    }

    /// Appends the key's bytes.
    pub fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.revision.row_key());
        if self.tombstone {
            to.push(TOMBSTONE_MARK);
        }
    }

    /// The key's bytes.
    pub fn to_vec(self) -> Vec<u8> {
        let mut key = Vec::with_capacity(ROW_KEY_LEN + 1);
        self.write(&mut key);
        key
    }
}

/// The largest sub revision; a transaction never comes near it.
pub const MAX_SUB: u32 = u32::MAX >> 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn row_keys_are_etcds() {
        let put = Revision::new(2, 0).row_key();
        assert_eq!(&put, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0");
        let tombstone = RowKey {
            revision: Revision::new(0x1234, 3),
            tombstone: true,
        };
        assert_eq!(
            tombstone.to_vec(),
            b"\0\0\0\0\0\0\x12\x34_\0\0\0\0\0\0\0\x03t"
        );
        assert_eq!(RowKey::parse(&tombstone.to_vec()), Some(tombstone));
    }

    #[test]
    fn what_is_no_row_key_is_refused() {
        let good = Revision::new(5, 0).row_key();
        assert!(RowKey::parse(&good).is_some());
        assert!(RowKey::parse(&good[..16]).is_none());
        assert!(RowKey::parse(&[&good[..], b"x"].concat()).is_none());
        let mut other = good;
        other[8] = b'-';
        assert!(RowKey::parse(&other).is_none());
        let mut negative = good;
        negative[0] = 0x80;
        assert!(RowKey::parse(&negative).is_none());
        let mut huge_sub = good;
        huge_sub[10] = 1;
        assert!(RowKey::parse(&huge_sub).is_none());
    }

    proptest! {
        #[test]
        fn order_of_bytes_is_order_of_revisions(
            a in (0..i64::MAX, 0..MAX_SUB, any::<bool>()),
            b in (0..i64::MAX, 0..MAX_SUB, any::<bool>()),
        ) {
            let key = |(main, sub, tombstone)| RowKey { revision: Revision::new(main, sub), tombstone };
            let (a, b) = (key(a), key(b));
            prop_assert_eq!(a.cmp(&b), a.to_vec().cmp(&b.to_vec()));
            prop_assert_eq!(RowKey::parse(&a.to_vec()), Some(a));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..24)) {
            if let Some(key) = RowKey::parse(&bytes) {
                prop_assert_eq!(key.to_vec(), bytes);
            }
        }
    }
}
