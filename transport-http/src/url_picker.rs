//! Which of a peer's URLs is used next.
//!
//! One per peer, shared by its stream readers, pipeline and snapshot sender. Invariant: the pick only moves away from
//! a URL that failed or lost the race, and several failures on one URL rotate once.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::net::PeerUrl;

/// etcd: server/etcdserver/api/rafthttp/urlpick.go, `urlPicker`.
pub(crate) struct UrlPicker {
    state: Mutex<State>,
}

struct State {
    urls: Vec<Arc<PeerUrl>>,
    picked: usize,
}

impl UrlPicker {
    /// `urls` is sorted and not empty ([`PeerUrl::parse_list`]).
    pub(crate) fn new(urls: Vec<PeerUrl>) -> Self {
        debug_assert!(!urls.is_empty());
        UrlPicker {
            state: Mutex::new(State {
                urls: urls.into_iter().map(Arc::new).collect(),
                picked: 0,
            }),
        }
    }

    /// Replaces the list; the pick starts over.
    pub(crate) fn update(&self, urls: Vec<PeerUrl>) {
        debug_assert!(!urls.is_empty());
        let mut state = self.state.lock();
        state.urls = urls.into_iter().map(Arc::new).collect();
        state.picked = 0;
    }

    /// The URL in use.
    pub(crate) fn pick(&self) -> Arc<PeerUrl> {
        let state = self.state.lock();
        Arc::clone(&state.urls[state.picked])
    }

    /// All URLs, the one in use first and then in the order of rotation.
    pub(crate) fn candidates(&self) -> Vec<Arc<PeerUrl>> {
        let state = self.state.lock();
        let (before, from) = state.urls.split_at(state.picked);
        from.iter().chain(before).map(Arc::clone).collect()
    }

    /// `url` works: it is the one in use, unless the list has changed.
    pub(crate) fn prefer(&self, url: &PeerUrl) {
        let mut state = self.state.lock();
        if let Some(at) = state.urls.iter().position(|known| **known == *url) {
            state.picked = at;
        }
    }

    /// `url` failed: go on to the next one, unless somebody else has done so.
    pub(crate) fn unreachable(&self, url: &PeerUrl) {
        let mut state = self.state.lock();
        if *state.urls[state.picked] == *url {
            state.picked = (state.picked + 1) % state.urls.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picker(urls: &[&str]) -> UrlPicker {
        UrlPicker::new(PeerUrl::parse_list(urls).unwrap())
    }

    #[test]
    fn the_pick_is_stable() {
        let picker = picker(&["http://127.0.0.1:7001", "http://127.0.0.1:2380"]);
        assert_eq!(picker.pick().as_str(), "http://127.0.0.1:2380");
        assert_eq!(picker.pick().as_str(), "http://127.0.0.1:2380");
    }

    #[test]
    fn an_unreachable_url_rotates_once() {
        let picker = picker(&["http://a:1", "http://b:1"]);
        let first = picker.pick();
        picker.unreachable(&first);
        picker.unreachable(&first);
        let second = picker.pick();
        assert_eq!(second.as_str(), "http://b:1");
        picker.unreachable(&second);
        assert_eq!(picker.pick().as_str(), "http://a:1");
    }

    #[test]
    fn the_preferred_url_is_in_use_and_the_first_candidate() {
        let picker = picker(&["http://a:1", "http://b:1", "http://c:1"]);
        picker.prefer(&PeerUrl::parse("http://b:1").unwrap());
        assert_eq!(picker.pick().as_str(), "http://b:1");
        let candidates = picker.candidates();
        let candidates: Vec<_> = candidates.iter().map(|url| url.as_str()).collect();
        assert_eq!(candidates, ["http://b:1", "http://c:1", "http://a:1"]);
        picker.prefer(&PeerUrl::parse("http://gone:1").unwrap());
        assert_eq!(picker.pick().as_str(), "http://b:1");
    }

    #[test]
    fn an_update_starts_over() {
        let picker = picker(&["http://a:1", "http://b:1"]);
        picker.unreachable(&picker.pick());
        picker.update(PeerUrl::parse_list(&["http://d:1", "http://c:1"]).unwrap());
        assert_eq!(picker.pick().as_str(), "http://c:1");
        picker.unreachable(&PeerUrl::parse("http://a:1").unwrap());
        assert_eq!(picker.pick().as_str(), "http://c:1");
    }
}
