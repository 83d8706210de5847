//! The settings that were given, whatever gave them, and what is said about them before the log exists.
//!
//! Depends on `flags` and `value`. Invariant: a value is stored under the name of an existing flag and is of its kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    features::FeatureGates,
    flags::{Effect, Flag, find},
    table::FLAGS,
    url::Url,
    value::{self, Kind, Value},
};

/// The settings that differ from silence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    given: BTreeMap<&'static str, Value>,
}

/// Something worth a log line that came up while settings were read, when there was no log yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A variable of the environment was used.
    VariableUsed {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable begins like ours and is none.
    VariableUnknown(String),
    /// `ETCD_VERSION`, which is no setting.
    VariableReserved {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// Settings come from a file.
    FileUsed(String),
    /// A key in the file is no setting.
    KeyUnknown(String),
    /// A setting has no effect.
    Ignored {
        /// Its name.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// An old spelling was used.
    Deprecated {
        /// The old spelling.
        name: &'static str,
        /// What to write instead.
        instead: String,
    },
    /// A timeout was below the least value and was raised to it.
    Raised(&'static str),
    /// HTTP and gRPC share a port.
    SharedPort,
    /// The member has no name of its own.
    DefaultName(String),
    /// A feature gate was changed that has no effect.
    GateWithoutEffect(&'static str),
    /// The database may grow beyond what is recommended.
    LargeQuota {
        /// What it may grow to, in bytes.
        bytes: i64,
        /// What is recommended, in bytes.
        recommended: i64,
    },
    /// Leases are checkpointed and not persisted.
    CheckpointWithoutPersist,
    /// A certificate is to be made at start, and one was given.
    PeerAutoTlsIgnored,
    /// A peer URL is http, and there is a certificate for peers.
    PeerCertificateUnused(String),
    /// A peer URL is http, and certificates of other members are demanded.
    PeerCertAuthUnused(String),
    /// This host's address replaced a default.
    DefaultHost(String),
    /// The data directory's default was taken.
    DefaultDataDir(String),
}

impl Settings {
    /// Stores a value; a later one replaces an earlier one.
    pub fn insert(&mut self, flag: &'static Flag, value: Value) {
        self.given.insert(flag.name, value);
    }

    /// Whether a setting was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Replaces old spellings by the new ones, folds old switches into the feature gates and refuses what is not
    /// supported. Returns what is to be said about it; errors about two spellings at once are etcd's.
    pub fn resolve(&mut self) -> Result<Vec<Note>, String> {
        let mut notes = self.modernize()?;
        for flag in FLAGS {
            let Some(value) = self.given.get(flag.name) else {
                continue;
            };
            if Some(value) == default_of(flag).as_ref() {
                continue;
            }
            match flag.effect {
                Effect::Ignored(reason) => notes.push(Note::Ignored {
                    name: flag.name,
                    reason,
                }),
                Effect::Refused(reason) => return Err(format!("--{}: {reason}", flag.name)),
                Effect::Used | Effect::Alias(_) | Effect::Gate(_) => {}
            }
        }
        Ok(notes)
    }

    fn modernize(&mut self) -> Result<Vec<Note>, String> {
        let mut notes = Vec::new();
        let (gates_text, mut gates) = match self.given.get("feature-gates") {
            Some(Value::Gates(text, gates)) => (text.clone(), *gates),
            _ => (String::new(), FeatureGates::default()),
        };
        for flag in FLAGS {
            let instead = match flag.effect {
                Effect::Alias(target) => {
                    let Some(value) = self.given.remove(flag.name) else {
                        continue;
                    };
                    if self.given.contains_key(target) {
                        return Err(both_spellings(flag.name, target));
                    }
                    if let Some(target) = find(target) {
                        self.insert(target, value);
                    }
                    format!("--{target}")
                }
                Effect::Gate(gate) => {
                    let Some(value) = self.given.remove(flag.name) else {
                        continue;
                    };
                    let on = value == Value::Bool(true);
                    if gates_text.contains(gate) {
                        return Err(switch_and_gate(flag.name, on, gate, gates.enabled(gate)));
                    }
                    gates.set(gate, on)?;
                    format!("--feature-gates={gate}={on}")
                }
                Effect::Used | Effect::Ignored(_) | Effect::Refused(_) => continue,
            };
            notes.push(Note::Deprecated {
                name: flag.name,
                instead,
            });
        }
        self.given
            .insert("feature-gates", Value::Gates(gates_text, gates));
        Ok(notes)
    }

    /// A switch.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Bool(true)))
    }

    /// An unsigned number.
    pub fn uint(&self, name: &str) -> u64 {
        match self.value(name) {
            Some(Value::Uint(number)) => number,
            _ => 0,
        }
    }

    /// A signed number.
    pub fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Some(Value::Int(number)) => number,
            _ => 0,
        }
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Some(Value::Duration(duration)) => duration,
            _ => Duration::ZERO,
        }
    }

    /// A text as it was given; `None` when it was not.
    pub fn text(&self, name: &str) -> Option<&str> {
        if let Some(Value::Text(text)) = self.given.get(name) {
            Some(text)
        } else {
            None
        }
    }

    /// A text, or its default.
    pub fn text_or_default(&self, name: &str) -> &str {
        self.text(name)
            .or_else(|| find(name).map(|flag| flag.default))
            .unwrap_or_default()
    }

    /// A set of texts.
    pub fn set(&self, name: &str) -> BTreeSet<String> {
        match self.value(name) {
            Some(Value::Set(set)) => set,
            _ => BTreeSet::new(),
        }
    }

    /// A list of texts, without empty ones.
    pub fn list(&self, name: &str) -> Vec<String> {
        let mut list = match self.value(name) {
            Some(Value::List(list)) => list,
            _ => Vec::new(),
        };
        list.retain(|word| !word.is_empty());
        list
    }

    /// A list of URLs.
    pub fn urls(&self, name: &str) -> Vec<Url> {
        let default = || match find(name).and_then(default_of) {
            Some(Value::Urls(urls)) => urls,
            _ => None,
        };
        match self.given.get(name) {
            Some(Value::Urls(Some(urls))) => urls.clone(),
            _ => default().unwrap_or_default(),
        }
    }

    /// What was given, or else the default of the table: no default stands anywhere else.
    fn value(&self, name: &str) -> Option<Value> {
        let flag = find(name);
        debug_assert!(flag.is_some(), "{name} is not in the table");
        self.given
            .get(name)
            .cloned()
            .or_else(|| flag.and_then(default_of))
    }

    /// The feature gates.
    pub fn gates(&self) -> FeatureGates {
        if let Some(Value::Gates(_, gates)) = self.given.get("feature-gates") {
            *gates
        } else {
            FeatureGates::default()
        }
    }
}

