//! The entries that were encoded for several peers, kept for those that get them a little later.
//!
//! Invariant: what is kept is bounded, and given back soon after the last append.

use std::{mem, sync::Arc};

use metrics::Counter;
use parking_lot::Mutex;
use tokio::time::sleep;
use transport_core::raftpb::{ENTRY_CACHE_BYTES, EntryCache, Message};

use crate::{environment::Environment, metrics::Metrics, outbound::Outbounds};

pub(crate) struct SentEntries {
    state: Mutex<State>,
    encodes: Counter,
}

struct State {
    cache: EntryCache,
    /// Whether nothing was sent since this was set.
    is_idle: bool,
}

impl SentEntries {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        SentEntries {
            state: Mutex::new(State {
                cache: EntryCache::new(ENTRY_CACHE_BYTES),
                is_idle: true,
            }),
            encodes: metrics.entry_encodes.clone(),
        }
    }

    /// The messages, with entries encoded that were not before. Those of all messages refer to the same bytes.
    pub(crate) fn share<'a>(&self, messages: &'a mut Vec<Message>) -> Outbounds<'a> {
        let mut state = self.state.lock();
        state.is_idle = false;
        let messages = Outbounds::new(messages, Some(&mut state.cache));
        let encoded = state.cache.take_encoded();
        drop(state);
        self.encodes.increment(encoded);
        messages
    }
}

/// Gives back what nobody asked for during a whole period of link heartbeats, until cancelled.
pub(crate) async fn give_back(env: Arc<Environment>) {
    let period = env.config.link_heartbeat_period();
    while (env.cancel.run_until_cancelled(sleep(period)).await).is_some() {
        let mut state = env.sent.state.lock();
        if mem::replace(&mut state.is_idle, true) {
            state.cache.clear();
        }
    }
}
