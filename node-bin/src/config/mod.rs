//! Configuration: from flags, environment or a file to one checked [`Config`].
//!
//! [`load`] is the way in. One table (`table`) drives all three sources and the help text; `validate` holds etcd's
//! rules; `cluster` what the first members of a cluster must fulfil. Depends on nothing else of this crate but
//! `version`. Invariant: a `Config` that exists has passed every check that needs neither disk nor network.

pub mod cluster;
mod command_line;
pub mod duration;
mod environment;
pub mod features;
mod file;
mod flags;
mod help;
mod log_settings;
mod peer_tls;
mod resolve;
mod settings;
mod table;
pub mod url;
mod validate;
mod value;
mod yaml;

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

use self::{environment::EnvironmentError, file::FileError, peer_tls::PeerTls, settings::Settings};
pub use self::{features::FeatureGates, help::usage, settings::Note, url::Url};
use crate::version::Version;

/// What `--initial-cluster-state` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// The cluster is being founded.
    New,
    /// The cluster exists and has added this member.
    Existing,
}

/// What is compacted without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Nothing.
    Off,
    /// What is older than this.
    Periodic(Duration),
    /// What lies more than this many revisions back.
    Revisions(u64),
}

/// How much `/metrics` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsDetail {
    /// Without histograms of gRPC calls.
    Basic,
    /// With them.
    Extensive,
}

/// Lowest level that is written to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// The usual.
    Info,
    /// What an operator should look at.
    Warn,
    /// What went wrong.
    Error,
    /// Only what ends the process.
    Fatal,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Console,
}

/// Where a log line goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// How log files are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Size at which a new file is begun, in bytes.
    pub size_max: u64,
    /// Days an old file is kept; 0 for ever.
    pub days_max: u64,
    /// Old files that are kept; 0 for all.
    pub files_max: u64,
}

/// The log's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Lowest level written.
    pub level: LogLevel,
    /// Form of a line.
    pub format: LogFormat,
    /// Where lines go; none discards them.
    pub outputs: Vec<LogOutput>,
    /// Rotation of the file among the outputs.
    pub rotation: Option<LogRotation>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            level: LogLevel::Info,
            format: LogFormat::Json,
            outputs: vec![LogOutput::Stderr],
            rotation: None,
        }
    }
}

/// Everything that can be set about a member. Fields are named as the flags; units are in the types.
///
/// Fields are not public, so that the compiler tells of one that nobody reads; that is why there is no comparison either.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // each field is the flag of its name, documented in `table`
pub struct Config {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) dedicated_wal_dir: Option<PathBuf>,
    pub(crate) listen_peer_urls: Vec<Url>,
    pub(crate) listen_client_urls: Vec<Url>,
    pub(crate) listen_client_http_urls: Vec<Url>,
    pub(crate) listen_metrics_urls: Vec<Url>,
    pub(crate) advertise_peer_urls: Vec<Url>,
    pub(crate) advertise_client_urls: Vec<Url>,
    pub(crate) initial_cluster: String,
    pub(crate) initial_cluster_state: ClusterState,
    pub(crate) initial_cluster_token: String,
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_ms: u64,
    pub(crate) initial_election_tick_advance: bool,
    pub(crate) snapshot_count: u64,
    pub(crate) snapshot_catchup_entries: u64,
    pub(crate) max_snapshots: usize,
    pub(crate) max_wals: usize,
    pub(crate) quota_backend_bytes: i64,
    pub(crate) backend_batch_interval: Option<Duration>,
    pub(crate) max_request_bytes: u64,
    pub(crate) max_txn_ops: usize,
    pub(crate) max_concurrent_streams: u32,
    pub(crate) max_learners: usize,
    pub(crate) grpc_keepalive_interval: Option<Duration>,
    pub(crate) grpc_keepalive_timeout: Option<Duration>,
    pub(crate) socket_reuse_port: bool,
    pub(crate) peer_tls: PeerTls,
    pub(crate) raft_read_timeout: Duration,
    pub(crate) raft_write_timeout: Duration,
    pub(crate) strict_reconfig_check: bool,
    pub(crate) pre_vote: bool,
    pub(crate) force_new_cluster: bool,
    pub(crate) unsafe_no_fsync: bool,
    pub(crate) auto_compaction: AutoCompaction,
    pub(crate) warning_apply_duration: Duration,
    pub(crate) warning_unary_request_duration: Duration,
    pub(crate) cors: BTreeSet<String>,
    pub(crate) host_whitelist: BTreeSet<String>,
    pub(crate) metrics: MetricsDetail,
    pub(crate) features: FeatureGates,
    pub log: LogConfig,
    /// The version this member says it has.
    pub(crate) server_version: Version,
    /// Size of a segment of the write-ahead log; `None` for the default.
    pub(crate) wal_segment_bytes: Option<u64>,
}

/// Time a request may take besides two elections: queues, computation, disk (etcd: server/config/config.go).
const REQUEST_TIME: Duration = Duration::from_secs(5);

impl Config {
    /// Heartbeat intervals in an election timeout.
    pub fn election_ticks(&self) -> u64 {
        self.election_ms / self.heartbeat_ms
    }

