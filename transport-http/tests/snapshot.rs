//! Snapshots between two transports, and everything that can end one early.

mod common;

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

#[tokio::test]
async fn a_database_crosses_whole() {
    const BYTES: u64 = 3_000_001;
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = pair(dir.path(), |_| {}).await;
    let (out, done) = outgoing(snapshot(1, 2, 0x1c27), Database::of(BYTES));
    let total = out.total_bytes() as f64;
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(2), SnapshotStatus::Finish)
    );
    assert_eq!(b.message().await, snapshot(1, 2, 0x1c27));
    assert_eq!(names(dir.path()), ["0000000000001c27.snap.db"]);
    assert_eq!(
        fs::read(dir.path().join("0000000000001c27.snap.db")).unwrap(),
        Database::content(BYTES)
    );
    for (member, name, value) in [
        (&a, "etcd_network_snapshot_send_success{To=2}", 1.0),
        (&a, "etcd_network_snapshot_send_inflights_total{To=2}", 0.0),
        (&a, "etcd_network_snapshot_send_failures{To=2}", 0.0),
        (
            &a,
            "etcd_network_snapshot_send_total_duration_seconds{To=2}",
            1.0,
        ),
        (&b, "etcd_network_snapshot_receive_success{From=1}", 1.0),
        (
            &b,
            "etcd_network_snapshot_receive_inflights_total{From=1}",
            0.0,
        ),
        (&b, "etcd_network_snapshot_receive_failures{From=1}", 0.0),
        (
            &b,
            "etcd_network_snapshot_receive_total_duration_seconds{From=1}",
            1.0,
        ),
    ] {
        assert_eq!(member.recorder.value(name), value, "{name}");
    }
    assert!(a.recorder.value("etcd_network_peer_sent_bytes_total{To=2}") >= total);
    assert!(
        b.recorder
            .value("etcd_network_peer_received_bytes_total{From=1}")
            >= total
    );
    // Sent again, the file that is there is as good.
    let (out, done) = outgoing(snapshot(1, 2, 0x1c27), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    assert_eq!(
        fs::metadata(dir.path().join("0000000000001c27.snap.db"))
            .unwrap()
            .len(),
        BYTES
    );
    assert_eq!(names(dir.path()).len(), 1);
    // An empty one, and back in the other direction there is nobody to take it.
    let (out, done) = outgoing(snapshot(1, 2, 9), Database::of(0));
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    assert_eq!(
        fs::metadata(dir.path().join("0000000000000009.snap.db"))
            .unwrap()
            .len(),
        0
    );
    let (out, done) = outgoing(snapshot(2, 1, 9), Database::of(10));
    b.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn what_is_not_what_was_announced_leaves_nothing() {
    for (announced, actual, error) in [
        (1_000_000, 999_999, None),
        (1_000_000, 1_000_001, None),
        (1_000_000, 700_000, Some("disk on fire")),
        (10, 0, Some("disk on fire")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut a, b) = pair(dir.path(), |_| {}).await;
        let (out, done) = outgoing(
            snapshot(1, 2, 7),
            Database {
                announced,
                actual,
                error,
                at: 0,
            },
        );
        a.transport.send_snapshot(out);
        assert!(!accepted(done).await, "{announced} {actual} {error:?}");
        assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
        assert_eq!(
            a.report().await,
            Report::Snapshot(MemberId(2), SnapshotStatus::Failure)
        );
        assert_eq!(
            a.recorder
                .value("etcd_network_snapshot_send_failures{To=2}"),
            1.0
        );
        // Without a byte of the database, the request may not even leave.
        if actual > 0 {
            b.recorder
                .until(
                    "etcd_network_snapshot_receive_failures{From=1}",
                    |failures| failures == 1.0,
                )
                .await;
        }
        a.stop().await;
        b.recorder
            .until(
                "etcd_network_snapshot_receive_inflights_total{From=1}",
                |count| count == 0.0,
            )
            .await;
        b.transport.stop().await;
        assert_eq!(names(dir.path()), Vec::<String>::new());
        assert!(b.messages.is_empty(), "raft saw nothing");
        b.stop().await;
    }
}

#[tokio::test]
async fn a_snapshot_nobody_can_take_is_reported() {
    let mut a = Member::start(1).await;
    let (out, done) = outgoing(snapshot(1, 9, 7), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(9), SnapshotStatus::Failure)
    );
    a.transport
        .add_peer(MemberId(9), &["http://127.0.0.1:1".to_owned()])
        .unwrap();
    let (out, done) = outgoing(snapshot(1, 9, 7), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(9)));
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(9), SnapshotStatus::Failure)
    );
    a.stop().await;
}

