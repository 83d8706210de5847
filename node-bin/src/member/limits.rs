//! What may be proposed: how large a request may be and how far applying may lag (etcd: etcdserver/v3_server.go).
//!
//! Pure functions. Invariant: a request that passes here fits into one raft entry and one gRPC message.

use crate::grpc::error::ServerError;

/// Entries that may be committed and not yet applied before proposals are refused.
pub const APPLY_GAP_MAX: u64 = 5000;

/// What a gRPC message may have beyond the request itself (etcd: server/config/config.go).
const OVERHEAD: u64 = 512 * 1024;

/// Above this a request limit is worth a warning.
pub const REQUEST_BYTES_RECOMMENDED: u64 = 10 * 1024 * 1024;

/// Largest message a client may send, for a given `--max-request-bytes`.
pub fn receive_max(max_request_bytes: u64) -> usize {
    usize::try_from(max_request_bytes.saturating_add(OVERHEAD)).unwrap_or(usize::MAX)
}

/// Whether a request of this size may be proposed now.
pub fn may_propose(
    encoded_len: usize,
    max_request_bytes: u64,
    committed: u64,
    applied: u64,
) -> Result<(), ServerError> {
    if committed > applied.saturating_add(APPLY_GAP_MAX) {
        return Err(ServerError::TooManyRequests);
    }
    if encoded_len as u64 > max_request_bytes {
        return Err(ServerError::RequestTooLarge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_inclusive() {
        assert_eq!(may_propose(100, 100, 5000, 0), Ok(()));
        assert_eq!(
            may_propose(101, 100, 0, 0),
            Err(ServerError::RequestTooLarge)
        );
        assert_eq!(
            may_propose(1, 100, 5001, 0),
            Err(ServerError::TooManyRequests)
        );
        assert_eq!(may_propose(1, 100, 3, 7), Ok(()));
        assert_eq!(receive_max(1_572_864), 2 * 1024 * 1024);
        assert_eq!(receive_max(u64::MAX), usize::MAX);
    }
}
