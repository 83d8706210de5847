//! `cargo xtask test`, `verify` and `fix`: what must hold before a change lands.

use std::time::Instant;

use crate::{
    codegen, layers,
    workspace::{self, Outcome},
};

/// All tests of the workspace, documentation examples included.
pub fn test() -> Outcome {
    workspace::run(&mut workspace::cargo(&[
        "test",
        "--workspace",
        "--all-features",
    ]))
}

/// Format, lints, documentation, layers, generated code and tests. Changes no file.
pub fn verify() -> Outcome {
    timed("format", || {
        workspace::run(&mut workspace::cargo(&["fmt", "--all", "--check"]))
    })?;
    timed("lints", || {
        workspace::run(&mut workspace::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    timed("documentation", || {
        let mut doc = workspace::cargo(&[
            "doc",
            "--workspace",
            "--no-deps",
            "--all-features",
            "--quiet",
        ]);
        workspace::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    timed("layers", || layers::run(&[]))?;
    timed("generated code", || codegen::run(&["--check".into()]))?;
    timed("tests", test)
}

/// Formats, and applies what the lints can mend by themselves.
pub fn fix() -> Outcome {
    workspace::run(&mut workspace::cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]))?;
    workspace::run(&mut workspace::cargo(&["fmt", "--all"]))
}

/// Runs a step and prints how long it took.
pub fn timed(name: &str, step: impl FnOnce() -> Outcome) -> Outcome {
    let started = Instant::now();
    println!("== {name}");
    step()?;
    println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
