//! The program itself, as scripts and harnesses meet it before a member runs: what it prints where, and its exit codes.

use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node-bin"));
    command
        .args(args)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The log lines on standard error.
fn log(output: &Output) -> Vec<Value> {
    text(&output.stderr)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

#[test]
fn version_and_help_go_to_standard_output() {
    let output = run(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_string).collect();
    assert!(lines[0].starts_with("etcd Version: 3.6."), "{lines:?}");
    let keys: Vec<&str> = lines
        .iter()
        .map(|line| line.split_once(": ").unwrap().0)
        .collect();
    assert_eq!(
        keys,
        ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch"]
    );

    let output = run(&["--help"], &[]);
    assert_eq!(
        (output.status.code(), output.stderr.is_empty()),
        (Some(0), true)
    );
    assert!(text(&output.stdout).contains("\n  --initial-cluster-state 'new'\n"));
}

#[test]
fn a_wrong_command_line_exits_with_2_and_says_why_first() {
    for (args, message) in [
        (&["--nosuch"][..], "flag provided but not defined: -nosuch"),
        (
            &["--heartbeat-interval=abc"],
            "invalid value \"abc\" for flag -heartbeat-interval: parse error",
        ),
        (&["--name"], "flag needs an argument: -name"),
    ] {
        let output = run(args, &[]);
        assert_eq!(
            (output.status.code(), output.stdout.is_empty()),
            (Some(2), true),
            "{args:?}"
        );
        let stderr = text(&output.stderr);
        assert!(
            stderr.lines().next() == Some(message) && stderr.contains("Usage:"),
            "{stderr}"
        );
    }
}

#[test]
fn settings_that_do_not_fit_exit_with_1_and_a_log_line() {
    let output = run(&["--name=x", "--heartbeat-interval=300"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let lines = log(&output);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["level"], &last["msg"]),
        (&"warn".into(), &"failed to verify flags".into())
    );
    let error =
        "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]";
    assert_eq!(last["error"], error);
    let running = lines
        .iter()
        .find(|line| line["msg"] == "Running: ")
        .unwrap();
    assert_eq!(running["args"][1], "--name=x");

    let output = run(&["--cert-file=x"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        log(&output).last().unwrap()["error"],
        "--cert-file: TLS for clients is not supported yet"
    );
}

#[test]
fn a_variable_beside_its_flag_is_fatal() {
    let output = run(&["--name=y"], &[("ETCD_NAME", "x")]);
    assert_eq!(output.status.code(), Some(1));
    let lines = log(&output);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["level"], &last["environment-variable"]),
        (&"fatal".into(), &"ETCD_NAME".into())
    );
    assert!(
        last["msg"]
            .as_str()
            .unwrap()
            .starts_with("conflicting environment variable"),
        "{last}"
    );
}
