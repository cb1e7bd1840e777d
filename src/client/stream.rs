//! `POST /v1/blocks/stream`: blocks go out in order, an answer comes back for each.
//!
//! One connection per stream. [`Stream`] only moves bytes and lines; what they mean for a producer is
//! decided in [`crate::client::producer`].

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    client::conn::http1,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::mpsc, task::AbortHandle};

use crate::client::{
    endpoint::Endpoint,
    frame::Lines,
    http::{HttpError, root_cause},
    rpc::{self, RpcError},
    wire::Acked,
};

/// Pieces on their way to the socket. Two, so that one is written while the next one is made.
const PIECES: usize = 2;
/// Longest line or body of an error that is read: `data` of an error stays under 4 KiB.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Why a stream has ended before its blocks did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("{0}")]
    Http(#[from] HttpError),
    /// Refused as a whole, before any block was taken.
    #[error("{endpoint}: {error}")]
    Refused { endpoint: Endpoint, error: RpcError },
    #[error("{endpoint}: {why}")]
    Garbled { endpoint: Endpoint, why: String },
}

/// The answer to one block.
#[derive(Debug)]
pub(crate) enum Line {
    Acked(Acked),
    Error(RpcError),
}

type Body =
    StreamBody<Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send>>>;
type Requests = http1::SendRequest<Body>;
type Head = Pin<Box<dyn Future<Output = hyper::Result<(Response<Incoming>, Requests)>> + Send>>;

type Refused = Pin<Box<dyn Future<Output = StreamError> + Send>>;

enum Reading {
    /// The node may send the head of its answer only with the first line.
    Head(Head),
    /// With the sender of requests: the connection may end once that is gone.
    Body {
        body: Incoming,
        _requests: Requests,
    },
    /// The body of an answer that is no stream.
    Refused(Refused),
    Over,
}

/// An open stream. Dropping it closes the connection: what was sent and not answered is unknown then.
pub(crate) struct Stream {
    endpoint: Endpoint,
    /// `None` once the body was ended.
    pieces: Option<mpsc::Sender<Bytes>>,
    reading: Reading,
    lines: Lines,
    connection: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Stream {
    /// Connects and sends the head of the request. Nothing has been proposed when this fails.
    pub(crate) async fn open(
        endpoint: &Endpoint,
        fence: Option<u64>,
        token: Option<&HeaderValue>,
        within: Duration,
    ) -> Result<Self, HttpError> {
        let not_sent = |why: String| HttpError::NotSent { endpoint: endpoint.clone(), why };
        let socket = tokio::time::timeout(within, TcpStream::connect(endpoint.as_str()))
            .await
            .map_err(|_| not_sent(format!("no connection within {within:?}")))?
            .map_err(|e| not_sent(root_cause(&e)))?;
        socket.set_nodelay(true).map_err(|e| not_sent(root_cause(&e)))?;
        let (mut requests, connection) =
            http1::handshake::<_, Body>(TokioIo::new(socket)).await.map_err(|e| not_sent(root_cause(&e)))?;

        let (pieces, queue) = mpsc::channel::<Bytes>(PIECES);
        let frames = stream::unfold(queue, |mut queue| async move {
            let piece = queue.recv().await?;
            Some((Ok(Frame::data(piece)), queue))
        });
        let mut request = Request::post("/v1/blocks/stream")
            .header(HOST, endpoint.as_str())
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(ACCEPT, "application/x-ndjson");
        if let Some(fence) = fence {
            request = request.header("blockraft-fence", fence);
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(StreamBody::new(frames.boxed())).map_err(|e| not_sent(e.to_string()))?;
        let connection = tokio::spawn(async move {
            // Its error is also that of the answer, which is read elsewhere.
            let _ = connection.await;
        })
        .abort_handle();
        let head: Head = Box::pin(async move { Ok((requests.send_request(request).await?, requests)) });
        Ok(Self {
            endpoint: endpoint.clone(),
            pieces: Some(pieces),
            reading: Reading::Head(head),
            lines: Lines::default(),
            connection,
        })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Ends the body: no further block follows.
    pub(crate) fn finish(&mut self) {
        self.pieces = None;
    }

    /// Whichever comes first: room for a piece, or an answer. Cancelling loses neither.
    pub(crate) async fn ready(&mut self, wants_to_send: bool) -> Result<Ready, StreamError> {
        if let Some(line) = self.take_line()? {
            return Ok(Ready::Line(line));
        }
        // A clone, so that both sides can be awaited at once.
        let pieces = self.pieces.clone().filter(|p| wants_to_send && !p.is_closed());
        match pieces {
            None => Ok(self.next_line().await?.map_or(Ready::Over, Ready::Line)),
            Some(pieces) => tokio::select! {
                line = self.next_line() => Ok(line?.map_or(Ready::Over, Ready::Line)),
                permit = pieces.reserve_owned() => match permit {
                    Ok(permit) => Ok(Ready::Room(Room(permit))),
                    // The connection is gone; the answer says why.
                    Err(_) => Ok(self.next_line().await?.map_or(Ready::Over, Ready::Line)),
                },
            },
        }
    }

    /// The next answer; `None` at the end of the answers. Cancel-safe.
    pub(crate) async fn next_line(&mut self) -> Result<Option<Line>, StreamError> {
        loop {
            if let Some(line) = self.take_line()? {
                return Ok(Some(line));
            }
            match &mut self.reading {
                Reading::Head(head) => {
                    let response = head.await;
                    self.reading = Reading::Over;
                    let (response, requests) = response.map_err(|e| self.broken(&e))?;
                    self.reading = if response.status() == StatusCode::OK {
                        Reading::Body { body: response.into_body(), _requests: requests }
                    } else {
                        Reading::Refused(Box::pin(refused(self.endpoint.clone(), response)))
                    };
                }
                Reading::Body { body, .. } => match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            self.lines.push(&data);
                        }
                    }
                    Some(Err(e)) => {
                        let e = self.broken(&e);
                        self.reading = Reading::Over;
                        return Err(e);
                    }
                    None => self.reading = Reading::Over,
                },
                Reading::Refused(refused) => {
                    let error = refused.await;
                    self.reading = Reading::Over;
                    return Err(error);
                }
                Reading::Over => {
                    let cut = self.lines.take_rest();
                    if cut.is_empty() {
                        return Ok(None);
                    }
                    return parse(&self.endpoint, &cut).map(Some);
                }
            }
        }
    }

