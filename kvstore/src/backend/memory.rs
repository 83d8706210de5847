//! A backend that keeps its rows in memory, for tests and examples.
//!
//! A commit copies the buckets that a live view shares, so it suits small states only.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Backend, BackendError, Batch, Bucket, Op, Usage, View, Visit, is_empty_range};

type Rows = BTreeMap<Bytes, Bytes>;

/// Rows in memory.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    state: RwLock<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    buckets: [Arc<Rows>; Bucket::ALL.len()],
    usage: Usage,
}

impl Backend for MemoryBackend {
    fn commit(&self, batch: &Batch) -> Result<(), BackendError> {
        let State { buckets, usage } = &mut *self.state.write();
        for op in &batch.ops {
            match op {
                Op::Put { bucket, key, value } => {
                    let rows = Arc::make_mut(&mut buckets[*bucket as usize]);
                    usage.add(key.len(), value.len());
                    if let Some(old) = rows.insert(key.clone(), value.clone()) {
                        usage.remove(key.len(), old.len());
                    }
                }
                Op::Delete { bucket, key } => {
                    let rows = Arc::make_mut(&mut buckets[*bucket as usize]);
                    if let Some(old) = rows.remove(key) {
                        usage.remove(key.len(), old.len());
                    }
                }
            }
        }
        usage.settle();
        Ok(())
    }

    fn view(&self) -> Result<Arc<dyn View>, BackendError> {
        Ok(Arc::new(MemoryView {
            buckets: self.state.read().buckets.clone(),
        }))
    }

    fn size(&self) -> u64 {
        self.state.read().usage.size()
    }

    fn size_in_use(&self) -> u64 {
        self.state.read().usage.in_use()
    }
}

struct MemoryView {
    buckets: [Arc<Rows>; Bucket::ALL.len()],
}

impl View for MemoryView {
    fn get(&self, bucket: Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        Ok(self.buckets[bucket as usize]
            .get(key)
            .map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        bucket: Bucket,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut Visit<'_>,
    ) -> Result<(), BackendError> {
        if is_empty_range(range) {
            return Ok(());
        }
        for (key, value) in self.buckets[bucket as usize].range::<[u8], _>(range) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
