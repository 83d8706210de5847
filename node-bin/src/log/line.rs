//! One log line: what it says, and its two forms.
//!
//! Depends on nothing but JSON. Invariant: a line holds exactly one line break, at its end.

use std::{fmt, fmt::Write};

use jiff::Timestamp;
use serde_json::Value;
use tracing::{
    Event, Level, Metadata,
    field::{Field, Visit},
};

use crate::config::LogFormat;

/// The logger of go.etcd.io/raft, whose lines carry its name.
const RAFT: &str = "raft";

/// What a line says.
pub(super) struct Line<'a> {
    level: &'static str,
    at: Timestamp,
    metadata: &'a Metadata<'a>,
    message: String,
    fields: Vec<(String, Value)>,
}

impl<'a> Line<'a> {
    pub(super) fn new(event: &Event<'a>, at: Timestamp) -> Line<'a> {
        let mut fields = Fields {
            message: String::new(),
            fatal: false,
            fields: Vec::new(),
        };
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            _ if fields.fatal => "fatal",
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        Line {
            level,
            at,
            metadata: event.metadata(),
            message: fields.message,
            fields: fields.fields,
        }
    }

    /// Whether it is the last line of a process.
    pub(super) fn is_fatal(&self) -> bool {
        self.level == "fatal"
    }

    pub(super) fn encode(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Json => self.json(),
            LogFormat::Console => self.console(),
        }
    }

    fn json(&self) -> String {
        let mut text = format!("{{\"level\":\"{}\",\"ts\":\"{}\"", self.level, self.time());
        if self.metadata.target() == RAFT {
            text += ",\"logger\":\"raft\"";
        }
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            ",\"caller\":{},\"msg\":{}",
            quoted(&self.caller()),
            quoted(&self.message)
        );
        for (name, value) in &self.fields {
            let _ = write!(text, ",{}:{value}", quoted(name));
        }
        text += "}\n";
        text
    }

    fn console(&self) -> String {
        let mut text = format!("{}\t{}\t", self.time(), self.level);
        if self.metadata.target() == RAFT {
            text += "raft\t";
        }
        text += &format!("{}\t{}", self.caller(), one_line(&self.message));
        for (at, (name, value)) in self.fields.iter().enumerate() {
            let before = if at == 0 { "\t{" } else { ", " };
            text += &format!("{before}{}: {value}", quoted(name));
        }
        if !self.fields.is_empty() {
            text.push('}');
        }
        text.push('\n');
        text
    }

    fn time(&self) -> impl fmt::Display {
        self.at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
    }

    /// Directory and file of the event, as zap shortens them; `src` says nothing, so the crate stands for it.
    fn caller(&self) -> String {
        let file = self.metadata.file().unwrap_or("unknown");
        let mut parts: Vec<&str> = file.rsplit(['/', '\\']).take(3).collect();
        if parts.get(1) == Some(&"src") {
            parts.remove(1);
        }
        parts.truncate(2);
        parts.reverse();
        format!("{}:{}", parts.join("/"), self.metadata.line().unwrap_or(0))
    }
}

struct Fields {
    message: String,
    fatal: bool,
    fields: Vec<(String, Value)>,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = match value {
                Value::String(text) => text,
                other => other.to_string(),
            };
        } else {
            self.fields.push((field.name().replace('_', "-"), value));
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // A list of plain texts is written the same way in JSON; zap has lists too.
        let list = text.starts_with('[') && field.name() != "message";
        let list = if list {
            serde_json::from_str(&text).ok()
        } else {
            None
        };
        self.push(field, list.unwrap_or(Value::String(text)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "fatal" {
            self.fatal = value;
        } else {
            self.push(field, value.into());
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A message on one line, so that nobody outside can forge a second one.
fn one_line(text: &str) -> String {
    if text.contains(['\n', '\r']) {
        text.replace('\n', "\\n").replace('\r', "\\r")
    } else {
        text.into()
    }
}
