//! `POST /v1/blocks/stream`: blocks in the order sent, without waiting for each other.
//!
//! Two halves. A task reads the body and hands each whole block to the proposals, in order; it outlives a
//! client that goes away. The answer's body writes one line a block, in the same order, as outcomes come;
//! what is ready goes out in one piece. After the first refusal no further block is taken.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{HeaderValue, Request, Response, header},
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use hyper::body::{Frame, Incoming};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::api::blocks::Terms;
use crate::api::body::StreamError;
use crate::api::error::{Code, Fault, TOO_LARGE};
use crate::api::framing::{Framing, FramingError};
use crate::api::http::{Front, plain_fault};
use crate::api::metrics::Rejected;
use crate::api::wire::Acknowledged;
use crate::api::{Api, blocks, body};
use crate::proposals::Lane;
use crate::proposals::Permit;
use crate::proposals::Underway;
use crate::types::error::{Accepted, ProposeError};

/// Blocks of one stream that wait for their outcome; then the body is not read on. As
/// `api.max_in_flight`, which bounds them all.
const IN_FLIGHT_MAX: usize = 4_096;
/// Lines that go out in one piece. By eye: some hundred of them.
const PIECE_BYTES: usize = 32 << 10;
/// The path of the route.
pub(crate) const PATH: &str = "/v1/blocks/stream";
/// How long the answer's head is kept back from a client that waits for `100 Continue`: it is sent when the
/// body is asked for, and never behind a head. By eye: for a client that sends nothing then.
const CONTINUE_FOR: Duration = Duration::from_secs(1);

type Outcome = Result<Accepted, ProposeError>;

/// Of the body; none behind its end.
type Piece = Result<Option<Bytes>, StreamError>;

/// Waits for an outcome as the proposals do it; none: a block before it was refused, and it was not taken.
type Wait = Box<dyn Fn(Underway) -> BoxFuture<'static, Option<Outcome>> + Send>;

/// What becomes a line.
enum Line {
    Waiting(Underway),
    Done(Outcome),
    /// Not of a block: the last line.
    Fault(Fault),
}

/// What the two halves tell each other beside the lines.
struct Shared {
    /// An answer was a refusal: nothing more is taken.
    is_over: CancellationToken,
    /// Lines written.
    n_written: AtomicU64,
    /// Something was written.
    progress: Notify,
    /// Counts what a block was refused for that no outcome of a proposal stands for.
    refused: Refused,
}

type Refused = Box<dyn Fn(&Fault) + Send + Sync>;

/// The answer as a whole is a 200. What has another code was counted where it was found.
fn count_refused(api: &Arc<Api>) -> Refused {
    let api = Arc::clone(api);
    Box::new(move |fault| {
        if fault.code == Code::InvalidParams {
            let is_too_large = fault.data.reason == Some(TOO_LARGE);
            let reason = if is_too_large { Rejected::BodyTooLarge } else { Rejected::Malformed };
            api.parts.metrics.reject(reason);
        }
    })
}

/// A piece of the body that was read before the route was asked.
#[derive(Clone)]
struct First(Piece);

/// Asks for the body of a client that expects to be told before it sends any, and keeps its first piece.
pub(crate) async fn expected(mut request: Request<Incoming>) -> Request<Incoming> {
    let headers = request.headers();
    // Who is refused is told no by the answer.
    let is_taken = || blocks::is_protobuf(headers) && Terms::from_headers(headers).is_ok();
    if !headers.contains_key(header::EXPECT) || !is_taken() {
        return request;
    }
    let first = body::next_of_stream(request.body_mut(), None);
    if let Ok(first) = tokio::time::timeout(CONTINUE_FOR, first).await {
        request.extensions_mut().insert(First(first));
    }
    request
}

