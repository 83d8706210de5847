//! The transport under load, beside raw TCP that carries the same bytes: the program `cargo xtask bench transport` runs.
//!
//! Two transports in one process over loopback HTTP exchange appends of one entry, counted when the receiver's
//! `process` is called. The first argument chooses who carries them: `transport` or `tcp`. Each line on stdin,
//! `SIZE WINDOW MILLISECONDS`, is one run, answered by one line of JSON. `xtask/peers/bench` is the same workload for
//! Go's transport; keep the two alike.

mod counting;
mod load;
mod pair;
mod tcp;

use std::{
    io::{self, BufRead},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use load::{Carrier, run};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

fn main() -> ExitCode {
    // As `cargo bench` and `cargo test` would run it: nothing to measure without a question.
    let Some(carrier) = std::env::args().nth(1).filter(|arg| !arg.starts_with("--")) else {
        return ExitCode::SUCCESS;
    };
    match serve(&carrier) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(carrier: &str) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start a runtime: {error}"))?;
    match carrier {
        "transport" => {
            let pair = runtime.block_on(pair::Pair::start())?;
            answer(&runtime, &Arc::new(pair))
        }
        "tcp" => {
            let tcp = runtime
                .block_on(tcp::Tcp::start())
                .map_err(|error| error.to_string())?;
            answer(&runtime, &Arc::new(tcp))
        }
        other => Err(format!("nothing is called `{other}`")),
    }
}

fn answer<C: Carrier>(runtime: &tokio::runtime::Runtime, carrier: &Arc<C>) -> Result<(), String> {
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| error.to_string())?;
        let numbers: Vec<u64> = line
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        let [size, window, milliseconds] = numbers[..] else {
            return Err(format!("cannot read `{line}`"));
        };
        let length = Duration::from_millis(milliseconds);
        // The sender is a task, as it is one in Go: the thread that blocks here is no worker.
        let sending = runtime.spawn(run(Arc::clone(carrier), size as usize, window, length));
        let told = runtime
            .block_on(sending)
            .map_err(|error| error.to_string())??;
        println!("{told}");
    }
    Ok(())
}
