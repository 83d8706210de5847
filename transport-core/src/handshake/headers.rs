//! The headers of peer requests: what we send and what we read.
//!
//! etcd: rafthttp/util.go, `createPostRequest` and `setPeerURLsHeader`; rafthttp/stream.go, `dial`.

use http::{HeaderMap, HeaderValue, header::HeaderName};

use super::{MIN_CLUSTER_VERSION, Version, VersionError};
use crate::{ClusterId, MemberId};

/// Member id of the sender of a request.
pub const SERVER_FROM_HEADER: HeaderName = HeaderName::from_static("x-server-from");
/// Server version of whoever sends the request or the answer.
pub const SERVER_VERSION_HEADER: HeaderName = HeaderName::from_static("x-server-version");
/// The oldest cluster version the sender of a request works with.
pub const MIN_CLUSTER_VERSION_HEADER: HeaderName = HeaderName::from_static("x-min-cluster-version");
/// Cluster id of whoever sends the request or the answer.
pub const CLUSTER_ID_HEADER: HeaderName = HeaderName::from_static("x-etcd-cluster-id");
/// Member id a stream request is meant for.
pub const RAFT_TO_HEADER: HeaderName = HeaderName::from_static("x-raft-to");
/// Advertised peer URLs of the sender, joined by commas.
pub const PEER_URLS_HEADER: HeaderName = HeaderName::from_static("x-peerurls");

/// Longest list of URLs taken from one request; real members have a handful.
const PEER_URLS_MAX: usize = 32;

/// What a server that sends no version is taken for.
const UNVERSIONED: Version = Version::new(2, 0, 0);

/// Who we are to our peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Our member id.
    pub id: MemberId,
    /// Our cluster's id.
    pub cluster_id: ClusterId,
    /// The version we announce; peers compare its major and minor numbers.
    pub server_version: Version,
    /// The oldest cluster version we announce to work with: 3.0.0 in every release from 3.4 to 3.8.
    pub min_cluster_version: Version,
    /// The peer URLs we advertise; none: the header is left out.
    pub peer_urls: Vec<String>,
}

impl Identity {
    /// An identity with etcd's minimum version and without advertised URLs.
    pub fn new(id: MemberId, cluster_id: ClusterId, server_version: Version) -> Self {
        Identity {
            id,
            cluster_id,
            server_version,
            min_cluster_version: MIN_CLUSTER_VERSION,
            peer_urls: Vec::new(),
        }
    }

    /// Headers of every request to a peer; `to` is given for streams only.
    pub fn request_headers(&self, to: Option<MemberId>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_FROM_HEADER, value(self.id));
        headers.insert(SERVER_VERSION_HEADER, value(self.server_version));
        headers.insert(MIN_CLUSTER_VERSION_HEADER, value(self.min_cluster_version));
        headers.insert(CLUSTER_ID_HEADER, value(self.cluster_id));
        if let Some(to) = to {
            headers.insert(RAFT_TO_HEADER, value(to));
        }
        let urls = HeaderValue::try_from(self.peer_urls.join(","));
        if let Ok(urls) = urls
            && !urls.is_empty()
        {
            headers.insert(PEER_URLS_HEADER, urls);
        }
        headers
    }

    /// Headers of a stream that is accepted with 200. A Go dialler that misses the version hangs.
    pub fn stream_headers(&self) -> HeaderMap {
        let mut headers = self.cluster_headers();
        headers.insert(SERVER_VERSION_HEADER, value(self.server_version));
        headers
    }

    /// Headers of a message or snapshot that is accepted with 204.
    pub fn cluster_headers(&self) -> HeaderMap {
        HeaderMap::from_iter([(CLUSTER_ID_HEADER, value(self.cluster_id))])
    }
}

/// Ids and versions print as ASCII, which every header may hold.
pub(super) fn value(text: impl ToString) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The peer headers of a request or an answer, read leniently: absent and unreadable ones are told apart
/// only where the rules do.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(&'a HeaderMap);

