//! The text of `/metrics`, read back, and its comparison with what etcd exports.
//!
//! Depends on nothing, so that a whole process can be judged by what it answers. Invariant: two texts that differ in
//! nothing but values and the number of series are equal here.

use std::collections::{BTreeMap, BTreeSet};

/// One metric: its name, its type, the names of its labels, the bounds of its buckets.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Name.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `summary`.
    pub kind: String,
    /// Names of its labels, without `le`.
    pub labels: BTreeSet<String>,
    /// Upper bounds of its buckets, ascending, without infinity; empty unless a histogram.
    pub bounds: Vec<f64>,
}

/// One value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name, with the suffix of a histogram's parts.
    pub name: String,
    /// Labels in the order of the text.
    pub labels: Vec<(String, String)>,
    /// Value.
    pub value: f64,
}

impl Sample {
    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(label, _)| label == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A text of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Families by name; one without a sample has a type and nothing else.
    pub families: BTreeMap<String, Family>,
    /// All values.
    pub samples: Vec<Sample>,
}

/// A text is not in the format of Prometheus.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not in the text format of Prometheus: {text}")]
pub struct ScrapeError {
    /// Number of the line, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl Scrape {
    /// Reads a text.
    pub fn parse(text: &str) -> Result<Scrape, ScrapeError> {
        let mut scrape = Scrape::default();
        for (at, line) in text.lines().enumerate() {
            let understood = match line.strip_prefix("# TYPE ") {
                Some(rest) => scrape.add_type(rest),
                None if line.is_empty() || line.starts_with('#') => Some(()),
                None => sample(line).and_then(|sample| scrape.add(sample)),
            };
            understood.ok_or_else(|| ScrapeError {
                line: at + 1,
                text: line.into(),
            })?;
        }
        for family in scrape.families.values_mut() {
            family.bounds.sort_by(f64::total_cmp);
            family.bounds.dedup();
        }
        Ok(scrape)
    }

    /// How this text falls short of the given families, one line each; what it has beyond them does not count.
    pub fn differences(&self, expected: &[Family]) -> Vec<String> {
        let mut differences = Vec::new();
        for family in expected {
            match self.families.get(&family.name) {
                None => differences.push(format!("{} is missing", family.name)),
                Some(found) if found != family => {
                    differences.push(format!(
                        "{} is {found:?} instead of {family:?}",
                        family.name
                    ));
                }
                Some(_) => {}
            }
        }
        differences
    }

    /// The values of one name.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name)
    }

    fn add_type(&mut self, rest: &str) -> Option<()> {
        let (name, kind) = rest.split_once(' ')?;
        let (name, kind) = (name.to_string(), kind.to_string());
        let family = Family {
            name: name.clone(),
            kind,
            labels: BTreeSet::new(),
            bounds: Vec::new(),
        };
        self.families.insert(name, family).is_none().then_some(())
    }

    fn add(&mut self, sample: Sample) -> Option<()> {
        let part = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.name.strip_suffix(suffix));
        let name = part
            .filter(|name| self.families.contains_key(*name))
            .unwrap_or(&sample.name);
        let family = self.families.get_mut(name)?;
        for (label, value) in &sample.labels {
            if label != "le" {
                family.labels.insert(label.clone());
            } else if value != "+Inf" {
                family.bounds.push(value.parse().ok()?);
            }
        }
        self.samples.push(sample);
        Some(())
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = match rest.trim() {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        text => text.parse().ok()?,
    };
    Some(Sample {
        name: name.into(),
        labels,
        value,
    })
}

/// `a="x",b="y"} 1` and what follows the brace.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.push((name.into(), value));
        rest = &after[end + 1..];
    }
}

/// Reads a list of families: a line each with name, type, label names and bucket bounds, `-` for none.
pub fn parse_families(text: &str) -> Result<Vec<Family>, ScrapeError> {
    let family = |line: &str| {
        let mut words = line.split(' ');
        let (name, kind) = (words.next()?.to_string(), words.next()?.to_string());
        let mut list = || {
            words.next().map(|word| {
                word.split(',')
                    .filter(|part| *part != "-")
                    .collect::<Vec<_>>()
            })
        };
        let labels = list()?.into_iter().map(str::to_string).collect();
        let bounds = list()?
            .into_iter()
            .map(|bound| bound.parse().ok())
            .collect::<Option<Vec<f64>>>()?;
        Some(Family {
            name,
            kind,
            labels,
            bounds,
        })
    };
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty());
    lines
        .map(|(at, line)| {
            family(line).ok_or_else(|| ScrapeError {
                line: at + 1,
                text: line.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total of things\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\,}\",y=\"2\"} 3\n\n\
        # TYPE h histogram\nh_bucket{To=\"b\",le=\"0.1\"} 1\nh_bucket{To=\"b\",le=\"1.048576e+06\"} 1\n\
        h_bucket{To=\"b\",le=\"+Inf\"} 2\nh_sum{To=\"b\"} 4.5\nh_count{To=\"b\"} 2\n# TYPE g gauge\ng NaN\n";

    #[test]
    fn names_types_labels_and_bounds_are_read() {
        let scrape = Scrape::parse(TEXT).unwrap();
        let families =
            parse_families("a_total counter x,y -\nh histogram To 0.1,1048576.0\ng gauge - -\n")
                .unwrap();
        assert_eq!(scrape.differences(&families), [""; 0]);
        assert_eq!(scrape.families.len(), 3);
        assert_eq!(scrape.samples[0].label("x"), Some("q\"\\,}"));
        assert_eq!(
            scrape
                .values("h_sum")
                .map(|sample| sample.value)
                .collect::<Vec<_>>(),
            [4.5]
        );
    }

    #[test]
    fn each_difference_is_told() {
        let scrape = Scrape::parse(TEXT).unwrap();
        let other =
            parse_families("a_total gauge x,y -\nh histogram From 0.1,1048576.0\nz gauge - -\n")
                .unwrap();
        let differences = scrape.differences(&other);
        assert_eq!(differences.len(), 3);
        assert_eq!(differences[2], "z is missing");
    }

    #[test]
    fn what_is_no_metric_is_refused_with_its_line() {
        for (text, line) in [
            ("# TYPE a counter\nb 1\n", 2),
            ("# TYPE a counter\na{x=\"1} 1\n", 2),
            ("a\n", 1),
            ("# TYPE a counter\na x\n", 2),
        ] {
            assert_eq!(Scrape::parse(text).unwrap_err().line, line, "{text}");
        }
    }
}
