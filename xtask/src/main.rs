//! `cargo xtask VERB`: the only door to every workflow of this workspace.
//!
//! Each verb is a module with a `run` that takes the arguments after the verb. A failed run is told on stderr and
//! exits 1; a verb that does not exist prints the list and exits 2. Nothing here is needed to build the product.

mod bench;
mod client;
mod cluster;
mod codegen;
mod crash;
mod failover;
mod fuzz;
mod generated;
mod go_etcd;
mod history;
mod http_get;
mod interop;
mod layers;
mod load;
mod up;
mod verify;
mod workspace;

use std::process::ExitCode;

use workspace::Outcome;

/// A verb, its function and one line of help.
struct Verb {
    name: &'static str,
    run: fn(&[String]) -> Outcome,
    help: &'static str,
}

/// Every verb, in the order the help lists them.
const VERBS: &[Verb] = &[
    Verb {
        name: "up",
        run: |args| up::up(flag(args, "--check")?),
        help: "start three members on loopback; --check holds them to what must work and ends",
    },
    Verb {
        name: "test",
        run: |args| no_arguments(args).and_then(|()| verify::test()),
        help: "run all tests",
    },
    Verb {
        name: "verify",
        run: |args| no_arguments(args).and_then(|()| verify::verify()),
        help: "check format, lints, documentation, layers, generated code and tests",
    },
    Verb {
        name: "fix",
        run: |args| no_arguments(args).and_then(|()| verify::fix()),
        help: "format, and apply what the lints can mend",
    },
    Verb {
        name: "crash",
        run: |args| crash::crash(seed(args)?),
        help: "kill members under load and compare histories; --seed N repeats a run",
    },
    Verb {
        name: "failover",
        run: |args| no_arguments(args).and_then(|()| failover::failover()),
        help: "measure how long writes stand still when the leader is killed",
    },
    Verb {
        name: "interop",
        run: |args| interop::interop(one_of(args, &interop::PARTS)?),
        help: "run our transport, members and disks with Go's; `transport` or `tls` alone is quicker",
    },
    Verb {
        name: "bench",
        run: bench::bench,
        help: "puts against ours and Go's; `transport` for that alone, `ranges` beside large reads; --json FILE writes the figures",
    },
    Verb {
        name: "fuzz",
        run: fuzz::fuzz,
        help: "random input for decoders, rules and the peer port; [TARGET …] [--seconds N]",
    },
    Verb {
        name: "codegen",
        run: codegen::run,
        help: "generate the protobuf and gRPC code; --check only compares",
    },
    Verb {
        name: "layers",
        run: layers::run,
        help: "check dependencies, the top level and the README's map",
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(verb) = args.first().and_then(|name| find(name)) else {
        eprint!("{}", usage());
        return ExitCode::from(2);
    };
    match (verb.run)(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {}: {error}", verb.name);
            ExitCode::FAILURE
        }
    }
}

/// The verb of this name.
fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|verb| verb.name == name)
}

/// The list of verbs.
fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB [ARGUMENTS]\n\n");
    for verb in VERBS {
        text.push_str(&format!("  {:<10} {}\n", verb.name, verb.help));
    }
    text
}

/// No argument is taken.
fn no_arguments(args: &[String]) -> Outcome {
    match args.first() {
        Some(arg) => Err(format!("does not take `{arg}`")),
        None => Ok(()),
    }
}

/// Whether the only flag there is was given.
fn flag(args: &[String], name: &str) -> Outcome<bool> {
    match args {
        [] => Ok(false),
        [only] if only == name => Ok(true),
        _ => Err(format!("takes `{name}` or nothing")),
    }
}

/// Which of these words was given, if one was.
fn one_of<'a>(args: &'a [String], names: &[&str]) -> Outcome<Option<&'a str>> {
    match args {
        [] => Ok(None),
        [only] if names.contains(&only.as_str()) => Ok(Some(only)),
        _ => Err(format!("takes one of {names:?} or nothing")),
    }
}

/// The value of the only option there is.
fn value<'a>(args: &'a [String], name: &str) -> Outcome<Option<&'a str>> {
    match args {
        [] => Ok(None),
        [option, value] if option == name => Ok(Some(value)),
        _ => Err(format!("takes `{name} VALUE` or nothing")),
    }
}

/// The seed of a run: given, or drawn from the clock.
fn seed(args: &[String]) -> Outcome<u64> {
    match value(args, "--seed")? {
        Some(text) => text
            .parse()
            .map_err(|error| format!("--seed {text}: {error}")),
        None => Ok(std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |elapsed| elapsed.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_found_by_their_whole_name() {
        assert_eq!(find("codegen").map(|verb| verb.name), Some("codegen"));
        assert!(find("code").is_none());
        assert!(find("").is_none());
    }

    #[test]
    fn usage_lists_every_verb() {
        let usage = usage();
        for verb in VERBS {
            assert!(
                usage.contains(verb.name) && usage.contains(verb.help),
                "{usage}"
            );
        }
    }
}
