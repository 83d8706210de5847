//! A member without raft: proposals go straight to a real store, failures on request.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use kvstore::{
    ApplyError, Reader, Response, Store, StoreConfig,
    backend::memory::MemoryBackend,
    membership::{Member, json},
    pb::etcdserverpb::{InternalRaftRequest, RequestHeader},
};
use node_bin::{
    config::Url,
    grpc::{
        backend::{Proposal, ServerBackend},
        error::ServerError,
        header::Responder,
    },
};
use parking_lot::Mutex;
use prost::Message;
use raft_node::{Role, Status};
use tokio::sync::Semaphore;
use transport_core::{
    ClusterId, MemberId,
    raftpb::{ConfChange, ConfChangeType, ConfState},
};

pub const CLUSTER: ClusterId = ClusterId(0xc1);
pub const MEMBER: MemberId = MemberId(0xa1);
pub const TERM: u64 = 4;

/// Largest entry, for `RequestTooLarge`.
pub const REQUEST_MAX: usize = 100_000;

pub struct TestMember {
    store: Mutex<(Store, u64)>,
    reader: Reader,
    pub leader: AtomicU64,
    pub learner: AtomicBool,
    /// Answers that the next proposals, reads and moves of leadership get instead of being carried out.
    pub failures: Mutex<VecDeque<ServerError>>,
    /// Proposals pass one by one; without permits they wait.
    pub gate: Semaphore,
    waiting: AtomicUsize,
    pub waiting_max: AtomicUsize,
    pub reads: AtomicUsize,
}

impl TestMember {
    pub fn new() -> Arc<TestMember> {
        let config = StoreConfig {
            member_id: MEMBER,
            ..StoreConfig::new("unused")
        };
        let mut store = Store::open_on(config, Arc::new(MemoryBackend::default())).unwrap();
        let founder = Member {
            id: MEMBER,
            name: "first".into(),
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            client_urls: vec![],
            is_learner: false,
        };
        add(&mut store, 1, &founder).unwrap();
        let reader = store.reader();
        Arc::new(TestMember {
            store: Mutex::new((store, 2)),
            reader,
            leader: AtomicU64::new(MEMBER.0),
            learner: AtomicBool::new(false),
            failures: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            waiting: AtomicUsize::new(0),
            waiting_max: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
        })
    }

    pub fn status_applied(&self) -> u64 {
        self.store.lock().1 - 1
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Applies a request no service of the client port proposes.
    pub fn apply(&self, request: InternalRaftRequest) -> Result<Response, ApplyError> {
        let header = Some(RequestHeader {
            id: 1,
            ..Default::default()
        });
        let request = InternalRaftRequest { header, ..request };
        self.apply_data(request.encode_to_vec().into())
    }

    fn apply_data(&self, data: bytes::Bytes) -> Result<Response, ApplyError> {
        let (store, index) = &mut *self.store.lock();
        let applied = store.apply(*index, TERM, &data).unwrap();
        *index += 1;
        store.publish().unwrap();
        applied.outcome
    }

    pub fn flush(&self) {
        self.store.lock().0.flush().unwrap();
    }

    fn fail(&self) -> Result<(), ServerError> {
        self.failures.lock().pop_front().map_or(Ok(()), Err)
    }

    fn change(
        &self,
        kind: ConfChangeType,
        id: MemberId,
        context: Vec<u8>,
    ) -> Result<Vec<Member>, ServerError> {
        self.fail()?;
        let (store, index) = &mut *self.store.lock();
        let outcome = change(store, *index, kind, id, context);
        *index += 1;
        outcome.map_err(ServerError::Apply)?;
        Ok(store.reader().members())
    }
}

fn add(store: &mut Store, index: u64, member: &Member) -> Result<(), ApplyError> {
    let kind = if member.is_learner {
        ConfChangeType::AddLearnerNode
    } else {
        ConfChangeType::AddNode
    };
    change(store, index, kind, member.id, json::member(member))
}

fn change(
    store: &mut Store,
    index: u64,
    kind: ConfChangeType,
    id: MemberId,
    context: Vec<u8>,
) -> Result<(), ApplyError> {
    let change = ConfChange {
        change_type: kind as i32,
        node_id: id.0,
        context: context.into(),
        ..Default::default()
    };
    let outcome = store.conf_change(index, &change);
    store
        .set_conf_state(index, TERM, &ConfState::default())
        .unwrap();
    store.publish().unwrap();
    outcome.map(drop).map_err(|error| error.refusal().unwrap())
}

/// Counts a proposal as waiting, until it is dropped.
struct Waiting<'a>(&'a TestMember);

