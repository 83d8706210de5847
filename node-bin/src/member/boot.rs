//! Which member of which cluster this is, and the log it starts from: founded, joined or found on disk.
//!
//! Depends on raft-node's storage and on the rules in `join` and `config::cluster`. Invariant: nothing is
//! written before everything that can be checked was checked, and a log that exists is never overwritten.

use std::io;

use kvstore::membership::{Member, json};
use raft_node::{Storage, StorageError, StorageOptions, wal::Metadata};
use transport_core::{ClusterId, MemberId};

use super::{
    asking::PeerClient,
    join::{self, JoinError, MEMBERS_TIME},
};
use crate::{
    config::{
        ClusterState, Config,
        cluster::{ClusterError, InitialCluster, InitialMember, SystemResolver},
        url,
    },
    version,
};

/// What a member starts from.
pub struct Boot {
    /// Who it is, and of which cluster.
    pub metadata: Metadata,
    /// Its log.
    pub storage: Storage,
    /// Whether the log was there already.
    pub restarted: bool,
    /// Members that are known before the log tells them, for one that joins.
    pub remotes: Vec<(MemberId, Vec<String>)>,
}

/// Why a member does not start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The initial cluster cannot be used.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The cluster to join could not be learned, or does not fit.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The cluster that is to be founded runs already, with this member in it.
    #[error("member {0} has already been bootstrapped")]
    Bootstrapped(MemberId),
    /// The list of the cluster to join lacks this member.
    #[error("couldn't find local name {0:?} among the members of the cluster")]
    Unlisted(String),
    /// The data directory belongs to another member than the one of this name.
    #[error(
        "data directory {path} belongs to member {found}, {}; the member called {own_name:?} is {own}",
        called(.name)
    )]
    OtherMember {
        /// The directory.
        path: String,
        /// Whose it is.
        found: MemberId,
        /// The name of that member; empty if it has none yet.
        name: String,
        /// The name this member was given.
        own_name: String,
        /// Whose name that is.
        own: MemberId,
    },
    /// An earlier start that was interrupted began as somebody else.
    #[error(
        "data directory {path} holds the empty log of member {found}, but the flags make this one {own}; \
         remove it if no member {found} is wanted"
    )]
    BegunAsAnother {
        /// The directory.
        path: String,
        /// As whom the earlier start began.
        found: MemberId,
        /// Who this member is.
        own: MemberId,
    },
    /// Work that may take long panicked.
    #[error("starting was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
    /// The log.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A directory.
    #[error("cannot access data directory {path}: {source}")]
    Directory {
        /// Which one.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

fn called(name: &str) -> String {
    if name.is_empty() {
        "which has no name yet".into()
    } else {
        format!("called {name:?}")
    }
}

/// Runs what may take long, such as asking name servers, where it keeps nobody from hearing a signal.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BootError> {
    Ok(tokio::task::spawn_blocking(work).await?)
}

/// Finds out who this member is and opens or creates its log.
pub async fn boot(
    config: &Config,
    options: &StorageOptions,
    peers: &PeerClient,
) -> Result<Boot, BootError> {
    for dir in [&config.data_dir, &config.member_dir(), &config.snap_dir()] {
        options
            .disk
            .create_dir(dir)
            .map_err(|source| BootError::Directory {
                path: dir.display().to_string(),
                source,
            })?;
    }
    if Storage::exists(options)? {
        let opened = options.clone();
        let storage = blocking(move || Storage::open(&opened)).await??;
        let metadata = storage.metadata();
        is_ours(config, metadata.node_id, &founders(config))?;
        if !storage.is_empty() {
            tracing::info!(
                local_member_id = %metadata.node_id, cluster_id = %metadata.cluster_id,
                last_index = storage.last_index(), "restarting local member"
            );
            return Ok(Boot {
                metadata,
                storage,
                restarted: true,
                remotes: Vec::new(),
            });
        }
        return begin(config, peers, Some(storage), options).await;
    }
    begin(config, peers, None, options).await
}

/// A start without a past: founds a cluster or joins one. `interrupted` is the empty log of an earlier try.
async fn begin(
    config: &Config,
    peers: &PeerClient,
    interrupted: Option<Storage>,
    options: &StorageOptions,
) -> Result<Boot, BootError> {
    let initial = InitialCluster::parse(&config.initial_cluster)?;
    let (metadata, members, remotes) = match config.initial_cluster_state {
        ClusterState::New => {
            let (metadata, members) = found(config, &initial, peers).await?;
            (metadata, Some(members), Vec::new())
        }
        ClusterState::Existing => {
            let (metadata, remotes) = existing(config, &initial, peers).await?;
            (metadata, None, remotes)
        }
    };
    let mut storage = match interrupted {
        Some(storage) if storage.metadata() == metadata => storage,
        Some(storage) => {
            let found = storage.metadata().node_id;
            let path = config.data_dir.display().to_string();
            return Err(BootError::BegunAsAnother {
                path,
                found,
                own: metadata.node_id,
            });
        }
        None => Storage::create(options, metadata)?,
    };
    if let Some(members) = members {
        let contexts: Vec<_> = members
            .into_iter()
            .map(|member| {
                let member = unpublished(member);
                (member.id, json::member(&member).into())
            })
            .collect();
        storage.bootstrap(&contexts)?;
    }
    Ok(Boot {
        metadata,
        storage,
        restarted: false,
        remotes,
    })
}

