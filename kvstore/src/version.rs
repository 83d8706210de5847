//! Versions, and what the versions of the members decide: the cluster version and the version of the storage schema.
//!
//! Pure rules; who asks the members and who proposes the outcome is elsewhere.
//!
//! Invariant: the cluster version never falls except in a downgrade that was enabled, and then by one minor version.

use std::{fmt, str::FromStr};

/// A version such as 3.6.0. What follows a minus or plus sign is accepted and dropped: nothing here depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u64,
    /// Second number.
    pub minor: u64,
    /// Third number.
    pub patch: u64,
}

/// The text is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of the form 3.6.0")]
pub struct VersionError(String);

/// What the leader sets while a member's version is not known and none was ever set
/// (etcd: api/version/version.go, `MinClusterVersion`).
pub const MIN_CLUSTER_VERSION: Version = Version::new(3, 0, 0);

/// Since this version the members' rows in the backend are the membership; before, the v2store document is.
pub const BACKEND_MEMBERSHIP_SINCE: Version = Version::new(3, 5, 0);

/// Since this version a database names the version of its schema.
pub const STORAGE_VERSION_SINCE: Version = Version::new(3, 6, 0);

impl Version {
    /// A version from its numbers.
    pub const fn new(major: u64, minor: u64, patch: u64) -> Version {
        Version {
            major,
            minor,
            patch,
        }
    }

    /// The version with patch 0, which is the form of cluster and storage versions.
    pub const fn to_minor(self) -> Version {
        Version::new(self.major, self.minor, 0)
    }

    /// Whether a cluster at this version may go down to `to` (etcd: etcdserver/version/downgrade.go).
    fn may_fall_to(self, to: Version) -> bool {
        self.minor > 0 && to == Version::new(self.major, self.minor - 1, 0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let error = || VersionError(text.chars().take(64).collect());
        let numbers = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = numbers.split('.').map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse().ok().filter(|_| digits)
        });
        let mut next = || parts.next().flatten().ok_or_else(error);
        let version = Version::new(next()?, next()?, next()?);
        parts.next().is_none().then_some(version).ok_or_else(error)
    }
}

/// The downgrade an operator enabled leads nowhere the cluster could go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot downgrade from {from} to {target}")]
pub struct InvalidDowngrade {
    /// The cluster version, or the lowest version of a member.
    pub from: Version,
    /// What the downgrade aims at.
    pub target: Version,
}

/// The cluster version the leader should set, or `None` to leave it.
///
/// `members` has an entry for every member, learners included: the version it reports, or `None` when it did not
/// answer. `downgrade` is the target of an enabled downgrade.
///
/// etcd: server/etcdserver/version/monitor.go, `decideClusterVersion`.
pub fn decide_cluster_version(
    current: Option<Version>,
    members: impl IntoIterator<Item = Option<Version>>,
    downgrade: Option<Version>,
) -> Result<Option<Version>, InvalidDowngrade> {
    let lowest = lowest(members);
    let Some(current) = current else {
        return Ok(Some(lowest.unwrap_or(MIN_CLUSTER_VERSION).to_minor()));
    };
    let Some(lowest) = lowest else {
        return Ok(None);
    };
    if let Some(target) = downgrade {
        if target == current {
            return Ok(None);
        }
        for from in [current, lowest] {
            if !from.may_fall_to(target) {
                return Err(InvalidDowngrade { from, target });
            }
        }
        return Ok(Some(target));
    }
    let lowest = lowest.to_minor();
    let rises = current.major == lowest.major && current.to_minor() < lowest;
    Ok(rises.then_some(lowest))
}

/// Whether every member runs the version a downgrade aimed at, so that it is over.
///
/// etcd: server/etcdserver/version/monitor.go, `versionsMatchTarget`.
pub fn downgrade_is_done(
    target: Version,
    members: impl IntoIterator<Item = Option<Version>>,
) -> bool {
    members
        .into_iter()
        .all(|version| version.is_some_and(|version| version.to_minor() == target.to_minor()))
}

/// The version that a database of a cluster at `cluster_version` names, `None` for none.
///
/// Each member sets it for itself; it is no replicated state (etcd: etcdserver/version/monitor.go,
/// `UpdateStorageVersionIfNeeded`; storage/schema/schema.go).
pub fn storage_version(cluster_version: Option<Version>) -> Option<Version> {
    cluster_version
        .map(Version::to_minor)
        .filter(|version| *version >= STORAGE_VERSION_SINCE)
}

/// The cluster is at a version that this member does not have; it must not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid downgrade; server version is lower than determined cluster version \
     (current-server-version: {own}, determined-cluster-version: {}.{})",
    cluster.major, cluster.minor
)]
pub struct Downgraded {
    /// The member's version.
    pub own: Version,
    /// The cluster's.
    pub cluster: Version,
}

/// Whether a member of version `own` may run in a cluster at `cluster_version`.
///
/// etcd: server/etcdserver/version/downgrade.go, `MustDetectDowngrade`.
pub fn detect_downgrade(own: Version, cluster_version: Option<Version>) -> Result<(), Downgraded> {
    match cluster_version {
        Some(cluster) if own.to_minor() < cluster => Err(Downgraded { own, cluster }),
        _ => Ok(()),
    }
}

