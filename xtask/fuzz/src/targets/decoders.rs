//! The decoders of bytes from peers: whatever comes, an answer; and what was understood survives a round trip.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use transport_core::{
    ClusterId, MemberId,
    frame::{FrameError, message, msgappv2, snapshot},
    handshake::{
        DialVerdict, Endpoint, Identity, Membership, PostVerdict, StreamKind, Version, check_post,
        check_stream,
    },
    raftpb::{
        DecodeError, Message, decode_conf_change, decode_conf_state, decode_entry,
        decode_hard_state, decode_message, decode_snapshot, encode_entry, encode_message,
        encoded_len, entry_len,
    },
};

const LOCAL: MemberId = MemberId(2);
const REMOTE: MemberId = MemberId(1);
/// Of the decoders under test; far below the real limit, so that inputs can reach it.
const ENVELOPE_BYTES_MAX: u64 = 4 << 10;

/// Every message type; an entry and a message that decode are encoded, and decode to the same again.
pub fn raftpb(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let _ = decode_snapshot(bytes.clone());
    let _ = decode_hard_state(bytes.clone());
    let _ = decode_conf_state(bytes.clone());
    let _ = decode_conf_change(bytes.clone());
    if let Ok(entry) = decode_entry(bytes.clone()) {
        let mut again = BytesMut::new();
        encode_entry(&entry, &mut again);
        assert_eq!(again.len(), entry_len(&entry));
        assert_eq!(decode_entry(again.freeze()).as_ref(), Ok(&entry));
    }
    if let Ok(message) = decode_message(bytes) {
        match decode_message(encoded(&message)) {
            // Empty entries between other fields: what is left of them alone is too little for so many.
            Err(DecodeError::TooManyEntries { .. }) => {}
            again => assert_eq!(again.as_ref(), Ok(&message)),
        }
    }
}

fn encoded(message: &Message) -> Bytes {
    let mut bytes = BytesMut::new();
    encode_message(message, &mut bytes);
    assert_eq!(bytes.len(), encoded_len(message));
    bytes.freeze()
}

/// The framing of the message stream; how the input is cut into pieces changes nothing.
pub fn message_stream(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let decode = |step| {
        use message::Decoder;
        let steps = (Decoder::feed as _, Decoder::next as _, Decoder::finish as _);
        decoded(Decoder::new(), steps, data, step)
    };
    let whole = decode(data.len());
    assert_eq!(decode(step.into()), whole);
    let mut stream = BytesMut::new();
    let mut encoder = message::Encoder::new();
    for message in &whole.0 {
        encoder
            .encode(message, &mut stream)
            .expect("it was decoded");
    }
    let mut decoder = message::Decoder::new();
    decoder.feed(stream.freeze());
    for message in &whole.0 {
        assert_eq!(decoder.next().as_ref(), Ok(&Some(message.clone())));
    }
}

/// The framing of the compact append stream; what was understood is what an encoder would have sent.
pub fn msgappv2_stream(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let decode = |step| {
        use msgappv2::Decoder;
        let steps = (Decoder::feed as _, Decoder::next as _, Decoder::finish as _);
        decoded(Decoder::new(LOCAL, REMOTE), steps, data, step)
    };
    let whole = decode(data.len());
    assert_eq!(decode(step.into()), whole);
    let (mut encoder, mut stream) = (msgappv2::Encoder::new(), BytesMut::new());
    // A whole message of another kind decodes; it is not the encoder's to send. Of a link heartbeat nothing
    // but that it is one is ever sent.
    let sent: Vec<&Message> = whole
        .0
        .iter()
        .filter(|message| !message.is_link_heartbeat())
        .filter(|message| encoder.encode(message, &mut stream).is_ok())
        .collect();
    let mut decoder = msgappv2::Decoder::new(LOCAL, REMOTE);
    decoder.feed(stream.freeze());
    for message in sent {
        let again = decoder
            .next()
            .expect("an encoder wrote it")
            .expect("and whole");
        // The compact form carries the position, not the addresses.
        let again = Message {
            to: message.to,
            from: message.from,
            ..again
        };
        assert_eq!(&again, message);
    }
}

