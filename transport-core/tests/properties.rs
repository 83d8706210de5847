//! Random messages survive every framing however the bytes are cut, agree with the derived protobuf codec,
//! and random bytes never panic.

mod support;

use bytes::{Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use transport_core::{
    ClusterId, MemberId,
    frame::{FrameError, message, msgappv2, snapshot},
    handshake::{Headers, Version},
    raftpb::*,
};

use support::{appends, entry, message, pieces, snapshot};

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    vec(prop_oneof![1usize..20, 1000usize..50_000], 1..5)
}

/// Bytes that look like messages more often than noise does.
fn almost_messages() -> impl Strategy<Value = Bytes> {
    let noise = vec(any::<u8>(), 0..200).prop_map(Bytes::from);
    let small = vec(
        prop_oneof![0u8..16, Just(0x3a), Just(0x4a), Just(0x62)],
        0..200,
    );
    let damaged = (
        message(),
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    );
    let damaged = damaged.prop_map(|(message, at, byte, cut)| {
        let mut bytes = message.encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
        }
        Bytes::from(bytes)
    });
    prop_oneof![noise, small.prop_map(Bytes::from), damaged]
}

fn drain(
    body: &Bytes,
    sizes: &[usize],
    mut feed: impl FnMut(Bytes) -> Result<Vec<Message>, FrameError>,
) -> Result<Vec<Message>, FrameError> {
    let mut messages = Vec::new();
    for piece in pieces(body, sizes) {
        messages.extend(feed(piece)?);
    }
    Ok(messages)
}

fn read_messages(body: &Bytes, sizes: &[usize]) -> Result<Vec<Message>, FrameError> {
    let mut decoder = message::Decoder::new();
    drain(body, sizes, |piece| {
        decoder.feed(piece);
        let mut found = Vec::new();
        while let Some(message) = decoder.next()? {
            found.push(message);
        }
        Ok(found)
    })
}

fn read_appends(body: &Bytes, sizes: &[usize]) -> Result<Vec<Message>, FrameError> {
    let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
    drain(body, sizes, |piece| {
        decoder.feed(piece);
        let mut found = Vec::new();
        while let Some(message) = decoder.next()? {
            found.push(message);
        }
        Ok(found)
    })
}

/// Whether a piece is the memory of a payload.
fn is(piece: &Bytes, payload: &Bytes) -> bool {
    piece.as_ptr() == payload.as_ptr() && piece.len() == payload.len()
}

/// The pieces of `output` one behind the other, and how many of them are one of `payloads`.
fn joined(mut output: Output, payloads: &[&Bytes]) -> (Vec<u8>, usize) {
    let (mut bytes, mut kept) = (Vec::new(), 0);
    let length = output.len();
    while let Some(piece) = output.pop() {
        kept += usize::from(payloads.iter().any(|payload| is(&piece, payload)));
        bytes.extend_from_slice(&piece);
    }
    assert!(output.is_empty());
    assert_eq!(bytes.len(), length);
    (bytes, kept)
}

