//! Writing a database file in one pass: leaves as the rows come, branches as leaves fill them, the metas last.
//!
//! The file has no free pages and no freelist; pages are filled whole. Buckets of less than a quarter of a page lie
//! within the root page, as bbolt puts them.
//!
//! Invariant: what is held in memory is at most three pages for each level of one tree, and one row.

use std::io::{self, Seek, SeekFrom, Write};

use super::{
    BRANCH, BUCKET_HEADER, ELEMENT, IS_BUCKET, KEY_BYTES_MAX, LEAF, MAGIC, META_PAGE, NO_FREELIST,
    PAGE_HEADER, VALUE_BYTES_MAX, VERSION, fnv1a64,
};

/// Bytes of a page.
const PAGE: usize = 4096;
/// A bucket of no more than this lies within the page that lists it.
const INLINE_MAX: usize = PAGE / 4;
/// The transaction that the first meta names; its number has to be even. The second meta names the one before.
const TXID: u64 = 2;

/// Writes one file. Buckets come in the order of their names, rows in the order of their keys.
pub struct BoltWriter<'w, W: Write + Seek> {
    pages: Pages<'w, W>,
    root: Tree,
    bucket: Option<(Vec<u8>, Tree)>,
}

impl<'w, W: Write + Seek> BoltWriter<'w, W> {
    /// Begins a file at the present place of `to`, which should buffer its writes.
    pub fn new(to: &'w mut W) -> io::Result<BoltWriter<'w, W>> {
        Ok(BoltWriter {
            pages: Pages::new(to)?,
            root: Tree::default(),
            bucket: None,
        })
    }

    /// Begins the next bucket.
    pub fn bucket(&mut self, name: &[u8]) -> io::Result<()> {
        self.finish_bucket()?;
        self.bucket = Some((name.to_vec(), Tree::default()));
        Ok(())
    }

    /// Adds a row to the bucket that was begun last.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match &mut self.bucket {
            Some((_, tree)) => tree.row(&mut self.pages, 0, key, value),
            None => Err(invalid("a row before the first bucket")),
        }
    }

    fn finish_bucket(&mut self) -> io::Result<()> {
        let Some((name, tree)) = self.bucket.take() else {
            return Ok(());
        };
        let mut value = vec![0; BUCKET_HEADER];
        if tree.is_one_leaf() && tree.leaf.bytes() <= INLINE_MAX {
            tree.leaf.render(0, LEAF, &mut value);
        } else {
            value[..8].copy_from_slice(&tree.finish(&mut self.pages)?.to_le_bytes());
        }
        self.root.row(&mut self.pages, IS_BUCKET, &name, &value)
    }

    /// Ends the file and returns its length. Making it durable is the caller's.
    pub fn finish(mut self) -> io::Result<u64> {
        self.finish_bucket()?;
        let root = self.root.finish(&mut self.pages)?;
        self.pages.finish(root)
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// The pages that have been written.
struct Pages<'w, W> {
    to: &'w mut W,
    /// Where the file begins.
    start: u64,
    /// Number of the next page.
    next: u64,
    scratch: Vec<u8>,
}

