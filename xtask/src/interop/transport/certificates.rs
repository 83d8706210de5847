//! A certificate for members on this machine, and the authority that signed it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use transport_http::tls::TlsSettings;

use crate::workspace::Outcome;

/// Files in PEM.
pub struct Certificates {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Certificates {
    /// Makes them below `dir`.
    pub fn new(dir: &Path) -> Outcome<Certificates> {
        let (certificate, key, authority) =
            issue().map_err(|error| format!("cannot make certificates: {error}"))?;
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            fs::write(&path, text)
                .map(|()| path.clone())
                .map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        Ok(Certificates {
            certificate: write("cert.pem", certificate)?,
            key: write("key.pem", key)?,
            authority: write("ca.pem", authority)?,
        })
    }

    /// For our side: as etcd's peer flags with these files, and a certificate asked of everybody.
    pub fn settings(&self) -> TlsSettings {
        TlsSettings {
            cert_file: Some(self.certificate.clone()),
            key_file: Some(self.key.clone()),
            trusted_ca_file: Some(self.authority.clone()),
            client_cert_auth: true,
            ..TlsSettings::default()
        }
    }
}

fn issue() -> Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "interop authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_string()])?;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    Ok((certificate.pem(), key.serialize_pem(), authority.pem()))
}
