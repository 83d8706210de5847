//! What a member asks others before it founds or joins a cluster (etcd: etcdserver/cluster_util.go).
//!
//! The questions go through [`Ask`], so that the rules can be tested without a network. Invariant: answers are bounded
//! by the asker, and one that makes no sense counts as none.

use std::{future::Future, time::Duration};

use kvstore::version::Version;
use transport_core::{ClusterId, MemberId};

use super::{
    MemberInfo, Versions,
    cluster_version::{self, Incompatible},
};

/// Time an existing member has to tell the cluster's members.
pub const MEMBERS_TIME: Duration = Duration::from_secs(10);

/// Time other members have to say whether they know this one already, when a cluster is founded.
pub const BOOTSTRAP_TIME: Duration = Duration::from_secs(1);

/// Largest answer that is read: the members of a cluster take some hundred bytes each.
pub const ANSWER_MAX: usize = 1 << 20;

/// An answer to a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The header `X-Etcd-Cluster-ID`.
    pub cluster_id: Option<String>,
    /// At most [`ANSWER_MAX`] bytes.
    pub body: Vec<u8>,
}

/// Asks another member with a GET. The error says why there is no answer.
pub trait Ask {
    /// Asks; redirects are not followed.
    fn get(
        &self,
        url: &str,
        within: Duration,
    ) -> impl Future<Output = Result<Answer, String>> + Send;
}

/// Why the cluster to join could not be learned; the texts are etcd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Nobody answered.
    #[error(
        "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
    )]
    NoAnswer,
    /// The first that answered has no members.
    #[error(
        "cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs"
    )]
    NoMembers,
    /// This member's version does not fit.
    #[error("incompatible with current running cluster")]
    Incompatible(#[source] Incompatible),
    /// More learners than this member allows for.
    #[error("membership: too many learner members in cluster")]
    TooManyLearners,
}

/// A cluster as one of its members tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteCluster {
    /// Its id.
    pub id: ClusterId,
    /// Its members.
    pub members: Vec<MemberInfo>,
}

impl RemoteCluster {
    /// Id and peer URLs of each member, as `InitialCluster::join` wants them.
    pub fn peers(&self) -> Vec<(MemberId, Vec<String>)> {
        self.members
            .iter()
            .map(|member| (member.id, member.peer_urls.clone()))
            .collect()
    }

    /// Whether the learners are within `--max-learners`.
    pub fn check_learners(&self, max_learners: usize) -> Result<(), JoinError> {
        let learners = self
            .members
            .iter()
            .filter(|member| member.is_learner)
            .count();
        if learners > max_learners {
            Err(JoinError::TooManyLearners)
        } else {
            Ok(())
        }
    }
}

/// Asks the URLs in order for the cluster's members; the first usable answer counts.
pub async fn remote_cluster(
    ask: &impl Ask,
    urls: &[String],
    within: Duration,
) -> Result<RemoteCluster, JoinError> {
    for url in urls {
        let address = format!("{url}/members");
        match ask
            .get(&address, within)
            .await
            .and_then(|answer| members_of(&answer))
        {
            Ok(cluster) if cluster.members.is_empty() => return Err(JoinError::NoMembers),
            Ok(cluster) => return Ok(cluster),
            Err(error) => tracing::warn!(address, error, "failed to get cluster response"),
        }
    }
    Err(JoinError::NoAnswer)
}

fn members_of(answer: &Answer) -> Result<RemoteCluster, String> {
    let members: Vec<MemberInfo> = serde_json::from_slice(&answer.body)
        .map_err(|error| format!("status {}: {error}", answer.status))?;
    let id = answer.cluster_id.as_deref().unwrap_or_default();
    let id = id
        .parse()
        .map_err(|error| format!("cluster id {id:?}: {error}"))?;
    Ok(RemoteCluster { id, members })
}

/// Whether a cluster that is to be founded knows this member as one that has run before. Silence means no.
pub async fn is_bootstrapped(ask: &impl Ask, urls: &[String], own: MemberId) -> bool {
    for url in urls {
        let answer = ask.get(&format!("{url}/members"), BOOTSTRAP_TIME).await;
        if let Ok(cluster) = answer.and_then(|answer| members_of(&answer)) {
            return cluster
                .members
                .iter()
                .any(|member| member.id == own && !member.client_urls.is_empty());
        }
    }
    false
}

/// What a member says about its versions; its URLs are tried in order.
pub async fn versions(
    ask: &impl Ask,
    member: MemberId,
    peer_urls: &[String],
    within: Duration,
) -> Option<Versions> {
    for url in peer_urls {
        let address = format!("{url}/version");
        let answer = ask.get(&address, within).await;
        match answer
            .and_then(|answer| Versions::parse(&answer.body).map_err(|error| error.to_string()))
        {
            Ok(versions) => return Some(versions),
            Err(error) => {
                tracing::warn!(address, remote_member_id = %member, error, "failed to get version");
            }
        }
    }
    None
}

