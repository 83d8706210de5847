//! What peers cost: memory while they are idle, and allocations per message.
//!
//! Alone in its binary, and one test, because the allocator counts for the whole process. What the recorder of the
//! metrics keeps is its own, and left out.

#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{net::TcpListener, sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{Entry, Message, MessageType},
};
use transport_http::{
    NoSnapshots, PeerBody, ProcessError, Raft, SnapshotStatus, Transport, TransportConfig,
    serve_peers,
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator as it came; the counters do not touch memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Relaxed);
        LIVE.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
    // `realloc` is left to the default, which allocates anew and copies: it counts as an allocation.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SPOKES: u64 = 8;
/// Far longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(30);
const IDLE_PEER_BYTES_MAX: usize = 64 << 10;
/// The list of a message's entries, and its share of buffers that carry many.
const ALLOCATIONS_MAX: f64 = 1.1;

/// A raft that counts.
#[derive(Default)]
struct Counter {
    messages: AtomicUsize,
    came: Notify,
}

impl Counter {
    async fn until(&self, messages: usize) {
        let came = async {
            while self.messages.load(Relaxed) < messages {
                self.came.notified().await;
            }
        };
        timeout(PATIENCE, came).await.expect("all messages in time");
    }
}

impl Raft for Counter {
    async fn process(&self, _: Message) -> Result<(), ProcessError> {
        self.messages.fetch_add(1, Relaxed);
        self.came.notify_one();
        Ok(())
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, _: MemberId, _: SnapshotStatus) {}
}

struct Member {
    transport: Transport<Counter>,
    raft: Arc<Counter>,
    url: String,
}

impl Member {
    async fn start(id: u64) -> Member {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let recorder = Arc::new(metrics::NoopRecorder);
        let mut config = TransportConfig::new(MemberId(id), ClusterId(7), recorder);
        // Link heartbeats every 50 ms: an idle stream gives back what a burst took, one step with some of them.
        config.read_timeout = Duration::from_millis(150);
        let raft = Arc::new(Counter::default());
        let transport = Transport::start(config, Arc::clone(&raft), Arc::new(NoSnapshots)).unwrap();
        let nothing = |_: Request<Incoming>| async { Response::new(PeerBody::empty()) };
        tokio::spawn(serve_peers(
            listener,
            transport.clone(),
            nothing,
            CancellationToken::new(),
        ));
        Member {
            transport,
            raft,
            url,
        }
    }

    fn add(&self, id: u64, other: &Member) {
        let urls = [other.url.clone()];
        self.transport.add_peer(MemberId(id), &urls).unwrap();
    }

    /// Sends until the other side has something, which tells that its stream is up.
    async fn reach(&self, from: u64, to: u64, other: &Member) {
        let reaching = async {
            while other.raft.messages.load(Relaxed) == 0 {
                self.transport.send(appends(from, to, 1));
                let _ = timeout(Duration::from_millis(20), other.raft.came.notified()).await;
            }
        };
        timeout(PATIENCE, reaching).await.expect("a stream in time");
    }

    /// Sends what was made before, and waits for all of it.
    async fn exchange(&self, messages: Vec<Message>, other: &Member) {
        let before = other.raft.messages.load(Relaxed);
        let count = messages.len();
        self.transport.send(messages);
        other.raft.until(before + count).await;
    }
}

fn appends(from: u64, to: u64, count: u64) -> Vec<Message> {
    let entry = |index| Entry {
        term: 5,
        index,
        data: Bytes::from(vec![7; 256]),
        ..Entry::default()
    };
    let append = |index| Message {
        msg_type: MessageType::Append as i32,
        from,
        to,
        term: 5,
        log_term: 5,
        index: index - 1,
        commit: index - 1,
        entries: vec![entry(index)],
        ..Message::default()
    };
    (1..=count).map(append).collect()
}

#[tokio::test(flavor = "current_thread")]
async fn an_idle_peer_is_small_and_a_message_takes_one_allocation() {
    let hub = Member::start(1).await;
    let mut spokes = Vec::new();
    for id in 2..2 + SPOKES {
        spokes.push((id, Member::start(id).await));
    }
    let without_peers = LIVE.load(Relaxed);
    for (id, spoke) in &spokes {
        hub.add(*id, spoke);
        spoke.add(1, &hub);
    }
    for (id, spoke) in &spokes {
        hub.reach(1, *id, spoke).await;
    }
    // Peers of the hub, and the hub as a peer of each.
    let peers = 2 * SPOKES as usize;
    let idle = LIVE.load(Relaxed).saturating_sub(without_peers) / peers;
    println!("{idle} bytes for a new peer");

    const MESSAGES: u64 = 4096;
    for (id, spoke) in &spokes {
        let messages = appends(1, *id, MESSAGES);
        let before = COUNT.load(Relaxed);
        hub.exchange(messages, spoke).await;
        let allocations = (COUNT.load(Relaxed) - before) as f64 / MESSAGES as f64;
        println!("{allocations:.3} allocations per message");
        assert!(allocations <= ALLOCATIONS_MAX);
    }
    let shrunk = async {
        loop {
            let idle = LIVE.load(Relaxed).saturating_sub(without_peers) / peers;
            if idle <= IDLE_PEER_BYTES_MAX {
                return idle;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let idle = timeout(PATIENCE, shrunk)
        .await
        .expect("an idle peer gives back what it took");
    println!("{idle} bytes for an idle peer");
}
