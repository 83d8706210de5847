//! Whole nodes in one process: real threads and real log files, messages handed over in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use raft_node::{
    Node, NodeConfig, ProposeError, Role, StartError, Storage, StorageOptions, Transport,
    disk::{Disk, fault::FaultDisk},
    wal::{Metadata, Prepare},
};
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfChange, Message},
};

use super::machine::{Machine, MachineDisk, State};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands messages from member to member.
#[derive(Default)]
pub struct Hub {
    nodes: Mutex<HashMap<u64, (Node<u64>, MachineDisk)>>,
    cuts: Mutex<BTreeSet<(u64, u64)>>,
    removed: Mutex<BTreeSet<u64>>,
}

impl Hub {
    fn target(&self, message: &Message) -> Option<(Node<u64>, MachineDisk)> {
        let (a, b) = (message.from.min(message.to), message.from.max(message.to));
        if lock(&self.cuts).contains(&(a, b)) {
            return None;
        }
        lock(&self.nodes).get(&message.to).cloned()
    }

    /// Cuts a member off from all others, or mends all its links.
    pub fn isolate(&self, id: u64, cut: bool) {
        let mut cuts = lock(&self.cuts);
        for other in (1..=9).filter(|other| *other != id) {
            let pair = (id.min(other), id.max(other));
            if cut {
                cuts.insert(pair);
            } else {
                cuts.remove(&pair);
            }
        }
    }
}

/// One member's way out.
pub struct Link {
    hub: Arc<Hub>,
    own: OnceLock<Node<u64>>,
}

impl Transport<State> for Link {
    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            if let Some((node, _)) = self.hub.target(&message) {
                // A full or stopped member loses it.
                let _ = node.try_step(message);
            }
        }
    }

    fn send_snapshot(&self, message: Message, image: State) {
        let to = MemberId(message.to);
        let arrived = self.hub.target(&message).is_some_and(|(node, disk)| {
            lock(&disk.bodies).insert(image.applied.0, image);
            node.try_step(message).is_ok()
        });
        if let Some(own) = self.own.get() {
            own.report_snapshot(to, arrived);
        }
    }

    fn is_removed(&self, id: MemberId) -> bool {
        lock(&self.hub.removed).contains(&id.0)
    }
}

/// One member, running or not.
pub struct Member {
    pub id: u64,
    pub node: Node<u64>,
    pub machine: MachineDisk,
    pub published: Arc<Mutex<State>>,
    dir: PathBuf,
}

pub struct Cluster {
    pub hub: Arc<Hub>,
    pub members: BTreeMap<u64, Member>,
    pub snapshot_count: u64,
    dir: tempfile::TempDir,
    next_id: AtomicU64,
}

impl Cluster {
    /// A new cluster of so many members, on real files.
    pub fn new(members: u64) -> Self {
        Cluster::with(members, 1_000_000, &|_| Arc::new(raft_node::disk::RealDisk))
    }

    pub fn with(members: u64, snapshot_count: u64, disk: &dyn Fn(u64) -> Arc<dyn Disk>) -> Self {
        let mut cluster = Cluster {
            hub: Arc::default(),
            members: BTreeMap::new(),
            snapshot_count,
            dir: tempfile::tempdir().expect("a directory"),
            next_id: AtomicU64::new(1),
        };
        let ids: Vec<u64> = (1..=members).collect();
        let all = ids
            .iter()
            .map(|id| (MemberId(*id), Bytes::from_static(b"{}")));
        let all: Vec<_> = all.collect();
        for id in ids {
            let disk = disk(id);
            let dir = cluster.dir(id, &*disk);
            let mut storage = Storage::create(&options(disk.clone(), &dir), metadata(id));
            if let Ok(storage) = &mut storage {
                storage.bootstrap(&all).expect("an empty log");
            }
            let machine = MachineDisk::default();
            let started = cluster.run(id, storage.expect("a new log"), machine);
            started.expect("it starts");
        }
        cluster
    }

    /// Starts a member that is not part of the bootstrap, with an empty log.
    pub fn join(&mut self, id: u64) {
        let disk: Arc<dyn Disk> = Arc::new(raft_node::disk::RealDisk);
        let dir = self.dir(id, &*disk);
        let storage = Storage::create(&options(disk.clone(), &dir), metadata(id));
        let storage = storage.expect("a new log");
        self.run(id, storage, MachineDisk::default())
            .expect("it starts");
    }

    fn dir(&self, id: u64, disk: &dyn Disk) -> PathBuf {
        let dir = self.dir.path().join(id.to_string());
        disk.create_dir(&dir.join("snap")).expect("a directory");
        dir
    }

