//! Member and cluster ids: how they are derived, parsed and printed.
//!
//! Peers compare printed ids as strings, so the one form is lower-case hexadecimal without leading
//! zeros (etcd: client/pkg/types/id.go).

use std::{fmt, num::ParseIntError, str::FromStr};

use sha1::{Digest, Sha1};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            /// Hexadecimal digits of either case, leading zeros allowed, without a sign or prefix.
            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                // Rust would take a plus sign, which Go does not.
                let digits = if text.starts_with('+') { "+" } else { text };
                u64::from_str_radix(digits, 16).map($name)
            }
        }

        impl From<u64> for $name {
            fn from(id: u64) -> Self {
                $name(id)
            }
        }

        impl From<$name> for u64 {
            fn from(id: $name) -> u64 {
                id.0
            }
        }
    };
}

id! {
    /// Identifies a member within its cluster; never 0 for a real member.
    MemberId
}
id! {
    /// Identifies a cluster; fixed when the cluster is bootstrapped.
    ClusterId
}

impl MemberId {
    /// The id etcd gives a member: SHA-1 over its sorted peer URLs, the cluster token and, for a member
    /// added later, the decimal Unix time of the addition in seconds (with an empty token).
    ///
    /// etcd: server/etcdserver/api/membership/member.go, `computeMemberID`.
    pub fn derive<S: AsRef<str>>(peer_urls: &[S], token: &str, added_at: Option<u64>) -> MemberId {
        let mut urls: Vec<&str> = peer_urls.iter().map(AsRef::as_ref).collect();
        urls.sort_unstable();
        let mut hash = Sha1::new();
        for url in urls {
            hash.update(url.as_bytes());
        }
        hash.update(token.as_bytes());
        if let Some(seconds) = added_at {
            hash.update(seconds.to_string().as_bytes());
        }
        MemberId(leading_u64(&hash.finalize().into()))
    }
}

impl ClusterId {
    /// The id etcd gives a cluster: SHA-1 over its first members' ids in ascending order.
    ///
    /// etcd: server/etcdserver/api/membership/cluster.go, `genID`.
    pub fn derive(members: &[MemberId]) -> ClusterId {
        let mut ids = members.to_vec();
        ids.sort_unstable();
        let mut hash = Sha1::new();
        for id in ids {
            hash.update(id.0.to_be_bytes());
        }
        ClusterId(leading_u64(&hash.finalize().into()))
    }
}

fn leading_u64(digest: &[u8; 20]) -> u64 {
    digest[..8]
        .iter()
        .fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_a_real_cluster() {
        let ids = [
            ("http://127.0.0.1:41301", 0x5696_c2ec_878f_0ce2),
            ("http://127.0.0.1:41311", 0xbab3_44ef_759b_e6ee),
            ("http://127.0.0.1:41321", 0xa0d9_fd87_f918_8517),
        ]
        .map(|(url, id)| {
            let derived = MemberId::derive(&[url], "tok-x", None);
            assert_eq!(derived, MemberId(id));
            derived
        });
        assert_eq!(ClusterId::derive(&ids).to_string(), "e4118c23a9498efd");
    }

    #[test]
    fn printed_without_padding_and_read_back() {
        let id = ClusterId(0x0e28_7c36_e4a5_3caa);
        assert_eq!(id.to_string(), "e287c36e4a53caa");
        assert_eq!("0E287C36E4A53CAA".parse::<ClusterId>(), Ok(id));
        for text in ["", "0x1", "+1", "-1", "g", "10000000000000000", "1_0"] {
            assert!(text.parse::<MemberId>().is_err(), "{text}");
        }
    }
}
