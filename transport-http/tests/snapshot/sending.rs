//! The sending side: what leaves, when it is given up, and how many at once.

use super::*;

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
