//! What is read out of certificates and revocation lists beyond what the TLS library looks at: names and serial numbers.
//!
//! Invariant: a certificate read here was verified before, or is used for nothing but its serial number; what cannot be
//! read is an error, never an empty answer.

use std::{collections::HashSet, net::IpAddr};

use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use x509_cert::{
    Certificate,
    crl::CertificateList,
    der::{Decode, asn1::ObjectIdentifier},
    ext::pkix::{SubjectAltName, name::GeneralName},
};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
/// How a file in PEM form begins, sooner or later.
const PEM_BEGIN: &[u8] = b"-----BEGIN ";

/// Whom a certificate is for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Empty if there is none; the last one if there are several, as in Go.
    pub(super) common_name: String,
    pub(super) dns: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
}

impl Names {
    /// Reads a certificate in DER.
    pub(super) fn read(certificate: &[u8]) -> Result<Names, String> {
        let certificate = Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let certificate = certificate.tbs_certificate();
        let mut names = Names::default();
        for attribute in certificate.subject().iter() {
            if attribute.oid == COMMON_NAME {
                names.common_name = String::from_utf8_lossy(attribute.value.value()).into_owned();
            }
        }
        let alternative = certificate
            .get_extension::<SubjectAltName>()
            .map_err(|error| error.to_string())?;
        for name in alternative.into_iter().flat_map(|(_, names)| names.0) {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.to_string()),
                GeneralName::IpAddress(octets) => names.ips.extend(address(octets.as_bytes())),
                _ => {}
            }
        }
        Ok(names)
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
    v4.or(v6).ok()
}

/// The serial number of a certificate in DER, without leading zeros.
pub(super) fn serial(certificate: &[u8]) -> Result<Vec<u8>, String> {
    let certificate = Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    Ok(significant(
        certificate.tbs_certificate().serial_number().as_bytes(),
    ))
}

/// Serial numbers of revoked certificates. As in etcd, a list speaks about every authority, and neither its signature
/// nor its age matters: who may write the file decides.
#[derive(Debug, Default)]
pub(super) struct Revoked(HashSet<Vec<u8>>);

impl Revoked {
    /// Reads one list in DER, or any number of them in PEM.
    pub(super) fn read(file: &[u8]) -> Result<Revoked, String> {
        let is_pem = file
            .windows(PEM_BEGIN.len())
            .any(|window| window == PEM_BEGIN);
        let mut serials = HashSet::new();
        if !is_pem {
            collect(file, &mut serials)?;
            return Ok(Revoked(serials));
        }
        let lists = CertificateRevocationListDer::pem_slice_iter(file)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| error.to_string())?;
        if lists.is_empty() {
            return Err("there is no X509 CRL in it".into());
        }
        for list in lists {
            collect(&list, &mut serials)?;
        }
        Ok(Revoked(serials))
    }

    pub(super) fn contains(&self, serial: &[u8]) -> bool {
        self.0.contains(serial)
    }
}

fn collect(list: &[u8], serials: &mut HashSet<Vec<u8>>) -> Result<(), String> {
    let list: CertificateList =
        CertificateList::from_der(list).map_err(|error| error.to_string())?;
    let revoked = list.tbs_cert_list.revoked_certificates;
    serials.extend(
        revoked
            .into_iter()
            .flatten()
            .map(|entry| significant(entry.serial_number.as_bytes())),
    );
    Ok(())
}

fn significant(serial: &[u8]) -> Vec<u8> {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial[zeros..].to_vec()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn params() -> CertificateParams {
        let mut params =
            CertificateParams::new(["a.example".into(), "10.0.0.1".into(), "::1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "member");
        params.serial_number = Some(vec![0, 0x80, 1].into());
        params
    }

    #[test]
    fn names_and_serial_are_read() {
        let key = KeyPair::generate().unwrap();
        let certificate = params().self_signed(&key).unwrap();
        let names = Names::read(certificate.der()).unwrap();
        let expected = Names {
            common_name: "member".into(),
            dns: vec!["a.example".into()],
            ips: vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        };
        assert_eq!(names, expected);
        assert_eq!(serial(certificate.der()), Ok(vec![0x80, 1]));
    }

    #[test]
    fn what_is_no_certificate_or_list_is_an_error() {
        let key = KeyPair::generate().unwrap();
        let certificate = params().self_signed(&key).unwrap();
        let der = certificate.der();
        for cut in 0..der.len() {
            assert!(Names::read(&der[..cut]).is_err() && serial(&der[..cut]).is_err());
        }
        for file in [&b""[..], b"x", der, certificate.pem().as_bytes()] {
            assert!(Revoked::read(file).is_err());
        }
    }
}