    /// A line that has arrived already.
    pub(crate) fn take_line(&mut self) -> Result<Option<Line>, StreamError> {
        self.lines.next_line().map(|line| parse(&self.endpoint, &line)).transpose()
    }

    fn broken(&self, error: &hyper::Error) -> StreamError {
        HttpError::Broken { endpoint: self.endpoint.clone(), why: root_cause(error) }.into()
    }
}

/// Reads the body of an answer that is no stream.
async fn refused(endpoint: Endpoint, response: Response<Incoming>) -> StreamError {
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data);
        }
        if LINE_BYTES_MAX < text.len() {
            break;
        }
    }
    match serde_json::from_slice::<ErrorLine>(&text) {
        Ok(line) => StreamError::Refused { endpoint, error: line.error },
        Err(_) => StreamError::Garbled { endpoint, why: format!("HTTP {status}{}", rpc::excerpt(&text)) },
    }
}

/// What a stream is ready for.
pub(crate) enum Ready {
    Line(Line),
    Room(Room),
    /// All answers have been read.
    Over,
}

/// Room for one piece of the body.
pub(crate) struct Room(mpsc::OwnedPermit<Bytes>);

impl Room {
    pub(crate) fn send(self, piece: Bytes) {
        self.0.send(piece);
    }
}

#[derive(Deserialize)]
struct ErrorLine {
    error: RpcError,
}

fn parse(endpoint: &Endpoint, line: &[u8]) -> Result<Line, StreamError> {
    #[derive(Deserialize)]
    struct MaybeError {
        #[serde(default)]
        error: Option<RpcError>,
    }
    let garbled = |e: serde_json::Error| StreamError::Garbled {
        endpoint: endpoint.clone(),
        why: format!("not a line of the stream: {e}{}", rpc::excerpt(line)),
    };
    // The common case first, so that it is parsed once.
    let acked: Acked = serde_json::from_slice(line).map_err(garbled)?;
    if acked.index != 0 {
        return Ok(Line::Acked(acked));
    }
    let line: MaybeError = serde_json::from_slice(line).map_err(garbled)?;
    Ok(line.error.map_or(Line::Acked(acked), Line::Error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_results_or_errors() {
        let endpoint: Endpoint = "n1:7400".parse().expect("well-formed");
        let line = br#"{"height":7,"hash":"0x00","term":2,"index":9,"duplicate":true,"traceId":"x"}"#;
        match parse(&endpoint, line).expect("a line") {
            Line::Acked(a) => assert_eq!((a.height, a.term, a.index, a.duplicate), (7, 2, 9, true)),
            Line::Error(e) => panic!("{e}"),
        }
        let line = br#"{"error":{"code":-32033,"message":"m","data":{"kind":"refused","reason":"gap"}}}"#;
        match parse(&endpoint, line).expect("a line") {
            Line::Error(e) => assert!(e.is("gap")),
            Line::Acked(a) => panic!("{a:?}"),
        }
        assert!(parse(&endpoint, b"<html>").is_err());
    }
}
