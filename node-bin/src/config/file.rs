//! The configuration file (etcd: server/embed/config.go, `configFromFile`): YAML or JSON, keys named as the flags, TLS
//! settings in sections of their own.
//!
//! Depends on `yaml`, `flags` and `value`. Invariant: a value of the wrong type is refused, never converted, except
//! that durations may also be written as flags write them; Go takes them in nanoseconds only.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    time::Duration,
};

use serde_json::Value as Json;

use super::{
    duration,
    flags::{Flag, find},
    settings::{Note, Settings},
    value::{self, Kind, Value},
    yaml,
};

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileError {
    /// It cannot be read or understood.
    Unreadable(String),
    /// A list of URLs in it is none; etcd says this on the terminal before there is a log.
    Urls(String),
}

/// Sections whose keys are flags with a prefix.
const SECTIONS: [(&str, &str); 3] = [
    ("client-transport-security", ""),
    ("peer-transport-security", "peer-"),
    ("socket-options", "socket-"),
];

/// Keys of those sections that are named otherwise than their flags.
const RENAMED: [(&str, &str); 7] = [
    ("allowed-cn", "cert-allowed-cn"),
    ("allowed-hostname", "cert-allowed-hostname"),
    ("allowed-hostnames", "cert-allowed-hostname"),
    (
        "skip-client-san-verification",
        "skip-client-san-verification",
    ),
    ("reuseport", "reuse-port"),
    ("reuseaddress", "reuse-address"),
    (
        "experimental-snapshot-catch-up-entries",
        "experimental-snapshot-catchup-entries",
    ),
];

/// Reads a file.
pub fn read(path: &Path) -> Result<(Settings, Vec<Note>), FileError> {
    let unreadable = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::NotFound => "no such file or directory".into(),
            io::ErrorKind::PermissionDenied => "permission denied".into(),
            _ => error.to_string(),
        };
        FileError::Unreadable(format!("open {}: {reason}", path.display()))
    };
    let mut text = String::new();
    fs::File::open(path)
        .map_err(unreadable)?
        .take(BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(FileError::Unreadable(format!(
            "{} is larger than {BYTES_MAX} bytes",
            path.display()
        )));
    }
    parse(&text)
}

/// Reads a file's text.
pub fn parse(text: &str) -> Result<(Settings, Vec<Note>), FileError> {
    let json = yaml::parse(text).map_err(|error| {
        FileError::Unreadable(format!("error converting YAML to JSON: yaml: {error}"))
    })?;
    let mut settings = Settings::default();
    let mut notes = Vec::new();
    let map = match json {
        Json::Null => return Ok((settings, notes)),
        Json::Object(map) => map,
        other => return Err(wrong_type(&other, "the configuration", "keys and values")),
    };
    for (key, json) in &map {
        let key = key.to_ascii_lowercase();
        match SECTIONS.iter().find(|(section, _)| *section == key) {
            Some((section, prefix)) => match json {
                Json::Object(map) => {
                    for (inner, json) in map {
                        let name = format!("{prefix}{}", renamed(&inner.to_ascii_lowercase()));
                        insert(
                            &mut settings,
                            &mut notes,
                            &name,
                            &format!("{section}.{inner}"),
                            json,
                        )?;
                    }
                }
                Json::Null => {}
                _ => return Err(FileError::Unreadable(format!("invalid {section}"))),
            },
            None => insert(&mut settings, &mut notes, renamed(&key), &key, json)?,
        }
    }
    Ok((settings, notes))
}

fn renamed(key: &str) -> &str {
    RENAMED
        .iter()
        .find(|(from, _)| *from == key)
        .map_or(key, |(_, to)| to)
}

fn insert(
    settings: &mut Settings,
    notes: &mut Vec<Note>,
    name: &str,
    key: &str,
    json: &Json,
) -> Result<(), FileError> {
    // `client-transport-security.allowed-cn` has no flag: it is one of the TLS settings all the same.
    let name = if name == "cert-allowed-cn" {
        "client-cert-allowed-hostname"
    } else {
        name
    };
    let name = if name == "cert-allowed-hostname" {
        "client-cert-allowed-hostname"
    } else {
        name
    };
    let Some(flag) = find(name).filter(|flag| !matches!(flag.kind, Kind::Anything)) else {
        notes.push(Note::KeyUnknown(key.into()));
        return Ok(());
    };
    if let Some(value) = convert(flag, key, json)? {
        settings.insert(flag, value);
    }
    Ok(())
}

