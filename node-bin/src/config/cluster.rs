//! The first members of a cluster, as `--initial-cluster` lists them, and what must hold before a member may found or
//! join one (etcd: server/config/config.go, `VerifyBootstrap`; api/membership/cluster.go).
//!
//! Depends on `url`; names are resolved through [`Resolver`]. Invariant: every member of the list computes the same
//! ids from the same list, whatever its order.

use std::collections::{BTreeMap, BTreeSet};

use transport_core::{ClusterId, MemberId};

pub use super::resolve::{Resolver, SystemResolver, same_urls};
use super::url::{self, Url, UrlError};

/// Why a cluster cannot be founded or joined as configured; the texts are etcd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// A URL of the list is none.
    #[error("error setting up initial cluster: {0}")]
    Url(#[from] UrlError),
    /// This member is not in the list.
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    LocalMissing(String),
    /// The list gives this member a URL it does not advertise.
    #[error(
        "--initial-cluster has {missing} but missing from --initial-advertise-peer-urls={advertised} ({reason})"
    )]
    NotAdvertised {
        /// `name=url` of those.
        missing: String,
        /// What is advertised.
        advertised: String,
        /// How the lists differ.
        reason: String,
    },
    /// This member advertises a URL that is not in the list.
    #[error(
        "--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={listed}"
    )]
    NotListed {
        /// Those URLs.
        missing: String,
        /// What this member advertises, in the list's form.
        listed: String,
    },
    /// A URL stands for two members.
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    /// The list is empty.
    #[error("initial cluster unset and no discovery URL found")]
    Empty,
    /// Two members get the same id, or one gets 0.
    #[error("member exists with identical ID {0}")]
    DuplicateId(MemberId),
    /// The cluster to join has another number of members than the list.
    #[error("error validating peerURLs {0}: member count is unequal")]
    MemberCount(String),
    /// A member of the cluster to join is not in the list.
    #[error(
        "error validating peerURLs {existing}: PeerURLs: no match found for existing member ({id}, [{urls}]), \
         last resolver error ({reason})"
    )]
    NoMatch {
        /// The cluster's members.
        existing: String,
        /// The member concerned.
        id: MemberId,
        /// Its URLs.
        urls: String,
        /// Why the last candidate did not match.
        reason: String,
    },
}

/// A member as the first members of a cluster are known: no client URLs, never a learner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Its peer URLs, sorted.
    pub peer_urls: Vec<String>,
}

/// `--initial-cluster`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InitialCluster {
    members: BTreeMap<String, Vec<Url>>,
}

