//! The rules of configuration as etcd's users meet them: what is refused, with which words and exit code.

use super::*;

fn load_words(words: &str, variables: &[(&str, &str)]) -> Result<Outcome, Failure> {
    let args = words.split_whitespace().map(OsString::from).collect();
    load(
        args,
        variables
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
    )
}

fn loaded(words: &str) -> Loaded {
    match load_words(words, &[]) {
        Ok(Outcome::Run(loaded)) => *loaded,
        other => panic!("{words}: {other:?}"),
    }
}

fn refused(words: &str) -> (String, u8) {
    let error = load_words(words, &[]).unwrap_err().error;
    (error.to_string(), error.exit_code())
}

#[test]
fn the_defaults_are_etcd_s() {
    let Loaded { config, notes } = loaded("");
    assert_eq!(
        (config.name.as_str(), config.data_dir.to_str()),
        ("default", Some("default.etcd"))
    );
    assert_eq!(
        url::strings(&config.listen_peer_urls),
        ["http://localhost:2380"]
    );
    assert_eq!(
        url::strings(&config.advertise_client_urls),
        ["http://localhost:2379"]
    );
    assert_eq!(config.initial_cluster, "default=http://localhost:2380");
    assert_eq!(
        (
            config.heartbeat_ms,
            config.election_ms,
            config.election_ticks()
        ),
        (100, 1000, 10)
    );
    assert_eq!(config.request_timeout(), Duration::from_secs(7));
    assert_eq!(config.peer_dial_timeout(), Duration::from_secs(2));
    assert_eq!(
        (config.snapshot_count, config.snapshot_catchup_entries),
        (10_000, 5000)
    );
    assert_eq!(
        (config.max_request_bytes, config.max_txn_ops),
        (1_572_864, 128)
    );
    assert_eq!((config.quota_backend_bytes, config.max_learners), (0, 1));
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert!(
        config.pre_vote && config.strict_reconfig_check && config.initial_election_tick_advance
    );
    assert_eq!(config.log, LogConfig::default());
    assert!(
        notes.contains(&Note::SharedPort) && notes.contains(&Note::DefaultName("default".into()))
    );
    assert_eq!(config.wal_dir().to_str(), Some("default.etcd/member/wal"));
}

#[test]
fn the_command_line_of_a_member_is_understood() {
    let Loaded { config, .. } = loaded(
        "--name m1 --data-dir /d --wal-dir /w --listen-client-urls http://127.0.0.1:1 --advertise-client-urls \
         http://h:1 --listen-peer-urls http://[::1]:2 --initial-advertise-peer-urls http://h:2 --initial-cluster \
         m1=http://h:2,m2=http://i:2 --initial-cluster-state existing --initial-cluster-token t \
         --heartbeat-interval=50 --election-timeout=500 --snapshot-count=10000 --quota-backend-bytes=-1 \
         --auto-compaction-retention=5m --experimental-initial-corrupt-check=true \
         --experimental-watch-progress-notify-interval=5s --unsafe-wal-segment-bytes=65536 --log-level=debug \
         --metrics=extensive --listen-metrics-urls=http://127.0.0.1:3 --announced-server-version=3.5.30",
    );
    assert_eq!(config.initial_cluster_state, ClusterState::Existing);
    assert_eq!(
        (config.quota_backend_bytes, config.wal_segment_bytes),
        (-1, Some(65536))
    );
    assert_eq!(
        config.auto_compaction,
        AutoCompaction::Periodic(Duration::from_secs(300))
    );
    assert!(config.features.enabled("InitialCorruptCheck"));
    assert_eq!(
        (config.metrics, config.log.level),
        (MetricsDetail::Extensive, LogLevel::Debug)
    );
    assert_eq!(config.server_version, Version::new(3, 5, 30));
    assert_eq!(config.wal_dir().to_str(), Some("/w"));
}

