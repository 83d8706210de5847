//! `cargo xtask VERB`: the only door to every workflow of this workspace.
//!
//! Each verb is a module with a `run` that takes the arguments after the verb. A failed run is told on stderr and
//! exits 1; a verb that does not exist prints the list and exits 2. Nothing here is needed to build the product.

mod codegen;
mod generated;
mod layers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a workflow ends with; the error is all its reader gets, so it says what to do.
pub type Outcome<T = ()> = Result<T, String>;

/// A verb, its function and one line of help.
struct Verb {
    name: &'static str,
    run: fn(&[String]) -> Outcome,
    help: &'static str,
}

/// Every verb, in the order the help lists them.
const VERBS: &[Verb] = &[
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

/// The workspace this program was built from.
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
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
