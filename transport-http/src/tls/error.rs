//! Why TLS settings or files cannot be used; where etcd has words for it, they are etcd's.

use std::io;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate without its key, or the reverse.
    #[error("KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")]
    KeyAndCert {
        /// The key's file, if given.
        key: String,
        /// The certificate's file, if given.
        cert: String,
    },
    /// The same for the client certificate. The bracket without a partner is etcd's.
    #[error(
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: {key}, cert: {cert}]"
    )]
    ClientKeyAndCert {
        /// The key's file, if given.
        key: String,
        /// The certificate's file, if given.
        cert: String,
    },
    /// Names may be given in one of two ways.
    #[error(
        "AllowedCNs and AllowedHostnames are mutually exclusive (cns={cns}, hostnames={hostnames})"
    )]
    CnsAndHostnames {
        /// Common names.
        cns: String,
        /// Host names.
        hostnames: String,
    },
    /// Not a version.
    #[error("unexpected TLS version {0:?} (must be one of: TLS1.2, TLS1.3)")]
    Version(String),
    /// No version is left.
    #[error("min version ({min}) is greater than max version ({max})")]
    VersionRange {
        /// Lowest.
        min: &'static str,
        /// Highest.
        max: &'static str,
    },
    /// The suites of TLS 1.3 are fixed.
    #[error("cipher suites cannot be configured when only TLS1.3 is enabled")]
    SuitesWithTls13,
    /// Not a cipher suite.
    #[error("unexpected TLS cipher suite {0:?}")]
    Suite(String),
    /// A cipher suite only Go has.
    #[error("TLS cipher suite {name:?} is not supported; choose among {supported}")]
    SuiteUnsupported {
        /// The suite.
        name: String,
        /// Those there are.
        supported: String,
    },
    /// The suites that are allowed are of another version than the one allowed.
    #[error("none of the cipher suites belongs to a TLS version that is allowed")]
    NoSuite,
    /// A file cannot be read.
    #[error("open {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file is far larger than it should be.
    #[error("{path} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// The limit.
        limit: u64,
    },
    /// A file without a certificate.
    #[error("{path} holds no certificate in PEM form")]
    NoCertificate {
        /// The file.
        path: String,
    },
    /// A certificate that cannot be used.
    #[error("a certificate in {path} cannot be used: {reason}")]
    Certificate {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file without a private key.
    #[error("{path} holds no private key in PEM form")]
    NoKey {
        /// The file.
        path: String,
    },
    /// A key behind a password.
    #[error(
        "the private key in {path} is encrypted; store it unencrypted, readable by this member only"
    )]
    EncryptedKey {
        /// The file.
        path: String,
    },
    /// A key of a kind that is not supported.
    #[error(
        "the private key in {path} cannot be used; supported are RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, and Ed25519"
    )]
    KeyKind {
        /// The file.
        path: String,
    },
    /// Key and certificate do not belong together.
    #[error("tls: private key does not match public key (cert: {cert}, key: {key})")]
    Mismatch {
        /// The certificate's file.
        cert: String,
        /// The key's file.
        key: String,
    },
    /// A revocation list that cannot be read.
    #[error("the revocation list {path} cannot be used: {reason}")]
    Crl {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates are demanded that nobody can have.
    #[error(
        "certificates of other members are demanded, and neither a trusted CA file nor the system names who may sign them"
    )]
    NoAuthority,
    /// What the TLS library does not like.
    #[error("cannot set up TLS: {0}")]
    Setup(#[from] rustls::Error),
    /// How long a certificate made here is valid.
    #[error("selfSignedCertValidity is invalid,it should be greater than 0")]
    Validity,
    /// The same, in the other direction.
    #[error("a self-signed certificate can be valid for {max} years at most")]
    ValidityTooLong {
        /// The limit.
        max: u32,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A file or folder cannot be made.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Which one.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}