impl InitialCluster {
    /// Reads `name=url,…`; a name may occur several times to have several URLs.
    pub fn parse(text: &str) -> Result<InitialCluster, ClusterError> {
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            members.entry(name.into()).or_default().push(url.parse()?);
        }
        for urls in members.values_mut() {
            urls.sort();
        }
        Ok(InitialCluster { members })
    }

    /// What a member that founds the cluster must fulfil.
    pub fn verify_bootstrap(
        &self,
        name: &str,
        advertised: &[Url],
        resolver: &impl Resolver,
    ) -> Result<(), ClusterError> {
        let listed = self
            .members
            .get(name)
            .ok_or_else(|| ClusterError::LocalMissing(name.into()))?;
        advertised_is_listed(name, listed, advertised, resolver)?;
        self.verify_unique()?;
        if self.members.is_empty() {
            Err(ClusterError::Empty)
        } else {
            Ok(())
        }
    }

    /// What a member that joins an existing cluster must fulfil before it asks.
    pub fn verify_join(&self, name: &str) -> Result<(), ClusterError> {
        if !self.members.contains_key(name) {
            return Err(ClusterError::LocalMissing(name.into()));
        }
        self.verify_unique()
    }

    fn verify_unique(&self) -> Result<(), ClusterError> {
        let mut seen = BTreeSet::new();
        if self
            .members
            .values()
            .flatten()
            .all(|url| seen.insert(url.to_string()))
        {
            Ok(())
        } else {
            Err(ClusterError::DuplicateUrl(self.to_string()))
        }
    }

    /// The members of a new cluster, by ascending id, which is the order of its first log entries.
    pub fn found(&self, token: &str) -> Result<Vec<InitialMember>, ClusterError> {
        let mut members = Vec::new();
        for (name, urls) in &self.members {
            let peer_urls = url::strings(urls);
            let id = MemberId::derive(&peer_urls, token, None);
            members.push(InitialMember {
                id,
                name: name.clone(),
                peer_urls,
            });
        }
        members.sort_by_key(|member| member.id);
        let twin = members
            .windows(2)
            .find(|pair| pair[0].id == pair[1].id)
            .map(|pair| pair[0].id);
        match twin.or(members
            .first()
            .map(|member| member.id)
            .filter(|id| *id == MemberId(0)))
        {
            Some(id) => Err(ClusterError::DuplicateId(id)),
            None => Ok(members),
        }
    }

    /// The id of the cluster these members found.
    pub fn cluster_id(members: &[InitialMember]) -> ClusterId {
        ClusterId::derive(&members.iter().map(|member| member.id).collect::<Vec<_>>())
    }

    /// The peer URLs of everybody but the given member, sorted: whom to ask about the cluster.
    pub fn remote_urls(&self, name: &str) -> Vec<String> {
        let others = self.members.iter().filter(|(other, _)| *other != name);
        let mut urls: Vec<String> = others.flat_map(|(_, urls)| url::strings(urls)).collect();
        urls.sort();
        urls
    }

    /// Gives the listed members the ids they have in the existing cluster, matched by their URLs. Blocking.
    pub fn join(
        &self,
        existing: &[(MemberId, Vec<String>)],
        resolver: &impl Resolver,
    ) -> Result<Vec<InitialMember>, ClusterError> {
        let describe = || {
            let members: Vec<String> = existing
                .iter()
                .map(|(id, urls)| format!("{{id:{id} peerURLs:[{}]}}", urls.join(" ")))
                .collect();
            format!("[{}]", members.join(" "))
        };
        if existing.len() != self.members.len() {
            return Err(ClusterError::MemberCount(describe()));
        }
        let mut found = Vec::new();
        for (id, urls) in existing {
            let mut reason = String::from("<nil>");
            let name = self.members.iter().find(|(_, listed)| {
                match same_urls(urls, &url::strings(listed), resolver) {
                    Ok(()) => true,
                    Err(difference) => {
                        reason = difference;
                        false
                    }
                }
            });
            match name {
                Some((name, listed)) => {
                    found.push(InitialMember {
                        id: *id,
                        name: name.clone(),
                        peer_urls: url::strings(listed),
                    });
                }
                None => {
                    let urls = urls.join(" ");
                    return Err(ClusterError::NoMatch {
                        existing: describe(),
                        id: *id,
                        urls,
                        reason,
                    });
                }
            }
        }
        found.sort_by_key(|member| member.id);
        Ok(found)
    }
}

impl std::fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pairs = self
            .members
            .iter()
            .flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}")));
        let mut pairs: Vec<String> = pairs.collect();
        pairs.sort();
        f.write_str(&pairs.join(","))
    }
}

