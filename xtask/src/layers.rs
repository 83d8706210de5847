//! `cargo xtask layers`: the rules the workspace's structure must keep.
//!
//! 1. Crates depend only downwards: each crate has a list of what it must never pull in, directly or at all.
//! 2. Nothing but the crates and a few well-known files lies at the top level of the repository.
//! 3. The README's map of the data path names only files and functions that exist (see [`map`]).
//! 4. The fuzz targets, a workspace of their own, are locked to what the crates depend on.
//!
//! Everything that is wrong is printed, not only the first thing. What is asked of cargo and git is asked in a few
//! lines at the end; the rules themselves are pure functions over what they answered.

mod map;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::workspace::{self, Outcome};

/// What one crate must not depend on.
struct Rule {
    /// The crate.
    name: &'static str,
    /// Packages that must not be in its dependency graph at all, with its default features.
    never: &'static [&'static str],
    /// Packages it must not name itself, though what it uses may.
    not_directly: &'static [&'static str],
}

/// The layers, from the bottom up. Dev-dependencies are free: tests may bring what they need.
const RULES: &[Rule] = &[
    Rule {
        name: "transport-core",
        never: &[
            "tokio",
            "hyper",
            "raft",
            "tonic",
            "transport-http",
            "raft-node",
            "kvstore",
            "node-bin",
        ],
        not_directly: &[],
    },
    Rule {
        name: "transport-http",
        // One cryptography is enough; the other one comes in by default features.
        never: &[
            "raft",
            "tonic",
            "axum",
            "raft-node",
            "kvstore",
            "node-bin",
            "aws-lc-rs",
        ],
        not_directly: &[],
    },
    Rule {
        name: "raft-node",
        never: &[
            "hyper",
            "tonic",
            "axum",
            "transport-http",
            "kvstore",
            "node-bin",
        ],
        // transport-core's handshake rules speak of header names and statuses.
        not_directly: &["http"],
    },
    Rule {
        name: "kvstore",
        never: &[
            "raft",
            "hyper",
            "tonic",
            "axum",
            "transport-http",
            "raft-node",
            "node-bin",
        ],
        not_directly: &["http"],
    },
];

/// The workspace's crates; each is a folder of the same name at the top level.
const CRATES: &[&str] = &[
    "transport-core",
    "transport-http",
    "raft-node",
    "kvstore",
    "node-bin",
    "xtask",
];

/// The crate that holds the workflows; nothing may need it to build.
const WORKFLOWS: &str = "xtask";

/// Files allowed at the top level beside the crates and dotfiles.
const TOP_LEVEL_FILES: &[&str] = &["Cargo.toml", "Cargo.lock", "README.md", "LICENSE"];

/// Checks every rule; fails when one is broken.
pub fn run(args: &[String]) -> Outcome {
    if !args.is_empty() {
        return Err("usage: cargo xtask layers".into());
    }
    let manifests = manifests(&ask(
        "cargo",
        &["metadata", "--format-version", "1", "--no-deps"],
    )?)?;
    let mut problems = workflow_problems(&manifests);
    for rule in RULES {
        problems.extend(rule_problems(
            rule,
            &manifests,
            &packages(&dependency_tree(rule.name)?),
        ));
    }
    problems.extend(top_level_problems(&ask("git", &["ls-files", "-z"])?));
    match fs::read_to_string(workspace::root().join("README.md")) {
        Ok(readme) => problems.extend(map::problems(&readme, |path| {
            fs::read_to_string(workspace::root().join(path)).ok()
        })),
        Err(error) => problems.push(format!("README.md cannot be read: {error}")),
    }
    problems.extend(fuzz_lock_problem());

    println!(
        "layers: {} crates in node-bin's tree",
        packages(&dependency_tree("node-bin")?).len()
    );
    for problem in &problems {
        println!("layers: {problem}");
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!("{} rule(s) broken", problems.len()))
    }
}

/// A workspace crate and what its manifest names.
#[derive(Debug, PartialEq, Eq)]
struct Manifest {
    name: String,
    /// Dependencies that come with the default build: neither dev nor optional.
    dependencies: BTreeSet<String>,
    /// All of them, of every kind.
    mentions: BTreeSet<String>,
}

