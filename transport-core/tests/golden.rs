//! Golden bytes made by the real Go encoders of three generations.

mod support;

use bytes::{Bytes, BytesMut};
use transport_core::{
    MemberId,
    frame::{message, msgappv2},
    raftpb::{Entry, Message, MessageType, decode_message},
};

use support::{fixture, hex};

fn heartbeat() -> Message {
    Message {
        msg_type: MessageType::Heartbeat as i32,
        to: 2,
        from: 1,
        term: 5,
        commit: 300,
        ..Message::default()
    }
}

fn append_response() -> Message {
    Message {
        msg_type: MessageType::AppendResponse as i32,
        to: 1,
        from: 2,
        term: 5,
        index: 300,
        ..Message::default()
    }
}

fn propose() -> Message {
    Message {
        msg_type: MessageType::Propose as i32,
        to: 1,
        from: 2,
        entries: vec![Entry {
            data: Bytes::from_static(b"hi"),
            ..Entry::default()
        }],
        ..Message::default()
    }
}

fn append(log_term: u64, index: u64, commit: u64, entries: &[(u64, &'static str)]) -> Message {
    let entries = entries.iter().map(|(index, data)| Entry {
        entry_type: 0,
        term: 5,
        index: *index,
        data: Bytes::from_static(data.as_bytes()),
    });
    Message {
        msg_type: MessageType::Append as i32,
        to: 2,
        from: 1,
        term: 5,
        log_term,
        index,
        entries: entries.collect(),
        commit,
        ..Message::default()
    }
}

/// The messages of the golden files, by the names they have there.
fn named(name: &str) -> Message {
    match name {
        "linkhb" => Message::link_heartbeat(),
        "hb" => heartbeat(),
        "appresp" => append_response(),
        "prop" => propose(),
        "app" => append(4, 9, 9, &[(10, "")]),
        other => panic!("{other}"),
    }
}

fn frame(message: &Message) -> Bytes {
    let mut to = BytesMut::new();
    message::Encoder::new().encode(message, &mut to).unwrap();
    to.freeze()
}

fn read_frame(frame: &Bytes) -> Message {
    let mut decoder = message::Decoder::new();
    decoder.feed(frame.clone());
    let message = decoder.next().unwrap().unwrap();
    decoder.finish().unwrap();
    message
}

#[test]
fn frames_of_3_5_and_3_6_read_as_the_same_messages() {
    for file in ["golden-35.txt", "golden-36.txt"] {
        let text = String::from_utf8(fixture(file)).unwrap();
        let mut framed = 0;
        for line in text.lines().filter(|line| line.contains(" len=")) {
            let words: Vec<&str> = line.split(' ').collect();
            let bytes = hex(words[2]);
            let length: usize = words[1].strip_prefix("len=").unwrap().parse().unwrap();
            assert_eq!(bytes.len(), 8 + length);
            let message = read_frame(&bytes);
            assert_eq!(message, named(words[0]), "{file}: {}", words[0]);
            assert!(message.is_link_heartbeat() == (words[0] == "linkhb"));
            assert_eq!(read_frame(&frame(&message)), message);
            framed += 1;
        }
        assert_eq!(framed, 5, "{file}");
    }
}

#[test]
fn sparse_bytes_that_old_members_decoded_are_the_ones_we_write() {
    for file in ["golden-35.txt", "golden-36.txt"] {
        let text = String::from_utf8(fixture(file)).unwrap();
        let sparse = text.lines().filter(|line| line.contains(" <nil> "));
        let sparse: Vec<&str> = sparse.map(|line| line.split(' ').next().unwrap()).collect();
        let names = ["linkhb", "hb", "appresp", "prop", "app"];
        assert_eq!(sparse.len(), names.len(), "{file}");
        for (bytes, name) in sparse.into_iter().zip(names) {
            let bytes = hex(bytes);
            assert_eq!(decode_message(bytes.clone()), Ok(named(name)), "{name}");
            let ours = frame(&named(name)).slice(8..);
            // The one zero written there is the type of the append's entry.
            let sparser = if name == "app" {
                hex("0803100218012005280430093a04 1005180a 4009")
            } else {
                bytes
            };
            assert_eq!(ours, sparser, "{name}");
        }
    }
}

#[test]
fn message_frames_of_main_are_byte_for_byte_ours() {
    let text = String::from_utf8(fixture("golden-main-3.8.txt")).unwrap();
    let mut seen = 0;
    for line in text.lines().filter(|line| line.starts_with("MSG ")) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(frame(&named(words[1])), hex(words[2]), "{line}");
        seen += 1;
    }
    assert_eq!(seen, 4);
}

/// The sequence of the append stream's golden vectors.
fn append_stream() -> [Message; 6] {
    [
        Message::link_heartbeat(),
        append(4, 9, 9, &[(10, "")]),
        append(5, 10, 10, &[(11, "abc")]),
        append(5, 11, 11, &[]),
        append(5, 11, 11, &[(12, "x"), (13, "yz")]),
        append(5, 20, 11, &[(21, "q")]),
    ]
}

#[test]
fn the_append_stream_of_main_reads_as_its_messages() {
    let text = String::from_utf8(fixture("golden-main-3.8.txt")).unwrap();
    let frames = text.lines().filter(|line| line.starts_with("V2 "));
    let frames: Vec<Bytes> = frames
        .map(|l| hex(l.split(' ').next_back().unwrap()))
        .collect();
    let mut decoder = msgappv2::Decoder::new(MemberId(2), MemberId(1));
    assert_eq!(frames.len(), 6);
    for (frame, message) in frames.into_iter().zip(append_stream()) {
        decoder.feed(frame);
        assert_eq!(decoder.next(), Ok(Some(message)));
        assert_eq!(decoder.next(), Ok(None));
        decoder.finish().unwrap();
    }
}

#[test]
fn our_append_stream_differs_by_the_zero_types_alone() {
    let mut encoder = msgappv2::Encoder::new();
    for (message, ours, counted) in [
        (0, "00", 2),
        (
            1,
            "02 0000000000000014 0803100218012005280430093a041005180a4009",
            20,
        ),
        (
            2,
            "01 0000000000000001 0000000000000009 1005180b2203616263 000000000000000a",
            25,
        ),
        (3, "01 0000000000000000 000000000000000b", 14),
        (
            4,
            "01 0000000000000002 0000000000000007 1005180c220178 \
             0000000000000008 1005180d2202797a 000000000000000b",
            33,
        ),
        (
            5,
            "02 0000000000000017 0803100218012005280530143a0710051815220171400b",
            23,
        ),
    ] {
        let mut to = BytesMut::new();
        let length = encoder.encode(&append_stream()[message], &mut to).unwrap();
        assert_eq!(to, hex(ours), "{message}");
        assert_eq!(length, counted, "{message}");
    }
}

#[test]
fn state_begins_anew_with_each_connection() {
    let [_, _, abc, ..] = append_stream();
    let mut to = BytesMut::new();
    msgappv2::Encoder::new().encode(&abc, &mut to).unwrap();
    assert_eq!(to[0], 2, "nothing to continue from");
    let origin = Message {
        term: 0,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        ..abc
    };
    let mut to = BytesMut::new();
    msgappv2::Encoder::new().encode(&origin, &mut to).unwrap();
    assert_eq!(to[0], 1, "a fresh stream stands at term 0, index 0");
}

#[test]
fn the_captured_frames_of_3_4_read_as_documented() {
    let body = hex(
        "00 02 0000000000000037 0803 10e88df7ee97b8a6b957 18b6c2d4e29ea4cab5b601 2002 2801 3002 \
         3a06080010021803 4002 4a0a12080a0228001000180050005800 \
         01 0000000000000000 0000000000000005",
    );
    let (local, remote) = (
        MemberId(0x5772_99c1_7ddd_c6e8),
        MemberId(0xb66b_2921_ec55_2136),
    );
    let mut decoder = msgappv2::Decoder::new(local, remote);
    decoder.feed(body);
    assert!(decoder.next().unwrap().unwrap().is_link_heartbeat());
    let full = decoder.next().unwrap().unwrap();
    assert_eq!((full.to, full.from), (local.0, remote.0));
    assert_eq!(
        (full.term, full.log_term, full.index, full.commit),
        (2, 1, 2, 2)
    );
    assert_eq!((full.entries[0].term, full.entries[0].index), (2, 3));
    assert_eq!(full.snapshot, None);
    let compact = decoder.next().unwrap().unwrap();
    assert_eq!((compact.to, compact.from), (local.0, remote.0));
    assert_eq!((compact.term, compact.log_term), (2, 2));
    assert_eq!((compact.index, compact.commit), (3, 5));
}
