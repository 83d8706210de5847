//! The README's map of the data path, held against the code.
//!
//! The map is a markdown table between two markers. Each row names, in backticks, files of the workspace
//! (`crate/src/file.rs`) and functions in them: either in the same cell, where a function belongs to the file before
//! it, or in the cell after, where it may be in any of the row's files. Cells before the first file are free (they
//! hold etcd's names), and so are the cells that follow the functions.
//!
//! The check is textual, which is enough to notice that something was renamed, moved or deleted.

/// First line of the map.
const BEGIN: &str = "<!-- map:begin -->";
/// Last line of the map.
const END: &str = "<!-- map:end -->";

/// What the map says and the code does not. `source` returns the text of a file, by its path from the root.
pub fn problems(readme: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let Some(rows) = rows(readme) else {
        return vec![format!(
            "README.md has no map: no table between `{BEGIN}` and `{END}`"
        )];
    };
    let mut problems = Vec::new();
    for row in rows {
        match claims(row) {
            Err(problem) => problems.push(format!("the map's row \"{row}\" {problem}")),
            Ok(claims) => problems.extend(claims.iter().filter_map(|claim| claim.problem(&source))),
        }
    }
    problems
}

/// A statement of the map: the function is in one of the files.
#[derive(Debug, PartialEq, Eq)]
struct Claim<'a> {
    files: Vec<&'a str>,
    function: &'a str,
}

impl Claim<'_> {
    /// Why the claim is wrong, if it is.
    fn problem(&self, source: impl Fn(&str) -> Option<String>) -> Option<String> {
        let mut found = false;
        for &file in &self.files {
            match source(file) {
                None => return Some(format!("the map names {file}, which is not there")),
                Some(text) => found |= defines(&text, self.function),
            }
        }
        (!found).then(|| {
            format!(
                "the map names {}, which is not in {}",
                self.function,
                self.files.join(" or ")
            )
        })
    }
}

/// The table's rows without its head; `None` if there is no table with at least one row.
fn rows(readme: &str) -> Option<Vec<&str>> {
    let (_, rest) = readme.split_once(BEGIN)?;
    let (map, _) = rest.split_once(END)?;
    let lines: Vec<&str> = map
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('|'))
        .collect();
    // The head and the line of dashes below it.
    let rows = lines.get(2..)?;
    (!rows.is_empty()).then(|| rows.to_vec())
}

/// What a row claims, or what it lacks.
fn claims(row: &str) -> Result<Vec<Claim<'_>>, &'static str> {
    let mut cells = row
        .split('|')
        .map(backticked)
        .skip_while(|words| !words.iter().any(|word| is_file(word)));
    let cell = cells.next().ok_or("names no file")?;
    let files: Vec<&str> = cell.iter().copied().filter(|word| is_file(word)).collect();

    let mut claims = Vec::new();
    let mut file = None;
    for word in cell {
        if is_file(word) {
            file = Some(word);
        } else if let (Some(file), Some(function)) = (file, function(word)) {
            claims.push(Claim {
                files: vec![file],
                function,
            });
        }
    }
    if claims.is_empty() {
        let next = cells.next().unwrap_or_default();
        claims.extend(next.into_iter().filter_map(function).map(|function| Claim {
            files: files.clone(),
            function,
        }));
    }
    if claims.is_empty() {
        Err("names a file but no function in it")
    } else {
        Ok(claims)
    }
}

/// The backticked words of a cell, in order.
fn backticked(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether a word is the path of a source file.
fn is_file(word: &str) -> bool {
    word.contains('/') && word.ends_with(".rs") && !word.contains("..")
}

/// The path of a function without its parentheses; `None` if the word is something else.
fn function(word: &str) -> Option<&str> {
    let path = word.strip_suffix("()").unwrap_or(word);
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    path.split("::").all(is_name).then_some(path)
}

/// Whether `source` defines the function: `name`, `module::name` or `Type::name`. Of a type there must also be an
/// `impl` or, if it is a trait, its definition.
fn defines(source: &str, function: &str) -> bool {
    let mut path = function.rsplit("::");
    let name = path.next().unwrap_or(function);
    let owner = path
        .next()
        .filter(|owner| owner.starts_with(|c: char| c.is_ascii_uppercase()));
    let code = || {
        source
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with("//"))
    };
    let has_function = code().any(|line| {
        let mut words = words(line);
        words.any(|word| word == "fn") && words.next() == Some(name)
    });
    let has_owner = owner.is_none_or(|owner| {
        code().any(|line| {
            let words: Vec<&str> = words(line).collect();
            let names_owner = words.contains(&owner);
            names_owner
                && (words[0] == "impl" || words.windows(2).any(|pair| pair == ["trait", owner]))
        })
    });
    has_function && has_owner
}

