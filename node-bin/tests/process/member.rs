//! Members as processes: how one is started, read, asked and ended.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use kvstore::pb::etcdserverpb::{PutRequest, PutResponse};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::ports::free_port;

pub const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);

/// The line a member writes once it serves clients.
pub const SERVING: &str = "serving client traffic insecurely; this is strongly discouraged!";

/// Ports of one member.
#[derive(Clone, Copy)]
pub struct Ports {
    pub peer: u16,
    pub client: u16,
    pub metrics: u16,
}

impl Ports {
    /// Ports that were free a moment ago.
    pub fn free() -> Ports {
        Ports {
            peer: free_port(),
            client: free_port(),
            metrics: free_port(),
        }
    }
}

pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// What the process of a member of this name is called with.
pub fn arguments(name: &str, data: &Path, ports: Ports) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["--name", name, "--data-dir"].map(Into::into).into();
    arguments.push(data.into());
    for (flag, port) in [
        ("--listen-peer-urls", ports.peer),
        ("--initial-advertise-peer-urls", ports.peer),
        ("--listen-client-urls", ports.client),
        ("--advertise-client-urls", ports.client),
        ("--listen-metrics-urls", ports.metrics),
    ] {
        arguments.extend([flag.into(), url(port).into()]);
    }
    arguments
}

/// A member that is not started yet; of a cluster of one, unless more is said.
pub fn command(name: &str, data: &Path, ports: Ports) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node-bin"));
    command.args(arguments(name, data, ports));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a process that refuses to start, and returns its reason.
pub fn refusal(command: Command) -> String {
    let (log, code) = Member::spawn(command, Ports::free()).end();
    // Connections that end with the process may have a line after it.
    let fatal = log.iter().rfind(|line| line["level"] == "fatal");
    let fatal = fatal.unwrap_or_else(|| panic!("no reason given: {log:#?}"));
    assert_eq!(code, Some(1), "{fatal}");
    let reason = fatal["error"].as_str().or(fatal["reason"].as_str());
    reason.unwrap().into()
}

/// A process that runs.
pub struct Member {
    child: Child,
    /// The lines of its log; ends with the process.
    log: mpsc::Receiver<Value>,
    pub ports: Ports,
}

impl Member {
    pub fn spawn(mut command: Command, ports: Ports) -> Member {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (lines, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
                // Nobody may be listening any more.
                let _ = lines.send(line);
            }
        });
        Member { child, log, ports }
    }

    /// A cluster of one that serves clients.
    pub fn alone(data: &Path, flags: &[&str]) -> Member {
        let ports = Ports::free();
        let mut command = command("m", data, ports);
        command.args(flags);
        let mut member = Member::spawn(command, ports);
        member.until(SERVING);
        member
    }

    /// Reads the log up to the line with this message, which must come before the deadline.
    pub fn until(&mut self, message: &str) -> Vec<Value> {
        let mut lines: Vec<Value> = Vec::new();
        let begun = Instant::now();
        while lines.last().is_none_or(|line| line["msg"] != message) {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            match self.log.recv_timeout(left) {
                Ok(line) => lines.push(line),
                Err(error) => panic!("no {message:?} in the log, {error}: {lines:#?}"),
            }
        }
        lines
    }

    /// Waits until the process has ended by itself; the rest of its log, and its exit code.
    pub fn end(&mut self) -> (Vec<Value>, Option<i32>) {
        let mut lines = Vec::new();
        loop {
            match self.log.recv_timeout(DEADLINE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {lines:#?}"),
            }
        }
        (lines, wait(&mut self.child).code())
    }

    pub fn terminate(&mut self) -> ExitStatus {
        self.signal_to_end();
        wait(&mut self.child)
    }

    pub fn signal_to_end(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The value of a metric without labels; `None` while nothing answers.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (status, text) = try_get(self.ports.metrics, "/metrics")?;
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        (status == 200).then(|| line.unwrap()[name.len() + 1..].parse().unwrap())
    }

    pub fn leads(&self) -> bool {
        self.metric("etcd_server_is_leader") == Some(1.0)
    }

    /// Waits until the cluster answers a read of this member.
    pub fn wait_healthy(&self) {
        eventually("healthy", || {
            try_get(self.ports.metrics, "/health").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Calls a method.
    pub fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, tonic::Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let endpoint = tonic::transport::Endpoint::from_shared(url(self.ports.client)).unwrap();
            let channel = endpoint.connect().await;
            let channel = channel.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let mut client = tonic::client::Grpc::new(channel);
            client.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let path = http::uri::PathAndQuery::from_static(path);
            let answer = client.unary(tonic::Request::new(request), path, codec);
            answer.await.map(tonic::Response::into_inner)
        })
    }

    pub fn put(&self, key: &str, value: &str) -> Result<PutResponse, tonic::Status> {
        let request = PutRequest {
            key: key.to_string().into(),
            value: value.to_string().into(),
            ..Default::default()
        };
        self.call("/etcdserverpb.KV/Put", request)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Looks until it is so, which it must be before the deadline.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < DEADLINE, "never {what}");
        std::thread::sleep(POLL);
    }
}

/// Status and body of the answer to a request without a body; `None` when nobody listens.
pub fn request(port: u16, method: &str, path: &str, headers: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.into()))
}

pub fn try_get(port: u16, path: &str) -> Option<(u16, String)> {
    request(port, "GET", path, "")
}

pub fn get(port: u16, path: &str) -> (u16, String) {
    try_get(port, path).unwrap()
}
