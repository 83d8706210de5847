//! Certificates for members on this machine, and the authority that signs them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use transport_http::tls::TlsSettings;

use crate::{cluster::Member, workspace::Outcome};

/// Signs the certificates of one cluster.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Authority {
    /// One whose files, and those of whom it signs for, are below `dir`.
    pub fn new(dir: &Path) -> Outcome<Authority> {
        let authority = Authority {
            issuer: issuer().map_err(unmade)?,
            dir: dir.to_path_buf(),
        };
        write(&authority.path(), &authority.issuer.pem())?;
        Ok(authority)
    }

    /// A certificate of its own for each name.
    pub fn issue(&self, name: &str) -> Outcome<Certificates> {
        let certificates = Certificates {
            certificate: self.dir.join(format!("{name}.pem")),
            key: self.dir.join(format!("{name}-key.pem")),
            authority: self.path(),
        };
        self.renew(&certificates)?;
        Ok(certificates)
    }

    /// Puts a new certificate with a new key where one is. Who trusted whom stays as it is.
    pub fn renew(&self, certificates: &Certificates) -> Outcome {
        let (certificate, key) = leaf(&self.issuer).map_err(unmade)?;
        write(&certificates.certificate, &certificate)?;
        write(&certificates.key, &key)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }
}

/// Files in PEM.
pub struct Certificates {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Certificates {
    /// Makes them below `dir`, with an authority of their own.
    pub fn new(dir: &Path) -> Outcome<Certificates> {
        Authority::new(dir)?.issue("member")
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

    /// Makes a server speak TLS with other members, with these files. Before its first start.
    pub fn give_to(&self, member: &mut Member) {
        let file = |flag: &str, path: &Path| format!("--peer-{flag}={}", path.display());
        member.peer_url = member.peer_url.replacen("http:", "https:", 1);
        member.extra.extend([
            file("cert-file", &self.certificate),
            file("key-file", &self.key),
            file("trusted-ca-file", &self.authority),
            "--peer-client-cert-auth".into(),
        ]);
    }
}

fn unmade(error: rcgen::Error) -> String {
    format!("cannot make certificates: {error}")
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn issuer() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "interop authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

/// Certificate and key.
fn leaf(issuer: &CertifiedIssuer<'static, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_string()])?;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
