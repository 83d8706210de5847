//! HTTP/1.1 towards other members: one connection, and a small client for requests that are not raft's.
//!
//! A `Connection` is driven by the task that uses it: no helper task, no hand-off per chunk, and dropping it
//! closes the socket. Invariant: no environment proxy, no redirect is followed, every
//! wait has a deadline and every answer a limit.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body::{Body, Frame};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::{
    body::{RequestBody, nothing, piece},
    config::TransportConfig,
    error::{ClientError, UrlError},
    net::{Connector, HTTP_BUFFER_BYTES, PeerUrl, TcpConnector, WriteDeadline},
    race::race,
    url_picker::UrlPicker,
};

/// Body of an answer to a request of raft's: an error text has a few dozen bytes.
pub(crate) const ANSWER_BYTES: usize = 64 << 10;

type Driver = http1::Connection<TokioIo<WriteDeadline>, RequestBody>;

/// How connections are opened: the connector and the deadlines around it.
#[derive(Clone)]
pub(crate) struct Dialer {
    connector: Arc<dyn Connector>,
    dial_timeout: Duration,
    write_timeout: Duration,
    user_timeout: Duration,
}

impl Dialer {
    pub(crate) fn new(config: &TransportConfig) -> Self {
        Dialer {
            connector: Arc::clone(&config.connector),
            dial_timeout: config.dial_timeout,
            write_timeout: config.write_timeout,
            user_timeout: config.read_timeout,
        }
    }

    /// Connects to whichever of the peer's URLs answers first, beginning with the one in use; the one that did is in
    /// use from now on. Cancel-safe: dropping the future closes what was begun.
    pub(crate) async fn connect_any(&self, picker: &UrlPicker) -> Result<Connected, ClientError> {
        let urls = picker.candidates();
        let attempts = urls.iter().map(|url| self.connect(url)).collect();
        match race(attempts).await {
            Some(Ok(connected)) => {
                picker.prefer(&connected.url);
                Ok(connected)
            }
            Some(Err(error)) => Err(error),
            // A picker always has a URL.
            None => Err(UrlError::None.into()),
        }
    }

    /// [`connect_any`](Self::connect_any), ready for requests.
    pub(crate) async fn open_any(&self, picker: &UrlPicker) -> Result<Connection, ClientError> {
        self.connect_any(picker).await?.open().await
    }

    /// Opens a connection. Cancel-safe as [`connect_any`](Self::connect_any).
    pub(crate) async fn open(&self, url: &Arc<PeerUrl>) -> Result<Connection, ClientError> {
        self.connect(url).await?.open().await
    }

    /// Connects to one URL. Cancel-safe as [`connect_any`](Self::connect_any).
    pub(crate) async fn connect(&self, url: &Arc<PeerUrl>) -> Result<Connected, ClientError> {
        let connecting = self.connector.connect(url, self.user_timeout);
        let io = match timeout(self.dial_timeout, connecting).await {
            Ok(Ok(io)) => io,
            Ok(Err(source)) => {
                return Err(ClientError::Connect {
                    url: url.to_string(),
                    source,
                });
            }
            Err(_) => return Err(deadline(url, "connection", self.dial_timeout)),
        };
        Ok(Connected {
            url: Arc::clone(url),
            io: WriteDeadline::new(io, self.write_timeout),
        })
    }
}

/// Adds a piece to an answer that may have `limit` bytes.
pub(crate) fn append_within(
    whole: &mut BytesMut,
    piece: &[u8],
    limit: usize,
    url: &PeerUrl,
) -> Result<(), ClientError> {
    if piece.len() > limit - whole.len() {
        let url = url.to_string();
        return Err(ClientError::TooLong { url, limit });
    }
    whole.extend_from_slice(piece);
    Ok(())
}

/// A byte stream to a peer on which nothing was said yet.
pub(crate) struct Connected {
    pub(crate) url: Arc<PeerUrl>,
    pub(crate) io: WriteDeadline,
}

