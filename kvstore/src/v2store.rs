//! The v2store document: the membership as JSON, which is the data of raft snapshots for members up to 3.7.
//!
//! It is the tree of etcd's first API, in which only the members, the ids of removed members and the cluster version
//! are still in use. The document written is the least that 3.4 to 3.6 take; read are those parts alone, whatever
//! else an old member keeps in the tree (etcd: server/etcdserver/api/v2store/store.go and
//! server/etcdserver/api/membership/store.go).
//!
//! Invariant: what is read takes memory in proportion to members and removed ids, whose numbers are bounded.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use transport_core::MemberId;

use crate::membership::{Member, Membership, json};

/// Members a document may have; clusters have less than ten.
const MEMBERS_MAX: usize = 1 << 10;
/// Ids of removed members a document may have; they are never forgotten.
const REMOVED_MAX: usize = 1 << 20;

/// Counts writes to the tree. Nothing but the watches of the first API looks at it, and those are gone.
const CURRENT_INDEX: u64 = 9;
/// Version of the document's form, the only one there is.
const CURRENT_VERSION: u64 = 2;

const RAFT_ATTRIBUTES: &str = "raftAttributes";
const ATTRIBUTES: &str = "attributes";

/// Why a document could not be read.
#[derive(Debug, thiserror::Error)]
pub enum V2StoreError {
    /// It is not the JSON of such a tree.
    #[error("the v2store document cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A name in it should be the id of a member.
    #[error("the v2store document has a member {0:?}, which is no id")]
    Id(String),
    /// What it says of a member cannot be read, or is missing.
    #[error("the v2store document has no readable {file} of member {id}")]
    Member {
        /// The member.
        id: MemberId,
        /// Which part of it.
        file: &'static str,
    },
    /// The cluster version is none.
    #[error("the v2store document has the cluster version {0:?}")]
    Version(String),
}

/// Reads the membership out of a document.
pub fn parse(document: &[u8]) -> Result<Membership, V2StoreError> {
    let document: Document = serde_json::from_slice(document)?;
    let tree = children(children(Some(document.root)).cluster);
    let mut members = Vec::new();
    for (name, node) in children(tree.members).0 {
        members.push(member(id(name)?, node.children.unwrap_or_default())?);
    }
    let removed = children(tree.removed_members).0.into_iter();
    let removed: Result<Vec<MemberId>, _> = removed.map(|(name, _)| id(name)).collect();
    let version = match tree.version {
        Some(node) => {
            let text = node.value.unwrap_or_default();
            Some(text.parse().map_err(|_| V2StoreError::Version(text))?)
        }
        None => None,
    };
    Ok(Membership::new(members, removed?, version))
}

/// Whether clients of the first API have left keys in the document. They are not taken over: no server since 3.6
/// serves them.
pub fn holds_client_keys(document: &[u8]) -> Result<bool, V2StoreError> {
    let document: Document = serde_json::from_slice(document)?;
    Ok(children(children(Some(document.root)).clients).0)
}

fn children<C: Default>(node: Option<Node<C>>) -> C {
    node.and_then(|node| node.children).unwrap_or_default()
}

fn id(name: String) -> Result<MemberId, V2StoreError> {
    name.parse().map_err(|_| V2StoreError::Id(name))
}

fn member(id: MemberId, files: MemberFiles) -> Result<Member, V2StoreError> {
    let read = |file: &'static str, node: Option<File>| -> Result<Option<Member>, V2StoreError> {
        let text = node.map(|node| node.value.unwrap_or_default());
        let read = text.map(|text| json::parse_member(text.as_bytes()));
        read.transpose()
            .map_err(|_| V2StoreError::Member { id, file })
    };
    let raft = read(RAFT_ATTRIBUTES, files.raft_attributes)?.ok_or(V2StoreError::Member {
        id,
        file: RAFT_ATTRIBUTES,
    })?;
    // A member that has not published itself yet has none.
    let own = read(ATTRIBUTES, files.attributes)?.unwrap_or_default();
    Ok(Member {
        id,
        peer_urls: raft.peer_urls,
        is_learner: raft.is_learner,
        name: own.name,
        client_urls: own.client_urls,
    })
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "Root")]
    root: Node<Root>,
}

/// A directory has children, a file a value.
#[derive(Deserialize)]
#[serde(bound = "C: Deserialize<'de>")]
struct Node<C> {
    #[serde(rename = "Value")]
    value: Option<String>,
    #[serde(rename = "Children")]
    children: Option<C>,
}

type File = Node<IgnoredAny>;

