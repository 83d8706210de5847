//! TLS between members: who comes in and who does not, and what happens when files change.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use common::{
    Member, PATIENCE, append,
    authority::{Authority, Files, LEAF, Leaf},
    message,
    raw::{Raw, request},
    recorder::TestRecorder,
    soon,
};
use http::{HeaderMap, StatusCode};
use tokio::net::TcpListener;
use transport_core::raftpb::MessageType;
use transport_http::{
    ClientError, NoSnapshots, TransportConfig,
    client::Client,
    tls::{Tls, TlsAcceptor, TlsConnector, TlsError, TlsSettings, TlsVersion},
};

fn load(settings: TlsSettings) -> (Tls, TestRecorder) {
    let recorder = TestRecorder::default();
    let tls = Tls::load(settings, &(Arc::new(recorder.clone()) as _)).unwrap();
    (tls, recorder)
}

/// A member whose port speaks TLS, and so does its connector.
async fn secure(id: u64, settings: TlsSettings) -> Member {
    secure_with(id, settings, |_| {}).await
}

async fn secure_with(
    id: u64,
    settings: TlsSettings,
    configure: impl FnOnce(&mut TransportConfig),
) -> Member {
    let (tls, _) = load(settings);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::new(listener, tls.clone());
    let with_tls = |config: &mut TransportConfig| {
        config.advertise_urls = vec![format!("https://{address}")];
        config.connector = Arc::new(TlsConnector::new(tls));
        configure(config);
    };
    Member::start_on(id, address, acceptor, with_tls, Arc::new(NoSnapshots))
}

fn url(member: &Member) -> String {
    format!("https://{}", member.address)
}

/// Who asks a member something, as another member would.
struct Asker {
    client: Client,
    recorder: TestRecorder,
}

impl Asker {
    fn new(settings: TlsSettings) -> Asker {
        let (tls, recorder) = load(settings);
        let client = Client::over(Arc::new(TlsConnector::new(tls)), PATIENCE);
        Asker { client, recorder }
    }

    async fn ask(&self, url: &str) -> Result<StatusCode, ClientError> {
        let url = format!("{url}/raft/probing");
        let answer = self
            .client
            .get(&url, HeaderMap::new(), PATIENCE, 4096)
            .await;
        answer.map(|(status, ..)| status)
    }

    async fn comes_in(&self, member: &Member) {
        assert_eq!(self.ask(&url(member)).await.unwrap(), 200);
    }

    /// The member refuses it, for this cause.
    async fn is_refused(&self, member: &Member, cause: &str) {
        let name = format!("rafthttp_handshake_failures_total{{side=accept,cause={cause}}}");
        let before = member.recorder.value(&name);
        self.ask(&url(member)).await.unwrap_err();
        member
            .recorder
            .until(&name, |value| value == before + 1.0)
            .await;
    }

    /// It refuses who answers at the URL, for this cause.
    async fn refuses(&self, url: &str, cause: &str) {
        let name = format!("rafthttp_handshake_failures_total{{side=dial,cause={cause}}}");
        let before = self.recorder.value(&name);
        self.ask(url).await.unwrap_err();
        assert_eq!(self.recorder.value(&name), before + 1.0, "{cause}");
    }
}

#[tokio::test]
async fn members_exchange_messages_over_either_version() {
    let authority = Authority::new("ca");
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let files = Files::new(&authority, LEAF);
        let settings = TlsSettings {
            max_version: Some(version),
            min_version: Some(version),
            ..files.settings()
        };
        let mut a = secure(1, settings.clone()).await;
        let mut b = secure(2, settings).await;
        a.transport.add_peer(b.id, &[url(&b)]).unwrap();
        b.transport.add_peer(a.id, &[url(&a)]).unwrap();
        a.streams_up(1).await;
        b.streams_up(1).await;
        a.transport.send(vec![append(1, 2, 5, 100_000)]);
        assert_eq!(b.message().await.entries[0].data.len(), 100_000);
        b.transport
            .send(vec![message(MessageType::HeartbeatResponse, 2, 1)]);
        assert_eq!(a.message().await.from, 2);
        a.stop().await;
        b.stop().await;
    }
}

