//! HTTP/1.1 by hand, on either end of a socket, so that nothing is checked against the code under test.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{CLUSTER, soon};

/// A socket and what was read beyond what was asked for.
pub struct Raw {
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

/// Start line and headers, names in lower case.
#[derive(Debug)]
pub struct Head {
    pub start: String,
    pub headers: Vec<(String, String)>,
    /// As it came.
    pub text: String,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        let name = name.to_ascii_lowercase();
        self.headers
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub fn path(&self) -> &str {
        self.start.split(' ').nth(1).unwrap()
    }
}

impl Raw {
    pub fn new(socket: TcpStream) -> Raw {
        Raw {
            socket,
            buffer: Vec::new(),
        }
    }

    pub async fn connect(address: SocketAddr) -> Raw {
        Raw::new(
            soon("a connection", TcpStream::connect(address))
                .await
                .unwrap(),
        )
    }

    pub async fn accept(listener: &TcpListener) -> Raw {
        Raw::new(soon("a dial", listener.accept()).await.unwrap().0)
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        soon("a write", self.socket.write_all(bytes.as_ref()))
            .await
            .unwrap();
    }

    /// Ends the connection on this side.
    pub async fn end(&mut self) {
        soon("an end", self.socket.shutdown()).await.unwrap();
    }

    /// Reads more; false at the end of the connection, however it came.
    pub async fn fill(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        match soon("bytes", self.socket.read(&mut piece)).await {
            Ok(0) | Err(_) => false,
            Ok(read) => {
                self.buffer.extend_from_slice(&piece[..read]);
                true
            }
        }
    }

    /// The head of a request or an answer; `None` if the connection ends before it.
    pub async fn head(&mut self) -> Option<Head> {
        loop {
            if let Some(end) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let text = String::from_utf8(self.buffer.drain(..end + 4).collect()).unwrap();
                let mut lines = text.trim_end().split("\r\n");
                let start = lines.next().unwrap().to_owned();
                let headers = lines
                    .map(|line| line.split_once(':').unwrap())
                    .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                    .collect();
                return Some(Head {
                    start,
                    headers,
                    text,
                });
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    pub async fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        while self.buffer.len() < bytes {
            assert!(self.fill().await, "the connection ended early");
        }
        self.buffer.drain(..bytes).collect()
    }

    /// One chunk of a chunked body: `None` for the last one; an error if the connection ends without it.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|two| two == b"\r\n") {
                let size = std::str::from_utf8(&self.buffer[..end]).unwrap();
                let size = usize::from_str_radix(size, 16).unwrap();
                if self.buffer.len() >= end + 4 + size {
                    let chunk = self.buffer[end + 2..end + 2 + size].to_vec();
                    self.buffer.drain(..end + 4 + size);
                    return Ok((size > 0).then_some(chunk));
                }
            }
            if !self.fill().await {
                return Err("the connection ended");
            }
        }
    }

    /// A whole chunked body.
    pub async fn chunked(&mut self) -> Result<Vec<u8>, &'static str> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }

    /// The body that belongs to a head.
    pub async fn body(&mut self, head: &Head) -> Vec<u8> {
        if let Some(length) = head.header("content-length") {
            return self.exactly(length.parse().unwrap()).await;
        }
        if head.header("transfer-encoding") == Some("chunked") {
            return self.chunked().await.unwrap();
        }
        Vec::new()
    }
}

/// The headers a compatible peer sends.
pub const PEER_HEADERS: [(&str, &str); 3] = [
    ("X-Server-Version", "3.6.0"),
    ("X-Min-Cluster-Version", "3.0.0"),
    ("X-Etcd-Cluster-ID", "5d9487856336506b"),
];

/// A request's head; `headers` come after [`PEER_HEADERS`] and replace those of the same name, an empty value
/// removes one.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    assert_eq!(CLUSTER.to_string(), PEER_HEADERS[2].1);
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    let defaults = PEER_HEADERS
        .iter()
        .filter(|(name, _)| headers.iter().all(|(other, _)| other != name));
    for (name, value) in defaults
        .chain(headers)
        .filter(|(_, value)| !value.is_empty())
    {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n"
}

/// Asks `address`, as member `from`, for a stream to it.
pub async fn open_stream(address: SocketAddr, kind: &str, from: u64, to: u64) -> (Raw, Head) {
    let mut raw = Raw::connect(address).await;
    let path = format!("/raft/stream/{kind}/{from:x}");
    let to = format!("{to:x}");
    raw.write(request("GET", &path, &[("X-Raft-To", &to)]))
        .await;
    let head = raw.head().await.unwrap();
    (raw, head)
}

/// A listener that stands for a peer.
pub async fn fake_peer() -> (TcpListener, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    (listener, urls)
}

/// Accepts dials until one asks for the stream of this kind; other requests get no answer and stay open.
pub async fn accept_stream(
    listener: &TcpListener,
    kind: &str,
    others: &mut Vec<Raw>,
) -> (Raw, Head) {
    loop {
        let mut raw = Raw::accept(listener).await;
        let Some(head) = raw.head().await else {
            continue;
        };
        if head.path().starts_with(&format!("/raft/stream/{kind}/")) {
            return (raw, head);
        }
        others.push(raw);
    }
}

/// The answer that accepts a stream.
pub const STREAM_OK: &str = "HTTP/1.1 200 OK\r\nX-Server-Version: 3.6.0\r\nX-Etcd-Cluster-ID: 5d9487856336506b\r\nTransfer-Encoding: chunked\r\n\r\n";

/// One chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

/// A short answer.
pub fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
