//! What can go wrong between accepting or dialling a connection and its first request, counted and logged.
//!
//! Acceptors and connectors report a [`HandshakeError`]; whoever drives them passes it to [`HandshakeFailures`], so that
//! each failure is counted by cause and at most one line per cause is logged in a while. Invariant: causes are a closed
//! list, so a stranger at the port cannot make series or floods of log lines.

use std::{net::SocketAddr, sync::OnceLock};

use metrics::Counter;

use crate::{
    config::SharedRecorder,
    log_gate::LogGate,
    metrics::{HANDSHAKE_FAILURES, counter},
    net::PeerUrl,
};

/// Why a connection did not become usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeCause {
    /// It took too long.
    Timeout,
    /// The connection ended.
    Closed,
    /// One side speaks TLS and the other does not.
    SchemeMismatch,
    /// The other side showed no certificate.
    NoCertificate,
    /// Nobody trusted has signed the other side's certificate.
    UnknownAuthority,
    /// The other side's certificate is expired or not valid yet.
    Expired,
    /// The other side's certificate was revoked.
    Revoked,
    /// The other side's certificate is for somebody else.
    Name,
    /// The other side's certificate cannot be used for another reason.
    BadCertificate,
    /// No TLS version or cipher suite in common.
    Incompatible,
    /// The other side did not want us.
    Refused,
    /// Anything else that breaks the rules of TLS.
    Protocol,
}

impl HandshakeCause {
    /// All of them, in declaration order.
    pub const ALL: [HandshakeCause; 12] = [
        HandshakeCause::Timeout,
        HandshakeCause::Closed,
        HandshakeCause::SchemeMismatch,
        HandshakeCause::NoCertificate,
        HandshakeCause::UnknownAuthority,
        HandshakeCause::Expired,
        HandshakeCause::Revoked,
        HandshakeCause::Name,
        HandshakeCause::BadCertificate,
        HandshakeCause::Incompatible,
        HandshakeCause::Refused,
        HandshakeCause::Protocol,
    ];

    /// Its name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            HandshakeCause::Timeout => "timeout",
            HandshakeCause::Closed => "closed",
            HandshakeCause::SchemeMismatch => "scheme_mismatch",
            HandshakeCause::NoCertificate => "no_certificate",
            HandshakeCause::UnknownAuthority => "unknown_authority",
            HandshakeCause::Expired => "expired",
            HandshakeCause::Revoked => "revoked",
            HandshakeCause::Name => "name",
            HandshakeCause::BadCertificate => "bad_certificate",
            HandshakeCause::Incompatible => "incompatible",
            HandshakeCause::Refused => "refused",
            HandshakeCause::Protocol => "protocol",
        }
    }
}

/// A connection that did not become usable: the cause, and what happened in words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HandshakeError {
    /// For metrics, and for who wants to tell them apart.
    pub cause: HandshakeCause,
    /// What happened.
    pub message: String,
}

impl HandshakeError {
    /// An error with its cause.
    pub fn new(cause: HandshakeCause, message: impl Into<String>) -> Self {
        HandshakeError {
            cause,
            message: message.into(),
        }
    }
}

/// Which side of a connection this member was.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    Accept,
    Dial,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Accept => "accept",
            Side::Dial => "dial",
        }
    }
}

/// Counts failures by cause, and lets a log line through now and then.
pub(crate) struct HandshakeFailures {
    recorder: SharedRecorder,
    side: Side,
    causes: [Cause; CAUSES],
}

const CAUSES: usize = HandshakeCause::ALL.len();

#[derive(Default)]
struct Cause {
    /// Resolved when the cause is met first: most never are.
    counter: OnceLock<Counter>,
    gate: LogGate,
}

impl HandshakeFailures {
    pub(crate) fn new(recorder: SharedRecorder, side: Side) -> Self {
        HandshakeFailures {
            recorder,
            side,
            causes: Default::default(),
        }
    }

    /// A connection somebody else opened.
    pub(crate) fn accepted(&self, remote: SocketAddr, error: &HandshakeError) {
        self.count(error.cause);
        // A check whether the port is open looks like this; etcd too is silent about it.
        if error.cause == HandshakeCause::Closed {
            tracing::debug!("remote-addr" = %remote, error = %error, "rejected connection on peer endpoint");
        } else if let Some(held_back) = self.gate(error.cause).open() {
            tracing::warn!(
                "remote-addr" = %remote,
                cause = error.cause.as_str(),
                error = %error,
                "held-back" = held_back,
                "rejected connection on peer endpoint"
            );
        }
    }

    /// A connection this member opened.
    pub(crate) fn dialled(&self, url: &PeerUrl, error: &HandshakeError) {
        self.count(error.cause);
        if let Some(held_back) = self.gate(error.cause).open() {
            tracing::warn!(
                url = %url,
                cause = error.cause.as_str(),
                error = %error,
                "held-back" = held_back,
                "TLS handshake with a peer failed"
            );
        }
    }

    fn gate(&self, cause: HandshakeCause) -> &LogGate {
        // In declaration order, as `ALL` lists them.
        &self.causes[cause as usize].gate
    }

    fn count(&self, cause: HandshakeCause) {
        let counted = self.causes[cause as usize].counter.get_or_init(|| {
            let labels = [("side", self.side.name()), ("cause", cause.as_str())];
            counter(&self.recorder, HANDSHAKE_FAILURES, &labels)
        });
        counted.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_listed_in_declaration_order() {
        for (at, cause) in HandshakeCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
        }
    }
}
