//! A plain GET over loopback and a reader of Prometheus text: all that checks of a member need.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::workspace::Outcome;

/// Deadline of connecting, and of each read and write.
const DEADLINE: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Body of `GET url`, whatever its status. Errors: connection trouble.
pub fn get(url: &str) -> Outcome<String> {
    let failed = |error: std::io::Error| format!("GET {url}: {error}");
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("{url} is not a plain HTTP URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host.parse().map_err(|error| format!("{url}: {error}"))?;
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).map_err(failed)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
    stream.set_write_timeout(Some(DEADLINE)).map_err(failed)?;
    // HTTP/1.0: the answer ends where the connection does, and is never chunked.
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n").map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_string()),
        None => Err(format!("GET {url}: no answer")),
    }
}

/// Every sample of `name` in a scrape: its labels as written, and its value.
pub fn samples<'a>(scrape: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> + 'a {
    scrape.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.split_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

/// Sum of a metric over its label sets; `None` when the scrape lacks it.
pub fn metric_sum(scrape: &str, name: &str) -> Option<f64> {
    samples(scrape, name)
        .map(|(_, value)| value)
        .reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_label_sets_and_ignores_longer_names() {
        let scrape = "# TYPE a counter\na{To=\"1\"} 2\na{To=\"2\"} 3.5\nab 7\nb 1\n";
        assert_eq!(metric_sum(scrape, "a"), Some(5.5));
        assert_eq!(metric_sum(scrape, "b"), Some(1.0));
        assert_eq!(metric_sum(scrape, "c"), None);
    }
}
