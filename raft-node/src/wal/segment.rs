//! Segment files: their names, and reading their frames one after the other.
//!
//! The reader decides what a broken frame is. A torn write is a frame of the last segment of which some
//! 512-byte sector never arrived (it still reads as zeros), or whose end never arrived and nothing after
//! it, or which the end of the file cuts. Everything else is corruption: sectors are written whole, words
//! of 8 bytes are, and unused space is zero. Invariant: memory stays below one chunk plus the largest
//! frame, and no frame is larger than its file.
//! etcd: server/storage/wal/decoder.go, `isTornEntry`; util.go.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{
    WalError,
    frame::{self, LENGTH_BYTES, Length, Prefix, RecordType},
};
use crate::disk::{Disk, DiskFile, read_full};

/// Unit in which a disk writes all or nothing; etcd assumes the same.
pub(crate) const SECTOR_BYTES: usize = 512;

/// What is read in one go. Payloads are slices of a chunk, so it bounds what a kept slice holds alive.
const CHUNK_BYTES: usize = 1 << 20;

/// The head of a record is never longer.
const PREFIX_BYTES_MAX: usize = 32;

/// `%016x-%016x.wal`: sequence number, and index of the first entry that was still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentName {
    pub(crate) seq: u64,
    pub(crate) index: u64,
}

impl SegmentName {
    pub(crate) fn parse(name: &str) -> Option<SegmentName> {
        let (seq, index) = name.strip_suffix(".wal")?.split_once('-')?;
        if seq.len() != 16 || index.len() != 16 || name.contains('+') {
            return None;
        }
        Some(SegmentName {
            seq: u64::from_str_radix(seq, 16).ok()?,
            index: u64::from_str_radix(index, 16).ok()?,
        })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}.wal", self.seq, self.index)
    }
}

/// The segments of a directory, in sequence; empty when there is no directory.
pub(crate) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentName>, WalError> {
    if !disk.exists(dir).map_err(WalError::io("look for", dir))? {
        return Ok(Vec::new());
    }
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    let mut segments: Vec<_> = names
        .iter()
        .filter_map(|name| SegmentName::parse(name))
        .collect();
    segments.sort_unstable();
    Ok(segments)
}

/// Where reading has to begin to replay all after `index`: the last segment named for no later index.
pub(crate) fn select(names: &[SegmentName], dir: &Path, index: u64) -> Result<usize, WalError> {
    let first = names
        .iter()
        .rposition(|name| name.index <= index)
        .ok_or_else(|| WalError::SegmentNotFound {
            dir: dir.to_path_buf(),
            index,
        })?;
    for pair in names[first..].windows(2) {
        if pair[0].seq.checked_add(1) != Some(pair[1].seq) {
            return Err(WalError::SegmentMissing {
                file: dir.join(pair[0].to_string()),
            });
        }
    }
    Ok(first)
}

/// One step of a [`SegmentReader`].
#[derive(Debug)]
pub(crate) enum Step {
    /// A record whose crc was checked. (A crc record has nothing to check; its crc is for the caller.)
    Record {
        kind: RecordType,
        crc: u32,
        data: Bytes,
        offset: u64,
    },
    /// The valid records end here; `torn` says why, when it is not simply unused space.
    End {
        offset: u64,
        torn: Option<&'static str>,
    },
}

/// Reads one segment from its beginning.
pub(crate) struct SegmentReader {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    size: u64,
    last: bool,
    /// Running crc; the caller sets it when it accepts a crc record.
    pub(crate) crc: u32,
    window: BytesMut,
    offset: u64,
}

impl SegmentReader {
    /// `last`: no segment follows, so a torn write may be found.
    pub(crate) fn new(
        file: Arc<dyn DiskFile>,
        path: PathBuf,
        last: bool,
        crc: u32,
    ) -> Result<Self, WalError> {
        let size = file.size().map_err(WalError::io("measure", &path))?;
        Ok(SegmentReader {
            file,
            path,
            size,
            last,
            crc,
            window: BytesMut::new(),
            offset: 0,
        })
    }

