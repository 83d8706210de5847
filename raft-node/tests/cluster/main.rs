//! Clusters of nodes with their threads: what a client and an operator may expect.

mod harness;
mod limits;
mod machine;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use raft_node::{
    ProposeError, ReadError, Role, StartError, StepError, Storage, TransferError,
    disk::{Disk, RealDisk, fault::Plan},
};
use transport_core::{
    MemberId,
    raftpb::{Message, MessageType},
};

use self::harness::{Cluster, fault_disks, lock, metadata, options, put, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_through_every_member_are_applied_everywhere() {
    let mut cluster = Cluster::new(3);
    for round in 0..10 {
        for id in 1..=3 {
            let index = cluster.put(id).await.expect("a result");
            assert!(index > round, "an index");
        }
    }
    let state = cluster.agreed().await;
    let mut requests = state.requests.clone();
    requests.sort_unstable();
    assert_eq!(requests, (1..=30).collect::<Vec<_>>());
    let leader = cluster.leader().await;
    let leads = |id: u64| cluster.members[&id].machine.leads.load(Ordering::SeqCst);
    assert_eq!(
        (1..=3).filter(|id| leads(*id)).collect::<Vec<_>>(),
        [leader]
    );
    let progress = cluster.node(leader).progress();
    assert_eq!(progress.len(), 3);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_everything_acknowledged_before() {
    let mut cluster = Cluster::new(3);
    let nodes: Vec<_> = (1..=3).map(|id| (id, cluster.node(id))).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..30_u64 {
        let (_, writer) = nodes[task as usize % 3].clone();
        let (id, reader) = nodes[(task as usize + 1) % 3].clone();
        let published = cluster.members[&id].published.clone();
        let requests: Vec<u64> = (0..20).map(|_| cluster.request()).collect();
        tasks.spawn(async move {
            for request in requests {
                let index = put(&writer, request).await.expect("a result");
                let read = reader.read_index().await.expect("an index");
                assert!(read >= index, "read {read} after {index} was acknowledged");
                let seen = lock(&published).requests.contains(&request);
                assert!(seen, "request {request} is visible at member {id}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task fails");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_without_the_leader_and_it_comes_back() {
    let mut cluster = Cluster::new(3);
    let mut last = 0;
    for _ in 0..5 {
        let leader = cluster.leader().await;
        let other = leader % 3 + 1;
        let stopped = cluster.stop(leader).await;
        let index = cluster.put_surely(other).await;
        let read = cluster.node(other).read_index().await.expect("an index");
        assert!(last < index && index <= read);
        cluster
            .restart(stopped, Arc::new(RealDisk))
            .expect("it starts again");
        last = cluster.put_surely(leader).await;
    }
    let state = cluster.agreed().await;
    assert!(state.applied.0 >= last && state.requests.len() >= 10);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader().await;
    let heir = leader % 3 + 1;
    cluster.put(heir).await.expect("a result");
    let follower = cluster.node(heir);
    let refused = follower.transfer_leadership(MemberId(heir)).await;
    assert_eq!(refused, Err(TransferError::NotLeader));
    let node = cluster.node(leader);
    let refused = node.transfer_leadership(MemberId(77)).await;
    assert_eq!(refused, Err(TransferError::NotVoter(MemberId(77))));

    let mut leadership = follower.leadership();
    node.transfer_leadership(MemberId(heir))
        .await
        .expect("it begins");
    let moved = leadership.wait_for(|l| l.is_self);
    tokio::time::timeout(harness::PATIENCE, moved)
        .await
        .expect("in time")
        .expect("it runs");
    assert_eq!(cluster.leader().await, heir);
    assert_eq!(follower.status().role, Role::Leader);
    cluster.put(leader).await.expect("a result");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_joins_is_promoted_and_a_member_leaves() {
    let mut cluster = Cluster::new(3);
    for _ in 0..20 {
        cluster.put(1).await.expect("a result");
    }
    let added = cluster.change(3, 4, b"{}").await;
    assert!(added > 0, "accepted");
    cluster.join(4);
    cluster.put(4).await.expect("a learner forwards proposals");
    assert_eq!(cluster.agreed().await.learners, [4].into());
    assert_eq!(
        cluster.change(3, 4, b"{}").await,
        0,
        "refused by the state machine"
    );
    assert!(cluster.change(0, 4, b"promote").await > 0);
    assert_eq!(cluster.agreed().await.voters, [1, 2, 3, 4].into());
    assert!(
        cluster.change(2, 4, b"new urls").await > 0,
        "an update changes nothing for raft"
    );
    assert_eq!(cluster.agreed().await.voters, [1, 2, 3, 4].into());

    // The leader itself goes: it must survive its own removal until its process ends.
    let leader = cluster.leader().await;
    let other = leader % 4 + 1;
    assert!(cluster.change(1, leader, b"").await > 0);
    let gone = cluster.node(leader);
    until("the removal at the leader", || {
        lock(&cluster.members[&leader].published)
            .removed
            .contains(&leader)
    })
    .await;
    let refused = tokio::time::timeout(Duration::from_secs(1), put(&gone, cluster.request())).await;
    assert!(
        !matches!(refused, Ok(Ok(_))),
        "it takes no proposals any more"
    );
    cluster.remove_from_transport(leader);
    cluster.stop(leader).await;
    cluster.put_surely(other).await;
    let conf_state = cluster.agreed().await.conf_state.expect("a configuration");
    assert_eq!(conf_state.voters.len(), 3);
    let from_removed = Message {
        msg_type: MessageType::Heartbeat as i32,
        from: leader,
        to: other,
        term: 9,
        ..Message::default()
    };
    let refused = cluster.node(other).step(from_removed).await;
    assert_eq!(refused, Err(StepError::Removed(MemberId(leader))));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_is_sent_a_snapshot() {
    let mut cluster = Cluster::with(3, 50, &|_| Arc::new(RealDisk));
    let leader = cluster.leader().await;
    let behind = leader % 3 + 1;
    let stopped = cluster.stop(behind).await;
    for _ in 0..400 {
        cluster.put(leader).await.expect("a result");
    }
    until("a snapshot", || {
        cluster.node(leader).status().snapshot_index > 200
    })
    .await;
    cluster
        .restart(stopped, Arc::new(RealDisk))
        .expect("it starts again");
    assert_eq!(cluster.agreed().await.requests.len(), 400);
    let installed = cluster.members[&behind]
        .machine
        .installed
        .load(Ordering::SeqCst);
    assert!(installed > 0, "by a snapshot");
    cluster.put(behind).await.expect("it takes part again");
    // And it starts from what it installed.
    let stopped = cluster.stop(behind).await;
    cluster
        .restart(stopped, Arc::new(RealDisk))
        .expect("it starts again");
    assert_eq!(cluster.agreed().await.requests.len(), 401);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_restarts() {
    let mut cluster = Cluster::with(3, 30, &|_| Arc::new(RealDisk));
    for round in 1..=4 {
        for _ in 0..25 {
            cluster.put(round % 3 + 1).await.expect("a result");
        }
        let mut stopped = Vec::new();
        for id in 1..=3 {
            stopped.push(cluster.stop(id).await);
        }
        for member in stopped {
            cluster
                .restart(member, Arc::new(RealDisk))
                .expect("it starts again");
        }
        let index = cluster.node(2).read_index().await.expect("an index");
        cluster.node(3).wait_applied(index).await.expect("applied");
        let seen = lock(&cluster.members[&3].published).requests.len();
        assert_eq!(seen, 25 * round as usize);
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_takes_nothing_acknowledged() {
    let disks = fault_disks(3);
    let all = disks.clone();
    let mut cluster = Cluster::with(3, 40, &move |id| Arc::new(all[&id].clone()));
    let mut disks = disks;
    let mut acknowledged = Vec::new();
    for round in 0..12_u64 {
        let id = round % 3 + 1;
        let disk = disks[&id].clone();
        let stop_at = disk.operations() + 20 + 7 * round;
        disk.plan(Plan {
            stop_at: Some(stop_at),
            ..Plan::default()
        });
        // Through all members, until one of them has lost its disk.
        while !disk.is_stopped() {
            for at in 1..=3 {
                let request = cluster.request();
                let node = cluster.node(at);
                let deadline = Duration::from_secs(3);
                let result = tokio::time::timeout(deadline, put(&node, request)).await;
                if matches!(result, Ok(Ok(_))) {
                    acknowledged.push(request);
                }
            }
        }
        let reason = tokio::time::timeout(harness::PATIENCE, cluster.node(id).fatal()).await;
        assert!(
            reason.expect("in time").contains("raft-wal"),
            "the disk is to blame"
        );
        let stopped = cluster.stop(id).await;
        let survivor = disk.crash();
        disks.insert(id, survivor.clone());
        cluster
            .restart(stopped, Arc::new(survivor))
            .expect("it starts again");
        cluster.leader().await;
    }
    cluster.put(1).await.expect("a result");
    let state = cluster.agreed().await;
    for request in &acknowledged {
        let times = state.requests.iter().filter(|r| *r == request).count();
        assert_eq!(times, 1, "request {request}");
    }
    assert!(acknowledged.len() > 50);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lonely_leader_steps_down_and_its_proposals_do_not_come_back() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader().await;
    let other = leader % 3 + 1;
    cluster.put(other).await.expect("a result");
    cluster.hub.isolate(leader, true);
    let (node, request) = (cluster.node(leader), cluster.request());
    let lost = tokio::spawn(async move { put(&node, request).await });
    until("another leader", || {
        cluster
            .node(other)
            .status()
            .leader
            .is_some_and(|l| l.0 != leader)
    })
    .await;
    cluster.put(other).await.expect("a result");
    until("the old one to step down", || {
        cluster.node(leader).status().role != Role::Leader
    })
    .await;
    cluster.hub.isolate(leader, false);
    let answer = lost.await.expect("no panic");
    assert_eq!(answer, Err(ProposeError::Superseded), "and not a timeout");
    assert_eq!(cluster.agreed().await.requests.len(), 2);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_proposals_and_reads_say_so() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader().await;
    cluster.put(leader).await.expect("a result");
    let left = leader % 3 + 1;
    let last = left % 3 + 1;
    cluster.stop(leader).await;
    cluster.stop(last).await;
    let node = cluster.node(left);
    until("no leader", || node.status().leader.is_none()).await;
    let (proposed, read) = tokio::join!(cluster.put(left), node.read_index());
    assert_eq!(proposed, Err(ProposeError::NoLeader));
    assert_eq!(read, Err(ReadError::Timeout));
    let waiting = {
        let node = node.clone();
        tokio::spawn(async move { node.read_index().await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.stop_all().await;
    assert_eq!(waiting.await.expect("no panic"), Err(ReadError::Stopped));
    assert_eq!(put(&node, 99).await, Err(ProposeError::Stopped));
    assert_eq!(node.wait_applied(1 << 40).await, Err(ReadError::Stopped));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_state_machine_ends_the_node_with_its_reason() {
    let mut cluster = Cluster::new(1);
    cluster.put(1).await.expect("a result");
    cluster.members[&1]
        .machine
        .panics
        .store(true, Ordering::SeqCst);
    let node = cluster.node(1);
    assert_eq!(cluster.put(1).await, Err(ProposeError::Stopped));
    let reason = tokio::time::timeout(harness::PATIENCE, node.fatal()).await;
    let reason = reason.expect("in time");
    assert!(
        reason.contains("raft-apply") && reason.contains("asked to panic"),
        "{reason}"
    );
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_can_be_made_a_cluster_of_its_own() {
    let mut cluster = Cluster::with(3, 20, &|_| Arc::new(RealDisk));
    for id in [1, 2, 3].repeat(15) {
        cluster.put_surely(id).await;
    }
    let before = cluster.agreed().await.requests;
    for id in 1..=2 {
        cluster.stop(id).await;
    }
    let survivor = cluster.stop(3).await;
    cluster.force_new(survivor).expect("it starts");
    cluster.put_surely(3).await;
    let state = cluster.agreed().await;
    assert_eq!(state.voters, [3].into());
    assert_eq!(state.removed, [1, 2].into());
    assert_eq!(state.requests[..before.len()], before);
    // And it stays one.
    let again = cluster.stop(3).await;
    cluster
        .restart(again, Arc::new(RealDisk))
        .expect("it starts again");
    cluster.put_surely(3).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn an_end_whose_commit_index_cannot_be_written_is_told() {
    let disks = fault_disks(1);
    let disk = disks[&1].clone();
    let cluster = Cluster::with(1, 1_000_000, &move |id| Arc::new(disks[&id].clone()));
    cluster.put_surely(1).await;
    // What says that the put is committed waits for the next write, or has not been synced yet.
    disk.plan(Plan {
        fail_at: Some((disk.operations() + 1, std::io::ErrorKind::StorageFull)),
        ..Plan::default()
    });
    let node = cluster.node(1);
    node.stop().await;
    let reason = tokio::time::timeout(Duration::ZERO, node.fatal()).await;
    let reason = reason.expect("known when it has stopped");
    assert!(reason.contains("raft-wal"), "{reason}");
}

/// A new node with an empty log of member 5, told that it is member `id`.
fn start_alone(dir: &std::path::Path, id: u64) -> Result<raft_node::Node<u64>, StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    disk.create_dir(&dir.join("snap")).expect("a directory");
    let options = options(disk, dir);
    drop(Storage::create(&options, metadata(5)).expect("a new log"));
    let storage = Storage::open(&options).expect("it opens");
    assert!(storage.is_empty() && storage.metadata() == metadata(5));
    let recorder = Arc::new(metrics::NoopRecorder);
    let config = raft_node::NodeConfig::new(MemberId(id), harness::CLUSTER, recorder);
    let machine = machine::Machine::open(machine::MachineDisk::default(), Arc::default());
    raft_node::Node::start(config, storage, machine, Arc::new(Nowhere))
}

#[tokio::test]
async fn a_log_of_another_member_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let started = start_alone(dir.path(), 6);
    assert!(matches!(started, Err(StartError::WrongMember { .. })));
}

#[test]
fn a_node_needs_a_runtime_and_ends_with_it() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let started = start_alone(dirs[0].path(), 5);
    assert!(matches!(started, Err(StartError::NoRuntime)));

    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime")
    };
    let its_own = runtime();
    let node = its_own
        .block_on(async { start_alone(dirs[1].path(), 5) })
        .expect("it starts");
    drop(its_own);
    runtime().block_on(async {
        assert_eq!(node.read_index().await, Err(ReadError::Stopped));
        node.stop().await;
    });
}

struct Nowhere;

impl raft_node::Transport<machine::State> for Nowhere {
    fn send(&self, _messages: Vec<Message>) {}
    fn send_snapshot(&self, _message: Message, _image: machine::State) {}
    fn is_removed(&self, _id: MemberId) -> bool {
        false
    }
}

/// Prints the rate; the ceiling is generous, as the machine may be busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_are_served_at_once() {
    const CLIENTS: u64 = 1000;
    const EACH: u64 = 20;
    let mut cluster = Cluster::new(3);
    let leader = cluster.leader().await;
    let node = cluster.node(leader);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let node = node.clone();
        tasks.spawn(async move {
            for i in 0..EACH {
                put(&node, 1 + client * EACH + i).await.expect("a result");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task fails");
    }
    let rate = (CLIENTS * EACH) as f64 / start.elapsed().as_secs_f64();
    println!("{rate:.0} proposals per second");
    assert!(rate > 500.0, "{rate}");

    let start_of_one = Instant::now();
    for i in 0..200 {
        put(&node, (1 << 32) + i).await.expect("a result");
    }
    println!(
        "{:?} per proposal of a single client",
        start_of_one.elapsed() / 200
    );
    assert_eq!(
        cluster.agreed().await.requests.len() as u64,
        CLIENTS * EACH + 200
    );
    cluster.stop_all().await;
}
