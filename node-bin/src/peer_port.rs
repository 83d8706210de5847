//! The peer port: its certificates, and what answers there.
//!
//! One [`Tls`] serves both directions and the requests before there is a transport. Depends on the transport. Invariant:
//! a URL is served with TLS exactly if its scheme is https, and an https URL is never dialled in plain text.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use transport_http::{
    PeerBody,
    net::{Connector, TcpConnector},
    serve_peers,
    tls::{Tls, TlsAcceptor, TlsConnector, TlsError},
};

use crate::{
    config::{Config, Url},
    http::peer,
    member::serving::Member,
    metrics::SharedRecorder,
};

/// TLS between members, if it was asked for.
#[derive(Clone)]
pub(crate) struct PeerSecurity(Option<Tls>);

impl PeerSecurity {
    /// Reads the files, and makes those that this member makes itself (etcd: server/embed/config.go, `PeerSelfCert`).
    pub(crate) fn load(config: &Config, recorder: &SharedRecorder) -> Result<Self, TlsError> {
        let wanted = &config.peer_tls;
        if !wanted.is_wanted() {
            return Ok(PeerSecurity(None));
        }
        let mut settings = wanted.settings.clone();
        if wanted.auto {
            let hosts: Vec<String> = config
                .listen_peer_urls
                .iter()
                .filter_map(Url::host_port)
                .map(|(host, _)| host.to_owned())
                .collect();
            let dir = config.data_dir.join("fixtures").join("peer");
            settings = settings.with_self_signed(&dir, &hosts, wanted.self_signed_years)?;
        }
        if !settings.is_empty() {
            tracing::info!(tls_info = ?settings, "starting with peer TLS");
        }
        Ok(PeerSecurity(Some(Tls::load(settings, recorder)?)))
    }

    /// How other members are dialled.
    pub(crate) fn connector(&self) -> Arc<dyn Connector> {
        match &self.0 {
            Some(tls) => Arc::new(TlsConnector::new(tls.clone())),
            None => Arc::new(TcpConnector::default()),
        }
    }

    /// Serves other members on each socket, as its URL says.
    pub(crate) fn serve(
        &self,
        member: &Arc<Member>,
        listeners: Vec<TcpListener>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let urls = &member.config.listen_peer_urls;
        for (listener, url) in listeners.into_iter().zip(urls) {
            let answering = member.clone();
            let fallback = move |request| {
                let member = answering.clone();
                async move { peer::handle(&*member, request).await.map(PeerBody::from) }
            };
            let (transport, stop) = (member.transport.clone(), stop.clone());
            match &self.0 {
                Some(tls) if url.scheme().is_secure() => {
                    let acceptor = TlsAcceptor::new(listener, tls.clone());
                    tasks.spawn(serve_peers(acceptor, transport, fallback, stop));
                }
                _ => {
                    tasks.spawn(serve_peers(listener, transport, fallback, stop));
                }
            }
        }
    }
}