/// The lowest version, or `None` if one is not known or there is nobody.
fn lowest(members: impl IntoIterator<Item = Option<Version>>) -> Option<Version> {
    let known: Option<Vec<Version>> = members.into_iter().collect();
    known?.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn versions_parse_and_print() {
        assert_eq!(v("3.6.16"), Version::new(3, 6, 16));
        assert_eq!(v("3.8.0-alpha.0"), Version::new(3, 8, 0));
        assert_eq!(v("3.6.1+git.2"), Version::new(3, 6, 1));
        assert_eq!(v("3.10.0").to_string(), "3.10.0");
        assert!(v("3.10.0") > v("3.9.9"));
        for bad in [
            "",
            "3",
            "3.6",
            "3.6.",
            "3.6.0.0",
            "3.6.x",
            "+3.6.0",
            "3.-6.0",
            "not_decided",
            "3.6.99999999999999999999",
        ] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cluster_version_table() {
        // (current, members, outcome)
        type Case<'a> = (Option<&'a str>, &'a [Option<&'a str>], Option<&'a str>);
        let cases: &[Case<'_>] = &[
            // Nothing set yet: the lowest known, or the lowest there is.
            (None, &[Some("3.6.16"), Some("3.6.4")], Some("3.6.0")),
            (
                None,
                &[Some("3.4.23"), Some("3.5.30"), Some("3.5.30")],
                Some("3.4.0"),
            ),
            (None, &[Some("3.6.16"), None], Some("3.0.0")),
            (None, &[], Some("3.0.0")),
            // Set: it rises when everybody is known.
            (
                Some("3.0.0"),
                &[Some("3.6.16"), Some("3.5.1")],
                Some("3.5.0"),
            ),
            (
                Some("3.5.0"),
                &[Some("3.6.16"), Some("3.6.1")],
                Some("3.6.0"),
            ),
            (
                Some("3.5.0"),
                &[Some("3.7.0"), Some("3.7.1")],
                Some("3.7.0"),
            ),
            (Some("3.5.0"), &[Some("3.6.16"), None], None),
            // Nothing to do for patch releases, and it does not fall.
            (Some("3.6.0"), &[Some("3.6.16")], None),
            (Some("3.6.0"), &[Some("3.5.1"), Some("3.6.0")], None),
            (Some("3.6.0"), &[Some("4.0.0")], None),
        ];
        for (current, members, outcome) in cases {
            let members = members.iter().map(|member| member.map(v));
            let decided = decide_cluster_version(current.map(v), members, None).unwrap();
            assert_eq!(decided, outcome.map(v), "{current:?}");
        }
    }

    #[test]
    fn downgrades() {
        let decide = |current, members: &[&str], target| {
            let members = members.iter().map(|member| Some(v(member)));
            decide_cluster_version(Some(v(current)), members, Some(v(target)))
        };
        assert_eq!(
            decide("3.6.0", &["3.6.16", "3.6.2"], "3.5.0"),
            Ok(Some(v("3.5.0")))
        );
        assert_eq!(decide("3.5.0", &["3.6.16"], "3.5.0"), Ok(None));
        assert!(decide("3.6.0", &["3.6.16"], "3.4.0").is_err());
        assert!(decide("3.6.0", &["3.7.0"], "3.5.0").is_err());
        let silent = decide_cluster_version(Some(v("3.6.0")), [None], Some(v("3.5.0")));
        assert_eq!(silent, Ok(None));
        assert!(downgrade_is_done(
            v("3.5.0"),
            [Some(v("3.5.9")), Some(v("3.5.1"))]
        ));
        assert!(!downgrade_is_done(
            v("3.5.0"),
            [Some(v("3.5.9")), Some(v("3.6.1"))]
        ));
        assert!(!downgrade_is_done(v("3.5.0"), [None]));
    }

    #[test]
    fn storage_follows_the_cluster_from_3_6() {
        assert_eq!(storage_version(None), None);
        assert_eq!(storage_version(Some(v("3.5.0"))), None);
        assert_eq!(storage_version(Some(v("3.6.0"))), Some(v("3.6.0")));
        assert_eq!(storage_version(Some(v("3.7.0"))), Some(v("3.7.0")));
    }

    #[test]
    fn a_member_older_than_the_cluster_may_not_run() {
        let detect = |own: &str, cluster: Option<&str>| detect_downgrade(v(own), cluster.map(v));
        assert_eq!(detect("3.6.2", None), Ok(()));
        assert_eq!(detect("3.6.2", Some("3.6.0")), Ok(()));
        assert_eq!(detect("3.6.0", Some("3.5.0")), Ok(()));
        assert_eq!(
            detect("3.6.9", Some("3.7.0")).unwrap_err().to_string(),
            "invalid downgrade; server version is lower than determined cluster version \
             (current-server-version: 3.6.9, determined-cluster-version: 3.7)"
        );
    }
}
