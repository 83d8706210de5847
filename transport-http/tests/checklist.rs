//! Holds the table in `README.md` to the tests there are.

use std::{collections::BTreeSet, fs, path::Path};

/// Every test the table names, as file and function.
fn named(table: &str) -> BTreeSet<(String, String)> {
    let mut named = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let cell = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for part in cell.split("; ") {
            let Some((file, tests)) = part.split_once(".rs`: ") else {
                continue;
            };
            for test in tests.split(", ") {
                let test = test.trim_matches('`').to_owned();
                named.insert((format!("{}.rs", file.trim_start_matches('`')), test));
            }
        }
    }
    named
}

#[test]
fn every_test_of_the_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("transport-http/tests/README.md")).unwrap();
    let named = named(&table);
    assert!(named.len() > 60, "{} tests", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|(file, test)| {
            let source = fs::read_to_string(root.join(file)).unwrap_or_default();
            !source.contains(&format!("fn {test}("))
        })
        .collect();
    assert!(missing.is_empty(), "not there: {missing:#?}");
}