/// The manifests in the output of `cargo metadata --no-deps`.
fn manifests(metadata: &str) -> Outcome<Vec<Manifest>> {
    let metadata: Value = serde_json::from_str(metadata)
        .map_err(|error| format!("cargo metadata is not JSON: {error}"))?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?;
    let mut manifests = Vec::new();
    for package in packages {
        let name = package["name"]
            .as_str()
            .ok_or("cargo metadata has a package without a name")?;
        let mut manifest = Manifest {
            name: name.to_owned(),
            dependencies: BTreeSet::new(),
            mentions: BTreeSet::new(),
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let Some(dependency_name) = dependency["name"].as_str() else {
                continue;
            };
            manifest.mentions.insert(dependency_name.to_owned());
            // The kind is null for a normal dependency.
            if dependency["kind"].as_str() != Some("dev") && dependency["optional"] != true {
                manifest.dependencies.insert(dependency_name.to_owned());
            }
        }
        manifests.push(manifest);
    }
    Ok(manifests)
}

/// The distinct packages (name, version) in the output of `cargo tree --prefix none`.
fn packages(tree: &str) -> BTreeSet<(String, String)> {
    tree.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect()
}

/// What `rule`'s crate depends on and must not.
fn rule_problems(
    rule: &Rule,
    manifests: &[Manifest],
    tree: &BTreeSet<(String, String)>,
) -> Vec<String> {
    let Some(manifest) = manifests.iter().find(|manifest| manifest.name == rule.name) else {
        return vec![format!("there is no crate {}", rule.name)];
    };
    let mut problems = Vec::new();
    for &forbidden in rule.never {
        if manifest.dependencies.contains(forbidden) {
            problems.push(format!("{} depends on {forbidden}", rule.name));
        } else if tree.iter().any(|(name, _)| name == forbidden) {
            problems.push(format!(
                "{name} depends on {forbidden} through another crate; `cargo tree -p {name} -e normal -i {forbidden}` \
                 shows which",
                name = rule.name
            ));
        }
    }
    for &forbidden in rule.not_directly {
        if manifest.dependencies.contains(forbidden) {
            problems.push(format!("{} depends on {forbidden} directly", rule.name));
        }
    }
    problems
}

/// Crates that name the workflows' crate, and crates that are not where they should be.
fn workflow_problems(manifests: &[Manifest]) -> Vec<String> {
    let mut problems = Vec::new();
    for manifest in manifests {
        if manifest.mentions.contains(WORKFLOWS) {
            problems.push(format!("{} depends on {WORKFLOWS}", manifest.name));
        }
        if !CRATES.contains(&manifest.name.as_str()) {
            problems.push(format!(
                "{} is a crate the layers do not know",
                manifest.name
            ));
        }
    }
    problems
}

/// Entries of the top level that do not belong there, from the output of `git ls-files -z`.
fn top_level_problems(tracked: &str) -> Vec<String> {
    let mut wrong = BTreeSet::new();
    for path in tracked.split('\0').filter(|path| !path.is_empty()) {
        let allowed = match path.split_once('/') {
            Some((folder, _)) => CRATES.contains(&folder) || folder.starts_with('.'),
            None => TOP_LEVEL_FILES.contains(&path) || path.starts_with('.'),
        };
        if !allowed {
            wrong.insert(path.split('/').next().unwrap_or(path));
        }
    }
    wrong
        .into_iter()
        .map(|entry| format!("{entry} does not belong at the top level"))
        .collect()
}

/// Everything `package` needs to run with its default features, one package a line.
///
/// `cargo metadata` would unify the features of the whole workspace and show optional dependencies that other crates
/// switched on.
fn dependency_tree(package: &str) -> Outcome<String> {
    ask(
        "cargo",
        &[
            "tree",
            "--package",
            package,
            "--edges",
            "normal",
            "--prefix",
            "none",
        ],
    )
}

/// Whether the lock file of the fuzz targets lacks something: no other build would bring it up to date.
fn fuzz_lock_problem() -> Option<String> {
    let manifest = "xtask/fuzz/Cargo.toml";
    let update = [
        "update",
        "--workspace",
        "--locked",
        "--manifest-path",
        manifest,
    ];
    ask("cargo", &update).err()
}

