//! `cargo xtask codegen [--check]`: the Rust code of etcd's messages and gRPC services, from `kvstore/proto`.
//!
//! Generated code is checked in, so that building the product needs neither this crate nor protoc. The .proto files
//! are compiled once; the messages become modules of `kvstore::pb`, the server halves of the services go to
//! `node-bin`, the client halves to `xtask`. No message is generated twice: services refer to `::kvstore::pb`.
//!
//! Everything is first written to a temporary directory that mirrors the workspace. `--check` compares and changes
//! nothing; otherwise the files are copied. `mod.rs` files are written by hand and left alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use protox::prost_reflect::prost_types::DescriptorProto;
use tonic_prost_build::{Config, FileDescriptorSet};

use crate::workspace::{self, Outcome};

/// Where the .proto files are, from the workspace root.
const PROTO_DIR: &str = "kvstore/proto";

/// Where messages, servers and clients go, from the workspace root.
const MESSAGES_DIR: &str = "kvstore/src/pb";
const SERVERS_DIR: &str = "node-bin/src/grpc/generated";
const CLIENTS_DIR: &str = "xtask/src/generated";

/// Most differing lines a check prints for one file.
const SHOWN_LINES_MAX: usize = 5;

/// Which half of the services to generate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Server,
    Client,
}

/// Generates everything; with `--check`, fails if a checked-in file is not what would be generated.
pub fn run(args: &[String]) -> Outcome {
    let check = match args {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => return Err("usage: cargo xtask codegen [--check]".into()),
    };
    let root = workspace::root();
    let fresh = tempfile::tempdir()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    generate(&root, fresh.path())?;

    let mut changes = Vec::new();
    for dir in [MESSAGES_DIR, SERVERS_DIR, CLIENTS_DIR] {
        changes.extend(compare_dirs(dir, &root.join(dir), &fresh.path().join(dir))?);
    }
    if changes.is_empty() {
        println!("codegen: every generated file is current");
        return Ok(());
    }
    for change in &changes {
        println!("codegen: {}", change.summary());
    }
    if check {
        return Err(format!(
            "{} generated file(s) are out of date; run `cargo xtask codegen`",
            changes.len()
        ));
    }
    for change in changes {
        change.carry_out()?;
    }
    Ok(())
}

/// Writes all generated files below `out`, under the paths they have in the workspace.
fn generate(root: &Path, out: &Path) -> Outcome {
    let descriptors = compile_protos(&root.join(PROTO_DIR))?;
    let packages: BTreeSet<String> = descriptors
        .file
        .iter()
        .map(|file| file.package().to_owned())
        .collect();

    let messages = out.join(MESSAGES_DIR);
    create_dir(&messages)?;
    Config::new()
        .bytes(["."])
        .out_dir(&messages)
        .compile_fds(descriptors.clone())
        .map_err(|error| format!("cannot generate code: {error}"))?;
    for (dir, half) in [(SERVERS_DIR, Half::Server), (CLIENTS_DIR, Half::Client)] {
        let dir = out.join(dir);
        create_dir(&dir)?;
        let mut builder = tonic_prost_build::configure()
            .out_dir(&dir)
            .build_server(half == Half::Server)
            .build_client(half == Half::Client);
        for package in &packages {
            builder =
                builder.extern_path(format!(".{package}"), format!("::kvstore::pb::{package}"));
        }
        builder
            .compile_fds(descriptors.clone())
            .map_err(|error| format!("cannot generate code: {error}"))?;
    }

    let mut files = Vec::new();
    for dir in [MESSAGES_DIR, SERVERS_DIR, CLIENTS_DIR] {
        for name in rust_files(&out.join(dir))? {
            let path = out.join(dir).join(name);
            let text = read(&path)?;
            write(&path, &with_header(&text))?;
            files.push(path);
        }
    }
    format_files(&files)
}

/// Compiles every .proto file of `dir`, with field names made fit for Rust.
fn compile_protos(dir: &Path) -> Outcome<FileDescriptorSet> {
    let names: Vec<String> = file_names(dir)?
        .into_iter()
        .filter(|name| name.ends_with(".proto"))
        .collect();
    let mut descriptors = protox::compile(&names, [dir])
        .map_err(|error| format!("{}: {error}", error.file().unwrap_or(PROTO_DIR)))?;
    for file in &mut descriptors.file {
        file.message_type.iter_mut().for_each(rename_fields);
    }
    Ok(descriptors)
}

