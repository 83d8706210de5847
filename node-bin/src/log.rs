//! The log: lines in the form of etcd's zap logger, because harnesses and log shippers match on them.
//!
//! [`init`] installs the log of a configuration, [`init_default`] the one in use before there is a configuration.
//! Events come through `tracing`: the message becomes `msg`, fields keep their names with dashes for underscores. A
//! field `fatal = true` makes an event's level `fatal`. Depends on `config` for its settings. Invariant: a line is
//! written whole, in one write, before the call that made it returns.

mod announce;
mod layer;
mod line;
mod output;

use std::{io, panic};

use tracing_subscriber::{layer::SubscriberExt, registry};

pub use self::announce::{announce, report};
use self::{layer::ZapLayer, output::Outputs};
use crate::config::LogConfig;

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A log file cannot be opened.
    #[error("couldn't open sink {path:?}: {source}")]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a log already.
    #[error("the log of this process is already set up")]
    Twice,
}

/// Sets up the log of this process.
pub fn init(config: &LogConfig) -> Result<(), InitError> {
    let layer = ZapLayer::new(config, Outputs::open(config)?);
    tracing::subscriber::set_global_default(registry().with(layer)).map_err(|_| InitError::Twice)
}

/// Sets up a log of JSON lines of level info and above on standard error.
pub fn init_default() -> Result<(), InitError> {
    init(&LogConfig::default())
}

/// Makes a panic a log line of level fatal. What happens next is up to whoever joins the thread.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("a value that is no text");
        let location = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(
            fatal = true,
            error = message,
            location,
            thread,
            "a thread panicked"
        );
    }));
}
