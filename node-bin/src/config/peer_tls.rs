//! The settings of TLS between members, out of the flags that speak of it (etcd: server/embed/etcd.go,
//! `configurePeerListeners`).
//!
//! Depends on `settings` and on the transport's own rules. Invariant: what is returned lacks nothing but the files; and
//! a URL that is to be listened on with TLS has a certificate.

use std::path::PathBuf;

use transport_http::tls::{TlsSettings, TlsVersion};

use super::{
    LoadError,
    settings::{Note, Settings},
    url::{Scheme, Url},
    validate::invalid,
};

/// TLS between members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// As flags give them.
    pub(crate) settings: TlsSettings,
    /// Whether this member makes a certificate for itself.
    pub(crate) auto: bool,
    /// Years such a certificate is valid.
    pub(crate) self_signed_years: u64,
}

impl PeerTls {
    /// Whether there is a certificate, or will be.
    pub(crate) fn has_certificate(&self) -> bool {
        !self.settings.is_empty() || self.auto
    }

    /// Whether anything was said about TLS at all: then https URLs of others can be dialled.
    pub(crate) fn is_wanted(&self) -> bool {
        self.has_certificate() || self.settings.trusted_ca_file.is_some()
    }
}

/// Reads the settings and checks them against each other and against the URLs to listen on.
pub(super) fn read(
    settings: &Settings,
    listen: &[Url],
    notes: &mut Vec<Note>,
) -> Result<PeerTls, LoadError> {
    let file = |name| {
        let path = Some(settings.text_or_default(name)).filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    let version = |name| {
        TlsVersion::parse(settings.text_or_default(name))
            .map_err(|error| LoadError::Invalid(error.to_string()))
    };
    let tls = TlsSettings {
        cert_file: file("peer-cert-file"),
        key_file: file("peer-key-file"),
        client_cert_file: file("peer-client-cert-file"),
        client_key_file: file("peer-client-key-file"),
        trusted_ca_file: file("peer-trusted-ca-file"),
        crl_file: file("peer-crl-file"),
        client_cert_auth: settings.bool("peer-client-cert-auth"),
        allowed_cns: settings.list("peer-cert-allowed-cn"),
        allowed_hostnames: settings.list("peer-cert-allowed-hostname"),
        skip_client_san_verification: settings.bool("peer-skip-client-san-verification"),
        min_version: version("tls-min-version")?,
        max_version: version("tls-max-version")?,
        cipher_suites: settings.list("cipher-suites"),
        self_signed: false,
    };
    tls.check()
        .map_err(|error| LoadError::Invalid(error.to_string()))?;
    let auto = settings.bool("peer-auto-tls");
    if auto && !tls.is_empty() {
        notes.push(Note::PeerAutoTlsIgnored);
    }
    let tls = PeerTls {
        auto: auto && tls.is_empty(),
        self_signed_years: settings.uint("self-signed-cert-validity"),
        settings: tls,
    };
    check_urls(&tls, listen, notes)?;
    Ok(tls)
}

fn check_urls(tls: &PeerTls, listen: &[Url], notes: &mut Vec<Note>) -> Result<(), LoadError> {
    for url in listen {
        if url.scheme().is_secure() && !tls.has_certificate() {
            return invalid(format!(
                "cannot listen on TLS for {}: KeyFile and CertFile are not presented",
                url.address()
            ));
        }
        if url.scheme() == Scheme::Http && tls.has_certificate() {
            notes.push(Note::PeerCertificateUnused(url.to_string()));
        }
        if url.scheme() == Scheme::Http && tls.settings.client_cert_auth {
            notes.push(Note::PeerCertAuthUnused(url.to_string()));
        }
    }
    Ok(())
}