#[tokio::test]
async fn one_at_a_time_per_peer_and_a_bound_per_member() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    let mut a = Member::start_with(1, |config| config.limits.snapshot_sends = 2).await;
    for id in 2..=4 {
        a.transport.add_peer(MemberId(id), &urls).unwrap();
    }
    let mut under_way = Vec::new();
    for (to, refused) in [(2, false), (2, true), (3, false), (4, true)] {
        let (out, done) = outgoing(snapshot(1, to, 7), Database::of(10));
        a.transport.send_snapshot(out);
        if refused {
            assert!(!accepted(done).await);
            assert_eq!(
                a.report().await,
                Report::Snapshot(MemberId(to), SnapshotStatus::Failure)
            );
        } else {
            under_way.push(done);
        }
    }
    // Stopping ends those under way.
    a.transport.stop().await;
    for done in under_way {
        assert!(!accepted(done).await);
    }
    a.stop().await;
}

#[tokio::test]
async fn the_request_looks_like_one_of_gos() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    let mut a = Member::start(1).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(600_000));
    a.transport.send_snapshot(out);
    let (mut raw, head) = loop {
        let mut raw = Raw::accept(&listener).await;
        match raw.head().await {
            Some(head) if head.start == "POST /raft/snapshot HTTP/1.1" => break (raw, head),
            _ => {}
        }
    };
    let go = String::from_utf8_lossy(
        &fs::read("tests/fixtures/snapshot-post-head-3.6.16.http").unwrap(),
    )
    .into_owned();
    for (name, value) in [
        ("Transfer-Encoding", "chunked"),
        ("Content-Type", "application/octet-stream"),
        ("X-Etcd-Cluster-Id", "5d9487856336506b"),
        ("X-Min-Cluster-Version", "3.0.0"),
        ("X-Server-From", "1"),
        ("X-Server-Version", "3.6.0"),
    ] {
        assert!(
            head.text.contains(&format!("\r\n{name}: {value}\r\n")),
            "{name} in {}",
            head.text
        );
        assert!(go.contains(&format!("\r\n{name}: ")), "{name}");
    }
    let envelope = encode_envelope(&snapshot(1, 2, 7));
    assert_eq!(
        raw.chunk().await.unwrap().unwrap(),
        envelope,
        "the first chunk is the message, as Go sends it"
    );
    assert_eq!(raw.chunked().await.unwrap(), Database::content(600_000));
    raw.write(answer(
        "500 Internal Server Error",
        "",
        "failed to save KV snapshot (disk full)\n",
    ))
    .await;
    assert!(!accepted(done).await);
    assert_eq!(a.report().await, Report::Unreachable(MemberId(2)));
    assert_eq!(
        a.report().await,
        Report::Snapshot(MemberId(2), SnapshotStatus::Failure)
    );
    a.stop().await;
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    let hasty = |config: &mut TransportConfig| {
        config.limits.snapshot_answer_timeout = Duration::from_millis(200)
    };
    let a = Member::start_with(1, hasty).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    a.stop().await;
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    let a = Member::start_with(1, common::hurried).await;
    a.transport.add_peer(MemberId(2), &urls).unwrap();
    let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(64 << 20));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    a.stop().await;
}

