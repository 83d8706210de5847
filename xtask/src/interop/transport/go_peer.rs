//! A process that runs Go's own rafthttp (`xtask/peers/rafthttp`), driven by JSON lines.
//!
//! Invariant: every wait for it has a deadline, and it ends with this handle.

use std::{fs::File, path::Path, process::Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};
use transport_core::{ClusterId, MemberId, raftpb::Message};

use super::{super::certificates::Certificates, DEADLINE, json};
use crate::workspace::Outcome;

/// Events that wait to be looked at.
const EVENTS_MAX: usize = 4096;

/// The process and what it told.
pub struct GoPeer {
    /// Where its transport is reached.
    pub url: String,
    id: MemberId,
    child: Child,
    stdin: Option<ChildStdin>,
    events: mpsc::Receiver<Value>,
    /// Events that somebody else waits for.
    kept: Vec<Value>,
}

impl GoPeer {
    /// Starts it as `id` with its databases and its log below `dir`; with certificates it speaks TLS only.
    pub async fn start(
        program: &Path,
        id: MemberId,
        cluster: ClusterId,
        dir: &Path,
        certificates: Option<&Certificates>,
    ) -> Outcome<GoPeer> {
        let log = dir.join("rafthttp.log");
        let stderr = File::create(&log)
            .map_err(|error| format!("cannot create {}: {error}", log.display()))?;
        let mut command = Command::new(program);
        if let Some(files) = certificates {
            command
                .args(["-listen", "https://127.0.0.1:0"])
                .arg("-cert")
                .arg(&files.certificate)
                .arg("-key")
                .arg(&files.key)
                .arg("-ca")
                .arg(&files.authority);
        }
        let mut child = command
            .args(["-id", &id.0.to_string(), "-cluster", &cluster.0.to_string()])
            .arg("-snap-dir")
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let stdout = child.stdout.take().ok_or("no stdout")?;
        // Ends with the process, whose stdout it reads.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).await.is_err() {
                    break;
                }
            }
        });
        let stdin = child.stdin.take();
        let mut peer = GoPeer {
            url: String::new(),
            id,
            child,
            stdin,
            events,
            kept: Vec::new(),
        };
        let listening = peer.event("listening", |_| true).await?;
        peer.url = listening["path"].as_str().unwrap_or_default().to_string();
        Ok(peer)
    }

    /// Waits for an event of this name that fits.
    pub async fn event(&mut self, name: &str, fits: impl Fn(&Value) -> bool) -> Outcome<Value> {
        let wanted = |event: &Value| event["event"] == name && fits(event);
        if let Some(at) = self.kept.iter().position(&wanted) {
            return Ok(self.kept.remove(at));
        }
        let waiting = async {
            while let Some(event) = self.events.recv().await {
                if wanted(&event) {
                    return Ok(event);
                }
                if event["event"] == "critical" || event["event"] == "failed" {
                    return Err(format!("Go's transport failed: {event}"));
                }
                self.kept.push(event);
            }
            Err("Go's transport ended".to_string())
        };
        tokio::time::timeout(DEADLINE, waiting)
            .await
            .map_err(|_| format!("Go's transport told no {name} in time"))?
    }

    /// Waits for `count` messages.
    pub async fn messages(&mut self, count: usize) -> Outcome<Vec<Message>> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let event = self
                .event("message", |_| true)
                .await
                .map_err(|error| format!("after {} of {count}: {error}", messages.len()))?;
            messages.push(json::from_json(&event["message"])?);
        }
        Ok(messages)
    }

    /// Waits until it has answered a request for a path below `prefix` with `status`.
    pub async fn answered(&mut self, prefix: &str, status: u64) -> Outcome {
        self.event("request", |event| {
            event["status"] == status
                && event["path"]
                    .as_str()
                    .is_some_and(|path| path.starts_with(prefix))
        })
        .await
        .map(drop)
        .map_err(|error| format!("{prefix} {status}: {error}"))
    }

    /// Waits for the answers to `count` messages that came by the pipeline, which must be all there were.
    pub async fn posts(&mut self, count: usize) -> Outcome {
        const PIPELINE: &str = "/raft";
        for at in 0..count {
            self.event("request", |event| event["path"] == PIPELINE)
                .await
                .map_err(|error| format!("{at} of {count} POSTs: {error}"))?;
        }
        match self.kept.iter().any(|event| event["path"] == PIPELINE) {
            true => Err(format!("more than {count} POSTs came")),
            false => Ok(()),
        }
    }

    /// `add_peer` or `add_remote`.
    pub async fn add(&mut self, how: &str, id: MemberId, url: &str) -> Outcome {
        self.command(json!({"op": how, "id": id.0, "url": url}))
            .await
    }

    /// Sends messages through its transport.
    pub async fn send(&mut self, messages: &[Message]) -> Outcome {
        let messages: Vec<Value> = messages.iter().map(json::to_json).collect();
        self.command(json!({"op": "send", "messages": messages}))
            .await
    }

    /// Sends a snapshot with a database of `bytes` bytes, byte i being i modulo 251.
    pub async fn send_snapshot(&mut self, message: &Message, bytes: u64) -> Outcome {
        let messages = [json::to_json(message)];
        self.command(json!({"op": "send_snapshot", "messages": messages, "database": bytes}))
            .await
    }

    async fn command(&mut self, command: Value) -> Outcome {
        let id = self.id;
        let failed = |error| format!("cannot tell Go's transport {id} anything: {error}");
        let stdin = self.stdin.as_mut().ok_or("Go's transport is stopped")?;
        let line = format!("{command}\n");
        tokio::time::timeout(DEADLINE, stdin.write_all(line.as_bytes()))
            .await
            .map_err(|_| "Go's transport does not listen".to_string())?
            .map_err(failed)
    }

    /// Ends it, which must succeed: it has not crashed.
    pub async fn stop(mut self) -> Outcome {
        drop(self.stdin.take());
        let status = tokio::time::timeout(DEADLINE, self.child.wait())
            .await
            .map_err(|_| "Go's transport does not end".to_string())?
            .map_err(|error| format!("cannot wait for Go's transport: {error}"))?;
        match status.success() {
            true => Ok(()),
            false => Err(format!("Go's transport ended with {status}")),
        }
    }
}
