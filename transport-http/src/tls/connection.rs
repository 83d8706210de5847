//! The handshake itself, in both directions.
//!
//! ALPN stays empty: a peer port speaks HTTP/1.1 and nothing else. Invariant: a connection that leaves here has passed
//! every check; one that does not is counted by cause on the side where it failed.

use std::{io, time::Duration};

use rustls::{
    AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible,
    pki_types::{CertificateDer, ServerName},
};
use tokio::net::{TcpListener, TcpStream};

use super::{Tls, certificate::Names, verify::unreadable};
use crate::{
    handshake::{HandshakeCause, HandshakeError},
    net::{Accepted, Acceptor, BoxFuture, BoxIo, Connector, PeerUrl, TcpConnector, tune},
};

/// Opens connections to peers: TLS to an https URL, plain TCP to an http one.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    tcp: TcpConnector,
    tls: Tls,
}

impl TlsConnector {
    /// A connector with these certificates.
    pub fn new(tls: Tls) -> Self {
        TlsConnector {
            tcp: TcpConnector::default(),
            tls,
        }
    }
}

impl Connector for TlsConnector {
    fn connect<'a>(
        &'a self,
        url: &'a PeerUrl,
        user_timeout: Duration,
    ) -> BoxFuture<'a, io::Result<BoxIo>> {
        if !url.is_https() {
            return self.tcp.connect(url, user_timeout);
        }
        Box::pin(async move {
            let stream = self.tcp.open(url.host(), url.port(), user_timeout).await?;
            self.tls.connect(stream, url).await.map_err(|error| {
                self.tls.dial_failures().dialled(url, &error);
                io::Error::other(error)
            })
        })
    }
}

/// Accepts TLS connections of peers on a listening socket.
#[derive(Debug)]
pub struct TlsAcceptor {
    listener: TcpListener,
    tls: Tls,
}

impl TlsAcceptor {
    /// An acceptor that shows this certificate.
    pub fn new(listener: TcpListener, tls: Tls) -> Self {
        TlsAcceptor { listener, tls }
    }
}

impl Acceptor for TlsAcceptor {
    async fn accept(&mut self, user_timeout: Duration) -> io::Result<Accepted> {
        let (stream, remote) = self.listener.accept().await?;
        // A peer that is gone already fails here; the handshake then ends by itself.
        let _ = tune(&stream, user_timeout);
        let tls = self.tls.clone();
        Ok(Accepted {
            remote,
            handshake: Box::pin(async move { tls.accept(stream, remote.ip()).await }),
        })
    }
}

impl Tls {
    async fn connect(&self, stream: TcpStream, url: &PeerUrl) -> Result<BoxIo, HandshakeError> {
        let name = ServerName::try_from(url.host().to_owned()).map_err(|error| {
            HandshakeError::new(
                HandshakeCause::Name,
                format!("{} cannot be in a certificate: {error}", url.host()),
            )
        })?;
        let config = self.current().await.client.clone();
        let stream = tokio_rustls::TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| {
                failure(
                    error,
                    "the other side's URL says https and its port is plain",
                )
            })?;
        Ok(Box::new(stream))
    }

    async fn accept(
        &self,
        stream: TcpStream,
        remote: std::net::IpAddr,
    ) -> Result<BoxIo, HandshakeError> {
        let Some(config) = self.current().await.server.clone() else {
            return Err(HandshakeError::new(
                HandshakeCause::BadCertificate,
                "this member has no certificate",
            ));
        };
        let stream = tokio_rustls::TlsAcceptor::from(config)
            .accept(stream)
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
        remote: std::net::IpAddr,
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
