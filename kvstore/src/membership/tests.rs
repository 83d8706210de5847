//! The rules of configuration changes, one by one, and the rows they leave behind.

use super::*;
use crate::backend::{Backend, memory::MemoryBackend};

const MAX_LEARNERS: usize = 1;

fn member(id: u64, url: &str) -> Member {
    Member {
        id: MemberId(id),
        peer_urls: vec![url.into()],
        ..Default::default()
    }
}

fn learner(id: u64, url: &str) -> Member {
    Member {
        is_learner: true,
        ..member(id, url)
    }
}

fn change(kind: ConfChangeType, id: u64, context: Vec<u8>) -> ConfChange {
    ConfChange {
        id: 99,
        change_type: kind as i32,
        node_id: id,
        context: context.into(),
    }
}

fn add(one: &Member) -> ConfChange {
    let kind = if one.is_learner {
        ConfChangeType::AddLearnerNode
    } else {
        ConfChangeType::AddNode
    };
    change(kind, one.id.0, json::member(one))
}

fn promote(id: u64) -> ConfChange {
    change(ConfChangeType::AddNode, id, json::promotion(MemberId(id)))
}

fn update(one: &Member) -> ConfChange {
    change(ConfChangeType::UpdateNode, one.id.0, json::member(one))
}

fn remove(id: u64) -> ConfChange {
    change(ConfChangeType::RemoveNode, id, Vec::new())
}

/// Members 1 and 2, learner 3; 9 was removed.
fn four() -> Membership {
    let mut membership = Membership::default();
    for one in [
        member(1, "u1"),
        member(2, "u2"),
        learner(3, "u3"),
        member(9, "u9"),
    ] {
        apply(&mut membership, &add(&one)).unwrap();
    }
    apply(&mut membership, &remove(9)).unwrap();
    membership
}

fn apply(
    membership: &mut Membership,
    change: &ConfChange,
) -> Result<MembershipEvent, MembershipError> {
    membership.validate(change, MAX_LEARNERS)?;
    membership.apply(change, &mut Batch::default())
}

#[test]
fn refusals_in_etcds_order() {
    use ConfChangeType::*;
    use MembershipError::*;
    let malformed = || Malformed(String::new());
    let cases = [
        // A removed id, whatever is asked and however badly.
        (add(&member(9, "new")), IdRemoved),
        (add(&learner(9, "new")), IdRemoved),
        (promote(9), IdRemoved),
        (update(&member(9, "new")), IdRemoved),
        (remove(9), IdRemoved),
        (change(AddNode, 9, Vec::new()), IdRemoved),
        (
            ConfChange {
                change_type: 7,
                ..remove(9)
            },
            IdRemoved,
        ),
        // Adding.
        (add(&member(1, "u2")), IdExists),
        (add(&learner(3, "new")), IdExists),
        (add(&member(4, "u2")), PeerUrlExists),
        (add(&learner(4, "u2")), PeerUrlExists),
        (add(&learner(4, "new")), TooManyLearners),
        // Promoting.
        (promote(4), IdNotFound),
        (promote(1), NotLearner),
        // Updating and removing.
        (update(&member(4, "new")), IdNotFound),
        (update(&member(1, "u2")), PeerUrlExists),
        (remove(4), IdNotFound),
        (remove(0), IdNotFound),
        (change(UpdateNode, 4, Vec::new()), IdNotFound),
        // What cannot be understood.
        (change(AddNode, 4, Vec::new()), malformed()),
        (change(AddNode, 0, Vec::new()), malformed()),
        (change(AddLearnerNode, 4, b"[]".to_vec()), malformed()),
        (change(UpdateNode, 1, b"{".to_vec()), malformed()),
        (
            change(AddNode, 4, json::member(&member(5, "new"))),
            malformed(),
        ),
        (
            change(AddNode, 3, json::promotion(MemberId(4))),
            malformed(),
        ),
        (
            change(UpdateNode, 1, json::member(&member(2, "new"))),
            malformed(),
        ),
        (
            ConfChange {
                change_type: 7,
                ..remove(1)
            },
            malformed(),
        ),
    ];
    for (change, error) in cases {
        let mut membership = four();
        let before = membership.clone();
        let refused = apply(&mut membership, &change).unwrap_err();
        match (&refused, &error) {
            (Malformed(_), Malformed(_)) => assert_eq!(refused.refusal(), None),
            _ => {
                assert_eq!(refused, error, "{change:?}");
                assert_eq!(refused.refusal().unwrap().to_string(), refused.to_string());
            }
        }
        assert_eq!(membership, before);
    }
}