    fn run(&mut self, id: u64, storage: Storage, machine: MachineDisk) -> Result<(), StartError> {
        let config = NodeConfig {
            tick: Duration::from_millis(20),
            snapshot_count: self.snapshot_count,
            catch_up_entries: 10,
            request_timeout: Duration::from_secs(5),
            ..NodeConfig::new(MemberId(id), CLUSTER, Arc::new(metrics::NoopRecorder))
        };
        let published = Arc::new(Mutex::new(State::default()));
        let link = Arc::new(Link {
            hub: self.hub.clone(),
            own: OnceLock::new(),
        });
        let opened = Machine::open(machine.clone(), published.clone());
        let node = Node::start(config, storage, opened, link.clone())?;
        assert!(link.own.set(node.clone()).is_ok());
        lock(&self.hub.nodes).insert(id, (node.clone(), machine.clone()));
        let dir = self.dir.path().join(id.to_string());
        let member = Member {
            id,
            node,
            machine,
            published,
            dir,
        };
        self.members.insert(id, member);
        Ok(())
    }

    /// Stops a member and takes it off the network.
    pub async fn stop(&mut self, id: u64) -> Member {
        lock(&self.hub.nodes).remove(&id);
        let member = self.members.remove(&id).expect("it runs");
        member.node.stop().await;
        member
    }

    /// Starts a stopped member from its log, on this disk.
    pub fn restart(&mut self, member: Member, disk: Arc<dyn Disk>) -> Result<(), StartError> {
        let storage = Storage::open(&options(disk, &member.dir))?;
        self.run(member.id, storage, member.machine)
    }

    /// Starts a stopped member as the only one of its cluster.
    pub fn force_new(&mut self, member: Member) -> Result<(), StartError> {
        let disk: Arc<dyn Disk> = Arc::new(raft_node::disk::RealDisk);
        let mut storage = Storage::open(&options(disk, &member.dir))?;
        let applied = lock(&member.machine.state).applied.0;
        storage.force_new_cluster(applied, &Bytes::from_static(b"{}"))?;
        self.run(member.id, storage, member.machine)
    }

    pub async fn stop_all(&mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop(id).await;
        }
    }

    pub fn node(&self, id: u64) -> Node<u64> {
        self.members[&id].node.clone()
    }

    pub fn request(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Proposes through one member; the index of the entry.
    pub async fn put(&self, id: u64) -> Result<u64, ProposeError> {
        put(&self.node(id), self.request()).await
    }

    /// Proposes until there is a result: what was forwarded to a leader that is gone has none.
    pub async fn put_surely(&self, id: u64) -> u64 {
        let node = self.node(id);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no result in time");
            let try_one = put(&node, self.request());
            let result = tokio::time::timeout(Duration::from_millis(500), try_one).await;
            if let Ok(Ok(index)) = result {
                return index;
            }
        }
    }

    /// Proposes a configuration change at the leader: it alone says when another one is in the way.
    pub async fn change(&self, kind: i32, node: u64, context: &'static [u8]) -> u64 {
        loop {
            let leader = self.leader().await;
            let change = ConfChange {
                id: self.request(),
                change_type: kind,
                node_id: node,
                context: Bytes::from_static(context),
            };
            match self.node(leader).propose_conf_change(change).await {
                Ok(index) => return index,
                Err(ProposeError::ConfChangePending) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("changing the configuration: {error}"),
            }
        }
    }

    pub fn remove_from_transport(&self, id: u64) {
        lock(&self.hub.removed).insert(id);
    }

    /// The leader all running members agree on.
    pub async fn leader(&self) -> u64 {
        let mut found = 0;
        until("a leader", || {
            let leaders: BTreeSet<_> = self
                .members
                .values()
                .map(|m| m.node.status().leader.map_or(0, |id| id.0))
                .collect();
            let only = leaders.first().copied().filter(|_| leaders.len() == 1);
            found = only.unwrap_or(0);
            let leads = |m: &Member| m.node.status().role == Role::Leader;
            self.members.get(&found).is_some_and(leads)
        })
        .await;
        found
    }

    /// Waits until all running members show the same state, and returns it.
    pub async fn agreed(&self) -> State {
        let mut state = State::default();
        until("agreement", || {
            let mut states = self.members.values().map(|m| lock(&m.published).clone());
            state = states.next().unwrap_or_default();
            states.all(|other| other == state)
        })
        .await;
        state
    }
}

pub async fn put(node: &Node<u64>, request: u64) -> Result<u64, ProposeError> {
    let mut data = request.to_be_bytes().to_vec();
    data.resize(256, 7);
    node.propose(request, data.into()).await
}

/// Waits until the condition holds; there is no event for it to await.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "no {what} in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn metadata(id: u64) -> Metadata {
    Metadata {
        node_id: MemberId(id),
        cluster_id: CLUSTER,
    }
}

pub fn options(disk: Arc<dyn Disk>, dir: &Path) -> StorageOptions {
    StorageOptions {
        segment_bytes: 1 << 20,
        prepare: Prepare::Inline,
        ..StorageOptions::new(
            disk,
            dir.join("wal"),
            dir.join("snap"),
            Arc::new(metrics::NoopRecorder),
        )
    }
}

pub fn fault_disks(count: u64) -> BTreeMap<u64, FaultDisk> {
    (1..=count).map(|id| (id, FaultDisk::new(id))).collect()
}
