//! The errors of the public API.

use std::{io, time::Duration};

use transport_core::{MemberId, http1::HttpError};

/// Why a transport did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its tasks need a tokio runtime.
    #[error("start the transport inside a tokio runtime: {0}")]
    NoRuntime(#[from] tokio::runtime::TryCurrentError),
    /// The local member id is 0, which means "nobody" in raft.
    #[error("the local member id is 0")]
    NoMemberId,
    /// A setting that cannot work.
    #[error("{0} must be greater than zero")]
    Zero(&'static str),
}

/// A peer URL that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No URL at all.
    #[error("a peer needs at least one URL")]
    None,
    /// Neither http nor https.
    #[error("peer URL {0:?}: the scheme must be http or https")]
    Scheme(String),
    /// Not `host:port`.
    #[error("peer URL {0:?}: give host and port, as in http://10.0.0.1:2380")]
    HostPort(String),
    /// etcd refuses peer URLs with anything behind the port.
    #[error("peer URL {0:?}: nothing may follow the port")]
    Path(String),
}

/// The owner must stop the member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CriticalError {
    /// A peer says that this member was removed from the cluster.
    #[error("the member has been permanently removed from the cluster (said by {by})")]
    Removed {
        /// The peer that said so.
        by: MemberId,
    },
}

/// Why a request to another member failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// No connection.
    #[error("cannot connect to {url}: {source}")]
    Connect {
        /// Whom.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// The other side took too long.
    #[error("{url}: no {what} within {after:?}")]
    Deadline {
        /// Whom.
        url: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("{url}: {source}")]
    Http {
        /// Whom.
        url: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The connection of a stream broke.
    #[error("{url}: {source}")]
    Broken {
        /// Whom.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// What came on the connection of a stream was not HTTP.
    #[error("{url}: {source}")]
    Protocol {
        /// Whom.
        url: String,
        /// What is wrong with it.
        source: HttpError,
    },
    /// The answer is longer than the caller allows.
    #[error("{url}: the answer exceeds {limit} bytes")]
    TooLong {
        /// Whom.
        url: String,
        /// The caller's limit.
        limit: usize,
    },
    /// The request could not be built.
    #[error("cannot build the request to {url}: {source}")]
    Request {
        /// Whom.
        url: String,
        /// What is wrong with it.
        source: http::Error,
    },
}
