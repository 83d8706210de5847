//! Feature gates: the switches of `--feature-gates` (etcd: server/features/etcd_features.go).
//!
//! Depends on `value`'s spelling of truth values. Invariant: the set of names is 3.6's, so that a configuration that
//! etcd 3.6 refuses is refused here too.

use std::fmt;

use super::value::parse_bool;

/// How mature etcd holds a feature to be; a label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off by default.
    Alpha,
    /// On by default.
    Beta,
}

impl Stage {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        }
    }
}

/// Every gate, sorted by name, with its stage and default.
pub const GATES: [(&str, Stage, bool); 9] = [
    ("AllAlpha", Stage::Alpha, false),
    ("AllBeta", Stage::Beta, false),
    ("CompactHashCheck", Stage::Alpha, false),
    ("InitialCorruptCheck", Stage::Alpha, false),
    ("LeaseCheckpoint", Stage::Alpha, false),
    ("LeaseCheckpointPersist", Stage::Alpha, false),
    ("SetMemberLocalAddr", Stage::Alpha, false),
    ("StopGRPCServiceOnDefrag", Stage::Alpha, false),
    ("TxnModeWriteWithSharedBuffer", Stage::Beta, true),
];

/// The state of all gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureGates {
    /// In the order of [`GATES`]: what was asked for.
    set: [Option<bool>; GATES.len()],
}

impl Default for FeatureGates {
    fn default() -> Self {
        FeatureGates {
            set: [None; GATES.len()],
        }
    }
}

impl FeatureGates {
    /// Reads `Name=bool,…`; the errors are etcd's.
    pub fn parse(text: &str) -> Result<FeatureGates, String> {
        let mut gates = FeatureGates::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .map_or((pair, None), |(n, v)| (n, Some(v)));
            let name = name.trim();
            let Some(value) = value.map(str::trim) else {
                return Err(format!("missing bool value for {name}"));
            };
            let Some(on) = parse_bool(value) else {
                let reason = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
                return Err(format!("invalid value of {name}={value}, err: {reason}"));
            };
            gates.set(name, on)?;
        }
        Ok(gates)
    }

    /// Sets one gate.
    pub fn set(&mut self, name: &str, on: bool) -> Result<(), String> {
        match position(name) {
            Some(at) => {
                self.set[at] = Some(on);
                Ok(())
            }
            None => Err(format!("unrecognized feature gate: {name}")),
        }
    }

    /// Whether a gate is on; an unknown name is off. `AllAlpha` and `AllBeta` decide for gates not set themselves.
    pub fn enabled(&self, name: &str) -> bool {
        let Some(at) = position(name) else {
            return false;
        };
        let (_, stage, default) = GATES[at];
        let all = match stage {
            Stage::Alpha => self.set[0],
            Stage::Beta => self.set[1],
        };
        let all = if at < 2 { None } else { all };
        self.set[at].or(all).unwrap_or(default)
    }
}

fn position(name: &str) -> Option<usize> {
    GATES.iter().position(|(gate, _, _)| *gate == name)
}

/// Every gate and its state, as the log line at start shows it.
impl fmt::Display for FeatureGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, ..)) in GATES.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{name}={}", self.enabled(name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_alpha_decides_for_the_unset_ones() {
        let gates = FeatureGates::parse("AllAlpha=true, LeaseCheckpoint=false").unwrap();
        assert!(gates.enabled("CompactHashCheck"));
        assert!(!gates.enabled("LeaseCheckpoint"));
        assert!(gates.enabled("TxnModeWriteWithSharedBuffer"));
        assert!(
            !FeatureGates::parse("AllBeta=false")
                .unwrap()
                .enabled("TxnModeWriteWithSharedBuffer")
        );
    }

    #[test]
    fn refused_with_etcd_s_words() {
        let refused = |text| FeatureGates::parse(text).unwrap_err();
        assert_eq!(refused("Foo=true"), "unrecognized feature gate: Foo");
        assert_eq!(refused("AllAlpha"), "missing bool value for AllAlpha");
        let message = "invalid value of InitialCorruptCheck=x, err: strconv.ParseBool: parsing \"x\": invalid syntax";
        assert_eq!(refused("InitialCorruptCheck=x"), message);
    }
}
