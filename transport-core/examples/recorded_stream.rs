//! Joins a stream that a Go etcd once sent: reads the recorded answer to a stream request, judges its head as a
//! dialling member would, and decodes its body as it would have come from the socket, piece by piece.
//!
//! ```sh
//! cargo run -p transport-core --example recorded_stream
//! cargo run -p transport-core --example recorded_stream -- message FILE
//! cargo run -p transport-core --example recorded_stream -- msgapp FILE ID_OF_THE_RECEIVER ID_OF_THE_SENDER
//! ```
//!
//! A recording is what `nc` or `tcpflow` writes: the bytes one member sent over one connection. What is particular to
//! this crate is in `join`; the rest takes HTTP apart, which a client library would do.

use std::{env, error::Error, fs};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use transport_core::{
    MemberId,
    frame::{FrameError, message, msgappv2},
    handshake::{DialVerdict, StreamKind, Version},
    raftpb::Message,
};

/// What we say we are; older members are refused what they do not serve.
const OUR_VERSION: Version = Version::new(3, 6, 0);
/// As much as a socket might give at once. Frames begin and end anywhere in it.
const PIECE_BYTES: usize = 100;

/// The messages of a recorded stream, in order.
///
/// `to` is the member that had asked for it and `from` the one that sent it; the append stream leaves them out where
/// they can be known.
pub fn join(
    recording: &[u8],
    kind: StreamKind,
    to: MemberId,
    from: MemberId,
) -> Result<Vec<Message>, Box<dyn Error>> {
    let (status, headers, rest) = read_head(recording)?;
    match DialVerdict::read(OUR_VERSION, kind, status, &headers, &[]) {
        DialVerdict::Accepted => {}
        refused => return Err(format!("this is no stream to read from: {refused:?}").into()),
    }
    // One decoder per connection: both remember where in the stream they are.
    let mut decoder = match kind {
        StreamKind::Message => Decoder::Message(message::Decoder::new()),
        StreamKind::MsgAppV2 => Decoder::MsgApp(msgappv2::Decoder::new(to, from)),
    };
    let mut messages = Vec::new();
    let body = unchunk(rest);
    for start in (0..body.len()).step_by(PIECE_BYTES) {
        decoder.feed(body.slice(start..body.len().min(start + PIECE_BYTES)));
        // A piece may hold no whole message, or several.
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

/// The two framings have the same shape.
enum Decoder {
    Message(message::Decoder),
    MsgApp(msgappv2::Decoder),
}

impl Decoder {
    fn feed(&mut self, piece: Bytes) {
        match self {
            Decoder::Message(decoder) => decoder.feed(piece),
            Decoder::MsgApp(decoder) => decoder.feed(piece),
        }
    }

    fn next(&mut self) -> Result<Option<Message>, FrameError> {
        match self {
            Decoder::Message(decoder) => decoder.next(),
            Decoder::MsgApp(decoder) => decoder.next(),
        }
    }
}

/// Status, headers, and what follows them.
fn read_head(recording: &[u8]) -> Result<(StatusCode, HeaderMap, &[u8]), Box<dyn Error>> {
    let end = recording
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or("no end of the head")?;
    let mut lines = str::from_utf8(&recording[..end])?.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let status = status.ok_or("no status line")?.parse()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header without a colon")?;
        headers.append(
            name.parse::<HeaderName>()?,
            value.trim().parse::<HeaderValue>()?,
        );
    }
    Ok((status, headers, &recording[end + 4..]))
}

/// The body without its chunk lengths. A recording may end anywhere.
fn unchunk(mut rest: &[u8]) -> Bytes {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = str::from_utf8(&rest[..end]).ok();
        let size = size.and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let Some(size @ 1..) = size else { break };
        let data = &rest[end + 2..];
        body.extend_from_slice(&data[..size.min(data.len())]);
        rest = data.get(size + 2..).unwrap_or_default();
    }
    body.into()
}

fn print(message: &Message) {
    if message.is_link_heartbeat() {
        return println!("link heartbeat");
    }
    let kind = message.kind().map(|kind| format!("{kind:?}"));
    println!(
        "{:22} {} → {}  term {:3}  index {:5}  commit {:5}  {} entries, {} bytes{}",
        kind.unwrap_or_else(|| format!("type {}", message.msg_type)),
        MemberId(message.from),
        MemberId(message.to),
        message.term,
        message.index,
        message.commit,
        message.entries.len(),
        message
            .entries
            .iter()
            .map(|entry| entry.data.len())
            .sum::<usize>(),
        if message.reject { "  rejected" } else { "" },
    );
}

#[allow(dead_code, reason = "the test of this example calls `join`")]
fn main() -> Result<(), Box<dyn Error>> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let recorded = |kind, name, [to, from]: [u64; 2]| {
        let file = format!("{fixtures}/{name}");
        (kind, file, MemberId(to), MemberId(from))
    };
    let members = [0x5ce0_794a_533f_a0dd, 0x692b_ffaf_34d1_0007];
    let streams = match arguments[..] {
        [] => vec![
            recorded(
                StreamKind::Message,
                "message-from-3.6.16-leader.http",
                members,
            ),
            recorded(StreamKind::MsgAppV2, "msgapp-from-3.6.16.http", members),
        ],
        ["message", file] => {
            vec![(StreamKind::Message, file.into(), MemberId(0), MemberId(0))]
        }
        ["msgapp", file, to, from] => {
            vec![(
                StreamKind::MsgAppV2,
                file.into(),
                to.parse()?,
                from.parse()?,
            )]
        }
        _ => return Err("usage: recorded_stream [message FILE | msgapp FILE TO FROM]".into()),
    };
    for (kind, file, to, from) in streams {
        println!("{kind} in {file}");
        for message in join(&fs::read(&file)?, kind, to, from)? {
            print(&message);
        }
    }
    Ok(())
}
