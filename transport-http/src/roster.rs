//! Who there is to talk to: peers and remotes by id.
//!
//! Replaced as a whole when it changes, so that sending takes one short read lock per batch and holds none while
//! it queues; a change is prepared aside, and under the write lock one pointer is exchanged. Invariant: remotes that
//! requests have introduced are bounded and expire.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use transport_core::MemberId;

use crate::{peer::Peer, remote::Remote};

/// A remote that was introduced by a request and got nothing for this long is forgotten.
const REMOTE_EXPIRES: Duration = Duration::from_secs(600);
/// Pause between two looks at what has expired.
pub(crate) const REMOTE_SWEEP: Duration = Duration::from_secs(60);
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

    /// Takes out introduced remotes that have expired, and idle ones until there is room for another.
    fn make_room(&mut self, remotes_max: usize) -> Vec<Arc<Remote>> {
        let now = Instant::now();
        let mut introduced: Vec<(Instant, u64)> = self
            .remotes
            .iter()
            .filter(|(_, remote)| !remote.pinned)
            .map(|(id, remote)| (remote.used(), *id))
            .collect();
        introduced.sort_unstable();
        let mut count = introduced.len();
        let mut ended = Vec::new();
        for (used, id) in introduced {
            let idle = now.saturating_duration_since(used);
            if idle >= REMOTE_EXPIRES || (count >= remotes_max && idle >= REMOTE_IDLE) {
                ended.extend(self.remotes.remove(&id));
                count -= 1;
            }
        }
        ended
    }

    fn introduced(&self) -> usize {
        let remotes = self.remotes.values();
        remotes.filter(|remote| !remote.pinned).count()
    }

    /// Whether another introduced remote would find room.
    pub(crate) fn has_room(&self, remotes_max: usize) -> bool {
        let now = Instant::now();
        let is_busy = |remote: &&Arc<Remote>| {
            !remote.pinned && now.saturating_duration_since(remote.used()) < REMOTE_IDLE
        };
        self.remotes.values().filter(is_busy).count() < remotes_max
    }

    /// Takes a peer out, and the remote of that id which nobody but a request has asked for.
    pub(crate) fn remove(&mut self, id: MemberId) -> (Option<Arc<Peer>>, Option<Arc<Remote>>) {
        let is_introduced = self.remotes.get(&id.0).is_some_and(|r| !r.pinned);
        let remote = is_introduced.then(|| self.remotes.remove(&id.0)).flatten();
        (self.peers.remove(&id.0), remote)
    }

    /// Puts an introduced remote in if there is room for it; whether there was, and whom it drove out.
    pub(crate) fn introduce(
        &mut self,
        id: MemberId,
        remote: Arc<Remote>,
        remotes_max: usize,
    ) -> (bool, Vec<Arc<Remote>>) {
        let ended = self.make_room(remotes_max);
        let fits = self.introduced() < remotes_max;
        if fits {
            self.remotes.insert(id.0, remote);
        }
        (fits, ended)
    }

    /// Takes out the remotes that have expired and those of the members `removed`.
    pub(crate) fn sweep(&mut self, removed: &[u64]) -> Vec<Arc<Remote>> {
        let mut ended = self.make_room(usize::MAX);
        ended.extend(removed.iter().filter_map(|id| self.remotes.remove(id)));
        ended
    }
}

/// The roster in use.
#[derive(Default)]
pub(crate) struct CurrentRoster {
    current: RwLock<Arc<Roster>>,
    /// Held by whoever prepares the next one.
    changing: Mutex<()>,
}

impl CurrentRoster {
    pub(crate) fn get(&self) -> Arc<Roster> {
        Arc::clone(&self.current.read())
    }

    /// Changes the roster; changes come one after the other.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Roster) -> T) -> T {
        let _changing = self.changing.lock();
        let mut next = Roster::clone(&self.get());
        let outcome = change(&mut next);
        let next = Arc::new(next);
        let before = mem::replace(&mut *self.current.write(), next);
        drop(before);
        outcome
    }
}
