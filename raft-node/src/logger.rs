//! raft-rs' log lines, led to `tracing`.
//!
//! raft-rs writes one informational line per odd message, which would be a flood; they become debug events
//! here, and the node itself reports each change of role, leader or term once. Invariant: a line nobody
//! listens to is never formatted.

use std::fmt::{self, Write};

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// A logger for raft-rs.
pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

macro_rules! emit {
    ($level:expr, $record:expr) => {
        if tracing::enabled!(target: "raft", $level) {
            tracing::event!(target: "raft", $level, "{}", line($record));
        }
    };
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, _values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error => emit!(tracing::Level::ERROR, record),
            Level::Warning => emit!(tracing::Level::WARN, record),
            Level::Info => emit!(tracing::Level::DEBUG, record),
            Level::Debug | Level::Trace => emit!(tracing::Level::TRACE, record),
        }
        Ok(())
    }
}

fn line(record: &Record<'_>) -> String {
    let mut fields = Fields(record.msg().to_string());
    // Writing into a string cannot fail, and a value that cannot be printed is left out.
    let _ = record.kv().serialize(record, &mut fields);
    fields.0
}

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}