impl Connected {
    async fn open(self) -> Result<Connection, ClientError> {
        let Connected { url, io } = self;
        let opened = http1::Builder::new()
            .title_case_headers(true)
            .max_buf_size(HTTP_BUFFER_BYTES)
            .handshake(TokioIo::new(io))
            .await;
        let (sender, driver) = opened.map_err(|source| ClientError::Http {
            url: url.to_string(),
            source,
        })?;
        Ok(Connection {
            url,
            sender,
            driver: Some(Box::pin(driver)),
        })
    }
}

pub(crate) fn deadline(url: &PeerUrl, what: &'static str, after: Duration) -> ClientError {
    ClientError::Deadline {
        url: url.to_string(),
        what,
        after,
    }
}

/// One HTTP/1.1 connection, driven by its user.
pub(crate) struct Connection {
    url: Arc<PeerUrl>,
    sender: http1::SendRequest<RequestBody>,
    /// None once the connection has ended.
    driver: Option<Pin<Box<Driver>>>,
}

/// A request without an answer.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) error: ClientError,
    /// Whether the other side cannot have seen any of the request: the connection was over before.
    pub(crate) unsent: bool,
}

impl From<ClientError> for Unanswered {
    fn from(error: ClientError) -> Self {
        let unsent = false;
        Unanswered { error, unsent }
    }
}

impl Connection {
    /// Whom it leads to.
    pub(crate) fn url(&self) -> &Arc<PeerUrl> {
        &self.url
    }

    /// Drives the connection while nothing is asked of it; returns once it cannot be used again.
    pub(crate) async fn until_closed(&mut self) {
        poll_fn(|cx| {
            self.poll_driver(cx);
            match self.driver {
                Some(_) => Poll::Pending,
                None => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Notices what happened while nobody drove the connection; false once it cannot be used again.
    pub(crate) async fn is_open(&mut self) -> bool {
        poll_fn(|cx| {
            self.poll_driver(cx);
            Poll::Ready(())
        })
        .await;
        self.driver.is_some() && !self.sender.is_closed()
    }

    /// Sends a request and returns the head of its answer. The caller watches the time.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, ClientError> {
        self.try_send(request).await.map_err(|failed| failed.error)
    }

    /// Sends a request, and tells whether any of it can have left when it fails.
    async fn try_send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let Connection { sender, driver, .. } = self;
        let (unsent, source) = match drive(driver, sender.ready()).await {
            Ok(()) => match drive(driver, sender.try_send_request(request)).await {
                Ok(response) => return Ok(response),
                // hyper gives the request back if it had not begun with it.
                Err(mut failed) => (failed.take_message().is_some(), failed.into_error()),
            },
            Err(error) => (true, error),
        };
        let url = self.url.to_string();
        let error = ClientError::Http { url, source };
        Err(Unanswered { error, unsent })
    }

    /// The next piece of a body, `None` at its end.
    pub(crate) async fn chunk(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Bytes, ClientError>> {
        poll_fn(|cx| self.poll_chunk(body, cx)).await
    }

    pub(crate) fn poll_chunk(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, ClientError>>> {
        loop {
            let mut polled = Pin::new(&mut *body).poll_frame(cx);
            if polled.is_pending() {
                self.poll_driver(cx);
                polled = Pin::new(&mut *body).poll_frame(cx);
            }
            return match polled {
                Poll::Pending => Poll::Pending,
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Ok(frame))) => match Frame::into_data(frame) {
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    // Trailers mean nothing here.
                    Err(_) => continue,
                },
                Poll::Ready(Some(Err(source))) => Poll::Ready(Some(Err(ClientError::Http {
                    url: self.url.to_string(),
                    source,
                }))),
            };
        }
    }

    /// Reads a body to its end, or to an error beyond `limit` bytes.
    pub(crate) async fn collect(
        &mut self,
        mut body: Incoming,
        limit: usize,
    ) -> Result<Bytes, ClientError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.chunk(&mut body).await {
            append_within(&mut whole, &chunk?, limit, &self.url)?;
        }
        Ok(whole.freeze())
    }

    /// Sends a request and reads the whole answer within `within`.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
        within: Duration,
        body_limit: usize,
    ) -> Result<Response<Bytes>, Unanswered> {
        let exchange = async {
            let (head, body) = self.try_send(request).await?.into_parts();
            let body = self.collect(body, body_limit).await?;
            Ok(Response::from_parts(head, body))
        };
        match timeout(within, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(deadline(&self.url, "answer", within).into()),
        }
    }

