//! What a connection tells of a request that failed, and which URL is in use.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::net::{BoxFuture, BoxIo};

const LIMIT: Duration = Duration::from_secs(5);

/// Hands out one end of a pipe.
struct Pipe(parking_lot::Mutex<Option<DuplexStream>>);

impl Connector for Pipe {
    fn connect<'a>(&'a self, _: &'a PeerUrl, _: Duration) -> BoxFuture<'a, std::io::Result<BoxIo>> {
        let io = self.0.lock().take();
        Box::pin(async move { Ok(Box::new(io.unwrap()) as BoxIo) })
    }
}

/// Host `hole` takes no connection and says nothing, any other is connected at once.
struct Hole;

impl Connector for Hole {
    fn connect<'a>(
        &'a self,
        url: &'a PeerUrl,
        _: Duration,
    ) -> BoxFuture<'a, std::io::Result<BoxIo>> {
        Box::pin(async move {
            if url.host() == "hole" {
                std::future::pending::<()>().await;
            }
            Ok(Box::new(tokio::io::duplex(1).0) as BoxIo)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn the_url_that_answers_first_is_in_use_from_then_on() {
    let dialer = dialer(Hole);
    let urls = PeerUrl::parse_list(&["http://a:1", "http://hole:1", "http://z:1"]).unwrap();
    let picker = UrlPicker::new(urls);
    let dialled = async || dialer.open_any(&picker).await.unwrap().url.to_string();
    assert_eq!(dialled().await, "http://a:1");
    picker.unreachable(&picker.pick());
    assert_eq!(picker.pick().as_str(), "http://hole:1");
    let begun = tokio::time::Instant::now();
    assert_eq!(dialled().await, "http://z:1");
    assert!(begun.elapsed() < Duration::from_millis(300));
    assert_eq!(picker.pick().as_str(), "http://z:1");
    let holes = UrlPicker::new(PeerUrl::parse_list(&["http://hole:1", "http://hole:2"]).unwrap());
    let begun = tokio::time::Instant::now();
    assert!(dialer.open_any(&holes).await.is_err());
    assert!(begun.elapsed() < LIMIT + Duration::from_millis(300));
}

fn dialer(connector: impl Connector) -> Dialer {
    Dialer {
        connector: Arc::new(connector),
        dial_timeout: LIMIT,
        write_timeout: LIMIT,
        user_timeout: LIMIT,
    }
}

async fn connected() -> (Connection, DuplexStream) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let dialer = dialer(Pipe(parking_lot::Mutex::new(Some(near))));
    let url = Arc::new(PeerUrl::parse("http://a:1").unwrap());
    (dialer.open(&url).await.unwrap(), far)
}

async fn exchange(connection: &mut Connection) -> Result<Response<Bytes>, Unanswered> {
    let request = Request::post("/raft").body(piece(Bytes::from_static(b"message")));
    connection.exchange(request.unwrap(), LIMIT, 1024).await
}

/// Reads one request, then answers it or goes away.
async fn serve(far: &mut DuplexStream, answer: Option<&[u8]>) {
    let mut read = Vec::new();
    while !read.ends_with(b"message") {
        assert!(far.read_buf(&mut read).await.unwrap() > 0);
    }
    match answer {
        Some(answer) => far.write_all(answer).await.unwrap(),
        None => far.shutdown().await.unwrap(),
    }
}

#[tokio::test]
async fn a_request_is_unsent_only_if_none_of_it_left() {
    let answer: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
    let (mut connection, mut far) = connected().await;
    let (answered, ()) = tokio::join!(exchange(&mut connection), serve(&mut far, Some(answer)));
    assert_eq!(answered.unwrap().status(), StatusCode::NO_CONTENT);
    // Read and not answered: it may have been acted upon.
    let (read, ()) = tokio::join!(exchange(&mut connection), serve(&mut far, None));
    assert!(!read.unwrap_err().unsent);

    let (mut connection, mut far) = connected().await;
    let (answered, ()) = tokio::join!(exchange(&mut connection), serve(&mut far, Some(answer)));
    answered.unwrap();
    // Closed while nobody looked.
    drop(far);
    assert!(exchange(&mut connection).await.unwrap_err().unsent);
}

#[tokio::test]
async fn a_request_with_half_an_answer_was_sent() {
    let (mut connection, mut far) = connected().await;
    let head: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\nerr";
    let (broken, ()) = tokio::join!(exchange(&mut connection), async {
        serve(&mut far, Some(head)).await;
        far.shutdown().await.unwrap();
    });
    assert!(!broken.unwrap_err().unsent);
}
