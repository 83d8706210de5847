//! The store as raft's state machine: what it does to the member beside answering.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use kvstore::{
    Store, StoreConfig,
    backend::memory::MemoryBackend,
    membership::{Member, json},
    pb::{
        etcdserverpb::{InternalRaftRequest, RequestHeader},
        membershippb::ClusterVersionSetRequest,
    },
    version::Version,
};
use node_bin::member::{
    inbound::Inbound,
    received::Received,
    replica::{Followup, Replica},
};
use prost::Message;
use raft_node::StateMachine;
use tempfile::TempDir;
use tokio::sync::mpsc;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfChange, ConfChangeType, ConfState, Entry},
};
use transport_http::{NoSnapshots, SnapDir, Transport, TransportConfig};

const ID: MemberId = MemberId(1);

/// A replica of a member that nobody connects to.
struct Stage {
    replica: Replica,
    duties: mpsc::Receiver<Followup>,
    index: u64,
    dir: TempDir,
}

/// `room` is how many duties may wait.
fn stage(room: usize) -> Stage {
    let dir = tempfile::tempdir().expect("directory");
    let store = Store::open(StoreConfig::new(dir.path().join("store.redb"))).expect("open");
    let received = Arc::new(Received::new(dir.path()));
    let inbound = Inbound {
        reader: store.reader(),
        received: received.clone(),
        node: Arc::default(),
    };
    let config = TransportConfig::new(ID, ClusterId(9), Arc::new(metrics::NoopRecorder));
    let transport =
        Transport::start(config, Arc::new(inbound), Arc::new(NoSnapshots)).expect("transport");
    let (followups, duties) = mpsc::channel(room);
    let version = Version::new(3, 6, 16);
    let slow = Duration::from_secs(60);
    let replica = Replica::new(store, ID, transport, received, followups, version, slow);
    Stage {
        replica,
        duties,
        index: 0,
        dir,
    }
}

fn version_entry(version: &str) -> Bytes {
    let request = InternalRaftRequest {
        header: Some(RequestHeader {
            id: 7,
            ..Default::default()
        }),
        cluster_version_set: Some(ClusterVersionSetRequest {
            ver: version.into(),
        }),
        ..Default::default()
    };
    request.encode_to_vec().into()
}

fn change(kind: ConfChangeType, node: u64, context: Vec<u8>) -> ConfChange {
    ConfChange {
        id: 1,
        change_type: kind as i32,
        node_id: node,
        context: context.into(),
    }
}

fn member(id: u64) -> Vec<u8> {
    json::member(&Member {
        id: MemberId(id),
        peer_urls: vec![format!("http://127.0.0.1:{id}")],
        ..Default::default()
    })
}

impl Stage {
    fn entry(&mut self, data: Bytes) -> Entry {
        self.index += 1;
        Entry {
            index: self.index,
            term: 1,
            data,
            ..Default::default()
        }
    }

    fn set_version(&mut self, version: &str) {
        let entry = self.entry(version_entry(version));
        self.replica.apply(entry).expect("an answer");
        self.replica.flush_batch();
    }

    fn configure(&mut self, change: ConfChange) -> bool {
        let entry = self.entry(Bytes::new());
        let accepted = self.replica.conf_change(&entry, &change).accepted;
        let state = ConfState {
            voters: vec![1],
            ..Default::default()
        };
        self.replica.conf_state(self.index, 1, state);
        accepted
    }
}

#[tokio::test]
async fn the_removal_of_this_member_is_told_however_many_duties_wait() {
    let mut stage = stage(3);
    for id in [1, 2] {
        assert!(stage.configure(change(ConfChangeType::AddNode, id, member(id))));
    }
    for _ in 0..5 {
        stage.set_version("3.5.0");
    }
    assert!(stage.configure(change(ConfChangeType::RemoveNode, 1, Vec::new())));
    let mut told = Vec::new();
    while let Ok(duty) = stage.duties.try_recv() {
        told.push(matches!(duty, Followup::SelfRemoved));
    }
    assert_eq!(told, [false, false, true]);
}

#[tokio::test]
#[should_panic(expected = "invalid downgrade; server version is lower")]
async fn a_cluster_version_above_its_own_ends_the_member() {
    let mut stage = stage(3);
    stage.set_version("3.6.0");
    stage.set_version("3.7.0");
}

#[tokio::test]
async fn a_snapshot_of_a_cluster_that_went_on_without_it_ends_the_member() {
    let mut stage = stage(3);
    stage.set_version("3.6.0");
    let mut newer = Store::open_on(
        StoreConfig::new("unused"),
        Arc::new(MemoryBackend::default()),
    )
    .expect("open");
    newer.apply(1, 1, &Bytes::new()).expect("apply");
    let at = 2;
    newer.apply(at, 1, &version_entry("3.7.0")).expect("apply");
    newer.flush().expect("flush");
    let image = newer.image().expect("image");
    let path = stage.dir.path().join(SnapDir::file_name(at));
    image
        .write_bolt(&mut File::create(path).expect("create"))
        .expect("write");
    let error = stage.replica.install(image.snapshot()).expect_err("fatal");
    assert!(error.to_string().contains("invalid downgrade"), "{error}");
    assert_eq!(imported(stage.dir.path()), 0);
}

/// Imported databases that lie about.
fn imported(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).expect("list");
    let names = names.map(|entry| entry.expect("entry").file_name());
    names
        .filter(|name| name.to_string_lossy().ends_with(".store"))
        .count()
}

#[tokio::test]
#[should_panic(expected = "a configuration change cannot be understood")]
async fn a_configuration_change_that_says_nothing_ends_the_member() {
    stage(3).configure(change(ConfChangeType::AddNode, 2, b"not JSON".to_vec()));
}

#[tokio::test]
#[should_panic(expected = "a configuration change cannot be understood")]
async fn a_configuration_change_that_says_two_things_ends_the_member() {
    stage(3).configure(change(ConfChangeType::AddNode, 2, member(3)));
}

#[tokio::test]
async fn a_configuration_change_that_is_not_allowed_is_refused() {
    let mut stage = stage(3);
    assert!(stage.configure(change(ConfChangeType::AddNode, 2, member(2))));
    assert!(!stage.configure(change(ConfChangeType::AddNode, 2, member(2))));
}