#[tokio::test]
async fn only_so_many_are_received_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |config| config.limits.snapshot_receives = 1).await;
    let mut first = Raw::connect(b.address).await;
    first
        .write(request(
            "POST",
            "/raft/snapshot",
            &[("Transfer-Encoding", "chunked")],
        ))
        .await;
    first
        .write(chunk(&encode_envelope(&snapshot(1, 2, 7))))
        .await;
    let inflights = "etcd_network_snapshot_receive_inflights_total{From=1}";
    b.recorder.until(inflights, |count| count == 1.0).await;
    let (out, done) = outgoing(snapshot(1, 2, 8), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    // The first one goes on, and ends.
    first.write(chunk(b"database")).await;
    first.write("0\r\n\r\n").await;
    assert_eq!(first.head().await.unwrap().status(), 204);
    let (out, done) = outgoing(snapshot(1, 2, 8), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    assert_eq!(
        names(dir.path()),
        ["0000000000000007.snap.db", "0000000000000008.snap.db"]
    );
    a.stop().await;
    b.stop().await;
}

/// A snapshot whose database has begun to arrive at `b` and does not go on by itself.
async fn half_received(b: &Member) -> Raw {
    let mut raw = Raw::connect(b.address).await;
    let chunked = [("Transfer-Encoding", "chunked")];
    raw.write(request("POST", "/raft/snapshot", &chunked)).await;
    raw.write(chunk(&encode_envelope(&snapshot(1, 2, 7)))).await;
    raw.write(chunk(&[1; 100_000])).await;
    let inflights = "etcd_network_snapshot_receive_inflights_total{From=1}";
    b.recorder.until(inflights, |count| count == 1.0).await;
    raw
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_snapshot_that_is_being_received() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |config| {
        config.read_timeout = Duration::from_secs(3600)
    })
    .await;
    let mut raw = half_received(&b).await;
    let begun = std::time::Instant::now();
    b.transport.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(raw.head().await.unwrap().status(), 500);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_sender_that_trickles_loses_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |config| {
        config.limits.snapshot_receives = 1;
        config.limits.body_progress_window = Duration::from_millis(200);
    })
    .await;
    let mut raw = half_received(&b).await;
    let head = loop {
        // Never silent for the read timeout, and never done.
        tokio::select! {
            head = raw.head() => break head.unwrap(),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        raw.write(chunk(b"x")).await;
    };
    assert_eq!(head.status(), 500);
    let (out, done) = outgoing(snapshot(1, 2, 8), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_sender_that_goes_away_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = pair(dir.path(), |_| {}).await;
    let raw = half_received(&b).await;
    drop(raw);
    b.recorder
        .until(
            "etcd_network_snapshot_receive_failures{From=1}",
            |failures| failures == 1.0,
        )
        .await;
    b.transport.stop().await;
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert!(b.messages.is_empty());
    a.stop().await;
    b.stop().await;
}

/// Writes down the largest piece it got; refuses to commit if told so.
struct Watching {
    largest: Arc<Mutex<usize>>,
    commits: bool,
}

impl SnapshotSink for Watching {
    fn create(&self, _: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        Ok(Box::new(Watching {
            largest: Arc::clone(&self.largest),
            commits: self.commits,
        }))
    }
}

impl SnapshotWriter for Watching {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        let mut largest = self.largest.lock().unwrap();
        *largest = chunk.len().max(*largest);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<u64> {
        if self.commits {
            Ok(0)
        } else {
            Err(io::Error::other("no space left on device"))
        }
    }
}

#[tokio::test]
async fn the_database_is_never_whole_in_memory_and_a_failed_commit_is_answered() {
    for commits in [true, false] {
        let largest = Arc::new(Mutex::new(0));
        let watching = Arc::new(Watching {
            largest: Arc::clone(&largest),
            commits,
        });
        let a = Member::start(1).await;
        let mut b = Member::start_full(2, |_| {}, watching).await;
        a.add(&b);
        let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(16 << 20));
        a.transport.send_snapshot(out);
        assert_eq!(accepted(done).await, commits);
        let largest = *largest.lock().unwrap();
        assert!(largest > 0 && largest <= 1 << 20, "{largest}");
        if commits {
            b.message().await;
        }
        assert!(b.messages.is_empty());
        a.stop().await;
        b.stop().await;
    }
}

/// Yields nothing until the test says so.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl SnapshotSource for Stuck {
    fn len(&self) -> u64 {
        1
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Err(io::Error::other("stuck"))
    }
}

