//! The certificate a member makes for itself when it is asked for TLS and given no files (`--peer-auto-tls`).
//!
//! It is made once and kept; nobody verifies it, so it encrypts and does not prove anything. Invariant: a pair of files
//! that can be used is never replaced.
//!
//! etcd: client/pkg/transport/listener.go, `SelfCert`. Its keys are P-521, which cannot be used here; such a pair, in a
//! directory taken over from etcd, is replaced.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::{
    TlsError, TlsSettings,
    files::{Contents, Material},
};

/// A validity beyond this would not fit Go's durations, nor make sense.
const YEARS_MAX: u32 = 290;

impl TlsSettings {
    /// These settings with a certificate of this member's own in `dir`, for `hosts` (names or addresses), made now
    /// for so many years unless it is there already. What is said about certificates of others does not count then.
    pub fn with_self_signed(
        self,
        dir: &Path,
        hosts: &[String],
        years: u64,
    ) -> Result<TlsSettings, TlsError> {
        if years == 0 {
            return Err(TlsError::Validity);
        }
        let years = u32::try_from(years)
            .ok()
            .filter(|years| *years <= YEARS_MAX)
            .ok_or(TlsError::ValidityTooLong { max: YEARS_MAX })?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(unwritten(dir))?;
        let dir = fs::canonicalize(dir).map_err(unwritten(dir))?;
        let settings = TlsSettings {
            cert_file: Some(dir.join("cert.pem")),
            key_file: Some(dir.join("key.pem")),
            min_version: self.min_version,
            max_version: self.max_version,
            cipher_suites: self.cipher_suites,
            self_signed: true,
            ..TlsSettings::default()
        };
        let usable = Contents::read(&settings)
            .and_then(|contents| Material::build(&settings, &contents).map(drop));
        match usable {
            Ok(()) => return Ok(settings),
            Err(TlsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(error = %error, "replacing a self-signed certificate that cannot be used");
            }
        }
        make(&dir, hosts, years)?;
        Ok(settings)
    }
}

fn unwritten(path: &Path) -> impl FnOnce(io::Error) -> TlsError + use<> {
    let path = path.display().to_string();
    move |source| TlsError::Write { path, source }
}

fn make(dir: &Path, hosts: &[String], years: u32) -> Result<(), TlsError> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let last = today.saturating_add((i64::from(years) * 365).days());
    tracing::warn!("certificate-validity-bound-not-after" = %last, "automatically generate certificates");
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "etcd");
    let ((year, month, day), (last_year, last_month, last_day)) = (ymd(today), ymd(last));
    params.not_before = date_time_ymd(year, month, day);
    params.not_after = date_time_ymd(last_year, last_month, last_day);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    // The key goes last: without it the pair is made anew.
    let (cert_path, key_path) = (dir.join("cert.pem"), dir.join("key.pem"));
    write(&cert_path, &certificate.pem(), 0o644)?;
    tracing::info!(path = %cert_path.display(), "created cert file");
    write(&key_path, &key.serialize_pem(), 0o600)?;
    tracing::info!(path = %key_path.display(), "created key file");
    Ok(())
}

fn ymd(date: Date) -> (i32, u8, u8) {
    let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
    (date.year().into(), month, day)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    // A file that was there keeps its mode, so it goes first.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(unwritten(path)(error));
        }
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .map_err(unwritten(path))
}
