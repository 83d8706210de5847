//! Members whose peer ports speak TLS.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use kvstore::pb::etcdserverpb::{MemberAddRequest, MemberAddResponse, RangeRequest, RangeResponse};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::member::{Member, Ports, SERVING, command, refusal};

fn secure_url(ports: Ports) -> String {
    format!("https://127.0.0.1:{}", ports.peer)
}

/// `--initial-cluster` of members `n0`, `n1`, …
fn listed(ports: &[Ports]) -> String {
    let members = ports.iter().enumerate();
    let members: Vec<String> = members
        .map(|(at, ports)| format!("n{at}={}", secure_url(*ports)))
        .collect();
    members.join(",")
}

/// Member `at` of `ports`, with its peer port behind TLS.
fn secure(data: &Path, ports: &[Ports], at: usize, flags: &[String]) -> Command {
    let name = format!("n{at}");
    let mut command = command(&name, &data.join(&name), ports[at]);
    let url = secure_url(ports[at]);
    command
        .args([
            "--listen-peer-urls",
            &url,
            "--initial-advertise-peer-urls",
            &url,
        ])
        .args(["--initial-cluster", &listed(ports)])
        // Adding a member need not wait until all have known each other for five seconds.
        .arg("--strict-reconfig-check=false")
        .args(flags);
    command
}

/// Two found a cluster, a third is added and joins it; all of them then agree.
fn found_and_join(data: &Path, flags: &[String]) {
    let ports: Vec<Ports> = (0..3).map(|_| Ports::free()).collect();
    let start = |ports: &[Ports], at: usize, flags: &[String]| {
        Member::spawn(secure(data, ports, at, flags), ports[at])
    };
    let mut members: Vec<Member> = (0..2).map(|at| start(&ports[..2], at, flags)).collect();
    members.iter().for_each(Member::wait_healthy);
    let request = MemberAddRequest {
        peer_urls: vec![secure_url(ports[2])],
        is_learner: false,
    };
    let _: MemberAddResponse = members[0]
        .call("/etcdserverpb.Cluster/MemberAdd", request)
        .unwrap();
    let mut joining = flags.to_vec();
    joining.push("--initial-cluster-state=existing".into());
    members.push(start(&ports, 2, &joining));
    members[2].until(SERVING);
    for (at, member) in members.iter().enumerate() {
        member.put(&format!("key{at}"), "value").unwrap();
    }
    for member in &members {
        let range = RangeRequest {
            key: "key".into(),
            range_end: "kez".into(),
            ..Default::default()
        };
        let found: RangeResponse = member.call("/etcdserverpb.KV/Range", range).unwrap();
        assert_eq!(found.count, 3);
    }
    for member in &mut members {
        assert_eq!(member.terminate().code(), Some(0));
    }
}

/// An authority and a certificate for this machine, in files.
fn make_files(dir: &Path) -> [PathBuf; 3] {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_string()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "peer");
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    [
        write("ca.pem", authority.pem()),
        write("cert.pem", certificate.pem()),
        write("key.pem", key.serialize_pem()),
    ]
}

#[test]
fn members_with_certificates_from_files_found_and_join_a_cluster() {
    let data = tempfile::tempdir().unwrap();
    let [ca, certificate, key] = make_files(data.path());
    let file = |flag: &str, path: &Path| format!("--peer-{flag}={}", path.display());
    found_and_join(
        data.path(),
        &[
            file("trusted-ca-file", &ca),
            file("cert-file", &certificate),
            file("key-file", &key),
            "--peer-client-cert-auth".into(),
            "--peer-cert-allowed-cn=other,peer".into(),
        ],
    );
}

#[test]
fn members_with_certificates_of_their_own_found_and_join_a_cluster() {
    let data = tempfile::tempdir().unwrap();
    found_and_join(data.path(), &["--peer-auto-tls".into()]);
    assert!(data.path().join("n2/fixtures/peer/cert.pem").exists());
}

#[test]
fn who_speaks_the_wrong_scheme_is_logged_with_the_reason() {
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let flags = ["--peer-auto-tls".to_string()];
    let secure = Member::spawn(secure(data.path(), &[ports], 0, &flags), ports);
    let plain = Member::alone(&data.path().join("plain"), &[]);
    let cases = [
        (secure, &b"GET / HTTP/1.1\r\n\r\n"[..], "http"),
        (plain, &[0x16, 3, 1, 2, 0, 1, 0], "https"),
    ];
    for (mut member, bytes, said) in cases {
        member.wait_healthy();
        let mut socket = TcpStream::connect(("127.0.0.1", member.ports.peer)).unwrap();
        socket.write_all(bytes).unwrap();
        let lines = member.until("rejected connection on peer endpoint");
        let line = lines.last().unwrap();
        assert_eq!(line["cause"], "scheme_mismatch", "{line}");
        let error = line["error"].as_str().unwrap();
        assert!(
            error.contains(&format!("its URL of this member says {said},")),
            "{error}"
        );
        assert_eq!(
            line["remote-addr"],
            socket.local_addr().unwrap().to_string()
        );
    }
}

#[test]
fn files_that_cannot_be_used_end_the_start() {
    let data = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let flags = [
        "--peer-cert-file=/nonexistent/c",
        "--peer-key-file=/nonexistent/k",
    ];
    let reason = refusal(secure(data.path(), &[ports], 0, &flags.map(Into::into)));
    assert_eq!(
        reason,
        "open /nonexistent/c: No such file or directory (os error 2)"
    );
    assert!(!data.path().join("n0").exists());
}
