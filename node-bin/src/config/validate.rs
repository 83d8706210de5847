//! etcd's rules about settings (etcd: server/embed/config.go, `Validate`), in etcd's order and words, and the defaults
//! that depend on other settings.
//!
//! Depends on `settings`. Invariant: nothing here touches disk or network, except that the address of this host is
//! looked up in the routing table when a default needs it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

use super::{
    ADVERTISE_UNSET, AutoCompaction, ClusterState, Config, LoadError, MetricsDetail, duration,
    flags::find,
    log_settings,
    peer_tls::{self, PeerTls},
    settings::{Note, Settings},
    url::{self, Url},
};
use crate::version::{self, Version};

/// Longest election timeout, in ms; etcd's tuning guide explains it.
const ELECTION_MS_MAX: u64 = 50_000;

/// Timeouts of connections between members are never shorter than this.
const RAFT_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// Entries kept behind a snapshot when 0 is said.
const CATCHUP_ENTRIES: u64 = 5000;

/// Entries between snapshots when 0 is said.
const SNAPSHOT_COUNT: u64 = 10_000;

/// Above this the database is larger than etcd has been tried with.
const QUOTA_RECOMMENDED: i64 = 8 << 30;

/// Smallest segment of the write-ahead log that can be asked for: below it a segment's own records do not fit.
const SEGMENT_BYTES_MIN: u64 = 4096;

pub(super) fn invalid<T>(message: impl Into<String>) -> Result<T, LoadError> {
    Err(LoadError::Invalid(message.into()))
}

