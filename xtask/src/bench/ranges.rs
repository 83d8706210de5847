//! `cargo xtask bench ranges`: what answers of many MiB do to the puts beside them.
//!
//! Three members hold a hundred MiB; readers ask one of them for everything, again and again, while one client puts
//! through the leader at a low rate. Told are the latencies of those puts and of `/health`, and whether the leader
//! stayed. Readers do not look into what they get: they stand for clients on other machines.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Buf;
use kvstore::pb::etcdserverpb::{
    PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::write_json;
use crate::{
    client::Client,
    cluster::Cluster,
    go_etcd::{GoEtcd, Release},
    http_get,
    workspace::{self, Outcome},
};

/// Keys, put in transactions of so many.
const KEYS: usize = 300_000;
const KEYS_PER_TXN: usize = 100;
/// Transactions at once.
const LOADERS: usize = 8;
/// Size of a value.
const VALUE_BYTES: usize = 300;
/// Clients that read everything.
const READERS: usize = 4;
/// Length of a round.
const ROUND: Duration = Duration::from_secs(10);
/// Pause between two puts, and between two looks at `/health`.
const PUT_PAUSE: Duration = Duration::from_millis(20);
const HEALTH_PAUSE: Duration = Duration::from_millis(100);
/// How long a leader may take to appear.
const LEADER_DEADLINE: Duration = Duration::from_secs(20);
/// The longest a read of everything may take.
const READ_DEADLINE: Duration = Duration::from_secs(60);

/// Who is asked for everything, and how.
struct Case {
    name: &'static str,
    readers: usize,
    of_leader: bool,
    serializable: bool,
}

const CASES: &[Case] = &[
    Case {
        name: "no reads",
        readers: 0,
        of_leader: true,
        serializable: true,
    },
    Case {
        name: "serializable, of the leader",
        readers: READERS,
        of_leader: true,
        serializable: true,
    },
    Case {
        name: "linearizable, of the leader",
        readers: READERS,
        of_leader: true,
        serializable: false,
    },
    Case {
        name: "linearizable, of a follower",
        readers: READERS,
        of_leader: false,
        serializable: false,
    },
];

/// Runs the workflow; `json` names a file for the figures.
pub fn bench(json: Option<&Path>) -> Outcome {
    let server = workspace::build_server()?;
    let go = GoEtcd::obtain(Release::V3_6_16)?;
    let runtime = Runtime::new().map_err(|error| format!("cannot start a runtime: {error}"))?;
    let mut told = Vec::new();
    for (whose, program) in [("ours", server.as_path()), ("Go 3.6.16", &go.etcd)] {
        let mut cluster = Cluster::new(&[program; 3], &[])?;
        cluster.start_all()?;
        let leader = cluster.leader(LEADER_DEADLINE)?;
        runtime.block_on(load(&cluster.members[leader].client_url))?;
        println!("{whose}:");
        for case in CASES {
            told.push(json!({ "whose": whose, "case": case.name, "figures": round(&mut cluster, case, &runtime)? }));
        }
    }
    write_json(json, told)
}

/// Puts all keys.
async fn load(endpoint: &str) -> Outcome {
    let client = Client::lazy(endpoint)?;
    let next = Arc::new(AtomicU64::new(0));
    let mut loaders = JoinSet::new();
    for _ in 0..LOADERS {
        let (mut kv, next) = (client.kv.clone(), next.clone());
        loaders.spawn(async move {
            loop {
                let first = next.fetch_add(KEYS_PER_TXN as u64, Ordering::Relaxed) as usize;
                if first >= KEYS {
                    return Ok(());
                }
                let put = |at: usize| RequestOp {
                    request: Some(Request::RequestPut(PutRequest {
                        key: format!("ranges/{at:08}").into(),
                        value: vec![b'v'; VALUE_BYTES].into(),
                        ..Default::default()
                    })),
                };
                let success = (first..first + KEYS_PER_TXN).map(put).collect();
                let txn = TxnRequest {
                    success,
                    ..Default::default()
                };
                let put = kv.txn(txn).await;
                put.map_err(|status| format!("cannot load keys: {status}"))?;
            }
        });
    }
    finish(loaders).await
}

async fn finish(mut tasks: JoinSet<Outcome>) -> Outcome {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| format!("a client panicked: {error}"))??;
    }
    Ok(())
}

