//! What there is to say about a configuration, or about the lack of one, in etcd's words (etcd: server/etcdmain).
//!
//! Depends on `config`. Invariant: `report` says everything a refused start has to say and leaves only the exit code.

use crate::config::{ADVERTISE_UNSET, Failure, LoadError, Loaded, Note, usage};

/// Logs how the configuration came about. To be called once the log of the configuration is set up.
pub fn announce(loaded: &Loaded, args: &[String]) {
    loaded.notes.iter().for_each(note);
    tracing::info!(?args, "Running: ");
}

/// Says on the terminal or in the log why there is no configuration, and returns the exit code. Sets up the default
/// log if there is none.
pub fn report(failure: &Failure, args: &[String]) -> u8 {
    match &failure.error {
        LoadError::Usage(message) => eprintln!("{message}\n{}", usage()),
        LoadError::Terminal(message) => eprintln!("{message}"),
        LoadError::Conflict { variable } => {
            // Failing means that there is a log already.
            let _ = super::init_default();
            failure.notes.iter().for_each(note);
            tracing::error!(
                fatal = true,
                environment_variable = variable,
                "{}",
                failure.error
            );
        }
        LoadError::Invalid(message) => {
            let _ = super::init_default();
            failure.notes.iter().for_each(note);
            tracing::info!(?args, "Running: ");
            tracing::warn!(error = message, "failed to verify flags");
            if message == ADVERTISE_UNSET {
                tracing::warn!(error = message, "advertise client URLs are not set");
            }
        }
    }
    failure.error.exit_code()
}

fn note(note: &Note) {
    match note {
        Note::VariableUsed { name, value } => tracing::info!(
            variable_name = name,
            variable_value = value,
            "recognized and used environment variable"
        ),
        Note::VariableUnknown(variable) => {
            tracing::warn!(
                environment_variable = variable,
                "unrecognized environment variable"
            );
        }
        Note::VariableReserved { name, value } => {
            tracing::warn!(key = name, value, "cannot set special environment variable");
        }
        Note::FileUsed(path) => tracing::info!(
            path,
            "loaded server configuration; command line and environment are not used"
        ),
        Note::KeyUnknown(key) => tracing::warn!(key, "unrecognized key in the configuration file"),
        Note::Ignored { name, reason } => tracing::warn!(flag = name, reason, "flag has no effect"),
        Note::GateWithoutEffect(name) => {
            tracing::warn!(feature_gate = name, "feature gate has no effect");
        }
        Note::LargeQuota { bytes, recommended } => tracing::warn!(
            quota_size_bytes = bytes,
            quota_maximum_size_bytes = recommended,
            "the quota of the database exceeds the recommended maximum"
        ),
        Note::Deprecated { name, instead } => {
            tracing::warn!("--{name} is deprecated. Use '{instead}' instead.");
        }
        Note::Raised(name) => tracing::info!("{name} increased to minimum value: 5s"),
        Note::SharedPort => {
            tracing::warn!(
                "HTTP and gRPC share the client port; --listen-client-http-urls separates them"
            );
        }
        Note::DefaultName(name) => tracing::warn!(
            name,
            "the member has the default name; members that share it are taken for one, so --name should be set"
        ),
        Note::CheckpointWithoutPersist => tracing::warn!(
            "leases are checkpointed and the checkpoints not kept; LeaseCheckpointPersist would keep them"
        ),
        Note::PeerAutoTlsIgnored => tracing::warn!("ignoring peer auto TLS since certs given"),
        Note::PeerCertificateUnused(url) => tracing::warn!(
            peer_url = url,
            "scheme is HTTP while key and cert files are present; ignoring key and cert files"
        ),
        Note::PeerCertAuthUnused(url) => tracing::warn!(
            peer_url = url,
            "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL"
        ),
        Note::DefaultHost(host) => tracing::info!(host, "detected default host for advertise"),
        Note::DefaultDataDir(dir) => {
            tracing::warn!(data_dir = dir, "'data-dir' was empty; using default")
        }
    }
}
