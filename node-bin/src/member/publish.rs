//! How a member tells the cluster its name and client URLs, and in which of the two forms the members present
//! understand (etcd: etcdserver/server.go, `publishV3`; before 3.6, `publish`).
//!
//! Depends on kvstore for messages. Invariant: an entry that would crash a member known to be there is never proposed.

use kvstore::pb::{
    etcdserverpb::{InternalRaftRequest, Request, RequestHeader},
    membershippb::{Attributes, ClusterMemberAttrSetRequest},
};
use kvstore::version::Version;
use prost::Message;
use serde::Serialize;
use transport_core::MemberId;

use super::info::go_json;

/// The form of an entry about members or versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A write to the v2 store. Members up to 3.4 know nothing else, members from 3.7 on crash on it.
    V2,
    /// A request of its own. Members up to 3.4 crash on it.
    V3,
}

/// First version that knows the own requests.
const V3_SINCE: Version = Version::new(3, 5, 0);

/// First version that crashes on v2 writes.
const V2_GONE: Version = Version::new(3, 7, 0);

/// The form that the cluster's version alone decides, which speaks for every member once it is set.
pub fn form_by_cluster(cluster_version: Option<Version>) -> Option<Form> {
    match cluster_version {
        Some(version) if version >= V3_SINCE => Some(Form::V3),
        // 3.0 is what a leader sets while it does not know all members: it says nothing about them.
        Some(version) if version > kvstore::version::MIN_CLUSTER_VERSION => Some(Form::V2),
        _ => None,
    }
}

/// The form that no known member crashes on; `None` while too little is known to choose.
///
/// `members` are the versions the other members report, `None` for those that did not answer. After `patience_over` silent members are taken for new ones: a member that is down
/// must not keep the others from serving, and 3.4 is the least likely to be it.
pub fn form(
    cluster_version: Option<Version>,
    members: &[Option<Version>],
    patience_over: bool,
) -> Option<Form> {
    let known = || members.iter().flatten();
    if known().any(|version| *version >= V2_GONE) {
        return Some(Form::V3);
    }
    if known().any(|version| *version < V3_SINCE) {
        return Some(Form::V2);
    }
    form_by_cluster(cluster_version)
        .or_else(|| (patience_over || members.iter().all(Option::is_some)).then_some(Form::V3))
}

/// The entry that publishes a member.
pub fn entry(form: Form, id: u64, member: MemberId, name: &str, client_urls: &[String]) -> Vec<u8> {
    match form {
        Form::V2 => {
            #[derive(Serialize)]
            struct Published<'a> {
                #[serde(skip_serializing_if = "str::is_empty")]
                name: &'a str,
                #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
                client_urls: &'a [String],
            }
            // Texts cannot fail to be written.
            let attributes = go_json(&Published { name, client_urls }).unwrap_or_default();
            v2_put(id, format!("/0/members/{member}/attributes"), attributes)
        }
        Form::V3 => InternalRaftRequest {
            header: Some(RequestHeader {
                id,
                ..Default::default()
            }),
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: member.0,
                member_attributes: Some(Attributes {
                    name: name.into(),
                    client_urls: client_urls.to_vec(),
                }),
            }),
            ..Default::default()
        }
        .encode_to_vec(),
    }
}

/// A write to the v2 store, with the zero fields Go writes.
pub(super) fn v2_put(id: u64, path: String, value: String) -> Vec<u8> {
    Request {
        id: Some(id),
        method: Some("PUT".into()),
        path: Some(path),
        val: Some(value),
        dir: Some(false),
        prev_value: Some(String::new()),
        prev_index: Some(0),
        prev_exist: None,
        expiration: Some(0),
        wait: Some(false),
        since: Some(0),
        recursive: Some(false),
        sorted: Some(false),
        quorum: Some(false),
        time: Some(0),
        stream: Some(false),
        refresh: None,
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Option<Version> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn no_member_is_sent_what_it_crashes_on() {
        type Case<'a> = (Option<Version>, &'a [Option<Version>], Option<Form>);
        let cases: [Case<'_>; 12] = [
            (None, &[], Some(Form::V3)),
            (None, &[v("3.6.16"), v("3.5.1")], Some(Form::V3)),
            (None, &[v("3.6.16"), v("3.4.23")], Some(Form::V2)),
            (None, &[v("3.7.3"), None], Some(Form::V3)),
            (None, &[v("3.4.0"), v("3.7.3")], Some(Form::V3)),
            (None, &[v("3.6.16"), None], None),
            (None, &[None, None], None),
            (v("3.0.0"), &[None], None),
            (v("3.4.0"), &[None], Some(Form::V2)),
            (v("3.5.0"), &[None, v("3.5.1")], Some(Form::V3)),
            (v("3.6.0"), &[v("3.4.0")], Some(Form::V2)),
            (v("3.7.0"), &[v("3.7.0")], Some(Form::V3)),
        ];
        for (cluster, members, expected) in cases {
            assert_eq!(
                form(cluster, members, false),
                expected,
                "{cluster:?} {members:?}"
            );
            assert!(form(cluster, members, true).is_some());
        }
        assert_eq!(form(None, &[None, v("3.4.0")], true), Some(Form::V2));
        for (cluster, expected) in [
            (None, None),
            (v("3.0.0"), None),
            (v("3.4.0"), Some(Form::V2)),
            (v("3.5.0"), Some(Form::V3)),
        ] {
            assert_eq!(form_by_cluster(cluster), expected, "{cluster:?}");
        }
    }

    #[test]
    fn the_v3_form_has_etcd_s_bytes() {
        let entry = entry(Form::V3, 7, MemberId(1), "n", &["u".into()]);
        assert_eq!(
            entry,
            b"\xa2\x06\x02\x08\x07\xaa\x51\x0a\x08\x01\x12\x06\x0a\x01n\x12\x01u"
        );
    }

    #[test]
    fn the_v2_form_has_the_bytes_of_go() {
        let entry = entry(Form::V2, 1, MemberId(0xab), "n2", &["http://h:1".into()]);
        let head = b"\x08\x01\x12\x03PUT\x1a\x18/0/members/ab/attributes\x22\x29{\"name\":\"n2\",\"clientURLs\":[\"http://h:1\"]}";
        let tail = b"\x28\x00\x32\x00\x38\x00\x48\x00\x50\x00\x58\x00\x60\x00\x68\x00\x70\x00\x78\x00\x80\x01\x00";
        assert_eq!(entry, [&head[..], &tail[..]].concat());
    }
}
