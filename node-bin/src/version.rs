//! The versions this member speaks of: the one it announces, the lowest cluster it joins, and its own build.
//!
//! Depends on nothing. Invariant: what is announced is a plain `x.y.z`, because etcd's members parse it strictly and
//! refuse, or crash on, anything else.

use std::{fmt, str::FromStr};

/// A semantic version; a pre-release or build suffix is accepted on reading and not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Major.
    pub major: u64,
    /// Minor.
    pub minor: u64,
    /// Patch.
    pub patch: u64,
}

impl Version {
    /// The etcd version whose rules this server follows and which it announces unless told otherwise.
    pub const ANNOUNCED: Version = Version::new(3, 6, 16);

    /// The lowest cluster version a member of ours takes part in (etcd: api/version/version.go).
    pub const MIN_CLUSTER: Version = Version::new(3, 0, 0);

    /// A version out of its parts.
    pub const fn new(major: u64, minor: u64, patch: u64) -> Version {
        Version {
            major,
            minor,
            patch,
        }
    }

    /// `x.y.0`: cluster versions have no patch.
    pub fn cluster(self) -> Version {
        Version { patch: 0, ..self }
    }

    /// Major and minor alone, as metrics and some log lines show a cluster version.
    pub fn short(self) -> String {
        format!("{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the form x.y.z")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Version, VersionError> {
        let error = || VersionError(text.into());
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u64>()
                .ok()
                .filter(|_| digits)
                .ok_or_else(error)
        });
        let mut part = || parts.next().unwrap_or_else(|| Err(error()));
        let version = Version::new(part()?, part()?, part()?);
        if parts.next().is_some() {
            Err(error())
        } else {
            Ok(version)
        }
    }
}

/// What stands behind `Git SHA:`: nothing is known about a checkout at build time.
pub const BUILD: &str = concat!("node-bin-", env!("CARGO_PKG_VERSION"));

/// The compiler's minimum version, for the version text.
pub const COMPILER: &str = env!("CARGO_PKG_RUST_VERSION");

/// The architecture as Go names it.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_numbers_and_nothing_less() {
        assert_eq!("3.6.16".parse(), Ok(Version::new(3, 6, 16)));
        assert_eq!("3.7.0-rc.1+meta".parse(), Ok(Version::new(3, 7, 0)));
        for text in [
            "3.6",
            "v3.6.0",
            "3.6.0.1",
            "",
            "3..0",
            "not_decided",
            "3.+6.0",
            "3.6.99999999999999999999",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn ordered_by_number_and_cut_to_the_minor() {
        assert!(Version::new(3, 10, 0) > Version::new(3, 9, 9));
        assert_eq!(Version::ANNOUNCED.cluster().to_string(), "3.6.0");
        assert_eq!(Version::ANNOUNCED.short(), "3.6");
    }
}