#[test]
fn what_is_accepted_and_what_it_does() {
    let mut membership = four();
    let id = MemberId;
    let urls = |url: &str| vec![url.to_owned()];
    let events = [
        (promote(3), MembershipEvent::Promoted { id: id(3) }),
        // Room for a learner again. A learner that is added as a voter counts as one all the same, as in etcd.
        (
            add(&learner(4, "u4")),
            MembershipEvent::Added {
                id: id(4),
                urls: urls("u4"),
                learner: true,
            },
        ),
        (
            add(&member(5, "u5")),
            MembershipEvent::Added {
                id: id(5),
                urls: urls("u5"),
                learner: false,
            },
        ),
        (
            update(&member(2, "u2")),
            MembershipEvent::Updated {
                id: id(2),
                urls: urls("u2"),
            },
        ),
        (
            update(&member(2, "u22")),
            MembershipEvent::Updated {
                id: id(2),
                urls: urls("u22"),
            },
        ),
        (remove(1), MembershipEvent::Removed { id: id(1) }),
        // URLs of a removed member are free.
        (
            add(&member(6, "u1")),
            MembershipEvent::Added {
                id: id(6),
                urls: urls("u1"),
                learner: false,
            },
        ),
    ];
    for (change, event) in events {
        assert_eq!(apply(&mut membership, &change), Ok(event), "{change:?}");
    }
    let ids: Vec<_> = membership
        .members()
        .map(|member| (member.id.0, member.is_learner))
        .collect();
    assert_eq!(
        ids,
        [(2, false), (3, false), (4, true), (5, false), (6, false)]
    );
    assert_eq!(membership.removed().collect::<Vec<_>>(), [id(1), id(9)]);
    assert_eq!(membership.member(id(2)).unwrap().peer_urls, ["u22"]);
}

#[test]
fn an_update_changes_the_peer_urls_alone() {
    let mut membership = four();
    let mut batch = Batch::default();
    membership
        .set_attributes(MemberId(3), "n3".into(), vec!["c3".into()], &mut batch)
        .unwrap();
    let other = Member {
        name: "other".into(),
        ..member(3, "u33")
    };
    apply(&mut membership, &update(&other)).unwrap();
    let expected = Member {
        name: "n3".into(),
        client_urls: vec!["c3".into()],
        ..learner(3, "u33")
    };
    assert_eq!(membership.member(MemberId(3)), Some(&expected));
}

#[test]
fn a_bootstrap_entry_brings_the_name() {
    let mut membership = Membership::default();
    let named = Member {
        name: "n1".into(),
        ..member(1, "u1")
    };
    apply(&mut membership, &add(&named)).unwrap();
    assert_eq!(membership.member(MemberId(1)).unwrap().name, "n1");
}

#[test]
fn attributes_of_members_removed_and_unknown() {
    let mut membership = four();
    let mut batch = Batch::default();
    let mut set = |id| membership.set_attributes(MemberId(id), "n".into(), Vec::new(), &mut batch);
    assert_eq!(set(1), Ok(()));
    assert_eq!(set(9), Ok(()));
    assert_eq!(set(7), Err(UnknownMember(MemberId(7))));
    assert_eq!(batch.len(), 1);
}

