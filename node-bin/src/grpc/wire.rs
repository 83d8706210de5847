//! The wire form of a unary gRPC call: one message in, one message or a status out.
//!
//! A unary call is one prefixed message each way and a status in the trailers. Doing that here instead of through
//! tonic's generated servers spares each call three boxed futures, a boxed body and two 8 KiB buffers: a quarter of
//! the user time a put costs between socket and proposal. Depends on `http-body`; streaming calls stay with tonic.
//!
//! Invariant: what a client claims to send allocates nothing; only what it sends does, up to the limit.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use prost::Message;
use tonic::Status;

/// Compression flag and length before each message.
const PREFIX: usize = 5;

/// The longest a client may stay silent in the middle of its request.
const FRAME_DEADLINE: Duration = Duration::from_secs(60);

/// Reads the one message of a unary request, and the end after it. `limit` is in bytes, without the prefix.
///
/// # Errors
/// The codes and texts of grpc-go, whose clients may look at them.
pub async fn read_message<B>(body: &mut B, limit: usize) -> Result<Bytes, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut message = Incoming::default();
    while !body.is_end_stream() {
        let Some(frame) = next_frame(body).await? else {
            break;
        };
        if let Ok(data) = frame.into_data() {
            message.push(data, limit)?;
        }
    }
    message.finish()
}

/// The next frame of a body. A timer is only started when it is not there already, as it is for all but large and
/// slow requests.
async fn next_frame<B>(body: &mut B) -> Result<Option<Frame<Bytes>>, Status>
where
    B: Body<Data = Bytes> + Unpin,
{
    let next = match body.frame().now_or_never() {
        Some(next) => next,
        None => tokio::time::timeout(FRAME_DEADLINE, body.frame())
            .await
            .map_err(|_| Status::deadline_exceeded("grpc: the request did not arrive in time"))?,
    };
    next.transpose()
        .map_err(|_| Status::cancelled("grpc: the client gave the request up"))
}

/// A message on its way in. One that comes in a single frame, as nearly all do, is never copied.
#[derive(Default)]
struct Incoming {
    first: Bytes,
    more: BytesMut,
    checked: bool,
}

impl Incoming {
    fn push(&mut self, data: Bytes, limit: usize) -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        if self.first.is_empty() && self.more.is_empty() {
            self.first = data;
        } else {
            if self.more.is_empty() {
                self.more.extend_from_slice(&self.first);
                self.first = Bytes::new();
            }
            self.more.extend_from_slice(&data);
        }
        self.check(limit)
    }

    fn received(&self) -> &[u8] {
        if self.more.is_empty() {
            &self.first
        } else {
            &self.more
        }
    }

    /// Checks the prefix as soon as it is there, and that no more comes than it says.
    fn check(&mut self, limit: usize) -> Result<(), Status> {
        let received = self.received();
        let Some((prefix, message)) = received.split_at_checked(PREFIX) else {
            return Ok(());
        };
        let (compressed, length) = (prefix[0], (&prefix[1..]).get_u32() as usize);
        let surplus = message.len() > length;
        if !self.checked {
            if compressed != 0 {
                return Err(Status::unimplemented(
                    "grpc: Decompressor is not installed for the encoding of the request",
                ));
            }
            if length > limit {
                return Err(Status::resource_exhausted(format!(
                    "grpc: received message larger than max ({length} vs. {limit})"
                )));
            }
            self.checked = true;
        }
        if surplus {
            return Err(Status::internal(
                "grpc: more than one message in a unary request",
            ));
        }
        Ok(())
    }

    fn finish(self) -> Result<Bytes, Status> {
        let mut received = if self.more.is_empty() {
            self.first
        } else {
            self.more.freeze()
        };
        let whole = received
            .split_at_checked(PREFIX)
            .is_some_and(|(prefix, message)| (&prefix[1..]).get_u32() as usize == message.len());
        if !whole {
            return Err(Status::internal("grpc: the request ended within a message"));
        }
        received.advance(PREFIX);
        Ok(received)
    }
}

/// The answer to a unary call that succeeded, and the length of its message.
pub fn answer(message: &impl Message) -> (Response<ResponseBody>, usize) {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(PREFIX + length);
    data.put_u8(0);
    // Nothing of 4 GiB fits into a store's answer; a client could not receive it either.
    data.put_u32(length as u32);
    message.encode_raw(&mut data);
    let body = ResponseBody::Unary(Some(data.freeze()));
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    (response, length)
}

