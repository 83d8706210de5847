//! What peer TLS is told: files, who may come in, versions and suites; and etcd's rules about them.
//!
//! Plain data. Invariant: [`TlsSettings::check`] touches neither disk nor network, and what it accepts can only fail
//! for what is in the files.
//!
//! etcd: client/pkg/transport/listener.go, `TLSInfo`; client/pkg/tlsutil.

use std::path::{Path, PathBuf};

use rustls::{
    SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    version::{TLS12, TLS13},
};

use super::TlsError;

/// A version of TLS that members speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    V1_2,
    /// 1.3
    V1_3,
}

impl TlsVersion {
    /// Reads `TLS1.2` or `TLS1.3`; the empty text says nothing.
    pub fn parse(text: &str) -> Result<Option<TlsVersion>, TlsError> {
        match text {
            "" => Ok(None),
            "TLS1.2" => Ok(Some(TlsVersion::V1_2)),
            "TLS1.3" => Ok(Some(TlsVersion::V1_3)),
            _ => Err(TlsError::Version(text.to_owned())),
        }
    }

    fn name(self) -> &'static str {
        match self {
            TlsVersion::V1_2 => "TLS1.2",
            TlsVersion::V1_3 => "TLS1.3",
        }
    }
}

/// Settings of [`Tls`](super::Tls). The default has no certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Certificate chain shown to who connects, and to whom we connect unless there is a client certificate.
    pub cert_file: Option<PathBuf>,
    /// Key of `cert_file`.
    pub key_file: Option<PathBuf>,
    /// Certificate chain shown to whom we connect.
    pub client_cert_file: Option<PathBuf>,
    /// Key of `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
    /// Authorities that sign other members' certificates; without it those the system trusts.
    pub trusted_ca_file: Option<PathBuf>,
    /// Certificates that are no longer good, by serial number: a DER or PEM revocation list.
    pub crl_file: Option<PathBuf>,
    /// Whether who connects must show a certificate; with `trusted_ca_file` it must in any case.
    pub client_cert_auth: bool,
    /// Common names a member's certificate may carry; empty for any.
    pub allowed_cns: Vec<String>,
    /// Host names or addresses of which a member's certificate must be valid for one; empty for any.
    pub allowed_hostnames: Vec<String>,
    /// Do not compare the names in the certificate of who connects with where it comes from.
    pub skip_client_san_verification: bool,
    /// Lowest version spoken; 1.2 if not given.
    pub min_version: Option<TlsVersion>,
    /// Highest version spoken.
    pub max_version: Option<TlsVersion>,
    /// Suites of TLS 1.2 to allow, by their IANA names; empty for all. Those of 1.3 cannot be chosen.
    pub cipher_suites: Vec<String>,
    /// The certificate was made by this member for itself: nobody's certificate is verified, traffic is encrypted only.
    pub self_signed: bool,
}

impl TlsSettings {
    /// Whether there is neither certificate nor key, so that nothing can be served with TLS.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_none() && self.key_file.is_none()
    }

    /// etcd's rules, in etcd's words.
    pub fn check(&self) -> Result<(), TlsError> {
        self.check_protocol()?;
        if self.is_empty() {
            return Ok(());
        }
        if self.cert_file.is_none() || self.key_file.is_none() {
            return Err(TlsError::KeyAndCert {
                key: shown(&self.key_file),
                cert: shown(&self.cert_file),
            });
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err(TlsError::ClientKeyAndCert {
                key: shown(&self.client_key_file),
                cert: shown(&self.client_cert_file),
            });
        }
        if !self.allowed_cns.is_empty() && !self.allowed_hostnames.is_empty() {
            return Err(TlsError::CnsAndHostnames {
                cns: quoted(&self.allowed_cns),
                hostnames: quoted(&self.allowed_hostnames),
            });
        }
        Ok(())
    }

    fn check_protocol(&self) -> Result<(), TlsError> {
        let min = self.min_version.unwrap_or(TlsVersion::V1_2);
        if let Some(max) = self.max_version.filter(|max| min > *max) {
            return Err(TlsError::VersionRange {
                min: min.name(),
                max: max.name(),
            });
        }
        if min == TlsVersion::V1_3 && !self.cipher_suites.is_empty() {
            return Err(TlsError::SuitesWithTls13);
        }
        let provider = self.provider()?;
        let usable = |version: &&SupportedProtocolVersion| {
            let mut suites = provider.cipher_suites.iter();
            suites.any(|suite| suite.version().version == version.version)
        };
        if self.versions().iter().any(usable) {
            Ok(())
        } else {
            Err(TlsError::NoSuite)
        }
    }

    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let min = self.min_version.unwrap_or(TlsVersion::V1_2);
        let max = self.max_version.unwrap_or(TlsVersion::V1_3);
        [(TlsVersion::V1_2, &TLS12), (TlsVersion::V1_3, &TLS13)]
            .into_iter()
            .filter(|(version, _)| (min..=max).contains(version))
            .map(|(_, version)| version)
            .collect()
    }

    /// ring, with the suites that are allowed.
    pub(super) fn provider(&self) -> Result<CryptoProvider, TlsError> {
        let mut provider = ring::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(provider);
        }
        let chosen = self
            .cipher_suites
            .iter()
            .map(|name| suite(&provider, name))
            .collect::<Result<Vec<_>, _>>()?;
        // As in Go, a list says nothing about TLS 1.3.
        provider
            .cipher_suites
            .retain(|suite| suite.version().version == TLS13.version || chosen.contains(suite));
        Ok(provider)
    }
}

