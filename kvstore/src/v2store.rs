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
mod tests {
    use bytes::{Buf, Bytes};
    use proptest::prelude::*;
    use prost::encoding::decode_varint;

    use super::*;
    use crate::version::Version;

    const MINIMAL: &[u8] = include_bytes!("../tests/fixtures/minimal-v2store.json");

    /// The document in a `.snap` file of 3.5.30: a checksum, and as field 2 the snapshot.
    fn document_of_go() -> Bytes {
        let mut file = Bytes::from_static(include_bytes!("../tests/fixtures/member.snap"));
        assert_eq!(file.get_u8(), 0x08);
        decode_varint(&mut file).unwrap();
        assert_eq!(file.get_u8(), 0x12);
        let len = decode_varint(&mut file).unwrap();
        assert_eq!(len, file.len() as u64);
        transport_core::raftpb::decode_snapshot(file).unwrap().data
    }

    fn parse_text(text: &str) -> Result<Membership, V2StoreError> {
        parse(text.as_bytes())
    }

    #[test]
    fn a_document_of_go_is_read() {
        let membership = parse(&document_of_go()).unwrap();
        let members: Vec<_> = membership.members().cloned().collect();
        let member = |id, name: &str, port: u16| Member {
            id: MemberId(id),
            peer_urls: vec![format!("http://127.0.0.1:{}", port + 1)],
            is_learner: false,
            name: name.into(),
            client_urls: vec![format!("http://127.0.0.1:{port}")],
        };
        assert_eq!(
            members,
            [
                member(0x5696_c2ec_878f_0ce2, "n0", 41300),
                member(0xa0d9_fd87_f918_8517, "n2", 41320),
                member(0xbab3_44ef_759b_e6ee, "n1", 41310),
            ]
        );
        let removed: Vec<_> = membership.removed().collect();
        assert_eq!(removed, [MemberId(0xd0dc_0b27_1fa1_c7df)]);
        assert_eq!(membership.cluster_version(), Some(Version::new(3, 4, 0)));
        assert!(!holds_client_keys(&document_of_go()).unwrap());
    }