/// Checks the settings and builds the configuration. `advertise_unset` says that the default of
/// `--advertise-client-urls` must not be used.
pub(super) fn build(
    settings: &Settings,
    advertise_unset: bool,
    notes: &mut Vec<Note>,
) -> Result<Config, LoadError> {
    let log = log_settings::read(settings)?;
    let segment_bytes = settings.uint("unsafe-wal-segment-bytes");
    let optional = |name| Some(settings.duration(name)).filter(|duration| !duration.is_zero());
    let path = |name| {
        settings
            .text(name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let count = |name| usize::try_from(settings.uint(name)).unwrap_or(usize::MAX);
    let mut config = Config {
        name: settings.text_or_default("name").into(),
        data_dir: path("data-dir").unwrap_or_default(),
        dedicated_wal_dir: path("wal-dir"),
        listen_peer_urls: settings.urls("listen-peer-urls"),
        listen_client_urls: settings.urls("listen-client-urls"),
        listen_client_http_urls: settings.urls("listen-client-http-urls"),
        listen_metrics_urls: settings.urls("listen-metrics-urls"),
        advertise_peer_urls: settings.urls("initial-advertise-peer-urls"),
        advertise_client_urls: if advertise_unset {
            Vec::new()
        } else {
            settings.urls("advertise-client-urls")
        },
        initial_cluster: settings.text_or_default("initial-cluster").into(),
        initial_cluster_state: cluster_state(settings)?,
        initial_cluster_token: settings.text_or_default("initial-cluster-token").into(),
        heartbeat_ms: settings.uint("heartbeat-interval"),
        election_ms: settings.uint("election-timeout"),
        initial_election_tick_advance: settings.bool("initial-election-tick-advance"),
        snapshot_count: non_zero(settings.uint("snapshot-count"), SNAPSHOT_COUNT),
        snapshot_catchup_entries: non_zero(
            settings.uint("snapshot-catchup-entries"),
            CATCHUP_ENTRIES,
        ),
        max_snapshots: count("max-snapshots"),
        max_wals: count("max-wals"),
        quota_backend_bytes: settings.int("quota-backend-bytes"),
        backend_batch_interval: optional("backend-batch-interval"),
        max_request_bytes: settings.uint("max-request-bytes"),
        max_txn_ops: count("max-txn-ops"),
        max_concurrent_streams: u32::try_from(settings.uint("max-concurrent-streams"))
            .unwrap_or(u32::MAX),
        max_learners: usize::try_from(settings.int("max-learners")).unwrap_or(0),
        grpc_keepalive_interval: optional("grpc-keepalive-interval"),
        grpc_keepalive_timeout: optional("grpc-keepalive-timeout"),
        socket_reuse_port: settings.bool("socket-reuse-port"),
        // Checked after the rest, as in etcd.
        peer_tls: PeerTls::default(),
        raft_read_timeout: raft_timeout(settings, "raft-read-timeout", notes),
        raft_write_timeout: raft_timeout(settings, "raft-write-timeout", notes),
        strict_reconfig_check: settings.bool("strict-reconfig-check"),
        pre_vote: settings.bool("pre-vote"),
        force_new_cluster: settings.bool("force-new-cluster"),
        unsafe_no_fsync: settings.bool("unsafe-no-fsync"),
        auto_compaction: AutoCompaction::Off,
        warning_apply_duration: settings.duration("warning-apply-duration"),
        warning_unary_request_duration: optional("warning-unary-request-duration")
            .unwrap_or_else(|| Settings::default().duration("warning-unary-request-duration")),
        cors: settings.set("cors"),
        host_whitelist: settings.set("host-whitelist"),
        metrics: if settings.text_or_default("metrics") == "extensive" {
            MetricsDetail::Extensive
        } else {
            MetricsDetail::Basic
        },
        features: settings.gates(),
        log,
        server_version: server_version(settings)?,
        wal_segment_bytes: Some(segment_bytes).filter(|bytes| *bytes > 0),
    };
    check_urls(&config, notes)?;
    check_timing(&config)?;
    if advertise_unset {
        return invalid(ADVERTISE_UNSET);
    }
    config.auto_compaction = auto_compaction(settings)?;
    check_rest(settings, &config, notes)?;
    config.peer_tls = peer_tls::read(settings, &config.listen_peer_urls, notes)?;
    fill_in_defaults(&mut config, notes, default_host);
    Ok(config)
}

/// The default of a setting that is a text.
fn default(name: &str) -> &'static str {
    find(name).map_or("", |flag| flag.default)
}

pub(super) fn non_zero(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}

fn raft_timeout(settings: &Settings, name: &'static str, notes: &mut Vec<Note>) -> Duration {
    let timeout = settings.duration(name);
    if timeout < RAFT_TIMEOUT_MIN {
        notes.push(Note::Raised(name));
    }
    timeout.max(RAFT_TIMEOUT_MIN)
}

fn cluster_state(settings: &Settings) -> Result<ClusterState, LoadError> {
    match settings.text_or_default("initial-cluster-state") {
        "" | "new" => Ok(ClusterState::New),
        "existing" => Ok(ClusterState::Existing),
        other => invalid(format!("unexpected clusterState {other:?}")),
    }
}

fn server_version(settings: &Settings) -> Result<Version, LoadError> {
    match settings.text_or_default("announced-server-version") {
        "" => Ok(version::ANNOUNCED),
        text => text
            .parse()
            .map_err(|error| LoadError::Invalid(format!("--announced-server-version: {error}"))),
    }
}

fn check_urls(config: &Config, notes: &mut Vec<Note>) -> Result<(), LoadError> {
    check_bind(&config.listen_peer_urls)?;
    check_client_bind(&config.listen_client_urls)?;
    check_client_bind(&config.listen_client_http_urls)?;
    if config.listen_client_http_urls.is_empty() {
        notes.push(Note::SharedPort);
    }
    check_client_bind(&config.listen_metrics_urls)?;
    check_advertised("initial-advertise-peer-urls", &config.advertise_peer_urls)?;
    check_advertised("advertise-client-urls", &config.advertise_client_urls)?;
    let http: BTreeSet<_> = config
        .listen_client_http_urls
        .iter()
        .map(Url::address)
        .collect();
    match config
        .listen_client_urls
        .iter()
        .find(|url| http.contains(&url.address()))
    {
        Some(url) => invalid(format!(
            "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
        )),
        None => Ok(()),
    }
}

/// Listening needs an address, not a name, except for `localhost`.
fn check_bind(urls: &[Url]) -> Result<(), LoadError> {
    for url in urls {
        let Some((host, _)) = url.host_port() else {
            return invalid(format!(
                "cannot listen on {url}: Unix sockets are not supported yet"
            ));
        };
        if host != "localhost" && host.parse::<IpAddr>().is_err() {
            return invalid(format!("expected IP in URL for binding ({url})"));
        }
    }
    Ok(())
}

fn check_client_bind(urls: &[Url]) -> Result<(), LoadError> {
    match urls.iter().find(|url| url.scheme().is_secure()) {
        Some(url) => invalid(format!(
            "cannot listen on {url}: TLS for clients is not supported yet"
        )),
        None => check_bind(urls),
    }
}

fn check_advertised(flag: &str, urls: &[Url]) -> Result<(), LoadError> {
    let joined = url::strings(urls).join(",");
    match urls
        .iter()
        .find(|url| url.host_port().is_none_or(|(host, _)| host.is_empty()))
    {
        Some(url) if url.scheme().is_unix() => invalid(format!(
            "--{flag} {joined:?} must be \"host:port\" (address {}: missing port in address)",
            url.address()
        )),
        Some(url) => invalid(format!(
            "--{flag} {joined:?} must be \"host:port\" (unexpected empty host ({url}))"
        )),
        None => Ok(()),
    }
}

fn check_timing(config: &Config) -> Result<(), LoadError> {
    let (heartbeat, election) = (config.heartbeat_ms, config.election_ms);
    if heartbeat == 0 {
        return invalid("--heartbeat-interval must be >0 (set to 0ms)");
    }
    if election == 0 {
        return invalid("--election-timeout must be >0 (set to 0ms)");
    }
    if heartbeat.saturating_mul(5) > election {
        return invalid(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > ELECTION_MS_MAX {
        return invalid(format!(
            "--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_MS_MAX}ms"
        ));
    }
    Ok(())
}

fn auto_compaction(settings: &Settings) -> Result<AutoCompaction, LoadError> {
    let text = match settings.text_or_default("auto-compaction-retention") {
        "" => "0",
        text => text,
    };
    let number: Option<u64> = text
        .parse()
        .ok()
        .filter(|number| *number <= i64::MAX as u64);
    let bad = || {
        invalid(format!(
            "error parsing CompactionRetention: time: invalid duration {text:?}"
        ))
    };
    match settings.text_or_default("auto-compaction-mode") {
        "" => invalid("undefined auto-compaction-mode"),
        "periodic" => {
            let period = match number {
                Some(hours) => hours.checked_mul(3600).map(Duration::from_secs),
                None => duration::parse(text),
            };
            match period {
                Some(period) if period.is_zero() => Ok(AutoCompaction::Off),
                Some(period) => Ok(AutoCompaction::Periodic(period)),
                None => bad(),
            }
        }
        "revision" => match number {
            Some(0) => Ok(AutoCompaction::Off),
            Some(revisions) => Ok(AutoCompaction::Revisions(revisions)),
            None => bad(),
        },
        other => invalid(format!("unknown auto-compaction-mode {other:?}")),
    }
}

fn check_rest(
    settings: &Settings,
    config: &Config,
    notes: &mut Vec<Note>,
) -> Result<(), LoadError> {
    let checkpoint = config.features.enabled("LeaseCheckpoint");
    match (
        checkpoint,
        config.features.enabled("LeaseCheckpointPersist"),
    ) {
        (true, false) => notes.push(Note::CheckpointWithoutPersist),
        (false, true) => {
            return invalid(
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            );
        }
        _ => {}
    }
    let without_effect = config.features.without_effect();
    notes.extend(without_effect.map(Note::GateWithoutEffect));
    if settings.duration("compact-hash-check-time").is_zero() {
        return invalid("--compact-hash-check-time must be >0 (set to 0s)");
    }
    if config.quota_backend_bytes > QUOTA_RECOMMENDED {
        notes.push(Note::LargeQuota {
            bytes: config.quota_backend_bytes,
            recommended: QUOTA_RECOMMENDED,
        });
    }
    if config.name == default("name") {
        notes.push(Note::DefaultName(config.name.clone()));
    }
    let token = settings.text_or_default("auth-token");
    if token != "simple" && !token.starts_with("simple,") {
        return invalid(format!(
            "--auth-token={token}: only simple tokens are supported yet"
        ));
    }
    match config.wal_segment_bytes {
        Some(bytes) if bytes < SEGMENT_BYTES_MIN => invalid(format!(
            "--unsafe-wal-segment-bytes must be at least {SEGMENT_BYTES_MIN}"
        )),
        _ => Ok(()),
    }
}

/// Defaults that follow from others: this host's address where one listens on all, the cluster of one's own name, the
/// data directory (etcd: `UpdateDefaultClusterFromName`).
fn fill_in_defaults(config: &mut Config, notes: &mut Vec<Note>, host: fn() -> Option<IpAddr>) {
    let defaults = Settings::default();
    let default_peer = config.advertise_peer_urls == defaults.urls("initial-advertise-peer-urls");
    let default_client = config.advertise_client_urls == defaults.urls("advertise-client-urls");
    let peer_port = default_peer
        .then(|| any_host_port(&config.listen_peer_urls))
        .flatten();
    let client_port = default_client
        .then(|| any_host_port(&config.listen_client_urls))
        .flatten();
    let wanted = peer_port.is_some() || client_port.is_some();
    if let Some(host) = wanted.then(host).flatten() {
        notes.push(Note::DefaultHost(host.to_string()));
        if let Some(port) = peer_port {
            config.advertise_peer_urls = vec![Url::http(format!("{host}:{port}"))];
        }
        if let Some(port) = client_port {
            config.advertise_client_urls = vec![Url::http(format!("{host}:{port}"))];
        }
    }
    let (name, cluster) = (default("name"), default("initial-cluster"));
    if config.name != name && config.initial_cluster == cluster {
        let name = if config.name.is_empty() {
            name
        } else {
            &config.name
        };
        let members = config
            .advertise_peer_urls
            .iter()
            .map(|url| format!("{name}={url}"));
        config.initial_cluster = members.collect::<Vec<_>>().join(",");
    }
    if config.data_dir.as_os_str().is_empty() {
        let dir = format!("{}.etcd", config.name);
        notes.push(Note::DefaultDataDir(dir.clone()));
        config.data_dir = dir.into();
    }
}

/// The port of the first URL, if it listens on every IPv4 address.
fn any_host_port(urls: &[Url]) -> Option<String> {
    urls.first()?
        .host_port()
        .filter(|(host, _)| *host == "0.0.0.0")
        .map(|(_, port)| port.to_string())
}

/// The address the routing table gives for the world outside. Connecting a datagram socket sends nothing.
fn default_host() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_s_address_stands_for_every_address() {
        let settings = Settings::default();
        let mut config = build(&settings, false, &mut Vec::new()).unwrap();
        config.name = "n1".into();
        config.initial_cluster = default("initial-cluster").into();
        config.listen_peer_urls = vec![Url::http("0.0.0.0:7001")];
        let mut notes = Vec::new();
        fill_in_defaults(&mut config, &mut notes, || Some([10, 0, 0, 7].into()));
        assert_eq!(
            url::strings(&config.advertise_peer_urls),
            ["http://10.0.0.7:7001"]
        );
        assert_eq!(
            url::strings(&config.advertise_client_urls),
            ["http://localhost:2379"]
        );
        assert_eq!(config.initial_cluster, "n1=http://10.0.0.7:7001");
        assert_eq!(notes, [Note::DefaultHost("10.0.0.7".into())]);
    }
}
