//! Runs the example: the `raft` crate over this transport, with nothing else of this workspace but the messages.

#[path = "../examples/raft_over_transport.rs"]
mod example;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_elect_replicate_lose_their_streams_and_recover() {
    let entries = example::demonstrate(|event| println!("{event}"))
        .await
        .unwrap();
    assert_eq!(entries, 1500);
}
