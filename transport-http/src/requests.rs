//! Requests to peers: the identity headers, the host and the path.

use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use transport_core::{MemberId, handshake::Identity};

use crate::{body::RequestBody, net::PeerUrl};

/// A request that tells the peer who asks; `to` is given for streams only. `path` consists of characters a path
/// may have.
pub(crate) fn request(
    identity: &Identity,
    method: Method,
    url: &PeerUrl,
    path: &str,
    to: Option<MemberId>,
    body: RequestBody,
) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse::<Uri>().unwrap_or_default();
    *request.headers_mut() = identity.request_headers(to);
    insert_host(request.headers_mut(), url);
    request
}

/// The host as it stands in the URL.
pub(crate) fn insert_host(headers: &mut HeaderMap, url: &PeerUrl) {
    // The URL was checked: letters, digits and `.-_:[]` only.
    if let Ok(host) = HeaderValue::from_str(url.authority()) {
        headers.insert(header::HOST, host);
    }
}
