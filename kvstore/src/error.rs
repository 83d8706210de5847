//! The errors of the state machine: [`ApplyError`] for what a request can be answered, [`FatalError`] for what must
//! end the process, [`OpenError`] for a store that cannot be opened.
//!
//! The texts of [`ApplyError`] are etcd's, byte for byte: clients compare strings (etcd: api/v3rpc/rpctypes/error.go).

use std::path::PathBuf;

use crate::backend::BackendError;

/// The gRPC status code an [`ApplyError`] travels with, by its canonical number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Code {
    /// No code of its own.
    Unknown = 2,
    /// The request is wrong whatever the state.
    InvalidArgument = 3,
    /// What it names does not exist.
    NotFound = 5,
    /// The caller may not.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// The state forbids it.
    FailedPrecondition = 9,
    /// Beyond the range of what exists.
    OutOfRange = 11,
    /// The member is not able to at present.
    Unavailable = 14,
    /// Data is damaged.
    DataLoss = 15,
    /// The caller is not who it says.
    Unauthenticated = 16,
}

/// Why a request was not carried out. Refusing changed nothing; the entry still counts as applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A range, put or delete without a key.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// `ignore_value` together with a value.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// `ignore_lease` together with a lease.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More operations in a transaction than allowed.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// A transaction that would write one key twice.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// A sort order or target that does not exist.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// A cluster version for a member that cannot be parsed.
    #[error("etcdserver: given member URLs are invalid")]
    MemberBadUrls,
    /// No user name.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// No role name.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// Wrong user or password.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A permission request without a permission.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// Something that would leave auth without a root.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    /// The token is of an older auth state.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// A downgrade target that is not a version.
    #[error("etcdserver: wrong downgrade target version format")]
    WrongDowngradeVersionFormat,
    /// A downgrade target that cannot be reached.
    #[error("etcdserver: invalid downgrade target version")]
    InvalidDowngradeTargetVersion,
    /// No such lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// No such member.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// The revision lies below the last compaction.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The revision has not happened yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// A lease longer than 9 000 000 000 s.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// The database quota is used up.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// A lease with that id exists.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A member with that id exists, or existed.
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    /// A member has one of these peer URLs.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// Promotion of a member that is a voter.
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    /// No room for another learner.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// Auth cannot be enabled without a root user.
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    /// Auth cannot be enabled while root lacks the root role.
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    /// A user with that name exists.
    #[error("etcdserver: user name already exists")]
    UserExists,
    /// No such user.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// A role with that name exists.
    #[error("etcdserver: role name already exists")]
    RoleExists,
    /// No such role.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// The user does not hold the role.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// The role does not hold the permission.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// Auth is off.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// A downgrade is going on.
    #[error("etcdserver: cluster has a downgrade job in progress")]
    DowngradeInProcess,
    /// No downgrade is going on.
    #[error("etcdserver: no inflight downgrade job")]
    NoInflightDowngrade,
    /// The user may not.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// The token is not one of ours.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// A corruption alarm stands.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// A read met the backend and failed; the member is about to stop.
    #[error("etcdserver: reading the store failed: {0}")]
    Backend(String),
}

impl ApplyError {
    /// The code etcd sends with this error.
    pub fn code(&self) -> Code {
        use ApplyError::*;
        match self {
            EmptyKey
            | KeyNotFound
            | ValueProvided
            | LeaseProvided
            | TooManyOps
            | DuplicateKey
            | InvalidSortOption
            | MemberBadUrls
            | UserEmpty
            | RoleEmpty
            | AuthFailed
            | PermissionNotGiven
            | InvalidAuthManagement
            | AuthOldRevision
            | WrongDowngradeVersionFormat
            | InvalidDowngradeTargetVersion => Code::InvalidArgument,
            LeaseNotFound | MemberNotFound => Code::NotFound,
            Compacted | FutureRevision | LeaseTtlTooLarge => Code::OutOfRange,
            NoSpace => Code::ResourceExhausted,
            LeaseExists | MemberExists | PeerUrlExists | MemberNotLearner | TooManyLearners
            | RootUserNotExist | RootRoleNotExist | UserExists | UserNotFound | RoleExists
            | RoleNotFound | RoleNotGranted | PermissionNotGranted | AuthNotEnabled
            | DowngradeInProcess | NoInflightDowngrade => Code::FailedPrecondition,
            PermissionDenied => Code::PermissionDenied,
            InvalidAuthToken => Code::Unauthenticated,
            Corrupt => Code::DataLoss,
            Backend(_) => Code::Unknown,
        }
    }
}

impl From<BackendError> for ApplyError {
    fn from(error: BackendError) -> Self {
        ApplyError::Backend(error.to_string())
    }
}

/// What the member cannot survive: going on would make its state differ from the other members', or lose
/// acknowledged writes. The owner ends the process.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// The entry holds nothing this version knows how to apply.
    #[error("entry {index} cannot be applied: {reason}; a newer member may have written it")]
    UnknownRequest {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The entry is understood and impossible in the replicated state.
    #[error("entry {index} contradicts the replicated state: {reason}")]
    Impossible {
        /// Index of the entry.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A write to the backend failed; it is never retried, since what reached the disk is unknown.
    #[error("writing the backend failed: {0}")]
    Commit(String),
    /// A read of the backend failed or found what cannot be.
    #[error("reading the backend failed: {0}")]
    Read(String),
    /// A thread of the store panicked: the backend's engine does on some damage.
    #[error("thread {thread} panicked: {message}")]
    Panicked {
        /// Its name.
        thread: &'static str,
        /// What it said.
        message: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a store cannot be opened or an image cannot be installed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backend does not open or cannot be read.
    #[error("opening the store at {path}: {source}")]
    Backend {
        /// The file concerned.
        path: PathBuf,
        /// What the backend says.
        source: BackendError,
    },
    /// A row does not hold what its bucket promises.
    #[error("the store holds a damaged row in bucket {bucket}: {reason}")]
    Damaged {
        /// Name of the bucket.
        bucket: &'static str,
        /// What is wrong with the row.
        reason: String,
    },
    /// A snapshot and its database do not belong together.
    #[error("the database is at index {found}, its snapshot at {expected}")]
    IndexMismatch {
        /// Index of the snapshot's metadata.
        expected: u64,
        /// Consistent index of the database.
        found: u64,
    },
    /// The file system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, to which file.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store could not go on right after it was opened.
    #[error(transparent)]
    Fatal(#[from] FatalError),
    /// A background thread could not be started.
    #[error("starting the {0} thread: {1}")]
    Thread(&'static str, std::io::Error),
}

/// A consistent answer could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Nothing has been committed to the backend yet.
    #[error("the backend holds no entry yet")]
    Empty,
    /// The backend could not be read.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A row does not hold what its bucket promises.
    #[error("the backend holds a damaged row: {0}")]
    Damaged(String),
}
