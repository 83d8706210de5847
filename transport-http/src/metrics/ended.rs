//! Series of peers that are gone.
//!
//! The exporter cannot delete a series, so the series of a removed peer are hidden: whoever renders the metrics passes
//! the text through [`EndedSeries::strip`]. They come back, with what they had counted, when the peer does. Invariant:
//! a series is hidden only while nobody holds a handle to it; and strangers who introduce themselves get at most
//! [`INTRODUCED_MAX`] labels, whatever ids they claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use transport_core::MemberId;

/// Ids of introduced remotes that get series of their own, in the life of a transport.
pub(crate) const INTRODUCED_MAX: usize = 1024;
/// The label of those beyond.
const OTHER: &str = "other";
/// Where the id of a peer stands in a series.
const LABELS: [&str; 3] = ["Remote", "To", "From"];

/// The series of peers and remotes that are gone, which a scrape should not show. All clones are one.
#[derive(Clone, Default)]
pub struct EndedSeries(Arc<Mutex<Series>>);

#[derive(Default)]
struct Series {
    /// Labels in use, and by how many.
    live: BTreeMap<String, usize>,
    ended: BTreeSet<String>,
    introduced: BTreeSet<u64>,
}

/// The label of a peer. Once all of one peer are dropped, its series have ended.
pub(crate) struct RemoteLabel {
    label: String,
    series: EndedSeries,
}

impl RemoteLabel {
    pub(crate) fn as_str(&self) -> &str {
        &self.label
    }
}

impl Drop for RemoteLabel {
    fn drop(&mut self) {
        let mut series = self.series.0.lock();
        if let Some(count) = series.live.get_mut(&self.label) {
            *count -= 1;
            if *count == 0 {
                series.live.remove(&self.label);
                series.ended.insert(std::mem::take(&mut self.label));
            }
        }
    }
}

impl EndedSeries {
    pub(crate) fn begin(&self, id: MemberId) -> RemoteLabel {
        self.label(id.to_string())
    }

    pub(crate) fn begin_bounded(&self, id: MemberId) -> RemoteLabel {
        let mut series = self.0.lock();
        let known = series.introduced.contains(&id.0);
        let own = known || series.introduced.len() < INTRODUCED_MAX;
        if own {
            series.introduced.insert(id.0);
        }
        drop(series);
        self.label(if own {
            id.to_string()
        } else {
            OTHER.to_owned()
        })
    }

    fn label(&self, label: String) -> RemoteLabel {
        let mut series = self.0.lock();
        series.ended.remove(&label);
        *series.live.entry(label.clone()).or_default() += 1;
        RemoteLabel {
            label,
            series: self.clone(),
        }
    }

    /// The text of a scrape without the series of peers that are gone.
    pub fn strip(&self, text: String) -> String {
        let series = self.0.lock();
        if series.ended.is_empty() {
            return text;
        }
        let is_shown = |line: &&str| !is_ended(line, &series.ended);
        text.split_inclusive('\n').filter(is_shown).collect()
    }
}

fn is_ended(line: &str, ended: &BTreeSet<String>) -> bool {
    let of_a_peer = line.starts_with("etcd_network_") || line.starts_with("rafthttp_");
    let Some((_, labels)) = line.split_once('{').filter(|_| of_a_peer) else {
        return false;
    };
    // Ids and names of ours need no escapes, so a quote ends a value.
    let mut words = labels.split('"');
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        let name = name.trim_start_matches(',').trim_end_matches('=');
        if LABELS.contains(&name) && ended.contains(value) {
            return true;
        }
    }
    false
}

impl fmt::Debug for EndedSeries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EndedSeries")
            .field(&self.0.lock().ended)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE etcd_network_active_peers gauge\n\
        etcd_network_active_peers{Local=\"a\",Remote=\"b\"} 1\n\
        etcd_network_active_peers{Local=\"a\",Remote=\"c\"} 1\n\
        etcd_network_peer_round_trip_time_seconds_bucket{To=\"b\",le=\"+Inf\"} 4\n\
        rafthttp_queue_bytes{queue=\"b\",Remote=\"b\"} 0\n\
        other{To=\"b\"} 1\n";

    fn shown(series: &EndedSeries) -> Vec<usize> {
        let text = series.strip(TEXT.to_owned());
        let at = |line: &str| TEXT.lines().position(|known| known == line).unwrap();
        text.lines().map(at).collect()
    }

    #[test]
    fn a_series_is_hidden_while_nobody_has_it() {
        let series = EndedSeries::default();
        let (peer, remote) = (series.begin(MemberId(0xb)), series.begin(MemberId(0xb)));
        let _other = series.begin(MemberId(0xc));
        assert_eq!(shown(&series), [0, 1, 2, 3, 4, 5]);
        drop(peer);
        assert_eq!(shown(&series), [0, 1, 2, 3, 4, 5]);
        drop(remote);
        assert_eq!(shown(&series), [0, 2, 5]);
        let _back = series.begin(MemberId(0xb));
        assert_eq!(shown(&series), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn strangers_share_a_label_beyond_the_bound() {
        let series = EndedSeries::default();
        for id in 1..=INTRODUCED_MAX as u64 {
            assert_eq!(
                series.begin_bounded(MemberId(id)).as_str(),
                format!("{id:x}")
            );
        }
        assert_eq!(series.begin_bounded(MemberId(9999)).as_str(), OTHER);
        assert_eq!(series.begin_bounded(MemberId(7)).as_str(), "7");
        assert_eq!(series.begin(MemberId(9999)).as_str(), "270f");
    }
}
