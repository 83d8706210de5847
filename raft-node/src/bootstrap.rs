//! The first log of a new cluster.
//!
//! Every member writes the same entries on its own: one per member, in ascending order of ids, all
//! committed from the start; the configuration is empty and the entries fill it. Depends on message types
//! only. Invariant: the bytes are those of etcd up to 3.6 (etcd: server/etcdserver/bootstrap.go,
//! go.etcd.io/raft: bootstrap.go).

use bytes::Bytes;
use transport_core::{
    MemberId,
    raftpb::{ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState},
};

/// The entries and hard state of a new cluster of `members`, each with its context: the JSON of the member
/// as etcd writes it.
pub fn bootstrap_entries(members: &[(MemberId, Bytes)]) -> (Vec<Entry>, HardState) {
    let mut members = members.to_vec();
    members.sort_unstable_by_key(|(id, _)| *id);
    let entries: Vec<Entry> = (1..)
        .zip(members)
        .map(|(index, (id, context))| Entry {
            entry_type: EntryType::ConfChange as i32,
            term: 1,
            index,
            data: ConfChange {
                id: 0,
                change_type: ConfChangeType::AddNode as i32,
                node_id: id.0,
                context,
            }
            .encode_gogo(),
        })
        .collect();
    let state = HardState {
        term: 1,
        vote: 0,
        commit: entries.len() as u64,
    };
    (entries, state)
}

/// The entries that make `own` the only member of a cluster whose others are lost for good: each other
/// member is removed, and `own` is added with its context if it is not a voter. They follow `last` (index and
/// term) and are committed by decree.
///
/// etcd: server/etcdserver/raft.go, `createConfigChangeEnts`.
pub(crate) fn sole_member_entries(
    state: &ConfState,
    own: MemberId,
    context: &Bytes,
    last: (u64, u64),
) -> Vec<Entry> {
    let add = ConfChange {
        id: 0,
        change_type: ConfChangeType::AddNode as i32,
        node_id: own.0,
        context: context.clone(),
    };
    let add = (!state.voters.contains(&own.0)).then_some(add);
    let others = state.voters.iter().chain(&state.learners);
    let remove = others.filter(|id| **id != own.0).map(|id| ConfChange {
        id: 0,
        change_type: ConfChangeType::RemoveNode as i32,
        node_id: *id,
        context: Bytes::new(),
    });
    // The addition first: raft-rs never lets the last voter go.
    (last.0 + 1..)
        .zip(add.into_iter().chain(remove))
        .map(|(index, change)| Entry {
            entry_type: EntryType::ConfChange as i32,
            term: last.1,
            index,
            data: change.encode_gogo(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entries_are_those_of_a_go_cluster() {
        // The first entry of a cluster of etcd 3.4.23 and 3.5.30, up to its context.
        const HEAD: &[u8] = b"\x08\x00\x10\x00\x18\xe2\x99\xbc\xbc\xc8\xdd\xb0\xcb\x56\x22\x4c";
        let first = MemberId(6_239_388_654_910_770_402);
        let json =
            br#"{"id":6239388654910770402,"peerURLs":["http://127.0.0.1:41301"],"name":"n0"}"#;
        let others = [0xbab3_44ef_759b_e6ee, 0xa0d9_fd87_f918_8517].map(MemberId);
        let (entries, state) = bootstrap_entries(&[
            (others[0], Bytes::from_static(b"{}")),
            (first, Bytes::from_static(json)),
            (others[1], Bytes::from_static(b"{}")),
        ]);
        assert_eq!(&entries[0].data[..], [HEAD, json].concat());
        assert_eq!((entries[0].index, entries[2].index), (1, 3));
        assert!(entries.iter().all(|e| e.term == 1 && e.entry_type == 1));
        let state_of = (state.term, state.vote, state.commit);
        assert_eq!(state_of, (1, 0, 3));
    }
}
