//! `cargo xtask bench`: our figures beside Go's, from one run.
//!
//! Without a word more, puts against whole clusters (`puts`); with `transport`, the transport alone (`transport`);
//! with `ranges`, puts beside reads of everything (`ranges`).
//! Whoever is compared takes turns, so that whatever else the machine does hits everybody, and what is told are
//! medians over the rounds and ratios of medians.

mod child;
mod puts;
mod ranges;
mod transport;

use std::{fs, path::Path};

use serde_json::Value;

use crate::workspace::Outcome;

/// Runs the workflow: `[transport | ranges] [--json FILE]`.
pub fn bench(args: &[String]) -> Outcome {
    match args.split_first() {
        Some((what, rest)) if what == "transport" => {
            transport::bench(crate::value(rest, "--json")?.map(Path::new))
        }
        Some((what, rest)) if what == "ranges" => {
            ranges::bench(crate::value(rest, "--json")?.map(Path::new))
        }
        _ => puts::bench(crate::value(args, "--json")?.map(Path::new)),
    }
}

/// Writes the figures where they are wanted.
fn write_json(path: Option<&Path>, told: Vec<Value>) -> Outcome {
    match path {
        Some(path) => fs::write(path, format!("{:#}\n", Value::from(told)))
            .map_err(|error| format!("cannot write {}: {error}", path.display())),
        None => Ok(()),
    }
}

/// The middle one of an odd number of values, or the greater of the two in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_care_for_order() {
        assert_eq!(median(vec![9.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(vec![2.0, 1.0]), 2.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