impl<'a> Waiting<'a> {
    fn begin(member: &'a TestMember) -> Self {
        let now = member.waiting.fetch_add(1, SeqCst) + 1;
        member.waiting_max.fetch_max(now, SeqCst);
        Waiting(member)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl ServerBackend for TestMember {
    fn responder(&self) -> Responder {
        Responder {
            cluster_id: CLUSTER,
            member_id: MEMBER,
        }
    }

    fn status(&self) -> Status {
        let leader = self.leader.load(SeqCst);
        let applied = self.store.lock().1 - 1;
        Status {
            id: MEMBER,
            leader: (leader != 0).then_some(MemberId(leader)),
            term: TERM,
            role: Role::Leader,
            committed: applied,
            applied,
            last_index: applied,
            snapshot_index: 0,
            log_lost: false,
        }
    }

    fn is_learner(&self) -> bool {
        self.learner.load(SeqCst)
    }

    fn reader(&self) -> &Reader {
        &self.reader
    }

    async fn propose(&self, proposal: Proposal) -> Result<Response, ServerError> {
        self.fail()?;
        let _waiting = Waiting::begin(self);
        drop(self.gate.acquire().await.unwrap());
        let data = proposal.encode(&RequestHeader {
            id: 7,
            ..Default::default()
        });
        if data.len() > REQUEST_MAX {
            return Err(ServerError::RequestTooLarge);
        }
        Ok(self.apply_data(data)?)
    }

    async fn linearizable(&self) -> Result<(), ServerError> {
        self.reads.fetch_add(1, SeqCst);
        self.fail()
    }

    async fn member_add(
        &self,
        peer_urls: Vec<Url>,
        is_learner: bool,
    ) -> Result<(Member, Vec<Member>), ServerError> {
        let member = Member {
            id: MemberId(0xb0 + peer_urls.len() as u64),
            peer_urls: peer_urls.iter().map(Url::to_string).collect(),
            is_learner,
            name: String::new(),
            client_urls: vec![],
        };
        let kind = if is_learner {
            ConfChangeType::AddLearnerNode
        } else {
            ConfChangeType::AddNode
        };
        let members = self.change(kind, member.id, json::member(&member))?;
        Ok((member, members))
    }

    async fn member_remove(&self, id: MemberId) -> Result<Vec<Member>, ServerError> {
        self.change(ConfChangeType::RemoveNode, id, vec![])
    }

    async fn member_update(
        &self,
        id: MemberId,
        peer_urls: Vec<Url>,
    ) -> Result<Vec<Member>, ServerError> {
        let member = Member {
            id,
            peer_urls: peer_urls.iter().map(Url::to_string).collect(),
            is_learner: false,
            name: String::new(),
            client_urls: vec![],
        };
        self.change(ConfChangeType::UpdateNode, id, json::member(&member))
    }

    async fn member_promote(&self, id: MemberId) -> Result<Vec<Member>, ServerError> {
        self.change(ConfChangeType::AddNode, id, json::promotion(id))
    }

    async fn move_leader(&self, to: MemberId) -> Result<(), ServerError> {
        self.fail()?;
        if self
            .reader
            .member(to)
            .is_none_or(|member| member.is_learner)
        {
            return Err(ServerError::BadLeaderTransferee);
        }
        self.leader.store(to.0, SeqCst);
        Ok(())
    }
}