#[tokio::test]
async fn certificates_of_strangers_and_none_at_all_are_refused_on_both_sides() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let files = Files::new(&ours, LEAF);
    let member = secure(1, files.settings()).await;
    Asker::new(files.settings()).comes_in(&member).await;

    let strange = Files::new(&theirs, LEAF);
    Asker::new(strange.settings())
        .refuses(&url(&member), "unknown_authority")
        .await;
    // Trusts us, and shows what we do not trust.
    let pretender = TlsSettings {
        trusted_ca_file: Some(files.path("ca.pem")),
        ..strange.settings()
    };
    Asker::new(pretender)
        .is_refused(&member, "unknown_authority")
        .await;
    let naked = TlsSettings {
        trusted_ca_file: Some(files.path("ca.pem")),
        ..TlsSettings::default()
    };
    Asker::new(naked)
        .is_refused(&member, "no_certificate")
        .await;
    let old = Files::new(
        &ours,
        Leaf {
            expired: true,
            ..LEAF
        },
    );
    Asker::new(old.settings())
        .is_refused(&member, "expired")
        .await;
    // Told of the refusal, the member counts it on its side.
    let told = "rafthttp_handshake_failures_total{side=accept,cause=refused}";
    member.recorder.until(told, |value| value >= 1.0).await;
    member.stop().await;
}

#[tokio::test]
async fn only_allowed_common_names_come_in_and_are_dialled() {
    let authority = Authority::new("ca");
    let (etcd, other) = (
        Files::new(
            &authority,
            Leaf {
                common_name: "etcd",
                ..LEAF
            },
        ),
        Files::new(&authority, LEAF),
    );
    let picky = TlsSettings {
        allowed_cns: vec!["etcd2".into(), "etcd".into()],
        ..etcd.settings()
    };
    let member = secure(1, picky.clone()).await;
    Asker::new(etcd.settings()).comes_in(&member).await;
    Asker::new(other.settings())
        .is_refused(&member, "name")
        .await;
    let unfit = secure(2, other.settings()).await;
    Asker::new(picky).refuses(&url(&unfit), "name").await;
    member.stop().await;
    unfit.stop().await;
}

#[tokio::test]
async fn only_allowed_host_names_come_in() {
    let authority = Authority::new("ca");
    let names = &["127.0.0.1", "*.members.example"];
    let fit = Files::new(&authority, Leaf { names, ..LEAF });
    let unfit = Files::new(&authority, LEAF);
    let allowed = |host: &str| TlsSettings {
        allowed_hostnames: vec!["elsewhere".into(), host.into()],
        ..fit.settings()
    };
    for host in ["m1.members.example", "*.members.example"] {
        let member = secure(1, allowed(host)).await;
        Asker::new(fit.settings()).comes_in(&member).await;
        Asker::new(unfit.settings())
            .is_refused(&member, "name")
            .await;
        member.stop().await;
    }
    let member = secure(1, allowed("127.0.0.1")).await;
    Asker::new(unfit.settings()).comes_in(&member).await;
    member.stop().await;
}

#[tokio::test]
async fn who_connects_must_come_from_where_its_certificate_says() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let elsewhere = Files::new(
        &authority,
        Leaf {
            names: &["192.0.2.1"],
            ..LEAF
        },
    );
    let strict = secure(1, files.settings()).await;
    let lax = TlsSettings {
        skip_client_san_verification: true,
        ..files.settings()
    };
    let lax = secure(2, lax).await;
    let asker = Asker::new(elsewhere.settings());
    asker.is_refused(&strict, "name").await;
    asker.comes_in(&lax).await;
    // Without any name it may come from anywhere; and what we dial must be who the URL says.
    let nameless = Files::new(&authority, Leaf { names: &[], ..LEAF });
    Asker::new(nameless.settings()).comes_in(&strict).await;
    let misnamed = secure(3, elsewhere.settings()).await;
    Asker::new(files.settings())
        .refuses(&url(&misnamed), "name")
        .await;
    for member in [strict, lax, misnamed] {
        member.stop().await;
    }
}

