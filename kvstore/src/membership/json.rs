//! Members as JSON, in the bytes Go's encoding/json writes: rows of bucket `members`, contexts of configuration
//! changes, the answer of a peer's `/members`.
//!
//! Written compactly in a fixed field order, empty fields left out where Go leaves them out, `<`, `>` and `&` and the
//! two line separators of Unicode escaped. Read leniently: unknown fields are ignored, `null` is nothing.
//! (etcd: server/etcdserver/api/membership/member.go)

use serde::Deserialize;
use transport_core::MemberId;

use super::Member;

/// What a configuration change says about its member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The member; of a promotion its id alone.
    pub member: Member,
    /// Whether a learner becomes a voter, rather than a member being added.
    pub is_promote: bool,
}

/// A member: a row of bucket `members`, and the context of a change that adds or updates it.
pub fn member(member: &Member) -> Vec<u8> {
    let mut out = format!("{{\"id\":{},", member.id.0).into_bytes();
    raft_fields(&mut out, member);
    if !member.name.is_empty() || !member.client_urls.is_empty() {
        out.push(b',');
        attribute_fields(&mut out, member);
    }
    out.push(b'}');
    out
}

/// The answer of `/members`, with its line feed.
pub fn members<'a>(all: impl IntoIterator<Item = &'a Member>) -> Vec<u8> {
    let mut out = vec![b'['];
    for (place, one) in all.into_iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        out.extend(member(one));
    }
    out.extend(b"]\n");
    out
}

/// The context of a change that promotes a learner.
pub fn promotion(id: MemberId) -> Vec<u8> {
    format!("{{\"id\":{},\"peerURLs\":null,\"isPromote\":true}}", id.0).into_bytes()
}

/// What raft needs to know of a member, as the v2store document holds it.
pub fn raft_attributes(member: &Member) -> Vec<u8> {
    let mut out = vec![b'{'];
    raft_fields(&mut out, member);
    out.push(b'}');
    out
}

/// What a member says of itself, as the v2store document and requests of the v2 API hold it.
pub fn attributes(member: &Member) -> Vec<u8> {
    let mut out = vec![b'{'];
    attribute_fields(&mut out, member);
    out.push(b'}');
    out
}

fn raft_fields(out: &mut Vec<u8>, member: &Member) {
    out.extend(b"\"peerURLs\":");
    strings(out, &member.peer_urls);
    if member.is_learner {
        out.extend(b",\"isLearner\":true");
    }
}

fn attribute_fields(out: &mut Vec<u8>, member: &Member) {
    if !member.name.is_empty() {
        out.extend(b"\"name\":");
        string(out, &member.name);
    }
    if !member.client_urls.is_empty() {
        if !member.name.is_empty() {
            out.push(b',');
        }
        out.extend(b"\"clientURLs\":");
        strings(out, &member.client_urls);
    }
}

/// A list, `null` when there is nothing in it.
fn strings(out: &mut Vec<u8>, list: &[String]) {
    if list.is_empty() {
        out.extend(b"null");
        return;
    }
    for (place, text) in list.iter().enumerate() {
        out.push(if place == 0 { b'[' } else { b',' });
        string(out, text);
    }
    out.push(b']');
}

/// A string, escaped as Go does.
pub(crate) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' => out.extend(b"\\\""),
            '\\' => out.extend(b"\\\\"),
            '\n' => out.extend(b"\\n"),
            '\r' => out.extend(b"\\r"),
            '\t' => out.extend(b"\\t"),
            '\x08' => out.extend(b"\\b"),
            '\x0c' => out.extend(b"\\f"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.extend(format!("\\u{:04x}", u32::from(c)).bytes());
            }
            c => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    out.push(b'"');
}

