//! Reading the store beside the apply thread.
//!
//! A [`Reader`] sees what was published; it takes no lock for longer than a clone of a handle or a bounded piece of
//! the key index, so neither side waits for the other. The revisions, rows and side state it works on are immutable.

use std::{sync::Arc, time::Instant};

use parking_lot::RwLock;
use transport_core::{MemberId, raftpb::ConfState};

use crate::{
    alarm::Alarms,
    auth::AuthStore,
    error::{ApplyError, ImageError},
    flush::Sizes,
    lease::Leases,
    membership::{Member, Membership},
    metrics::StoreMetrics,
    mvcc::{
        KeyValueHash,
        hash::{hash_backend, hash_kv},
        keyspace::Keyspace,
        range::range,
        txn::txn_read_only,
    },
    pb::etcdserverpb::{AlarmMember, RangeRequest, RangeResponse, TxnRequest, TxnResponse},
    store::Image,
    version::Version,
};

/// The state as it was last published. Keys advance within their keyspace; the rest is replaced as a whole.
pub(crate) struct Published {
    pub keyspace: Arc<Keyspace>,
    pub leases: Arc<RwLock<Leases>>,
    pub sizes: Arc<Sizes>,
    pub membership: Arc<Membership>,
    pub auth: Arc<AuthStore>,
    pub alarms: Arc<Alarms>,
    pub conf_state: Arc<ConfState>,
}

/// Where the published state is found.
pub(crate) struct Shared {
    published: RwLock<Arc<Published>>,
    metrics: Arc<StoreMetrics>,
}

impl Shared {
    pub fn new(published: Published, metrics: Arc<StoreMetrics>) -> Self {
        Shared {
            published: RwLock::new(Arc::new(published)),
            metrics,
        }
    }

    pub fn replace(&self, published: Published) {
        let published = Arc::new(published);
        *self.published.write() = published;
    }

    fn load(&self) -> Arc<Published> {
        self.published.read().clone()
    }
}

/// A handle to read the store with; cheap to clone. It outlives the store and an installed snapshot: it then reads
/// what was published last.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Reader { shared }
    }

    /// Executes a range at the published revision, or at the older one it asks for.
    ///
    /// # Errors
    /// `FutureRevision`, `Compacted`; `Backend` if the store is damaged.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ApplyError> {
        let began = Instant::now();
        let outcome = self.range_unmeasured(request);
        self.shared.metrics.ranged(outcome.is_ok(), began.elapsed());
        outcome
    }

    fn range_unmeasured(&self, request: &RangeRequest) -> Result<RangeResponse, ApplyError> {
        let published = self.shared.load();
        if request.range_end.is_empty() {
            // One look at the index is consistent by itself, unless compaction overtook it.
            match range(&published.keyspace.glance(), request) {
                Err(ApplyError::Compacted) => {}
                other => return other,
            }
        }
        range(&published.keyspace.view(request.revision), request)
    }

    /// Executes a transaction that holds ranges alone (see [`is_read_only`](crate::is_read_only)) at the published
    /// revision.
    pub fn txn_read_only(&self, request: &TxnRequest) -> Result<TxnResponse, ApplyError> {
        let published = self.shared.load();
        txn_read_only(&published.keyspace.view(0), request)
    }

    /// The checksum of the keys' history up to `revision` (0: the present one), and the present revision. Equal on
    /// every member that gives the same compact revision.
    ///
    /// # Errors
    /// `FutureRevision`, `Compacted`; `Backend` if the store is damaged.
    pub fn hash_kv(&self, revision: i64) -> Result<(KeyValueHash, i64), ApplyError> {
        let began = Instant::now();
        let outcome = hash_kv(&self.shared.load().keyspace, revision);
        self.shared.metrics.hashed_revision(began.elapsed());
        outcome
    }

    /// A checksum of the whole backend as of its last commit, and the present revision. Not comparable between
    /// members.
    pub fn hash(&self) -> Result<(u32, i64), ApplyError> {
        let began = Instant::now();
        let published = self.shared.load();
        let pair = published.keyspace.pairs.load();
        let hash = hash_backend(&*pair.view)?;
        self.shared.metrics.hashed(began.elapsed());
        Ok((hash, published.keyspace.current()))
    }

    /// The published revision; 1 in a store nothing was written to.
    pub fn revision(&self) -> i64 {
        self.shared.load().keyspace.current()
    }

    /// Revision of the last compaction; −1 when there was none. What lies below cannot be read.
    pub fn compact_revision(&self) -> i64 {
        self.shared.load().keyspace.compacted()
    }

    /// Revision of the last compaction whose rows are physically gone; −1 when there was none.
    pub fn finished_compaction(&self) -> i64 {
        self.shared.load().keyspace.finished()
    }

    /// The membership.
    pub fn membership(&self) -> Arc<Membership> {
        self.shared.load().membership.clone()
    }

    /// The members, by ascending id.
    pub fn members(&self) -> Vec<Member> {
        self.shared.load().membership.members().cloned().collect()
    }

    /// One member.
    pub fn member(&self, id: MemberId) -> Option<Member> {
        self.shared.load().membership.member(id).cloned()
    }

    /// Whether a member was removed; it can never come back.
    pub fn is_removed(&self, id: MemberId) -> bool {
        self.shared.load().membership.is_removed(id)
    }

    /// The cluster version; `None` before it is decided.
    pub fn cluster_version(&self) -> Option<Version> {
        self.shared.load().membership.cluster_version()
    }

    /// The auth state, for checks outside of apply.
    pub fn auth(&self) -> Arc<AuthStore> {
        self.shared.load().auth.clone()
    }

    /// The lease table. Hold the lock briefly: apply takes it.
    pub fn leases(&self) -> Arc<RwLock<Leases>> {
        self.shared.load().leases.clone()
    }

    /// The alarms that stand.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.shared.load().alarms.list(0)
    }

    /// Bytes the backend takes, as of its last commit.
    pub fn size(&self) -> u64 {
        self.shared.load().sizes.total()
    }

    /// Bytes of the backend that hold something, as of its last commit.
    pub fn size_in_use(&self) -> u64 {
        self.shared.load().sizes.in_use()
    }

    /// The raft configuration after the last entry published.
    pub fn conf_state(&self) -> Arc<ConfState> {
        self.shared.load().conf_state.clone()
    }

    /// The backend's last commit as something that can be sent.
    pub fn image(&self) -> Result<Image, ImageError> {
        let published = self.shared.load();
        let view = published.keyspace.pairs.load().view.clone();
        Image::new(view, self.shared.metrics.clone())
    }
}
