//! An authority that signs members' certificates, and folders of files as `--peer-cert-file` and its like name them.

use std::{fs, path::PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SignatureAlgorithm, date_time_ymd,
};
use transport_http::tls::TlsSettings;

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says. By default it is a member's on this machine, good for ever.
#[derive(Clone, Copy)]
pub struct Leaf {
    pub common_name: &'static str,
    pub names: &'static [&'static str],
    pub serial: u8,
    pub expired: bool,
    pub keys: &'static SignatureAlgorithm,
}

pub const LEAF: Leaf = Leaf {
    common_name: "member",
    names: &["127.0.0.1"],
    serial: 7,
    expired: false,
    keys: &PKCS_ECDSA_P256_SHA256,
};

impl Authority {
    pub fn new(name: &str) -> Authority {
        Authority::with_keys(name, LEAF.keys)
    }

    /// With a key of this kind.
    pub fn with_keys(name: &str, keys: &'static SignatureAlgorithm) -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(keys).unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Certificate and key in PEM.
    pub fn issue(&self, leaf: Leaf) -> (String, String) {
        let names: Vec<String> = leaf.names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.common_name);
        params.serial_number = Some(vec![leaf.serial].into());
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        if leaf.expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate_for(leaf.keys).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// A revocation list in PEM and in DER.
    pub fn revoke(&self, serials: &[u8]) -> (String, Vec<u8>) {
        let (begin, end) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let entry = |serial: &u8| RevokedCertParams {
            serial_number: vec![*serial].into(),
            revocation_time: begin,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: begin,
            next_update: end,
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.0).unwrap();
        (list.pem().unwrap(), list.der().to_vec())
    }
}

/// The files of one member.
pub struct Files(tempfile::TempDir);

impl Files {
    /// A certificate, and `authority` as the one that is trusted.
    pub fn new(authority: &Authority, leaf: Leaf) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.put(authority, leaf);
        files
    }

    /// Replaces certificate, key and trusted authority.
    pub fn put(&self, authority: &Authority, leaf: Leaf) {
        let (certificate, key) = authority.issue(leaf);
        self.write("cert.pem", certificate);
        self.write("key.pem", key);
        self.write("ca.pem", authority.0.pem());
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Settings that name the files and demand certificates.
    pub fn settings(&self) -> TlsSettings {
        TlsSettings {
            cert_file: Some(self.path("cert.pem")),
            key_file: Some(self.path("key.pem")),
            trusted_ca_file: Some(self.path("ca.pem")),
            client_cert_auth: true,
            ..TlsSettings::default()
        }
    }
}
