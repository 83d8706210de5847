//! A member of the real parts, put together as `start` does it, on a watched disk: log, store, replica, transport
//! without peers, node.
//!
//! Invariant: all its threads are gone when [`Member::stop`] returns, and with them every handle on the disk.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use kvstore::{
    Image, Reader, Store, StoreConfig,
    backend::redb::RedbBackend,
    membership::{Member as Described, json},
    version::Version,
};
use node_bin::member::{
    inbound::{Inbound, PeerTransport},
    outbound::Outbound,
    received::Received,
    replica::{Answer, DUTIES_MAX, Replica},
};
use parking_lot::Mutex;
use raft_node::{
    ConfChangeVerdict, Node, NodeConfig, SharedRecorder, SnapshotError, StateMachine, Storage,
    StorageOptions,
    disk::{Access, Disk},
    wal::{Metadata, Prepare},
};
use rand::{Rng, rngs::StdRng};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::task::TaskTracker;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfChange, ConfState, Entry, Snapshot},
};
use transport_http::{NoSnapshots, Transport, TransportConfig};

use crate::{
    disk::{SNAP_DIR, STORE_FILE, StoreFile, WAL_DIR, WatchedDisk},
    model::Ledger,
};

const ID: MemberId = MemberId(0x8e9e_05c5_2164_694d);
const CLUSTER: ClusterId = ClusterId(0xcdf8_18e1_94e3_a8ba);

/// What a seed decides once, for all lives.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    segment_bytes: u64,
    segments_max: usize,
    snapshots_max: usize,
    prepare: Prepare,
    snapshot_count: u64,
    catch_up_entries: u64,
    /// Names of its peer URLs; many make the first entry longer than a sector.
    urls: usize,
}

impl Settings {
    pub fn of(random: &mut StdRng) -> Self {
        Settings {
            segment_bytes: [1024, 2048, 4096, 16384][random.random_range(0..4)],
            segments_max: random.random_range(1..4),
            snapshots_max: random.random_range(1..4),
            prepare: if random.random_bool(0.2) {
                Prepare::Background
            } else {
                Prepare::Inline
            },
            snapshot_count: [2, 5, 10, 25][random.random_range(0..4)],
            catch_up_entries: random.random_range(0..10),
            urls: if random.random_bool(0.2) { 60 } else { 1 },
        }
    }
}

/// What each life decides anew.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    flush_interval: Duration,
    flush_bytes: usize,
    backlog_bytes_max: usize,
    row_cache_bytes: usize,
}

impl Pace {
    pub fn of(random: &mut StdRng) -> Self {
        let millis = [0, 0, 1, 3, 1000][random.random_range(0..5)];
        let flush_bytes = [1, 1000, 1 << 20][random.random_range(0..3)];
        Pace {
            flush_interval: Duration::from_millis(millis),
            flush_bytes,
            // Little more than what is written at once: apply waits for the backend now and then.
            backlog_bytes_max: flush_bytes + 1000,
            row_cache_bytes: [0, 4096][random.random_range(0..2)],
        }
    }
}

/// A running member.
pub struct Member {
    pub node: Node<Answer>,
    pub reader: Reader,
    /// Up to which entry the store says a crash loses nothing.
    pub durable: Arc<AtomicU64>,
    /// Index the store was at when it was opened.
    pub opened_at: u64,
    /// Why the store's own threads ended.
    pub store_failed: Arc<Mutex<Option<String>>>,
    transport: PeerTransport,
    tasks: TaskTracker,
}

impl Member {
    /// Starts a member on what the disk holds; founds the cluster if that is nothing.
    pub async fn start(
        disk: &WatchedDisk,
        settings: &Settings,
        pace: &Pace,
        seed: u64,
        ledger: Arc<Ledger>,
    ) -> Result<Member, String> {
        let recorder: SharedRecorder = Arc::new(metrics::NoopRecorder);
        let storage = open_log(disk, settings, &recorder)?;
        let backend = open_backend(disk)?;

        let store_failed = Arc::new(Mutex::new(None));
        let told = store_failed.clone();
        let store = StoreConfig {
            member_id: ID,
            flush_interval: pace.flush_interval,
            flush_bytes: pace.flush_bytes,
            backlog_bytes_max: pace.backlog_bytes_max,
            row_cache_bytes: pace.row_cache_bytes,
            on_fatal: Arc::new(move |error| *told.lock() = Some(error.to_string())),
            ..StoreConfig::new(STORE_FILE)
        };
        let mut store =
            Store::open_on(store, Arc::new(backend)).map_err(text("opening the store"))?;
        store
            .begin_replay(storage.snapshot())
            .map_err(text("preparing the replay"))?;
        let (reader, durable, opened_at) = (store.reader(), store.durable(), store.applied().0);

        let node = Arc::new(OnceLock::new());
        let received = Arc::new(Received::new(SNAP_DIR));
        let inbound = Inbound {
            reader: reader.clone(),
            received: received.clone(),
            node: node.clone(),
        };
        let config = TransportConfig::new(ID, CLUSTER, recorder.clone());
        let transport = Transport::start(config, Arc::new(inbound), Arc::new(NoSnapshots))
            .map_err(text("starting the transport"))?;
        let (followups, mut duties) = mpsc::channel(DUTIES_MAX);
        let slow = Duration::from_secs(60);
        let replica = Replica::new(
            store,
            ID,
            transport.clone(),
            received,
            followups,
            Version::new(3, 6, 0),
            slow,
        );
        let tasks = TaskTracker::new();
        tasks.spawn(async move { while duties.recv().await.is_some() {} });
        let outbound = Outbound {
            transport: transport.clone(),
            reader: reader.clone(),
            snap_dir: SNAP_DIR.into(),
            runtime: Handle::current(),
            tasks: tasks.clone(),
            node: node.clone(),
        };
        let machine = Watched { replica, ledger };
        let started = Node::start(
            node_config(settings, seed, recorder),
            storage,
            machine,
            Arc::new(outbound),
        );
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                transport.stop().await;
                return Err(format!("starting the node: {error}"));
            }
        };
        // Set once, here.
        let _ = node.set(started.clone());
        Ok(Member {
            node: started,
            reader,
            durable,
            opened_at,
            store_failed,
            transport,
            tasks,
        })
    }

    /// Why it cannot go on, if it cannot.
    pub fn failure(&self) -> Option<String> {
        let node = self
            .node
            .fatal()
            .now_or_never()
            .map(|reason| reason.to_string());
        node.or_else(|| self.store_failed.lock().clone())
    }

    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Ends everything that runs.
    pub async fn stop(self) {
        self.node.stop().await;
        self.transport.stop().await;
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn text<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{doing}: {error}")
}