    fn poll_driver(&mut self, cx: &mut Context<'_>) {
        poll_driver(&mut self.driver, cx);
    }
}

fn poll_driver(driver: &mut Option<Pin<Box<Driver>>>, cx: &mut Context<'_>) {
    if let Some(running) = driver
        && running.as_mut().poll(cx).is_ready()
    {
        // How it ended is told by the request or the body that was under way, if any.
        *driver = None;
    }
}

/// Runs `future` and the connection it depends on in the calling task.
async fn drive<F: Future>(driver: &mut Option<Pin<Box<Driver>>>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        poll_driver(driver, cx);
        future.as_mut().poll(cx)
    })
    .await
}

/// A small client for the other endpoints of a peer port (`/members`, `/version`, `/leases` …): one connection
/// per request.
#[derive(Clone)]
pub struct Client {
    dialer: Dialer,
}

impl Client {
    /// A client that connects as the transport of this configuration does.
    pub fn new(config: &TransportConfig) -> Self {
        Client {
            dialer: Dialer::new(config),
        }
    }

    /// Plain TCP with the given limit for connecting and for each write.
    pub fn plain(io_timeout: Duration) -> Self {
        Client::over(Arc::new(TcpConnector::default()), io_timeout)
    }

    /// A client before there is a transport, with the given limit for connecting and for each write.
    pub fn over(connector: Arc<dyn Connector>, io_timeout: Duration) -> Self {
        Client {
            dialer: Dialer {
                connector,
                dial_timeout: io_timeout,
                write_timeout: io_timeout,
                user_timeout: io_timeout,
            },
        }
    }

    /// Sends a request whose URI is absolute (`http://host:port/path`) and reads the answer, all within
    /// `within`. The answer's body may have `body_limit` bytes.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        within: Duration,
        body_limit: usize,
    ) -> Result<Response<Bytes>, ClientError> {
        let (mut head, body) = request.into_parts();
        let text = format!(
            "{}://{}",
            head.uri.scheme_str().unwrap_or_default(),
            head.uri
                .authority()
                .map_or("", |authority| authority.as_str())
        );
        let url = Arc::new(PeerUrl::parse(&text)?);
        let invalid = |source: http::Error| ClientError::Request {
            url: url.to_string(),
            source,
        };
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        head.uri = path.parse::<Uri>().map_err(|error| invalid(error.into()))?;
        let host = HeaderValue::from_str(url.authority()).map_err(|error| invalid(error.into()))?;
        head.headers.insert(header::HOST, host);
        let body = if body.is_empty() {
            nothing()
        } else {
            piece(body)
        };
        let exchange = async {
            let mut connection = self.dialer.open(&url).await?;
            let answer = connection.exchange(Request::from_parts(head, body), within, body_limit);
            answer.await.map_err(|failed| failed.error)
        };
        match timeout(within, exchange).await {
            Ok(outcome) => outcome,
            Err(_) => Err(deadline(&url, "answer", within)),
        }
    }

    /// [`send`](Self::send) for a GET.
    pub async fn get(
        &self,
        url: &str,
        headers: HeaderMap,
        within: Duration,
        body_limit: usize,
    ) -> Result<(StatusCode, HeaderMap, Bytes), ClientError> {
        let built = Request::builder()
            .method(Method::GET)
            .uri(url)
            .body(Bytes::new());
        let mut request = built.map_err(|source| ClientError::Request {
            url: url.to_owned(),
            source,
        })?;
        *request.headers_mut() = headers;
        let (head, body) = self.send(request, within, body_limit).await?.into_parts();
        Ok((head.status, head.headers, body))
    }
}

/// GETs an absolute URL over plain TCP: status, headers and body of at most `body_limit` bytes.
pub async fn get(
    url: &str,
    headers: HeaderMap,
    within: Duration,
    body_limit: usize,
) -> Result<(StatusCode, HeaderMap, Bytes), ClientError> {
    Client::plain(within)
        .get(url, headers, within, body_limit)
        .await
}

#[cfg(test)]
mod tests;
