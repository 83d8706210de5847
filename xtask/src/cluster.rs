//! Clusters of real processes on loopback: ours, Go's, or both.
//!
//! A member is a process with its own data directory, ports and log file; it is started with etcd's own
//! flags, so nothing here knows which implementation runs. Dropping a cluster kills what still runs.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::{
    http_get,
    workspace::{self, Outcome},
};

/// How long a member may take until it answers `/health` with true.
const HEALTHY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a member may take to end after SIGTERM.
const TERMINATE_DEADLINE: Duration = Duration::from_secs(20);
/// Pause between two looks at a member's state.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One member: a process, stopped or running.
pub struct Member {
    /// Its `--name`.
    pub name: String,
    /// The server program.
    pub program: PathBuf,
    /// URL for clients.
    pub client_url: String,
    /// URL for peers.
    pub peer_url: String,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Flags beyond the ones every member gets.
    pub extra: Vec<String>,
    state: &'static str,
    child: Option<Child>,
}

/// Several members that know of each other, below one folder.
pub struct Cluster {
    /// The members, in the order they were given.
    pub members: Vec<Member>,
    dir: tempfile::TempDir,
    token: String,
}

impl Cluster {
    /// Lays out one member per program; starts none.
    pub fn new(programs: &[&Path], extra: &[&str]) -> Outcome<Cluster> {
        let base = workspace::target().join("clusters");
        fs::create_dir_all(&base)
            .map_err(|error| format!("cannot create {}: {error}", base.display()))?;
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .tempdir_in(base)
            .map_err(|error| format!("cannot create a folder for the cluster: {error}"))?;
        let ports = free_ports(programs.len() * 2)?;
        let members = programs
            .iter()
            .enumerate()
            .map(|(at, program)| Member {
                name: format!("n{at}"),
                program: program.to_path_buf(),
                client_url: format!("http://127.0.0.1:{}", ports[2 * at]),
                peer_url: format!("http://127.0.0.1:{}", ports[2 * at + 1]),
                data_dir: dir.path().join(format!("n{at}.etcd")),
                log: dir.path().join(format!("n{at}.log")),
                extra: extra.iter().map(ToString::to_string).collect(),
                state: "new",
                child: None,
            })
            .collect();
        let token = format!("cluster-{}", ports[0]);
        Ok(Cluster {
            members,
            dir,
            token,
        })
    }

    /// What the members got as `--initial-cluster-token`.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Keeps the folder with data and logs when the cluster goes, and names it.
    pub fn keep_files(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_path_buf()
    }

    /// Starts every member that does not run and waits until all are healthy.
    pub fn start_all(&mut self) -> Outcome {
        for at in 0..self.members.len() {
            if !self.members[at].is_running() {
                self.start(at)?;
            }
        }
        self.wait_healthy()
    }

    /// Starts one member's process; does not wait for it.
    pub fn start(&mut self, at: usize) -> Outcome {
        let initial = self
            .members
            .iter()
            .map(|member| format!("{}={}", member.name, member.peer_url))
            .collect::<Vec<_>>()
            .join(",");
        let token = self.token.clone();
        self.members[at].start(&initial, &token)
    }

    /// Waits until every running member is healthy.
    pub fn wait_healthy(&mut self) -> Outcome {
        let deadline = Instant::now() + HEALTHY_DEADLINE;
        for member in self
            .members
            .iter_mut()
            .filter(|member| member.child.is_some())
        {
            member.wait_healthy(deadline)?;
        }
        Ok(())
    }

    /// Client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client_url.clone())
            .collect()
    }

    /// Which running member says of itself that it leads, waiting until one does.
    pub fn leader(&mut self, deadline: Duration) -> Outcome<usize> {
        let end = Instant::now() + deadline;
        loop {
            for (at, member) in self.members.iter_mut().enumerate() {
                if member.is_running() && member.metric("etcd_server_is_leader") == Some(1.0) {
                    return Ok(at);
                }
            }
            if Instant::now() > end {
                return Err(format!(
                    "no leader within {deadline:?}; logs in {}",
                    self.dir.path().display()
                ));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Removes a stopped member's data and makes its next start a join of the existing cluster.
    pub fn wipe(&mut self, at: usize) -> Outcome {
        let member = &mut self.members[at];
        member.state = "existing";
        fs::remove_dir_all(&member.data_dir)
            .map_err(|error| format!("cannot remove {}: {error}", member.data_dir.display()))
    }
}

impl Member {
    fn start(&mut self, initial_cluster: &str, token: &str) -> Outcome {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| format!("cannot write {}: {error}", self.log.display()))?;
        let stderr = log
            .try_clone()
            .map_err(|error| format!("cannot share the log: {error}"))?;
        let child = Command::new(&self.program)
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.data_dir)
            .args([
                "--listen-client-urls",
                &self.client_url,
                "--advertise-client-urls",
                &self.client_url,
            ])
            .args([
                "--listen-peer-urls",
                &self.peer_url,
                "--initial-advertise-peer-urls",
                &self.peer_url,
            ])
            .args([
                "--initial-cluster",
                initial_cluster,
                "--initial-cluster-token",
                token,
            ])
            .args(["--initial-cluster-state", self.state])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether the process runs. A process that ended by itself is noticed here.
    pub fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => false,
        }
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits until `/health` says true.
    pub fn wait_healthy(&mut self, deadline: Instant) -> Outcome {
        let url = format!("{}/health", self.client_url);
        loop {
            if let Ok(answer) = http_get::get(&url)
                && answer.contains("\"health\":\"true\"")
            {
                return Ok(());
            }
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                return Err(format!(
                    "{} ended with {status}\n{}",
                    self.name,
                    self.log_tail()
                ));
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "{} is not healthy in time\n{}",
                    self.name,
                    self.log_tail()
                ));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sum of a metric over its label sets, if the member answers and has it.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = http_get::get(&format!("{}/metrics", self.client_url)).ok()?;
        http_get::metric_sum(&text, name)
    }

    /// Kills the process as a power cut would.
    pub fn kill(&mut self) -> Outcome {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        child
            .kill()
            .map_err(|error| format!("cannot kill {}: {error}", self.name))?;
        child
            .wait()
            .map(drop)
            .map_err(|error| format!("cannot wait for {}: {error}", self.name))
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(&mut self) -> Outcome<ExitStatus> {
        let Some(mut child) = self.child.take() else {
            return Err(format!("{} does not run", self.name));
        };
        workspace::run(Command::new("kill").args(["-TERM", &child.id().to_string()]))?;
        let deadline = Instant::now() + TERMINATE_DEADLINE;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                Ok(None) => {
                    // The deadline has passed; whether the kill works changes nothing for the report.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(format!(
                        "{} did not end after SIGTERM\n{}",
                        self.name,
                        self.log_tail()
                    ));
                }
                Err(error) => return Err(format!("cannot wait for {}: {error}", self.name)),
            }
        }
    }

    /// The last lines of its log, for error messages.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Nothing can be done about a process that cannot be killed.
        let _ = self.kill();
    }
}

/// Asks the system for ports nobody uses now.
fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot find free ports: {error}"))?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("cannot find free ports: {error}"))
}
