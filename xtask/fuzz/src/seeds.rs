//! What fuzzing starts from: the captures and files of real members that the crates' tests hold.
//!
//! Depends on those fixtures' places and on the shape of a captured connection (heads, chunked bodies).

use std::{fs, path::Path};

/// The seeds of a target, each with a name. `root` is the workspace's folder.
pub fn seeds(root: &Path, target: &str) -> Vec<(String, Vec<u8>)> {
    let wire = root.join("transport-core/tests/fixtures");
    match target {
        "raftpb" => messages(&wire),
        "message_stream" => streams(&wire, "message-from-"),
        "msgappv2_stream" => streams(&wire, "msgapp-from-"),
        "answer" => answers(&wire),
        "snapshot_envelope" => bodies(&wire, "snapshot-post-head-", &[7]),
        "handshake" => heads(&wire),
        "peer_port" => requests(&wire),
        "wal" => whole(&root.join("raft-node/tests/fixtures"), "wal"),
        "snap" => whole(&root.join("raft-node/tests/fixtures"), "snap"),
        "bolt" => whole(&root.join("kvstore/tests/fixtures"), "db"),
        "v2store" => whole(&root.join("kvstore/tests/fixtures"), "json"),
        _ => Vec::new(),
    }
}

/// Larger files would only slow fuzzing down.
const SEED_BYTES_MAX: usize = 1 << 20;

/// The files with this ending.
fn whole(dir: &Path, ending: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = files(dir);
    found.retain(|(name, bytes)| name.ends_with(ending) && bytes.len() <= SEED_BYTES_MAX);
    found
}

/// All files of a folder, by name.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<(String, Vec<u8>)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, fs::read(entry.path()).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// The bodies of the captures whose names begin so, behind `prefix`.
fn bodies(dir: &Path, begin: &str, prefix: &[u8]) -> Vec<(String, Vec<u8>)> {
    let captures = files(dir)
        .into_iter()
        .filter(|(name, _)| name.starts_with(begin));
    captures
        .filter_map(|(name, bytes)| {
            let at = head_end(&bytes)?;
            let chunked = contains(&bytes[..at], b"chunked");
            let body = if chunked {
                unchunk(&bytes[at..])
            } else {
                bytes[at..].to_vec()
            };
            Some((name, [prefix, &body].concat()))
        })
        .collect()
}

/// Bodies of streams; the byte before says in pieces of how many bytes to feed it.
fn streams(dir: &Path, begin: &str) -> Vec<(String, Vec<u8>)> {
    bodies(dir, begin, &[7])
}

/// The messages in the frames of the message streams and in the bodies of pipeline requests.
fn messages(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = bodies(dir, "pipeline-post-", &[]);
    for (name, body) in bodies(dir, "message-from-", &[]) {
        let mut rest = &body[..];
        let mut at = 0;
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let length = u64::from_be_bytes(*length) as usize;
            let Some(message) = after.get(..length) else {
                break;
            };
            found.push((format!("{name}-{at}"), message.to_vec()));
            rest = &after[length..];
            at += 1;
        }
    }
    found
}

/// Heads of requests and answers, a line each.
fn heads(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let captures = files(dir)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".http"));
    captures
        .filter_map(|(name, bytes)| {
            let head = String::from_utf8_lossy(&bytes[..head_end(&bytes)?]).replace('\r', "");
            Some((name, head.into_bytes()))
        })
        .collect()
}

/// Whole answers, body included; the byte before says in pieces of how many bytes to feed them.
fn answers(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = files(dir);
    found.retain(|(_, bytes)| bytes.starts_with(b"HTTP/1.1 "));
    for (_, bytes) in &mut found {
        bytes.insert(0, 7);
    }
    found
}

/// Whole requests, addressed to the member that the target runs.
fn requests(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let is_request = |name: &str| {
        [
            "pipeline-post",
            "stream-request",
            "snapshot-post",
            "probing",
        ]
        .iter()
        .any(|begin| name.starts_with(begin))
    };
    let captures = files(dir).into_iter().filter(|(name, _)| is_request(name));
    captures
        .map(|(name, bytes)| (name, addressed(&bytes)))
        .collect()
}

/// The capture with ids that the target knows in its head.
fn addressed(bytes: &[u8]) -> Vec<u8> {
    let Some(at) = head_end(bytes) else {
        return bytes.to_vec();
    };
    let head = String::from_utf8_lossy(&bytes[..at]);
    let mut lines: Vec<String> = Vec::new();
    for line in head.split("\r\n") {
        let name = line.split(':').next().unwrap_or_default();
        lines.push(match name.to_ascii_lowercase().as_str() {
            "x-etcd-cluster-id" => "X-Etcd-Cluster-Id: abc".into(),
            "x-raft-to" => "X-Raft-To: 2".into(),
            "x-server-from" => "X-Server-From: 1".into(),
            _ => match line.rsplit_once('/') {
                // The path of a stream ends in the id of who asks.
                Some((path, _)) if line.contains("/raft/stream/") => {
                    let path = path.rsplit_once('/').map_or(path, |(path, _)| path);
                    format!("{path}/1 HTTP/1.1")
                }
                _ => line.to_string(),
            },
        });
    }
    [lines.join("\r\n").as_bytes(), &bytes[at..]].concat()
}

/// Where the body begins.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(at + 4)
}

fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    bytes.windows(pattern.len()).any(|window| window == pattern)
}

/// A chunked body as far as it was captured.
fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = str::from_utf8(&rest[..end]).ok();
        let Some(size) = size.and_then(|digits| usize::from_str_radix(digits, 16).ok()) else {
            break;
        };
        let data = &rest[end + 2..];
        body.extend_from_slice(&data[..size.min(data.len())]);
        rest = data.get(size + 2..).unwrap_or_default();
    }
    body
}