#[test]
fn the_cluster_of_one_follows_the_name() {
    let Loaded { config, .. } =
        loaded("--name foo --initial-advertise-peer-urls http://127.0.0.1:30001");
    assert_eq!(config.initial_cluster, "foo=http://127.0.0.1:30001");
    assert_eq!(config.data_dir.to_str(), Some("foo.etcd"));
}

#[test]
fn what_etcd_refuses_is_refused_with_its_words() {
    let cases = [
        (
            "--heartbeat-interval 300",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
        (
            "--heartbeat-interval 0",
            "--heartbeat-interval must be >0 (set to 0ms)",
        ),
        (
            "--election-timeout 0",
            "--election-timeout must be >0 (set to 0ms)",
        ),
        (
            "--election-timeout 50001",
            "--election-timeout[50001ms] is too long, and should be set less than 50000ms",
        ),
        ("foo", "\"foo\" is not a valid flag"),
        (
            "--listen-client-urls=http://foo.bar:30000",
            "expected IP in URL for binding (http://foo.bar:30000)",
        ),
        (
            "--listen-client-urls=http://127.0.0.1:30000",
            ADVERTISE_UNSET,
        ),
        (
            "--advertise-client-urls=http://:30000",
            "--advertise-client-urls \"http://:30000\" must be \"host:port\" (unexpected empty host (http://:30000))",
        ),
        (
            "--log-format=xx",
            "unknown log format: xx, supported values json, console",
        ),
        (
            "--log-outputs=default,stdout",
            "multi logoutput for \"default\" is not supported yet",
        ),
        ("--logger=capnslog", "--logger=capnslog is removed in v3.5"),
        ("--logger=x", "unknown logger option \"x\""),
        (
            "--auto-compaction-mode=x",
            "unknown auto-compaction-mode \"x\"",
        ),
        (
            "--auto-compaction-retention=xx",
            "error parsing CompactionRetention: time: invalid duration \"xx\"",
        ),
        (
            "--feature-gates=LeaseCheckpointPersist=true",
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        (
            "--compact-hash-check-time=0",
            "--compact-hash-check-time must be >0 (set to 0s)",
        ),
        (
            "--enable-log-rotation",
            "--log-outputs requires a single file path when --log-rotate-config-json is defined",
        ),
        (
            "--listen-peer-urls=https://127.0.0.1:2380",
            "cannot listen on TLS for 127.0.0.1:2380: KeyFile and CertFile are not presented",
        ),
        (
            "--peer-cert-file=c",
            "KeyFile and CertFile must both be present[key: , cert: c]",
        ),
        (
            "--peer-cert-file=c --peer-key-file=k --peer-cert-allowed-cn=a,b --peer-cert-allowed-hostname=h",
            "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\" \"b\"], hostnames=[\"h\"])",
        ),
        (
            "--tls-min-version=TLS1.1",
            "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)",
        ),
        (
            "--tls-min-version=TLS1.3 --tls-max-version=TLS1.2",
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        ("--cipher-suites=x", "unexpected TLS cipher suite \"x\""),
        (
            "--config-file=/nonexistent",
            "open /nonexistent: no such file or directory",
        ),
    ];
    for (words, message) in cases {
        assert_eq!(refused(words), (message.into(), 1), "{words}");
    }
}

#[test]
fn what_is_not_supported_yet_is_refused_in_one_line() {
    for (words, reason) in [
        ("--cert-file x", "TLS for clients is not supported yet"),
        (
            "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://h:1",
            "TLS for clients is not supported yet",
        ),
        (
            "--discovery http://x",
            "discovery services are not supported",
        ),
        (
            "--auth-token jwt,pub-key=x",
            "only simple tokens are supported yet",
        ),
        ("--enable-distributed-tracing", "no tracing exporter"),
    ] {
        let (message, code) = refused(words);
        assert!(
            message.contains(reason) && !message.contains('\n') && code == 1,
            "{words}: {message}"
        );
    }
}

#[test]
fn flags_of_peer_tls_reach_the_transport() {
    let Loaded { config, notes } = loaded(
        "--listen-peer-urls https://127.0.0.1:1,http://127.0.0.1:2 --peer-cert-file=c --peer-key-file=k \
         --peer-client-cert-auth --peer-trusted-ca-file=ca --peer-cert-allowed-cn=a,b --peer-auto-tls \
         --experimental-peer-skip-client-san-verification --tls-max-version=TLS1.2",
    );
    let tls = &config.peer_tls.settings;
    assert_eq!(tls.trusted_ca_file.as_deref(), Some("ca".as_ref()));
    assert_eq!(tls.allowed_cns, ["a", "b"]);
    assert!(tls.client_cert_auth && tls.skip_client_san_verification);
    assert_eq!(tls.max_version, Some(transport_http::tls::TlsVersion::V1_2));
    assert!(!config.peer_tls.auto);
    for note in [
        Note::PeerAutoTlsIgnored,
        Note::PeerCertificateUnused("http://127.0.0.1:2".into()),
        Note::PeerCertAuthUnused("http://127.0.0.1:2".into()),
    ] {
        assert!(notes.contains(&note), "{note:?} is not in {notes:?}");
    }
    let own = loaded(
        "--listen-peer-urls https://127.0.0.1:1 --peer-auto-tls --self-signed-cert-validity=3",
    )
    .config;
    assert_eq!(
        (own.peer_tls.auto, own.peer_tls.self_signed_years),
        (true, 3)
    );
    assert!(!loaded("").config.peer_tls.is_wanted());
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    assert_eq!(
        refused("--nosuch"),
        ("flag provided but not defined: -nosuch".into(), 2)
    );
    assert_eq!(
        refused("--log-level=foo"),
        ("unrecognized level: \"foo\"".into(), 2)
    );
}

#[test]
fn a_variable_that_contradicts_a_flag_is_fatal() {
    let error = load_words("--name=y", &[("ETCD_NAME", "x")])
        .unwrap_err()
        .error;
    assert_eq!(
        error,
        LoadError::Conflict {
            variable: "ETCD_NAME".into()
        }
    );
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn a_file_replaces_flags_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.yaml");
    std::fs::write(
        &path,
        "name: filed\nheartbeat-interval: 200\nlisten-client-urls: http://127.0.0.1:1\n",
    )
    .unwrap();
    let path = path.to_str().unwrap();
    for (words, variables) in [
        (
            format!("--name=y --config-file={path}"),
            vec![("ETCD_NAME", "x")],
        ),
        (String::new(), vec![("ETCD_CONFIG_FILE", path)]),
    ] {
        let Ok(Outcome::Run(loaded)) = load_words(&words, &variables) else {
            panic!("{words}")
        };
        assert_eq!(
            (loaded.config.name.as_str(), loaded.config.heartbeat_ms),
            ("filed", 200)
        );
        assert_eq!(
            url::strings(&loaded.config.advertise_client_urls),
            ["http://localhost:2379"]
        );
        assert!(loaded.notes.contains(&Note::FileUsed(path.into())));
    }
}

#[test]
fn version_and_help_are_printed() {
    for words in ["--version", "--help", "-h"] {
        assert!(
            matches!(
                load_words(words, &[("ETCD_NAME", "x")]),
                Ok(Outcome::Print(_))
            ),
            "{words}"
        );
    }
    assert_eq!(refused("--version stray").1, 1);
}

#[test]
fn log_outputs_and_rotation() {
    let log = loaded("--log-outputs=stdout,/var/log/etcd.log --enable-log-rotation")
        .config
        .log;
    assert_eq!(
        log.outputs,
        [
            LogOutput::File("/var/log/etcd.log".into()),
            LogOutput::Stdout
        ]
    );
    assert_eq!(
        log.rotation,
        Some(LogRotation {
            size_max: 100 << 20,
            days_max: 0,
            files_max: 0
        })
    );
    assert_eq!(
        loaded("--log-outputs=/dev/null,stderr").config.log.outputs,
        []
    );
}

/// Other values than the defaults for settings whose kind does not lead to one, and what must go with them.
const OTHERS: &[(&str, &str, &[&str])] = &[
    ("auth-token", "jwt", &[]),
    (
        "auto-compaction-mode",
        "revision",
        &["--auto-compaction-retention=5"],
    ),
    ("auto-compaction-retention", "5h", &[]),
    ("announced-server-version", "3.5.0", &[]),
    ("config-file", "/nonexistent", &[]),
    ("election-timeout", "2000", &[]),
    ("enable-grpc-gateway", "false", &[]),
    ("enable-log-rotation", "true", &["--log-outputs=/f"]),
    ("feature-gates", "AllBeta=false", &[]),
    (
        "listen-client-urls",
        "http://127.0.0.1:1",
        &["--advertise-client-urls=http://h:1"],
    ),
    ("log-level", "warn", &[]),
    ("log-format", "console", &[]),
    ("log-outputs", "stdout", &[]),
    (
        "log-rotation-config-json",
        "{\"maxsize\":7}",
        &["--enable-log-rotation", "--log-outputs=/f"],
    ),
    ("logger", "capnslog", &[]),
    ("metrics", "extensive", &[]),
    ("unsafe-wal-segment-bytes", "8192", &[]),
    ("v2-deprecation", "gone", &[]),
    ("version", "true", &[]),
];

fn another(flag: &flags::Flag) -> String {
    use value::Kind;
    match flag.kind {
        Kind::Bool => (flag.default != "true").to_string(),
        Kind::Uint | Kind::Uint32 | Kind::Int => match flag.default.parse::<i64>() {
            Ok(default) => (default + 1).to_string(),
            Err(_) => "7".into(),
        },
        Kind::Duration => "7s".into(),
        Kind::OneOf(words) => {
            let other = words.iter().find(|word| **word != flag.default);
            other.unwrap().to_string()
        }
        Kind::Urls | Kind::Origins => "http://127.0.0.1:7".into(),
        _ => "other".into(),
    }
}

/// With the compiler, which tells of a field that nobody reads, this holds the table to what it says about effects.
#[test]
fn a_flag_that_is_used_changes_the_configuration_and_any_other_is_told_of() {
    let outcome = |words: &[String]| match load(words.iter().map(Into::into).collect(), vec![]) {
        Ok(Outcome::Run(loaded)) => (format!("{:?}", loaded.config), loaded.notes),
        other => (format!("{other:?}"), Vec::new()),
    };
    for flag in table::FLAGS {
        let special = OTHERS.iter().find(|(name, ..)| *name == flag.name);
        let value = special.map_or_else(|| another(flag), |(_, value, _)| value.to_string());
        let mut words: Vec<String> = match special {
            Some((.., with)) => with.iter().map(ToString::to_string).collect(),
            None => Vec::new(),
        };
        let without = outcome(&words);
        words.push(format!("--{}={value}", flag.name));
        let with = outcome(&words);
        let ignored = with
            .1
            .iter()
            .any(|note| matches!(note, Note::Ignored { name, .. } if *name == flag.name));
        match flag.effect {
            flags::Effect::Used => assert_ne!(with.0, without.0, "{}", flag.name),
            flags::Effect::Ignored(_) => {
                assert!(ignored && with.0 == without.0, "{}: {with:?}", flag.name);
            }
            flags::Effect::Refused(_) => assert!(with.0.starts_with("Err"), "{}", flag.name),
            flags::Effect::Alias(_) | flags::Effect::Gate(_) => {}
        }
    }
}

#[test]
fn what_changes_nothing_or_is_risky_is_warned_about() {
    let Loaded { notes, .. } =
        loaded("--feature-gates=InitialCorruptCheck=true --quota-backend-bytes=8589934593");
    assert!(notes.contains(&Note::GateWithoutEffect("InitialCorruptCheck")));
    assert!(notes.contains(&Note::LargeQuota {
        bytes: 8_589_934_593,
        recommended: 8 << 30
    }));
    let Loaded { notes, .. } = loaded("--quota-backend-bytes=8589934592");
    assert!(
        !notes
            .iter()
            .any(|note| matches!(note, Note::LargeQuota { .. }))
    );
}
