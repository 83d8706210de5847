//! The versions this member speaks of: the one it announces, the lowest cluster it joins, and its own build.
//!
//! Depends on transport-core and kvstore for what a version is. Invariant: what is announced is a plain `x.y.z`, because etcd's
//! members parse it strictly and refuse, or crash on, anything else.

pub use transport_core::handshake::{Version, VersionError};

/// The etcd version whose rules this server follows and which it announces unless told otherwise.
pub const ANNOUNCED: Version = Version::new(3, 6, 16);

/// The lowest cluster version a member of ours takes part in (etcd: api/version/version.go).
pub const MIN_CLUSTER: Version = Version::new(3, 0, 0);

/// `x.y.0`: cluster versions have no patch.
pub const fn of_cluster(version: Version) -> Version {
    Version::new(version.major, version.minor, 0)
}

/// Major and minor alone, as metrics and some log lines show a cluster version.
pub fn short(version: Version) -> String {
    format!("{}.{}", version.major, version.minor)
}

/// The same version as kvstore's rules take it.
pub const fn to_store(version: Version) -> kvstore::version::Version {
    kvstore::version::Version::new(version.major, version.minor, version.patch)
}

/// What stands behind `Git SHA:`: nothing is known about a checkout at build time.
pub const BUILD: &str = concat!("node-bin-", env!("CARGO_PKG_VERSION"));

/// The oldest compiler that builds this, for the version text.
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
    fn cluster_versions_are_cut_to_the_minor() {
        assert_eq!(of_cluster(Version::new(3, 6, 16)).to_string(), "3.6.0");
        assert_eq!(short(ANNOUNCED), "3.6");
        assert!(MIN_CLUSTER < ANNOUNCED);
    }
}
