//! Members on a network in memory, so that a paused clock can run.

use std::{net::SocketAddr, sync::Arc};

use transport_http::{
    NoSnapshots,
    net::memory::{MemoryListener, MemoryNetwork},
};

use super::Member;

/// A listener where member `id` is found.
pub fn listen(net: &MemoryNetwork, id: u64) -> MemoryListener {
    let address = SocketAddr::from(([127, 0, 0, 1], id as u16));
    net.listen(address).unwrap()
}

pub fn member(net: &MemoryNetwork, id: u64) -> Member {
    let listener = listen(net, id);
    let connector = Arc::new(net.clone());
    Member::start_on(
        id,
        listener.local_addr(),
        listener,
        |config| config.connector = connector,
        Arc::new(NoSnapshots),
    )
}

/// Two members with their streams up.
pub async fn pair(net: &MemoryNetwork) -> (Member, Member) {
    let (a, b) = (member(net, 1), member(net, 2));
    a.add(&b);
    b.add(&a);
    a.streams_up(1).await;
    b.streams_up(1).await;
    (a, b)
}
