//! The KV service: reads, writes, transactions, compaction (etcd: v3rpc/key.go, v3rpc/quota.go, v3_server.go).
//!
//! Writes are checked and proposed; reads are answered from the store, after the barrier of a linearizable read unless
//! the client does without it. Depends on `check` for what is wrong with a request by itself.
//!
//! Invariant: nothing is proposed that a member could not apply, and no read that may be long runs on a thread that
//! serves sockets.

use std::{sync::Arc, time::Duration};

use kvstore::{
    ApplyError, Response, is_read_only,
    pb::etcdserverpb::{
        AlarmRequest, AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest,
        DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader,
        TxnRequest, TxnResponse, alarm_request::AlarmAction, request_op::Request,
    },
    quota::{Quota, cost_of_put, cost_of_txn},
};

use super::{
    backend::{Proposal, ServerBackend},
    blocking::blocking,
    check,
    error::ServerError,
};

/// Time between two looks at how far compaction is.
const COMPACTION_POLL: Duration = Duration::from_millis(10);
/// The longest a client is kept waiting for the rows of a compaction to be gone.
const COMPACTION_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// The KV service.
pub struct Kv<B> {
    backend: Arc<B>,
    quota: Quota,
    txn_ops_max: usize,
}

impl<B: ServerBackend> Kv<B> {
    /// `txn_ops_max` is `--max-txn-ops`.
    pub fn new(backend: Arc<B>, quota: Quota, txn_ops_max: usize) -> Kv<B> {
        Kv {
            backend,
            quota,
            txn_ops_max,
        }
    }

    /// Reads keys.
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ServerError> {
        check::range(&request)?;
        if !request.serializable {
            self.backend.linearizable().await?;
        }
        let mut response = if may_be_long(&request) {
            let reader = self.backend.reader().clone();
            blocking(move || reader.range(&request)).await??
        } else {
            self.backend.reader().range(&request)?
        };
        self.fill(&mut response.header);
        Ok(response)
    }

    /// Writes a key.
    pub async fn put(&self, request: PutRequest) -> Result<PutResponse, ServerError> {
        self.reserve(cost_of_put(&request)).await?;
        check::put(&request)?;
        match self.backend.propose(Proposal::Put(request)).await? {
            Response::Put(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes keys.
    pub async fn delete_range(
        &self,
        request: DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, ServerError> {
        check::delete_range(&request)?;
        match self.backend.propose(Proposal::DeleteRange(request)).await? {
            Response::DeleteRange(mut response) => {
                self.fill(&mut response.header);
                Ok(response)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Compares, then runs one of two lists of operations. One that only reads takes the way of a range.
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ServerError> {
        self.reserve(cost_of_txn(&request)).await?;
        check::txn(&request, self.txn_ops_max)?;
        let mut response = if is_read_only(&request) {
            self.txn_read_only(request).await?
        } else {
            match self.backend.propose(Proposal::Txn(request)).await? {
                Response::Txn(response) => response,
                other => return Err(unexpected(&other)),
            }
        };
        self.fill(&mut response.header);
        Ok(response)
    }

    async fn txn_read_only(&self, request: TxnRequest) -> Result<TxnResponse, ServerError> {
        let ranges = || request.success.iter().chain(&request.failure);
        let all = |holds: fn(&RangeRequest) -> bool| {
            ranges()
                .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if holds(range)))
        };
        if !all(|range| range.serializable) {
            self.backend.linearizable().await?;
        }
        let inline = all(|range| !may_be_long(range))
            && request
                .compare
                .iter()
                .all(|compare| compare.range_end.is_empty());
        let reader = self.backend.reader();
        Ok(if inline {
            reader.txn_read_only(&request)?
        } else {
            let reader = reader.clone();
            blocking(move || reader.txn_read_only(&request)).await??
        })
    }

    /// Forgets history; waits until its rows are gone if that is asked for.
    pub async fn compact(
        &self,
        request: CompactionRequest,
    ) -> Result<CompactionResponse, ServerError> {
        let mut response = match self.backend.propose(Proposal::Compaction(request)).await? {
            Response::Compaction(response) => response,
            other => return Err(unexpected(&other)),
        };
        if request.physical {
            let done = self.compacted(request.revision);
            tokio::time::timeout(COMPACTION_DEADLINE, done)
                .await
                .map_err(|_| ServerError::Timeout)?;
        }
        self.fill(&mut response.header);
        Ok(response)
    }

    async fn compacted(&self, revision: i64) {
        while self.backend.reader().finished_compaction() < revision {
            tokio::time::sleep(COMPACTION_POLL).await;
        }
    }

    /// Makes sure that there is room for something of this cost, and raises the alarm if there is none.
    async fn reserve(&self, cost: u64) -> Result<(), ServerError> {
        let reader = self.backend.reader();
        if self.quota.has_room(reader.size(), cost) {
            return Ok(());
        }
        let member_id = self.backend.responder().member_id.0;
        let alarm = AlarmType::Nospace as i32;
        let raised = |alarms: Vec<kvstore::pb::etcdserverpb::AlarmMember>| {
            let mut alarms = alarms.iter();
            alarms.any(|raised| raised.member_id == member_id && raised.alarm == alarm)
        };
        if !raised(reader.alarms()) {
            let request = AlarmRequest {
                action: AlarmAction::Activate as i32,
                member_id,
                alarm,
            };
            // Whether that worked is not what the client asks; the next request over the quota tries again.
            if let Err(error) = self.backend.propose(Proposal::Alarm(request)).await {
                tracing::warn!(%error, "failed to raise alarm");
            }
        }
        Err(ApplyError::NoSpace.into())
    }

    fn fill(&self, header: &mut Option<ResponseHeader>) {
        let backend = &*self.backend;
        let revision = || backend.reader().revision();
        backend
            .responder()
            .fill(header, backend.status().term, revision);
    }
}

/// Whether executing a range may take longer than a thread that serves sockets can be spared: the keys of an interval
/// are all counted, whatever its limit.
fn may_be_long(request: &RangeRequest) -> bool {
    !request.range_end.is_empty()
}

/// The state machine answered a request with the answer to another one.
pub(super) fn unexpected(response: &Response) -> ServerError {
    let kind = format!("{response:?}");
    let kind = kind.split('(').next().unwrap_or_default();
    ServerError::Other(format!(
        "etcdserver: the answer is of another kind than the request: {kind}"
    ))
}
