//! Who is on the other side: the chain by webpki's rules, then the names and the revocation list by etcd's.
//!
//! etcd applies the allowed names to both directions, and so do we; the revocation list too, which etcd consults for
//! incoming connections only. Invariant: with a certificate this member made for itself nothing is verified, and
//! everywhere else everything.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::certificate::{Names, Revoked, serial};
use crate::handshake::{HandshakeCause, HandshakeError};

/// Rules about a certificate whose chain is good.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) common_names: Vec<String>,
    pub(super) hostnames: Vec<String>,
    pub(super) revoked: Option<Revoked>,
}

impl Rules {
    /// Judges the certificates the other side showed, its own first.
    pub(super) fn check(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<(), HandshakeError> {
        self.check_names(own)?;
        let Some(revoked) = &self.revoked else {
            return Ok(());
        };
        for certificate in std::iter::once(own).chain(others) {
            let serial = serial(certificate).map_err(unreadable)?;
            if revoked.contains(&serial) {
                let serial: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
                return Err(HandshakeError::new(
                    HandshakeCause::Revoked,
                    format!("transport: certificate serial {serial} revoked"),
                ));
            }
        }
        Ok(())
    }

    fn check_names(&self, own: &CertificateDer<'_>) -> Result<(), HandshakeError> {
        if self.common_names.is_empty() && self.hostnames.is_empty() {
            return Ok(());
        }
        let names = Names::read(own).map_err(unreadable)?;
        if self.common_names.contains(&names.common_name)
            || self.hostnames.iter().any(|name| is_for(own, &names, name))
        {
            return Ok(());
        }
        Err(HandshakeError::new(
            HandshakeCause::Name,
            format!(
                "client certificate authentication failed: common name {:?}, DNS names {:?} and addresses {:?} are not allowed",
                names.common_name, names.dns, names.ips
            ),
        ))
    }
}

/// Whether a certificate is valid for a host name or an address. A name with a wildcard must be in it as it stands.
fn is_for(certificate: &CertificateDer<'_>, names: &Names, host: &str) -> bool {
    match ServerName::try_from(host) {
        Ok(name) => ParsedCertificate::try_from(certificate)
            .and_then(|certificate| verify_server_name(&certificate, &name))
            .is_ok(),
        Err(_) => names.dns.iter().any(|name| name.eq_ignore_ascii_case(host)),
    }
}

pub(super) fn unreadable(reason: String) -> HandshakeError {
    HandshakeError::new(
        HandshakeCause::BadCertificate,
        format!("the certificate of the other side cannot be read: {reason}"),
    )
}

fn refused(error: HandshakeError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// What the traits of both directions have in common: signatures are judged as the chain's own verifier does.
macro_rules! signatures_as_the_chain {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.chain
                .verify_tls12_signature(message, certificate, signed)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.chain
                .verify_tls13_signature(message, certificate, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.chain.supported_verify_schemes()
        }
    };
}

/// Verifies who connects.
pub(super) struct ClientVerifier {
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    pub(super) rules: Arc<Rules>,
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(own, others, now)?;
        self.rules.check(own, others).map_err(refused)?;
        Ok(verified)
    }

    signatures_as_the_chain!();
}

/// Verifies to whom we connect.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) chain: Arc<WebPkiServerVerifier>,
    pub(super) rules: Arc<Rules>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .chain
            .verify_server_cert(own, others, name, ocsp, now)?;
        self.rules.check(own, others).map_err(refused)?;
        Ok(verified)
    }

    signatures_as_the_chain!();
}

/// Takes any server for what it says it is.
///
/// The signature is not looked at either: it only proves that the other side has the key of a certificate that nobody
/// vouches for, which whoever sits in between would prove as well. That makes Go's members usable, whose own
/// certificates have P-521 keys, for which there is no implementation here.
#[derive(Debug)]
pub(super) struct AnyServer {
    pub(super) schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let mut schemes = self.schemes.clone();
        schemes.push(SignatureScheme::ECDSA_NISTP521_SHA512);
        schemes
    }
}

/// Trusts nobody: what there is when neither a file nor the system names an authority.
#[derive(Debug)]
pub(super) struct NoServer {
    pub(super) schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for NoServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}