    pub(crate) fn corrupt(&self, offset: u64, reason: impl Into<String>) -> WalError {
        WalError::Corrupt {
            file: self.path.clone(),
            offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn next(&mut self) -> Result<Step, WalError> {
        if !self.fill(LENGTH_BYTES)? {
            return if self.window.is_empty() {
                Ok(self.end(None))
            } else {
                self.torn("the file ends inside of a frame's length")
            };
        }
        let mut length = [0; LENGTH_BYTES];
        length.copy_from_slice(&self.window[..LENGTH_BYTES]);
        let (record, padding) = match frame::decode_length(length) {
            Length::Zero if self.whole_record_follows()? => {
                return Err(self.corrupt(self.offset, "the length of a frame is wiped out"));
            }
            Length::Zero => return Ok(self.end(None)),
            Length::Invalid => return Err(self.corrupt(self.offset, "invalid frame length")),
            Length::Frame { record, padding } => (record, padding),
        };
        let left = self.size - self.offset - LENGTH_BYTES as u64;
        if record + padding > left {
            return self.beyond_the_end(record, left);
        }
        // At most the file's size, which the file system vouches for.
        let (record, padding) = (record as usize, padding as usize);
        let frame_len = LENGTH_BYTES + record + padding;
        if !self.fill(frame_len)? {
            return self.torn("the file became shorter while it was read");
        }
        let body = &self.window[LENGTH_BYTES..LENGTH_BYTES + record];
        let Some((parsed, kind)) = self.checked(body) else {
            return self.damaged(record, padding);
        };
        let crc = parsed.crc;
        if kind != RecordType::Crc {
            self.crc = crc;
        }
        let frame = self.window.split_to(frame_len).freeze();
        let offset = self.offset;
        self.offset += frame_len as u64;
        let data = parsed.data.start + LENGTH_BYTES..parsed.data.end + LENGTH_BYTES;
        Ok(Step::Record {
            kind,
            crc,
            data: frame.slice(data),
            offset,
        })
    }

    /// The record in `body`, if it is one and continues the running crc.
    fn checked(&self, body: &[u8]) -> Option<(frame::Record, RecordType)> {
        let record = frame::decode_record(body)?;
        let kind = RecordType::from_number(record.kind)?;
        let crc = crc32c::crc32c_append(self.crc, &body[record.data.clone()]);
        (kind == RecordType::Crc || crc == record.crc).then_some((record, kind))
    }

    fn end(&self, torn: Option<&'static str>) -> Step {
        Step::End {
            offset: self.offset,
            torn,
        }
    }

    fn torn(&self, reason: &'static str) -> Result<Step, WalError> {
        if self.last {
            Ok(self.end(Some(reason)))
        } else {
            Err(self.corrupt(self.offset, reason))
        }
    }

    /// A frame that is all there, and wrong.
    fn damaged(&mut self, record: usize, padding: usize) -> Result<Step, WalError> {
        let body = &self.window[LENGTH_BYTES..LENGTH_BYTES + record];
        let reason = match frame::decode_record(body) {
            None => "not a record",
            Some(parsed) if RecordType::from_number(parsed.kind).is_none() => "unknown record type",
            Some(_) => "crc mismatch",
        };
        match self.never_written(record as u64, record + padding)? {
            Some(torn) => self.torn(torn),
            None => Err(self.corrupt(self.offset, reason)),
        }
    }

    /// A frame that goes on after the end of the file: cut off, or a damaged length.
    fn beyond_the_end(&mut self, record: u64, left: u64) -> Result<Step, WalError> {
        const REASON: &str = "a frame goes on after the end of the file";
        // The look is limited to a chunk: a cut frame is recognised by its first bytes.
        let look = left.min(CHUNK_BYTES as u64) as usize;
        if !self.fill(LENGTH_BYTES + look)? {
            return self.torn("the file became shorter while it was read");
        }
        let head = &self.window[LENGTH_BYTES..LENGTH_BYTES + look.min(PREFIX_BYTES_MAX)];
        match frame::record_prefix(head) {
            Prefix::Says(said) if said == record => return self.torn(REASON),
            Prefix::Short => return self.torn(REASON),
            _ => {}
        }
        match self.never_written(record, look)? {
            Some(torn) => self.torn(torn),
            None => Err(self.corrupt(self.offset, REASON)),
        }
    }

    /// Which part of the frame here never arrived, judged by the first `body` bytes after its length.
    fn never_written(
        &mut self,
        record: u64,
        body: usize,
    ) -> Result<Option<&'static str>, WalError> {
        if self.length_is_damaged(record)? {
            return Ok(None);
        }
        let start = self.offset + LENGTH_BYTES as u64;
        let body = &self.window[LENGTH_BYTES..LENGTH_BYTES + body];
        if has_empty_sector(body, start) {
            return Ok(Some("a sector of a frame was never written"));
        }
        if body.ends_with(&[0; 8]) && self.is_unused_from(start + body.len() as u64)? {
            return Ok(Some("the end of a frame was never written"));
        }
        Ok(None)
    }

    /// Whether the record here is whole if one believes its own head and not the frame's length.
    fn length_is_damaged(&mut self, record: u64) -> Result<bool, WalError> {
        match self.record_here()? {
            Some(said) if said as u64 != record => {
                let body = &self.window[LENGTH_BYTES..LENGTH_BYTES + said];
                Ok(self.checked(body).is_some())
            }
            _ => Ok(false),
        }
    }

    /// The length that the head of the record here says, if the file has so many bytes; they are then in
    /// the window.
    fn record_here(&mut self) -> Result<Option<usize>, WalError> {
        let left = self.size - self.offset - LENGTH_BYTES as u64;
        let look = left.min(PREFIX_BYTES_MAX as u64) as usize;
        if !self.fill(LENGTH_BYTES + look)? {
            return Ok(None);
        }
        let head = &self.window[LENGTH_BYTES..LENGTH_BYTES + look];
        let record = match frame::record_prefix(head) {
            Prefix::Says(record) if record <= left => record as usize,
            _ => return Ok(None),
        };
        Ok(self.fill(LENGTH_BYTES + record)?.then_some(record))
    }

    /// Whether there are only zeros from `offset` on.
    fn is_unused_from(&self, mut offset: u64) -> Result<bool, WalError> {
        let mut block = vec![0; CHUNK_BYTES];
        loop {
            let read = read_full(&*self.file, &mut block, offset)
                .map_err(WalError::io("read", &self.path))?;
            if block[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            if read < block.len() {
                return Ok(true);
            }
            offset += read as u64;
        }
    }

    /// Whether a zero length is followed, in its own sector, by a record that continues the log. Unused
    /// space cannot look like that; a length that lost its only set bit does.
    fn whole_record_follows(&mut self) -> Result<bool, WalError> {
        let body = self.offset + LENGTH_BYTES as u64;
        if body.is_multiple_of(SECTOR_BYTES as u64) {
            return Ok(false);
        }
        self.length_is_damaged(0)
    }

    /// Makes the window at least `need` bytes long; false when the file ends before.
    fn fill(&mut self, need: usize) -> Result<bool, WalError> {
        let have = self.window.len();
        if have >= need {
            return Ok(true);
        }
        let left = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        let want = need.max(CHUNK_BYTES).min(left);
        if want <= have {
            return Ok(false);
        }
        self.window.resize(want, 0);
        let read = read_full(
            &*self.file,
            &mut self.window[have..],
            self.offset + have as u64,
        )
        .map_err(WalError::io("read", &self.path))?;
        self.window.truncate(have + read);
        Ok(self.window.len() >= need)
    }
}

/// Whether `bytes`, which begin at `offset` of the file, contain nothing but zeros in one of the sectors
/// (or parts of sectors) they cover.
fn has_empty_sector(bytes: &[u8], offset: u64) -> bool {
    let first = SECTOR_BYTES - (offset % SECTOR_BYTES as u64) as usize;
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    std::iter::once(head)
        .chain(rest.chunks(SECTOR_BYTES))
        .any(|part| !part.is_empty() && part.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_etcds() {
        let name = SegmentName {
            seq: 0x1f,
            index: 0x2b67,
        };
        assert_eq!(name.to_string(), "000000000000001f-0000000000002b67.wal");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
        for bad in [
            "0.tmp",
            "000000000000001f-0000000000002b67.wal.broken",
            "1f-2b67.wal",
            "+00000000000001f-0000000000002b67.wal",
            "000000000000001f_0000000000002b67.wal",
        ] {
            assert_eq!(SegmentName::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn reading_starts_at_the_last_segment_that_is_not_too_late() {
        let names: Vec<_> = [(3, 0), (4, 101), (5, 61)]
            .map(|(seq, index)| SegmentName { seq, index })
            .into();
        let dir = Path::new("wal");
        let at = |index| select(&names, dir, index).expect("a segment");
        assert_eq!([at(60), at(61), at(200)], [0, 2, 2]);
        assert!(matches!(
            select(&names[1..2], dir, 7),
            Err(WalError::SegmentNotFound { index: 7, .. })
        ));
        let holed = [names[0], names[2]];
        assert!(matches!(
            select(&holed, dir, 7),
            Err(WalError::SegmentMissing { .. })
        ));
    }

    #[test]
    fn sectors_are_those_of_the_file() {
        let mut bytes = vec![1; 1200];
        assert!(!has_empty_sector(&bytes, 8));
        bytes[504..1016].fill(0);
        assert!(has_empty_sector(&bytes, 8));
        assert!(!has_empty_sector(&bytes, 16), "no whole sector is empty");
        assert!(has_empty_sector(&[1, 0], 511));
    }
}
