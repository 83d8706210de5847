//! The settings of the log (etcd: server/embed/config_logging.go, `setupLogging`).
//!
//! Depends on `settings`. Invariant: what is refused is refused with etcd's words, since the log they would go to does
//! not exist yet and people look for them.

use std::collections::BTreeSet;

use super::{
    LoadError, LogConfig, LogFormat, LogLevel, LogOutput, LogRotation,
    settings::Settings,
    validate::{invalid, non_zero},
};

/// Reads and checks the settings of the log.
pub(super) fn read(settings: &Settings) -> Result<LogConfig, LoadError> {
    match settings.text_or_default("logger") {
        "zap" => {}
        "capnslog" => return invalid("--logger=capnslog is removed in v3.5"),
        other => return invalid(format!("unknown logger option {other:?}")),
    }
    let given: BTreeSet<String> = settings.set("log-outputs");
    if given.len() > 1 && given.contains("default") {
        return invalid("multi logoutput for \"default\" is not supported yet");
    }
    let mut outputs = Vec::new();
    for output in &given {
        outputs.push(match output.as_str() {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            "systemd/journal" => {
                return invalid("--log-outputs=systemd/journal is not supported; under systemd, stderr reaches the journal");
            }
            "" => return invalid("--log-outputs must not contain an empty path"),
            path => LogOutput::File(path.strip_prefix("file://").unwrap_or(path).into()),
        });
    }
    let rotated = if settings.bool("enable-log-rotation") {
        Some(rotation(settings, &outputs)?)
    } else {
        None
    };
    // Whoever names the null device wants silence, whatever else is named.
    outputs.retain(|output| *output != LogOutput::File("/dev/null".into()));
    if given.contains("/dev/null") {
        outputs.clear();
    }
    let format = match settings.text_or_default("log-format") {
        "" | "json" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => {
            return invalid(format!(
                "unknown log format: {other}, supported values json, console"
            ));
        }
    };
    let level = match settings.text_or_default("log-level") {
        "" | "info" | "INFO" => LogLevel::Info,
        "debug" | "DEBUG" => LogLevel::Debug,
        "warn" | "WARN" => LogLevel::Warn,
        "error" | "ERROR" => LogLevel::Error,
        "dpanic" | "DPANIC" | "panic" | "PANIC" | "fatal" | "FATAL" => LogLevel::Fatal,
        other => return Err(LoadError::Usage(format!("unrecognized level: {other:?}"))),
    };
    Ok(LogConfig {
        level,
        format,
        outputs,
        rotation: rotated,
    })
}

fn rotation(settings: &Settings, outputs: &[LogOutput]) -> Result<LogRotation, LoadError> {
    if outputs
        .iter()
        .filter(|output| matches!(output, LogOutput::File(_)))
        .count()
        != 1
    {
        return invalid(
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
        );
    }
    let text = settings.text_or_default("log-rotation-config-json");
    let json: serde_json::Value = match serde_json::from_str(text) {
        Ok(json) => json,
        Err(error) => return invalid(format!("improperly formatted log rotation config: {error}")),
    };
    let number = |key: &str| match &json[key] {
        serde_json::Value::Null => Ok(0),
        value => value.as_u64().ok_or(LoadError::Invalid(format!(
            "invalid log rotation config: {key} is no number"
        ))),
    };
    if json["compress"] == true {
        return invalid("invalid log rotation config: compress is not supported");
    }
    Ok(LogRotation {
        size_max: non_zero(number("maxsize")?, 100).saturating_mul(1024 * 1024),
        days_max: number("maxage")?,
        files_max: number("maxbackups")?,
    })
}