#[derive(Default, Deserialize)]
struct Root {
    #[serde(rename = "0")]
    cluster: Option<Node<Cluster>>,
    #[serde(rename = "1")]
    clients: Option<Node<IsNotEmpty>>,
}

#[derive(Default, Deserialize)]
struct Cluster {
    members: Option<Node<Named<Node<MemberFiles>, MEMBERS_MAX>>>,
    removed_members: Option<Node<Named<IgnoredAny, REMOVED_MAX>>>,
    version: Option<File>,
}

#[derive(Default, Deserialize)]
struct MemberFiles {
    #[serde(rename = "raftAttributes")]
    raft_attributes: Option<File>,
    attributes: Option<File>,
}

/// Children with their names, no more than `MAX`.
struct Named<T, const MAX: usize>(Vec<(String, T)>);

impl<T, const MAX: usize> Default for Named<T, MAX> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Named<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Children<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Children<T, MAX> {
            type Value = Named<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of up to {MAX} nodes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if all.len() == MAX {
                        return Err(A::Error::custom(format_args!("more than {MAX} nodes")));
                    }
                    all.push(entry);
                }
                Ok(Named(all))
            }
        }

        deserializer.deserialize_map(Children(PhantomData))
    }
}

/// Whether there are children; nothing of them is kept.
#[derive(Default)]
struct IsNotEmpty(bool);

impl<'de> Deserialize<'de> for IsNotEmpty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Children;

        impl<'de> Visitor<'de> for Children {
            type Value = IsNotEmpty;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of nodes")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<IsNotEmpty, A::Error> {
                let mut any = false;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(IsNotEmpty(any))
            }
        }

        deserializer.deserialize_map(Children)
    }
}

/// Writes the document of a membership.
pub fn render(membership: &Membership) -> Vec<u8> {
    let text = |json: Vec<u8>| String::from_utf8_lossy(&json).into_owned();
    let members = membership.members().map(|member| {
        let mut files = vec![Entry::file(
            RAFT_ATTRIBUTES,
            text(json::raft_attributes(member)),
        )];
        if !member.name.is_empty() || !member.client_urls.is_empty() {
            files.push(Entry::file(ATTRIBUTES, text(json::attributes(member))));
        }
        Entry::directory(member.id.to_string(), files)
    });
    let mut cluster = vec![Entry::directory("members", members.collect())];
    let removed: Vec<Entry> = membership
        .removed()
        .map(|id| Entry::file(id.to_string(), String::new()))
        .collect();
    if !removed.is_empty() {
        cluster.push(Entry::directory("removed_members", removed));
    }
    if let Some(version) = membership.cluster_version() {
        cluster.push(Entry::file("version", version.to_string()));
    }
    let root = vec![
        Entry::directory("0", cluster),
        Entry::directory("1", Vec::new()),
    ];
    let mut out = b"{\"Root\":".to_vec();
    Entry::directory("", root).write(&mut out, "");
    let numbers =
        format!(",\"CurrentIndex\":{CURRENT_INDEX},\"CurrentVersion\":{CURRENT_VERSION}}}");
    out.extend(numbers.bytes());
    out
}

/// A node with its name.
struct Entry {
    name: String,
    value: String,
    /// `None` makes it a file.
    children: Option<Vec<Entry>>,
}

impl Entry {
    fn file(name: impl Into<String>, value: String) -> Entry {
        Entry {
            name: name.into(),
            value,
            children: None,
        }
    }

    /// Children are written in name order, as Go writes maps.
    fn directory(name: impl Into<String>, mut children: Vec<Entry>) -> Entry {
        children.sort_by(|a, b| a.name.cmp(&b.name));
        Entry {
            name: name.into(),
            value: String::new(),
            children: Some(children),
        }
    }

    /// Writes the node whose parent is at `parent`; the root has neither parent nor name. The tree has five levels.
    fn write(&self, out: &mut Vec<u8>, parent: &str) {
        let path = format!("{}/{}", parent.trim_end_matches('/'), self.name);
        out.extend(b"{\"Path\":");
        json::string(out, &path);
        out.extend(
            b",\"CreatedIndex\":0,\"ModifiedIndex\":0,\"ExpireTime\":\"0001-01-01T00:00:00Z\",\"Value\":",
        );
        json::string(out, &self.value);
        out.extend(b",\"Children\":");
        match &self.children {
            None => out.extend(b"null"),
            Some(children) => {
                out.push(b'{');
                for (place, child) in children.iter().enumerate() {
                    if place > 0 {
                        out.push(b',');
                    }
                    json::string(out, &child.name);
                    out.push(b':');
                    child.write(out, &path);
                }
                out.push(b'}');
            }
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests;
