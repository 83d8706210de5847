//! The lease table: which leases exist, for how long they were granted, which keys hang on them.
//!
//! Replicated state without a clock: when a lease ends is the leader's business, which takes its times from
//! [`Leases::get`] and proposes the revocation (etcd: server/lease/lessor.go).
//!
//! Invariant: every attached key belongs to exactly one existing lease, and both directions agree.

use std::{
    collections::{BTreeSet, HashMap},
    ops::ControlFlow,
};

use bytes::Bytes;
use prost::Message;

use crate::{
    backend::{BackendError, Batch, Bucket, View, WHOLE},
    error::ApplyError,
    pb::leasepb,
};

/// The longest time a lease can be granted for, in seconds (etcd: `MaxLeaseTTL`).
pub const TTL_MAX_S: i64 = 9_000_000_000;

/// Every lease.
#[derive(Debug, Default)]
pub struct Leases {
    leases: HashMap<i64, Lease>,
    /// The lease of each attached key.
    lease_of: HashMap<Bytes, i64>,
    min_ttl_s: i64,
}

#[derive(Debug, Default)]
struct Lease {
    times: LeaseTimes,
    keys: BTreeSet<Bytes>,
}

/// The times of a lease, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseTimes {
    /// What was granted.
    pub granted_s: i64,
    /// What was left at the last checkpoint; 0 when there was none, or the lease was renewed since.
    pub checkpointed_s: i64,
}

impl LeaseTimes {
    /// How long the lease lives from the moment a leader takes over.
    pub fn remaining_s(&self) -> i64 {
        if self.checkpointed_s > 0 {
            self.checkpointed_s
        } else {
            self.granted_s
        }
    }
}

impl Leases {
    /// Reads bucket `lease`. Keys are attached by whoever reads bucket `key`. A shorter lease than `min_ttl_s`
    /// becomes that long, which is what every member does, and needs every member to have the same minimum.
    pub fn load(view: &dyn View, min_ttl_s: i64) -> Result<Leases, BackendError> {
        let mut leases = Leases {
            min_ttl_s,
            ..Default::default()
        };
        let mut damaged = None;
        view.scan(Bucket::Lease, WHOLE, &mut |key, row| {
            match leasepb::Lease::decode(row) {
                Ok(lease) => leases.restore(&lease),
                Err(error) => {
                    damaged = Some(format!("lease row {key:02x?}: {error}"));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        damaged.map_or(Ok(leases), |reason| Err(BackendError::Damaged(reason)))
    }

    fn restore(&mut self, row: &leasepb::Lease) {
        let times = LeaseTimes {
            granted_s: row.ttl.max(self.min_ttl_s),
            checkpointed_s: row.remaining_ttl,
        };
        let keys = BTreeSet::new();
        self.leases.insert(row.id, Lease { times, keys });
    }

    /// Grants a lease, and returns for how many seconds: at least the minimum.
    pub fn grant(&mut self, id: i64, ttl_s: i64, batch: &mut Batch) -> Result<i64, ApplyError> {
        if id == 0 {
            return Err(ApplyError::LeaseNotFound);
        }
        if ttl_s > TTL_MAX_S {
            return Err(ApplyError::LeaseTtlTooLarge);
        }
        if self.leases.contains_key(&id) {
            return Err(ApplyError::LeaseExists);
        }
        let times = LeaseTimes {
            granted_s: ttl_s.max(self.min_ttl_s),
            checkpointed_s: 0,
        };
        write_row(id, times, batch);
        let keys = BTreeSet::new();
        self.leases.insert(id, Lease { times, keys });
        Ok(times.granted_s)
    }

    /// Revokes a lease and returns the keys that hung on it, ascending: every member deletes them in this order, in
    /// one revision.
    pub fn revoke(&mut self, id: i64, batch: &mut Batch) -> Result<Vec<Bytes>, ApplyError> {
        let lease = self.leases.remove(&id).ok_or(ApplyError::LeaseNotFound)?;
        for key in &lease.keys {
            self.lease_of.remove(key);
        }
        batch.delete(Bucket::Lease, row_key(id));
        Ok(lease.keys.into_iter().collect())
    }

    /// Notes what is left of a lease; with `persist` in the backend too. A lease that is gone is left alone: it was
    /// revoked while the checkpoint was on its way, which is a success.
    pub fn checkpoint(
        &mut self,
        id: i64,
        remaining_s: i64,
        persist: bool,
        batch: &mut Batch,
    ) -> Result<(), ApplyError> {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.times.checkpointed_s = remaining_s;
            if persist {
                write_row(id, lease.times, batch);
            }
        }
        Ok(())
    }

    /// Hangs a key on a lease, taking it from the one it hung on. Nothing happens if there is no such lease.
    pub fn attach(&mut self, id: i64, key: Bytes) {
        let old = self.lease_of(&key);
        if old == id || !self.exists(id) {
            return;
        }
        self.detach(old, &key);
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key.clone());
            self.lease_of.insert(key, id);
        }
    }

    /// Takes a key off a lease, if it hangs on that one.
    pub fn detach(&mut self, id: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&id)
            && lease.keys.remove(key)
        {
            self.lease_of.remove(key);
        }
    }