/// One case against one cluster.
fn round(cluster: &mut Cluster, case: &Case, runtime: &Runtime) -> Outcome<Value> {
    let leader = cluster.leader(LEADER_DEADLINE)?;
    let asked = (leader + usize::from(!case.of_leader)) % cluster.members.len();
    let endpoint = |at: usize| cluster.members[at].client_url.clone();
    let (leader_url, asked_url) = (endpoint(leader), endpoint(asked));
    let sum = |name: &str| -> f64 {
        let members = cluster.members.iter();
        members.filter_map(|member| member.metric(name)).sum()
    };
    let counters = || {
        let changes = sum("etcd_server_leader_changes_seen_total");
        (changes, sum("etcd_server_heartbeat_send_failures_total"))
    };
    let before = counters();
    let (mut puts, mut healths, reads) = runtime.block_on(run(case, &leader_url, &asked_url))?;
    let after = counters();
    puts.sort_unstable();
    healths.sort_unstable();
    let ms = |times: &[Duration], per_cent: usize| {
        let at = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
        times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let (changes, late) = (after.0 - before.0, after.1 - before.1);
    println!(
        "  {:<28} {:>4} puts: median {:>6.1} ms, 99% {:>7.1} ms, longest {:>7.1} ms; /health longest {:>7.1} ms; \
         {reads} reads; {changes} leader changes, {late} late heartbeats",
        case.name,
        puts.len(),
        ms(&puts, 50),
        ms(&puts, 99),
        ms(&puts, 100),
        ms(&healths, 100),
    );
    Ok(json!({
        "puts": puts.len(), "put_ms_median": ms(&puts, 50), "put_ms_99": ms(&puts, 99), "put_ms_max": ms(&puts, 100),
        "health_ms_max": ms(&healths, 100), "reads": reads, "leader_changes": changes, "late_heartbeats": late,
    }))
}

/// Reads, puts and looks at the health for [`ROUND`]; how long puts and looks took, and how many reads were done.
async fn run(
    case: &Case,
    leader: &str,
    asked: &str,
) -> Outcome<(Vec<Duration>, Vec<Duration>, u64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let reads = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..case.readers {
        let (reader, stop, reads) = (Reader::lazy(asked)?, stop.clone(), reads.clone());
        let serializable = case.serializable;
        readers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let bytes = reader.everything(serializable).await?;
                if bytes < KEYS * VALUE_BYTES {
                    return Err(format!("a read of everything got {bytes} bytes"));
                }
                reads.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    let health = {
        let (url, stop) = (format!("{leader}/health"), stop.clone());
        tokio::task::spawn_blocking(move || {
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                http_get::get(&url)?;
                took.push(begun.elapsed());
                std::thread::sleep(HEALTH_PAUSE);
            }
            Ok::<_, String>(took)
        })
    };
    let mut client = Client::lazy(leader)?;
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < ROUND {
        let put = Instant::now();
        client.put(b"beside", b"v").await?;
        took.push(put.elapsed());
        tokio::time::sleep(PUT_PAUSE).await;
    }
    stop.store(true, Ordering::Relaxed);
    finish(readers).await?;
    let health = health
        .await
        .map_err(|error| format!("a client panicked: {error}"))??;
    Ok((took, health, reads.load(Ordering::Relaxed)))
}

/// A client that reads everything and keeps nothing.
struct Reader(Channel);

impl Reader {
    fn lazy(endpoint: &str) -> Outcome<Reader> {
        let endpoint = Endpoint::from_shared(endpoint.to_string())
            .map_err(|error| format!("{endpoint}: {error}"))?
            .timeout(READ_DEADLINE);
        Ok(Reader(endpoint.connect_lazy()))
    }

    /// The bytes of the answer.
    async fn everything(&self, serializable: bool) -> Outcome<usize> {
        let request = RangeRequest {
            key: b"\0".as_slice().into(),
            range_end: b"\0".as_slice().into(),
            serializable,
            ..Default::default()
        };
        let failed = |error: &dyn std::fmt::Display| format!("cannot read everything: {error}");
        let mut client =
            tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(usize::MAX);
        client.ready().await.map_err(|error| failed(&error))?;
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Range");
        let answer = client
            .unary(tonic::Request::new(request), path, Measuring)
            .await;
        answer
            .map(|answer| answer.into_inner())
            .map_err(|status| failed(&status))
    }
}

/// Requests as usual, and of answers the length alone.
struct Measuring;

impl Codec for Measuring {
    type Encode = RangeRequest;
    type Decode = usize;
    type Encoder = <ProstCodec<RangeRequest, RangeRequest> as Codec>::Encoder;
    type Decoder = Measuring;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<RangeRequest, RangeRequest>::default().encoder()
    }

    fn decoder(&mut self) -> Measuring {
        Measuring
    }
}

impl Decoder for Measuring {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, answer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = answer.remaining();
        answer.advance(bytes);
        Ok(Some(bytes))
    }
}
