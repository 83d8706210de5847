//! A concurrent client that writes, retries, and remembers what it was told.
//!
//! Each worker owns its keys (see [`crate::history`] for why) and goes on to the next endpoint when a
//! call fails, as etcd's own clients do. Invariant: [`Load::finish`] returns within a deadline, whatever the
//! members do: a stopped worker gives up its operation, and one that is told what no retry mends ends at once.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kvstore::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    client::{CALL_DEADLINE, Client},
    history::{Attempt, Change},
    workspace::Outcome,
};

/// Keys a worker keeps alive at a time.
const LIVE_KEYS_MAX: usize = 64;
/// Pause of a worker after a failed call.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// How long workers may take to end: one call, and what follows it.
const FINISH_DEADLINE: Duration = CALL_DEADLINE.saturating_add(Duration::from_secs(5));

/// What a load did.
#[derive(Default)]
pub struct Report {
    /// All attempts of all workers; those of one worker in order.
    pub attempts: Vec<Attempt>,
    /// When each acknowledgement came, ascending.
    pub acknowledged_at: Vec<Instant>,
    /// How long the slowest operation took, its retries included, whether or not it was acknowledged.
    pub slowest: Duration,
}

/// A running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    report: Arc<Mutex<Report>>,
    workers: JoinSet<Outcome>,
}

impl Load {
    /// Starts `workers` workers on the current runtime, each with its own connections, each waiting `pause`
    /// between two operations.
    pub fn start(
        endpoints: &[String],
        workers: usize,
        pause: Duration,
        seed: u64,
    ) -> Outcome<Load> {
        let mut load = Load {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            report: Arc::default(),
            workers: JoinSet::new(),
        };
        for id in 0..workers {
            let clients = endpoints
                .iter()
                .map(|url| Client::lazy(url))
                .collect::<Result<Vec<_>, _>>()?;
            let worker = Worker {
                id,
                at: id % clients.len(),
                clients,
                rng: StdRng::seed_from_u64(
                    seed ^ (id as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
                ),
                live: Vec::new(),
                fresh: 0,
                report: Report::default(),
            };
            let (stop, acknowledged) = (load.stop.clone(), load.acknowledged.clone());
            let report = load.report.clone();
            load.workers
                .spawn(worker.run(pause, stop, acknowledged, report));
        }
        Ok(load)
    }

    /// How many operations are acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the workers after their current call and returns what they did.
    ///
    /// Errors: a worker that gave up earlier, or does not end in time.
    pub async fn finish(mut self) -> Outcome<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = async {
            while let Some(ended) = self.workers.join_next().await {
                ended.map_err(|error| format!("a worker panicked: {error}"))??;
            }
            Ok::<_, String>(())
        };
        tokio::time::timeout(FINISH_DEADLINE, ended)
            .await
            .map_err(|_| format!("the load did not end within {FINISH_DEADLINE:?}"))??;
        let mut report = std::mem::take(&mut *self.report.lock().map_err(|_| "a worker panicked")?);
        report.acknowledged_at.sort_unstable();
        Ok(report)
    }
}

/// One sequential client.
struct Worker {
    id: usize,
    clients: Vec<Client>,
    at: usize,
    rng: StdRng,
    /// Keys that exist and have no attempt with an unknown end, with the revision of their last put.
    live: Vec<(Vec<u8>, i64)>,
    fresh: usize,
    report: Report,
}