/// Renames the fields of a message and of those within it.
fn rename_fields(message: &mut DescriptorProto) {
    for field in &mut message.field {
        field.name = field.name.as_deref().map(rust_friendly);
    }
    message.nested_type.iter_mut().for_each(rename_fields);
}

/// A field name that turns into the snake case a reader expects: left alone, `peerURLs` would become `peer_ur_ls`.
/// Names are not on the wire, so this changes nothing but the Rust side.
fn rust_friendly(field: &str) -> String {
    field.replace("URLs", "Urls")
}

/// The generated text under a header that says what to edit instead.
fn with_header(text: &str) -> String {
    let body = text
        .split_once('\n')
        .filter(|(first, _)| first.contains("@generated"))
        .map_or(text, |(_, rest)| rest);
    format!(
        "//! @generated by `cargo xtask codegen` from `{PROTO_DIR}`: edit the .proto files, not this one.\n\n{body}"
    )
}

/// Runs rustfmt, so that `cargo fmt --check` has nothing to say about generated files.
fn format_files(files: &[PathBuf]) -> Outcome {
    let status = Command::new("rustfmt")
        .args(["--edition", "2024"])
        .args(files)
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("rustfmt failed on generated code: {status}")),
        Err(error) => Err(format!(
            "cannot run rustfmt ({error}); install it with `rustup component add rustfmt`"
        )),
    }
}

/// Names of the generated .rs files in `dir`; none if there is no such directory.
fn rust_files(dir: &Path) -> Outcome<BTreeSet<String>> {
    if !dir.exists() {
        return Ok(BTreeSet::new());
    }
    let mut names = file_names(dir)?;
    names.retain(|name| name.ends_with(".rs") && name != "mod.rs");
    Ok(names)
}

/// Names of everything in `dir`.
fn file_names(dir: &Path) -> Outcome<BTreeSet<String>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(dir).and_then(Iterator::collect);
    let entries = entries.map_err(|error| format!("cannot list {}: {error}", dir.display()))?;
    Ok(entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}

