//! The client endpoints, asked as probes and dashboards ask them; the expected answers are those of etcd 3.6.16.

use std::sync::Mutex;

use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::{config::FeatureGates, metrics::scrape::Scrape, version};

struct Member {
    leader: bool,
    learner: bool,
    alarms: Vec<Alarm>,
    quorum: bool,
    reads: Mutex<Vec<bool>>,
}

impl Default for Member {
    fn default() -> Self {
        Member {
            leader: true,
            learner: false,
            alarms: Vec::new(),
            quorum: true,
            reads: Mutex::default(),
        }
    }
}

impl Gate for Member {
    fn has_leader(&self) -> bool {
        self.leader
    }

    fn is_learner(&self) -> bool {
        self.learner
    }
}

impl ClientState for Member {
    fn alarms(&self) -> Vec<Alarm> {
        self.alarms.clone()
    }

    fn versions(&self) -> Versions {
        Versions::new("3.6.16", None, None)
    }

    async fn read(&self, serializable: bool) -> Result<(), String> {
        self.reads.lock().unwrap().push(serializable);
        if serializable || self.quorum {
            Ok(())
        } else {
            Err("etcdserver: request timed out".into())
        }
    }

    fn raft_status(&self) -> serde_json::Value {
        serde_json::json!({"id": 1})
    }
}

