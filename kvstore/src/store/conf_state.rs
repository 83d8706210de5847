//! The raft configuration as bucket `meta` holds it: JSON with Go's field names.
//!
//! etcd: server/storage/schema/confstate.go. Lists that are empty are left out; `auto_leave` is always written.

use serde::{Deserialize, Serialize};
use transport_core::raftpb::ConfState;

#[derive(Serialize, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Json {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    voters_outgoing: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners_next: Vec<u64>,
    auto_leave: bool,
}

pub(super) fn encode(state: &ConfState) -> Vec<u8> {
    let json = Json {
        voters: state.voters.clone(),
        learners: state.learners.clone(),
        voters_outgoing: state.voters_outgoing.clone(),
        learners_next: state.learners_next.clone(),
        auto_leave: state.auto_leave,
    };
    // Numbers and booleans alone: nothing in it can fail to serialise.
    serde_json::to_vec(&json).unwrap_or_default()
}

pub(super) fn decode(json: &[u8]) -> Result<ConfState, serde_json::Error> {
    let json: Json = serde_json::from_slice(json)?;
    Ok(ConfState {
        voters: json.voters,
        learners: json.learners,
        voters_outgoing: json.voters_outgoing,
        learners_next: json.learners_next,
        auto_leave: json.auto_leave,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_etcd_writes_it() {
        let state = ConfState {
            voters: vec![u64::MAX, 2],
            learners: vec![3],
            ..Default::default()
        };
        let json = encode(&state);
        assert_eq!(
            String::from_utf8_lossy(&json),
            r#"{"voters":[18446744073709551615,2],"learners":[3],"auto_leave":false}"#
        );
        assert_eq!(decode(&json).unwrap(), state);
        // 3.7 leaves auto_leave out.
        assert_eq!(decode(br#"{"voters":[1]}"#).unwrap().voters, [1]);
        assert!(decode(b"[").is_err());
    }
}