impl Worker {
    async fn run(
        mut self,
        pause: Duration,
        stop: Arc<AtomicBool>,
        acknowledged: Arc<AtomicUsize>,
        report: Arc<Mutex<Report>>,
    ) -> Outcome {
        while !stop.load(Ordering::Relaxed) {
            if self.operate(&stop).await? {
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(pause).await;
        }
        let mut all = report.lock().map_err(|_| "a worker panicked")?;
        all.attempts.append(&mut self.report.attempts);
        all.acknowledged_at.append(&mut self.report.acknowledged_at);
        all.slowest = all.slowest.max(self.report.slowest);
        Ok(())
    }

    /// One operation, tried until it is acknowledged or the load is stopped; each try with keys and values of
    /// its own. Returns whether it was acknowledged. Errors: what no retry mends.
    async fn operate(&mut self, stop: &AtomicBool) -> Outcome<bool> {
        let started = Instant::now();
        let kind = self.rng.random_range(0..100);
        loop {
            let changes = self.changes(kind);
            let sent = send(&mut self.clients[self.at], &changes).await;
            self.report.slowest = self.report.slowest.max(started.elapsed());
            match sent {
                Ok(revision) => {
                    for change in &changes {
                        if let Change::Put(key, _) = change {
                            self.live.push((key.clone(), revision));
                        }
                    }
                    self.report.attempts.push(Attempt {
                        changes,
                        acknowledged: Some(revision),
                    });
                    self.report.acknowledged_at.push(Instant::now());
                    return Ok(true);
                }
                Err(status) if !may_pass(&status) => {
                    return Err(format!(
                        "{} refuses for good: {:?}: {}",
                        self.clients[self.at].endpoint,
                        status.code(),
                        status.message()
                    ));
                }
                Err(_) => {
                    self.report.attempts.push(Attempt {
                        changes,
                        acknowledged: None,
                    });
                    self.at = (self.at + 1) % self.clients.len();
                    if stop.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Draws the changes of one request. Keys it takes are no longer in `live`.
    fn changes(&mut self, kind: u32) -> Vec<Change> {
        match kind {
            0..15 if !self.live.is_empty() => vec![self.delete()],
            15..30 if self.live.len() > 1 => {
                let deleted = self.delete();
                vec![self.put(), self.put(), deleted]
            }
            _ => vec![self.put()],
        }
    }

    fn put(&mut self) -> Change {
        let reuse = !self.live.is_empty()
            && (self.live.len() >= LIVE_KEYS_MAX || self.rng.random_bool(0.4));
        self.fresh += 1;
        let key = if reuse {
            self.take_key().0
        } else {
            format!("load/{}/{}", self.id, self.fresh).into_bytes()
        };
        let mut value = format!("{}-{}-", self.id, self.fresh).into_bytes();
        let size = self.rng.random_range(0..256);
        value.extend((0..size).map(|_| self.rng.random::<u8>()));
        Change::Put(key, value)
    }

    fn delete(&mut self) -> Change {
        let (key, put_at) = self.take_key();
        Change::Delete(key, put_at)
    }

    fn take_key(&mut self) -> (Vec<u8>, i64) {
        let at = self.rng.random_range(0..self.live.len());
        self.live.swap_remove(at)
    }
}

/// Sends the changes as one put, delete or transaction; returns the revision of the answer.
async fn send(client: &mut Client, changes: &[Change]) -> Result<i64, Status> {
    let header = match changes {
        [Change::Put(key, value)] => {
            client
                .kv
                .put(put_request(key, value))
                .await?
                .into_inner()
                .header
        }
        [Change::Delete(key, _)] => {
            client
                .kv
                .delete_range(delete_request(key))
                .await?
                .into_inner()
                .header
        }
        _ => {
            let success = changes
                .iter()
                .map(|change| RequestOp {
                    request: Some(operation(change)),
                })
                .collect();
            client
                .kv
                .txn(TxnRequest {
                    success,
                    ..Default::default()
                })
                .await?
                .into_inner()
                .header
        }
    };
    header
        .map(|header| header.revision)
        .ok_or_else(|| Status::internal("an answer without a header"))
}

/// Whether the same call may succeed later or elsewhere. A lost connection comes as one of several codes.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::InvalidArgument
        | Code::OutOfRange
        | Code::NotFound
        | Code::Unimplemented
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::DataLoss => false,
        // "too many requests" passes; a full database does not.
        Code::ResourceExhausted => !status.message().contains("database space exceeded"),
        _ => true,
    }
}

fn operation(change: &Change) -> Request {
    match change {
        Change::Put(key, value) => Request::RequestPut(put_request(key, value)),
        Change::Delete(key, _) => Request::RequestDeleteRange(delete_request(key)),
    }
}

fn put_request(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest {
        key: key.to_vec().into(),
        value: value.to_vec().into(),
        ..Default::default()
    }
}

fn delete_request(key: &[u8]) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.to_vec().into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let exhausted = |text| Status::resource_exhausted(text);
        assert!(may_pass(&Status::unavailable("etcdserver: leader changed")));
        assert!(may_pass(&Status::unknown("transport error")));
        assert!(may_pass(&exhausted("etcdserver: too many requests")));
        assert!(!may_pass(&exhausted(
            "etcdserver: mvcc: database space exceeded"
        )));
        assert!(!may_pass(&Status::invalid_argument(
            "etcdserver: key is not provided"
        )));
    }

    #[tokio::test]
    async fn a_load_that_nobody_answers_ends_when_it_is_told_to() {
        // A port that was free a moment ago: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let endpoint = format!("http://127.0.0.1:{port}");
        let load = Load::start(&[endpoint], 4, Duration::ZERO, 1).unwrap();
        assert_eq!(load.acknowledged(), 0);
        let report = load.finish().await.unwrap();
        assert!(report.acknowledged_at.is_empty());
    }
}
