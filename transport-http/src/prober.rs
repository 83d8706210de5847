//! Probing: is the peer's port alive, how far is it, how far off is its clock?
//!
//! One prober runs per peer, and probes once for each channel kind that operators know from the logs. It keeps its
//! connection between probes, so that what it measures is a round trip and not a handshake. Invariant: it influences
//! nothing but logs and one histogram.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Method, StatusCode};
use metrics::Histogram;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use transport_core::{MemberId, handshake::PROBING_PATH, http1::head};

use crate::{
    client::{Dialer, deadline},
    error::ClientError,
    incoming::Incoming,
    net::PeerUrl,
    requests::insert_host,
    url_picker::UrlPicker,
};

/// etcd: read timeout - 1 s, fixed; below the idle limit of the peer's server, so that the connection lives on.
const PROBE_INTERVAL: Duration = Duration::from_secs(4);
const REPORT_UNHEALTHY: Duration = Duration::from_secs(5);
const REPORT_HEALTHY: Duration = Duration::from_secs(30);
const CLOCK_DRIFT_MAX: Duration = Duration::from_secs(1);
/// An answer has about fifty bytes.
pub(crate) const ANSWER_BYTES: usize = 4096;

/// etcd's names for its two probers of a peer.
const ROUND_TRIPPERS: [&str; 2] = ["ROUND_TRIPPER_SNAPSHOT", "ROUND_TRIPPER_RAFT_MESSAGE"];

/// What the endpoint answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    #[serde(rename = "OK")]
    ok: bool,
    /// RFC 3339.
    now: String,
}

/// The endpoint's answer at this moment, one line of JSON.
pub(crate) fn answer() -> String {
    let health = Health {
        ok: true,
        now: jiff::Timestamp::now().to_string(),
    };
    // A bool and a string cannot fail; if they did, an empty answer would count as unhealthy.
    serde_json::to_string(&health)
        .map(|json| json + "\n")
        .unwrap_or_default()
}

#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("unexpected status {0}")]
    Status(StatusCode),
    #[error("unreadable answer: {0}")]
    Json(#[from] serde_json::Error),
    #[error("unreadable time: {0}")]
    Time(#[from] jiff::Error),
    #[error("the peer says it is not healthy")]
    NotOk,
}

/// Probes one peer.
pub(crate) struct Prober {
    pub(crate) peer: MemberId,
    pub(crate) picker: Arc<UrlPicker>,
    pub(crate) dialer: Dialer,
    pub(crate) answer_timeout: Duration,
    pub(crate) round_trip: Histogram,
}

/// What the probes of one channel kind found.
#[derive(Default)]
struct Measured {
    /// Smoothed, weight 1/8, from the first sample on.
    round_trip: Option<Duration>,
    /// Local clock minus the peer's, half a round trip taken off; seconds.
    clock_ahead: f64,
    error: Option<ProbeError>,
}

impl Measured {
    fn is_healthy(&self) -> bool {
        self.error.is_none() && self.round_trip.is_some()
    }
}

impl Prober {
    /// Runs until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let probing = async {
            let mut measured: [Measured; ROUND_TRIPPERS.len()] = Default::default();
            let mut kept = None;
            let mut probes = interval(PROBE_INTERVAL);
            probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut report_at = Instant::now() + REPORT_UNHEALTHY;
            loop {
                tokio::select! {
                    biased;
                    // First: a probe that nobody answers takes longer than the pause between two.
                    () = sleep_until(report_at) => {
                        for (round_tripper, measured) in ROUND_TRIPPERS.iter().zip(&measured) {
                            self.report(round_tripper, measured);
                        }
                        let healthy = measured.iter().all(Measured::is_healthy);
                        report_at = Instant::now() + if healthy { REPORT_HEALTHY } else { REPORT_UNHEALTHY };
                    }
                    _ = probes.tick() => for measured in &mut measured {
                        self.probe(&mut kept, measured).await;
                    },
                }
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = probing => {}
        }
    }

    async fn probe(&self, kept: &mut Option<Incoming>, measured: &mut Measured) {
        let url = self.picker.pick();
        kept.take_if(|kept| **kept.url() != *url);
        match self.exchange(kept, &url).await {
            Ok((now, took)) => {
                let smoothed = measured
                    .round_trip
                    .map_or(took, |before| before - before / 8 + took / 8);
                measured.round_trip = Some(smoothed);
                let apart = jiff::Timestamp::now().duration_since(now).as_secs_f64();
                measured.clock_ahead = apart - smoothed.as_secs_f64() / 2.0;
                measured.error = None;
                return;
            }
            Err(error) => measured.error = Some(error),
        }
        *kept = None;
        self.picker.unreachable(&url);
    }

    async fn exchange(
        &self,
        kept: &mut Option<Incoming>,
        url: &Arc<PeerUrl>,
    ) -> Result<(jiff::Timestamp, Duration), ProbeError> {
        let usable = match kept.take() {
            Some(mut old) => old.is_open().await.then_some(old),
            None => None,
        };
        let open = match usable {
            Some(open) => open,
            None => Incoming::new(self.dialer.connect(url).await?),
        };
        let connection = kept.insert(open);
        let mut headers = HeaderMap::new();
        insert_host(&mut headers, url);
        let request = head::request(&Method::GET, PROBING_PATH, &headers);
        let begun = Instant::now();
        let exchange = async {
            let head = connection.ask(&request).await?;
            let body = connection.collect(ANSWER_BYTES).await?;
            Ok((head.status, body))
        };
        let within = self.answer_timeout;
        let answered = timeout(within, exchange).await;
        let (status, body) = answered.unwrap_or_else(|_| Err(deadline(url, "answer", within)))?;
        let took = begun.elapsed();
        if status != StatusCode::OK {
            return Err(ProbeError::Status(status));
        }
        let health: Health = serde_json::from_slice(&body)?;
        if !health.ok {
            return Err(ProbeError::NotOk);
        }
        Ok((health.now.parse()?, took))
    }

    fn report(&self, round_tripper: &'static str, measured: &Measured) {
        let rtt = measured.round_trip.unwrap_or_default();
        if measured.round_trip.is_some() {
            self.round_trip.record(rtt);
        }
        if let Some(error) = &measured.error {
            tracing::warn!(
                "round-tripper-name" = round_tripper,
                "remote-peer-id" = %self.peer,
                rtt = ?rtt,
                error = %error,
                "prober detected unhealthy status"
            );
        } else if measured.clock_ahead > CLOCK_DRIFT_MAX.as_secs_f64() {
            tracing::warn!(
                "round-tripper-name" = round_tripper,
                "remote-peer-id" = %self.peer,
                "clock-drift" = format_args!("{:.6}s", measured.clock_ahead),
                rtt = ?rtt,
                "prober found high clock drift"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_what_go_reads_and_writes() {
        let text = answer();
        assert!(
            text.starts_with(r#"{"OK":true,"Now":"20"#) && text.ends_with("Z\"}\n"),
            "{text}"
        );
        let go: Health =
            serde_json::from_str(r#"{"OK":true,"Now":"2026-11-23T21:29:20.32034754Z"}"#).unwrap();
        assert!(go.ok);
        let now: jiff::Timestamp = go.now.parse().unwrap();
        assert_eq!(
            now.to_string(),
            go.now,
            "Go drops trailing zeros, and so do we"
        );
    }
}
