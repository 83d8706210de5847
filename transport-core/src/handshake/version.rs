//! Server versions as peers announce and compare them.
//!
//! etcd: rafthttp/util.go, `compareMajorMinorVersion`; the accepted forms are those of its semver library.

use std::{fmt, str::FromStr};

/// The oldest cluster version every member from 3.0 on declares to support.
pub const MIN_CLUSTER_VERSION: Version = Version::new(3, 0, 0);

/// A server version. Pre-release and build metadata are accepted and forgotten: no rule looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Incremented by incompatible changes.
    pub major: u64,
    /// Incremented by each feature release; with `major`, all that peers compare.
    pub minor: u64,
    /// Incremented by bug fixes.
    pub patch: u64,
}

/// The text is not `major.minor.patch` with an optional `-pre` and `+meta`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the form 3.6.0")]
pub struct VersionError(String);

impl Version {
    /// A version of three numbers.
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Version {
            major,
            minor,
            patch,
        }
    }

    /// What rules compare.
    pub const fn major_minor(self) -> (u64, u64) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    /// Strict, as members up to 3.7 are: they crash on "3.6" and on "v3.6.0".
    fn from_str(text: &str) -> Result<Self, VersionError> {
        parse(text).ok_or_else(|| VersionError(text.chars().take(64).collect()))
    }
}

fn parse(text: &str) -> Option<Version> {
    let (text, metadata) = split(text, '+');
    let (triple, pre_release) = split(text, '-');
    if ![metadata, pre_release].into_iter().flatten().all(is_dotted) {
        return None;
    }
    let mut numbers = triple.split('.').map(number);
    let version = Version::new(numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// Digits only; Go reads them into 63 bits.
fn number(digits: &str) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let value: i64 = all_digits.then(|| digits.parse().ok())??;
    u64::try_from(value).ok()
}

fn is_dotted(text: &str) -> bool {
    text.split('.').all(|part| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_triples_with_optional_tails() {
        for (text, version) in [
            ("3.6.0", Version::new(3, 6, 0)),
            ("3.5.30", Version::new(3, 5, 30)),
            ("3.8.0-alpha.0", Version::new(3, 8, 0)),
            ("3.6.0+git", Version::new(3, 6, 0)),
            ("3.6.0-rc.1+Not-provided", Version::new(3, 6, 0)),
        ] {
            assert_eq!(text.parse(), Ok(version), "{text}");
        }
        for text in [
            "",
            "3",
            "3.6",
            "v3.6.0",
            "3.6.0.1",
            "3.6.x",
            "3..0",
            "-1.2.3",
            "+3.6.0",
            "3.6.0-",
            "3.6.0+",
            "3.6.0-a..b",
            "3.6.0-ä",
            " 3.6.0",
            "3.6.0 ",
            "9223372036854775808.0.0",
            "not_decided",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn printed_as_a_triple() {
        assert_eq!(Version::new(3, 6, 16).to_string(), "3.6.16");
    }
}
