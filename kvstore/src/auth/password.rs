//! Turning what a request carries into what is stored: the text of a bcrypt hash.
//!
//! Members from 3.5 on hash before they propose; what they send is stored as it is. A member of 3.4 proposes the
//! password itself and leaves the hashing to each replica (etcd: server/auth/store.go, `selectPassword`).

use base64::{
    Engine,
    alphabet::BCRYPT,
    engine::{
        DecodePaddingMode,
        general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD},
    },
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::error::ApplyError;

/// Work factor of hashes made here: etcd's default `--bcrypt-cost`.
const COST: u32 = 10;

/// bcrypt reads no more of a password than this, its closing zero byte included.
const PASSWORD_BYTES_MAX: usize = 72;

/// The bytes to store. `salt_from` must differ between requests; members of this version then store the same bytes.
pub(super) fn select(
    password: &[u8],
    hashed_base64: &[u8],
    salt_from: (u64, &[u8]),
) -> Result<Bytes, ApplyError> {
    if !password.is_empty() && hashed_base64.is_empty() {
        return Ok(hash(password, salt(salt_from)).into());
    }
    let hashed = STANDARD.decode(hashed_base64);
    hashed.map(Bytes::from).map_err(|_| ApplyError::AuthFailed)
}

/// A salt need not be secret or random, only different from others.
fn salt((request, user): (u64, &[u8])) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(request.to_be_bytes())
        .chain_update(user)
        .finalize();
    std::array::from_fn(|at| digest[at])
}

fn hash(password: &[u8], salt: [u8; 16]) -> String {
    let mut secret = password.to_vec();
    secret.truncate(PASSWORD_BYTES_MAX);
    if secret.len() < PASSWORD_BYTES_MAX {
        secret.push(0);
    }
    let digest = bcrypt::bcrypt(COST, salt, &secret);
    let text = GeneralPurpose::new(
        &BCRYPT,
        GeneralPurposeConfig::new()
            .with_encode_padding(false)
            .with_decode_padding_mode(DecodePaddingMode::RequireNone),
    );
    // The last byte of the digest is not part of the text.
    format!(
        "$2a${COST:02}${}{}",
        text.encode(salt),
        text.encode(&digest[..23])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        // Vectors of the reference implementation at cost 10, with the salt they contain.
        let salt_of = |text: &str| -> [u8; 16] {
            let engine = GeneralPurpose::new(
                &BCRYPT,
                GeneralPurposeConfig::new()
                    .with_decode_padding_mode(DecodePaddingMode::RequireNone)
                    .with_decode_allow_trailing_bits(true),
            );
            engine.decode(&text[7..29]).unwrap().try_into().unwrap()
        };
        let vectors = [
            (
                "a",
                "$2a$10$k87L/MF28Q673VKh8/cPi.SUl7MU/rWuSiIDDFayrKk/1tBsSQu4u",
            ),
            (
                "abc",
                "$2a$10$WvvTPHKwdBJ3uk0Z37EMR.hLA2W6N9AEBhEgrAOljy2Ae5MtaSIUi",
            ),
            (
                "abcdefghijklmnopqrstuvwxyz",
                "$2a$10$fVH8e28OQRj9tqiDXs1e1uxpsjN0c7II7YPKXua2NAKYvM6iQk7dq",
            ),
        ];
        for (password, text) in vectors {
            assert_eq!(hash(password.as_bytes(), salt_of(text)), text);
        }
    }

    #[test]
    fn what_is_hashed_already_is_stored_as_it_is() {
        let stored = |password: &str, hashed: &str| {
            select(password.as_bytes(), hashed.as_bytes(), (1, b"u"))
        };
        assert_eq!(stored("", "JDJhJA==").unwrap(), "$2a$");
        assert_eq!(stored("plain", "JDJhJA==").unwrap(), "$2a$");
        assert_eq!(stored("", "").unwrap(), "");
        assert_eq!(stored("", "%"), Err(ApplyError::AuthFailed));
    }

    #[test]
    fn plain_passwords_are_hashed_alike_by_all_and_differently_by_request() {
        let of = |request| select(b"pw", b"", (request, b"u")).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(of(1).starts_with(b"$2a$10$") && of(1).len() == 60);
        // Longer than bcrypt reads.
        select(&[b'x'; 100], b"", (1, b"u")).unwrap();
    }
}