impl<'w, W: Write + Seek> Pages<'w, W> {
    fn new(to: &'w mut W) -> io::Result<Pages<'w, W>> {
        let start = to.stream_position()?;
        // The metas' places are filled at the end: until then this is no database.
        to.write_all(&[0; 2 * PAGE])?;
        Ok(Pages {
            to,
            start,
            next: 2,
            scratch: Vec::with_capacity(PAGE),
        })
    }

    /// Writes a node at the next page and returns that page's number.
    fn write(&mut self, node: &Node, kind: u16) -> io::Result<u64> {
        let number = self.next;
        self.scratch.clear();
        node.render(number, kind, &mut self.scratch);
        self.scratch
            .resize(self.scratch.len().next_multiple_of(PAGE), 0);
        self.to.write_all(&self.scratch)?;
        self.next += (self.scratch.len() / PAGE) as u64;
        Ok(number)
    }

    fn finish(self, root: u64) -> io::Result<u64> {
        let len = self.next * PAGE as u64;
        self.to.seek(SeekFrom::Start(self.start))?;
        for (number, txid) in [(0, TXID), (1, TXID - 1)] {
            self.to.write_all(&meta(number, txid, root, self.next))?;
        }
        self.to.seek(SeekFrom::Start(self.start + len))?;
        self.to.flush()?;
        Ok(len)
    }
}

fn meta(number: u64, txid: u64, root: u64, high_water: u64) -> Vec<u8> {
    let mut page = Vec::with_capacity(PAGE);
    header(&mut page, number, META_PAGE, 0, 0);
    for half in [MAGIC, VERSION, PAGE as u32, 0] {
        page.extend(half.to_le_bytes());
    }
    for whole in [root, 0, NO_FREELIST, high_water, txid] {
        page.extend(whole.to_le_bytes());
    }
    page.extend(fnv1a64(&page[PAGE_HEADER..]).to_le_bytes());
    page.resize(PAGE, 0);
    page
}

fn header(page: &mut Vec<u8>, number: u64, kind: u16, count: u16, overflow: u32) {
    page.extend(number.to_le_bytes());
    page.extend(kind.to_le_bytes());
    page.extend(count.to_le_bytes());
    page.extend(overflow.to_le_bytes());
}

/// A page in the making.
#[derive(Default)]
struct Node {
    elements: Vec<Element>,
    /// Keys, and in a leaf values, of all elements one after the other.
    data: Vec<u8>,
}

struct Element {
    key_len: usize,
    kind: Kind,
}

enum Kind {
    Row { flags: u32, value_len: usize },
    Child { page: u64 },
}

impl Element {
    /// Bytes of it in `data`.
    fn data_len(&self) -> usize {
        match self.kind {
            Kind::Row { value_len, .. } => self.key_len + value_len,
            Kind::Child { .. } => self.key_len,
        }
    }
}

impl Node {
    /// Bytes of the page, without padding.
    fn bytes(&self) -> usize {
        PAGE_HEADER + self.elements.len() * ELEMENT + self.data.len()
    }

    fn is_full_with(&self, data_len: usize) -> bool {
        self.bytes() + ELEMENT + data_len > PAGE
    }

    fn push_row(&mut self, flags: u32, key: &[u8], value: &[u8]) {
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
        let (key_len, value_len) = (key.len(), value.len());
        let kind = Kind::Row { flags, value_len };
        self.elements.push(Element { key_len, kind });
    }

    fn push_child(&mut self, key: &[u8], page: u64) {
        self.data.extend_from_slice(key);
        let (key_len, kind) = (key.len(), Kind::Child { page });
        self.elements.push(Element { key_len, kind });
    }

    /// The smallest key; empty if there is none.
    fn first_key(&self) -> &[u8] {
        let len = self.elements.first().map_or(0, |element| element.key_len);
        &self.data[..len]
    }

    /// The greatest key; empty if there is none.
    fn last_key(&self) -> &[u8] {
        self.elements.last().map_or(&[][..], |last| {
            let start = self.data.len() - last.data_len();
            &self.data[start..start + last.key_len]
        })
    }

    /// Moves the children of `other` behind those of this one.
    fn append(&mut self, other: Node) {
        self.elements.extend(other.elements);
        self.data.extend(other.data);
    }

