//! The environment: `ETCD_FOO_BAR` sets `--foo-bar` (etcd: pkg/flags/flag.go, `SetFlagsFromEnv`).
//!
//! Depends on `flags` and `value`. Invariant: a setting given on the command line is never also taken from here; both
//! at once is an error.

use super::{
    flags::ENV_PREFIX,
    settings::{Note, Settings},
    table::FLAGS,
    value,
};

/// Why an environment cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvironmentError {
    /// A variable's setting is also on the command line.
    Conflict(String),
    /// A variable's value is none of its setting's; the message is etcd's.
    Value(String),
}

/// The one variable with our prefix that means something else: container images set it.
const RESERVED: &str = "ETCD_VERSION";

/// Adds the environment's settings to those of the command line.
pub fn apply(
    settings: &mut Settings,
    variables: &[(String, String)],
) -> Result<Vec<Note>, EnvironmentError> {
    let mut notes = Vec::new();
    let mut failure = None;
    let mut used = Vec::new();
    for (name, value) in variables
        .iter()
        .filter(|(name, value)| name == RESERVED && !value.is_empty())
    {
        used.push(name.clone());
        notes.push(Note::VariableReserved {
            name: RESERVED,
            value: value.clone(),
        });
    }
    let mut conflict = None;
    for flag in FLAGS {
        let name = flag.variable();
        let Some((_, text)) = variables
            .iter()
            .find(|(variable, _)| *variable == name && name != RESERVED)
        else {
            continue;
        };
        if settings.is_given(flag.name) {
            conflict.get_or_insert(name);
            continue;
        }
        if text.is_empty() {
            continue;
        }
        match value::parse(flag.kind, text) {
            Ok(value) => {
                settings.insert(flag, value);
                notes.push(Note::VariableUsed {
                    name: name.clone(),
                    value: text.clone(),
                });
            }
            Err(reason) => {
                failure.get_or_insert(format!("invalid value {text:?} for {name}: {reason}"));
            }
        }
        used.push(name);
    }
    if let Some(name) = conflict {
        return Err(EnvironmentError::Conflict(name));
    }
    for (name, value) in variables {
        if name.starts_with(ENV_PREFIX) && !used.contains(name) {
            notes.push(Note::VariableUnknown(format!("{name}={value}")));
        }
    }
    match failure {
        Some(message) => Err(EnvironmentError::Value(message)),
        None => Ok(notes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command_line;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect()
    }

    #[test]
    fn variables_set_what_the_command_line_left_open() {
        let mut settings = Settings::default();
        let notes = apply(
            &mut settings,
            &variables(&[
                ("ETCD_NAME", "x"),
                ("ETCD_PRE_VOTE", "false"),
                ("ETCD_FOO", "1"),
                ("PATH", "/"),
                ("ETCD_DATA_DIR", ""),
            ]),
        );
        assert_eq!(settings.text("name"), Some("x"));
        assert!(!settings.bool("pre-vote"));
        assert!(!settings.is_given("data-dir"));
        let unknown = |text: &str| Note::VariableUnknown(text.into());
        let notes = notes.unwrap();
        assert!(
            notes.contains(&unknown("ETCD_FOO=1")) && notes.contains(&unknown("ETCD_DATA_DIR="))
        );
        assert_eq!(notes.len(), 4);
    }

    #[test]
    fn a_setting_given_twice_is_a_conflict_even_if_the_variable_is_empty() {
        for value in ["x", ""] {
            let mut settings = command_line::parse(&["--name=y".to_string()])
                .unwrap()
                .settings;
            let result = apply(&mut settings, &variables(&[("ETCD_NAME", value)]));
            assert_eq!(result, Err(EnvironmentError::Conflict("ETCD_NAME".into())));
        }
    }

    #[test]
    fn bad_values_name_the_variable() {
        let result = apply(
            &mut Settings::default(),
            &variables(&[("ETCD_HEARTBEAT_INTERVAL", "100 # ms")]),
        );
        let message = "invalid value \"100 # ms\" for ETCD_HEARTBEAT_INTERVAL: parse error";
        assert_eq!(result, Err(EnvironmentError::Value(message.into())));
    }

    #[test]
    fn the_version_variable_of_images_is_no_setting() {
        let notes = apply(
            &mut Settings::default(),
            &variables(&[("ETCD_VERSION", "v3.6.1")]),
        )
        .unwrap();
        assert_eq!(
            notes,
            [Note::VariableReserved {
                name: "ETCD_VERSION",
                value: "v3.6.1".into()
            }]
        );
    }
}
