//! What a setting is, and how to find one: the one description that the command line, the environment, the
//! configuration file and the help text are all driven by.
//!
//! Depends on `table` for the list and on `value` for kinds. Invariant: names are unique, and a setting that has no
//! effect here says so instead of being dropped silently.

use super::{table::FLAGS, value::Kind};

/// Where a setting stands in the help text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// About this member.
    Member,
    /// About forming the cluster.
    Clustering,
    /// About TLS and origins.
    Security,
    /// About users.
    Auth,
    /// About what can be observed.
    Monitoring,
    /// About the log.
    Logging,
    /// About tracing.
    Tracing,
    /// Everything else, old spellings included.
    Features,
    /// What can lose data.
    Unsafe,
    /// Not in the help text.
    Hidden,
}

impl Section {
    /// The sections of the help text, in order, with their headings.
    pub const HEADINGS: [(Section, &'static str); 9] = [
        (Section::Member, "Member"),
        (Section::Clustering, "Clustering"),
        (Section::Security, "Security"),
        (Section::Auth, "Auth"),
        (Section::Monitoring, "Profiling and Monitoring"),
        (Section::Logging, "Logging"),
        (Section::Tracing, "Distributed tracing"),
        (Section::Features, "Features and old spellings"),
        (Section::Unsafe, "Unsafe feature"),
    ];
}

/// What setting it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is obeyed.
    Used,
    /// It is accepted and changes nothing, for the reason given.
    Ignored(&'static str),
    /// Any value but the default is refused, for the reason given.
    Refused(&'static str),
    /// An old spelling of another setting.
    Alias(&'static str),
    /// An old spelling of a feature gate.
    Gate(&'static str),
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes in front.
    pub name: &'static str,
    /// Heading in the help text.
    pub section: Section,
    /// What it holds.
    pub kind: Kind,
    /// Its default as the help text shows it.
    pub default: &'static str,
    /// What it does.
    pub effect: Effect,
    /// One or more sentences for the help text.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable of this setting.
    pub fn variable(&self) -> String {
        let name = self.name.to_ascii_uppercase().replace('-', "_");
        format!("{ENV_PREFIX}{name}")
    }
}

/// What every environment variable of ours begins with.
pub const ENV_PREFIX: &str = "ETCD_";

/// Finds a setting by its name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::value;

    #[test]
    fn names_are_unique_and_aliases_lead_somewhere() {
        let names: BTreeSet<_> = FLAGS.iter().map(|flag| flag.name).collect();
        assert_eq!(names.len(), FLAGS.len());
        for flag in FLAGS {
            if let Effect::Alias(target) = flag.effect {
                let target = find(target).unwrap_or_else(|| panic!("{} leads nowhere", flag.name));
                assert_eq!(target.kind, flag.kind, "{}", flag.name);
            }
        }
    }

    #[test]
    fn printed_defaults_are_values_of_their_kind() {
        for flag in FLAGS {
            let special = flag.default.is_empty() || flag.default == "math.MaxUint32";
            assert!(
                special || value::parse(flag.kind, flag.default).is_ok(),
                "{}",
                flag.name
            );
        }
    }

    #[test]
    fn every_flag_of_etcd_is_known_with_its_default() {
        for fixture in ["flags-3.6.16.txt", "flags-3.7.3.txt"] {
            let path = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
            for line in std::fs::read_to_string(path).unwrap().lines() {
                let (name, default) = line.split_once(' ').unwrap_or((line, ""));
                let name = name.strip_prefix("--").unwrap();
                let flag = find(name).unwrap_or_else(|| panic!("{name} of {fixture} is unknown"));
                let ours = if flag.default.is_empty() && !default.contains('\'') {
                    ""
                } else {
                    flag.default
                };
                assert_eq!(ours, default.trim_matches('\''), "{name} of {fixture}");
            }
        }
    }
}
