//! What each fuzz target does with its input; the ordinary tests replay the corpora through the same functions.
//!
//! A target panics when an invariant breaks. Depends on the public interfaces of the crates only, so a target
//! says what an outsider may rely on.

mod admit;
mod answer;
mod decoders;
mod files;
mod peer_port;

/// A target: its name and what it does with an input.
pub struct Target {
    /// As `cargo xtask fuzz` knows it.
    pub name: &'static str,
    /// Panics when an invariant breaks.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "raftpb",
        run: decoders::raftpb,
    },
    Target {
        name: "message_stream",
        run: decoders::message_stream,
    },
    Target {
        name: "msgappv2_stream",
        run: decoders::msgappv2_stream,
    },
    Target {
        name: "answer",
        run: answer::answer,
    },
    Target {
        name: "snapshot_envelope",
        run: decoders::snapshot_envelope,
    },
    Target {
        name: "handshake",
        run: decoders::handshake,
    },
    Target {
        name: "admit",
        run: admit::admit,
    },
    Target {
        name: "peer_port",
        run: peer_port::peer_port,
    },
    Target {
        name: "wal",
        run: files::wal,
    },
    Target {
        name: "snap",
        run: files::snap,
    },
    Target {
        name: "bolt",
        run: files::bolt,
    },
    Target {
        name: "v2store",
        run: files::v2store,
    },
];

/// Runs the target of this name.
///
/// # Panics
///
/// When there is none, and when an invariant breaks.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target of this name").run)(data);
}
