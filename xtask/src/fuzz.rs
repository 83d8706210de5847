//! `cargo xtask fuzz`: random input for every decoder, for the rules of received messages and for the peer port.
//!
//! The targets lie in `xtask/fuzz`, a package of its own that cargo-fuzz builds with a nightly compiler. A run
//! starts from captures of real members and from what earlier runs found (`target/fuzz/corpus`); an input that
//! breaks something is kept, and belongs into `xtask/fuzz/regressions` once it is understood. The tests here
//! replay seeds and regressions through the same functions with the stable compiler.

#[path = "../fuzz/src/seeds.rs"]
mod seeds;

use std::{fs, path::PathBuf, process::Command};

use crate::workspace::{self, Outcome};

/// The targets, as `xtask/fuzz/src/targets/` names them.
const TARGETS: &[&str] = &[
    "raftpb",
    "message_stream",
    "msgappv2_stream",
    "answer",
    "snapshot_envelope",
    "handshake",
    "admit",
    "peer_port",
    "wal",
    "snap",
    "bolt",
    "v2store",
];
/// How long each target runs unless told otherwise.
const SECONDS: u64 = 60;
/// The longest input tried, in bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// What an input may make a target allocate at once; far above what its length justifies, far below what a
/// length field can promise.
const ALLOCATION_MIB_MAX: usize = 64;

/// Runs the targets named, or all; `--seconds N` sets how long each runs.
pub fn fuzz(args: &[String]) -> Outcome {
    let (targets, seconds) = parse(args)?;
    let tool = cargo_fuzz()?;
    for target in targets {
        let corpus = corpus(target)?;
        println!("== {target}: {seconds} s");
        let artifacts = workspace::target().join("fuzz/artifacts").join(target);
        fs::create_dir_all(&artifacts)
            .map_err(|error| format!("cannot create {}: {error}", artifacts.display()))?;
        let run = workspace::run(
            Command::new(&tool)
                .current_dir(workspace::root())
                .env("RUSTUP_TOOLCHAIN", "nightly")
                .env("CARGO_TARGET_DIR", workspace::target().join("fuzz/build"))
                .args(["fuzz", "run", "--fuzz-dir", "xtask/fuzz"])
                // The crates forbid unsafe code; without a sanitizer inputs run several times faster.
                .args(["--sanitizer", "none", target])
                .arg(&corpus)
                .arg("--")
                .arg(format!("-max_total_time={seconds}"))
                .arg(format!("-max_len={INPUT_BYTES_MAX}"))
                .arg(format!("-malloc_limit_mb={ALLOCATION_MIB_MAX}"))
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .args(["-print_final_stats=1", "-timeout=10", "-verbosity=0"]),
        );
        run.map_err(|error| format!("{target}: {error}\nthe input is in {}", artifacts.display()))?;
    }
    Ok(())
}

/// The targets and how long each runs.
fn parse(args: &[String]) -> Outcome<(Vec<&'static str>, u64)> {
    let (mut targets, mut seconds) = (Vec::new(), SECONDS);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--seconds" {
            let text = args.next().ok_or("--seconds takes a number")?;
            seconds = text
                .parse()
                .map_err(|error| format!("--seconds {text}: {error}"))?;
            continue;
        }
        let known = TARGETS.iter().find(|target| *target == arg);
        targets.push(
            *known.ok_or_else(|| format!("no target `{arg}`; there are {}", TARGETS.join(", ")))?,
        );
    }
    if targets.is_empty() {
        targets = TARGETS.to_vec();
    }
    Ok((targets, seconds))
}

/// The folder a target's corpus grows in, with the seeds and the inputs that once broke something.
fn corpus(target: &str) -> Outcome<PathBuf> {
    let dir = workspace::target().join("fuzz/corpus").join(target);
    fs::create_dir_all(&dir)
        .map_err(|error| format!("cannot create {}: {error}", dir.display()))?;
    for (name, bytes) in inputs(target) {
        let path = dir.join(name);
        fs::write(&path, bytes)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(dir)
}

/// Seeds and regressions of a target.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let root = workspace::root();
    let mut found = seeds::seeds(&root, target);
    let regressions = root.join("xtask/fuzz/regressions").join(target);
    found.extend(seeds::files(&regressions));
    found
}

/// Finds cargo-fuzz, or installs it below the target folder. It needs a nightly compiler.
fn cargo_fuzz() -> Outcome<PathBuf> {
    let nightly = workspace::output_of(Command::new("rustup").args(["toolchain", "list"]))?;
    if !nightly.lines().any(|line| line.starts_with("nightly")) {
        return Err("fuzzing needs a nightly compiler: rustup toolchain install nightly".into());
    }
    if workspace::is_installed("cargo-fuzz") {
        return Ok("cargo-fuzz".into());
    }
    let tools = workspace::target().join("tools");
    let found = tools.join("bin/cargo-fuzz");
    if !found.is_file() {
        eprintln!("installing cargo-fuzz (about a minute, once)");
        workspace::run(
            workspace::cargo(&["install", "cargo-fuzz", "--locked", "--root"]).arg(&tools),
        )?;
    }
    Ok(found)
}

#[cfg(test)]
#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_survives_its_seeds_and_all_that_once_broke_it() {
        let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
        assert_eq!(names, TARGETS);
        for target in TARGETS {
            let inputs = inputs(target);
            // Its input is a list of steps, of which there is no capture.
            assert!(!inputs.is_empty() || *target == "admit", "{target}");
            for (_, input) in inputs {
                targets::run(target, &input);
                // What a connection or a disk that fails in the middle leaves.
                for end in (0..input.len()).step_by(1 + input.len() / 40) {
                    targets::run(target, &input[..end]);
                }
            }
        }
    }

    #[test]
    fn targets_are_chosen_by_name() {
        let args = ["admit".to_string(), "--seconds".into(), "5".into()];
        assert_eq!(parse(&args), Ok((vec!["admit"], 5)));
        assert_eq!(parse(&[]), Ok((TARGETS.to_vec(), SECONDS)));
        assert!(parse(&["nothing".into()]).is_err());
        assert!(parse(&["--seconds".into()]).is_err());
    }
}