struct Asked {
    status: u16,
    body: String,
    headers: http::HeaderMap,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

async fn ask(router: Router, request: http::Request<Body>) -> Asked {
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Asked {
        status: head.status.as_u16(),
        body,
        headers: head.headers,
    }
}

fn server(metrics: &Metrics) -> Arc<ServerMetrics> {
    Arc::new(ServerMetrics::register(
        metrics.recorder(),
        version::ANNOUNCED,
        &FeatureGates::default(),
    ))
}

fn set(names: &[&str]) -> std::collections::BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn router(member: Member, hosts: &[&str], origins: &[&str]) -> Router {
    let metrics = Metrics::new().unwrap();
    let server = server(&metrics);
    client_router(
        Arc::new(member),
        metrics,
        server,
        Access {
            hosts: set(hosts),
            origins: set(origins),
        },
    )
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> http::Request<Body> {
    let builder = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1:2379");
    headers
        .iter()
        .fold(builder, |builder, (name, value)| {
            builder.header(*name, *value)
        })
        .body(Body::empty())
        .unwrap()
}

async fn get(member: Member, path: &str) -> (u16, String) {
    let asked = ask(router(member, &["*"], &["*"]), request("GET", path, &[])).await;
    (asked.status, asked.body)
}

#[tokio::test]
async fn health_tells_what_is_wrong_first() {
    let healthy = (200, "{\"health\":\"true\",\"reason\":\"\"}".to_string());
    let sick = |reason: &str| {
        (
            503,
            format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"),
        )
    };
    let alarmed = |alarms: &[Alarm]| Member {
        alarms: alarms.to_vec(),
        ..Member::default()
    };
    let (full, damaged) = (Alarm::NoSpace, Alarm::Corrupt);
    assert_eq!(get(Member::default(), "/health").await, healthy);
    assert_eq!(
        get(alarmed(&[full]), "/health").await,
        sick("ALARM NOSPACE")
    );
    assert_eq!(
        get(alarmed(&[full]), "/health?exclude=NOSPACE").await,
        healthy
    );
    assert_eq!(
        get(alarmed(&[full, damaged]), "/health?exclude=NOSPACE").await,
        sick("ALARM CORRUPT")
    );
    assert_eq!(
        get(
            alarmed(&[full, damaged]),
            "/health?exclude=NOSPACE&exclude=CORRUPT"
        )
        .await,
        healthy
    );
    let alone = || Member {
        leader: false,
        quorum: false,
        ..Member::default()
    };
    assert_eq!(get(alone(), "/health").await, sick("RAFT NO LEADER"));
    assert_eq!(get(alone(), "/health?serializable=true").await, healthy);
    let slow = Member {
        quorum: false,
        ..Member::default()
    };
    assert_eq!(
        get(slow, "/health?serializable=false").await,
        sick("RANGE ERROR:etcdserver: request timed out")
    );
}

#[tokio::test]
async fn livez_asks_this_member_alone() {
    let member = Arc::new(Member {
        leader: false,
        quorum: false,
        ..Member::default()
    });
    let metrics = Metrics::new().unwrap();
    let router = metrics_router(Arc::clone(&member), metrics.clone(), server(&metrics));
    let asked = ask(router, request("GET", "/livez?verbose", &[])).await;
    assert_eq!(
        (asked.status, asked.body.as_str()),
        (200, "[+]serializable_read ok\nok\n")
    );
    assert_eq!(asked.header("x-content-type-options"), "nosniff");
    assert_eq!(*member.reads.lock().unwrap(), [true]);
}

#[tokio::test]
async fn readyz_reports_each_check() {
    assert_eq!(
        get(Member::default(), "/readyz").await,
        (200, "ok\n".into())
    );
    let verbose = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert_eq!(
        get(Member::default(), "/readyz?verbose").await,
        (200, verbose.into())
    );
    let bad = || Member {
        alarms: vec![Alarm::Corrupt],
        learner: true,
        quorum: false,
        ..Member::default()
    };
    let report = "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n\
                  [-]linearizable_read failed: etcdserver: request timed out\n\
                  [-]non_learner failed: not supported for learner\n\n";
    assert_eq!(get(bad(), "/readyz").await, (503, report.into()));
    let excluded = "/readyz?exclude=data_corruption&exclude=linearizable_read&exclude=non_learner&exclude=nope";
    assert_eq!(get(bad(), excluded).await, (200, "ok\n".into()));
    assert_eq!(get(bad(), "/readyz/non_learner").await.0, 503);
    assert_eq!(
        get(bad(), "/readyz/serializable_read?verbose").await,
        (200, "[+]serializable_read ok\nok\n".into())
    );
}

#[tokio::test]
async fn only_get_is_allowed_and_only_known_paths_exist() {
    for path in ["/health", "/livez", "/readyz/non_learner", "/version"] {
        for method in ["POST", "HEAD", "PUT"] {
            let asked = ask(
                router(Member::default(), &["*"], &["*"]),
                request(method, path, &[]),
            )
            .await;
            assert_eq!(
                (asked.status, asked.header("allow")),
                (405, "GET"),
                "{method} {path}"
            );
            assert!(method == "HEAD" || asked.body == "Method Not Allowed\n");
        }
    }
    for path in [
        "/",
        "/foo",
        "/v2/keys",
        "/readyz/foo",
        "/livez/",
        "/health/",
        "/livez/linearizable_read",
    ] {
        assert_eq!(
            get(Member::default(), path).await,
            (404, "404 page not found\n".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn version_and_metrics_have_their_types() {
    let asked = ask(
        router(Member::default(), &["*"], &["*"]),
        request("GET", "/version", &[]),
    )
    .await;
    assert_eq!(
        asked.body,
        "{\"etcdserver\":\"3.6.16\",\"etcdcluster\":\"not_decided\",\"storage\":\"unknown\"}"
    );
    assert_eq!(asked.header("content-type"), "application/json");
    let asked = ask(
        router(Member::default(), &["*"], &["*"]),
        request("GET", "/metrics", &[]),
    )
    .await;
    assert!(
        asked
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    assert!(
        Scrape::parse(&asked.body)
            .unwrap()
            .families
            .contains_key("etcd_server_version")
    );
    let (status, body) = get(Member::default(), "/debug/vars").await;
    let vars: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert!(status == 200 && vars["raft.status"]["id"] == 1 && vars["cmdline"].is_array());
}

#[tokio::test]
async fn metrics_urls_have_no_version() {
    let metrics = Metrics::new().unwrap();
    let router = metrics_router(
        Arc::new(Member::default()),
        metrics.clone(),
        server(&metrics),
    );
    assert_eq!(
        ask(router.clone(), request("GET", "/version", &[]))
            .await
            .status,
        404
    );
    assert_eq!(
        ask(router.clone(), request("GET", "/health", &[]))
            .await
            .status,
        200
    );
    let text = ask(router, request("GET", "/metrics", &[])).await.body;
    assert!(text.contains("etcd_server_health_success 1\n"), "{text}");
}

#[tokio::test]
async fn unknown_hosts_are_turned_away() {
    let router = router(Member::default(), &["a", "b"], &["*"]);
    let asked = ask(router.clone(), request("GET", "/health", &[])).await;
    assert!(
        asked.status == 421 && asked.body.contains("\"127.0.0.1\""),
        "{}",
        asked.body
    );
    for host in ["a", "b:2379"] {
        let mut request = request("GET", "/health", &[]);
        request.headers_mut().insert("host", host.parse().unwrap());
        assert_eq!(ask(router.clone(), request).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn browsers_are_told_who_may_call() {
    let open = router(Member::default(), &["*"], &["*"]);
    let asked = ask(open.clone(), request("OPTIONS", "/health", &[])).await;
    assert_eq!(
        (
            asked.status,
            asked.body.as_str(),
            asked.header("access-control-allow-origin")
        ),
        (200, "", "*")
    );
    let limited = router(Member::default(), &["*"], &["http://x:1"]);
    let from = async |origin| {
        ask(
            limited.clone(),
            request("GET", "/health", &[("origin", origin)]),
        )
        .await
    };
    assert_eq!(
        from("http://x:1")
            .await
            .header("access-control-allow-origin"),
        "http://x:1"
    );
    let other = from("http://y:1").await;
    assert_eq!(
        (other.status, other.header("access-control-allow-origin")),
        (200, "")
    );
}
