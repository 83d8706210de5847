//! The handshake itself, in both directions.
//!
//! It goes over whatever bytes a connector or an acceptor of another kind yields, plain TCP unless something else is
//! given. ALPN stays empty: a peer port speaks HTTP/1.1 and nothing else. Invariant: a connection that leaves here has passed
//! every check; one that does not is counted by cause on the side where it failed.

use std::{fmt, io, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible,
    pki_types::{CertificateDer, ServerName},
};
use tokio::net::TcpListener;

use super::{Tls, certificate::Names, verify::unreadable};
use crate::{
    handshake::{HandshakeCause, HandshakeError},
    net::{Accepted, Acceptor, BoxFuture, BoxIo, Connector, PeerUrl, TcpConnector},
};

/// Opens connections to peers: TLS to an https URL, nothing but what is underneath to an http one.
#[derive(Clone)]
pub struct TlsConnector {
    inner: Arc<dyn Connector>,
    tls: Tls,
}

impl TlsConnector {
    /// A connector with these certificates, over TCP.
    pub fn new(tls: Tls) -> Self {
        TlsConnector::over(Arc::new(TcpConnector::default()), tls)
    }

    /// A connector with these certificates, over what `inner` opens; it is given the http form of each URL.
    pub fn over(inner: Arc<dyn Connector>, tls: Tls) -> Self {
        TlsConnector { inner, tls }
    }
}

impl Connector for TlsConnector {
    fn connect<'a>(
        &'a self,
        url: &'a PeerUrl,
        user_timeout: Duration,
    ) -> BoxFuture<'a, io::Result<BoxIo>> {
        if !url.is_https() {
            return self.inner.connect(url, user_timeout);
        }
        Box::pin(async move {
            let io = self.inner.connect(&url.to_plain(), user_timeout).await?;
            self.tls.connect(io, url).await.map_err(|error| {
                self.tls.dial_failures().dialled(url, &error);
                io::Error::other(error)
            })
        })
    }
}

impl fmt::Debug for TlsConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsConnector").field(&self.tls).finish()
    }
}

/// Accepts TLS connections of peers, on a listening socket or over whatever else accepts connections.
#[derive(Debug)]
pub struct TlsAcceptor<A = TcpListener> {
    inner: A,
    tls: Tls,
}

impl<A: Acceptor> TlsAcceptor<A> {
    /// An acceptor that shows this certificate to whom `inner` accepts.
    pub fn new(inner: A, tls: Tls) -> Self {
        TlsAcceptor { inner, tls }
    }
}

impl<A: Acceptor> Acceptor for TlsAcceptor<A> {
    async fn accept(&mut self, user_timeout: Duration) -> io::Result<Accepted> {
        let Accepted { remote, handshake } = self.inner.accept_to_wrap(user_timeout).await?;
        let tls = self.tls.clone();
        Ok(Accepted {
            remote,
            handshake: Box::pin(async move { tls.accept(handshake.await?, remote.ip()).await }),
        })
    }
}

impl Tls {
    async fn connect(&self, io: BoxIo, url: &PeerUrl) -> Result<BoxIo, HandshakeError> {
        let name = ServerName::try_from(url.host().to_owned()).map_err(|error| {
            HandshakeError::new(
                HandshakeCause::Name,
                format!("{} cannot be in a certificate: {error}", url.host()),
            )
        })?;
        let config = self.current().await.client.clone();
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, io)
            .await
            .map_err(|error| {
                failure(
                    error,
                    "the other side's URL says https and its port is plain",
                )
            })?;
        Ok(Box::new(stream))
    }

    async fn accept(&self, io: BoxIo, remote: IpAddr) -> Result<BoxIo, HandshakeError> {
        let Some(config) = self.current().await.server.clone() else {
            return Err(HandshakeError::new(
                HandshakeCause::BadCertificate,
                "this member has no certificate",
            ));
        };
        let stream = tokio_rustls::TlsAcceptor::from(config)
            .accept(io)
            .await
            .map_err(|error| {
                failure(
                    error,
                    "its URL of this member says http, and this member's says https",
                )
            })?;
        let (_, session) = stream.get_ref();
        if let Some([own, ..]) = session.peer_certificates() {
            self.check_origin(own, remote).await?;
        }
        Ok(Box::new(stream))
    }

    async fn check_origin(
        &self,
        own: &CertificateDer<'_>,
        remote: IpAddr,
    ) -> Result<(), HandshakeError> {
        if self.settings().skip_client_san_verification {
            return Ok(());
        }
        let names = Names::read(own).map_err(unreadable)?;
        self.lookups().check(&names, remote).await
    }
}

/// Names the cause of a failed handshake; `plain` is what to say when the other side speaks no TLS at all.
fn failure(error: io::Error, plain: &str) -> HandshakeError {
    let Some(tls) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    else {
        return HandshakeError::new(HandshakeCause::Closed, error.to_string());
    };
    if let Error::InvalidCertificate(CertificateError::Other(other)) = tls
        && let Some(own) = other.0.downcast_ref::<HandshakeError>()
    {
        return own.clone();
    }
    let cause = cause(tls);
    let message = match cause {
        HandshakeCause::SchemeMismatch => format!("the other side does not speak TLS: {plain}"),
        HandshakeCause::Refused => format!("refused by the other side: {tls}"),
        _ => format!("tls: {tls}"),
    };
    HandshakeError::new(cause, message)
}

fn cause(error: &Error) -> HandshakeCause {
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => HandshakeCause::SchemeMismatch,
        Error::NoCertificatesPresented => HandshakeCause::NoCertificate,
        Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
            HandshakeCause::BadCertificate
        }
        Error::PeerIncompatible(_) => HandshakeCause::Incompatible,
        Error::AlertReceived(
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
        ) => HandshakeCause::Incompatible,
        Error::AlertReceived(_) => HandshakeCause::Refused,
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer => HandshakeCause::UnknownAuthority,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => HandshakeCause::Expired,
            CertificateError::Revoked => HandshakeCause::Revoked,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                HandshakeCause::Name
            }
            _ => HandshakeCause::BadCertificate,
        },
        _ => HandshakeCause::Protocol,
    }
}
