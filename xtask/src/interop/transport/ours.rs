//! A transport of ours whose raft is whoever drives the scenario.
//!
//! Invariant: stopping it joins every task it started.

use std::{fs, path::Path, str::FromStr, sync::Arc, time::Instant};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use transport_core::{ClusterId, MemberId, handshake::Version, raftpb::Message};
use transport_http::{
    PeerBody, ProcessError, Raft, SnapDir, SnapshotStatus, Transport, TransportConfig, serve_peers,
    tls::{Tls, TlsAcceptor, TlsConnector, TlsSettings},
};

use super::DEADLINE;
use crate::{http_get, workspace::Outcome};

/// Messages and reports that wait to be looked at.
const RECEIVED_MAX: usize = 4096;
/// Pause between two looks at a metric.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(20);

/// What it is.
pub struct Settings<'a> {
    pub id: MemberId,
    pub cluster: ClusterId,
    /// The version it announces.
    pub version: &'a str,
    /// Address to listen on.
    pub listen: &'a str,
    /// Where received databases go.
    pub dir: &'a Path,
    /// What TLS is spoken with, if it is.
    pub tls: Option<TlsSettings>,
}

/// Hands on what the transport tells.
pub struct Handler {
    messages: mpsc::Sender<Message>,
    reports: mpsc::Sender<(MemberId, SnapshotStatus)>,
}

impl Raft for Handler {
    async fn process(&self, message: Message) -> Result<(), ProcessError> {
        self.messages
            .send(message)
            .await
            .map_err(|_| ProcessError::Stopped)
    }

    fn is_id_removed(&self, _: MemberId) -> bool {
        false
    }

    fn report_unreachable(&self, _: MemberId) {}

    fn report_snapshot(&self, id: MemberId, status: SnapshotStatus) {
        // Full only when nobody looks at reports, who then misses none.
        let _ = self.reports.try_send((id, status));
    }
}

/// A running transport with its port.
pub struct Ours {
    pub transport: Transport<Handler>,
    /// Where it is reached.
    pub url: String,
    messages: mpsc::Receiver<Message>,
    reports: mpsc::Receiver<(MemberId, SnapshotStatus)>,
    metrics: PrometheusHandle,
    closing: CancellationToken,
    port: JoinHandle<()>,
}

impl Ours {
    /// Starts it, without peers.
    pub async fn start(settings: &Settings<'_>) -> Outcome<Ours> {
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| format!("cannot listen on {}: {error}", settings.listen))?;
        let address = listener
            .local_addr()
            .map_err(|error| format!("cannot tell the address: {error}"))?;
        let scheme = if settings.tls.is_some() {
            "https"
        } else {
            "http"
        };
        let url = format!("{scheme}://{address}");
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = recorder.handle();
        let mut config = TransportConfig::new(settings.id, settings.cluster, Arc::new(recorder));
        config.advertise_urls = vec![url.clone()];
        config.server_version =
            Version::from_str(settings.version).map_err(|error| error.to_string())?;
        let tls = match &settings.tls {
            Some(settings) => Some(
                Tls::load(settings.clone(), &config.recorder).map_err(|error| error.to_string())?,
            ),
            None => None,
        };
        if let Some(tls) = &tls {
            config.connector = Arc::new(TlsConnector::new(tls.clone()));
        }
        let sink = Arc::new(SnapDir::new(settings.dir, &config.recorder));
        let (sender, messages) = mpsc::channel(RECEIVED_MAX);
        let (reporter, reports) = mpsc::channel(RECEIVED_MAX);
        let raft = Arc::new(Handler {
            messages: sender,
            reports: reporter,
        });
        let transport = Transport::start(config, raft, sink).map_err(|error| error.to_string())?;
        let closing = CancellationToken::new();
        let versions = format!(
            r#"{{"etcdserver":"{}","etcdcluster":"not_decided"}}"#,
            settings.version
        );
        let other = move |request: http::Request<_>| {
            let versions = versions.clone();
            async move { answer_other(request.uri().path(), versions) }
        };
        let (serving, ends) = (transport.clone(), closing.clone());
        let port = match tls {
            Some(tls) => {
                let acceptor = TlsAcceptor::new(listener, tls);
                tokio::spawn(serve_peers(acceptor, serving, other, ends))
            }
            None => tokio::spawn(serve_peers(listener, serving, other, ends)),
        };
        Ok(Ours {
            transport,
            url,
            messages,
            reports,
            metrics,
            closing,
            port,
        })
    }

    /// The next message.
    pub async fn message(&mut self) -> Outcome<Message> {
        let received = tokio::time::timeout(DEADLINE, self.messages.recv()).await;
        received
            .map_err(|_| "no message in time".to_string())?
            .ok_or_else(|| "the transport is stopped".to_string())
    }

    /// Waits for `count` messages.
    pub async fn messages(&mut self, count: usize) -> Outcome<Vec<Message>> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let next = self.message().await;
            messages.push(
                next.map_err(|error| format!("after {} of {count}: {error}", messages.len()))?,
            );
        }
        Ok(messages)
    }

    /// Waits for the report of a snapshot that was sent.
    pub async fn report(&mut self) -> Outcome<(MemberId, SnapshotStatus)> {
        let reported = tokio::time::timeout(DEADLINE, self.reports.recv()).await;
        reported
            .map_err(|_| "no report in time".to_string())?
            .ok_or_else(|| "the transport is stopped".to_string())
    }

    /// Sum of a metric over the label sets that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        http_get::samples(&self.metrics.render(), name)
            .filter(|(labels, _)| labels.contains(label))
            .map(|(_, value)| value)
            .sum()
    }

    /// Waits until the metric is as wanted.
    pub async fn until(&self, name: &str, label: &str, wanted: impl Fn(f64) -> bool) -> Outcome {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let value = self.metric(name, label);
            if wanted(value) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{name} stays at {value}"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Stops it and its port.
    pub async fn stop(self) -> Outcome {
        let stopping = async {
            self.transport.stop().await;
            self.closing.cancel();
            self.port
                .await
                .map_err(|error| format!("the port: {error}"))
        };
        tokio::time::timeout(DEADLINE, stopping)
            .await
            .map_err(|_| "our transport does not stop".to_string())?
    }
}

/// What a member answers besides raft; a Go leader asks for versions.
fn answer_other(path: &str, versions: String) -> http::Response<PeerBody> {
    let (status, body) = match path {
        "/version" => (http::StatusCode::OK, versions),
        _ => (http::StatusCode::NOT_FOUND, "404 page not found\n".into()),
    };
    let mut response = http::Response::new(PeerBody::from(body));
    *response.status_mut() = status;
    response
}

/// The database that came for the snapshot at `index`.
pub fn received_database(dir: &Path, index: u64) -> Outcome<Vec<u8>> {
    let path = dir.join(SnapDir::file_name(index));
    fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}
