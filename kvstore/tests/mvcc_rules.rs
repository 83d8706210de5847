//! The rules of revisions, put, delete, range, leases and compaction, one by one.

mod common;

use common::*;
use kvstore::{
    ApplyError, Response,
    pb::etcdserverpb::{
        PutRequest, RangeRequest, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};

#[test]
fn revisions_begin_at_one_and_count_transactions_with_a_change() {
    let mut log = Log::new();
    let reader = log.store.reader();
    assert_eq!((reader.revision(), reader.compact_revision()), (1, -1));
    assert_eq!(log.put("a", "1"), 2);
    assert_eq!(log.put("a", "1"), 3, "an equal value is a change");
    assert_eq!(log.delete("zz", ""), 0);
    assert_eq!(reader.revision(), 3, "deleting nothing is no change");
    assert_eq!(log.delete("a", ""), 1);
    assert_eq!(reader.revision(), 4);
    log.ok(internal(txn(TxnRequest::default())));
    assert_eq!(reader.revision(), 4, "an empty transaction is no change");
}

#[test]
fn put_counts_versions_within_a_generation() {
    let mut log = Log::new();
    log.put("k", "1");
    log.put("k", "2");
    let kv = get(&log, "k");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 3, 2));
    log.delete("k", "");
    log.put("k", "3");
    let kv = get(&log, "k");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn put_options() {
    let mut log = Log::new();
    log.grant(7);
    let put = |change: &dyn Fn(&mut PutRequest)| {
        let mut request = put_request("k", "new");
        change(&mut request);
        internal(Request::RequestPut(request))
    };
    let ignore_value = |request: &mut PutRequest| {
        request.ignore_value = true;
        request.value.clear();
    };
    let ignore_lease = |request: &mut PutRequest| request.ignore_lease = true;
    assert_eq!(log.err(put(&ignore_value)), ApplyError::KeyNotFound);
    assert_eq!(log.err(put(&ignore_lease)), ApplyError::KeyNotFound);
    assert_eq!(log.err(put(&|r| r.lease = 8)), ApplyError::LeaseNotFound);
    let both = |r: &mut PutRequest| (r.lease, r.ignore_value) = (8, true);
    assert_eq!(
        log.err(put(&both)),
        ApplyError::LeaseNotFound,
        "the lease is looked at first"
    );
    assert_eq!(
        log.store.reader().revision(),
        1,
        "refusals consume no revision"
    );

    log.ok(put(&|r| r.lease = 7));
    log.ok(put(&ignore_value));
    let kv = get(&log, "k");
    assert_eq!(
        (&kv.value[..], kv.lease),
        (&b"new"[..], 0),
        "the lease is given anew each time"
    );
    log.ok(put(&|r| r.lease = 7));
    let Response::Put(response) = log.ok(put(&|r| {
        ignore_lease(r);
        r.value = "newer".into();
        r.prev_kv = true;
    })) else {
        panic!()
    };
    assert_eq!(response.prev_kv.unwrap().value, "new");
    assert_eq!(response.header.unwrap().revision, 5);
    let kv = get(&log, "k");
    assert_eq!((&kv.value[..], kv.lease), (&b"newer"[..], 7));
}

#[test]
fn deletes_take_interval_rules_and_return_what_was_there() {
    let mut log = Log::new();
    for key in ["a", "b", "b1", "c", "d"] {
        log.put(key, key);
    }
    assert_eq!(log.delete("c", "a"), 0);
    assert_eq!(log.delete("b", "c"), 2);
    let mut request = delete("b", "\0");
    if let Request::RequestDeleteRange(request) = &mut request {
        request.prev_kv = true;
    }
    let Response::DeleteRange(response) = log.ok(internal(request)) else {
        panic!()
    };
    assert_eq!(
        (response.deleted, show_kvs(&response.prev_kvs)),
        (2, "c=c d=d".to_owned())
    );
    assert_eq!(log.show(&range_request("\0", "\0")), "a=a");
    assert_eq!(
        log.show(&RangeRequest {
            revision: 7,
            ..range_request("b", "\0")
        }),
        "c=c d=d"
    );
}

fn all(change: impl Fn(&mut RangeRequest)) -> RangeRequest {
    let mut request = range_request("\0", "\0");
    change(&mut request);
    request
}