/// The answer to a call that failed: headers that are trailers as well.
pub fn refusal(status: Status) -> Response<ResponseBody> {
    status.into_http()
}

/// The body of any response of the client port.
#[derive(Default)]
pub enum ResponseBody {
    /// Nothing.
    #[default]
    Empty,
    /// A message with its prefix, then the trailers of a success.
    Unary(Option<Bytes>),
    /// What tonic's services answer.
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = tonic::codegen::StdError> + Send>>),
    /// What the HTTP endpoints answer.
    Http(axum::body::Body),
}

impl ResponseBody {
    /// Wraps the body of a streaming call.
    pub fn stream<B>(body: B) -> ResponseBody
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        ResponseBody::Stream(Box::pin(body.map_err(Into::into)))
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, tonic::codegen::StdError>>>;

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        match &mut *self {
            ResponseBody::Empty => Poll::Ready(None),
            ResponseBody::Unary(message) => match message.take() {
                Some(message) => Poll::Ready(Some(Ok(Frame::data(message)))),
                None => {
                    *self = ResponseBody::Empty;
                    Poll::Ready(Some(Ok(Frame::trailers(success()))))
                }
            },
            ResponseBody::Stream(body) => body.as_mut().poll_frame(context),
            ResponseBody::Http(body) => {
                let polled = Pin::new(body).poll_frame(context);
                polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Empty => true,
            ResponseBody::Unary(_) => false,
            ResponseBody::Stream(body) => body.is_end_stream(),
            ResponseBody::Http(body) => body.is_end_stream(),
        }
    }

    /// Known for HTTP only: hyper turns an exact size into a content-length, which gRPC does without.
    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Http(body) => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

fn success() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http_body_util::StreamBody;
    use kvstore::pb::etcdserverpb::PutRequest;
    use tonic::Code;

    use super::*;

    fn body(pieces: Vec<&[u8]>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin + use<> {
        let frames: Vec<_> = pieces
            .into_iter()
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        StreamBody::new(stream::iter(frames))
    }

    fn framed(length: u32, message: &[u8]) -> Vec<u8> {
        let mut framed = vec![0];
        framed.extend(length.to_be_bytes());
        framed.extend(message);
        framed
    }

    #[tokio::test]
    async fn a_message_arrives_however_it_is_cut() {
        let message = framed(300, &[9; 300]);
        for size in [1, 4, 5, 6, 100, 305] {
            let mut body = body(message.chunks(size).collect());
            assert_eq!(read_message(&mut body, 300).await.unwrap(), vec![9; 300]);
        }
        let mut empty = body(vec![&framed(0, b"")]);
        assert_eq!(read_message(&mut empty, 0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn wrong_requests_are_refused_as_grpc_go_does() {
        let cases: [(Vec<u8>, Code, &str); 6] = [
            (
                framed(301, b""),
                Code::ResourceExhausted,
                "grpc: received message larger than max (301 vs. 300)",
            ),
            (
                framed(u32::MAX, b"x"),
                Code::ResourceExhausted,
                "grpc: received message larger than max (4294967295 vs. 300)",
            ),
            (
                vec![1, 0, 0, 0, 1, 7],
                Code::Unimplemented,
                "grpc: Decompressor is not installed for the encoding of the request",
            ),
            (
                framed(1, b"xy"),
                Code::Internal,
                "grpc: more than one message in a unary request",
            ),
            (
                framed(3, b"xy"),
                Code::Internal,
                "grpc: the request ended within a message",
            ),
            (
                vec![],
                Code::Internal,
                "grpc: the request ended within a message",
            ),
        ];
        for (bytes, code, text) in cases {
            let mut body = body(bytes.chunks(4).collect());
            let status = read_message(&mut body, 300).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (code, text));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_in_the_middle_is_not_waited_for_for_ever() {
        let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[0])))]);
        let mut body = StreamBody::new(stream::StreamExt::chain(first, stream::pending()));
        let status = read_message(&mut body, 300).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn an_answer_is_a_message_and_a_status() {
        let put = PutRequest {
            key: "k".into(),
            ..Default::default()
        };
        let (response, length) = answer(&put);
        assert_eq!(length, 3);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.body().size_hint().exact(), None);
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), framed(3, b"\x0a\x01k"));

        let response = refusal(Status::out_of_range("mvcc: ü"));
        assert!(response.body().is_end_stream());
        assert_eq!(response.headers()["grpc-status"], "11");
        assert_eq!(response.headers()["grpc-message"], "mvcc:%20%C3%BC");
    }
}