#[tokio::test]
async fn a_database_that_cannot_be_read_is_given_up_and_keeps_its_place_until_its_thread_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = Member::start_with(1, |config| {
        config.limits.snapshot_chunk_timeout = Duration::from_millis(100)
    })
    .await;
    let b = Member::start_full(2, |_| {}, sink(dir.path(), &TestRecorder::default())).await;
    b.add(&a);
    a.add(&b);
    let (release, held) = std::sync::mpsc::channel();
    let (done, waits) = oneshot::channel();
    a.transport.send_snapshot(OutgoingSnapshot {
        message: snapshot(1, 2, 7),
        source: Box::new(Stuck(held)),
        done: Some(done),
    });
    assert!(!accepted(waits).await);
    let failed = Report::Snapshot(MemberId(2), SnapshotStatus::Failure);
    while a.report().await != failed {}
    // The thread still hangs: a second one must not hang beside it.
    let (out, done) = outgoing(snapshot(1, 2, 8), Database::of(10));
    a.transport.send_snapshot(out);
    assert!(!accepted(done).await);
    drop(release);
    let sent = async {
        loop {
            let (out, done) = outgoing(snapshot(1, 2, 9), Database::of(10));
            a.transport.send_snapshot(out);
            if accepted(done).await {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    soon("a snapshot after that", sent).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn snapshots_leave_at_the_pace_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let a = Member::start_with(1, |config| {
        config.limits.snapshot_bytes_per_second = 512 << 10
    })
    .await;
    let b = Member::start_full(2, |_| {}, sink(dir.path(), &TestRecorder::default())).await;
    a.add(&b);
    b.add(&a);
    let begun = std::time::Instant::now();
    let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(200 << 10));
    a.transport.send_snapshot(out);
    assert!(accepted(done).await);
    // A quarter of a second's worth at once, the rest when that has passed.
    assert!(begun.elapsed() >= Duration::from_millis(240));
    a.stop().await;
    b.stop().await;
}

/// Has so many bytes free, and less with each byte it takes.
#[derive(Clone)]
struct Filling(Arc<Mutex<u64>>);

impl SnapshotSink for Filling {
    fn create(&self, _: &Message) -> io::Result<Box<dyn SnapshotWriter>> {
        Ok(Box::new(self.clone()))
    }

    fn free_bytes(&self) -> io::Result<Option<u64>> {
        Ok(Some(*self.0.lock().unwrap()))
    }
}

impl SnapshotWriter for Filling {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        *self.0.lock().unwrap() -= chunk.len() as u64;
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<u64> {
        Ok(0)
    }
}

#[tokio::test]
async fn a_full_disk_takes_no_snapshot_and_is_not_filled_by_one() {
    const RESERVE: u64 = 100 << 20;
    let free = Arc::new(Mutex::new(RESERVE - 1));
    let filling = Filling(Arc::clone(&free));
    let a = Member::start(1).await;
    let reserve = |config: &mut TransportConfig| {
        config.limits.snapshot_disk_reserve_bytes = RESERVE;
    };
    let b = Member::start_full(2, reserve, Arc::new(filling)).await;
    a.add(&b);
    b.add(&a);
    for (before, bytes, is_accepted) in [
        (RESERVE - 1, 10, false),
        (RESERVE, 10, true),
        (RESERVE + (8 << 20), 100 << 20, false),
    ] {
        *free.lock().unwrap() = before;
        let (out, done) = outgoing(snapshot(1, 2, 7), Database::of(bytes));
        a.transport.send_snapshot(out);
        assert_eq!(accepted(done).await, is_accepted, "{before} {bytes}");
        // Seen every 16 MiB, long before everything was written.
        assert!(*free.lock().unwrap() + (16 << 20) > RESERVE - 10);
    }
    a.stop().await;
    b.stop().await;
}

#[cfg(unix)]
#[test]
fn a_directory_knows_what_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let free = sink(dir.path(), &TestRecorder::default()).free_bytes();
    assert!(free.unwrap().is_some_and(|free| free > 0));
}
