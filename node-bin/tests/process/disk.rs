//! Data directories that are damaged, full, in use or somebody else's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kvstore::pb::etcdserverpb::{RangeRequest, RangeResponse};

use crate::member::{Member, Ports, SERVING, arguments, command, get, refusal};

/// Every file below a directory, with its content.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            let content = fs::read(&path).unwrap();
            files.push((path, content));
        }
    }
    files.sort();
    files
}

/// The directory of a member that has run, put a few values and ended in order.
fn used(data: &Path) {
    let mut member = Member::alone(data, &["--unsafe-wal-segment-bytes=65536"]);
    for _ in 0..8 {
        member.put("key", &"value ".repeat(20)).unwrap();
    }
    assert_eq!(member.terminate().code(), Some(0));
}

#[test]
fn a_damaged_log_is_refused_with_file_and_offset_and_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    used(&path);
    let segment = contents(&path.join("member/wal")).remove(0).0;
    let mut bytes = fs::read(&segment).unwrap();
    let text = b"value value";
    let at = bytes.windows(text.len()).position(|part| part == text);
    bytes[at.unwrap()] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let before = contents(&path);
    let error = refusal(command("m", &path, Ports::free()));
    let named = format!("{} is corrupt at offset ", segment.display());
    let offset = error.split(&named).nth(1).expect(&error);
    let offset: usize = offset.split(':').next().unwrap().parse().unwrap();
    assert!(offset > 0 && offset < at.unwrap(), "{error}");
    assert!(contents(&path) == before);
}

#[test]
fn a_damaged_store_is_refused_by_name_and_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    used(&path);
    let store = path.join("member/store.redb");
    let mut bytes = fs::read(&store).unwrap();
    bytes[..512].fill(0xa5);
    fs::write(&store, bytes).unwrap();

    let before = contents(&path);
    let error = refusal(command("m", &path, Ports::free()));
    assert!(error.contains(&store.display().to_string()), "{error}");
    let after = contents(&path);
    let named = |file: &(PathBuf, Vec<u8>)| file.0 == store;
    assert!(after.iter().find(|file| named(file)) == before.iter().find(|file| named(file)));
}

#[test]
fn a_data_directory_in_use_is_refused_as_locked_and_its_owner_lives_on() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    let mut owner = Member::alone(&path, &[]);
    let error = refusal(command("m", &path, Ports::free()));
    assert!(error.contains("is locked"), "{error}");
    assert_eq!(get(owner.ports.client, "/health").0, 200);
    owner.put("key", "value").unwrap();
    assert_eq!(owner.terminate().code(), Some(0));
}

/// A limit on the size of files stands for a disk that is full: a write fails, the file ends where it ended.
#[test]
fn a_member_whose_disk_is_full_says_so_and_keeps_what_it_acknowledged() {
    const BLOCKS_OF_512: u32 = 6 * 2048;
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    let ports = Ports::free();
    let mut limited = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {BLOCKS_OF_512}; exec \"$0\" \"$@\"");
    limited
        .args(["-c", &script, env!("CARGO_BIN_EXE_node-bin")])
        .args(arguments("m", &path, ports))
        .arg("--unsafe-wal-segment-bytes=65536")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut member = Member::spawn(limited, ports);
    member.until(SERVING);
    let value = "v".repeat(512 * 1024);
    let acknowledged = (0..100)
        .take_while(|number| member.put(&format!("{number:03}"), &value).is_ok())
        .count();
    assert!((1..100).contains(&acknowledged), "{acknowledged}");
    let (lines, code) = member.end();
    // One line, whichever of log and store meets the full disk first.
    let fatal: Vec<_> = lines
        .iter()
        .filter(|line| line["level"] == "fatal")
        .collect();
    assert_eq!(fatal.len(), 1, "{fatal:?}");
    let reason = fatal[0]["reason"].as_str().unwrap();
    assert!(
        code == Some(1) && reason.contains("File too large"),
        "{code:?} {reason}"
    );

    let member = Member::alone(&path, &["--unsafe-wal-segment-bytes=65536"]);
    let all = RangeRequest {
        key: "0".into(),
        range_end: "1".into(),
        count_only: true,
        ..Default::default()
    };
    let found: RangeResponse = member.call("/etcdserverpb.KV/Range", all).unwrap();
    assert!(found.count >= acknowledged as i64, "{}", found.count);
}
