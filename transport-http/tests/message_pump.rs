//! Runs the example as two processes of the system: this test binary, which starts itself twice.

use std::{
    env,
    net::TcpListener,
    process::{Command, Stdio},
};

#[path = "../examples/message_pump.rs"]
mod example;

/// Set in the processes that are the ends of the pump; its arguments, separated by spaces.
const END: &str = "MESSAGE_PUMP_END";

#[tokio::test]
async fn one_end() {
    if let Ok(arguments) = env::var(END) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        println!("{}", example::pump(&arguments).await.unwrap());
    }
}

#[test]
fn two_processes_exchange_a_thousand_messages_each_way() {
    // Free a moment ago; both are held until both are known.
    let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [one, two] = listeners.map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    let ends = [
        format!("1 {one} 2 {two} 1000"),
        format!("2 {two} 1 {one} 1000"),
    ];
    let processes = ends.map(|arguments| {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "one_end", "--nocapture"])
            .env(END, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for (id, process) in (1..).zip(processes) {
        let output = process.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = format!("{id}: 1000 sent and acknowledged, 1000 received");
        assert!(
            output.status.success() && said.contains(&expected),
            "{said}"
        );
    }
}