#[tokio::test]
async fn revoked_certificates_are_refused_in_either_form_of_the_list() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let revoked = Files::new(&authority, Leaf { serial: 8, ..LEAF });
    let (pem, der) = authority.revoke(&[8, 9]);
    for list in [pem.as_bytes(), &der] {
        let crl_file = Some(files.write("crl", list));
        let settings = TlsSettings {
            crl_file,
            ..files.settings()
        };
        let member = secure(1, settings.clone()).await;
        Asker::new(files.settings()).comes_in(&member).await;
        Asker::new(revoked.settings())
            .is_refused(&member, "revoked")
            .await;
        let revoked_member = secure(2, revoked.settings()).await;
        Asker::new(settings)
            .refuses(&url(&revoked_member), "revoked")
            .await;
        // Taken off the list, it comes in without a restart.
        files.write("crl", authority.revoke(&[9]).0);
        Asker::new(revoked.settings()).comes_in(&member).await;
        member.stop().await;
        revoked_member.stop().await;
    }
}

#[tokio::test]
async fn versions_without_overlap_are_refused() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let new = TlsSettings {
        min_version: Some(TlsVersion::V1_3),
        ..files.settings()
    };
    let old = TlsSettings {
        max_version: Some(TlsVersion::V1_2),
        ..files.settings()
    };
    let member = secure(1, new).await;
    Asker::new(old).is_refused(&member, "incompatible").await;
    Asker::new(files.settings()).comes_in(&member).await;
    member.stop().await;
}

#[tokio::test]
async fn changed_files_count_from_the_next_handshake_on_and_broken_ones_never() {
    let (before, after) = (Authority::new("before"), Authority::new("after"));
    let files = Files::new(&before, LEAF);
    let member = secure(1, files.settings()).await;
    let (old, new) = (Files::new(&before, LEAF), Files::new(&after, LEAF));
    let (old, new) = (Asker::new(old.settings()), Asker::new(new.settings()));
    old.comes_in(&member).await;

    // A key that does not fit, half a file, no file: the old ones stay in use.
    let key = fs::read(files.path("key.pem")).unwrap();
    files.write("key.pem", before.issue(LEAF).1);
    old.comes_in(&member).await;
    files.write("key.pem", &key[..key.len() / 2]);
    old.comes_in(&member).await;
    fs::remove_file(files.path("key.pem")).unwrap();
    old.comes_in(&member).await;
    new.refuses(&url(&member), "unknown_authority").await;

    files.put(&after, LEAF);
    new.comes_in(&member).await;
    old.refuses(&url(&member), "unknown_authority").await;
    member.stop().await;
}

#[tokio::test]
async fn a_silent_peer_is_let_go_at_the_deadline() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let member = secure_with(1, files.settings(), |config| {
        config.limits.handshake_timeout = Duration::from_millis(300);
    })
    .await;
    let mut silent = Raw::connect(member.address).await;
    Asker::new(files.settings()).comes_in(&member).await;
    assert!(!silent.fill().await, "the connection must be closed");
    let timeouts = "rafthttp_handshake_failures_total{side=accept,cause=timeout}";
    member.recorder.until(timeouts, |value| value == 1.0).await;
    member.stop().await;
}

