//! A member as it is told to others: the JSON of `/members` and of configuration changes (etcd: api/membership/member.go).
//!
//! Depends on serde. Invariant: the bytes are those of Go's encoder, because members compare what they decoded from
//! the log, and ids are plain numbers of up to 64 bits, which not every JSON reader keeps.

use serde::{Deserialize, Serialize};
use transport_core::MemberId;

/// A member and its attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    #[serde(with = "number")]
    pub id: MemberId,
    /// Where other members reach it.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Whether it has no vote.
    #[serde(
        rename = "isLearner",
        default,
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub is_learner: bool,
    /// Its name; empty until it has been started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until it has been started.
    #[serde(
        rename = "clientURLs",
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub client_urls: Vec<String>,
}

mod number {
    use serde::{Deserialize, Deserializer, Serializer};
    use transport_core::MemberId;

    pub fn serialize<S: Serializer>(id: &MemberId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(id.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MemberId, D::Error> {
        u64::deserialize(deserializer).map(MemberId)
    }
}

/// Go writes an empty list it never filled as null.
fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// JSON with the escapes Go's encoder adds so that a text is safe within HTML.
pub fn go_json<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    let mut json = serde_json::to_string(value)?;
    // These characters occur within texts only.
    for (character, escape) in [
        ('<', "\\u003c"),
        ('>', "\\u003e"),
        ('&', "\\u0026"),
        ('\u{2028}', "\\u2028"),
        ('\u{2029}', "\\u2029"),
    ] {
        if json.contains(character) {
            json = json.replace(character, escape);
        }
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_as_go_does() {
        let member = MemberInfo {
            id: MemberId(9_825_851_460_683_942_701),
            peer_urls: vec!["http://127.0.0.1:30001".into()],
            name: "a<b>&".into(),
            client_urls: vec!["http://127.0.0.1:30000".into()],
            ..MemberInfo::default()
        };
        let json = "{\"id\":9825851460683942701,\"peerURLs\":[\"http://127.0.0.1:30001\"],\
                    \"name\":\"a\\u003cb\\u003e\\u0026\",\"clientURLs\":[\"http://127.0.0.1:30000\"]}";
        assert_eq!(go_json(&member).unwrap(), json);
        assert_eq!(serde_json::from_str::<MemberInfo>(json).unwrap(), member);
    }

    #[test]
    fn what_is_unset_is_left_out() {
        let learner = MemberInfo {
            id: MemberId(1),
            is_learner: true,
            ..MemberInfo::default()
        };
        assert_eq!(
            go_json(&learner).unwrap(),
            "{\"id\":1,\"peerURLs\":[],\"isLearner\":true}"
        );
        let read: MemberInfo =
            serde_json::from_str("{\"id\":2,\"peerURLs\":null,\"unknown\":0}").unwrap();
        assert_eq!(
            read,
            MemberInfo {
                id: MemberId(2),
                ..MemberInfo::default()
            }
        );
        for bad in ["{}", "{\"id\":-1}", "{\"id\":\"1\"}", "[]"] {
            assert!(serde_json::from_str::<MemberInfo>(bad).is_err(), "{bad}");
        }
    }
}
