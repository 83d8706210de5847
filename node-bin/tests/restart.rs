//! What a member makes of the data directory of an earlier process: it goes on alone when it is told that the others
//! are lost for good, and not at all when its cluster has left its version behind.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kvstore::pb::etcdserverpb::{PutRequest, PutResponse, RangeRequest, RangeResponse};
use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[path = "process/ports.rs"]
mod ports;

use ports::free_port;

const DEADLINE: Duration = Duration::from_secs(60);

/// Peer and client port of a member.
type Ports = (u16, u16);

struct Process {
    child: Child,
    /// The lines of its log.
    log: mpsc::Receiver<Value>,
    seen: Vec<Value>,
}

fn free_ports() -> [Ports; 3] {
    [(); 3].map(|()| (free_port(), free_port()))
}

fn start(number: usize, all: &[Ports], data: &Path, flags: &[&str]) -> Process {
    let url = |port| format!("http://127.0.0.1:{port}");
    let named: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(n, ports)| format!("m{n}={}", url(ports.0)))
        .collect();
    let (peer, client) = all[number];
    let mut child = Command::new(env!("CARGO_BIN_EXE_node-bin"))
        .args(["--name", &format!("m{number}"), "--data-dir"])
        .arg(data.join(number.to_string()))
        .args(["--listen-peer-urls", &url(peer)])
        .args(["--initial-advertise-peer-urls", &url(peer)])
        .args(["--listen-client-urls", &url(client)])
        .args(["--advertise-client-urls", &url(client)])
        .args(["--initial-cluster", &named.join(",")])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (messages, log) = mpsc::channel();
    // Ends with the process.
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let _ = messages.send(serde_json::from_str(&line).unwrap_or_default());
        }
    });
    Process {
        child,
        log,
        seen: Vec::new(),
    }
}

impl Process {
    /// Waits for a line with this message, unless there was one.
    fn until(&mut self, message: &str) {
        while self.seen.iter().all(|line| line["msg"] != message) {
            self.seen
                .push(self.log.recv_timeout(DEADLINE).expect(message));
        }
    }

    fn ready(mut self) -> Process {
        self.until("serving client traffic insecurely; this is strongly discouraged!");
        self
    }

    /// Ends it in order, and holds it to having written all it knew.
    fn terminate(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let lines = self.seen.iter().cloned().chain(self.log.try_iter());
            lines.for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Asks until there is an answer: on a busy machine the leader may change at any time.
fn call<Q, A>(port: u16, method: &'static str, request: Q) -> A
where
    Q: Message + Clone + Default + 'static,
    A: Message + Default + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
        let begun = Instant::now();
        loop {
            client.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let path = http::uri::PathAndQuery::from_static(method);
            let request = tonic::Request::new(request.clone());
            match client.unary(request, path, codec).await {
                Ok(answer) => return answer.into_inner(),
                Err(status) => assert!(
                    status.code() == tonic::Code::Unavailable && begun.elapsed() < DEADLINE,
                    "{status}"
                ),
            }
        }
    })
}

fn put(port: u16, key: &str) {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..Default::default()
    };
    let _: PutResponse = call(port, "/etcdserverpb.KV/Put", request);
}

/// Every record.
fn everything(port: u16) -> RangeResponse {
    let request = RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        ..Default::default()
    };
    let response: RangeResponse = call(port, "/etcdserverpb.KV/Range", request);
    RangeResponse {
        header: None,
        ..response
    }
}

fn members(peer: u16) -> Vec<(String, bool)> {
    let mut stream = TcpStream::connect(("127.0.0.1", peer)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "GET /members HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let members: Vec<Value> = serde_json::from_str(body).unwrap();
    members
        .iter()
        .map(|member| {
            (
                member["name"].as_str().unwrap().to_owned(),
                member["isLearner"] == true,
            )
        })
        .collect()
}

#[test]
fn a_member_goes_on_alone_with_every_key() {
    let data = tempfile::tempdir().unwrap();
    let ports = free_ports();
    let all: Vec<_> = (0..3).map(|n| start(n, &ports, data.path(), &[])).collect();
    let all: Vec<_> = all.into_iter().map(Process::ready).collect();
    for n in 0..20 {
        put(ports[n % 3].1, &format!("k{n}"));
    }
    // A linearizable read through the one that stays: it has everything.
    let before = everything(ports[0].1);
    assert_eq!((before.count, members(ports[0].0).len()), (20, 3));
    // It ends in order, so that its log says what is committed; the others are killed.
    let mut all = all.into_iter();
    all.next().unwrap().terminate();
    all.for_each(drop);

    let mut alone = start(0, &ports, data.path(), &["--force-new-cluster"]);
    alone.until("forcing restart member");
    let alone = alone.ready();
    assert_eq!(everything(ports[0].1), before);
    assert_eq!(members(ports[0].0), [("m0".to_owned(), false)]);
    put(ports[0].1, "alone");
    alone.terminate();

    // From now on it needs no flag; and the flag does no more harm.
    for flags in [&[][..], &["--force-new-cluster"]] {
        let again = start(0, &ports, data.path(), flags).ready();
        assert_eq!(everything(ports[0].1).count, 21);
        assert_eq!(members(ports[0].0).len(), 1);
        again.terminate();
    }
}

#[test]
fn a_member_older_than_its_cluster_does_not_start() {
    let data = tempfile::tempdir().unwrap();
    let ports = &free_ports()[..1];
    let mut member = start(0, ports, data.path(), &[]);
    member.until("updated cluster version");
    member.ready().terminate();

    let older = ["--announced-server-version", "3.5.30"];
    let mut refused = start(0, ports, data.path(), &older);
    let last = refused.log.iter().last().unwrap();
    assert!(!refused.child.wait().unwrap().success());
    assert_eq!(last["level"], "fatal");
    // At once, if the store has the version already; else when the log tells of it again.
    let why = last["error"].as_str().or(last["reason"].as_str()).unwrap();
    let text = "invalid downgrade; server version is lower than determined cluster version";
    assert!(why.contains(text), "{last}");

    start(0, ports, data.path(), &[]).ready().terminate();
}
