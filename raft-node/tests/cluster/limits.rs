//! What a node refuses so that what waits stays bounded.

use std::{future::ready, pin::pin, sync::Arc};

use bytes::Bytes;
use raft_node::{Node, NodeConfig, ProposeError, Storage, disk::RealDisk};
use transport_core::MemberId;

use crate::{
    Nowhere,
    harness::{CLUSTER, metadata, options},
    machine::{Machine, MachineDisk},
};

/// A member of three that never hears of the others: whatever it is asked waits for a leader.
fn alone(dir: &std::path::Path, adjust: impl FnOnce(&mut NodeConfig)) -> Node<u64> {
    std::fs::create_dir(dir.join("snap")).expect("a directory");
    let options = options(Arc::new(RealDisk), dir);
    let mut storage = Storage::create(&options, metadata(1)).expect("a new log");
    let members = [1, 2, 3].map(|id| (MemberId(id), Bytes::from_static(b"{}")));
    storage.bootstrap(&members).expect("an empty log");
    let mut config = NodeConfig::new(MemberId(1), CLUSTER, Arc::new(metrics::NoopRecorder));
    adjust(&mut config);
    let machine = Machine::open(MachineDisk::default(), Arc::default());
    Node::start(config, storage, machine, Arc::new(Nowhere)).expect("it starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_proposals_wait_however_small() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = alone(dir.path(), |config| config.proposals_max = 2);
    let propose = |id| node.propose(id, Bytes::new());
    let mut first = pin!(propose(1));
    {
        let mut second = pin!(propose(2));
        for _ in 0..2 {
            tokio::select! {
                biased;
                result = &mut first => panic!("{result:?}"),
                result = &mut second => panic!("{result:?}"),
                () = ready(()) => {}
            }
        }
        assert_eq!(propose(3).await, Err(ProposeError::TooManyRequests));
    }
    // The second gave up.
    let mut fourth = pin!(propose(4));
    tokio::select! {
        biased;
        result = &mut fourth => panic!("{result:?}"),
        () = ready(()) => {}
    }
    node.stop().await;
    assert_eq!(first.await, Err(ProposeError::Stopped));
}
