//! What an entry's data is: nothing, a request of the v3 API, or one of the v2 API as members before 3.6 write it.
//!
//! The two kinds share field numbers. Field 2 decides: in a v2 request it is the method, in a v3 request a message
//! that no method's letters parse as (etcd: server/etcdserver/apply_v2.go tries one and then the other; here the
//! choice is explicit).
//!
//! Invariant: any bytes decode to a value or an error, in time and memory proportional to their length.

use bytes::Bytes;
use prost::Message;

use super::{
    fields::{Value, fields},
    nested,
};
use crate::pb::etcdserverpb::{InternalRaftRequest, RequestHeader};

/// The request in an entry.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// The no-op of a new leader, or a configuration change that a leader refused.
    Empty,
    /// A request of the v2 API, bare or wrapped.
    V2(V2Request),
    /// A request of the v3 API, and the id its proposer waits by.
    V3(u64, Box<InternalRaftRequest>),
}

/// The parts of a v2 request that matter to members of today.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct V2Request {
    pub id: u64,
    pub method: Bytes,
    pub path: Bytes,
    pub val: Bytes,
}

const V2_METHODS: [&[u8]; 6] = [b"GET", b"PUT", b"POST", b"DELETE", b"QGET", b"SYNC"];

/// Decodes an entry's data.
pub(crate) fn decode(data: &Bytes) -> Result<Decoded, String> {
    if data.is_empty() {
        return Ok(Decoded::Empty);
    }
    let second = field(data, 2).ok_or("its fields cannot be told apart")?;
    if let Some(second) = second {
        // Either way it is taken apart as bytes: what v2 clients stored need not be UTF-8.
        let bare = V2_METHODS.contains(&&second[..]);
        return v2(if bare { data } else { &second }).map(Decoded::V2);
    }
    let request = match InternalRaftRequest::decode(data.clone()) {
        Ok(request) => request,
        // Damaged, or only deeper than prost goes.
        Err(error) => nested::decode(data).map_err(|why| format!("{error} ({why})"))?,
    };
    let id = match (request.id, &request.header) {
        (0, Some(RequestHeader { id, .. })) => *id,
        (0, None) => return Err("it has neither id nor header".into()),
        (id, _) => id,
    };
    Ok(Decoded::V3(id, Box::new(request)))
}

/// Whether an entry's data begin with a put, as far as can be told without taking them apart. Members write no
/// other field before it.
pub(crate) fn is_put(data: &[u8]) -> bool {
    const PUT: u8 = 4 << 3 | 2;
    data.first() == Some(&PUT)
}

fn v2(data: &Bytes) -> Result<V2Request, String> {
    let mut request = V2Request::default();
    for field in fields(data) {
        let field = field.map_err(|_| "a v2 request that does not parse")?;
        match (field.number, field.value) {
            (1, Value::Number(id)) => request.id = id,
            (2, Value::Bytes(bytes)) => request.method = bytes,
            (3, Value::Bytes(bytes)) => request.path = bytes,
            (4, Value::Bytes(bytes)) => request.val = bytes,
            _ => {}
        }
    }
    Ok(request)
}

/// The last length-delimited field `number`; the outer `None` when the bytes are no message.
fn field(data: &Bytes, number: u64) -> Option<Option<Bytes>> {
    let mut found = None;
    for field in fields(data) {
        let field = field.ok()?;
        if let (true, Value::Bytes(bytes)) = (field.number == number, field.value) {
            found = Some(bytes);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pb::etcdserverpb::{PutRequest, Request};

    fn v2_request(method: &str) -> Request {
        Request {
            id: Some(77),
            method: Some(method.into()),
            path: Some("/0/version".into()),
            val: Some("3.5.0".into()),
            ..Default::default()
        }
    }

    #[test]
    fn bare_and_wrapped_v2_requests_are_told_from_v3() {
        for method in ["GET", "PUT", "POST", "DELETE", "QGET", "SYNC"] {
            let bare = v2_request(method).encode_to_vec();
            let wrapped = InternalRaftRequest {
                v2: Some(v2_request(method)),
                ..Default::default()
            };
            for data in [bare, wrapped.encode_to_vec()] {
                let Ok(Decoded::V2(request)) = decode(&data.into()) else {
                    panic!("{method} is not v2");
                };
                assert_eq!((request.id, &request.method[..]), (77, method.as_bytes()));
                assert_eq!(&request.val[..], b"3.5.0");
            }
        }
    }

    #[test]
    fn a_put_is_told_by_its_first_byte() {
        let header = Some(RequestHeader {
            id: 9,
            ..Default::default()
        });
        let put = InternalRaftRequest {
            header: header.clone(),
            put: Some(PutRequest::default()),
            ..Default::default()
        };
        let range = InternalRaftRequest {
            header,
            range: Some(Default::default()),
            ..Default::default()
        };
        assert!(is_put(&put.encode_to_vec()));
        assert!(!is_put(&range.encode_to_vec()));
        assert!(!is_put(&v2_request("PUT").encode_to_vec()));
        assert!(!is_put(&[]));
    }

    #[test]
    fn values_of_the_v2_api_need_not_be_text() {
        let data = Bytes::from_static(b"\x08\x05\x12\x03PUT\x1a\x02/1\x22\x02\xff\xfe\x28\x00");
        assert!(matches!(decode(&data), Ok(Decoded::V2(request)) if request.id == 5));
    }

    #[test]
    fn the_waiter_is_named_by_the_old_field_or_the_header() {
        let put = |id, header: Option<u64>| {
            let request = InternalRaftRequest {
                id,
                header: header.map(|id| RequestHeader {
                    id,
                    ..Default::default()
                }),
                put: Some(PutRequest::default()),
                ..Default::default()
            };
            decode(&request.encode_to_vec().into())
        };
        assert!(matches!(put(0, Some(9)), Ok(Decoded::V3(9, _))));
        assert!(matches!(put(8, Some(9)), Ok(Decoded::V3(8, _))));
        assert!(matches!(put(8, None), Ok(Decoded::V3(8, _))));
        assert!(put(0, None).is_err());
        assert!(matches!(decode(&Bytes::new()), Ok(Decoded::Empty)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&data.into()));
        }
    }
}
