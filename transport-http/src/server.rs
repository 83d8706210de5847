//! What the peer port answers under `/raft`.
//!
//! Checks, statuses and bodies are transport-core's verdicts; this module reads bodies under their limits and
//! deadlines and calls raft. Invariant: no request makes it panic, answer 403, or hold more than the limits allow.
//!
//! etcd: server/etcdserver/api/rafthttp/http.go.

use std::{
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use metrics::Counter;
use transport_core::{
    MemberId,
    frame::snapshot::Envelope,
    handshake::{
        Endpoint, Headers, PROBING_PATH, RAFT_PATH, SNAPSHOT_PATH, STREAM_PATH, Verdict,
        check_post, check_stream,
    },
    lane::{DropReason, SharedBudget},
    raftpb::{Message, decode_message},
};

use crate::{
    body::PeerBody,
    metrics::{SnapshotMetrics, UNKNOWN_SNAPSHOT_SENDER},
    prober,
    raft::{ProcessError, Raft},
    serve::ConnectionEnd,
    snapshot_receiver::{envelope, save},
    timed_body::TimedBody,
    transport::Transport,
};

impl<R: Raft> Transport<R> {
    /// Answers `/raft`, `/raft/stream/…`, `/raft/snapshot` and `/raft/probing`, and refuses what else is under
    /// `/raft/`; a request for another path is given back.
    ///
    /// The answer to a stream request is an endless body, which has to be served over HTTP/1.1 without a read
    /// deadline on the connection.
    pub async fn serve(
        &self,
        request: Request<Incoming>,
        remote: SocketAddr,
    ) -> Result<Response<PeerBody>, Request<Incoming>> {
        let endpoint = match request.uri().path() {
            RAFT_PATH => Endpoint::Raft,
            SNAPSHOT_PATH => Endpoint::Snapshot,
            PROBING_PATH => return Ok(probing()),
            STREAM_PATH => return Ok(moved(&request)),
            path => match path.strip_prefix(RAFT_PATH) {
                Some(rest) if rest.starts_with("/stream/") => Endpoint::Stream,
                Some(rest) if rest.starts_with('/') => return Ok(not_found()),
                _ => return Err(request),
            },
        };
        let answer = match endpoint {
            Endpoint::Raft => self.serve_message(request).await,
            Endpoint::Snapshot => self.serve_snapshot(request).await,
            Endpoint::Stream => self.serve_stream(&request),
        };
        Ok(answer.unwrap_or_else(|verdict| self.refuse(&verdict, endpoint, remote)))
    }

    fn refuse(
        &self,
        verdict: &Verdict,
        endpoint: Endpoint,
        remote: SocketAddr,
    ) -> Response<PeerBody> {
        let metrics = &self.shared().env.metrics;
        metrics.refusals.count(endpoint, verdict);
        tracing::debug!(remote = %remote, endpoint = ?endpoint, reason = %verdict.text(), "refused a peer request");
        let mut response = Response::new(PeerBody::from(verdict.body()));
        *response.status_mut() = verdict.status();
        *response.headers_mut() = verdict.headers(&self.shared().env.identity, endpoint);
        response
    }

    fn serve_stream(&self, request: &Request<Incoming>) -> Result<Response<PeerBody>, Verdict> {
        let identity = &self.shared().env.identity;
        let asked = check_stream(
            identity,
            request.method(),
            request.uri().path(),
            request.headers(),
            self,
        );
        let asked = asked.inspect_err(|verdict| {
            if let Verdict::SenderNotFound(Some(introduction)) = verdict {
                self.introduce(introduction);
            }
        })?;
        let roster = self.roster();
        let peer = roster.peers.get(&asked.from.0);
        // Removed since the check, or stopping.
        let end = request.extensions().get::<ConnectionEnd>();
        let body = peer
            .and_then(|peer| (peer.writer(asked.kind)).attach(end.cloned().unwrap_or_default()))
            .ok_or(Verdict::SenderNotFound(None))?;
        let mut response = Response::new(PeerBody::stream(body));
        *response.headers_mut() = identity.stream_headers();
        Ok(response)
    }

    async fn serve_message(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<PeerBody>, Verdict> {
        let shared = self.shared();
        let introduction = check_post(&shared.env.identity, request.method(), request.headers())?;
        introduction
            .iter()
            .for_each(|introduction| self.introduce(introduction));
        let from = Headers::new(request.headers()).server_from();
        let (bytes, _held) = self
            .read_message(request)
            .await
            .inspect_err(|_| self.count_received_failure(from))?;
        let length = bytes.len() as u64;
        let message = decode_message(bytes).map_err(|_| Verdict::MessageMalformed);
        let message = message.inspect_err(|_| self.count_received_failure(from))?;
        let metrics = self.peer_metrics(MemberId(message.from));
        if let Some(metrics) = &metrics {
            metrics.received_bytes.increment(length);
        }
        let useless = match message.kind() {
            None => Some(DropReason::UnknownType),
            Some(kind) if kind.is_local() => Some(DropReason::LocalType),
            Some(_) => None,
        };
        let dropped = |reason| match &metrics {
            Some(metrics) => metrics.posted.count(reason, 1),
            None => shared.env.metrics.posted_by_strangers.count(reason, 1),
        };
        if let Some(reason) = useless {
            // Means nothing between members: answered as if raft had ignored it, as raft would.
            dropped(reason);
            return Ok(self.delivered());
        }
        let deadline = shared.env.config.limits.post_timeout;
        let processed = self.process(message, deadline).await;
        processed.map_err(|error| {
            dropped(match error {
                ProcessError::Stopped => DropReason::Stopped,
                _ => DropReason::Refused,
            });
            Verdict::MessageRefused
        })?;
        Ok(self.delivered())
    }

    /// Reads the body of a message, within the bounds of one and of all of them.
    async fn read_message(&self, request: Request<Incoming>) -> Result<(Bytes, Held), Verdict> {
        let shared = self.shared();
        let limit = shared.env.config.limits.post_body_bytes;
        let mut held = Held {
            budget: shared.posted.clone(),
            bytes: 0,
        };
        let mut body = TimedBody::new(request.into_body(), &shared.env.config);
        let mut whole = BytesMut::new();
        let mut first = None;
        while let Some(chunk) = body.chunk().await {
            let chunk = chunk.map_err(|_| Verdict::MessageUnreadable)?;
            let over = whole.len() + first.as_ref().map_or(0, Bytes::len) + chunk.len() > limit;
            if over || !held.take(chunk.len()) {
                return Err(Verdict::MessageUnreadable);
            }
            // Most bodies come in one piece, which needs no copy.
            match first.take() {
                None if whole.is_empty() => first = Some(chunk),
                None => whole.extend_from_slice(&chunk),
                Some(begin) => {
                    whole.extend_from_slice(&begin);
                    whole.extend_from_slice(&chunk);
                }
            }
        }
        Ok((first.unwrap_or_else(|| whole.freeze()), held))
    }

    async fn serve_snapshot(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<PeerBody>, Verdict> {
        let shared = self.shared();
        let config = &shared.env.config;
        let checked = check_post(&shared.env.identity, request.method(), request.headers());
        let introduction = checked.inspect_err(|_| shared.env.metrics.snapshot_refused())?;
        introduction
            .iter()
            .for_each(|introduction| self.introduce(introduction));
        let from = Headers::new(request.headers()).server_from();
        let mut body = TimedBody::new(request.into_body(), config);
        // Before the envelope is read: it may be long, too.
        let Ok(_permit) = shared.snapshot_receives.try_acquire() else {
            shared.env.metrics.snapshot_refused();
            return Err(Verdict::SnapshotUnsaved {
                cause: "too many snapshots are being received".to_owned(),
            });
        };
        let receiving = async {
            let received = envelope(&mut body, config.limits.snapshot_envelope_bytes).await;
            let envelope = received.inspect_err(|_| {
                self.count_received_failure(from);
                shared.env.metrics.snapshot_refused();
            })?;
            self.receive_snapshot(envelope, &mut body).await
        };
        // Dropped, it lets go of the task that writes, which then removes what it has.
        tokio::select! {
            biased;
            () = shared.env.cancel.cancelled() => Err(Verdict::SnapshotRefused {
                cause: ProcessError::Stopped.to_string(),
            }),
            received = receiving => received.map(|()| self.delivered()),
        }
    }

    async fn receive_snapshot(
        &self,
        envelope: Envelope,
        body: &mut TimedBody,
    ) -> Result<(), Verdict> {
        let shared = self.shared();
        let Envelope {
            message,
            message_bytes,
            database,
        } = envelope;
        let sender = MemberId(message.from);
        let metrics = self.peer_metrics(sender);
        let label = if metrics.is_some() {
            sender.to_string()
        } else {
            UNKNOWN_SNAPSHOT_SENDER.to_owned()
        };
        let counted = Receiving::begin(shared.env.metrics.snapshot_receive(&label));
        let received_bytes =
            metrics.map_or(Counter::noop(), |metrics| metrics.received_bytes.clone());
        received_bytes.increment(message_bytes);
        self.admit_snapshot(&message)?;
        let bytes = self.save_snapshot(&message, database, body).await?;
        received_bytes.increment(bytes);
        let deadline = shared.env.config.limits.snapshot_answer_timeout;
        let processed = self.process(message, deadline).await;
        processed.map_err(|error| Verdict::SnapshotRefused {
            cause: error.to_string(),
        })?;
        counted.success();
        Ok(())
    }

    /// Passes the database to the sink; its size.
    async fn save_snapshot(
        &self,
        message: &Message,
        first: Vec<Bytes>,
        body: &mut TimedBody,
    ) -> Result<u64, Verdict> {
        let shared = self.shared();
        let local = shared.env.config.id;
        let sender = MemberId(message.from);
        let metadata = message.snapshot.as_ref().and_then(|s| s.metadata.as_ref());
        let index = metadata.map_or(0, |metadata| metadata.index);
        tracing::info!(
            "local-member-id" = %local,
            "remote-snapshot-sender-id" = %sender,
            "incoming-snapshot-index" = index,
            "receiving database snapshot"
        );
        let sink = Arc::clone(&shared.sink);
        let saved = save(&shared.env, sink, message, first.into_iter(), body).await;
        match &saved {
            Ok(bytes) => tracing::info!(
                "local-member-id" = %local,
                "remote-snapshot-sender-id" = %sender,
                "incoming-snapshot-index" = index,
                "incoming-snapshot-size-bytes" = bytes,
                "received and saved database snapshot"
            ),
            Err(verdict) => tracing::warn!(
                "local-member-id" = %local,
                "remote-snapshot-sender-id" = %sender,
                "incoming-snapshot-index" = index,
                error = %verdict.text(),
                "failed to save incoming database snapshot"
            ),
        }
        saved
    }

    /// Refuses a database that raft would refuse anyway before it is transferred.
    fn admit_snapshot(&self, message: &Message) -> Result<(), Verdict> {
        let shared = self.shared();
        let refused = if message.to != shared.env.config.id.0 {
            ProcessError::NotForUs(MemberId(message.to))
        } else if shared.owner.raft.is_id_removed(MemberId(message.from)) {
            ProcessError::Removed(MemberId(message.from))
        } else if shared.env.cancel.is_cancelled() {
            ProcessError::Stopped
        } else {
            return Ok(());
        };
        Err(Verdict::SnapshotRefused {
            cause: refused.to_string(),
        })
    }

    async fn process(&self, message: Message, within: Duration) -> Result<(), ProcessError> {
        let shared = self.shared();
        let processing = shared.owner.raft.process(message);
        tokio::select! {
            biased;
            () = shared.env.cancel.cancelled() => Err(ProcessError::Stopped),
            outcome = bounded(processing, within) => outcome,
        }
    }

    fn delivered(&self) -> Response<PeerBody> {
        let mut response = Response::new(PeerBody::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        *response.headers_mut() = self.shared().env.identity.cluster_headers();
        response
    }

    /// Counts under the sender's id if it is one of ours: what a request claims must not make new series.
    fn count_received_failure(&self, from: Option<MemberId>) {
        match from.and_then(|from| self.peer_metrics(from)) {
            Some(metrics) => metrics.received_failures.increment(1),
            None => self.shared().env.metrics.received_failure_unknown(),
        }
    }
}

async fn bounded(
    processing: impl Future<Output = Result<(), ProcessError>>,
    within: Duration,
) -> Result<(), ProcessError> {
    match tokio::time::timeout(within, processing).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProcessError::Dropped(format!(
            "raft did not take the message within {within:?}"
        ))),
    }
}

/// Bytes held of a budget, given back when dropped.
struct Held {
    budget: SharedBudget,
    bytes: usize,
}

impl Held {
    fn take(&mut self, bytes: usize) -> bool {
        let taken = self.budget.take(bytes);
        self.bytes += if taken { bytes } else { 0 };
        taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

/// A snapshot being received: counted as failed unless it ends in [`success`](Self::success), also when the
/// sender goes away and nobody is left to answer.
struct Receiving {
    metrics: SnapshotMetrics,
    begun: Instant,
    succeeded: bool,
}

impl Receiving {
    fn begin(metrics: SnapshotMetrics) -> Self {
        metrics.inflights.increment(1.0);
        Receiving {
            metrics,
            begun: Instant::now(),
            succeeded: false,
        }
    }

    fn success(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.metrics.inflights.decrement(1.0);
        if self.succeeded {
            self.metrics.success.increment(1);
            self.metrics.seconds.record(self.begun.elapsed());
        } else {
            self.metrics.failures.increment(1);
        }
    }
}

fn plain(status: StatusCode, body: impl Into<PeerBody>) -> Response<PeerBody> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn probing() -> Response<PeerBody> {
    plain(StatusCode::OK, prober::answer())
}

fn not_found() -> Response<PeerBody> {
    let mut response = plain(StatusCode::NOT_FOUND, "404 page not found\n");
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// What Go's mux answers to a path that only lacks its slash.
fn moved(request: &Request<Incoming>) -> Response<PeerBody> {
    let query = request
        .uri()
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let location = format!("{STREAM_PATH}/{query}");
    let mut response = Response::new(PeerBody::empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if request.method() == http::Method::GET {
        let escaped = location
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('"', "&#34;");
        *response.body_mut() = format!(
            "<a href=\"{}\">Moved Permanently</a>.\n\n",
            escaped.replace('\'', "&#39;")
        )
        .into();
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
    }
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
