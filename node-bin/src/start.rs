//! From a configuration to a running member, and from there to its end.
//!
//! The order is etcd's (etcd: server/embed/etcd.go, etcdserver/server.go `NewServer`): sockets, log, store,
//! transport, node, then clients once the member has published itself. Composes all layers. Invariant: what
//! was started is stopped and joined, in the opposite order, whatever ends the member.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use kvstore::{
    Store, StoreConfig,
    quota::Quota,
    version::{Downgraded, detect_downgrade},
};
use raft_node::{
    Node, NodeConfig, StorageOptions,
    disk::{Disk, RealDisk, Unsynced},
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport_core::MemberId;
use transport_http::{SnapDir, Transport, TransportConfig, client::Client, net::Connector};

use crate::{
    config::Config,
    grpc::{
        backend::ServerBackend,
        error::ServerError,
        header::Responder,
        layer::GrpcLimits,
        metrics::GrpcMetrics,
        server::{self, Endpoint, ServerOptions},
        services::{ServiceOptions, Services},
    },
    http::client::{Access, client_router, metrics_router},
    listen::{ListenError, Listeners},
    member::{
        RequestIds,
        asking::PeerClient,
        boot::{self, Boot, BootError},
        inbound::{Inbound, PeerTransport},
        limits,
        outbound::Outbound,
        received::Received,
        replica::{DUTIES_MAX, Replica},
        serving::Member,
        tasks::{self, Ended},
        transferee,
    },
    metrics::{Metrics, ServerMetrics},
    peer_port::PeerSecurity,
    version,
};

/// How long a member that stops tries to hand leadership over.
const HAND_OVER_MAX: Duration = Duration::from_secs(5);
/// How long the stop as a whole may take before the process ends all the same.
pub const STOP_MAX: Duration = Duration::from_secs(15);

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Who the member is, or its log.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// What is to be changed in the log.
    #[error(transparent)]
    Storage(#[from] raft_node::StorageError),
    /// The store.
    #[error(transparent)]
    Store(#[from] kvstore::OpenError),
    /// The cluster has left this member's version behind.
    #[error(transparent)]
    Version(#[from] Downgraded),
    /// TLS between members.
    #[error(transparent)]
    Tls(#[from] transport_http::tls::TlsError),
    /// The transport.
    #[error(transparent)]
    Transport(#[from] transport_http::StartError),
    /// raft.
    #[error(transparent)]
    Node(#[from] raft_node::StartError),
    /// A URL of another member.
    #[error(transparent)]
    Url(#[from] transport_http::UrlError),
}

/// A running member and all that belongs to it.
pub struct Running {
    /// The member.
    pub member: Arc<Member>,
    stop_clients: CancellationToken,
    stop_peers: CancellationToken,
    tasks: TaskTracker,
    ended: watch::Receiver<Option<Ended>>,
}

/// Starts a member; returns when it runs and has begun to look for its cluster.
pub async fn start(config: Config, metrics: Metrics) -> Result<Running, StartError> {
    let config = Arc::new(config);
    let recorder = metrics.recorder();
    let listeners = Listeners::bind(&config)?;
    let security = PeerSecurity::load(&config, &recorder)?;

    let options = storage_options(&config, recorder.clone());
    let client = Client::over(security.connector(), config.peer_dial_timeout());
    let asking = PeerClient::new(client, None);
    let Boot {
        metadata,
        mut storage,
        restarted,
        remotes,
    } = boot::boot(&config, &options, &asking).await?;
    let (id, cluster_id) = (metadata.node_id, metadata.cluster_id);

    let (ended, ended_watch) = watch::channel(None);
    let ended = Arc::new(ended);
    let (opened, of, to) = (config.clone(), recorder.clone(), ended.clone());
    // Reads every row once, which takes its time.
    let mut store = boot::blocking(move || open_store(&opened, id, of, to)).await??;
    boot::is_ours(&config, id, &store.reader().members())?;
    store.begin_replay(storage.snapshot())?;
    let reader = store.reader();
    let own_version = version::to_store(config.server_version);
    detect_downgrade(own_version, reader.cluster_version())?;
    if config.force_new_cluster && restarted {
        let (applied, known) = (store.applied().0, reader.member(id));
        boot::force_new_cluster(&config, &mut storage, applied, known.as_ref())?;
    }
    let received = Arc::new(Received::new(config.snap_dir()));
    let recorded = storage.snapshot().and_then(|s| s.metadata.as_ref());
    let recorded = recorded.map(|metadata| metadata.index);
    received.tidy(recorded.filter(|index| *index > store.applied().0));

    let node = Arc::new(OnceLock::new());
    let inbound = Inbound {
        reader: reader.clone(),
        received: received.clone(),
        node: node.clone(),
    };
    let transport = start_transport(
        &config,
        (id, cluster_id),
        &recorder,
        inbound,
        security.connector(),
    )?;
    metrics.leave_out(transport.ended_series());
    for (remote, urls) in &remotes {
        transport.add_remote(*remote, urls)?;
    }
    let tasks = TaskTracker::new();
    let (followups, followups_waiting) = mpsc::channel(DUTIES_MAX);
    let replica = Replica::new(
        store,
        id,
        transport.clone(),
        received,
        followups,
        own_version,
        config.warning_apply_duration,
    );
    let outbound = Outbound {
        transport: transport.clone(),
        reader: reader.clone(),
        snap_dir: config.snap_dir(),
        runtime: Handle::current(),
        tasks: tasks.clone(),
        node: node.clone(),
    };
    let running_node = Node::start(
        node_config(&config, id, cluster_id, recorder.clone()),
        storage,
        replica,
        Arc::new(outbound),
    )?;
    // Set once, here.
    let _ = node.set(running_node.clone());

    let server_metrics = ServerMetrics::register(recorder, config.server_version, &config.features);
    server_metrics.identify(id);
    let member = Arc::new(Member {
        metrics: Arc::new(server_metrics),
        responder: Responder {
            cluster_id,
            member_id: id,
        },
        peers: PeerClient::new(Client::new(transport.config()), Some(cluster_id)),
        config: config.clone(),
        node: running_node,
        reader,
        transport,
        request_ids: RequestIds::new(id, SystemTime::now()),
        leader_elected: parking_lot::Mutex::default(),
    });
    let running = Running {
        member,
        stop_clients: CancellationToken::new(),
        stop_peers: CancellationToken::new(),
        tasks,
        ended: ended_watch,
    };
    running.spawn(listeners, &security, metrics, ended, followups_waiting);
    Ok(running)
}

fn storage_options(config: &Config, recorder: crate::metrics::SharedRecorder) -> StorageOptions {
    let disk: Arc<dyn Disk> = if config.unsafe_no_fsync {
        Arc::new(Unsynced(RealDisk))
    } else {
        Arc::new(RealDisk)
    };
    let mut options = StorageOptions::new(disk, config.wal_dir(), config.snap_dir(), recorder);
    options.segments_max = config.max_wals;
    options.snapshots_max = config.max_snapshots;
    if let Some(bytes) = config.wal_segment_bytes {
        options.segment_bytes = bytes;
    }
    options
}

fn open_store(
    config: &Config,
    id: MemberId,
    recorder: crate::metrics::SharedRecorder,
    ended: Arc<watch::Sender<Option<Ended>>>,
) -> Result<Store, StartError> {
    // 1.5 election timeouts, rounded up to seconds (etcd: etcdserver/server.go, `minTTL`).
    let min_lease_ttl_s = (3 * config.election_ticks()).div_ceil(2) * config.heartbeat_ms;
    let mut store = StoreConfig::new(config.member_dir().join("store.redb"));
    store.member_id = id;
    store.quota_bytes = config.quota_backend_bytes;
    store.max_learners = config.max_learners;
    store.min_lease_ttl_s = i64::try_from(min_lease_ttl_s.div_ceil(1000)).unwrap_or(i64::MAX);
    store.recorder = recorder;
    if let Some(interval) = config.backend_batch_interval {
        store.flush_interval = interval;
    }
    store.on_fatal = Arc::new(move |error| {
        ended.send_replace(Some(Ended::Fatal(error.to_string())));
    });
    Ok(Store::open(store)?)
}

fn start_transport(
    config: &Config,
    (id, cluster_id): (MemberId, transport_core::ClusterId),
    recorder: &crate::metrics::SharedRecorder,
    inbound: Inbound,
    connector: Arc<dyn Connector>,
) -> Result<PeerTransport, StartError> {
    let mut settings = TransportConfig::new(id, cluster_id, recorder.clone());
    settings.advertise_urls = crate::config::url::strings(&config.advertise_peer_urls);
    settings.server_version = config.server_version;
    settings.dial_timeout = config.peer_dial_timeout();
    settings.read_timeout = config.raft_read_timeout;
    settings.write_timeout = config.raft_write_timeout;
    settings.connector = connector;
    let sink = SnapDir::new(config.snap_dir(), recorder);
    Ok(Transport::start(
        settings,
        Arc::new(inbound),
        Arc::new(sink),
    )?)
}

fn node_config(
    config: &Config,
    id: MemberId,
    cluster_id: transport_core::ClusterId,
    recorder: crate::metrics::SharedRecorder,
) -> NodeConfig {
    let mut node = NodeConfig::new(id, cluster_id, recorder);
    node.tick = config.tick();
    node.election_ticks = config.election_ticks() as usize;
    node.pre_vote = config.pre_vote;
    node.snapshot_count = config.snapshot_count;
    node.catch_up_entries = config.snapshot_catchup_entries;
    node.request_timeout = config.request_timeout();
    node.disk_stall_max = 2 * config.election_timeout();
    node
}

impl Running {
    fn spawn(
        &self,
        listeners: Listeners,
        security: &PeerSecurity,
        metrics: Metrics,
        ended: Arc<watch::Sender<Option<Ended>>>,
        followups: mpsc::Receiver<crate::member::replica::Followup>,
    ) {
        let (member, tasks) = (&self.member, &self.tasks);
        let stop = &self.stop_clients;
        security.serve(member, listeners.peers, tasks, &self.stop_peers);
        tasks.spawn(metrics.clone().upkeep(self.stop_peers.clone()));
        tasks.spawn(tasks::advance_election(member.clone(), stop.clone()));
        tasks.spawn(tasks::watch_leader(member.clone(), stop.clone()));
        tasks.spawn(tasks::monitor_versions(member.clone(), stop.clone()));
        tasks.spawn(tasks::compact_history(member.clone(), stop.clone()));
        let (seeing_to, after) = (
            tasks::follow_up(member.clone(), followups, stop.clone()),
            ended.clone(),
        );
        tasks.spawn(async move {
            if let Some(end) = seeing_to.await {
                after.send_replace(Some(end));
            }
        });
        let (watching, watched, stop_watching) = (member.clone(), ended.clone(), stop.clone());
        tasks.spawn(async move {
            let end = async {
                tokio::select! {
                    reason = watching.node.fatal() => Ended::Fatal(reason.to_string()),
                    error = watching.transport.critical_error() => {
                        tracing::warn!(%error, "a peer says that this member was removed from the cluster");
                        Ended::Removed
                    }
                }
            };
            if let Some(end) = stop_watching.run_until_cancelled(end).await {
                watched.send_if_modified(|first| first.is_none() && { *first = Some(end); true });
            }
        });
        self.serve_clients(
            listeners.clients,
            listeners.client_http,
            listeners.metrics,
            metrics,
            ended,
        );
    }

    /// Serves clients, once this member has published itself: before, it would answer with errors alone.
    fn serve_clients(
        &self,
        clients: Vec<TcpListener>,
        client_http: Vec<TcpListener>,
        metrics_only: Vec<TcpListener>,
        metrics: Metrics,
        ended: Arc<watch::Sender<Option<Ended>>>,
    ) {
        let (member, stop, config) = (
            self.member.clone(),
            self.stop_clients.clone(),
            self.member.config.clone(),
        );
        let server_metrics = member.metrics.clone();
        let grpc_metrics = GrpcMetrics::register(&*metrics.recorder(), config.metrics);
        let services = Services::new(
            member.clone(),
            grpc_metrics,
            server_metrics.clone(),
            service_options(&config),
        );
        let access = Access {
            origins: config.cors.clone(),
            hosts: config.host_whitelist.clone(),
        };
        let router = client_router(
            member.clone(),
            metrics.clone(),
            server_metrics.clone(),
            access,
        );
        let monitoring = metrics_router(member.clone(), metrics, server_metrics);
        let options = ServerOptions::new(&config);
        let shared_port = client_http.is_empty();
        let tasks = self.tasks.clone();
        for listener in metrics_only {
            let endpoint = Endpoint::<Member> {
                grpc: None,
                http: monitoring.clone(),
            };
            tasks.spawn(server::serve(listener, endpoint, options, stop.clone()));
        }
        let spawner = tasks.clone();
        tasks.spawn(async move {
            if let Err(error) = tasks::publish(&member, &stop).await {
                ended.send_replace(Some(Ended::Fatal(error.to_string())));
                return;
            }
            if stop.is_cancelled() {
                return;
            }
            tracing::info!("ready to serve client requests");
            for listener in clients {
                tracing::info!(address = ?listener.local_addr().ok(), "serving client traffic insecurely; this is strongly discouraged!");
                let http = if shared_port { router.clone() } else { axum::Router::new() };
                let endpoint = Endpoint { grpc: Some(services.clone()), http };
                spawner.spawn(server::serve(listener, endpoint, options, stop.clone()));
            }
            for listener in client_http {
                let endpoint = Endpoint::<Member> { grpc: None, http: router.clone() };
                spawner.spawn(server::serve(listener, endpoint, options, stop.clone()));
            }
        });
    }

    /// Waits until the member cannot or must not go on.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ended::Removed),
            // The sender lives in this member's own tasks; without them there is nothing left to run.
            Err(_) => Ended::Fatal("the member's tasks are gone".into()),
        }
    }

    /// Hands leadership over if this member leads, then stops everything and waits for it.
    ///
    /// # Errors
    /// Why the member could not go on, if that came to pass before it had ended: its log may then lack what it was to
    /// hold in the end.
    pub async fn stop(self) -> Result<(), String> {
        self.hand_over().await;
        self.stop_clients.cancel();
        self.member.node.stop().await;
        self.member.transport.stop().await;
        self.stop_peers.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        // Nobody watches these two any more.
        if let Some(reason) = self.member.node.fatal().now_or_never() {
            return Err(reason.to_string());
        }
        match &*self.ended.borrow() {
            Some(Ended::Fatal(reason)) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    async fn hand_over(&self) {
        let member = &self.member;
        if !member.is_leader() {
            return;
        }
        let voters = member.voters();
        let others: Vec<_> = voters
            .iter()
            .filter(|voter| voter.id != member.id())
            .collect();
        if others.is_empty() {
            tracing::info!(local_member_id = %member.id(), "skipped leadership transfer for single voting member cluster");
            return;
        }
        let connected: Vec<_> = others
            .iter()
            .map(|voter| (voter.id, voter.connected))
            .collect();
        let Some(to) = transferee(&connected) else {
            tracing::warn!(local_member_id = %member.id(), "no voter is connected that leadership could go to");
            return;
        };
        let begun = Instant::now();
        match tokio::time::timeout(HAND_OVER_MAX, member.move_leader(to)).await {
            Ok(Ok(())) => {
                tracing::info!(local_member_id = %member.id(), new_leader_member_id = %to, took = ?begun.elapsed(), "leadership transferred");
                // The new leader knows all that this one had committed once it has committed something itself, for
                // which it needs this member if there are only two. A read waits for that.
                let left = HAND_OVER_MAX.saturating_sub(begun.elapsed());
                if !matches!(
                    tokio::time::timeout(left, member.linearizable()).await,
                    Ok(Ok(()))
                ) {
                    tracing::warn!(local_member_id = %member.id(), new_leader_member_id = %to, "the new leader has not committed anything yet");
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "leadership transfer failed"),
            Err(_) => {
                tracing::warn!(error = %ServerError::TimeoutLeaderTransfer, "leadership transfer failed")
            }
        }
    }
}

fn service_options(config: &Config) -> ServiceOptions {
    ServiceOptions {
        limits: GrpcLimits {
            receive_max: limits::receive_max(config.max_request_bytes),
            slow: config.warning_unary_request_duration,
        },
        txn_ops_max: config.max_txn_ops,
        quota: Quota::new(config.quota_backend_bytes),
        version: config.server_version,
    }
}
