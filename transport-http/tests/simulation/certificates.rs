//! A certificate for each member of a simulation, good for its name and its address there.
//!
//! Keys and signatures are Ed25519: theirs are always of one size, so that handshakes of two runs are of one size too,
//! whatever the random numbers in them are.

use rcgen::PKCS_ED25519;
use transport_http::tls::TlsSettings;

use super::{
    authority::{Authority, Files, LEAF, Leaf},
    message::Id,
};

/// As `network::host` names the members, and as turmoil numbers them.
const NAMES: [&[&str]; 5] = [
    &["m1", "192.168.0.1"],
    &["m2", "192.168.0.2"],
    &["m3", "192.168.0.3"],
    &["m4", "192.168.0.4"],
    &["m5", "192.168.0.5"],
];

/// The files of all members, by number.
pub struct Certificates(Vec<Files>);

impl Certificates {
    pub fn new() -> Certificates {
        let authority = Authority::with_keys("simulation", &PKCS_ED25519);
        let keys = &PKCS_ED25519;
        let files = NAMES.map(|names| {
            Files::new(
                &authority,
                Leaf {
                    names,
                    keys,
                    ..LEAF
                },
            )
        });
        Certificates(files.into())
    }

    pub fn settings(&self, id: Id) -> TlsSettings {
        self.0[id as usize - 1].settings()
    }
}
