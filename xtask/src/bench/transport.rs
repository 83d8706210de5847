//! `cargo xtask bench transport`: appends between two transports, against Go's and against the wire itself.
//!
//! Each carrier is a process of its own that holds both ends: ours and raw TCP with the same bytes are the bench
//! target of `transport-http`, Go's is `peers/bench`. A window of one message is a round trip; otherwise the sender
//! keeps that many in flight. What is told is per message, counted when the receiver's `process` is called;
//! allocations are those beyond the ones it takes to make the message.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    child::{Bencher, Figures},
    median, write_json,
};
use crate::workspace::{self, Outcome};

const ROUNDS: usize = 5;
/// Length of one run.
const RUN: Duration = Duration::from_millis(300);
/// Payloads in bytes.
const SIZES: [usize; 6] = [64, 256, 1 << 10, 4 << 10, 64 << 10, 1 << 20];
/// Messages in flight, and the largest payload measured with so many.
const WINDOWS: [(usize, usize); 3] = [(1, 1 << 20), (64, 1 << 20), (2048, 16 << 10)];

/// Runs the workflow; `json` names a file for the figures.
pub fn bench(json: Option<&Path>) -> Outcome {
    let ours = build_ours()?;
    let mut benchers = vec![
        Bencher::start("ours", &ours, &["transport"])?,
        Bencher::start("tcp", &ours, &["tcp"])?,
    ];
    match build_go() {
        Ok(program) => benchers.push(Bencher::start("go", &program, &[])?),
        Err(reason) => eprintln!("without Go: {reason}"),
    }
    println!(
        "{:<16} {:<5} {:>11} {:>9} {:>11} {:>8}  ours is",
        "case", "", "ns", "MB/s", "CPU ns", "allocs"
    );
    let mut told = Vec::new();
    for (window, largest) in WINDOWS {
        for size in SIZES.into_iter().filter(|size| *size <= largest) {
            let medians = measure(&mut benchers, size, window)?;
            tell(&benchers, size, window, &medians, &mut told);
        }
    }
    write_json(json, told)
}

/// Every carrier's medians for one case.
fn measure(benchers: &mut [Bencher], size: usize, window: usize) -> Outcome<Vec<Figures>> {
    let mut rounds = vec![Vec::new(); benchers.len()];
    for _ in 0..ROUNDS {
        for (bencher, figures) in benchers.iter_mut().zip(&mut rounds) {
            figures.push(bencher.run(size, window, RUN)?);
        }
    }
    let of = |figures: &[Figures], field: fn(&Figures) -> f64| {
        median(figures.iter().map(field).collect())
    };
    let medians = rounds.iter().map(|figures| Figures {
        ns: of(figures, |f| f.ns),
        cpu_ns: of(figures, |f| f.cpu_ns),
        allocs: of(figures, |f| f.allocs),
    });
    Ok(medians.collect())
}

fn tell(
    benchers: &[Bencher],
    size: usize,
    window: usize,
    medians: &[Figures],
    told: &mut Vec<Value>,
) {
    let case = format!("{} x {window}", shown(size));
    let ours = medians[0].ns;
    for (bencher, figures) in benchers.iter().zip(medians) {
        let mb_per_s = size as f64 * 1e3 / figures.ns;
        let ratio = match bencher.name {
            "ours" => String::new(),
            other => format!("{:.2} x {other}", figures.ns / ours),
        };
        println!(
            "{:<16} {:<5} {:>11.0} {mb_per_s:>9.0} {:>11.0} {:>8.2}  {ratio}",
            if bencher.name == "ours" { &case } else { "" },
            bencher.name,
            figures.ns,
            figures.cpu_ns,
            figures.allocs,
        );
        told.push(json!({
            "case": case,
            "size": size,
            "window": window,
            "impl": bencher.name,
            "ns_per_msg": figures.ns,
            "mb_per_s": mb_per_s,
            "allocs_per_msg": figures.allocs,
            "cpu_ns_per_msg": figures.cpu_ns,
        }));
    }
}

fn shown(bytes: usize) -> String {
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Builds the bench target and finds where it is.
fn build_ours() -> Outcome<PathBuf> {
    let built = workspace::output_of(&mut workspace::cargo(&[
        "build",
        "--release",
        "--quiet",
        "--package",
        "transport-http",
        "--bench",
        "transport",
        "--message-format=json",
    ]))?;
    let artifacts = built
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = artifacts.filter(|artifact| artifact["target"]["kind"][0] == "bench");
    let program = found.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from));
    program.ok_or_else(|| "cargo does not say where the bench target is".to_owned())
}

/// Builds Go's counterpart.
fn build_go() -> Outcome<PathBuf> {
    if !workspace::is_installed("go") {
        return Err("Go is not installed".into());
    }
    let program = workspace::target().join("go-etcd/transport-bench");
    workspace::run(
        Command::new("go")
            .current_dir(workspace::root().join("xtask/peers/bench"))
            .args(["build", "-o"])
            .arg(&program)
            .arg("."),
    )?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_their_unit() {
        assert_eq!(
            SIZES.map(shown),
            ["64 B", "256 B", "1 KiB", "4 KiB", "64 KiB", "1 MiB"]
        );
    }
}
