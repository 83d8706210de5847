//! What the operating system knows about this process, read anew for each scrape: the `process_*` and `os_fd_*`
//! metrics of Go's client library and of etcd.
//!
//! Depends on /proc; elsewhere these metrics are missing. Invariant: reading costs a few file reads and no state.

use std::{fmt::Write, fs};

use rustix::process::{Resource, getrlimit};

/// Clock ticks in a second as /proc counts them; the same on every Linux that etcd supports.
const TICKS: f64 = 100.0;

/// What Go shows for "no limit": the largest unsigned number.
const UNLIMITED: f64 = u64::MAX as f64;

/// Appends the metrics that could be read.
pub(super) fn render(text: &mut String) {
    let open_fds = fs::read_dir("/proc/self/fd")
        .map(|fds| fds.count().saturating_sub(1) as f64)
        .ok();
    let max_fds = limit(Resource::Nofile);
    let stat = fs::read_to_string("/proc/self/stat").ok();
    let status = fs::read_to_string("/proc/self/status").ok();
    let network = fs::read_to_string("/proc/self/net/netstat").ok();
    let started = fs::read_to_string("/proc/stat")
        .ok()
        .zip(stat.as_deref())
        .and_then(|(system, stat)| Some(keyed(&system, "btime ")? + stat_field(stat, 22)? / TICKS));
    let cpu = stat
        .as_deref()
        .and_then(|stat| Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS));
    let memory = |key| {
        status
            .as_deref()
            .and_then(|status| keyed(status, key))
            .map(|kib| kib * 1024.0)
    };
    let octets = |name| network.as_deref().and_then(|text| ip_ext(text, name));
    let metrics = [
        (
            "os_fd_limit",
            "gauge",
            "Most file descriptors this process may have open.",
            Some(max_fds),
        ),
        (
            "os_fd_used",
            "gauge",
            "File descriptors this process has open.",
            open_fds,
        ),
        (
            "process_cpu_seconds_total",
            "counter",
            "CPU time used, in user and system mode.",
            cpu,
        ),
        (
            "process_max_fds",
            "gauge",
            "Most file descriptors this process may have open.",
            Some(max_fds),
        ),
        (
            "process_open_fds",
            "gauge",
            "File descriptors this process has open.",
            open_fds,
        ),
        (
            "process_network_receive_bytes_total",
            "counter",
            "Bytes received in this network namespace.",
            octets("InOctets"),
        ),
        (
            "process_network_transmit_bytes_total",
            "counter",
            "Bytes sent in this network namespace.",
            octets("OutOctets"),
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory in use.",
            memory("VmRSS:"),
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When this process was started, in Unix time.",
            started,
        ),
        (
            "process_virtual_memory_bytes",
            "gauge",
            "Address space in use.",
            memory("VmSize:"),
        ),
        (
            "process_virtual_memory_max_bytes",
            "gauge",
            "Address space this process may use.",
            Some(limit(Resource::As)),
        ),
    ];
    for (name, kind, help, value) in metrics {
        if let Some(value) = value {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        }
    }
}

fn limit(resource: Resource) -> f64 {
    getrlimit(resource)
        .current
        .map_or(UNLIMITED, |limit| limit as f64)
}

/// Field `number`, from 1, of /proc/self/stat. The second may hold spaces and ends at the last parenthesis.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(number - 3)?.parse().ok()
}

/// The number behind a key at the start of a line.
fn keyed(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A column of the `IpExt` table, whose first line holds the names.
fn ip_ext(text: &str, name: &str) -> Option<f64> {
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let at = lines
        .next()?
        .split_whitespace()
        .position(|column| column == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses_do_not_confuse() {
        let stat = "12 (a b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 4 0 777 1000 2 18446744073709551615";
        assert_eq!(stat_field(stat, 14), Some(250.0));
        assert_eq!(stat_field(stat, 15), Some(50.0));
        assert_eq!(stat_field(stat, 22), Some(777.0));
    }

    #[test]
    fn tables_are_read_by_their_heading() {
        let text = "TcpExt: a b\nTcpExt: 1 2\nIpExt: InOctets OutOctets\nIpExt: 300 400\n";
        assert_eq!(
            (ip_ext(text, "OutOctets"), ip_ext(text, "b")),
            (Some(400.0), None)
        );
        assert_eq!(
            keyed("VmPeak: 1 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"),
            Some(1234.0)
        );
    }

    #[test]
    fn this_process_has_a_past_and_uses_memory() {
        let mut text = String::new();
        render(&mut text);
        let value = |name: &str| keyed(&text, &format!("{name} ")).unwrap();
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("os_fd_used") >= 3.0 && value("os_fd_limit") >= value("os_fd_used"));
    }
}