    /// Whether there is such a lease.
    pub fn exists(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// The lease a key hangs on; 0 for none.
    pub fn lease_of(&self, key: &[u8]) -> i64 {
        self.lease_of.get(key).copied().unwrap_or(0)
    }

    /// The times of a lease.
    pub fn get(&self, id: i64) -> Option<LeaseTimes> {
        self.leases.get(&id).map(|lease| lease.times)
    }

    /// The keys of a lease, ascending.
    pub fn keys(&self, id: i64) -> Vec<Bytes> {
        let keys = self
            .leases
            .get(&id)
            .map(|lease| lease.keys.iter().cloned().collect());
        keys.unwrap_or_default()
    }

    /// Every lease, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (i64, LeaseTimes)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.times))
    }

    /// Number of leases.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

fn row_key(id: i64) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

fn write_row(id: i64, times: LeaseTimes, batch: &mut Batch) {
    let row = leasepb::Lease {
        id,
        ttl: times.granted_s,
        remaining_ttl: times.checkpointed_s,
    };
    batch.put(Bucket::Lease, row_key(id), row.encode_to_vec());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::{Backend, Op, memory::MemoryBackend};

    fn two_seconds() -> Leases {
        Leases {
            min_ttl_s: 2,
            ..Default::default()
        }
    }

    #[test]
    fn granting() {
        let (mut leases, mut batch) = (two_seconds(), Batch::default());
        // (id, ttl, outcome)
        let cases = [
            (0, 10, Err(ApplyError::LeaseNotFound)),
            (7, 1, Ok(2)),
            (7, 10, Err(ApplyError::LeaseExists)),
            (7, TTL_MAX_S + 1, Err(ApplyError::LeaseTtlTooLarge)),
            (8, TTL_MAX_S, Ok(TTL_MAX_S)),
            (9, -5, Ok(2)),
            (-1, 60, Ok(60)),
        ];
        for (id, ttl, outcome) in cases {
            assert_eq!(leases.grant(id, ttl, &mut batch), outcome, "{id} {ttl}");
        }
        assert_eq!(leases.len(), 4);
        assert_eq!(
            batch.ops[0],
            Op::Put {
                bucket: Bucket::Lease,
                key: vec![0, 0, 0, 0, 0, 0, 0, 7].into(),
                value: vec![0x08, 7, 0x10, 2].into(),
            }
        );
        assert_eq!(batch.len(), 4);
    }

    #[test]
    fn revoking_yields_the_keys_in_order_and_forgets_them() {
        let (mut leases, mut batch) = (two_seconds(), Batch::default());
        leases.grant(5, 10, &mut batch).unwrap();
        for key in ["b", "c", "a", "aa"] {
            leases.attach(5, key.into());
        }
        leases.detach(5, b"c");
        leases.detach(6, b"b");
        assert_eq!(leases.lease_of(b"b"), 5);
        let keys = leases.revoke(5, &mut batch).unwrap();
        assert_eq!(keys, ["a", "aa", "b"]);
        assert_eq!(leases.lease_of(b"a"), 0);
        assert_eq!(leases.revoke(5, &mut batch), Err(ApplyError::LeaseNotFound));
        assert!(matches!(
            batch.ops.last(),
            Some(Op::Delete {
                bucket: Bucket::Lease,
                ..
            })
        ));
    }

    #[test]
    fn a_key_moves_between_leases_and_ignores_those_that_are_not_there() {
        let (mut leases, mut batch) = (two_seconds(), Batch::default());
        leases.grant(1, 10, &mut batch).unwrap();
        leases.grant(2, 10, &mut batch).unwrap();
        leases.attach(1, "k".into());
        leases.attach(9, "k".into());
        assert_eq!(leases.lease_of(b"k"), 1);
        leases.attach(2, "k".into());
        assert!(leases.keys(1).is_empty());
        assert_eq!(leases.keys(2), ["k"]);
    }

    #[test]
    fn checkpoints_are_remembered_and_written_when_asked() {
        let (mut leases, mut batch) = (two_seconds(), Batch::default());
        leases.grant(1, 100, &mut batch).unwrap();
        leases.checkpoint(1, 40, false, &mut batch).unwrap();
        leases.checkpoint(3, 40, true, &mut batch).unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(leases.get(1).unwrap().remaining_s(), 40);
        leases.checkpoint(1, 30, true, &mut batch).unwrap();
        let backend = MemoryBackend::default();
        backend.commit(&batch).unwrap();
        let mut loaded = Leases::load(&*backend.view().unwrap(), 2).unwrap();
        let times = LeaseTimes {
            granted_s: 100,
            checkpointed_s: 30,
        };
        assert_eq!(loaded.get(1), Some(times));
        loaded.checkpoint(1, 0, true, &mut batch).unwrap();
        assert_eq!(loaded.get(1).unwrap().remaining_s(), 100);
        // A minimum that was raised since applies to what is loaded.
        let loaded = Leases::load(&*backend.view().unwrap(), 200).unwrap();
        assert_eq!(loaded.get(1).unwrap().granted_s, 200);
    }

    #[test]
    fn a_damaged_row_is_an_error() {
        let backend = MemoryBackend::default();
        let mut batch = Batch::default();
        batch.put(Bucket::Lease, vec![0; 8], vec![0xff; 3]);
        backend.commit(&batch).unwrap();
        let loaded = Leases::load(&*backend.view().unwrap(), 2);
        assert!(matches!(loaded, Err(BackendError::Damaged(_))));
    }

    proptest! {
        /// Whatever is done, both directions agree, and the rows hold the leases that are there.
        #[test]
        fn both_directions_agree(steps in proptest::collection::vec((0u8..5, 1i64..4, 0u8..4), 0..60)) {
            let (mut leases, mut batch) = (two_seconds(), Batch::default());
            for (step, id, key) in steps {
                let key = Bytes::from(vec![key]);
                match step {
                    0 => drop(leases.grant(id, 10, &mut batch)),
                    1 => drop(leases.revoke(id, &mut batch)),
                    2 | 3 => leases.attach(id, key),
                    _ => leases.detach(id, &key),
                }
                let hanging: usize = (1..4).map(|id| leases.keys(id).len()).sum();
                prop_assert_eq!(hanging, leases.lease_of.len());
                for id in 1..4 {
                    prop_assert!(leases.keys(id).iter().all(|key| leases.lease_of(key) == id));
                }
            }
            let backend = MemoryBackend::default();
            backend.commit(&batch).unwrap();
            let loaded = Leases::load(&*backend.view().unwrap(), 2).unwrap();
            let mut ids: Vec<_> = loaded.iter().collect();
            let mut expected: Vec<_> = leases.iter().collect();
            ids.sort_unstable_by_key(|(id, _)| *id);
            expected.sort_unstable_by_key(|(id, _)| *id);
            prop_assert_eq!(ids, expected);
        }
    }
}
