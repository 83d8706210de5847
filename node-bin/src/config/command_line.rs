//! The command line, by the rules of Go's `flag` package: `-name x`, `--name=x`, switches alone or `--switch=false`,
//! and the first word that is no flag ends the flags.
//!
//! Depends on `flags` and `value`. Invariant: the messages are Go's.

use super::{
    flags::find,
    settings::Settings,
    value::{self, Kind},
};

/// A command line that was understood.
#[derive(Debug, Default, PartialEq)]
pub struct CommandLine {
    /// The settings in it.
    pub settings: Settings,
    /// The first word that is no flag.
    pub stray: Option<String>,
    /// `-h` or `--help` was met; what follows it was not read.
    pub help: bool,
}

/// Reads the arguments, without the program's name. The error is a message for the terminal.
pub fn parse(args: &[String]) -> Result<CommandLine, String> {
    let mut line = CommandLine::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(body) = arg.strip_prefix('-').filter(|body| !body.is_empty()) else {
            line.stray = Some(arg.clone());
            break;
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            line.stray = args.next().cloned();
            break;
        }
        if body.starts_with(['-', '=']) {
            return Err(format!("bad flag syntax: {arg}"));
        }
        let (name, text) = body
            .split_once('=')
            .map_or((body, None), |(name, text)| (name, Some(text)));
        let Some(flag) = find(name) else {
            if matches!(name, "help" | "h") {
                line.help = true;
                break;
            }
            return Err(format!("flag provided but not defined: -{name}"));
        };
        let switch = matches!(flag.kind, Kind::Bool | Kind::Anything);
        let text = match (text, switch) {
            (Some(text), _) => text,
            (None, true) => "true",
            (None, false) => match args.next() {
                Some(text) => text,
                None => return Err(format!("flag needs an argument: -{name}")),
            },
        };
        let value = value::parse(flag.kind, text).map_err(|reason| {
            let what = if switch { "boolean value" } else { "value" };
            let of = if switch { "for" } else { "for flag" };
            format!("invalid {what} {text:?} {of} -{name}: {reason}")
        })?;
        line.settings.insert(flag, value);
    }
    Ok(line)
}

impl CommandLine {
    /// Whether `--version` was given.
    pub fn version(&self) -> bool {
        self.settings.bool("version")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Result<CommandLine, String> {
        parse(
            &words
                .split_whitespace()
                .map(str::to_string)
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn flags_take_either_form() {
        for words in [
            "-name x",
            "--name x",
            "-name=x",
            "--name=x",
            "--name y --name=x",
        ] {
            assert_eq!(
                line(words).unwrap().settings.text("name"),
                Some("x"),
                "{words}"
            );
        }
        assert!(!line("--pre-vote=false").unwrap().settings.bool("pre-vote"));
        assert!(
            line("--force-new-cluster")
                .unwrap()
                .settings
                .bool("force-new-cluster")
        );
        assert_eq!(
            line("--name=a=b").unwrap().settings.text("name"),
            Some("a=b")
        );
    }

    #[test]
    fn the_first_word_that_is_no_flag_ends_the_flags() {
        for (words, stray) in [
            ("foo --nosuch", "foo"),
            ("--pre-vote false", "false"),
            ("-- --foo", "--foo"),
            ("-", "-"),
        ] {
            assert_eq!(
                line(words).unwrap().stray.as_deref(),
                Some(stray),
                "{words}"
            );
        }
        assert_eq!(line("--").unwrap().stray, None);
    }

    #[test]
    fn errors_are_go_s() {
        let cases = [
            ("--nosuch", "flag provided but not defined: -nosuch"),
            ("--name", "flag needs an argument: -name"),
            ("---name x", "bad flag syntax: ---name"),
            ("--=x", "bad flag syntax: --=x"),
            (
                "--heartbeat-interval=abc",
                "invalid value \"abc\" for flag -heartbeat-interval: parse error",
            ),
            (
                "--grpc-keepalive-interval=5",
                "invalid value \"5\" for flag -grpc-keepalive-interval: parse error",
            ),
            (
                "--version=maybe",
                "invalid boolean value \"maybe\" for -version: parse error",
            ),
            (
                "--initial-cluster-state=bad",
                "invalid value \"bad\" for flag -initial-cluster-state: invalid value",
            ),
            (
                "--max-txn-ops=-1",
                "invalid value \"-1\" for flag -max-txn-ops: parse error",
            ),
            (
                "--v2-deprecation=bad",
                "invalid value \"bad\" for flag -v2-deprecation: invalid value \"bad\"",
            ),
            (
                "--feature-gates=Foo=true",
                "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
            ),
            (
                "--listen-peer-urls=http://127.0.0.1",
                "invalid value \"http://127.0.0.1\" for flag -listen-peer-urls: \
                 URL address does not have the form \"host:port\": http://127.0.0.1",
            ),
            (
                "--cors=foo",
                "invalid value \"foo\" for flag -cors: URL scheme must be http, https, unix, or unixs: foo",
            ),
        ];
        for (words, message) in cases {
            assert_eq!(line(words).map(|_| ()), Err(message.into()), "{words}");
        }
    }

    #[test]
    fn help_ends_the_reading() {
        for words in ["-h", "--help", "--name x -help --nosuch"] {
            assert!(line(words).unwrap().help, "{words}");
        }
    }

    #[test]
    fn flags_without_meaning_are_taken() {
        assert!(line("--v --snapshot=3 --config x").unwrap().stray.is_some());
    }
}
