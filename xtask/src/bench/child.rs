//! A program that answers each line on its stdin, a run, with one line of JSON: what the run cost.
//!
//! Invariant: the program ends with this handle.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::workspace::Outcome;

/// What one message cost in a run.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub ns: f64,
    pub cpu_ns: f64,
    pub allocs: f64,
}

/// A running program.
pub struct Bencher {
    /// How its figures are labelled.
    pub name: &'static str,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Bencher {
    /// Starts `program`.
    pub fn start(name: &'static str, program: &Path, args: &[&str]) -> Outcome<Bencher> {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("cannot talk to {}", program.display()));
        };
        Ok(Bencher {
            name,
            child,
            questions,
            answers: BufReader::new(answers),
        })
    }

    /// One run: messages with a payload of `size` bytes, `window` of them in flight, for `length`.
    pub fn run(&mut self, size: usize, window: usize, length: Duration) -> Outcome<Figures> {
        let mut answer = String::new();
        writeln!(self.questions, "{size} {window} {}", length.as_millis())
            .and_then(|()| self.answers.read_line(&mut answer))
            .map_err(|error| format!("{} does not answer: {error}", self.name))?;
        figures(&answer).ok_or_else(|| {
            format!(
                "{}, {size} B x {window}: no figures in `{answer}`",
                self.name
            )
        })
    }
}

impl Drop for Bencher {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn figures(answer: &str) -> Option<Figures> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    let messages = answer["messages"].as_f64().filter(|count| *count > 0.0)?;
    let per_message = |name: &str| Some(answer[name].as_f64()? / messages);
    Some(Figures {
        ns: per_message("ns")?,
        cpu_ns: per_message("cpu_ns")?,
        allocs: per_message("allocs")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_message() {
        let read = figures(r#"{"messages":4,"ns":400,"cpu_ns":600,"allocs":2}"#).unwrap();
        assert_eq!((read.ns, read.cpu_ns, read.allocs), (100.0, 150.0, 0.5));
        assert!(figures(r#"{"messages":0,"ns":400,"cpu_ns":600,"allocs":2}"#).is_none());
        assert!(figures("").is_none());
    }
}
