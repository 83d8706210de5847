//! Requests of the v2 API in the log, as members of 3.4 and 3.5 write them.
//!
//! Two of them carry replicated state of today: a member's published attributes and the cluster version. The others
//! (health probes, clock ticks of the v2 store, v2 clients' own keys) change nothing here.

use serde::Deserialize;

use super::{EntryContext, Machine, decode::V2Request};
use crate::error::FatalError;

/// JSON of a member's published attributes; Go writes null for an empty list.
#[derive(Deserialize)]
struct Attributes {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "clientURLs")]
    client_urls: Option<Vec<String>>,
}

impl Machine {
    pub(super) fn apply_v2(
        &mut self,
        entry: &mut EntryContext,
        request: &V2Request,
    ) -> Result<(), FatalError> {
        if &request.method[..] != b"PUT" {
            return Ok(());
        }
        let impossible = |reason: String| FatalError::Impossible {
            index: entry.index,
            reason,
        };
        if &request.path[..] == b"/0/version" {
            let version = String::from_utf8_lossy(&request.val).into_owned();
            return self.set_cluster_version(entry, &version);
        }
        let Some(member) = attributes_path(&request.path) else {
            return Ok(());
        };
        let attributes: Attributes = serde_json::from_slice(&request.val)
            .map_err(|error| impossible(format!("attributes of member {member:x}: {error}")))?;
        let client_urls = attributes.client_urls.unwrap_or_default();
        self.publish_attributes(entry, member, attributes.name, client_urls)
    }

    /// Sets what a member publishes of itself. One that was removed meanwhile is ignored; one that never was means
    /// that this member's state is not the others'.
    pub(super) fn publish_attributes(
        &mut self,
        entry: &EntryContext,
        member: u64,
        name: String,
        client_urls: Vec<String>,
    ) -> Result<(), FatalError> {
        self.side_changed = true;
        self.membership
            .set_attributes(member.into(), name, client_urls, &mut self.batch)
            .map_err(|error| FatalError::Impossible {
                index: entry.index,
                reason: error.to_string(),
            })
    }
}

/// The member in `/0/members/<hex id>/attributes`.
fn attributes_path(path: &[u8]) -> Option<u64> {
    let path = std::str::from_utf8(path).ok()?;
    let id = path
        .strip_prefix("/0/members/")?
        .strip_suffix("/attributes")?;
    let hex = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(id, 16).ok().filter(|_| hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_attributes() {
        let path = |id: &str| format!("/0/members/{id}/attributes");
        assert_eq!(
            attributes_path(path("bab344ef759be6ee").as_bytes()),
            Some(0xbab3_44ef_759b_e6ee)
        );
        for bad in ["", "+1", "x", "11112222333344445", "1/2"] {
            assert_eq!(attributes_path(path(bad).as_bytes()), None, "{bad}");
        }
        assert_eq!(attributes_path(b"/0/members/1/raftAttributes"), None);
        assert_eq!(attributes_path(b"/1/members/1/attributes"), None);
    }
}