/// The row of bucket `cluster` about a downgrade.
pub(super) fn downgrade(target: Option<&str>) -> Vec<u8> {
    let mut out = b"{\"target-version\":".to_vec();
    string(&mut out, target.unwrap_or_default());
    out.extend(format!(",\"enabled\":{}}}", target.is_some()).bytes());
    out
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Fields {
    id: Option<u64>,
    #[serde(rename = "peerURLs")]
    peer_urls: Option<Vec<String>>,
    #[serde(rename = "isLearner")]
    is_learner: Option<bool>,
    name: Option<String>,
    #[serde(rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
    #[serde(rename = "isPromote")]
    is_promote: Option<bool>,
}

impl From<Fields> for Context {
    fn from(fields: Fields) -> Context {
        Context {
            member: Member {
                id: MemberId(fields.id.unwrap_or_default()),
                peer_urls: fields.peer_urls.unwrap_or_default(),
                is_learner: fields.is_learner.unwrap_or_default(),
                name: fields.name.unwrap_or_default(),
                client_urls: fields.client_urls.unwrap_or_default(),
            },
            is_promote: fields.is_promote.unwrap_or_default(),
        }
    }
}

/// Reads a member in any of the forms above; what is missing is empty.
pub fn parse_member(json: &[u8]) -> Result<Member, serde_json::Error> {
    parse_context(json).map(|context| context.member)
}

/// Reads the context of a configuration change.
pub fn parse_context(json: &[u8]) -> Result<Context, serde_json::Error> {
    serde_json::from_slice::<Fields>(json).map(Context::from)
}

/// Reads the answer of `/members`.
pub fn parse_members(json: &[u8]) -> Result<Vec<Member>, serde_json::Error> {
    let all: Option<Vec<Fields>> = serde_json::from_slice(json)?;
    let members = all.unwrap_or_default().into_iter();
    Ok(members.map(|fields| Context::from(fields).member).collect())
}

/// Reads the row about a downgrade: its target if one is going on.
pub(super) fn parse_downgrade(json: &[u8]) -> Result<Option<String>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Row {
        #[serde(default, rename = "target-version")]
        target: Option<String>,
        #[serde(default)]
        enabled: Option<bool>,
    }
    let row: Row = serde_json::from_slice(json)?;
    Ok(row.target.filter(|_| row.enabled == Some(true)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(json: Vec<u8>) -> String {
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn as_go_writes_them() {
        let mut one = Member {
            id: MemberId(6_239_388_654_910_770_402),
            peer_urls: vec!["http://127.0.0.1:41301".into()],
            name: "n0".into(),
            ..Default::default()
        };
        assert_eq!(
            text(member(&one)),
            r#"{"id":6239388654910770402,"peerURLs":["http://127.0.0.1:41301"],"name":"n0"}"#
        );
        one.client_urls = vec!["http://h/?a=1&b=<2>".into(), "u".into()];
        one.is_learner = true;
        assert_eq!(
            text(member(&one)),
            "{\"id\":6239388654910770402,\"peerURLs\":[\"http://127.0.0.1:41301\"],\"isLearner\":true,\
             \"name\":\"n0\",\"clientURLs\":[\"http://h/?a=1\\u0026b=\\u003c2\\u003e\",\"u\"]}"
        );
        one.name = String::new();
        assert_eq!(
            text(attributes(&one)),
            r#"{"clientURLs":["http://h/?a=1\u0026b=\u003c2\u003e","u"]}"#
        );
        assert_eq!(
            text(raft_attributes(&one)),
            r#"{"peerURLs":["http://127.0.0.1:41301"],"isLearner":true}"#
        );
        assert_eq!(text(attributes(&Member::default())), "{}");
        assert_eq!(
            text(promotion(MemberId(u64::MAX))),
            r#"{"id":18446744073709551615,"peerURLs":null,"isPromote":true}"#
        );
        assert_eq!(
            text(downgrade(Some("3.5.0"))),
            r#"{"target-version":"3.5.0","enabled":true}"#
        );
        assert_eq!(
            text(downgrade(None)),
            r#"{"target-version":"","enabled":false}"#
        );
        let two = [
            Member {
                id: MemberId(1),
                ..Default::default()
            },
            Member {
                id: MemberId(2),
                ..Default::default()
            },
        ];
        assert_eq!(
            text(members(&two)),
            "[{\"id\":1,\"peerURLs\":null},{\"id\":2,\"peerURLs\":null}]\n"
        );
        assert_eq!(text(members([])), "[]\n");
    }

    #[test]
    fn special_characters() {
        let mut out = Vec::new();
        string(
            &mut out,
            "q\"b\\n\n\r\t\u{8}\u{c}\u{1}\u{7f}é\u{2028}\u{2029}😀",
        );
        let expected = "\"q\\\"b\\\\n\\n\\r\\t\\b\\f\\u0001\u{7f}é\\u2028\\u2029😀\"";
        assert_eq!(text(out), expected);
    }

    #[test]
    fn reading_is_lenient_about_what_is_there_and_not_about_what_it_is() {
        let context =
            parse_context(br#"{"x":[1],"peerURLs":null,"id":7,"isPromote":true}"#).unwrap();
        assert_eq!((context.member.id, context.is_promote), (MemberId(7), true));
        assert_eq!(parse_context(b"{}").unwrap(), Context::default());
        for bad in [
            "",
            "{",
            "7",
            r#"{"id":-1}"#,
            r#"{"id":"7"}"#,
            r#"{"peerURLs":"u"}"#,
        ] {
            assert!(parse_context(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parse_members(b"null\n").unwrap(), []);
        assert!(parse_members(b"{}").is_err());
        assert_eq!(
            parse_downgrade(br#"{"target-version":"3.5.0","enabled":false}"#).unwrap(),
            None
        );
        assert_eq!(
            parse_downgrade(br#"{"target-version":"3.5.0","enabled":true}"#)
                .unwrap()
                .as_deref(),
            Some("3.5.0")
        );
    }

    fn any_member() -> impl Strategy<Value = Member> {
        let list = || proptest::collection::vec(any::<String>(), 0..3);
        (any::<u64>(), list(), any::<bool>(), any::<String>(), list()).prop_map(
            |(id, peer_urls, is_learner, name, client_urls)| Member {
                id: MemberId(id),
                peer_urls,
                is_learner,
                name,
                client_urls,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(all in proptest::collection::vec(any_member(), 0..3)) {
            prop_assert_eq!(&parse_members(&members(&all)).unwrap(), &all);
            for one in all {
                prop_assert_eq!(parse_member(&member(&one)).unwrap(), one);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            drop(parse_context(&bytes));
            drop(parse_members(&bytes));
            drop(parse_downgrade(&bytes));
        }
    }
}