/// The identifiers and keywords of a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
        /// fn commented() {}\n\
        impl<R: Raft> StreamReader<R> {\n\
        \x20   pub(crate) async fn run(self) {}\n\
        \x20   fn decode_loop<T>(&mut self) {}\n\
        }\n\
        pub trait Transport {\n\
        \x20   fn send(&self);\n\
        }\n\
        pub const fn pick() {}\n";

    fn readme(rows: &str) -> String {
        format!(
            "# x\n{BEGIN}\n\n| etcd | here | does |\n|---|---|---|\n{rows}\n{END}\n| `z/z.rs` | |\n"
        )
    }

    fn check(rows: &str) -> Vec<String> {
        problems(&readme(rows), |path| {
            (path == "a/src/b.rs").then(|| SOURCE.to_owned())
        })
    }

    #[test]
    fn functions_are_found_by_name_and_owner() {
        for present in [
            "run",
            "StreamReader::run",
            "StreamReader::decode_loop",
            "Transport::send",
            "pick",
            "route::pick",
        ] {
            assert!(defines(SOURCE, present), "{present}");
        }
        for absent in [
            "ru",
            "commented",
            "Reader::run",
            "StreamReader::stop",
            "Raft::stop",
            "fn",
            "impl",
        ] {
            assert!(!defines(SOURCE, absent), "{absent}");
        }
    }

    #[test]
    fn a_true_map_has_no_problems() {
        let map = "\
            | `streamReader.run` | `a/src/b.rs`: `StreamReader::run`, `pick()` | reads `MsgApp` |\n\
            | `startPeer` | `a/src/b.rs` | `Transport::send` | |";
        assert_eq!(check(map), [""; 0]);
    }

    #[test]
    fn missing_files_and_functions_are_named() {
        let gone = check("| x | `a/src/gone.rs` `run` | |");
        assert_eq!(gone, ["the map names a/src/gone.rs, which is not there"]);
        let renamed = check("| x | `a/src/b.rs` `pick`, `dial` | |");
        assert_eq!(renamed, ["the map names dial, which is not in a/src/b.rs"]);
        let outside = check("| x | `../b.rs` `pick` | |");
        assert!(outside[0].contains("names no file"), "{outside:?}");
    }

    #[test]
    fn rows_must_name_a_file_and_a_function() {
        assert!(check("| `startPeer` | somewhere | |")[0].contains("names no file"));
        assert!(check("| x | `a/src/b.rs` | `1 byte` |")[0].contains("no function"));
    }

    #[test]
    fn a_function_in_the_next_cell_may_be_in_any_file_of_the_row() {
        let row = "| x | `a/src/b.rs`, `a/src/c.rs` | `pick` |";
        assert_eq!(
            claims(row),
            Ok(vec![Claim {
                files: vec!["a/src/b.rs", "a/src/c.rs"],
                function: "pick"
            }])
        );
        let sources = |path: &str| {
            Some(
                if path == "a/src/c.rs" {
                    "fn pick() {}"
                } else {
                    ""
                }
                .to_owned(),
            )
        };
        assert_eq!(problems(&readme(row), sources), [""; 0]);
    }

    #[test]
    fn a_readme_without_a_map_is_a_problem() {
        let none = |_: &str| None;
        for text in [
            "",
            BEGIN,
            &format!("{BEGIN}\n{END}"),
            &format!("{BEGIN}\n| a |\n|---|\n{END}"),
        ] {
            let problems = problems(text, none);
            assert!(
                problems.len() == 1 && problems[0].contains("no map"),
                "{text}: {problems:?}"
            );
        }
    }
}
