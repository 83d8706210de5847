//! A member as a process: what it says, what it serves to probes and dashboards, and how it ends.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use kvstore::pb::etcdserverpb::{PutRequest, PutResponse};
use node_bin::metrics::scrape::{Family, Scrape, parse_families};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// A member of one on ports of its own.
struct Member {
    child: Child,
    log: BufReader<ChildStderr>,
    client: u16,
    metrics: u16,
}

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn command(data: &Path, [peer, client, metrics]: [u16; 3]) -> Command {
    let url = |port| format!("http://127.0.0.1:{port}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_node-bin"));
    command
        .args(["--name", "m", "--metrics=extensive", "--data-dir"])
        .arg(data);
    for (flag, port) in [
        ("--listen-peer-urls", peer),
        ("--initial-advertise-peer-urls", peer),
        ("--listen-client-urls", client),
        ("--advertise-client-urls", client),
        ("--listen-metrics-urls", metrics),
    ] {
        command.args([flag.to_string(), url(port)]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Member {
    fn start(data: &Path) -> Member {
        let ports = free_ports();
        let mut child = command(data, ports).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Member {
            child,
            log,
            client: ports[1],
            metrics: ports[2],
        }
    }

    /// Reads the log up to the line with this message.
    fn until(&mut self, message: &str) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(
                self.log.read_line(&mut line).unwrap() > 0,
                "the log ends before {message:?}: {lines:#?}"
            );
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            let found = line["msg"] == message;
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        wait(&mut self.child)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < DEADLINE, "the process does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Status and body of a GET.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.into(),
    )
}

/// One put through gRPC.
fn put(port: u16) -> Result<PutResponse, tonic::Status> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
        client.ready().await.unwrap();
        let request = PutRequest {
            key: "key".into(),
            value: "value".into(),
            ..Default::default()
        };
        let codec = tonic_prost::ProstCodec::<PutRequest, PutResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
        client
            .unary(tonic::Request::new(request), path, codec)
            .await
            .map(tonic::Response::into_inner)
    })
}

/// Families of etcd's that a member of one does not have: of other members, of the v2 store and of the gRPC proxy.
fn is_expected(family: &Family) -> bool {
    const OF_PEERS: [&str; 3] = [
        "etcd_network_active_peers",
        "etcd_network_peer_round_trip_time_seconds",
        "etcd_network_peer_sent_bytes_total",
    ];
    let elsewhere = ["etcd_debugging_store_", "etcd_grpc_proxy_"];
    !OF_PEERS.contains(&&*family.name)
        && !elsewhere
            .iter()
            .any(|prefix| family.name.starts_with(prefix))
}

#[test]
fn a_member_serves_probes_and_dashboards_and_ends_in_order() {
    let data = tempfile::tempdir().unwrap();
    let mut member = Member::start(&data.path().join("m"));
    let lines = member.until("ready to serve client requests");
    for line in &lines {
        for key in ["level", "ts", "caller", "msg"] {
            assert!(line[key].is_string(), "{key} is missing in {line}");
        }
        let kebab = line
            .as_object()
            .unwrap()
            .keys()
            .all(|key| !key.contains('_'));
        assert!(kebab, "{line}");
    }
    member.until("serving client traffic insecurely; this is strongly discouraged!");

    let healthy = (200, "{\"health\":\"true\",\"reason\":\"\"}".to_string());
    for port in [member.client, member.metrics] {
        assert_eq!(get(port, "/health"), healthy);
        assert_eq!(get(port, "/livez"), (200, "ok\n".into()));
        assert_eq!(get(port, "/readyz"), (200, "ok\n".into()));
    }
    let (status, versions) = get(member.client, "/version");
    let versions: Value = serde_json::from_str(&versions).unwrap();
    assert_eq!((status, &versions["etcdserver"]), (200, &"3.6.16".into()));
    assert_eq!(get(member.metrics, "/version").0, 404);

    assert_eq!(put(member.client).unwrap().header.unwrap().revision, 2);
    let expected = parse_families(include_str!("fixtures/metrics-3.6.16.txt")).unwrap();
    let expected: Vec<Family> = expected.into_iter().filter(is_expected).collect();
    let scrape = Scrape::parse(&get(member.metrics, "/metrics").1).unwrap();
    assert_eq!(scrape.differences(&expected), [""; 0]);
    let value = |name: &str| scrape.values(name).next().unwrap().value;
    assert_eq!(
        (
            value("etcd_server_has_leader"),
            value("etcd_server_is_leader")
        ),
        (1.0, 1.0)
    );
    assert!(value("etcd_disk_wal_fsync_duration_seconds_count") > 0.0);
    assert_eq!(value("etcd_network_client_grpc_received_bytes_total"), 12.0);
    assert_eq!(value("etcd_server_client_requests_total"), 1.0);
    let handled: Vec<_> = scrape
        .values("grpc_server_handled_total")
        .filter(|sample| sample.value > 0.0)
        .collect();
    assert_eq!(handled.len(), 1);
    assert_eq!(
        (
            handled[0].label("grpc_method"),
            handled[0].label("grpc_code")
        ),
        (Some("Put"), Some("OK"))
    );

    assert_eq!(member.terminate().code(), Some(0));
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let [peer, metrics] = free_ports();
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    let output = command(&path, [peer, port, metrics]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let error = last["error"].as_str().unwrap();
    assert!(
        last["level"] == "fatal" && error.contains(&format!("127.0.0.1:{port}")),
        "{last}"
    );
    assert!(!path.exists());
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_lives_on() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("m");
    let mut owner = Member::start(&path);
    owner.until("serving client traffic insecurely; this is strongly discouraged!");
    let output = command(&path, free_ports()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stderr).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "fatal", "{last}");
    assert_eq!(get(owner.client, "/health").0, 200);
    assert_eq!(owner.terminate().code(), Some(0));
}
