//! The receiving side: what is taken in, and what a transfer that ends early leaves.

use super::*;

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