impl<'a> Headers<'a> {
    /// Reads from these headers.
    pub fn new(headers: &'a HeaderMap) -> Self {
        Headers(headers)
    }

    /// Version of the sender; 2.0.0 when it names none.
    pub fn server_version(self) -> Result<Version, VersionError> {
        self.version(&SERVER_VERSION_HEADER)
    }

    /// Oldest cluster version the sender works with; 2.0.0 when it names none.
    pub fn min_cluster_version(self) -> Result<Version, VersionError> {
        self.version(&MIN_CLUSTER_VERSION_HEADER)
    }

    /// Cluster id as sent. It is compared as text: only the canonical form is right.
    pub fn cluster_id(self) -> Option<&'a str> {
        self.text(&CLUSTER_ID_HEADER)
    }

    /// Member id the request is meant for, as sent. It is compared as text too.
    pub fn raft_to(self) -> Option<&'a str> {
        self.text(&RAFT_TO_HEADER)
    }

    /// Member id of the sender, if it is one.
    pub fn server_from(self) -> Option<MemberId> {
        self.text(&SERVER_FROM_HEADER)?.parse().ok()
    }

    /// Peer URLs of the sender: at most 32, unchecked, empty when the header is absent.
    pub fn peer_urls(self) -> Vec<String> {
        let text = self.text(&PEER_URLS_HEADER).unwrap_or_default();
        let urls = text.split(',').filter(|url| !url.is_empty());
        urls.take(PEER_URLS_MAX).map(str::to_owned).collect()
    }

    fn version(self, name: &HeaderName) -> Result<Version, VersionError> {
        match self.0.get(name) {
            // Go reads an empty header as an absent one.
            None => Ok(UNVERSIONED),
            Some(value) if value.is_empty() => Ok(UNVERSIONED),
            Some(value) => value.to_str().unwrap_or("not text").parse(),
        }
    }

    fn text(self, name: &HeaderName) -> Option<&'a str> {
        self.0.get(name)?.to_str().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_what_go_members_look_for() {
        let mut identity = Identity::new(
            MemberId(0x5772_99c1_7ddd_c6e8),
            ClusterId(0x0e28_7c36_e4a5_3caa),
            Version::new(3, 5, 1),
        );
        let headers = identity.request_headers(None);
        assert!(!headers.contains_key(PEER_URLS_HEADER));
        assert!(!headers.contains_key(RAFT_TO_HEADER));
        identity.peer_urls = vec!["http://a:1".into(), "http://b:2".into()];
        let headers = identity.request_headers(Some(MemberId(0xb66b_2921_ec55_2136)));
        for (name, text) in [
            ("X-Server-From", "577299c17dddc6e8"),
            ("X-Server-Version", "3.5.1"),
            ("X-Min-Cluster-Version", "3.0.0"),
            ("X-Etcd-Cluster-ID", "e287c36e4a53caa"),
            ("X-Raft-To", "b66b2921ec552136"),
            ("X-PeerURLs", "http://a:1,http://b:2"),
        ] {
            assert_eq!(headers.get(name).unwrap(), text, "{name}");
        }
        assert_eq!(headers.len(), 6);
        assert_eq!(Headers::new(&headers).peer_urls(), identity.peer_urls);
        assert_eq!(Headers::new(&headers).server_from(), Some(identity.id));
    }

    #[test]
    fn absent_and_empty_versions_are_two_zero() {
        let mut headers = HeaderMap::new();
        assert_eq!(Headers::new(&headers).server_version(), Ok(UNVERSIONED));
        headers.insert(SERVER_VERSION_HEADER, HeaderValue::from_static(""));
        assert_eq!(Headers::new(&headers).server_version(), Ok(UNVERSIONED));
        headers.insert(SERVER_VERSION_HEADER, HeaderValue::from_static("3.6"));
        assert!(Headers::new(&headers).server_version().is_err());
        let not_text = HeaderValue::from_bytes(&[0xff]).unwrap();
        headers.insert(SERVER_VERSION_HEADER, not_text);
        assert!(Headers::new(&headers).server_version().is_err());
    }
}
