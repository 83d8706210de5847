//! From files to what a handshake needs.
//!
//! Everything blocks here. Invariant: a [`Material`] is whole: certificate and key fit, authorities and revocation list
//! could be read, and files are bounded in size.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, ring::sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    TlsError, TlsSettings,
    certificate::Revoked,
    verify::{AnyServer, ClientVerifier, NoServer, Rules, ServerVerifier},
};

/// Certificates and keys have a few KiB, bundles of authorities some hundred.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;

/// The bytes of all files, `None` for those that are not set.
#[derive(PartialEq, Eq)]
pub(super) struct Contents {
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    client_cert: Option<Vec<u8>>,
    client_key: Option<Vec<u8>>,
    trusted_ca: Option<Vec<u8>>,
    crl: Option<Vec<u8>>,
}

impl Contents {
    pub(super) fn read(settings: &TlsSettings) -> Result<Contents, TlsError> {
        let bytes = |path: &Option<PathBuf>| path.as_deref().map(read).transpose();
        Ok(Contents {
            cert: bytes(&settings.cert_file)?,
            key: bytes(&settings.key_file)?,
            client_cert: bytes(&settings.client_cert_file)?,
            client_key: bytes(&settings.client_key_file)?,
            trusted_ca: bytes(&settings.trusted_ca_file)?,
            crl: bytes(&settings.crl_file)?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|source| TlsError::Read {
            path: path.display().to_string(),
            source,
        })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge {
            path: path.display().to_string(),
            limit: FILE_BYTES_MAX,
        });
    }
    Ok(bytes)
}

/// What a handshake needs.
pub(super) struct Material {
    pub(super) client: Arc<ClientConfig>,
    /// None without a certificate.
    pub(super) server: Option<Arc<ServerConfig>>,
}

impl Material {
    pub(super) fn build(settings: &TlsSettings, contents: &Contents) -> Result<Material, TlsError> {
        let provider = Arc::new(settings.provider()?);
        let own = certified(
            (&settings.cert_file, &contents.cert),
            (&settings.key_file, &contents.key),
        )?;
        let as_client = certified(
            (&settings.client_cert_file, &contents.client_cert),
            (&settings.client_key_file, &contents.client_key),
        )?;
        let roots = Arc::new(roots(settings, contents)?);
        let rules = Arc::new(rules(settings, contents)?);
        let server = match &own {
            Some(own) => Some(server(settings, &provider, own, &roots, &rules)?),
            None => None,
        };
        let shown = as_client.or(own);
        let client = client(settings, &provider, shown, roots, rules)?;
        Ok(Material {
            client: Arc::new(client),
            server: server.map(Arc::new),
        })
    }
}

fn server(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
    own: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    rules: &Arc<Rules>,
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&settings.versions())?;
    let demanded = settings.trusted_ca_file.is_some() || settings.client_cert_auth;
    let builder = if demanded && !settings.self_signed {
        let chain =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider));
        let chain = chain.build().map_err(|_| TlsError::NoAuthority)?;
        let rules = Arc::clone(rules);
        builder.with_client_cert_verifier(Arc::new(ClientVerifier { chain, rules }))
    } else {
        builder.with_no_client_auth()
    };
    let certificate = SingleCertAndKey::from(Arc::clone(own));
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    // A session that is taken up again would skip the verification. Members connect seldom.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    settings: &TlsSettings,
    provider: &Arc<CryptoProvider>,
    shown: Option<Arc<CertifiedKey>>,
    roots: Arc<RootCertStore>,
    rules: Arc<Rules>,
) -> Result<ClientConfig, TlsError> {
    let schemes = || {
        provider
            .signature_verification_algorithms
            .supported_schemes()
    };
    let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
    let verifier: Arc<dyn ServerCertVerifier> = match chain {
        _ if settings.self_signed => Arc::new(AnyServer { schemes: schemes() }),
        Ok(chain) => Arc::new(ServerVerifier { chain, rules }),
        Err(_) => Arc::new(NoServer { schemes: schemes() }),
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&settings.versions())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A file's name and its bytes.
type Named<'a> = (&'a Option<PathBuf>, &'a Option<Vec<u8>>);

fn certified(cert: Named<'_>, key: Named<'_>) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    let ((Some(cert_path), Some(cert)), (Some(key_path), Some(key))) =
        ((cert.0, cert.1), (key.0, key.1))
    else {
        return Ok(None);
    };
    let chain = certificates(cert_path, cert)?;
    let certified = CertifiedKey::new(chain, signing_key(key_path, key)?);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Ok(Some(Arc::new(certified)))
        }
        Err(Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
            cert: cert_path.display().to_string(),
            key: key_path.display().to_string(),
        }),
        Err(error) => Err(TlsError::Certificate {
            path: cert_path.display().to_string(),
            reason: error.to_string(),
        }),
    }
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let path = || path.display().to_string();
    let found = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Certificate {
            path: path(),
            reason: error.to_string(),
        })?;
    if found.is_empty() {
        return Err(TlsError::NoCertificate { path: path() });
    }
    Ok(found)
}

fn signing_key(path: &Path, bytes: &[u8]) -> Result<Arc<dyn rustls::sign::SigningKey>, TlsError> {
    let path = || path.display().to_string();
    // Both the header of the old form and the name of the new one contain it.
    if String::from_utf8_lossy(bytes).contains("ENCRYPTED") {
        return Err(TlsError::EncryptedKey { path: path() });
    }
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|_| TlsError::NoKey { path: path() })?;
    any_supported_type(&key).map_err(|_| TlsError::KeyKind { path: path() })
}

/// Who may sign the certificates of others: those in the file, without one those the system trusts.
fn roots(settings: &TlsSettings, contents: &Contents) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    if settings.self_signed {
        return Ok(roots);
    }
    let (Some(path), Some(bytes)) = (&settings.trusted_ca_file, &contents.trusted_ca) else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in certificates(path, bytes)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Certificate {
                path: path.display().to_string(),
                reason: error.to_string(),
            })?;
    }
    Ok(roots)
}

fn rules(settings: &TlsSettings, contents: &Contents) -> Result<Rules, TlsError> {
    let revoked = match (&settings.crl_file, &contents.crl) {
        (Some(path), Some(bytes)) => {
            Some(Revoked::read(bytes).map_err(|reason| TlsError::Crl {
                path: path.display().to_string(),
                reason,
            })?)
        }
        _ => None,
    };
    Ok(Rules {
        common_names: settings.allowed_cns.clone(),
        hostnames: settings.allowed_hostnames.clone(),
        revoked,
    })
}
