//! Who there is to talk to: peers and remotes by id.
//!
//! Replaced as a whole when it changes, so that sending takes one short read lock per batch and holds none while
//! it queues. Invariant: remotes that requests have introduced are bounded and expire.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use transport_core::MemberId;

use crate::{peer::Peer, remote::Remote};

/// A remote that was introduced by a request and got nothing for this long is forgotten.
const REMOTE_EXPIRES: Duration = Duration::from_secs(600);
/// When there is no room, one that got nothing for this long makes place.
const REMOTE_IDLE: Duration = Duration::from_secs(60);

/// Ordered, so that what is done to all of them happens in the same order each time.
#[derive(Clone, Default)]
pub(crate) struct Roster {
    pub(crate) peers: BTreeMap<u64, Arc<Peer>>,
    pub(crate) remotes: BTreeMap<u64, Arc<Remote>>,
}

impl Roster {
    /// Whether the id is a peer or a remote.
    pub(crate) fn knows(&self, id: MemberId) -> bool {
        self.peers.contains_key(&id.0) || self.remotes.contains_key(&id.0)
    }

    /// Makes room for another introduced remote by ending idle ones; whether there is room now.
    pub(crate) fn make_room(&mut self, remotes_max: usize) -> bool {
        let now = Instant::now();
        let mut introduced: Vec<(Instant, u64)> = self
            .remotes
            .iter()
            .filter(|(_, remote)| !remote.pinned)
            .map(|(id, remote)| (remote.used(), *id))
            .collect();
        introduced.sort_unstable();
        let mut count = introduced.len();
        for (used, id) in introduced {
            let idle = now.saturating_duration_since(used);
            if idle >= REMOTE_EXPIRES || (count >= remotes_max && idle >= REMOTE_IDLE) {
                if let Some(remote) = self.remotes.remove(&id) {
                    remote.stop();
                }
                count -= 1;
            }
        }
        count < remotes_max
    }
}