fn advertised_is_listed(
    name: &str,
    listed: &[Url],
    advertised: &[Url],
    resolver: &impl Resolver,
) -> Result<(), ClusterError> {
    let mut advertised = url::strings(advertised);
    advertised.sort();
    let listed = url::strings(listed);
    let Err(reason) = same_urls(&advertised, &listed, resolver) else {
        return Ok(());
    };
    let named = |urls: Vec<&String>| {
        urls.iter()
            .map(|url| format!("{name}={url}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let missing: Vec<&String> = listed
        .iter()
        .filter(|url| !advertised.contains(url))
        .collect();
    if !missing.is_empty() {
        let advertised = advertised.join(",");
        return Err(ClusterError::NotAdvertised {
            missing: named(missing),
            advertised,
            reason,
        });
    }
    let missing: Vec<&str> = advertised
        .iter()
        .filter(|url| !listed.contains(url))
        .map(String::as_str)
        .collect();
    Err(ClusterError::NotListed {
        missing: missing.join(","),
        listed: named(advertised.iter().collect()),
    })
}

#[cfg(test)]
mod tests {
    use std::{io, net::SocketAddr};

    use super::*;

    /// Knows `a` and `b`, both of which are 10.0.0.1, and gives up at once.
    struct Hosts;

    impl Resolver for Hosts {
        fn resolve(&self, host_port: &str) -> io::Result<BTreeSet<SocketAddr>> {
            if let Ok(address) = host_port.parse() {
                return Ok(BTreeSet::from([address]));
            }
            match host_port.split_once(':') {
                Some(("a" | "b", port)) => Ok(BTreeSet::from([format!("10.0.0.1:{port}")
                    .parse()
                    .unwrap()])),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn pause(&self) -> bool {
            false
        }
    }

    fn cluster(text: &str) -> InitialCluster {
        InitialCluster::parse(text).unwrap()
    }

    fn urls(text: &str) -> Vec<Url> {
        Url::parse_list(text).unwrap()
    }

    #[test]
    fn ids_are_those_of_a_real_cluster() {
        let text = "n2=http://127.0.0.1:41321,n0=http://127.0.0.1:41301,n1=http://127.0.0.1:41311";
        let members = cluster(text).found("tok-x").unwrap();
        let names: Vec<_> = members
            .iter()
            .map(|member| (member.name.as_str(), member.id.to_string()))
            .collect();
        let expected = [
            ("n0", "5696c2ec878f0ce2"),
            ("n2", "a0d9fd87f9188517"),
            ("n1", "bab344ef759be6ee"),
        ];
        assert_eq!(names, expected.map(|(name, id)| (name, id.to_string())));
        assert_eq!(
            InitialCluster::cluster_id(&members).to_string(),
            "e4118c23a9498efd"
        );
    }

    #[test]
    fn a_name_may_have_several_urls() {
        let cluster = cluster("x=http://h:2,y=http://i:1,,x=http://h:1");
        assert_eq!(
            cluster.to_string(),
            "x=http://h:1,x=http://h:2,y=http://i:1"
        );
        assert_eq!(cluster.remote_urls("y"), ["http://h:1", "http://h:2"]);
    }

    #[test]
    fn founding_is_refused_with_etcd_s_words() {
        let local = "http://127.0.0.1:30001";
        let cases = [
            (
                format!("bar={local}"),
                local,
                "couldn't find local name \"foo\" in the initial cluster configuration".to_string(),
            ),
            (
                format!("bar={local},foo={local}"),
                local,
                format!("initial cluster bar={local},foo={local} has duplicate url"),
            ),
            (
                format!("foo={local}"),
                "http://localhost:2380",
                format!(
                    "--initial-cluster has foo={local} but missing from --initial-advertise-peer-urls=\
                     http://localhost:2380 (resolved urls: \"http://localhost:2380\" != \"{local}\")"
                ),
            ),
            (
                format!("foo={local},foo=http://127.0.0.1:30004"),
                local,
                format!(
                    "--initial-cluster has foo=http://127.0.0.1:30004 but missing from --initial-advertise-peer-urls=\
                     {local} (len([\"{local}\"]) != len([\"{local}\" \"http://127.0.0.1:30004\"]))"
                ),
            ),
            (
                format!("foo={local}"),
                "http://127.0.0.1:30001,http://127.0.0.1:30004",
                format!(
                    "--initial-advertise-peer-urls has http://127.0.0.1:30004 but missing from \
                     --initial-cluster=foo={local},foo=http://127.0.0.1:30004"
                ),
            ),
        ];
        for (list, advertised, message) in cases {
            let result = cluster(&list).verify_bootstrap("foo", &urls(advertised), &Hosts);
            assert_eq!(result.unwrap_err().to_string(), message, "{list}");
        }
        let message =
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ";
        assert_eq!(
            InitialCluster::parse("foo").unwrap_err().to_string(),
            message
        );
    }

    #[test]
    fn names_and_addresses_of_one_host_are_the_same() {
        let cluster = cluster("foo=http://a:1");
        for advertised in ["http://a:1", "http://b:1", "http://10.0.0.1:1"] {
            assert_eq!(
                cluster.verify_bootstrap("foo", &urls(advertised), &Hosts),
                Ok(()),
                "{advertised}"
            );
        }
        for advertised in ["http://a:2", "https://a:1", "http://unknown:1"] {
            assert!(
                cluster
                    .verify_bootstrap("foo", &urls(advertised), &Hosts)
                    .is_err(),
                "{advertised}"
            );
        }
    }

    #[test]
    fn joining_takes_the_ids_of_the_existing_cluster() {
        let cluster = cluster("old=http://a:1,new=http://a:2");
        let existing = [
            (MemberId(9), vec!["http://10.0.0.1:2".into()]),
            (MemberId(3), vec!["http://b:1".to_string()]),
        ];
        let members = cluster.join(&existing, &Hosts).unwrap();
        let ids: Vec<_> = members
            .iter()
            .map(|member| (member.id.0, member.name.as_str()))
            .collect();
        assert_eq!(ids, [(3, "old"), (9, "new")]);

        let error = cluster
            .join(&existing[..1], &Hosts)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "error validating peerURLs [{id:9 peerURLs:[http://10.0.0.1:2]}]: member count is unequal"
        );
        let other = [
            existing[0].clone(),
            (MemberId(3), vec!["http://b:7".to_string()]),
        ];
        let error = cluster.join(&other, &Hosts).unwrap_err().to_string();
        assert!(
            error.contains("no match found for existing member (3, [http://b:7])"),
            "{error}"
        );
        assert!(cluster.verify_join("absent").is_err());
    }
}
