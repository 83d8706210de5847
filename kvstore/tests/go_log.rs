//! The log of a real cluster of etcd 3.4.23 and 3.5.30, applied here, gives the rows of its members' databases.
//!
//! The log has puts, deletes, a transaction, a lease, a compaction, users and roles, auth on and off, a learner that
//! joins and is removed, and requests of the v2 API.

use std::{
    ops::{Bound, ControlFlow},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use kvstore::{
    Response, Store, StoreConfig,
    auth::AuthStore,
    backend::{Backend, Batch, Bucket, memory::MemoryBackend},
    bolt::read::BoltFile,
    lease::Leases,
    membership::{Membership, MembershipEvent, json},
    pb::{
        authpb::{Role, User},
        leasepb::Lease,
    },
    version::Version,
};
use prost::Message;
use transport_core::{
    MemberId,
    raftpb::{self, ConfState},
};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// Entries of the log: kind, term, index, data.
fn entries() -> Vec<(u32, u64, u64, Bytes)> {
    let text = std::fs::read_to_string(fixture("entries.txt")).unwrap();
    let number = |word: &str| word.parse::<u64>().unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..][..2], 16).unwrap())
            .collect()
    };
    let entry = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        (
            number(words[2]) as u32,
            number(words[4]),
            number(words[6]),
            bytes(words[8]).into(),
        )
    };
    text.lines()
        .filter(|line| line.starts_with("ENTRY"))
        .map(entry)
        .collect()
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn applied() -> (Store, Arc<MemoryBackend>) {
    let backend = Arc::new(MemoryBackend::default());
    let mut store = Store::open_on(StoreConfig::new("unused"), backend.clone()).unwrap();
    let mut conf_state = ConfState::default();
    for (kind, term, index, data) in entries() {
        // The database stands at 62; what follows are elections.
        if index > 62 {
            break;
        }
        if kind == 0 {
            let applied = store.apply(index, term, &data).unwrap();
            if let Ok(Response::Authenticate(answer)) = &applied.outcome {
                assert_eq!(answer.token.len(), 16);
            }
            assert!(applied.outcome.is_ok(), "{index}: {applied:?}");
            continue;
        }
        let change = raftpb::decode_conf_change(data).unwrap();
        match store.conf_change(index, &change).unwrap() {
            MembershipEvent::Added {
                id, learner: true, ..
            } => conf_state.learners.push(id.0),
            MembershipEvent::Added { id, .. } => conf_state.voters.push(id.0),
            MembershipEvent::Removed { .. } => conf_state.learners.clear(),
            other => panic!("{other:?}"),
        }
        store.set_conf_state(index, term, &conf_state).unwrap();
    }
    store.flush().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.reader().finished_compaction() < 28 {
        assert!(Instant::now() < deadline, "the compaction does not end");
        std::thread::yield_now();
    }
    (store, backend)
}

fn ours(backend: &MemoryBackend, bucket: Bucket) -> Rows {
    let mut rows = Rows::new();
    let visit = &mut |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    let everything = (Bound::Unbounded, Bound::Unbounded);
    backend
        .view()
        .unwrap()
        .scan(bucket, everything, visit)
        .unwrap();
    rows
}

