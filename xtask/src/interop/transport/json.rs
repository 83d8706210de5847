//! Raft messages as Go's `encoding/json` writes and reads `raftpb.Message`.
//!
//! An independent reading of every field: what our codec wrote and Go's decoded comes back here by name.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};
use transport_core::raftpb::{ConfState, Entry, Message, Snapshot, SnapshotMetadata};

use crate::workspace::Outcome;

/// The message as Go reads it.
pub fn to_json(message: &Message) -> Value {
    let mut value = json!({
        "type": message.msg_type,
        "to": message.to,
        "from": message.from,
        "term": message.term,
        "logTerm": message.log_term,
        "index": message.index,
        "entries": message.entries.iter().map(entry_to_json).collect::<Vec<_>>(),
        "commit": message.commit,
        "reject": message.reject,
        "rejectHint": message.reject_hint,
        "context": BASE64_STANDARD.encode(&message.context),
    });
    if let Some(snapshot) = &message.snapshot {
        value["snapshot"] = snapshot_to_json(snapshot);
    }
    value
}

fn entry_to_json(entry: &Entry) -> Value {
    json!({
        "Type": entry.entry_type,
        "Term": entry.term,
        "Index": entry.index,
        "Data": BASE64_STANDARD.encode(&entry.data),
    })
}

fn snapshot_to_json(snapshot: &Snapshot) -> Value {
    let metadata = snapshot.metadata.clone().unwrap_or_default();
    let members = metadata.conf_state.unwrap_or_default();
    json!({
        "data": BASE64_STANDARD.encode(&snapshot.data),
        "metadata": {
            "index": metadata.index,
            "term": metadata.term,
            "conf_state": {
                "voters": members.voters,
                "learners": members.learners,
                "voters_outgoing": members.voters_outgoing,
                "learners_next": members.learners_next,
                "auto_leave": members.auto_leave,
            },
        },
    })
}

/// The message as Go wrote it. Absent fields are zero; a field of another type is an error.
pub fn from_json(value: &Value) -> Outcome<Message> {
    Ok(Message {
        msg_type: number(value, "type")? as i32,
        to: number(value, "to")?,
        from: number(value, "from")?,
        term: number(value, "term")?,
        log_term: number(value, "logTerm")?,
        index: number(value, "index")?,
        entries: list(value, "entries", entry_from_json)?,
        commit: number(value, "commit")?,
        snapshot: match &value["snapshot"] {
            Value::Null => None,
            snapshot => Some(Box::new(snapshot_from_json(snapshot)?)),
        },
        reject: flag(value, "reject")?,
        reject_hint: number(value, "rejectHint")?,
        context: bytes(value, "context")?,
    })
}

fn entry_from_json(value: &Value) -> Outcome<Entry> {
    Ok(Entry {
        entry_type: number(value, "Type")? as i32,
        term: number(value, "Term")?,
        index: number(value, "Index")?,
        data: bytes(value, "Data")?,
    })
}

fn snapshot_from_json(value: &Value) -> Outcome<Snapshot> {
    let metadata = &value["metadata"];
    let members = &metadata["conf_state"];
    let ids = |name| list(members, name, |id| id.as_u64().ok_or("not an id".into()));
    Ok(Snapshot {
        data: bytes(value, "data")?,
        metadata: Some(SnapshotMetadata {
            conf_state: Some(ConfState {
                voters: ids("voters")?,
                learners: ids("learners")?,
                voters_outgoing: ids("voters_outgoing")?,
                learners_next: ids("learners_next")?,
                auto_leave: flag(members, "auto_leave")?,
            }),
            index: number(metadata, "index")?,
            term: number(metadata, "term")?,
        }),
    })
}

fn number(value: &Value, name: &str) -> Outcome<u64> {
    match &value[name] {
        Value::Null => Ok(0),
        field => field
            .as_u64()
            .ok_or_else(|| format!("{name} is {field}, not a number")),
    }
}

fn flag(value: &Value, name: &str) -> Outcome<bool> {
    match &value[name] {
        Value::Null => Ok(false),
        field => field
            .as_bool()
            .ok_or_else(|| format!("{name} is {field}, not a boolean")),
    }
}

fn bytes(value: &Value, name: &str) -> Outcome<Bytes> {
    let text = match &value[name] {
        Value::Null => "",
        field => field
            .as_str()
            .ok_or_else(|| format!("{name} is {field}, not a string"))?,
    };
    BASE64_STANDARD
        .decode(text)
        .map(Bytes::from)
        .map_err(|error| format!("{name}: {error}"))
}

fn list<T>(value: &Value, name: &str, of: impl Fn(&Value) -> Outcome<T>) -> Outcome<Vec<T>> {
    match &value[name] {
        Value::Null => Ok(Vec::new()),
        field => field
            .as_array()
            .ok_or_else(|| format!("{name} is {field}, not a list"))?
            .iter()
            .map(of)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kinds;
    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_went() {
        for message in kinds::all(7, 9) {
            assert_eq!(from_json(&to_json(&message)).unwrap(), message);
        }
    }

    #[test]
    fn what_go_leaves_out_is_zero_and_another_type_is_told() {
        let beat = from_json(&json!({"type": 8, "entries": null})).unwrap();
        assert_eq!(
            beat,
            Message {
                msg_type: 8,
                ..Message::default()
            }
        );
        assert!(from_json(&json!({"type": "8"})).is_err());
    }
}