fn create_dir(path: &Path) -> Outcome {
    fs::create_dir_all(path).map_err(|error| format!("cannot create {}: {error}", path.display()))
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn write(path: &Path, text: &str) -> Outcome {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// One file that is not as it should be.
#[derive(Debug)]
struct Change {
    /// Path from the workspace root, for people.
    shown: String,
    /// Path of the checked-in file.
    path: PathBuf,
    /// Present content; `None` if the file is missing.
    present: Option<String>,
    /// Generated content; `None` if the file should not be there.
    wanted: Option<String>,
}

impl Change {
    /// Says how the file differs.
    fn summary(&self) -> String {
        match (&self.present, &self.wanted) {
            (Some(present), Some(wanted)) => {
                format!("{} differs: {}", self.shown, diff_summary(present, wanted))
            }
            (None, _) => format!("{} is missing", self.shown),
            (_, None) => format!("{} is no longer generated", self.shown),
        }
    }

    /// Makes the checked-in file the generated one.
    fn carry_out(self) -> Outcome {
        match self.wanted {
            Some(wanted) => write(&self.path, &wanted),
            None => fs::remove_file(&self.path)
                .map_err(|error| format!("cannot remove {}: {error}", self.path.display())),
        }
    }
}

/// Compares the checked-in files of one directory with the fresh ones.
fn compare_dirs(shown: &str, present: &Path, fresh: &Path) -> Outcome<Vec<Change>> {
    let present_names = rust_files(present)?;
    let fresh_names = rust_files(fresh)?;
    let mut changes = Vec::new();
    for name in present_names.union(&fresh_names) {
        let content = |dir: &Path, names: &BTreeSet<String>| {
            names
                .contains(name)
                .then(|| read(&dir.join(name)))
                .transpose()
        };
        let change = Change {
            shown: format!("{shown}/{name}"),
            path: present.join(name),
            present: content(present, &present_names)?,
            wanted: content(fresh, &fresh_names)?,
        };
        if change.present != change.wanted {
            changes.push(change);
        }
    }
    Ok(changes)
}

/// The first differing lines of two texts, and how many lines lie between their common beginning and end.
fn diff_summary(present: &str, wanted: &str) -> String {
    let old: Vec<&str> = present.lines().collect();
    let new: Vec<&str> = wanted.lines().collect();
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old[head..]
        .iter()
        .rev()
        .zip(new[head..].iter().rev())
        .take_while(|(a, b)| a == b)
        .count();
    let old = &old[head..old.len() - tail];
    let new = &new[head..new.len() - tail];
    if old.is_empty() && new.is_empty() {
        return "only in line endings".to_owned();
    }
    let mut text = format!(
        "from line {}, {} line(s) in place of {}",
        head + 1,
        old.len(),
        new.len()
    );
    for (sign, lines) in [('-', old), ('+', new)] {
        for line in lines.iter().take(SHOWN_LINES_MAX) {
            text.push_str(&format!("\n    {sign} {line}"));
        }
        if lines.len() > SHOWN_LINES_MAX {
            text.push_str(&format!(
                "\n    {sign} ... {} more",
                lines.len() - SHOWN_LINES_MAX
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_urls_keep_the_word_whole() {
        assert_eq!(rust_friendly("peerURLs"), "peerUrls");
        assert_eq!(rust_friendly("client_urls"), "client_urls");
        assert_eq!(rust_friendly("ID"), "ID");
    }

    #[test]
    fn header_replaces_the_generators_own() {
        let text = with_header("// This file is @generated by prost-build.\npub struct A;\n");
        assert!(
            text.starts_with("//! @generated by `cargo xtask codegen`"),
            "{text}"
        );
        assert!(text.ends_with("\n\npub struct A;\n"), "{text}");
        assert!(!text.contains("prost-build"), "{text}");
        assert!(with_header("pub struct A;\nx\n").ends_with("\n\npub struct A;\nx\n"));
    }

    #[test]
    fn diff_names_the_first_line_and_both_sides() {
        let summary = diff_summary("a\nb\nc\n", "a\nx\ny\nc\n");
        assert_eq!(
            summary,
            "from line 2, 1 line(s) in place of 2\n    - b\n    + x\n    + y"
        );
        assert_eq!(diff_summary("a\r\n", "a\n"), "only in line endings");
        assert_eq!(
            diff_summary("a\na\n", "a\n"),
            "from line 2, 1 line(s) in place of 0\n    - a"
        );
        let long = diff_summary("", &"z\n".repeat(SHOWN_LINES_MAX + 2));
        assert!(long.ends_with("+ ... 2 more"), "{long}");
    }

    #[test]
    fn comparison_finds_missing_stale_and_changed_files_and_skips_mod_rs() {
        let dir = tempfile::tempdir().unwrap();
        let (present, fresh) = (dir.path().join("present"), dir.path().join("fresh"));
        fs::create_dir_all(&present).unwrap();
        fs::create_dir_all(&fresh).unwrap();
        for (dir, name, text) in [
            (&present, "mod.rs", "by hand"),
            (&present, "same.rs", "1"),
            (&fresh, "same.rs", "1"),
            (&present, "changed.rs", "1"),
            (&fresh, "changed.rs", "2"),
            (&present, "stale.rs", "1"),
            (&fresh, "missing.rs", "1"),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        let changes = compare_dirs("d", &present, &fresh).unwrap();
        let summaries: Vec<String> = changes.iter().map(Change::summary).collect();
        assert_eq!(summaries.len(), 3, "{summaries:?}");
        assert!(
            summaries[0].starts_with("d/changed.rs differs"),
            "{summaries:?}"
        );
        assert_eq!(
            summaries[1..],
            [
                "d/missing.rs is missing",
                "d/stale.rs is no longer generated"
            ]
        );

        for change in changes {
            change.carry_out().unwrap();
        }
        assert!(compare_dirs("d", &present, &fresh).unwrap().is_empty());
        assert_eq!(
            fs::read_to_string(present.join("mod.rs")).unwrap(),
            "by hand"
        );
    }
}
