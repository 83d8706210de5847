//! Files damaged in one place each: refused, or read as far as a torn write allows, and never at a cost they claim.

use std::{cell::Cell, io};

use super::*;

#[test]
fn the_older_meta_serves_when_the_newer_is_torn() {
    let file = BoltFile::from_source(GO_3_4).unwrap();
    let newer = (file.txid() % 2) as usize;
    let mut torn = GO_3_4.to_vec();
    torn[newer * 4096 + 16 + 20] ^= 1;
    let older = BoltFile::from_source(&torn[..]).unwrap();
    assert_eq!(older.txid() + 1, file.txid());
    let mut both = torn;
    both[(1 - newer) * 4096 + 16 + 60] ^= 1;
    assert!(matches!(
        BoltFile::from_source(&both[..]),
        Err(BoltError::NoMeta)
    ));
}

#[test]
fn a_file_that_is_cut_short_is_refused() {
    for len in [0, 10, 80, 4096, 8192, GO_3_4.len() / 2] {
        assert!(read_all(&GO_3_4[..len]).is_err(), "{len}");
    }
    let mut grown = GO_3_4.to_vec();
    grown.extend([7; 100]);
    assert_eq!(read_all(&grown[..]).unwrap(), read_all(GO_3_4).unwrap());
}

/// Files whose pages lead in circles, to each other twice, or nowhere.
#[test]
fn bad_page_graphs_are_refused() {
    let buckets = vec![(b"key".to_vec(), many(2000, |_| 100))];
    let good = write_all(&buckets);
    let branch = good
        .chunks(4096)
        .position(|page| u16_at(page, 8) == Some(BRANCH))
        .unwrap();
    let child = branch * 4096 + PAGE_HEADER + 8;
    // The second child: another branch of the same, no page, or a page that another child has.
    for to in [branch as u64, 0, 1, 1 << 40, u64::MAX, 2, 4] {
        let mut bad = good.clone();
        bad[child + ELEMENT..][..8].copy_from_slice(&to.to_le_bytes());
        assert!(
            matches!(read_all(&bad[..]), Err(BoltError::Damaged { .. })),
            "{to}"
        );
    }
    for (what, offset, bytes) in [
        ("no children", branch * 4096 + 10, &[0, 0][..]),
        ("too many children", branch * 4096 + 10, &[0xff, 0xff]),
        ("overflow", branch * 4096 + 12, &[0xff, 0xff, 0xff, 0xff]),
        ("another page", branch * 4096, &[9]),
        ("no page", branch * 4096 + 8, &[0x10]),
        ("too many rows", 2 * 4096 + 10, &[0xff, 0xff]),
        ("a bucket in a bucket", 2 * 4096 + PAGE_HEADER, &[1]),
        (
            "a row far away",
            2 * 4096 + PAGE_HEADER + 4,
            &[0xff, 0xff, 0xff, 0xff],
        ),
        (
            "a row on its element",
            2 * 4096 + PAGE_HEADER + 4,
            &[0, 0, 0, 0],
        ),
        (
            "a long value",
            2 * 4096 + PAGE_HEADER + 12,
            &[0xff, 0xff, 0xff, 0x7f],
        ),
    ] {
        let mut bad = good.clone();
        bad[offset..][..bytes.len()].copy_from_slice(bytes);
        assert!(
            matches!(read_all(&bad[..]), Err(BoltError::Damaged { .. })),
            "{what}"
        );
    }
}

/// A file that is nothing but zeros behind its first pages, and counts what is asked of it.
struct Vast<'a> {
    beginning: &'a [u8],
    longest_read: Cell<usize>,
    bytes_read: Cell<usize>,
}

impl ReadAt for &Vast<'_> {
    fn length(&self) -> io::Result<u64> {
        Ok(1 << 50)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.longest_read
            .set(self.longest_read.get().max(buffer.len()));
        self.bytes_read.set(self.bytes_read.get() + buffer.len());
        buffer.fill(0);
        for (place, byte) in buffer.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap() + place;
            let Some(there) = self.beginning.get(at) else {
                break;
            };
            *byte = *there;
        }
        Ok(())
    }
}

/// However long the file is and whatever lengths it claims, what is read at a time stays small.
#[test]
fn lengths_that_are_only_claimed_cost_nothing() {
    let good = write_all(&vec![(b"key".to_vec(), many(100, |_| 100))]);
    let leaf = 2 * 4096;
    // All of the rest of a petabyte is in use, and overflows from the first leaf.
    let mut bad = with_meta(&good, |meta| {
        meta[40..48].copy_from_slice(&(1u64 << 38).to_le_bytes())
    });
    bad[leaf + 12..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
    for value_bytes in [100u32, 3 << 20, u32::MAX] {
        bad[leaf + PAGE_HEADER + 12..][..4].copy_from_slice(&value_bytes.to_le_bytes());
        let vast = Vast {
            beginning: &bad,
            longest_read: Cell::new(0),
            bytes_read: Cell::new(0),
        };
        let read = read_all(&vast);
        assert_eq!(read.is_err(), value_bytes > 100);
        assert!(vast.longest_read.get() <= 4 << 20);
        assert!(vast.bytes_read.get() <= 8 << 20);
    }
}

#[test]
fn rows_that_overlap_are_refused() {
    let good = write_all(&vec![(b"key".to_vec(), many(20, |_| 150))]);
    let element = |row: usize| 2 * 4096 + PAGE_HEADER + row * ELEMENT;
    // The first value reaches over the second row, whose key is where it was: both would be read.
    let mut bad = good.clone();
    bad[element(0) + 12..][..4].copy_from_slice(&151u32.to_le_bytes());
    assert!(matches!(
        read_all(&bad[..]),
        Err(BoltError::Damaged { page: 2, .. })
    ));
}

#[test]
fn keys_that_do_not_fit_their_branch_are_refused() {
    let good = write_all(&vec![(b"key".to_vec(), many(200, |_| 150))]);
    let branch = good
        .chunks(4096)
        .skip(2)
        .position(|page| u16_at(page, 8) == Some(BRANCH))
        .unwrap()
        + 2;
    let pos = u32_at(&good, branch * 4096 + PAGE_HEADER + ELEMENT).unwrap() as usize;
    let key = branch * 4096 + PAGE_HEADER + ELEMENT + pos;
    let first = u64::from_be_bytes(bytes_at(&good, key).unwrap());
    // A lookup would go to the wrong child.
    for wrong in [first - 1, first + 1] {
        let mut bad = good.clone();
        bad[key..key + 8].copy_from_slice(&wrong.to_be_bytes());
        assert!(
            matches!(read_all(&bad[..]), Err(BoltError::Damaged { .. })),
            "{wrong}"
        );
    }
}