/// Makes this member the only one of its cluster, as `--force-new-cluster` asks for. `known` is what the store says of
/// it, which stands at `applied`.
pub fn force_new_cluster(
    config: &Config,
    storage: &mut Storage,
    applied: u64,
    known: Option<&Member>,
) -> Result<(), StorageError> {
    let id = storage.metadata().node_id;
    let context = if known.is_some_and(|member| member.is_learner) {
        json::promotion(id)
    } else {
        json::member(&Member {
            id,
            name: config.name.clone(),
            peer_urls: url::strings(&config.advertise_peer_urls),
            ..Member::default()
        })
    };
    storage.force_new_cluster(applied, &context.into())?;
    tracing::warn!(
        local_member_id = %id, cluster_id = %storage.metadata().cluster_id, commit_index = storage.last_index(),
        "forcing restart member"
    );
    Ok(())
}

/// The members of a cluster that is being founded, once nobody knows better.
async fn found(
    config: &Config,
    initial: &InitialCluster,
    peers: &PeerClient,
) -> Result<(Metadata, Vec<InitialMember>), BootError> {
    let (listed, name, advertised) = (
        initial.clone(),
        config.name.clone(),
        config.advertise_peer_urls.clone(),
    );
    blocking(move || listed.verify_bootstrap(&name, &advertised, &SystemResolver::start()))
        .await??;
    let members = initial.found(&config.initial_cluster_token)?;
    let node_id = own(&members, &config.name)?;
    if join::is_bootstrapped(peers, &initial.remote_urls(&config.name), node_id).await {
        return Err(BootError::Bootstrapped(node_id));
    }
    let cluster_id = InitialCluster::cluster_id(&members);
    tracing::info!(local_member_id = %node_id, %cluster_id, members = members.len(), "starting local member");
    Ok((
        Metadata {
            node_id,
            cluster_id,
        },
        members,
    ))
}

/// Who this member is in a cluster that runs, and who the others are.
async fn existing(
    config: &Config,
    initial: &InitialCluster,
    peers: &PeerClient,
) -> Result<(Metadata, Vec<(MemberId, Vec<String>)>), BootError> {
    initial.verify_join(&config.name)?;
    let cluster =
        join::remote_cluster(peers, &initial.remote_urls(&config.name), MEMBERS_TIME).await?;
    let (listed, members) = (initial.clone(), cluster.peers());
    let members = blocking(move || listed.join(&members, &SystemResolver::start())).await??;
    let node_id = own(&members, &config.name)?;
    let own_version = version::to_store(config.server_version);
    join::check_versions(
        peers,
        &cluster,
        node_id,
        own_version,
        config.request_timeout(),
    )
    .await?;
    cluster.check_learners(config.max_learners)?;
    let cluster_id: ClusterId = cluster.id;
    tracing::info!(local_member_id = %node_id, %cluster_id, "joining an existing cluster");
    let remotes = cluster
        .peers()
        .into_iter()
        .filter(|(id, _)| *id != node_id)
        .collect();
    Ok((
        Metadata {
            node_id,
            cluster_id,
        },
        remotes,
    ))
}

fn own(members: &[InitialMember], name: &str) -> Result<MemberId, BootError> {
    let own = members.iter().find(|member| member.name == name);
    own.map(|member| member.id)
        .ok_or_else(|| BootError::Unlisted(name.into()))
}

/// The members the flags would found a cluster with, as far as they can be read: nobody needs them any more.
fn founders(config: &Config) -> Vec<Member> {
    let founders = InitialCluster::parse(&config.initial_cluster)
        .and_then(|initial| initial.found(&config.initial_cluster_token))
        .unwrap_or_default();
    founders.into_iter().map(unpublished).collect()
}

fn unpublished(member: InitialMember) -> Member {
    let InitialMember {
        id,
        name,
        peer_urls,
    } = member;
    Member {
        id,
        name,
        peer_urls,
        ..Member::default()
    }
}

/// A log decides who a member is, whatever the flags say, and a member may be given another name. But if another
/// member has that name, somebody has mixed up the directories of the two, and both would speak for one.
///
/// To be asked of the members the flags name, and of those the store knows, which also has those that were added.
pub fn is_ours(config: &Config, found: MemberId, members: &[Member]) -> Result<(), BootError> {
    // Flags that do not know the member say nothing: they may be older or younger than its URLs.
    let Some(member) = members.iter().find(|member| member.id == found) else {
        return Ok(());
    };
    let namesake = members.iter().find(|member| member.name == config.name);
    match namesake {
        Some(other) if member.name != config.name => Err(BootError::OtherMember {
            path: config.data_dir.display().to_string(),
            found,
            name: member.name.clone(),
            own_name: config.name.clone(),
            own: other.id,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_another_member_s_if_somebody_else_has_this_one_s_name() {
        let config = Config::from_flags(&["--name=n2", "--data-dir=/d"]).unwrap();
        let member = |id, name: &str| Member {
            id: MemberId(id),
            name: name.into(),
            ..Member::default()
        };
        let ours = |found, members: &[Member]| is_ours(&config, MemberId(found), members);
        let cluster = [member(1, "n1"), member(2, "n2"), member(4, "")];
        assert!(ours(2, &cluster).is_ok());
        let error = ours(1, &cluster).unwrap_err().to_string();
        assert_eq!(
            error,
            "data directory /d belongs to member 1, called \"n1\"; the member called \"n2\" is 2"
        );
        let error = ours(4, &cluster).unwrap_err().to_string();
        assert!(
            error.contains("member 4, which has no name yet; "),
            "{error}"
        );
        // Given another name, without one before, sharing one: all as in etcd.
        assert!(ours(1, &cluster[..1]).is_ok());
        assert!(ours(4, &[member(1, "n1"), member(4, "")]).is_ok());
        assert!(ours(3, &[member(1, "n2"), member(3, "n2")]).is_ok());
        assert!(ours(9, &cluster).is_ok());
    }
}
