//! Runs the example that joins a recorded stream, on recordings of Go members.

#[path = "../examples/recorded_stream.rs"]
mod example;

mod support;

use transport_core::{
    MemberId,
    handshake::StreamKind,
    raftpb::{Message, MessageType},
};

fn join(recording: &[u8], kind: StreamKind) -> Result<Vec<Message>, String> {
    example::join(recording, kind, MemberId(0x22), MemberId(0x11))
        .map_err(|error| error.to_string())
}

#[test]
fn recordings_of_go_members_are_joined_and_read_to_their_end() {
    let messages = join(
        &support::fixture("message-from-3.6.16-leader.http"),
        StreamKind::Message,
    )
    .unwrap();
    assert_eq!(messages.len(), 145);
    assert!(messages.iter().any(Message::is_link_heartbeat));
    let votes = |kind| messages.iter().filter(|m| m.kind() == Some(kind)).count();
    assert_eq!(votes(MessageType::RequestVote), 1);
    let messages = join(
        &support::fixture("msgapp-from-3.6.16.http"),
        StreamKind::MsgAppV2,
    )
    .unwrap();
    let entries: usize = messages.iter().map(|m| m.entries.len()).sum();
    assert_eq!(
        (
            messages.iter().filter(|m| m.is_link_heartbeat()).count(),
            entries
        ),
        (7, 56)
    );
}

#[test]
fn what_is_no_stream_is_not_joined() {
    let refused = b"HTTP/1.1 410 Gone\r\nX-Server-Version: 3.6.16\r\n\r\n";
    assert!(
        join(refused, StreamKind::Message)
            .unwrap_err()
            .contains("Removed")
    );
    let foreign = b"HTTP/1.1 200 OK\r\nServer: something\r\n\r\n";
    assert!(
        join(foreign, StreamKind::Message)
            .unwrap_err()
            .contains("Unsupported")
    );
    assert!(join(b"SSH-2.0-OpenSSH_9.9\r\n", StreamKind::Message).is_err());
}