    #[test]
    fn the_document_that_go_took_is_the_one_we_write() {
        let membership = parse(&document_of_go()).unwrap();
        let rendered = render(&membership);
        assert_eq!(
            String::from_utf8_lossy(&rendered),
            String::from_utf8_lossy(MINIMAL)
        );
        assert_eq!(parse(MINIMAL).unwrap(), membership);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let unpublished = Member {
            id: MemberId(0x10),
            peer_urls: vec!["http://h/?a&b".into()],
            is_learner: true,
            ..Default::default()
        };
        // As text "9" comes behind "10".
        let nine = Member {
            id: MemberId(9),
            ..Default::default()
        };
        let membership = Membership::new([unpublished, nine], [], None);
        let rendered = String::from_utf8(render(&membership)).unwrap();
        assert!(!rendered.contains("version\""));
        assert!(!rendered.contains("removed_members"));
        assert!(!rendered.contains("\"attributes"));
        assert!(rendered.contains(
            r#""Value":"{\"peerURLs\":[\"http://h/?a\\u0026b\"],\"isLearner\":true}","Children":null"#
        ));
        assert!(rendered.find("\"10\"") < rendered.find("\"9\""));
        assert_eq!(parse_text(&rendered).unwrap(), membership);
        let nobody = render(&Membership::default());
        assert_eq!(parse(&nobody).unwrap(), Membership::default());
        assert!(String::from_utf8_lossy(&nobody).contains(r#""Path":"/0/members""#));
    }

    #[test]
    fn keys_of_the_first_api_are_seen_and_not_kept() {
        let deep = r#"{"Path":"/1/a","Value":"v","Children":{"b":[[{"x":[null,1e9]}]]}}"#;
        let text = format!(
            r#"{{"WatcherHub":[],"Root":{{"Children":{{"1":{{"Children":{{"a":{deep}}}}}}}}}}}"#
        );
        assert!(holds_client_keys(text.as_bytes()).unwrap());
        assert_eq!(parse_text(&text).unwrap(), Membership::default());
        for none in [r#"{"Children":{}}"#, r#"{"Children":null}"#, "{}", "null"] {
            let text = format!(r#"{{"Root":{{"Children":{{"1":{none}}}}}}}"#);
            assert!(!holds_client_keys(text.as_bytes()).unwrap(), "{none}");
        }
        // Go's decoder gives up at 10 000 levels; here the part that is skipped may be of any depth.
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let text = format!(r#"{{"Root":{{"Children":{{"1":{{"Children":{{"a":{deep}}}}}}}}}}}"#);
        assert!(holds_client_keys(text.as_bytes()).unwrap());
    }

    fn cluster(children: &str) -> Result<Membership, V2StoreError> {
        parse_text(&format!(
            r#"{{"Root":{{"Children":{{"0":{{"Children":{children}}}}}}}}}"#
        ))
    }

    #[test]
    fn bad_documents_are_refused_with_their_reason() {
        for bad in [
            "",
            "null",
            "{}",
            "[]",
            r#"{"Root":[]}"#,
            r#"{"Root":{"Children":[]}}"#,
        ] {
            assert!(
                matches!(parse_text(bad), Err(V2StoreError::Json(_))),
                "{bad}"
            );
        }
        let member = |files: &str| {
            cluster(&format!(
                r#"{{"members":{{"Children":{{"7":{{"Children":{files}}}}}}}}}"#
            ))
        };
        assert_eq!(
            member(r#"{"attributes":{"Value":"{}"}}"#)
                .unwrap_err()
                .to_string(),
            "the v2store document has no readable raftAttributes of member 7"
        );
        assert!(member(r#"{"raftAttributes":{"Value":"{}"}}"#).is_ok());
        for bad in [
            r#"{}"#,
            r#"null"#,
            r#"{"raftAttributes":{"Value":""}}"#,
            r#"{"raftAttributes":{"Value":"7"}}"#,
            r#"{"raftAttributes":{"Value":"{}"},"attributes":{"Value":"x"}}"#,
        ] {
            assert!(
                matches!(member(bad), Err(V2StoreError::Member { .. })),
                "{bad}"
            );
        }
        let id = |children: &str| matches!(cluster(children), Err(V2StoreError::Id(_)));
        assert!(id(r#"{"members":{"Children":{"x":{}}}}"#));
        assert!(id(r#"{"members":{"Children":{"":{}}}}"#));
        assert!(id(r#"{"removed_members":{"Children":{"+1":{}}}}"#));
        for bad in ["", "3.5", "3.5.x"] {
            let outcome = cluster(&format!(r#"{{"version":{{"Value":"{bad}"}}}}"#));
            assert!(matches!(outcome, Err(V2StoreError::Version(_))), "{bad}");
        }
    }

    #[test]
    fn numbers_of_members_are_bounded() {
        let named = |count: usize, node: &str| -> String {
            let nodes: Vec<_> = (0..count).map(|id| format!("\"{id:x}\":{node}")).collect();
            nodes.join(",")
        };
        let raft = r#"{"Children":{"raftAttributes":{"Value":"{}"}}}"#;
        let members = |count| {
            cluster(&format!(
                r#"{{"members":{{"Children":{{{}}}}}}}"#,
                named(count, raft)
            ))
        };
        assert_eq!(members(MEMBERS_MAX).unwrap().members().len(), MEMBERS_MAX);
        assert!(members(MEMBERS_MAX + 1).is_err());
        let removed = |count| {
            cluster(&format!(
                r#"{{"removed_members":{{"Children":{{{}}}}}}}"#,
                named(count, "{}")
            ))
        };
        assert_eq!(removed(REMOVED_MAX).unwrap().removed().len(), REMOVED_MAX);
        assert!(removed(REMOVED_MAX + 1).is_err());
    }

    fn any_membership() -> impl Strategy<Value = Membership> {
        let texts = || proptest::collection::vec(any::<String>(), 0..3);
        let member = (
            any::<u64>(),
            texts(),
            any::<bool>(),
            any::<String>(),
            texts(),
        )
            .prop_map(|(id, peer_urls, is_learner, name, client_urls)| Member {
                id: MemberId(id),
                peer_urls,
                is_learner,
                name,
                client_urls,
            });
        let version = (0..9u64, 0..9u64).prop_map(|(major, minor)| Version::new(major, minor, 0));
        (
            proptest::collection::vec(member, 0..4),
            proptest::collection::vec(any::<u64>().prop_map(MemberId), 0..4),
            proptest::option::of(version),
        )
            .prop_map(|(members, removed, version)| Membership::new(members, removed, version))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(membership in any_membership()) {
            let rendered = render(&membership);
            prop_assert_eq!(parse(&rendered).unwrap(), membership);
            // It is JSON to others too.
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&rendered).is_ok());
        }

        #[test]
        fn damaged_documents_are_read_or_refused(
            place in any::<prop::sample::Index>(),
            bytes in proptest::collection::vec(any::<u8>(), 0..4),
            is_cut in any::<bool>(),
        ) {
            let mut document = MINIMAL.to_vec();
            let place = place.index(document.len());
            let end = if is_cut { document.len() } else { (place + bytes.len()).min(document.len()) };
            document.splice(place..end, bytes);
            drop(parse(&document));
            drop(holds_client_keys(&document));
        }
    }
}
