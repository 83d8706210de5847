//! Documents of Go are read, what is written is what Go took, what is damaged is refused.

use bytes::{Buf, Bytes};
use proptest::prelude::*;
use prost::encoding::decode_varint;

use super::*;
use crate::version::Version;

const MINIMAL: &[u8] = include_bytes!("../../tests/fixtures/minimal-v2store.json");

/// The document in a `.snap` file of 3.5.30: a checksum, and as field 2 the snapshot.
fn document_of_go() -> Bytes {
    let mut file = Bytes::from_static(include_bytes!("../../tests/fixtures/member.snap"));
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
