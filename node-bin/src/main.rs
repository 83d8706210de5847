//! The server process: a command line becomes a running member, a signal becomes its orderly end.

#![forbid(unsafe_code)]

use std::{env, process::ExitCode};

use node_bin::{
    config::{self, Config, Outcome},
    log,
    member::tasks::Ended,
    metrics::Metrics,
    start::{self, Running, STOP_MAX},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().collect();
    let shown: Vec<String> = args
        .iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let loaded = match config::load(args.into_iter().skip(1).collect(), env::vars_os().collect()) {
        Ok(Outcome::Run(loaded)) => loaded,
        Ok(Outcome::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(failure) => return ExitCode::from(log::report(&failure, &shown)),
    };
    if let Err(error) = log::init(&loaded.config.log) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    log::log_panics();
    log::announce(&loaded, &shown);
    match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(runtime_threads())
        .enable_all()
        .build()
    {
        Ok(runtime) => {
            let code = runtime.block_on(run(loaded.config));
            // Whatever still blocks a thread has had its deadline.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            tracing::error!(fatal = true, %error, "cannot start the runtime");
            ExitCode::FAILURE
        }
    }
}

/// Threads for sockets and raft: all cores but one, which the log and the state machine keep busy.
fn runtime_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores - 1).max(1)
}

async fn run(config: Config) -> ExitCode {
    let (mut terminate, mut interrupt) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(fatal = true, %error, "cannot listen to signals");
            return ExitCode::FAILURE;
        }
    };
    let metrics = match Metrics::new() {
        Ok(metrics) => metrics,
        Err(error) => {
            tracing::error!(fatal = true, %error, "cannot set up metrics");
            return ExitCode::FAILURE;
        }
    };
    let started = tokio::select! {
        started = start::start(config, metrics) => started,
        name = signalled(&mut terminate, &mut interrupt) => {
            tracing::info!(signal = name, "received signal; not started yet");
            return ExitCode::SUCCESS;
        }
    };
    match started {
        Ok(running) => until_the_end(running, terminate, interrupt).await,
        Err(error) => {
            tracing::error!(fatal = true, %error, "failed to start the member");
            ExitCode::FAILURE
        }
    }
}

async fn until_the_end(running: Running, mut terminate: Signal, mut interrupt: Signal) -> ExitCode {
    let ended = tokio::select! {
        ended = running.ended() => Some(ended),
        name = signalled(&mut terminate, &mut interrupt) => {
            tracing::info!(signal = name, "received signal; shutting down");
            None
        }
    };
    if let Some(Ended::Fatal(reason)) = &ended {
        tracing::error!(fatal = true, reason, "the member cannot go on");
        return ExitCode::FAILURE;
    }
    // Whoever stops a member in order must learn when its log does not hold all that it knew.
    match tokio::time::timeout(STOP_MAX, running.stop()).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(reason)) => {
            tracing::error!(fatal = true, reason, "the member did not end in order");
            ExitCode::FAILURE
        }
        Err(_) => {
            tracing::error!(fatal = true, deadline = ?STOP_MAX, "stopping took too long");
            ExitCode::FAILURE
        }
    }
}

async fn signalled(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "terminated",
        _ = interrupt.recv() => "interrupt",
    }
}