    fn render(&self, number: u64, kind: u16, out: &mut Vec<u8>) {
        let overflow = self.bytes().div_ceil(PAGE) - 1;
        // A node is begun anew when a page is full, so it has some hundred elements and one long row at the most.
        header(
            out,
            number,
            kind,
            self.elements.len() as u16,
            overflow as u32,
        );
        let mut behind = self.elements.len() * ELEMENT;
        for element in &self.elements {
            let (distance, key_len) = (behind as u32, element.key_len as u32);
            match element.kind {
                Kind::Row { flags, value_len } => {
                    for field in [flags, distance, key_len, value_len as u32] {
                        out.extend(field.to_le_bytes());
                    }
                }
                Kind::Child { page } => {
                    for field in [distance, key_len] {
                        out.extend(field.to_le_bytes());
                    }
                    out.extend(page.to_le_bytes());
                }
            }
            // Distances are counted from the element they stand in.
            behind = behind + element.data_len() - ELEMENT;
        }
        out.extend_from_slice(&self.data);
    }
}

/// A tree in the making: the leaf that is being filled, and the branches above those that were.
#[derive(Default)]
struct Tree {
    leaf: Node,
    has_rows: bool,
    branches: Vec<Branch>,
}

/// One level of branches.
#[derive(Default)]
struct Branch {
    /// A full node that is held back: the last one of a level must not be left with a single child.
    full: Option<Node>,
    filling: Node,
}

impl Tree {
    fn row<W: Write + Seek>(
        &mut self,
        pages: &mut Pages<'_, W>,
        flags: u32,
        key: &[u8],
        value: &[u8],
    ) -> io::Result<()> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(invalid(
                "a row whose key is empty or too long, or whose value is too long",
            ));
        }
        if self.has_rows && key <= self.leaf.last_key() {
            return Err(invalid("rows must come in ascending order"));
        }
        self.has_rows = true;
        if !self.leaf.elements.is_empty() && self.leaf.is_full_with(key.len() + value.len()) {
            let full = std::mem::take(&mut self.leaf);
            self.write_leaf(pages, &full)?;
        }
        self.leaf.push_row(flags, key, value);
        Ok(())
    }

    fn is_one_leaf(&self) -> bool {
        self.branches.is_empty()
    }

    fn write_leaf<W: Write + Seek>(
        &mut self,
        pages: &mut Pages<'_, W>,
        leaf: &Node,
    ) -> io::Result<()> {
        let page = pages.write(leaf, LEAF)?;
        self.add_child(pages, 0, leaf.first_key(), page)
    }

    /// Adds a page to the branches of a level.
    fn add_child<W: Write + Seek>(
        &mut self,
        pages: &mut Pages<'_, W>,
        level: usize,
        key: &[u8],
        page: u64,
    ) -> io::Result<()> {
        if level == self.branches.len() {
            self.branches.push(Branch::default());
        }
        let branch = &mut self.branches[level];
        if branch.filling.elements.len() >= 2 && branch.filling.is_full_with(key.len()) {
            let full = std::mem::take(&mut branch.filling);
            let before = branch.full.replace(full);
            branch.filling.push_child(key, page);
            return before.map_or(Ok(()), |node| self.write_branch(pages, level, &node));
        }
        branch.filling.push_child(key, page);
        Ok(())
    }

    fn write_branch<W: Write + Seek>(
        &mut self,
        pages: &mut Pages<'_, W>,
        level: usize,
        node: &Node,
    ) -> io::Result<()> {
        let page = pages.write(node, BRANCH)?;
        self.add_child(pages, level + 1, node.first_key(), page)
    }

    /// Writes what is left and returns the page of the root.
    fn finish<W: Write + Seek>(mut self, pages: &mut Pages<'_, W>) -> io::Result<u64> {
        let leaf = std::mem::take(&mut self.leaf);
        if self.is_one_leaf() {
            return pages.write(&leaf, LEAF);
        }
        self.write_leaf(pages, &leaf)?;
        let mut level = 0;
        loop {
            let Branch { full, mut filling } = std::mem::take(&mut self.branches[level]);
            let mut nodes = Vec::new();
            if let Some(mut full) = full {
                if filling.elements.len() == 1 {
                    full.append(std::mem::take(&mut filling));
                }
                nodes.push(full);
            }
            if !filling.elements.is_empty() {
                nodes.push(filling);
            }
            let is_root = nodes.len() == 1 && level + 1 == self.branches.len();
            for node in nodes {
                if is_root {
                    return pages.write(&node, BRANCH);
                }
                self.write_branch(pages, level, &node)?;
            }
            level += 1;
        }
    }
}