/// As `boot` does it for the only member of a new cluster.
fn open_log(
    disk: &WatchedDisk,
    settings: &Settings,
    recorder: &SharedRecorder,
) -> Result<Storage, String> {
    disk.create_dir(Path::new(SNAP_DIR))
        .map_err(text("creating the directories"))?;
    let options = StorageOptions {
        segment_bytes: settings.segment_bytes,
        segments_max: settings.segments_max,
        snapshots_max: settings.snapshots_max,
        prepare: settings.prepare,
        ..StorageOptions::new(Arc::new(disk.clone()), WAL_DIR, SNAP_DIR, recorder.clone())
    };
    let mut storage = if Storage::exists(&options).map_err(text("looking for the log"))? {
        Storage::open(&options).map_err(text("opening the log"))?
    } else {
        let metadata = Metadata {
            node_id: ID,
            cluster_id: CLUSTER,
        };
        Storage::create(&options, metadata).map_err(text("creating the log"))?
    };
    if storage.is_empty() {
        let urls = (0..settings.urls).map(|n| format!("http://127.0.0.1:{}", 2380 + n));
        let member = Described {
            id: ID,
            name: "one".into(),
            peer_urls: urls.collect(),
            ..Described::default()
        };
        let members = [(ID, Bytes::from(json::member(&member)))];
        storage
            .bootstrap(&members)
            .map_err(text("founding the cluster"))?;
    }
    Ok(storage)
}

/// As `RedbBackend::open` does it: a new file has another name until it is whole.
fn open_backend(disk: &WatchedDisk) -> Result<RedbBackend, String> {
    const CACHE_BYTES: usize = 1 << 20;
    let path = Path::new(STORE_FILE);
    let io = text("opening the backend's file");
    if !disk.exists(path).map_err(&io)? {
        let unfinished = path.with_extension("redb.tmp");
        if disk.exists(&unfinished).map_err(&io)? {
            disk.remove(&unfinished).map_err(&io)?;
        }
        let file = StoreFile(disk.create(&unfinished).map_err(&io)?);
        drop(RedbBackend::create_with(file, CACHE_BYTES).map_err(text("creating the backend"))?);
        disk.rename(&unfinished, path).map_err(&io)?;
        disk.sync_dir(Path::new("member")).map_err(&io)?;
    }
    let file = StoreFile(disk.open(path, Access::ReadWrite).map_err(&io)?);
    RedbBackend::create_with(file, CACHE_BYTES).map_err(text("opening the backend"))
}

fn node_config(settings: &Settings, seed: u64, recorder: SharedRecorder) -> NodeConfig {
    NodeConfig {
        // Alone, it waits for nobody: the sooner it campaigns, the more lives fit into a second.
        tick: Duration::from_millis(1),
        election_ticks: 2,
        snapshot_count: settings.snapshot_count,
        catch_up_entries: settings.catch_up_entries,
        request_timeout: Duration::from_secs(60),
        disk_stall_max: Duration::from_secs(60),
        seed: Some(seed),
        ..NodeConfig::new(ID, CLUSTER, recorder)
    }
}

/// The replica, with a ledger of what it is given.
struct Watched {
    replica: Replica,
    ledger: Arc<Ledger>,
}

impl StateMachine for Watched {
    type Response = Answer;
    type Image = Image;

    fn applied(&self) -> (u64, u64) {
        self.replica.applied()
    }

    fn stored_conf_state(&self) -> Option<ConfState> {
        self.replica.stored_conf_state()
    }

    fn durable(&self) -> Arc<AtomicU64> {
        self.replica.durable()
    }

    fn apply(&mut self, entry: Entry) -> Option<(u64, Answer)> {
        self.ledger.applied(&entry);
        self.replica.apply(entry)
    }

    fn conf_change(&mut self, entry: &Entry, change: &ConfChange) -> ConfChangeVerdict<Answer> {
        self.ledger.applied(entry);
        self.replica.conf_change(entry, change)
    }

    fn conf_state(&mut self, index: u64, term: u64, conf_state: ConfState) {
        self.ledger.conf_state(index, &conf_state);
        self.replica.conf_state(index, term, conf_state);
    }

    fn flush_batch(&mut self) {
        self.replica.flush_batch();
    }

    fn image(&mut self) -> Result<(Snapshot, Image), SnapshotError> {
        self.replica.image()
    }

    fn durable_snapshot(&mut self) -> Result<Option<Snapshot>, SnapshotError> {
        self.replica.durable_snapshot()
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        self.replica.install(snapshot)
    }

    fn leadership(&mut self, is_leader: bool, term: u64) {
        self.replica.leadership(is_leader, term);
    }
}