pub(crate) fn serve(front: Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let (mut head, incoming) = request.into_parts();
    let api = front.api.clone();
    if let Some(refused) = blocks::refuse_media(&api, &head.headers) {
        body::discard(&head.headers, incoming);
        return refused;
    }
    let terms = match Terms::from_headers(&head.headers) {
        Ok(terms) => terms,
        Err(fault) => {
            body::discard(&head.headers, incoming);
            return plain_fault(&fault);
        }
    };
    let first = head.extensions.remove::<First>().map(|first| first.0);
    let (lines_tx, lines_rx) = mpsc::channel(IN_FLIGHT_MAX);
    let shared = Arc::new(Shared {
        is_over: CancellationToken::new(),
        n_written: AtomicU64::new(0),
        progress: Notify::new(),
        refused: count_refused(&api),
    });
    let lane = Lane::default();
    let reader = Reader {
        api: api.clone(),
        terms,
        lines_tx,
        shared: shared.clone(),
        lane: lane.clone(),
        n_taken: 0,
        room: None,
        half_since: None,
    };
    api.tasks.spawn(reader.run(first, incoming));
    let proposals = api.parts.proposals.clone();
    let lines = Lines::new(
        lines_rx,
        shared,
        Box::new(move |underway| {
            let (proposals, lane) = (proposals.clone(), lane.clone());
            Box::pin(async move { proposals.await_in_lane(underway, &lane).await })
        }),
    );
    let mut answer = Response::new(Body::new(lines));
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    // A proxy passes each line on as it comes.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// The half that reads.
struct Reader {
    api: Arc<Api>,
    terms: Terms,
    lines_tx: mpsc::Sender<Line>,
    shared: Arc<Shared>,
    lane: Lane,
    n_taken: u64,
    /// For the block that is being read: taken once its length is known, before its bytes are kept.
    room: Option<Permit>,
    /// Since when a block, or its length, is there in part.
    half_since: Option<Instant>,
}

/// Nothing more is taken.
struct Over;

impl Reader {
    async fn run(mut self, mut first: Option<Piece>, mut incoming: Incoming) {
        let mut framing = Framing::default();
        let is_over = self.shared.is_over.clone();
        loop {
            let piece = tokio::select! {
                biased;
                () = is_over.cancelled() => break,
                () = self.api.stop.cancelled() => {
                    let _ = self.end(Fault::shutting_down()).await;
                    break;
                }
                piece = async {
                    match first.take() {
                        Some(first) => first,
                        None => body::next_of_stream(&mut incoming, self.half_since).await,
                    }
                } => piece,
            };
            let chunk = match piece {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    if !framing.is_between() {
                        let _ = self.end(Fault::param("block", "the body ends inside a block")).await;
                    }
                    return;
                }
                Err(e) => {
                    match e {
                        StreamError::TooSlow => self.api.parts.metrics.reject(Rejected::BodyTimeout),
                        StreamError::Malformed => self.api.parts.metrics.reject(Rejected::Malformed),
                        // A client that is gone was turned away by nobody: what was handed over goes on.
                        StreamError::Broken => {}
                    }
                    let _ = self.end(Fault::new(Code::InvalidRequest, e.to_string())).await;
                    break;
                }
            };
            framing.push(chunk);
            if self.take_all(&mut framing).await.is_err() {
                break;
            }
        }
        // The lines end when this half lets go of them.
        drop(self);
        body::drain(incoming);
    }

    async fn take_all(&mut self, framing: &mut Framing) -> Result<(), Over> {
        let received = Instant::now();
        loop {
            let length = match framing.length(blocks::message_bytes_max(&self.api)) {
                Ok(length) => length,
                Err(FramingError::TooLarge { bytes, max }) => {
                    return self.end(blocks::too_large(bytes, max)).await;
                }
                Err(e @ FramingError::Length) => return self.end(Fault::param("block", e.to_string())).await,
            };
            if let Some(bytes) = length
                && self.room.is_none()
            {
                self.room = match self.admit(bytes as u64).await {
                    Ok(room) => Some(room),
                    Err(Some(fault)) => return self.end(fault).await,
                    Err(None) => return Err(Over),
                };
            }
            let Some(message) = framing.message() else { break };
            let room = self.room.take().expect("it was taken when the length was known");
            self.half_since = None;
            self.take(message, room, received).await?;
        }
        if !framing.is_between() {
            self.half_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    async fn take(&mut self, message: Bytes, room: Permit, received: Instant) -> Result<(), Over> {
        let block = match blocks::decode(message) {
            Ok(block) => block,
            Err(fault) => return self.end(fault).await,
        };
        if self.shared.is_over.is_cancelled() {
            return Err(Over);
        }
        let proposal = self.terms.streamed(block, received, &self.api.parts.instants);
        let mut underway = self.api.parts.proposals.submit(proposal, room, &self.lane).await;
        self.n_taken += 1;
        // A refusal that is known at once keeps the block behind it from being taken.
        let line = match underway.try_outcome() {
            Some(outcome) => Line::Done(outcome),
            None => Line::Waiting(underway),
        };
        let is_refused = matches!(line, Line::Done(Err(_)));
        self.lines_tx.send(line).await.map_err(|_| Over)?;
        if is_refused { Err(Over) } else { Ok(()) }
    }

    /// Room for one more. A stream that is itself what fills the node waits for its own outcomes: that is
    /// how a fast producer is slowed down. `Err(None)`: the stream is over meanwhile.
    async fn admit(&self, bytes: u64) -> Result<Permit, Option<Fault>> {
        loop {
            let progress = self.shared.progress.notified();
            if let Some(room) = self.api.parts.proposals.try_admit(bytes) {
                return Ok(room);
            }
            if self.n_taken <= self.shared.n_written.load(Ordering::Acquire) {
                return self.api.parts.proposals.admit(bytes).map_err(|e| Some(e.into()));
            }
            tokio::select! {
                () = progress => {}
                () = self.shared.is_over.cancelled() => return Err(None),
                () = self.lines_tx.closed() => return Err(None),
            }
        }
    }

    /// Says why, as the last line.
    async fn end(&self, fault: Fault) -> Result<(), Over> {
        (self.shared.refused)(&fault);
        let _ = self.lines_tx.send(Line::Fault(fault)).await;
        Err(Over)
    }
}

/// The half that writes: the answer's body.
struct Lines {
    lines_rx: mpsc::Receiver<Line>,
    shared: Arc<Shared>,
    /// The line whose turn it is.
    front: Option<Turn>,
    wait: Wait,
    buffer: BytesMut,
    has_ended: bool,
}

/// Most outcomes are there when their turn comes; the others are waited for, with a deadline.
enum Turn {
    New(Underway),
    Waited(BoxFuture<'static, Option<Outcome>>),
}

impl Lines {
    fn new(lines_rx: mpsc::Receiver<Line>, shared: Arc<Shared>, wait: Wait) -> Self {
        Self { lines_rx, shared, front: None, wait, buffer: BytesMut::new(), has_ended: false }
    }

    fn poll_front(&mut self, front: Turn, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let mut waited = match front {
            Turn::Waited(waited) => waited,
            Turn::New(mut underway) => match underway.try_outcome() {
                Some(outcome) => return Poll::Ready(Some(outcome)),
                None => (self.wait)(underway),
            },
        };
        let polled = waited.as_mut().poll(cx);
        if polled.is_pending() {
            self.front = Some(Turn::Waited(waited));
        }
        polled
    }

    fn write_outcome(&mut self, outcome: Outcome) {
        let outcome = outcome.map_err(Fault::from);
        if let Err(fault) = &outcome {
            (self.shared.refused)(fault);
        }
        self.write(outcome);
    }

    fn write(&mut self, outcome: Result<Accepted, Fault>) {
        match outcome {
            Ok(accepted) => {
                serde_json::to_writer((&mut self.buffer).writer(), &Acknowledged::from(accepted))
                    .expect("an answer has string keys, and a buffer in memory takes it");
            }
            Err(fault) => {
                self.shared.is_over.cancel();
                self.buffer.put_slice(fault.to_plain().as_bytes());
            }
        }
        self.buffer.put_u8(b'\n');
        self.shared.n_written.fetch_add(1, Ordering::Release);
    }

    /// Writes what is ready. Pending: the next line is not.
    fn poll_lines(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.buffer.len() < PIECE_BYTES && !self.has_ended {
            if let Some(front) = self.front.take() {
                if let Some(outcome) = std::task::ready!(self.poll_front(front, cx)) {
                    self.write_outcome(outcome);
                }
                continue;
            }
            match std::task::ready!(self.lines_rx.poll_recv(cx)) {
                Some(Line::Waiting(underway)) => self.front = Some(Turn::New(underway)),
                Some(Line::Done(outcome)) => self.write_outcome(outcome),
                Some(Line::Fault(fault)) => self.write(Err(fault)),
                None => self.has_ended = true,
            }
        }
        Poll::Ready(())
    }
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let is_pending = self.poll_lines(cx).is_pending();
        if !self.buffer.is_empty() {
            self.shared.progress.notify_one();
            return Poll::Ready(Some(Ok(Frame::data(self.buffer.split().freeze()))));
        }
        if is_pending { Poll::Pending } else { Poll::Ready(None) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::sync::oneshot;

    use super::*;

    fn lines() -> (mpsc::Sender<Line>, Lines) {
        let (lines_tx, lines_rx) = mpsc::channel(8);
        let shared = Arc::new(Shared {
            is_over: CancellationToken::new(),
            n_written: AtomicU64::new(0),
            progress: Notify::new(),
            refused: Box::new(|_| {}),
        });
        let wait: Wait = Box::new(|mut underway| {
            Box::pin(async move {
                match underway.wait(|_, _| {}).await {
                    None => Some(Err(underway.unknown())),
                    outcome => outcome,
                }
            })
        });
        (lines_tx, Lines::new(lines_rx, shared, wait))
    }

    /// The line of a block, and who is to answer it.
    fn waiting(height: u64, within: Duration) -> (oneshot::Sender<Outcome>, Line) {
        let (tx, underway) = Underway::of(height, Instant::now() + within);
        (tx, Line::Waiting(underway))
    }

    const LONG: Duration = Duration::from_secs(60);

    fn accepted(height: u64) -> Outcome {
        Ok(Accepted {
            height,
            hash: Bytes::from_static(b"h"),
            term: 1,
            index: height,
            duplicate: false,
            trace_id: None,
        })
    }

    fn heights(piece: &Bytes) -> Vec<u64> {
        let text = std::str::from_utf8(piece).unwrap();
        assert!(text.ends_with('\n'));
        text.lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["height"].as_u64().unwrap_or(0))
            .collect()
    }

    #[tokio::test]
    async fn lines_keep_the_order_and_go_out_together() {
        let (lines_tx, mut lines) = lines();
        let (first_tx, first) = waiting(1, LONG);
        let (second_tx, second) = waiting(2, LONG);
        lines_tx.send(first).await.unwrap();
        lines_tx.send(second).await.unwrap();
        lines_tx.send(Line::Done(accepted(3))).await.unwrap();
        second_tx.send(accepted(2)).unwrap();
        let frame = std::pin::pin!(lines.frame());
        assert!(futures::poll!(frame).is_pending(), "the first is not known yet");
        first_tx.send(accepted(1)).unwrap();
        let piece = lines.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(heights(&piece), [1, 2, 3]);
        drop(lines_tx);
        assert!(lines.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_refusal_ends_the_taking_and_what_is_under_way_is_answered() {
        let (lines_tx, mut lines) = lines();
        lines_tx.send(Line::Done(Err(ProposeError::NotReady))).await.unwrap();
        lines_tx.send(Line::Done(accepted(9))).await.unwrap();
        let over = lines.shared.is_over.clone();
        let piece = lines.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(over.is_cancelled());
        assert_eq!(heights(&piece), [0, 9]);
        assert!(piece.starts_with(br#"{"error":{"code":-32040,"#), "{piece:?}");
    }

    #[tokio::test]
    async fn an_outcome_that_does_not_come_is_unknown() {
        let (lines_tx, mut lines) = lines();
        let (_outcome_tx, line) = waiting(1, Duration::ZERO);
        lines_tx.send(line).await.unwrap();
        let piece = lines.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&piece).unwrap();
        assert!(text.contains(r#""code":-32035"#) && text.contains(r#""kind":"unknown""#), "{text}");
        assert!(lines.shared.is_over.is_cancelled());
    }
}