/// The value of one key; `None` when it says nothing.
fn convert(flag: &Flag, key: &str, json: &Json) -> Result<Option<Value>, FileError> {
    let wrong = |expected| Err(wrong_type(json, key, expected));
    Ok(Some(match (flag.kind, json) {
        (_, Json::Null) => return Ok(None),
        (Kind::Bool, Json::Bool(on)) => Value::Bool(*on),
        (Kind::Bool, _) => return wrong("true or false"),
        (Kind::Uint | Kind::Uint32, json) => match json.as_u64() {
            Some(number) if flag.kind == Kind::Uint || number <= u64::from(u32::MAX) => {
                Value::Uint(number)
            }
            _ => return wrong("an unsigned number"),
        },
        (Kind::Int, json) => match json.as_i64() {
            Some(number) => Value::Int(number),
            None => return wrong("a number"),
        },
        (Kind::Duration, Json::String(text)) => match duration::parse(text) {
            Some(duration) => Value::Duration(duration),
            None => return wrong("a duration"),
        },
        (Kind::Duration, json) => match json.as_u64() {
            Some(nanos) => Value::Duration(Duration::from_nanos(nanos)),
            None => return wrong("a duration"),
        },
        (Kind::List | Kind::Set, Json::Array(words)) => {
            let words: Option<Vec<String>> = words
                .iter()
                .map(|word| word.as_str().map(str::to_string))
                .collect();
            match (words, flag.kind) {
                (Some(words), Kind::List) => Value::List(words),
                (Some(words), _) => Value::Set(words.into_iter().collect()),
                (None, _) => return wrong("a list of texts"),
            }
        }
        (_, Json::String(text)) => match value::parse(flag.kind, text) {
            Ok(value) => value,
            Err(reason) if flag.kind == Kind::Urls => {
                return Err(FileError::Urls(format!(
                    "unexpected error setting up {}: {reason}",
                    flag.name
                )));
            }
            // Judged later, with etcd's words.
            Err(_) if matches!(flag.kind, Kind::OneOf(_)) => Value::Text(text.clone()),
            Err(reason) => return Err(FileError::Unreadable(format!("{key}: {reason}"))),
        },
        _ => return wrong("a text"),
    }))
}

fn wrong_type(json: &Json, key: &str, expected: &str) -> FileError {
    let kind = match json {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    FileError::Unreadable(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {kind} into {key}, which is {expected}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_flag_names_and_sections_are_prefixes() {
        let text = "Name: foo\nlisten-client-urls: http://127.0.0.1:1,http://127.0.0.1:2\nelection-timeout: 5000\n\
                    log-outputs: [stderr, stdout]\ngrpc-keepalive-interval: 5s\nwarning-apply-duration: 1000000\n\
                    peer-transport-security:\n  cert-file: x\nunknown: 1\nhost-whitelist: a,b\n\
                    experimental-snapshot-catch-up-entries: 7\n";
        let (settings, notes) = parse(text).unwrap();
        assert_eq!(settings.text("name"), Some("foo"));
        assert_eq!(settings.urls("listen-client-urls").len(), 2);
        assert_eq!(settings.uint("election-timeout"), 5000);
        assert_eq!(settings.set("log-outputs").len(), 2);
        assert_eq!(
            settings.duration("grpc-keepalive-interval"),
            Duration::from_secs(5)
        );
        assert_eq!(
            settings.duration("warning-apply-duration"),
            Duration::from_millis(1)
        );
        assert_eq!(settings.text("peer-cert-file"), Some("x"));
        assert_eq!(settings.set("host-whitelist").len(), 2);
        assert_eq!(settings.uint("experimental-snapshot-catchup-entries"), 7);
        assert_eq!(notes, [Note::KeyUnknown("unknown".into())]);
    }

    #[test]
    fn types_must_be_right() {
        for text in [
            "heartbeat-interval: \"abc\"",
            "snapshot-count: 1.5",
            "name: 5",
            "log-outputs: stderr: x",
            "[1]",
            "pre-vote: \"true\"",
            "grpc-keepalive-min-time: 5x",
            "max-txn-ops: -1",
            "peer-transport-security: x",
        ] {
            assert!(
                matches!(parse(text), Err(FileError::Unreadable(_))),
                "{text}"
            );
        }
        let message = "unexpected error setting up listen-peer-urls: \
                       URL scheme must be http, https, unix, or unixs: foo";
        assert_eq!(
            parse("listen-peer-urls: foo"),
            Err(FileError::Urls(message.into()))
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nonexistent/etcd.yaml")).unwrap_err();
        let FileError::Unreadable(message) = error else {
            panic!("{error:?}")
        };
        assert!(
            message.starts_with("open /nonexistent/etcd.yaml: "),
            "{message}"
        );
    }
}
