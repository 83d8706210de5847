//! Reading a database file: from its newest valid meta down the trees, one page at a time.
//!
//! The file is read with positioned reads and never mapped, so that one that shrinks is an error. Nothing in it is
//! believed: a page must carry its own number and be of a fitting kind, its rows must lie in it one behind the other,
//! keys must ascend over the whole tree and fit the branches above them, and a walk meets no more pages than the file
//! has. So every walk ends, after work in proportion to the file's length (go.etcd.io/bbolt: tx_check.go).
//!
//! Invariant: a scan holds a window of each page from the root to one leaf, and one row.

use std::{fs::File, io, ops::ControlFlow, os::unix::fs::FileExt, path::Path};

use super::{
    BRANCH, BUCKET_HEADER, IS_BUCKET, LEAF, MAGIC, META, META_CHECKED, PAGE_HEADER,
    VALUE_BYTES_MAX, VERSION, fnv1a64,
    page::{Page, WINDOW_BYTES},
    u32_at, u64_at,
};
use crate::backend::Visit;

/// Page sizes a file may have, as exponents of 2: 1 KiB to 64 KiB.
const PAGE_SIZE_EXPONENTS: std::ops::RangeInclusive<u32> = 10..=16;
/// Levels a tree may have. With two children to a page it holds more pages than a disk can.
const DEPTH_MAX: usize = 40;
/// Buckets a file may have; etcd's has ten.
const BUCKETS_MAX: usize = 1024;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    /// The file system refused.
    #[error("reading the database file: {0}")]
    Io(#[from] io::Error),
    /// Neither meta page is valid.
    #[error("this is no database file: neither of its meta pages is valid")]
    NoMeta,
    /// The file ends before its last page.
    #[error("the database file is cut short: {len} bytes of {expected}")]
    Short {
        /// Its length.
        len: u64,
        /// The length it claims.
        expected: u64,
    },
    /// A page does not hold what it must.
    #[error("the database file is damaged at page {page}: {reason}")]
    Damaged {
        /// The page's number.
        page: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no bucket of that name.
    #[error("the database file has no bucket {0}")]
    NoBucket(String),
}

/// Something that can be read at any place.
pub trait ReadAt {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Fills `buffer` with what is at `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }
}

impl ReadAt for &[u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A database file. It must not change while it is read.
pub struct BoltFile<S = File> {
    source: S,
    page_size: u64,
    meta: Meta,
    buckets: Vec<(Vec<u8>, BucketRoot)>,
}

/// What a valid meta says.
#[derive(Clone, Copy, Debug)]
struct Meta {
    page_size: u32,
    root: u64,
    high_water: u64,
    txid: u64,
}

/// Where the rows of a bucket are.
enum BucketRoot {
    /// In a tree that begins at this page.
    Tree(u64),
    /// In a page image within the bucket's own element.
    Inline(Vec<u8>),
}

impl BoltFile {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<BoltFile, BoltError> {
        BoltFile::from_source(File::open(path)?)
    }
}

impl<S: ReadAt> BoltFile<S> {
    /// Reads the metas and the list of buckets.
    pub fn from_source(source: S) -> Result<BoltFile<S>, BoltError> {
        let len = source.length()?;
        let meta = newest_meta(&source)?;
        let page_size = u64::from(meta.page_size);
        let expected = meta.high_water.saturating_mul(page_size);
        if len < expected {
            return Err(BoltError::Short { len, expected });
        }
        let mut file = BoltFile {
            source,
            page_size,
            meta,
            buckets: Vec::new(),
        };
        file.buckets = file.list_buckets()?;
        Ok(file)
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Number of the transaction that wrote the file last.
    pub fn txid(&self) -> u64 {
        self.meta.txid
    }

    /// The names of its buckets, ascending.
    pub fn buckets(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.buckets.iter().map(|(name, _)| &name[..])
    }

    /// Whether there is such a bucket.
    pub fn has_bucket(&self, name: &[u8]) -> bool {
        self.buckets.iter().any(|(other, _)| other == name)
    }

    /// Visits the rows of a bucket in ascending order until told to stop. Rows visited before an error are what the
    /// file says, but not all of it.
    pub fn scan(&self, bucket: &[u8], visit: &mut Visit<'_>) -> Result<(), BoltError> {
        let root = self.buckets.iter().find(|(name, _)| name == bucket);
        let Some((_, root)) = root else {
            let name = String::from_utf8_lossy(bucket).into_owned();
            return Err(BoltError::NoBucket(name));
        };
        let mut broken = Ok(());
        let visit = &mut |page: u64, row: Row<'_>| {
            if row.is_bucket {
                broken = Err(damaged(page, "a bucket within a bucket"));
                return ControlFlow::Break(());
            }
            visit(row.key, row.value)
        };
        let mut walk = Walk::new(self);
        match root {
            BucketRoot::Tree(page) => walk.tree(*page, visit)?,
            BucketRoot::Inline(image) => {
                let page = Page::inline(self.meta.root, image)?;
                // Whether it was told to stop does not matter: there is no other page.
                let _ = walk.leaf(page, visit)?;
            }
        }
        broken
    }

    fn list_buckets(&self) -> Result<Vec<(Vec<u8>, BucketRoot)>, BoltError> {
        let mut buckets = Vec::new();
        let mut broken = Ok(());
        Walk::new(self).tree(self.meta.root, &mut |page, row| {
            match bucket_root(&row, self.page_size) {
                Ok(root) if buckets.len() < BUCKETS_MAX => buckets.push((row.key.to_vec(), root)),
                other => {
                    let reason = other.err().unwrap_or("too many buckets");
                    broken = Err(damaged(page, reason));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        broken.map(|()| buckets)
    }
}

pub(super) fn damaged(page: u64, reason: &'static str) -> BoltError {
    BoltError::Damaged { page, reason }
}

/// The valid meta of the later transaction.
fn newest_meta(source: &impl ReadAt) -> Result<Meta, BoltError> {
    let at = |offset: u64| -> Result<Option<Meta>, BoltError> {
        let mut page = [0; PAGE_HEADER + META];
        match source.read_at(offset, &mut page) {
            Ok(()) => Ok(parse_meta(&page[PAGE_HEADER..])),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let first = at(0)?;
    // The second lies behind one page, whose size only the metas know.
    let mut second = None;
    for exponent in PAGE_SIZE_EXPONENTS {
        let size = 1u32 << exponent;
        if second.is_none() && first.is_none_or(|first| first.page_size == size) {
            second = at(u64::from(size))?.filter(|meta| meta.page_size == size);
        }
    }
    let metas = first.into_iter().chain(second);
    metas.max_by_key(|meta| meta.txid).ok_or(BoltError::NoMeta)
}

fn parse_meta(meta: &[u8]) -> Option<Meta> {
    let page_size = u32_at(meta, 8)?;
    let mut sizes = PAGE_SIZE_EXPONENTS.map(|exponent| 1u32 << exponent);
    let valid = u32_at(meta, 0)? == MAGIC
        && u32_at(meta, 4)? == VERSION
        && u64_at(meta, META_CHECKED)? == fnv1a64(&meta[..META_CHECKED])
        && sizes.any(|size| size == page_size);
    Some(Meta {
        page_size,
        root: u64_at(meta, 16)?,
        high_water: u64_at(meta, 40)?,
        txid: u64_at(meta, 48)?,
    })
    .filter(|_| valid)
}

fn bucket_root(row: &Row<'_>, page_size: u64) -> Result<BucketRoot, &'static str> {
    if !row.is_bucket {
        return Err("a row outside of a bucket");
    }
    let image = row.value.get(BUCKET_HEADER..);
    match (u64_at(row.value, 0), image) {
        (Some(0), Some(image)) if image.len() as u64 <= page_size => {
            Ok(BucketRoot::Inline(image.to_vec()))
        }
        (Some(0), Some(_)) => Err("a bucket within a row that is longer than a page"),
        (Some(root), Some(_)) => Ok(BucketRoot::Tree(root)),
        _ => Err("a bucket without a root"),
    }
}

/// An element of a leaf.
struct Row<'a> {
    is_bucket: bool,
    key: &'a [u8],
    value: &'a [u8],
}

/// What is done with each row: the number of its page, and the row.
type VisitRow<'a> = dyn FnMut(u64, Row<'_>) -> ControlFlow<()> + 'a;

/// One pass over one tree.
struct Walk<'f, S> {
    file: &'f BoltFile<S>,
    /// Pages it may still meet: each is in a tree once.
    pages_left: u64,
    /// The key visited last; empty before the first, as no key is.
    last_key: Vec<u8>,
    /// The key of the branch that led here; those below it are not smaller.
    floor: Vec<u8>,
}

impl<'f, S: ReadAt> Walk<'f, S> {
    fn new(file: &'f BoltFile<S>) -> Self {
        Walk {
            file,
            pages_left: file.meta.high_water,
            last_key: Vec::new(),
            floor: Vec::new(),
        }
    }

    /// Visits the rows of the tree at a page, in ascending order.
    fn tree(&mut self, root: u64, visit: &mut VisitRow<'_>) -> Result<(), BoltError> {
        // The branches down to here, with how many of their children were met.
        let mut branches: Vec<(Page<'f, S>, usize)> = Vec::new();
        let mut page = self.read_page(root)?;
        loop {
            // Only a bucket without rows has a page without elements.
            if page.count == 0 && (page.kind == BRANCH || !branches.is_empty()) {
                return Err(page.damaged("nothing is in it"));
            }
            if page.kind == BRANCH {
                if branches.len() == DEPTH_MAX {
                    return Err(page.damaged("the tree is too deep"));
                }
                branches.push((page, 0));
            } else if self.leaf(page, visit)?.is_break() {
                return Ok(());
            }
            match self.next_child(&mut branches)? {
                Some(child) => page = self.read_page(child)?,
                None => return Ok(()),
            }
        }
    }

    /// The page to go on with, after leaving the branches that are done.
    fn next_child(
        &mut self,
        branches: &mut Vec<(Page<'f, S>, usize)>,
    ) -> Result<Option<u64>, BoltError> {
        while let Some((page, met)) = branches.last_mut() {
            if *met == page.count {
                branches.pop();
                continue;
            }
            let number = page.number;
            let (key, child) = page.child(*met)?;
            // The rows met so far lie below this child's key. The first child's may be its branch's own.
            if key <= &self.last_key[..] || key < &self.floor[..] {
                return Err(damaged(number, "its keys do not ascend"));
            }
            self.floor.clear();
            self.floor.extend_from_slice(key);
            *met += 1;
            return Ok(Some(child));
        }
        Ok(None)
    }

    fn leaf(
        &mut self,
        mut page: Page<'_, S>,
        visit: &mut VisitRow<'_>,
    ) -> Result<ControlFlow<()>, BoltError> {
        if page.kind != LEAF {
            return Err(page.damaged("it is no leaf"));
        }
        let number = page.number;
        let mut end = page.elements_end();
        for place in 0..page.count {
            let at = page.element(place);
            let [flags, from, key, value] =
                [0, 4, 8, 12].map(|field| u32_at(&page.window, at + field).unwrap_or_default());
            let from = at as u64 + u64::from(from);
            // If rows could overlap, a page could hold gigabytes of them.
            if from < end {
                return Err(page.damaged("its rows overlap"));
            }
            end = from + u64::from(key) + u64::from(value);
            if value as usize > VALUE_BYTES_MAX {
                return Err(page.damaged("a value is too long"));
            }
            let row = page.bytes(from, end, key)?;
            // Within the row, which was just read: not above its length.
            let (key, value) = row.split_at(key as usize);
            if key <= &self.last_key[..] || key < &self.floor[..] {
                return Err(damaged(number, "its keys do not ascend"));
            }
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
            let is_bucket = flags & IS_BUCKET != 0;
            let row = Row {
                is_bucket,
                key,
                value,
            };
            if visit(number, row).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Reads a page with those it overflows into.
    fn read_page(&mut self, number: u64) -> Result<Page<'f, S>, BoltError> {
        let file = self.file;
        // The first two are the metas.
        if number < 2 || number >= file.meta.high_water {
            return Err(damaged(number, "there is no such page"));
        }
        // Within the file, whose length was checked, so that this cannot overflow.
        let offset = number * file.page_size;
        // Not above 64 KiB.
        let mut window = vec![0; file.page_size as usize];
        file.source.read_at(offset, &mut window)?;
        if u64_at(&window, 0) != Some(number) {
            return Err(damaged(number, "it says it is another page"));
        }
        let pages = 1 + u64::from(u32_at(&window, 12).unwrap_or_default());
        if pages > file.meta.high_water - number {
            return Err(damaged(number, "it overflows the file"));
        }
        self.pages_left = self
            .pages_left
            .checked_sub(pages)
            .ok_or(damaged(number, "the tree has more pages than the file"))?;
        let len = pages * file.page_size;
        let have = window.len();
        if pages > 1 {
            window.resize(len.min(WINDOW_BYTES) as usize, 0);
            file.source
                .read_at(offset + have as u64, &mut window[have..])?;
        }
        Page::new(number, len, window, Some((&file.source, offset)))
    }
}