#[test]
fn rows_are_etcds_and_hold_everything() {
    let backend = MemoryBackend::default();
    let mut batch = Batch::default();
    let mut membership = Membership::default();
    for one in [
        member(0x5696_c2ec, "http://127.0.0.1:1"),
        learner(2, "u2"),
        member(3, "u3"),
    ] {
        membership.apply(&add(&one), &mut batch).unwrap();
    }
    membership.apply(&remove(3), &mut batch).unwrap();
    membership
        .set_attributes(MemberId(2), "n2".into(), vec!["c".into()], &mut batch)
        .unwrap();
    membership.set_cluster_version(Version::new(3, 6, 0), &mut batch);
    membership.set_downgrade(Some("3.5.0".into()), &mut batch);
    backend.commit(&batch).unwrap();
    let view = backend.view().unwrap();
    let row = |bucket, key: &str| {
        String::from_utf8(view.get(bucket, key.as_bytes()).unwrap().unwrap()).unwrap()
    };
    assert_eq!(
        row(Bucket::Members, "5696c2ec"),
        r#"{"id":1452720876,"peerURLs":["http://127.0.0.1:1"]}"#
    );
    assert_eq!(
        row(Bucket::Members, "2"),
        r#"{"id":2,"peerURLs":["u2"],"isLearner":true,"name":"n2","clientURLs":["c"]}"#
    );
    assert_eq!(view.get(Bucket::Members, b"3").unwrap(), None);
    assert_eq!(row(Bucket::MembersRemoved, "3"), "removed");
    assert_eq!(row(Bucket::Cluster, "clusterVersion"), "3.6.0");
    assert_eq!(
        row(Bucket::Cluster, "downgrade"),
        r#"{"target-version":"3.5.0","enabled":true}"#
    );
    let loaded = Membership::load(&*view).unwrap();
    assert_eq!(loaded, membership);
    assert_eq!(loaded.downgrade(), Some("3.5.0"));

    let mut batch = Batch::default();
    membership.set_downgrade(None, &mut batch);
    backend.commit(&batch).unwrap();
    assert_eq!(
        Membership::load(&*backend.view().unwrap())
            .unwrap()
            .downgrade(),
        None
    );
}

#[test]
fn damaged_rows_are_errors() {
    for (bucket, key, row) in [
        (Bucket::Members, "xyz", "{}"),
        (Bucket::Members, "1", "["),
        (Bucket::MembersRemoved, "", "removed"),
        (Bucket::Cluster, "clusterVersion", "3"),
        (Bucket::Cluster, "downgrade", "3"),
    ] {
        let backend = MemoryBackend::default();
        let mut batch = Batch::default();
        batch.put(bucket, key, row);
        backend.commit(&batch).unwrap();
        let loaded = Membership::load(&*backend.view().unwrap());
        assert!(matches!(loaded, Err(BackendError::Damaged(_))), "{key}");
    }
}

#[test]
fn which_of_database_and_document_counts() {
    let at = |version: Option<Version>, members: &[Member]| {
        Membership::new(members.to_vec(), [MemberId(9)], version)
    };
    let v = |minor| Some(Version::new(3, minor, 0));
    let old = at(v(4), &[member(1, "stale")]);
    let document = at(v(4), &[member(1, "u1"), learner(2, "u2")]);
    assert_eq!(
        Membership::merge(old.clone(), Some(document.clone())),
        document
    );
    assert_eq!(
        Membership::merge(at(None, &[]), Some(document.clone())),
        document
    );
    assert_eq!(Membership::merge(old.clone(), None), old);
    // From 3.5 on the database counts, except that a promotion may be in the document alone.
    let new = at(
        v(5),
        &[learner(1, "u1"), learner(2, "u2"), learner(3, "u3")],
    );
    let merged = Membership::merge(new, Some(at(v(5), &[member(1, "x"), learner(2, "x")])));
    let expected = at(v(5), &[member(1, "u1"), learner(2, "u2"), learner(3, "u3")]);
    assert_eq!(merged, expected);
}

#[test]
fn a_difference_turns_one_into_the_other() {
    let backend = MemoryBackend::default();
    let mut batch = Batch::default();
    let from = Membership::new(
        [member(1, "u1"), member(2, "u2")],
        [MemberId(8)],
        Some(Version::new(3, 4, 0)),
    );
    let to = Membership::new([learner(2, "u2"), member(3, "u3")], [MemberId(9)], None);
    Membership::default().write_difference(&from, &mut batch);
    from.write_difference(&to, &mut batch);
    backend.commit(&batch).unwrap();
    assert_eq!(Membership::load(&*backend.view().unwrap()).unwrap(), to);
    let mut none = Batch::default();
    to.write_difference(&to, &mut none);
    assert!(none.is_empty());
}