/// Go's names are IANA's; of two it also knows a short form.
fn suite(provider: &CryptoProvider, name: &str) -> Result<SupportedCipherSuite, TlsError> {
    let full = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" | "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => {
            format!("{name}_SHA256")
        }
        _ => name.to_owned(),
    };
    let suites = &provider.cipher_suites;
    let found = suites.iter().find(|suite| iana_name(suite) == full);
    match found {
        Some(suite) => Ok(*suite),
        None if GO_ONLY.contains(&name) => Err(TlsError::SuiteUnsupported {
            name: name.to_owned(),
            supported: suites.iter().map(iana_name).collect::<Vec<_>>().join(", "),
        }),
        None => Err(TlsError::Suite(name.to_owned())),
    }
}

/// rustls names the suites of TLS 1.3 after their number, as `TLS13_AES_128_GCM_SHA256`.
fn iana_name(suite: &SupportedCipherSuite) -> String {
    let name = suite.suite().as_str().unwrap_or_default();
    name.replacen("TLS13_", "TLS_", 1)
}

/// Suites that etcd accepts and that are too weak to exist here.
const GO_ONLY: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

fn shown(path: &Option<PathBuf>) -> String {
    path.as_deref()
        .map(Path::display)
        .map_or_else(String::new, |path| path.to_string())
}

/// A list as Go's `%q` prints it.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_files() -> TlsSettings {
        TlsSettings {
            cert_file: Some("c".into()),
            key_file: Some("k".into()),
            ..TlsSettings::default()
        }
    }

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_etcd_refuses_is_refused_with_its_words() {
        let cases = [
            (
                TlsSettings {
                    key_file: None,
                    ..with_files()
                },
                "KeyFile and CertFile must both be present[key: , cert: c]",
            ),
            (
                TlsSettings {
                    client_key_file: Some("x".into()),
                    ..with_files()
                },
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: x, cert: ]",
            ),
            (
                TlsSettings {
                    allowed_cns: words(&["a", "b"]),
                    allowed_hostnames: words(&["c"]),
                    ..with_files()
                },
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\" \"b\"], hostnames=[\"c\"])",
            ),
            (
                TlsSettings {
                    min_version: Some(TlsVersion::V1_3),
                    max_version: Some(TlsVersion::V1_2),
                    ..TlsSettings::default()
                },
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                TlsSettings {
                    min_version: Some(TlsVersion::V1_3),
                    cipher_suites: words(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]),
                    ..TlsSettings::default()
                },
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (
                TlsSettings {
                    cipher_suites: words(&["foo"]),
                    ..TlsSettings::default()
                },
                "unexpected TLS cipher suite \"foo\"",
            ),
        ];
        for (settings, message) in cases {
            assert_eq!(settings.check().unwrap_err().to_string(), message);
        }
        let version = TlsVersion::parse("TLS1.1").unwrap_err();
        assert_eq!(
            version.to_string(),
            "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"
        );
        assert!(TlsSettings::default().check().is_ok() && with_files().check().is_ok());
    }

    #[test]
    fn weak_suites_are_refused_with_a_list_of_the_others() {
        for name in GO_ONLY {
            let settings = TlsSettings {
                cipher_suites: words(&[name]),
                ..TlsSettings::default()
            };
            let message = settings.check().unwrap_err().to_string();
            assert!(
                message.contains(name) && message.contains("TLS_AES_128_GCM_SHA256"),
                "{message}"
            );
        }
    }

    #[test]
    fn a_list_of_suites_is_about_tls_1_2_alone() {
        let names = [
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
            "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
            "TLS_AES_128_GCM_SHA256",
        ];
        let mut settings = TlsSettings {
            cipher_suites: words(&names),
            ..TlsSettings::default()
        };
        let suites = settings.provider().unwrap().cipher_suites;
        let of_1_2: Vec<_> = suites
            .iter()
            .filter(|suite| suite.version().version == TLS12.version)
            .map(iana_name)
            .collect();
        assert_eq!(
            of_1_2,
            [
                "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
                "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
            ]
        );
        assert_eq!(suites.len(), 2 + 3);
        settings.cipher_suites = words(&names[2..]);
        assert!(settings.check().is_ok());
        settings.max_version = Some(TlsVersion::V1_2);
        assert!(matches!(settings.check(), Err(TlsError::NoSuite)));
    }

    #[test]
    fn versions_are_a_range() {
        let count = |min, max| {
            let settings = TlsSettings {
                min_version: min,
                max_version: max,
                ..TlsSettings::default()
            };
            settings.versions().len()
        };
        assert_eq!(count(None, None), 2);
        assert_eq!(count(Some(TlsVersion::V1_3), None), 1);
        assert_eq!(count(None, Some(TlsVersion::V1_2)), 1);
    }
}
