//! The `tracing` layer that turns events into lines.
//!
//! Depends on `line` and `output`. Invariant: which events are written is decided once for each place in the code,
//! never again for each event.

use jiff::Timestamp;
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::layer::{Context, Layer};

use super::{line::Line, output::Outputs};
use crate::config::{LogConfig, LogFormat, LogLevel};

/// Targets that are ours. Libraries below are heard only when they warn: at debug level they would log every frame.
const OWN: [&str; 6] = [
    "node_bin",
    "kvstore",
    "raft_node",
    "transport_http",
    "transport_core",
    "raft",
];

pub(super) struct ZapLayer {
    level: LogLevel,
    format: LogFormat,
    outputs: Outputs,
}

impl ZapLayer {
    pub(super) fn new(config: &LogConfig, outputs: Outputs) -> Self {
        ZapLayer {
            level: config.level,
            format: config.format,
            outputs,
        }
    }

    fn filter(&self) -> LevelFilter {
        match self.level {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error | LogLevel::Fatal => LevelFilter::ERROR,
        }
    }

    fn is_written(&self, metadata: &Metadata<'_>) -> bool {
        let krate = metadata.target().split("::").next().unwrap_or_default();
        let own = OWN.contains(&krate);
        metadata.is_event()
            && *metadata.level() <= self.filter()
            && (own || *metadata.level() <= Level::WARN)
    }
}

impl<S: Subscriber> Layer<S> for ZapLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.is_written(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.filter())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::new(event, Timestamp::now());
        if self.level < LogLevel::Fatal || line.is_fatal() {
            self.outputs.write(line.encode(self.format).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};
    use tracing_subscriber::{layer::SubscriberExt, registry};

    use super::*;
    use crate::config::LogOutput;

    fn logged(level: LogLevel, format: LogFormat, events: fn()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let config = LogConfig {
            level,
            format,
            outputs: vec![LogOutput::File(path.clone())],
            rotation: None,
        };
        let layer = ZapLayer::new(&config, Outputs::open(&config).unwrap());
        tracing::subscriber::with_default(registry().with(layer), events);
        fs::read_to_string(path).unwrap()
    }

    fn one(events: fn()) -> Value {
        let text = logged(LogLevel::Info, LogFormat::Json, events);
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_has_the_keys_of_zap() {
        let mut line = one(|| {
            let urls = ["http://a:1".to_string(), "http://b:2".to_string()];
            tracing::info!(local_member_id = "a1", count = 3_u64, on = true, "remote-peer-id" = %"b2", ?urls, "started \"it\"\n");
        });
        let (ts, caller) = (line["ts"].take(), line["caller"].take());
        let expected = json!({
            "level": "info", "ts": null, "caller": null, "msg": "started \"it\"\n", "local-member-id": "a1", "count": 3,
            "on": true, "remote-peer-id": "b2", "urls": ["http://a:1", "http://b:2"],
        });
        assert_eq!(line, expected);
        let ts = ts.as_str().unwrap();
        assert!(
            ts.len() == 27 && ts.ends_with('Z') && &ts[10..11] == "T" && &ts[19..20] == ".",
            "{ts}"
        );
        assert!(
            caller.as_str().unwrap().starts_with("log/layer.rs:"),
            "{caller}"
        );
    }

    #[test]
    fn the_order_of_keys_is_zap_s() {
        let text = logged(LogLevel::Info, LogFormat::Json, || {
            tracing::warn!(target: "raft", b = 1, a = 2, "x");
        });
        assert!(text.starts_with("{\"level\":\"warn\",\"ts\":\""), "{text}");
        let at = text.find(",\"logger\":\"raft\",\"caller\":\"").unwrap();
        assert!(
            text[at..].ends_with(",\"msg\":\"x\",\"b\":1,\"a\":2}\n"),
            "{text}"
        );
    }

    #[test]
    fn levels_are_filtered_and_libraries_kept_quiet() {
        fn events() {
            tracing::debug!("ours");
            tracing::debug!(target: "h2::codec", "theirs");
            tracing::info!(target: "hyper", "theirs");
            tracing::warn!(target: "hyper", "their warning");
            tracing::error!(fatal = true, "the end");
        }
        let count = |level| logged(level, LogFormat::Json, events).lines().count();
        let levels = [
            LogLevel::Debug,
            LogLevel::Info,
            LogLevel::Warn,
            LogLevel::Error,
            LogLevel::Fatal,
        ];
        assert_eq!(levels.map(count), [3, 2, 2, 1, 1]);
        assert!(logged(LogLevel::Fatal, LogFormat::Json, events).contains("\"level\":\"fatal\""));
    }

    #[test]
    fn the_console_form_is_tab_separated() {
        let text = logged(LogLevel::Info, LogFormat::Console, || {
            tracing::info!(name = "n", size = 2_u64, "two\nlines");
            tracing::info!(target: "raft", "plain");
        });
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split('\t').collect())
            .collect();
        assert_eq!(lines[0][1..2], ["info"]);
        assert_eq!(
            lines[0][3..],
            ["two\\nlines", "{\"name\": \"n\", \"size\": 2}"]
        );
        assert_eq!(lines[1][1..3], ["info", "raft"]);
        assert_eq!(lines[1][4..], ["plain"]);
    }
}