fn default_of(flag: &Flag) -> Option<Value> {
    match (flag.kind, flag.default) {
        (Kind::Anything, _) => None,
        (Kind::Bool, "") => Some(Value::Bool(flag.name == "enable-grpc-gateway")),
        (Kind::Uint, "") => Some(Value::Uint(0)),
        (Kind::Uint32, "math.MaxUint32") => Some(Value::Uint(u32::MAX.into())),
        (Kind::Duration, "") => Some(Value::Duration(Duration::ZERO)),
        (kind, default) => value::parse(kind, default).ok(),
    }
}

fn both_spellings(old: &str, new: &str) -> String {
    if new == "warning-unary-request-duration" {
        return format!("both --{old} and --{new} flags are set. Use only --{new}");
    }
    format!("cannot set --{old} and --{new} at the same time, please use --{new} only")
}

fn switch_and_gate(switch: &str, on: bool, gate: &str, enabled: bool) -> String {
    let instead = format!("--feature-gates={gate}={enabled}");
    format!(
        "cannot specify both flags: --{switch}={on} and {instead} at the same time, please just use {instead}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line;

    fn resolved(words: &[&str]) -> Result<(Settings, Vec<Note>), String> {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let mut settings = command_line::parse(&words)?.settings;
        let notes = settings.resolve()?;
        Ok((settings, notes))
    }

    #[test]
    fn old_spellings_lead_to_the_new_ones() {
        let (settings, notes) = resolved(&[
            "--experimental-watch-progress-notify-interval=5s",
            "--experimental-initial-corrupt-check",
        ])
        .unwrap();
        let interval = settings.duration("watch-progress-notify-interval");
        assert_eq!(interval, Duration::from_secs(5));
        assert!(settings.gates().enabled("InitialCorruptCheck"));
        let old = notes
            .iter()
            .filter(|note| matches!(note, Note::Deprecated { .. }));
        assert_eq!(old.count(), 2);
    }

    #[test]
    fn both_spellings_at_once_are_refused() {
        let refused = |words: &[&str]| resolved(words).unwrap_err();
        assert_eq!(
            refused(&[
                "--experimental-corrupt-check-time=1s",
                "--corrupt-check-time=1s"
            ]),
            "cannot set --experimental-corrupt-check-time and --corrupt-check-time at the same time, \
             please use --corrupt-check-time only"
        );
        assert_eq!(
            refused(&[
                "--experimental-initial-corrupt-check=false",
                "--feature-gates=InitialCorruptCheck=true"
            ]),
            "cannot specify both flags: --experimental-initial-corrupt-check=false and \
             --feature-gates=InitialCorruptCheck=true at the same time, please just use \
             --feature-gates=InitialCorruptCheck=true"
        );
    }

    #[test]
    fn what_is_not_supported_is_refused_unless_it_is_the_default() {
        assert_eq!(
            resolved(&["--cert-file=x"]).unwrap_err(),
            "--cert-file: TLS for clients is not supported yet"
        );
        let (_, notes) = resolved(&["--enable-pprof"]).unwrap();
        assert!(
            notes
                .iter()
                .any(|note| matches!(note, Note::Ignored { .. }))
        );
        assert!(
            resolved(&["--discovery-srv=x"])
                .unwrap_err()
                .starts_with("--discovery-srv: ")
        );
        let (_, notes) =
            resolved(&["--cert-file=", "--client-cert-auth=false", "--max-wals=5"]).unwrap();
        assert_eq!(notes, []);
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let (_, notes) = resolved(&[
            "--backend-batch-limit=7",
            "--enable-pprof",
            "--enable-grpc-gateway",
            "--v",
        ])
        .unwrap();
        let names: Vec<_> = notes
            .iter()
            .map(|note| {
                if let Note::Ignored { name, .. } = note {
                    *name
                } else {
                    ""
                }
            })
            .collect();
        assert_eq!(names, ["backend-batch-limit", "enable-pprof", "v"]);
    }
}
