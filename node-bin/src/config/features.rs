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

/// A gate.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Its stage.
    pub stage: Stage,
    /// Whether it is on when nobody says anything.
    pub default: bool,
    /// Whether anything here asks for it. One that nobody asks for stays as it is by default, whatever is said.
    pub has_effect: bool,
}

const fn gate(name: &'static str, stage: Stage, default: bool, has_effect: bool) -> Gate {
    Gate {
        name,
        stage,
        default,
        has_effect,
    }
}

/// Every gate, sorted by name.
pub const GATES: [Gate; 9] = [
    gate("AllAlpha", Stage::Alpha, false, true),
    gate("AllBeta", Stage::Beta, false, true),
    gate("CompactHashCheck", Stage::Alpha, false, false),
    gate("InitialCorruptCheck", Stage::Alpha, false, false),
    gate("LeaseCheckpoint", Stage::Alpha, false, false),
    gate("LeaseCheckpointPersist", Stage::Alpha, false, false),
    gate("SetMemberLocalAddr", Stage::Alpha, false, false),
    gate("StopGRPCServiceOnDefrag", Stage::Alpha, false, false),
    gate("TxnModeWriteWithSharedBuffer", Stage::Beta, true, false),
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

    /// Whether a gate was asked to be on; an unknown name is off. `AllAlpha` and `AllBeta` decide for gates not set
    /// themselves.
    pub fn enabled(&self, name: &str) -> bool {
        let Some(at) = position(name) else {
            return false;
        };
        let Gate { stage, default, .. } = GATES[at];
        let all = match stage {
            Stage::Alpha => self.set[0],
            Stage::Beta => self.set[1],
        };
        let all = if at < 2 { None } else { all };
        self.set[at].or(all).unwrap_or(default)
    }

    /// Whether a feature is on, which a gate without effect cannot change.
    pub fn in_effect(&self, gate: &Gate) -> bool {
        if gate.has_effect {
            self.enabled(gate.name)
        } else {
            gate.default
        }
    }

    /// The gates that were changed in vain.
    pub fn without_effect(&self) -> impl Iterator<Item = &'static str> {
        let vain = |gate: &&Gate| self.enabled(gate.name) != self.in_effect(gate);
        let names: Vec<_> = GATES.iter().filter(vain).map(|gate| gate.name).collect();
        names.into_iter()
    }
}

fn position(name: &str) -> Option<usize> {
    GATES.iter().position(|gate| gate.name == name)
}

/// Every gate and its state, as the log line at start shows it.
impl fmt::Display for FeatureGates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Gate { name, .. }) in GATES.iter().enumerate() {
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
    fn a_gate_that_nobody_asks_for_is_never_on_by_being_set() {
        let gates = FeatureGates::parse("AllBeta=false,InitialCorruptCheck=true").unwrap();
        let vain: Vec<_> = gates.without_effect().collect();
        assert_eq!(
            vain,
            ["InitialCorruptCheck", "TxnModeWriteWithSharedBuffer"]
        );
        for gate in GATES.iter().filter(|gate| !gate.has_effect) {
            assert_eq!(gates.in_effect(gate), gate.default, "{}", gate.name);
        }
        assert_eq!(FeatureGates::default().without_effect().count(), 0);
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
