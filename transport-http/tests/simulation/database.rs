//! Databases that follow from the stamps of their messages, where they come from, and where they arrive.
//!
//! All of it is in memory, so that a disk costs no time the simulated clock does not know of.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::Arc,
};

use bytes::{Buf, Bytes};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use transport_core::raftpb::Message;
use transport_http::{SnapshotSink, SnapshotSource, SnapshotWriter};

use super::{
    member::{Place, now},
    message::Stamp,
};

/// What the transport reads of a database at once.
const CHUNK_BYTES: usize = 256 << 10;
/// What a source yields at once.
const READ_BYTES: usize = 100_000;

impl Stamp {
    /// The database behind the message with this stamp: none at all, a little, a chunk or two with a byte more or
    /// less, or anything up to a few chunks.
    pub fn database(&self) -> Bytes {
        let mut random = self.random();
        let bytes = match random.random_range(0..8) {
            0 => 0,
            1..4 => random.random_range(1..2_000),
            4 | 5 => CHUNK_BYTES * random.random_range(1..=2) + random.random_range(0..3) - 1,
            _ => random.random_range(2_000..600_000),
        };
        let mut database = vec![0; bytes];
        random.fill_bytes(&mut database);
        database.into()
    }

    /// Whether the sender's disk fails before the end.
    pub fn breaks_off(&self) -> bool {
        self.number.is_multiple_of(7)
    }

    fn random(&self) -> SmallRng {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        SmallRng::seed_from_u64(hasher.finish())
    }
}

/// Reads the database of a stamp.
pub struct Source {
    length: u64,
    left: Bytes,
    fails: bool,
}

impl Source {
    pub fn new(stamp: &Stamp) -> Source {
        let mut left = stamp.database();
        let length = left.len() as u64;
        if stamp.breaks_off() {
            left.truncate(left.len() / 2);
        }
        Source {
            length,
            left,
            fails: stamp.breaks_off(),
        }
    }
}

impl SnapshotSource for Source {
    fn len(&self) -> u64 {
        self.length
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left.is_empty() && self.fails {
            return Err(io::Error::other("the disk is broken"));
        }
        let read = buf.len().min(self.left.len()).min(READ_BYTES);
        self.left.copy_to_slice(&mut buf[..read]);
        Ok(read)
    }

    fn blocks(&self) -> bool {
        false
    }
}

/// Compares what arrives with what was sent.
pub struct Shelf(pub Arc<Place>);

impl SnapshotSink for Shelf {
    fn create(&self, message: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        let place = Arc::clone(&self.0);
        let Some(stamp) = place.ledger.lock().begin(now(), place.id, message) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        Ok(Box::new(Receiving {
            place,
            stamp,
            bytes: Vec::new(),
        }))
    }

    fn blocks(&self) -> bool {
        false
    }
}

struct Receiving {
    place: Arc<Place>,
    stamp: Stamp,
    bytes: Vec<u8>,
}

impl SnapshotWriter for Receiving {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<u64> {
        let (place, stamp) = (&self.place, &self.stamp);
        let mut ledger = place.ledger.lock();
        ledger.store(now(), place.id, stamp, &self.bytes);
        Ok(self.bytes.len() as u64)
    }
}