    /// The interval of one tick.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// The election timeout, rounded down to ticks.
    pub fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.election_ticks() * self.heartbeat_ms)
    }

    /// How long a request may take before it is answered with a timeout.
    pub fn request_timeout(&self) -> Duration {
        REQUEST_TIME + 2 * self.election_timeout()
    }

    /// How long opening a connection to another member may take.
    pub fn peer_dial_timeout(&self) -> Duration {
        Duration::from_secs(1) + self.election_timeout()
    }

    /// The directory below which everything is kept.
    pub fn member_dir(&self) -> PathBuf {
        self.data_dir.join("member")
    }

    /// The directory of the write-ahead log.
    pub fn wal_dir(&self) -> PathBuf {
        self.dedicated_wal_dir
            .clone()
            .unwrap_or_else(|| self.member_dir().join("wal"))
    }

    /// The directory of the snapshots.
    pub fn snap_dir(&self) -> PathBuf {
        self.member_dir().join("snap")
    }

    /// A configuration out of flags alone, for tests and for members within a process.
    pub fn from_flags(flags: &[&str]) -> Result<Config, Failure> {
        let args = flags.iter().map(OsString::from).collect();
        match load(args, Vec::new())? {
            Outcome::Run(loaded) => Ok(loaded.config),
            Outcome::Print(text) => Err(Failure {
                error: LoadError::Usage(text),
                notes: Vec::new(),
            }),
        }
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Outcome {
    /// To run a member.
    Run(Box<Loaded>),
    /// To print this and to exit with 0.
    Print(String),
}

/// A configuration and what there is to say about how it came about.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// To be logged once there is a log; see `log::announce`.
    pub notes: Vec<Note>,
}

/// Why there is no configuration, and what was noticed before.
#[derive(Debug)]
pub struct Failure {
    /// The reason.
    pub error: LoadError,
    /// To be logged before the reason.
    pub notes: Vec<Note>,
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The command line is wrong. Goes to the terminal together with [`usage`].
    #[error("{0}")]
    Usage(String),
    /// The file is wrong in a way that etcd reports on the terminal.
    #[error("{0}")]
    Terminal(String),
    /// A variable of the environment contradicts the command line.
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag \
         (either unset environment variable or disable flag))"
    )]
    Conflict {
        /// The variable.
        variable: String,
    },
    /// A setting is wrong, or settings do not fit together.
    #[error("{0}")]
    Invalid(String),
}

/// `--listen-client-urls` without `--advertise-client-urls`.
pub const ADVERTISE_UNSET: &str =
    "--advertise-client-urls is required when --listen-client-urls is set explicitly";

impl LoadError {
    /// The exit code etcd has for it.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, LoadError::Usage(_)) {
            2
        } else {
            1
        }
    }
}

/// Reads the command line (without the program's name) and the environment, and the file one of them names.
pub fn load(args: Vec<OsString>, variables: Vec<(OsString, OsString)>) -> Result<Outcome, Failure> {
    let args: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let variables: Vec<(String, String)> = variables
        .iter()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    let bare = |error| Failure {
        error,
        notes: Vec::new(),
    };
    let line = command_line::parse(&args).map_err(|message| bare(LoadError::Usage(message)))?;
    if line.help {
        return Ok(Outcome::Print(help::help()));
    }
    if let Some(stray) = &line.stray {
        return Err(bare(LoadError::Invalid(format!(
            "{stray:?} is not a valid flag"
        ))));
    }
    if line.version() {
        return Ok(Outcome::Print(help::version()));
    }
    let path = line
        .settings
        .text("config-file")
        .filter(|path| !path.is_empty())
        .map(str::to_string)
        .or_else(|| {
            let variable = variables
                .iter()
                .find(|(name, _)| name == "ETCD_CONFIG_FILE");
            variable
                .map(|(_, value)| value.clone())
                .filter(|value| !value.is_empty())
        });
    let mut notes = Vec::new();
    let result = match path {
        Some(path) => from_file(&path, &mut notes),
        None => from_command_line(line.settings, &variables, &mut notes),
    };
    match result {
        Ok(config) => Ok(Outcome::Run(Box::new(Loaded { config, notes }))),
        Err(error) => Err(Failure { error, notes }),
    }
}

fn from_command_line(
    mut settings: Settings,
    variables: &[(String, String)],
    notes: &mut Vec<Note>,
) -> Result<Config, LoadError> {
    match environment::apply(&mut settings, variables) {
        Ok(more) => notes.extend(more),
        Err(EnvironmentError::Conflict(variable)) => return Err(LoadError::Conflict { variable }),
        Err(EnvironmentError::Value(message)) => return Err(LoadError::Invalid(message)),
    }
    let advertise_unset =
        settings.is_given("listen-client-urls") && !settings.is_given("advertise-client-urls");
    finish(settings, advertise_unset, notes)
}

fn from_file(path: &str, notes: &mut Vec<Note>) -> Result<Config, LoadError> {
    let (settings, more) = file::read(path.as_ref()).map_err(|error| match error {
        FileError::Unreadable(message) => LoadError::Invalid(message),
        FileError::Urls(message) => LoadError::Terminal(message),
    })?;
    notes.push(Note::FileUsed(path.into()));
    notes.extend(more);
    finish(settings, false, notes)
}

fn finish(
    mut settings: Settings,
    advertise_unset: bool,
    notes: &mut Vec<Note>,
) -> Result<Config, LoadError> {
    notes.extend(settings.resolve().map_err(LoadError::Invalid)?);
    validate::build(&settings, advertise_unset, notes)
}

#[cfg(test)]
mod tests;
