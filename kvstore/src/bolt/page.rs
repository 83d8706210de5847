//! A page in memory: a leaf or a branch with the pages it overflows into, or the page of a bucket that lies within an
//! element of another.
//!
//! Invariant: all elements are in memory and within the page; what they point to is checked when it is asked for.

use super::{
    BRANCH, ELEMENT, KEY_BYTES_MAX, LEAF, PAGE_HEADER,
    read::{BoltError, ReadAt, damaged},
    u16_at, u32_at, u64_at,
};

/// Bytes of a page with its overflow that are held in memory; it must hold the elements of any page, at most 65 535
/// of 16 bytes. Rows that lie behind are read one by one.
pub(super) const WINDOW_BYTES: u64 = 2 << 20;

/// A leaf or a branch, with its overflow.
pub(super) struct Page<'f, S> {
    pub number: u64,
    /// [`BRANCH`] or [`LEAF`].
    pub kind: u16,
    /// Number of its elements.
    pub count: usize,
    /// Its length with all overflow.
    len: u64,
    /// As much of it from its beginning as is in memory: all elements at least.
    pub window: Vec<u8>,
    /// Where the rest is; `None` if there is none.
    rest: Option<(&'f S, u64)>,
    /// What was read from behind the window last.
    far: Vec<u8>,
}

impl<'f, S: ReadAt> Page<'f, S> {
    /// The page of a bucket that lies within an element of page `number`.
    pub fn inline(number: u64, image: &[u8]) -> Result<Self, BoltError> {
        Page::new(number, image.len() as u64, image.to_vec(), None)
    }

    pub fn new(
        number: u64,
        len: u64,
        window: Vec<u8>,
        rest: Option<(&'f S, u64)>,
    ) -> Result<Self, BoltError> {
        let (kind, count) = (u16_at(&window, 8), u16_at(&window, 10));
        let (Some(kind @ (BRANCH | LEAF)), Some(count)) = (kind, count) else {
            return Err(damaged(number, "it is neither branch nor leaf"));
        };
        let page = Page {
            number,
            kind,
            count: usize::from(count),
            len,
            window,
            rest,
            far: Vec::new(),
        };
        if page.elements_end() > page.window.len() as u64 {
            return Err(page.damaged("its elements have no room in it"));
        }
        Ok(page)
    }

    pub fn damaged(&self, reason: &'static str) -> BoltError {
        damaged(self.number, reason)
    }

    /// Offset of an element.
    pub fn element(&self, place: usize) -> usize {
        PAGE_HEADER + place * ELEMENT
    }

    /// Offset behind the last element, where keys begin.
    pub fn elements_end(&self) -> u64 {
        self.element(self.count) as u64
    }

    /// Key and number of a branch's child.
    pub fn child(&mut self, place: usize) -> Result<(&[u8], u64), BoltError> {
        let at = self.element(place);
        let [from, key] = [0, 4].map(|field| u32_at(&self.window, at + field).unwrap_or_default());
        let child = u64_at(&self.window, at + 8).unwrap_or_default();
        let from = at as u64 + u64::from(from);
        let key = self.bytes(from, from + u64::from(key), key)?;
        Ok((key, child))
    }

    /// Bytes of a key with what is behind it.
    pub fn bytes(&mut self, from: u64, to: u64, key: u32) -> Result<&[u8], BoltError> {
        if key == 0 || key as usize > KEY_BYTES_MAX {
            return Err(self.damaged("a key is empty or too long"));
        }
        if from < self.elements_end() || to > self.len {
            return Err(self.damaged("a row reaches beyond its page"));
        }
        if to <= self.window.len() as u64 {
            return Ok(&self.window[from as usize..to as usize]);
        }
        let (Some((source, offset)), Ok(bytes)) = (self.rest, usize::try_from(to - from)) else {
            return Err(self.damaged("a row reaches beyond its page"));
        };
        self.far.resize(bytes, 0);
        source.read_at(offset + from, &mut self.far)?;
        Ok(&self.far)
    }
}