/// Runs a program in the workspace's root and returns what it printed.
fn ask(program: &str, args: &[&str]) -> Outcome<String> {
    workspace::output_of(
        Command::new(program)
            .args(args)
            .current_dir(workspace::root()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule {
        name: "low",
        never: &["tokio", "high"],
        not_directly: &["http"],
    };

    fn manifest(name: &str, dependencies: &[&str]) -> Manifest {
        let dependencies: BTreeSet<String> =
            dependencies.iter().map(|name| name.to_string()).collect();
        Manifest {
            name: name.to_owned(),
            mentions: dependencies.clone(),
            dependencies,
        }
    }

    #[test]
    fn dev_and_optional_dependencies_are_mentions_only() {
        let metadata = r#"{"packages": [{"name": "a", "dependencies": [
            {"name": "normal", "kind": null, "optional": false},
            {"name": "build", "kind": "build", "optional": false},
            {"name": "feature", "kind": null, "optional": true},
            {"name": "test", "kind": "dev", "optional": false}
        ]}]}"#;
        let manifests = manifests(metadata).unwrap();
        assert_eq!(manifests.len(), 1);
        assert_eq!(
            Vec::from_iter(&manifests[0].dependencies),
            ["build", "normal"]
        );
        assert_eq!(
            Vec::from_iter(&manifests[0].mentions),
            ["build", "feature", "normal", "test"]
        );
    }

    #[test]
    fn metadata_of_another_shape_is_an_error() {
        assert!(manifests("[").is_err());
        assert!(manifests("{}").is_err());
        assert!(manifests(r#"{"packages": [{}]}"#).is_err());
    }

    #[test]
    fn repeated_packages_count_once_and_versions_apart() {
        let tree = "a v1.0.0 (/somewhere/a)\nsyn v2.0.1\nsyn v3.0.0\nsyn v2.0.1 (*)\nb v1.0.0 (proc-macro)\n\n";
        assert_eq!(packages(tree).len(), 4);
    }

    #[test]
    fn forbidden_dependencies_are_found_near_and_far() {
        let clean = packages("low v1\nhttp v1\n");
        assert_eq!(
            rule_problems(&RULE, &[manifest("low", &["bytes"])], &clean),
            [""; 0]
        );

        let direct = rule_problems(&RULE, &[manifest("low", &["tokio", "http"])], &clean);
        assert_eq!(
            direct,
            ["low depends on tokio", "low depends on http directly"]
        );

        let far = rule_problems(
            &RULE,
            &[manifest("low", &[])],
            &packages("low v1\nmiddle v1\nhigh v1\n"),
        );
        assert_eq!(far.len(), 1, "{far:?}");
        assert!(
            far[0].starts_with("low depends on high through another crate"),
            "{far:?}"
        );

        assert_eq!(rule_problems(&RULE, &[], &clean), ["there is no crate low"]);
    }

    #[test]
    fn nobody_may_need_the_workflows() {
        assert_eq!(
            workflow_problems(&[manifest("xtask", &["kvstore"])]),
            [""; 0]
        );
        assert_eq!(
            workflow_problems(&[manifest("kvstore", &["xtask"])]),
            ["kvstore depends on xtask"]
        );
        assert_eq!(workflow_problems(&[manifest("extra", &[])]).len(), 1);
    }

    #[test]
    fn only_crates_known_files_and_dotfiles_lie_at_the_top() {
        let fine =
            "Cargo.toml\0Cargo.lock\0README.md\0LICENSE\0.gitignore\0.ci/run\0xtask/src/a b.rs\0";
        assert_eq!(top_level_problems(fine), [""; 0]);
        let wrong = top_level_problems("docs/a.md\0docs/b.md\0notes.txt\0kvstore\0");
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(
            wrong[0].starts_with("docs ") && wrong[1].starts_with("kvstore "),
            "{wrong:?}"
        );
    }

    #[test]
    fn every_rule_is_about_a_crate_of_the_workspace() {
        for rule in RULES {
            assert!(CRATES.contains(&rule.name), "{}", rule.name);
            assert!(!rule.never.contains(&rule.name), "{}", rule.name);
        }
    }
}