#[tokio::test]
async fn schemes_that_do_not_match_are_told_apart_from_other_failures() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let member = secure(1, files.settings()).await;
    let mut plain = Raw::connect(member.address).await;
    plain.write(request("GET", "/raft/probing", &[])).await;
    while plain.fill().await {}
    let mismatches = "rafthttp_handshake_failures_total{side=accept,cause=scheme_mismatch}";
    member
        .recorder
        .until(mismatches, |value| value == 1.0)
        .await;
    member.stop().await;

    let member = Member::start(2).await;
    Asker::new(files.settings())
        .is_refused(&member, "scheme_mismatch")
        .await;
    member.stop().await;
    // A server that answers, as Go's HTTP does.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let mut raw = Raw::accept(&listener).await;
        raw.write("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        while raw.fill().await {}
    });
    let asker = Asker::new(files.settings());
    asker
        .refuses(&format!("https://{address}"), "scheme_mismatch")
        .await;
    soon("the server", answering).await.unwrap();
}

#[tokio::test]
async fn h2_is_never_agreed_upon() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let settings = TlsSettings {
        trusted_ca_file: None,
        client_cert_auth: false,
        ..files.settings()
    };
    let member = secure(1, settings).await;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::pem::PemObject::from_pem_file(files.path("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = Raw::connect(member.address).await.socket;
    let name = "127.0.0.1".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = soon("a handshake", connector.connect(name, stream))
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), None);
    member.stop().await;
}

#[tokio::test]
async fn certificates_made_at_start_are_kept_and_trust_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, years| {
        let path = dir.path().join(name).join("fixtures/peer");
        let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        TlsSettings::default().with_self_signed(&path, &hosts, years)
    };
    let a = secure(1, make("a", 1).unwrap()).await;
    let b = secure(2, make("b", 290).unwrap()).await;
    a.transport.add_peer(b.id, &[url(&b)]).unwrap();
    b.transport.add_peer(a.id, &[url(&a)]).unwrap();
    a.streams_up(1).await;
    b.streams_up(1).await;
    a.stop().await;
    b.stop().await;

    let path = |name: &str| dir.path().join("a/fixtures/peer").join(name);
    let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("cert.pem"), mode("key.pem"), mode("")),
        (0o644, 0o600, 0o700)
    );
    let made = fs::read(path("cert.pem")).unwrap();
    make("a", 2).unwrap();
    assert_eq!(fs::read(path("cert.pem")).unwrap(), made);
    fs::write(path("key.pem"), "of a kind that cannot be used").unwrap();
    make("a", 2).unwrap();
    assert_ne!(fs::read(path("cert.pem")).unwrap(), made);
    assert!(matches!(make("c", 0), Err(TlsError::Validity)));
    assert!(matches!(
        make("c", 291),
        Err(TlsError::ValidityTooLong { .. })
    ));
}

#[test]
fn files_that_cannot_be_used_are_named_at_start() {
    let authority = Authority::new("ca");
    let files = Files::new(&authority, LEAF);
    let other_key = authority.issue(LEAF).1;
    let cases = [
        (
            "cert.pem",
            "nothing",
            "cert.pem holds no certificate in PEM form",
        ),
        (
            "key.pem",
            "nothing",
            "key.pem holds no private key in PEM form",
        ),
        (
            "key.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "key.pem is encrypted",
        ),
        (
            "key.pem",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "key.pem is encrypted",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            "supported are RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, and Ed25519",
        ),
        (
            "key.pem",
            &other_key,
            "tls: private key does not match public key",
        ),
        (
            "ca.pem",
            "nothing",
            "ca.pem holds no certificate in PEM form",
        ),
        ("crl.pem", "nothing", "the revocation list"),
    ];
    for (name, text, message) in cases {
        files.put(&authority, LEAF);
        let crl_file = (name == "crl.pem").then(|| files.path(name));
        files.write(name, text);
        let settings = TlsSettings {
            crl_file,
            ..files.settings()
        };
        let error = Tls::load(settings, &(Arc::new(TestRecorder::default()) as _)).unwrap_err();
        assert!(error.to_string().contains(message), "{name}: {error}");
    }
    fs::remove_file(files.path("ca.pem")).unwrap();
    let error = Tls::load(files.settings(), &(Arc::new(TestRecorder::default()) as _)).unwrap_err();
    assert!(error.to_string().starts_with("open "), "{error}");
}
