//! Real input for the crash run: the records of dpkg's status database, put through etcdctl.
//!
//! Every try is counted and every acknowledged revision kept, so that afterwards each revision of each key can
//! be held against what was said. Invariant: no wait without a deadline.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    client::Client,
    history::Repeated,
    workspace::{self, Outcome},
};

/// How many records are made up where the system has no package database.
const GENERATED_RECORDS: usize = 300;
/// Pause before a failed put is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The records of dpkg's status database by package, or as many made up.
pub fn records() -> Vec<Repeated> {
    let found = parse(&fs::read_to_string("/var/lib/dpkg/status").unwrap_or_default());
    if !found.is_empty() {
        return found;
    }
    (0..GENERATED_RECORDS)
        .map(|at| {
            Repeated::new(
                format!("dpkg/package-{at}"),
                format!("Package: package-{at}\n{}", "Depends: a\n".repeat(at)),
            )
        })
        .collect()
}

/// One record for each package and architecture; of a package that is listed twice, the last.
fn parse(status: &str) -> Vec<Repeated> {
    let records: BTreeMap<String, String> = status
        .split("\n\n")
        .filter_map(|record| {
            let field = |name: &str| record.lines().find_map(|line| line.strip_prefix(name));
            let architecture = field("Architecture: ").unwrap_or("none");
            Some((
                format!("dpkg/{}:{architecture}", field("Package: ")?),
                record.to_string(),
            ))
        })
        .collect();
    records
        .into_iter()
        .map(|(key, value)| Repeated::new(key, value))
        .collect()
}

/// Puts every record, through etcdctl where there is one, each tried until it is acknowledged.
///
/// Errors: a record that is not acknowledged before `deadline`.
pub fn put_all(
    mut records: Vec<Repeated>,
    endpoints: &[String],
    etcdctl: Option<&Path>,
    runtime: &tokio::runtime::Handle,
    deadline: Instant,
) -> Outcome<Vec<Repeated>> {
    for record in &mut records {
        loop {
            let endpoint = &endpoints[record.tries % endpoints.len()];
            record.tries += 1;
            match put(record, endpoint, etcdctl, runtime) {
                Ok(revision) => {
                    record.acknowledged.push(revision);
                    break;
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("{} cannot be put in time: {error}", record.key));
                }
                Err(_) => thread::sleep(RETRY_PAUSE),
            }
        }
    }
    println!("{} records put", records.len());
    Ok(records)
}

/// Puts one record and returns the revision it was acknowledged with.
fn put(
    record: &Repeated,
    endpoint: &str,
    etcdctl: Option<&Path>,
    runtime: &tokio::runtime::Handle,
) -> Outcome<i64> {
    let Some(program) = etcdctl else {
        return runtime.block_on(async {
            Client::lazy(endpoint)?
                .put(record.key.as_bytes(), record.value.as_bytes())
                .await
        });
    };
    let printed = workspace::output_of(Command::new(program).args([
        "--endpoints",
        endpoint,
        "--dial-timeout",
        "2s",
        "--command-timeout",
        "5s",
        "--write-out",
        "json",
        "put",
        "--",
        &record.key,
        &record.value,
    ]))?;
    revision_of(&printed).ok_or_else(|| format!("etcdctl printed no revision: {printed}"))
}

/// The revision in etcdctl's JSON.
fn revision_of(printed: &str) -> Option<i64> {
    let answer: serde_json::Value = serde_json::from_str(printed).ok()?;
    answer["header"]["revision"].as_i64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_found_by_package_and_architecture() {
        let status = "Package: a\nArchitecture: amd64\nVersion: 1\n\n\
                      Package: b\nVersion: 2\n\nNot a record\n";
        let records = parse(status);
        let keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
        assert_eq!(keys, ["dpkg/a:amd64", "dpkg/b:none"]);
        assert_eq!(
            records[0].value,
            "Package: a\nArchitecture: amd64\nVersion: 1"
        );
    }

    #[test]
    fn the_revision_is_read_from_etcdctls_answer() {
        let printed = r#"{"header":{"cluster_id":1,"member_id":2,"revision":7,"raft_term":3}}"#;
        assert_eq!(revision_of(printed), Some(7));
        assert_eq!(revision_of("OK"), None);
    }
}