fn gos(file: &str, bucket: Bucket) -> Rows {
    let mut rows = Rows::new();
    let file = BoltFile::open(&fixture(file)).unwrap();
    file.scan(bucket.name().as_bytes(), &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

fn show_bytes(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// A row for each line, readable where it is text.
fn show(rows: &Rows) -> String {
    let line = |(key, value): &(Vec<u8>, Vec<u8>)| {
        format!("{} = {}\n", show_bytes(key), show_bytes(value))
    };
    rows.iter().map(line).collect()
}

#[test]
fn the_log_of_go_gives_the_rows_of_go_3_5() {
    let (store, backend) = applied();
    for bucket in Bucket::ALL {
        let (ours, gos) = (ours(&backend, bucket), gos("bulk.db", bucket));
        assert_eq!(show(&ours), show(&gos), "bucket {}", bucket.name());
    }
    let membership = store.reader().membership();
    assert_eq!(membership.members().len(), 3);
    assert!(membership.is_removed(MemberId(0xd0dc_0b27_1fa1_c7df)));
    assert_eq!(
        (
            store.reader().auth().revision(),
            store.reader().auth().enabled()
        ),
        (8, false)
    );
    assert_eq!(
        store.reader().leases().read().keys(0x66ee_a208_2d8d_1d08),
        ["l1"]
    );
}

#[test]
fn the_log_of_go_gives_the_rows_of_go_3_4_except_for_what_it_does_not_know() {
    let (_store, backend) = applied();
    for bucket in Bucket::ALL {
        let (mut ours, mut gos) = (ours(&backend, bucket), gos("go34.db", bucket));
        if bucket == Bucket::AuthUsers {
            // It does not know the field with the hash, and hashes an empty password.
            for (_, row) in ours.iter_mut().chain(&mut gos) {
                let mut user = User::decode(&row[..]).unwrap();
                assert!(user.password.starts_with(b"$2a$10$") && user.password.len() == 60);
                user.password = Bytes::new();
                *row = user.encode_to_vec();
            }
        }
        if bucket == Bucket::Meta {
            ours.retain(|(key, _)| key != b"term" && key != b"confState");
        }
        assert_eq!(show(&ours), show(&gos), "bucket {}", bucket.name());
    }
}

/// Loads what Go 3.6.16 wrote and writes it again.
#[test]
fn rows_of_go_3_6_are_written_as_they_were_read() {
    let rows = |bucket| gos("go36-snapshot.db", bucket);
    for (_, row) in rows(Bucket::Members) {
        let member = json::parse_member(&row).unwrap();
        assert_eq!(show_bytes(&json::member(&member)), show_bytes(&row));
    }
    let same = |again: Vec<u8>, row: Vec<u8>| assert_eq!(show_bytes(&again), show_bytes(&row));
    for (_, row) in rows(Bucket::AuthUsers) {
        same(User::decode(&row[..]).unwrap().encode_to_vec(), row);
    }
    for (_, row) in rows(Bucket::AuthRoles) {
        same(Role::decode(&row[..]).unwrap().encode_to_vec(), row);
    }
    for (_, row) in rows(Bucket::Lease) {
        same(Lease::decode(&row[..]).unwrap().encode_to_vec(), row);
    }
    let backend = MemoryBackend::default();
    let mut batch = Batch::default();
    for bucket in Bucket::ALL {
        for (key, value) in rows(bucket) {
            batch.put(bucket, key, value);
        }
    }
    backend.commit(&batch).unwrap();
    let view = backend.view().unwrap();
    let membership = Membership::load(&*view).unwrap();
    let learners: Vec<_> = membership
        .members()
        .map(|member| member.is_learner)
        .collect();
    assert_eq!(learners, [false, true]);
    assert_eq!(membership.cluster_version(), Some(Version::new(3, 6, 0)));
    let auth = AuthStore::load(&*view).unwrap();
    assert_eq!((auth.revision(), auth.enabled()), (7, false));
    assert!(auth.user("u1").unwrap().options.unwrap().no_password);
    let leases = Leases::load(&*view, 2).unwrap();
    assert_eq!(
        leases
            .iter()
            .map(|(_, times)| times.granted_s)
            .collect::<Vec<_>>(),
        [86_400]
    );
}

/// What three members of the cluster answered.
#[test]
fn the_log_of_go_gives_the_checksums_of_go() {
    let (store, _) = applied();
    for (revision, hash) in [
        (0, 3_468_069_608),
        (29, 2_574_489_185),
        (31, 880_151_855),
        (32, 1_717_909_043),
        (34, 3_773_432_267),
    ] {
        let (answer, current) = store.reader().hash_kv(revision).unwrap();
        assert_eq!(
            (answer.hash, answer.compact_revision, current),
            (hash, 28, 35),
            "at {revision}"
        );
    }
}
