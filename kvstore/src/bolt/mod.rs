//! etcd's database file format (bbolt), read and written whole: [`read`] walks the rows of a file, [`mod@write`] makes a
//! file from rows. It is what members exchange and what etcd's tools read; nothing runs on such a file here.
//!
//! All numbers are little-endian. A file is pages; two of them are metas, of which the valid one of the later
//! transaction points to the root page; the rest is B+ trees of pages (go.etcd.io/bbolt: page.go, node.go, bucket.go).
//!
//! Invariant: this module knows bytes and bounds, and nothing of what a row means.

mod page;
pub mod read;
pub mod write;

#[cfg(test)]
mod tests;

/// First number of a meta.
const MAGIC: u32 = 0xED0C_DAED;
/// Second number of a meta: the only version of the format there is.
const VERSION: u32 = 2;
/// Bytes in front of a page's elements.
const PAGE_HEADER: usize = 16;
/// Bytes of one element, of a leaf and of a branch.
const ELEMENT: usize = 16;
/// Bytes of a meta behind its page's header.
const META: usize = 64;
/// Bytes of a meta that its checksum covers.
const META_CHECKED: usize = 56;
/// Bytes in front of an inline bucket's page: its root, which is 0, and a sequence number nobody uses.
const BUCKET_HEADER: usize = 16;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META_PAGE: u16 = 4;

/// Flag of a leaf element whose value is a bucket.
const IS_BUCKET: u32 = 1;
/// Freelist page of a file that holds no freelist, as etcd writes it.
const NO_FREELIST: u64 = u64::MAX;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 32_768;
/// The longest value, in bytes: what no entry of the log could hold. bbolt itself takes four times that.
pub const VALUE_BYTES_MAX: usize = 512 << 20;

/// FNV-1a of 64 bits, the checksum of a meta.
fn fnv1a64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The number of `N` bytes at an offset, if it is there.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