/// Whether this member's version fits the cluster it is about to join.
pub async fn check_versions(
    ask: &impl Ask,
    cluster: &RemoteCluster,
    own: MemberId,
    own_version: Version,
    within: Duration,
) -> Result<(), JoinError> {
    let others = || cluster.members.iter().filter(|member| member.id != own);
    let mut answers = Vec::new();
    for member in others() {
        answers.push(versions(ask, member.id, &member.peer_urls, within).await);
    }
    let mut downgrade = false;
    'members: for member in others() {
        for url in &member.peer_urls {
            // The answer comes from the whole cluster, so the first one is as good as any.
            let answer = ask.get(&format!("{url}/downgrade/enabled"), within).await;
            if let Some(answer) = answer.ok().filter(|answer| answer.status == 200) {
                downgrade = answer.body == b"true";
                break 'members;
            }
        }
    }
    cluster_version::may_join(own_version, answers, downgrade).map_err(JoinError::Incompatible)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Answers by URL; everybody else is silent.
    #[derive(Default)]
    struct Net(HashMap<String, Answer>);

    impl Net {
        fn with(mut self, url: &str, body: &str) -> Net {
            let answer = Answer {
                status: 200,
                cluster_id: Some("e4118c23a9498efd".into()),
                body: body.into(),
            };
            self.0.insert(url.into(), answer);
            self
        }
    }

    impl Ask for Net {
        async fn get(&self, url: &str, _: Duration) -> Result<Answer, String> {
            self.0
                .get(url)
                .cloned()
                .ok_or_else(|| "connection refused".into())
        }
    }

    const MEMBERS: &str = "[{\"id\":7,\"peerURLs\":[\"http://b\"],\"name\":\"b\",\"clientURLs\":[\"http://c\"]},\
                           {\"id\":8,\"peerURLs\":[\"http://a\"],\"isLearner\":true}]\n";

    fn urls(list: &[&str]) -> Vec<String> {
        list.iter().map(|url| url.to_string()).collect()
    }

    #[tokio::test]
    async fn the_first_usable_answer_tells_the_cluster() {
        let net = Net::default()
            .with("http://a/members", "404 page not found")
            .with("http://b/members", MEMBERS);
        let cluster = remote_cluster(
            &net,
            &urls(&["http://x", "http://a", "http://b"]),
            MEMBERS_TIME,
        )
        .await
        .unwrap();
        assert_eq!(cluster.id.to_string(), "e4118c23a9498efd");
        assert_eq!(
            cluster.peers(),
            [
                (MemberId(7), urls(&["http://b"])),
                (MemberId(8), urls(&["http://a"]))
            ]
        );
        assert_eq!(cluster.check_learners(1), Ok(()));
        assert_eq!(cluster.check_learners(0), Err(JoinError::TooManyLearners));

        assert_eq!(
            remote_cluster(&net, &urls(&["http://x"]), MEMBERS_TIME).await,
            Err(JoinError::NoAnswer)
        );
        let empty = Net::default().with("http://a/members", "[]");
        assert_eq!(
            remote_cluster(&empty, &urls(&["http://a"]), MEMBERS_TIME).await,
            Err(JoinError::NoMembers)
        );
    }

    #[tokio::test]
    async fn a_member_with_client_urls_has_run_before() {
        let net = Net::default().with("http://b/members", MEMBERS);
        let list = urls(&["http://x", "http://b"]);
        assert!(is_bootstrapped(&net, &list, MemberId(7)).await);
        assert!(!is_bootstrapped(&net, &list, MemberId(8)).await);
        assert!(!is_bootstrapped(&Net::default(), &list, MemberId(7)).await);
    }

    #[tokio::test]
    async fn versions_decide_about_joining() {
        let cluster = members_of(&Answer {
            status: 200,
            cluster_id: Some("1".into()),
            body: MEMBERS.into(),
        })
        .unwrap();
        let check = async |net: Net| {
            check_versions(
                &net,
                &cluster,
                MemberId(8),
                Version::new(3, 6, 16),
                MEMBERS_TIME,
            )
            .await
        };
        let version =
            |cluster: &str| format!("{{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"{cluster}\"}}");
        assert_eq!(
            check(Net::default().with("http://b/version", &version("3.6.0"))).await,
            Ok(())
        );
        let up = Net::default().with("http://b/version", &version("3.7.0"));
        assert!(matches!(
            check(up).await,
            Err(JoinError::Incompatible(Incompatible::TooHigh { .. }))
        ));
        let down = Net::default()
            .with("http://b/version", &version("3.7.0"))
            .with("http://b/downgrade/enabled", "true");
        assert_eq!(check(down).await, Ok(()));
        assert!(check(Net::default()).await.is_err());
    }
}