#[test]
fn range_limits_filters_and_orders() {
    let log = five();
    let sorted = |target: SortTarget, order: SortOrder| {
        move |r: &mut RangeRequest| {
            (r.sort_target, r.sort_order) = (target as i32, order as i32);
        }
    };
    use {SortOrder::*, SortTarget::*};
    // (request, answer, more); count is 4 whatever the limit and the filters.
    let cases: Vec<(RangeRequest, &str, bool)> = vec![
        (all(|_| {}), "a=4 b=2 c=3 d=0", false),
        (all(|r| r.limit = 2), "a=4 b=2", true),
        (all(|r| r.limit = 4), "a=4 b=2 c=3 d=0", false),
        (all(|r| r.limit = -1), "a=4 b=2 c=3 d=0", false),
        (all(|r| r.keys_only = true), "a= b= c= d=", false),
        (all(|r| r.count_only = true), "", false),
        (all(|r| (r.count_only, r.limit) = (true, 1)), "", false),
        (all(|r| r.min_mod_revision = 4), "a=4 c=3 d=0", false),
        (all(|r| r.max_mod_revision = 4), "b=2 c=3", false),
        (
            all(|r| (r.min_mod_revision, r.max_mod_revision) = (4, 5)),
            "a=4 c=3",
            false,
        ),
        (all(|r| r.min_create_revision = 4), "c=3 d=0", false),
        (all(|r| r.max_create_revision = 3), "a=4 b=2", false),
        (
            all(|r| (r.min_mod_revision, r.limit) = (4, 2)),
            "a=4 c=3",
            true,
        ),
        (
            all(|r| (r.min_mod_revision, r.limit) = (6, 1)),
            "d=0",
            false,
        ),
        (all(sorted(Key, Ascend)), "a=4 b=2 c=3 d=0", false),
        (all(sorted(Key, Descend)), "d=0 c=3 b=2 a=4", false),
        (all(sorted(Mod, Ascend)), "b=2 c=3 a=4 d=0", false),
        (all(sorted(Mod, Descend)), "d=0 a=4 c=3 b=2", false),
        (all(sorted(Create, Descend)), "d=0 c=3 b=2 a=4", false),
        (all(sorted(Value, Ascend)), "d=0 b=2 c=3 a=4", false),
        (all(sorted(Version, Descend)), "a=4 b=2 c=3 d=0", false),
        (all(sorted(Mod, None)), "b=2 c=3 a=4 d=0", false),
        (
            all(|r| {
                sorted(Mod, Descend)(r);
                r.limit = 2
            }),
            "d=0 a=4",
            true,
        ),
        // An order of NONE sorts only what the limit let through, as in etcd: a, b and c were looked at.
        (
            all(|r| {
                sorted(Value, None)(r);
                r.limit = 2
            }),
            "b=2 c=3",
            true,
        ),
        (
            all(|r| {
                sorted(Value, Descend)(r);
                r.keys_only = true;
                r.limit = 1
            }),
            "a=",
            true,
        ),
        // What no proposer of today lets through keeps key order.
        (all(|r| r.sort_target = 9), "a=4 b=2 c=3 d=0", false),
        (
            all(|r| (r.sort_target, r.sort_order) = (2, 9)),
            "a=4 b=2 c=3 d=0",
            false,
        ),
    ];
    for (request, expected, more) in cases {
        let response = range_of(&log, &request);
        assert_eq!(show_kvs(&response.kvs), expected, "{request:?}");
        assert_eq!((response.more, response.count), (more, 4), "{request:?}");
        assert_eq!(response.header.unwrap().revision, 6);
    }
}

#[test]
fn range_reads_the_past_down_to_the_compaction() {
    let mut log = five();
    let at = |revision| all(|r| r.revision = revision);
    assert_eq!(log.show(&at(4)), "a=1 b=2 c=3");
    assert_eq!(log.show(&at(0)), log.show(&at(6)));
    assert_eq!(log.show(&at(-3)), log.show(&at(6)));
    assert_eq!(log.show(&at(1)), "");
    let future = ApplyError::FutureRevision;
    assert_eq!(log.store.reader().range(&at(7)), Err(future.clone()));
    assert_eq!(log.compact(7), Err(future));
    log.compact(4).unwrap();
    assert_eq!(log.store.reader().compact_revision(), 4);
    assert_eq!(
        log.show(&at(4)),
        "a=1 b=2 c=3",
        "the compacted revision itself can be read"
    );
    let compacted = ApplyError::Compacted;
    assert_eq!(log.store.reader().range(&at(3)), Err(compacted.clone()));
    let one = RangeRequest {
        revision: 3,
        ..range_request("a", "")
    };
    assert_eq!(log.store.reader().range(&one), Err(compacted.clone()));
    assert_eq!(log.compact(4), Err(compacted.clone()));
    assert_eq!(log.compact(0), Err(compacted));
    let response = range_of(&log, &at(5));
    assert_eq!(
        response.header.unwrap().revision,
        6,
        "the header has the present revision"
    );
}

#[test]
fn sort_options_are_told_apart() {
    let request = |order, target| RangeRequest {
        sort_order: order,
        sort_target: target,
        ..Default::default()
    };
    assert!(kvstore::is_valid_sort(&request(2, 4)));
    assert!(!kvstore::is_valid_sort(&request(3, 0)));
    assert!(!kvstore::is_valid_sort(&request(0, 5)));
    assert!(!kvstore::is_valid_sort(&request(-1, 0)));
}

#[test]
fn a_lease_follows_its_keys_and_takes_them_with_it() {
    let mut log = Log::new();
    log.grant(7);
    log.grant(8);
    let put = |log: &mut Log, key: &str, lease| {
        let request = PutRequest {
            lease,
            ..put_request(key, "v")
        };
        log.ok(internal(Request::RequestPut(request)));
    };
    for (key, lease) in [
        ("b", 7),
        ("a", 7),
        ("moved", 7),
        ("moved", 8),
        ("freed", 7),
        ("freed", 0),
    ] {
        put(&mut log, key, lease);
    }
    put(&mut log, "gone", 7);
    log.delete("gone", "");
    log.put("gone", "again");
    let attached = |log: &Log, lease| log.store.reader().leases().read().keys(lease);
    assert_eq!(attached(&log, 7), ["a", "b"]);
    assert_eq!(attached(&log, 8), ["moved"]);
    let before = log.store.reader().revision();
    let revoke = |id| kvstore::pb::etcdserverpb::InternalRaftRequest {
        lease_revoke: Some(kvstore::pb::etcdserverpb::LeaseRevokeRequest { id }),
        ..Default::default()
    };
    let applied = log.apply(revoke(7));
    assert_eq!(applied.revision, before + 1);
    let keys: Vec<_> = applied
        .events
        .iter()
        .map(|event| event.key_value().key)
        .collect();
    assert_eq!(keys, ["a", "b"], "in one revision, in key order");
    assert_eq!(log.err(revoke(7)), ApplyError::LeaseNotFound);
    log.delete("moved", "");
    assert_eq!(
        log.apply(revoke(8)).revision,
        before + 2,
        "a lease without keys takes no revision"
    );
    assert_eq!(log.show(&range_request("\0", "\0")), "freed=v gone=again");
}