proptest! {
    #[test]
    fn an_output_holds_the_bytes_of_a_buffer_and_copies_no_large_payload(
        messages in vec(message(), 0..8),
        appends in appends(),
    ) {
        let (mut buffer, mut output) = (BytesMut::new(), Output::new());
        let mut encoder = message::Encoder::new();
        for message in &messages {
            encoder.encode(message, &mut buffer).unwrap();
            encoder.encode(message, &mut output).unwrap();
        }
        let (mut whole, mut pieces) = (msgappv2::Encoder::new(), msgappv2::Encoder::new());
        for append in &appends {
            whole.encode(append, &mut buffer).unwrap();
            pieces.encode(append, &mut output).unwrap();
        }
        let all = || messages.iter().chain(&appends);
        let entries = all().flat_map(|m| &m.entries).map(|e| &e.data);
        let snapshots = all().filter_map(|m| m.snapshot.as_ref()).map(|s| &s.data);
        let contexts = all().map(|m| &m.context);
        let large: Vec<&Bytes> = entries
            .chain(snapshots)
            .chain(contexts)
            .filter(|payload| payload.len() >= REFERENCE_BYTES_MIN)
            .collect();
        let (bytes, kept) = joined(output, &large);
        prop_assert!(bytes == buffer[..]);
        prop_assert_eq!(kept, large.len());
    }

    #[test]
    fn messages_are_written_as_the_derived_codec_writes_them(message in message()) {
        let mut ours = BytesMut::new();
        encode_message(&message, &mut ours);
        prop_assert_eq!(ours.len(), encoded_len(&message));
        prop_assert_eq!(&ours[..], &message.encode_to_vec()[..]);
        prop_assert_eq!(decode_message(ours.freeze()), Ok(message));
    }

    #[test]
    fn entries_and_their_kin_survive(entry in entry(), snapshot in snapshot(), change in any::<(u64, i32, u64)>()) {
        let mut ours = BytesMut::new();
        encode_entry(&entry, &mut ours);
        prop_assert_eq!(ours.len(), entry_len(&entry));
        prop_assert_eq!(&ours[..], &entry.encode_to_vec()[..]);
        prop_assert_eq!(decode_entry(ours.freeze()), Ok(entry.clone()));
        prop_assert_eq!(decode_snapshot(snapshot.encode_to_vec().into()), Ok(snapshot.clone()));
        if let Some(state) = snapshot.metadata.and_then(|m| m.conf_state) {
            prop_assert_eq!(decode_conf_state(state.encode_to_vec().into()), Ok(state));
        }
        let hard = HardState { term: change.0, vote: change.2, commit: entry.index };
        prop_assert_eq!(decode_hard_state(hard.encode_to_vec().into()), Ok(hard));
        let change = ConfChange { id: change.0, change_type: change.1, node_id: change.2, context: entry.data };
        prop_assert_eq!(decode_conf_change(change.encode_to_vec().into()), Ok(change.clone()));
        prop_assert_eq!(ConfChange::decode(change.encode_gogo()), Ok(change));
    }

    #[test]
    fn what_we_accept_the_derived_codec_reads_alike(bytes in almost_messages()) {
        if let Ok(ours) = decode_message(bytes.clone()) {
            let mut theirs = Message::decode(bytes).unwrap();
            if theirs.msg_type != MessageType::Snapshot as i32 {
                theirs.snapshot = theirs.snapshot.filter(|s| !s.is_empty());
            }
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn the_message_stream_survives_any_cut(messages in vec(message(), 0..8), sizes in sizes()) {
        let mut body = BytesMut::new();
        let mut encoder = message::Encoder::new();
        for message in &messages {
            let before = body.len();
            let counted = encoder.encode(message, &mut body).unwrap();
            prop_assert_eq!(body.len() - before, 8 + counted);
        }
        prop_assert_eq!(read_messages(&body.freeze(), &sizes), Ok(messages));
    }

    #[test]
    fn the_append_stream_survives_any_cut(messages in appends(), sizes in sizes()) {
        let mut body = BytesMut::new();
        let mut encoder = msgappv2::Encoder::new();
        for message in &messages {
            let counted = encoder.encode(message, &mut body).unwrap();
            prop_assert_eq!(counted, encoded_len(message));
        }
        prop_assert_eq!(read_appends(&body.freeze(), &sizes), Ok(messages));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in almost_messages(), sizes in sizes()) {
        let _ = decode_entry(bytes.clone());
        let _ = decode_conf_change(bytes.clone());
        let _ = decode_conf_state(bytes.clone());
        let _ = decode_snapshot(bytes.clone());
        let _ = decode_hard_state(bytes.clone());
        for length in [bytes.len() as u64, 0, 3, 1 << 40] {
            let mut framed = BytesMut::from(&length.to_be_bytes()[..]);
            framed.extend_from_slice(&bytes);
            let framed = framed.freeze();
            let whole = read_messages(&framed, &[framed.len()]);
            prop_assert_eq!(read_messages(&framed, &sizes).is_err(), whole.is_err());
            let mut decoder = snapshot::EnvelopeDecoder::new(1000);
            for piece in pieces(&framed, &sizes) {
                if !matches!(decoder.feed(piece), Ok(None)) {
                    break;
                }
            }
            for tag in 0..3 {
                let mut tagged = BytesMut::from(&[tag][..]);
                tagged.extend_from_slice(&framed);
                let tagged = tagged.freeze();
                let whole = read_appends(&tagged, &[tagged.len()]);
                prop_assert_eq!(read_appends(&tagged, &sizes).is_err(), whole.is_err());
            }
        }
        let _ = read_appends(&bytes, &sizes);
    }

    #[test]
    fn ids_are_read_as_printed(id in any::<u64>()) {
        prop_assert_eq!(MemberId(id).to_string().parse(), Ok(MemberId(id)));
        prop_assert_eq!(ClusterId(id).to_string(), format!("{id:x}"));
    }

    #[test]
    fn arbitrary_headers_never_panic(text in vec(32u8..=255, 0..40)) {
        let mut headers = http::HeaderMap::new();
        let text: Vec<u8> = text.into_iter().filter(|byte| *byte != 127).collect();
        let value = http::HeaderValue::from_bytes(&text).unwrap();
        for name in ["x-server-version", "x-min-cluster-version", "x-server-from", "x-peerurls"] {
            headers.insert(name, value.clone());
        }
        let read = Headers::new(&headers);
        if let Ok(version) = read.server_version() {
            prop_assert_eq!(version.to_string().parse::<Version>(), Ok(version));
        }
        let _ = (read.server_from(), read.peer_urls());
    }
}
