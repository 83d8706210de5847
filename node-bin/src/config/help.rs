//! What `--help`, `--version` and a wrong command line print.
//!
//! Depends on `table`. Invariant: the first line of the version begins as etcd's, because scripts read it.

use super::{
    flags::{Effect, Section},
    table::FLAGS,
    value::Kind,
};
use crate::version;

/// The short text that follows an error about the command line.
pub fn usage() -> &'static str {
    "Usage:\n\n  \
     etcd [flags]\n    Run a member.\n\n  \
     etcd --version\n    Print the version.\n\n  \
     etcd -h | --help\n    Print what the flags mean.\n\n  \
     etcd --config-file FILE\n    Run a member with the settings of a file alone; other flags and the environment do not count.\n"
}

/// Every setting with its default and meaning.
pub(super) fn help() -> String {
    let mut text = String::new();
    for (section, heading) in Section::HEADINGS {
        text += &format!("\n{heading}:\n");
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            let number = matches!(flag.kind, Kind::Bool | Kind::Uint | Kind::Duration);
            let default = if flag.default.is_empty() && number {
                String::new()
            } else {
                format!(" '{}'", flag.default)
            };
            let effect = match flag.effect {
                Effect::Ignored(reason) => format!("\n    No effect: {reason}."),
                Effect::Refused(reason) => format!("\n    Refused: {reason}."),
                Effect::Used | Effect::Alias(_) | Effect::Gate(_) => String::new(),
            };
            text += &format!(
                "  --{}{default}\n    {}{effect}\n",
                flag.name,
                flag.help.replace('\n', "\n    ")
            );
        }
    }
    text
}

/// The lines of `--version`: scripts take the first apart and expect the others to be there.
pub(super) fn version() -> String {
    let announced = version::ANNOUNCED;
    let (sha, rustc) = (version::BUILD, version::COMPILER);
    let (os, arch) = (std::env::consts::OS, version::go_arch());
    format!(
        "etcd Version: {announced}\nGit SHA: {sha}\nGo Version: none (Rust {rustc})\nGo OS/Arch: {os}/{arch}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_begins_as_etcd_s() {
        let text = version();
        let first = text.lines().next().unwrap();
        let number = first.strip_prefix("etcd Version: ").unwrap();
        assert_eq!(
            number.parse::<version::Version>().unwrap(),
            version::ANNOUNCED
        );
        assert!(
            text.contains("\nGit SHA: ")
                && text.contains("\nGo Version: ")
                && text.contains("\nGo OS/Arch: ")
        );
    }

    #[test]
    fn the_help_shows_all_but_the_hidden_flags() {
        let text = help();
        for flag in FLAGS {
            let shown = text.contains(&format!("  --{} ", flag.name))
                || text.contains(&format!("  --{}\n", flag.name));
            assert_eq!(shown, flag.section != Section::Hidden, "{}", flag.name);
        }
        assert!(text.contains("  --name 'default'\n"));
    }
}