/// How a decoder of streams is fed, asked, and told that nothing more comes.
type Steps<D> = (
    fn(&mut D, Bytes),
    fn(&mut D) -> Result<Option<Message>, FrameError>,
    fn(&D) -> Result<(), FrameError>,
);

/// The messages in `data`, fed in pieces of `step` bytes until one is refused, and how it ended.
fn decoded<D>(
    mut decoder: D,
    (feed, next, finish): Steps<D>,
    data: &[u8],
    step: usize,
) -> (Vec<Message>, Result<(), FrameError>) {
    let mut found = Vec::new();
    for piece in data.chunks(step.max(1)) {
        feed(&mut decoder, Bytes::copy_from_slice(piece));
        loop {
            match next(&mut decoder) {
                Ok(Some(message)) => found.push(message),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
    }
    (found, finish(&decoder))
}

/// The head of a snapshot: message and database together are the input, byte for byte.
pub fn snapshot_envelope(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let mut decoder = snapshot::EnvelopeDecoder::new(ENVELOPE_BYTES_MAX);
    let mut fed = 0;
    for piece in data.chunks(usize::from(step).max(1)) {
        fed += piece.len();
        match decoder.feed(Bytes::copy_from_slice(piece)) {
            Ok(None) => {}
            Ok(Some(envelope)) => {
                let head = 8 + envelope.message_bytes as usize;
                assert_eq!(envelope.database.concat(), &data[head..fed]);
                assert!(envelope.message_bytes <= ENVELOPE_BYTES_MAX);
                return;
            }
            Err(_) => {
                let again = decoder.feed(Bytes::from_static(b"more"));
                assert!(again.is_err(), "an error stays");
                return;
            }
        }
    }
    let _ = decoder.finish();
}

struct Members;

impl Membership for Members {
    fn is_removed(&self, id: MemberId) -> bool {
        id == MemberId(9)
    }

    fn is_peer(&self, id: MemberId) -> bool {
        id == REMOTE
    }
}

/// Heads of requests and answers: a verdict for each, never 403, and its texts are printable.
pub fn handshake(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let (method, path) = match first.iter().position(|byte| *byte == b' ') {
        Some(at) => (&first[..at], &first[at + 1..]),
        None => (first, &b""[..]),
    };
    let headers = headers(lines);
    let local = Identity::new(LOCAL, ClusterId(0xabc), Version::new(3, 6, 0));
    let method = Method::from_bytes(method).unwrap_or(Method::GET);
    let path = String::from_utf8_lossy(path);
    if let Err(verdict) = check_stream(&local, &method, &path, &headers, &Members) {
        refusal(&local, &verdict, Endpoint::Stream);
    }
    if let Err(verdict) = check_post(&local, &method, &headers) {
        refusal(&local, &verdict, Endpoint::Raft);
    }
    let status = u16::from(first.first().copied().unwrap_or_default()) + 100;
    let status = StatusCode::from_u16(status * 2).unwrap_or(StatusCode::OK);
    for kind in StreamKind::ALL {
        let _ = DialVerdict::read(local.server_version, kind, status, &headers, first);
    }
    let _ = PostVerdict::read(status, first);
}

fn refusal(local: &Identity, verdict: &transport_core::handshake::Verdict, endpoint: Endpoint) {
    assert_ne!(verdict.status(), StatusCode::FORBIDDEN);
    assert!(!verdict.status().is_success());
    let _ = (verdict.body(), verdict.headers(local, endpoint));
}

fn headers<'a>(lines: impl Iterator<Item = &'a [u8]>) -> HeaderMap {
    let pairs = lines.filter_map(|line| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?;
        Some((name, value))
    });
    pairs.collect()
}
