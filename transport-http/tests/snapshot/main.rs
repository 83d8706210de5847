//! Snapshots between two transports, and everything that can end one early.

#[path = "../common/mod.rs"]
mod common;
mod receiving;
mod sending;

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{
    Member, Report,
    raw::{Raw, answer, chunk, request},
    recorder::TestRecorder,
    snapshot, soon,
};
use tokio::{net::TcpListener, sync::oneshot};
use transport_core::{MemberId, frame::snapshot::encode_envelope, raftpb::Message};
use transport_http::{
    OutgoingSnapshot, SnapDir, SnapshotSink, SnapshotSource, SnapshotStatus, SnapshotWriter,
    TransportConfig,
};

/// Yields `actual` bytes, having announced `announced`; then an error, if it has one.
struct Database {
    announced: u64,
    actual: u64,
    error: Option<&'static str>,
    at: u64,
}

impl Database {
    fn of(bytes: u64) -> Database {
        Database {
            announced: bytes,
            actual: bytes,
            error: None,
            at: 0,
        }
    }

    fn byte(at: u64) -> u8 {
        (at * 31 % 251) as u8
    }

    fn content(bytes: u64) -> Vec<u8> {
        (0..bytes).map(Database::byte).collect()
    }
}

impl SnapshotSource for Database {
    fn len(&self) -> u64 {
        self.announced
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = (self.actual - self.at) as usize;
        // In pieces that fit nothing.
        let read = left.min(buf.len()).min(70_001);
        for byte in &mut buf[..read] {
            *byte = Database::byte(self.at);
            self.at += 1;
        }
        match self.error {
            Some(error) if read == 0 => Err(io::Error::other(error)),
            _ => Ok(read),
        }
    }
}

fn outgoing(message: Message, source: Database) -> (OutgoingSnapshot, oneshot::Receiver<bool>) {
    let (done, waits) = oneshot::channel();
    (
        OutgoingSnapshot {
            message,
            source: Box::new(source),
            done: Some(done),
        },
        waits,
    )
}

fn sink(dir: &Path, recorder: &TestRecorder) -> Arc<dyn SnapshotSink> {
    Arc::new(SnapDir::new(dir, &(Arc::new(recorder.clone()) as _)))
}

async fn pair(dir: &Path, configure: impl FnOnce(&mut TransportConfig)) -> (Member, Member) {
    let a = Member::start(1).await;
    let b = Member::start_full(2, configure, sink(dir, &TestRecorder::default())).await;
    a.add(&b);
    b.add(&a);
    (a, b)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

async fn accepted(done: oneshot::Receiver<bool>) -> bool {
    soon("the snapshot to end", done).await.unwrap()
}
