//! The version of the cluster: what members report of theirs, with whom a member may run, and the proposal that sets it.
//! The decision itself is kvstore's `decide_cluster_version`.
//!
//! Depends on kvstore for versions and messages. Invariant: an answer that is no version counts as unknown, never as low.

use kvstore::pb::{
    etcdserverpb::{InternalRaftRequest, RequestHeader},
    membershippb::ClusterVersionSetRequest,
};
use kvstore::version::Version;
use serde::{Deserialize, Serialize};

use super::publish::{Form, v2_put};

/// What `/version` answers (etcd: api/version/version.go, `Versions`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The member's own.
    #[serde(rename = "etcdserver", default)]
    pub server: String,
    /// The cluster's.
    #[serde(rename = "etcdcluster", default)]
    pub cluster: String,
    /// The schema's; since 3.6.
    #[serde(default)]
    pub storage: String,
}

impl Versions {
    /// What this member answers.
    pub fn new(server: &str, cluster: Option<Version>, storage: Option<Version>) -> Versions {
        let text = |version: Option<Version>, unknown: &str| {
            version.map_or(unknown.into(), |version| version.to_string())
        };
        Versions {
            server: server.into(),
            cluster: text(cluster, "not_decided"),
            storage: text(storage, "unknown"),
        }
    }

    /// The member's own version, if it is one.
    pub fn server(&self) -> Option<Version> {
        self.server.parse().ok()
    }

    /// The cluster's version, if it is decided.
    pub fn cluster(&self) -> Option<Version> {
        self.cluster.parse().ok()
    }

    /// Reads an answer of `/version`.
    pub fn parse(body: &[u8]) -> Result<Versions, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The JSON of an answer.
    pub fn json(&self) -> String {
        // Texts cannot fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Why a member does not fit into a running cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// The cluster's version is below what this member supports.
    #[error("the cluster's version {found} is lower than {min}, the lowest this member supports")]
    TooLow {
        /// The cluster's.
        found: Version,
        /// This member's lowest.
        min: Version,
    },
    /// The cluster's version is above this member's.
    #[error("the cluster's version {found} is higher than {max}, the highest this member supports")]
    TooHigh {
        /// The cluster's.
        found: Version,
        /// This member's highest.
        max: Version,
    },
    /// Nobody told a cluster version.
    #[error("no member told the cluster's version")]
    Unknown,
}

/// Whether a member of version `own` may join: somebody must know the cluster's version, and what is known must lie
/// between 3.0 and `own`. In a cluster that is being downgraded only the next version up is right: this member is what
/// the downgrade leads to (etcd: etcdserver/cluster_util.go, `isCompatibleWithVers`).
pub fn may_join(
    own: Version,
    others: impl IntoIterator<Item = Option<Versions>>,
    downgrade_enabled: bool,
) -> Result<(), Incompatible> {
    let (min, max) = if downgrade_enabled {
        let next = Version::new(own.major, own.minor + 1, 0);
        (next, next)
    } else {
        (kvstore::version::MIN_CLUSTER_VERSION, own.to_minor())
    };
    let mut known = false;
    for found in others
        .into_iter()
        .flatten()
        .filter_map(|versions| versions.cluster())
    {
        if found < min {
            return Err(Incompatible::TooLow { found, min });
        }
        if found > max {
            return Err(Incompatible::TooHigh { found, max });
        }
        known = true;
    }
    if known {
        Ok(())
    } else {
        Err(Incompatible::Unknown)
    }
}

/// The entry that sets the cluster version.
pub fn entry(form: Form, id: u64, version: Version) -> Vec<u8> {
    let version = version.to_minor().to_string();
    match form {
        Form::V2 => v2_put(id, "/0/version".into(), version),
        Form::V3 => prost::Message::encode_to_vec(&InternalRaftRequest {
            header: Some(RequestHeader {
                id,
                ..Default::default()
            }),
            cluster_version_set: Some(ClusterVersionSetRequest { ver: version }),
            ..Default::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn answer(cluster: &str) -> Option<Versions> {
        Some(Versions {
            server: "3.6.1".into(),
            cluster: cluster.into(),
            storage: String::new(),
        })
    }

    #[test]
    fn version_answers_are_etcd_s() {
        let json = "{\"etcdserver\":\"3.6.16\",\"etcdcluster\":\"3.6.0\",\"storage\":\"3.6.0\"}";
        let versions = Versions::new("3.6.16", Some(v("3.6.0")), Some(v("3.6.0")));
        assert_eq!(versions.json(), json);
        assert_eq!(Versions::parse(json.as_bytes()).unwrap(), versions);
        let undecided = Versions::new("3.6.16", None, None);
        assert_eq!(
            (undecided.cluster.as_str(), undecided.storage.as_str()),
            ("not_decided", "unknown")
        );
        let old =
            Versions::parse(b"{\"etcdserver\":\"3.4.0\",\"etcdcluster\":\"not_decided\"}").unwrap();
        assert_eq!((old.server(), old.cluster()), (Some(v("3.4.0")), None));
        assert!(Versions::parse(b"404 page not found").is_err());
    }

    #[test]
    fn joining_needs_a_known_version_that_is_not_above_ours() {
        let join = |answers: &[Option<Versions>], downgrade| {
            may_join(v("3.6.16"), answers.to_vec(), downgrade)
        };
        assert_eq!(join(&[answer("3.6.0"), None], false), Ok(()));
        assert_eq!(
            join(&[answer("3.4.0"), answer("not_decided")], false),
            Ok(())
        );
        assert_eq!(
            join(&[None, answer("not_decided")], false),
            Err(Incompatible::Unknown)
        );
        let high = Err(Incompatible::TooHigh {
            found: v("3.7.0"),
            max: v("3.6.0"),
        });
        assert_eq!(join(&[answer("3.6.0"), answer("3.7.0")], false), high);
        let low = Err(Incompatible::TooLow {
            found: v("2.3.0"),
            min: v("3.0.0"),
        });
        assert_eq!(join(&[answer("2.3.0")], false), low);
        assert_eq!(join(&[answer("3.7.0")], true), Ok(()));
        assert!(join(&[answer("3.6.0")], true).is_err());
    }

    #[test]
    fn the_entry_has_the_form_the_members_understand() {
        assert_eq!(
            entry(Form::V3, 7, v("3.6.16")),
            b"\xa2\x06\x02\x08\x07\xa2\x51\x07\x0a\x053.6.0"
        );
        let request =
            kvstore::pb::etcdserverpb::Request::decode(&entry(Form::V2, 7, v("3.5.3"))[..])
                .unwrap();
        assert_eq!(
            (request.method(), request.path(), request.val()),
            ("PUT", "/0/version", "3.5.0")
        );
    }
}
