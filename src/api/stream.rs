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
    time::Instant,
};

use axum::{
    body::Body,
    http::{HeaderValue, Request, Response, header},
};
use bytes::{BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::api::blocks::Terms;
use crate::api::error::Fault;
use crate::api::framing::{Framing, FramingError};
use crate::api::http::{Front, plain_fault};
use crate::api::wire::Acknowledged;
use crate::api::{Api, blocks, body};
use crate::proposals;
use crate::proposals::Lane;
use crate::proposals::Permit;
use crate::types::error::{Accepted, ProposeError};

/// Blocks of one stream that wait for their outcome; then the body is not read on. As
/// `api.max_in_flight`, which bounds them all.
const IN_FLIGHT_MAX: usize = 4_096;
/// Lines that go out in one piece. By eye: some hundred of them.
const PIECE_BYTES: usize = 32 << 10;

type Outcome = Result<Accepted, ProposeError>;

/// A block on its way, and when its outcome is called unknown.
struct Waiting {
    outcome: oneshot::Receiver<Outcome>,
    deadline: Instant,
    unknown: ProposeError,
}

/// Waits for an outcome as the proposals do it; none: a block before it was refused, and it was not taken.
type Wait = Box<dyn Fn(Waiting) -> BoxFuture<'static, Option<Outcome>> + Send>;

/// What becomes a line.
enum Line {
    Waiting(Waiting),
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
}

pub(crate) fn serve(front: Arc<Front>, request: Request<Incoming>) -> Response<Body> {
    let (head, incoming) = request.into_parts();
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
    let (lines_tx, lines_rx) = mpsc::channel(IN_FLIGHT_MAX);
    let shared = Arc::new(Shared {
        is_over: CancellationToken::new(),
        n_written: AtomicU64::new(0),
        progress: Notify::new(),
    });
    let lane = Lane::default();
    let reader =
        Reader { api: api.clone(), terms, lines_tx, shared: shared.clone(), lane: lane.clone(), n_taken: 0 };
    api.tasks.spawn(reader.run(incoming));
    let proposals = api.parts.proposals.clone();
    let lines = Lines::new(
        lines_rx,
        shared,
        Box::new(move |w: Waiting| {
            let (proposals, lane) = (proposals.clone(), lane.clone());
            Box::pin(async move { proposals.await_in_lane(w.outcome, w.deadline, w.unknown, &lane).await })
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
}

/// Nothing more is taken.
struct Over;

impl Reader {
    async fn run(mut self, mut incoming: Incoming) {
        let mut framing = Framing::default();
        let is_over = self.shared.is_over.clone();
        loop {
            let frame = tokio::select! {
                biased;
                () = is_over.cancelled() => break,
                () = self.api.stop.cancelled() => {
                    let _ = self.end(Fault::shutting_down()).await;
                    break;
                }
                frame = incoming.frame() => frame,
            };
            let chunk = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    Err(_trailers) => continue,
                },
                // The client is gone: what was handed over goes on, and nobody reads the lines.
                Some(Err(_)) => return,
                None => {
                    if !framing.is_between() {
                        let _ = self.end(Fault::param("block", "the body ends inside a block")).await;
                    }
                    return;
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
            let max = blocks::message_bytes_max(&self.api);
            match framing.next(max) {
                Ok(Some(message)) => self.take(message, received).await?,
                Ok(None) => return Ok(()),
                Err(FramingError::TooLarge { bytes, max }) => {
                    return self.end(blocks::too_large(bytes, max)).await;
                }
                Err(e @ FramingError::Length) => return self.end(Fault::param("block", e.to_string())).await,
            }
        }
    }

    async fn take(&mut self, message: Bytes, received: Instant) -> Result<(), Over> {
        let bytes = message.len() as u64;
        let block = match blocks::decode(message) {
            Ok(block) => block,
            Err(fault) => return self.end(fault).await,
        };
        let permit = match self.admit(bytes).await {
            Ok(permit) => permit,
            Err(Some(fault)) => return self.end(fault).await,
            Err(None) => return Err(Over),
        };
        if self.shared.is_over.is_cancelled() {
            return Err(Over);
        }
        let proposals = &self.api.parts.proposals;
        let unknown = proposals::handle::unknown_of(&block);
        let proposal = self.terms.streamed(block, received, &self.api.parts.instants);
        let deadline = received + proposals.timeout_of(&proposal);
        let mut outcome = proposals.submit(proposal, permit, &self.lane).await;
        self.n_taken += 1;
        // A refusal that is known at once keeps the block behind it from being taken.
        let line = match try_outcome(&mut outcome) {
            Some(outcome) => Line::Done(outcome),
            None => Line::Waiting(Waiting { outcome, deadline, unknown }),
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
            match self.api.parts.proposals.admit(bytes) {
                Err(ProposeError::Overloaded { .. })
                    if self.shared.n_written.load(Ordering::Acquire) < self.n_taken => {}
                outcome => return outcome.map_err(|e| Some(e.into())),
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
        let _ = self.lines_tx.send(Line::Fault(fault)).await;
        Err(Over)
    }
}

/// An outcome that is there already. A receiver that was asked after its sender is gone must not be
/// awaited any more, so an empty one is not asked.
fn try_outcome(outcome: &mut oneshot::Receiver<Outcome>) -> Option<Outcome> {
    if outcome.is_empty() { None } else { outcome.try_recv().ok() }
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
    New(Waiting),
    Waited(BoxFuture<'static, Option<Outcome>>),
}

impl Lines {
    fn new(lines_rx: mpsc::Receiver<Line>, shared: Arc<Shared>, wait: Wait) -> Self {
        Self { lines_rx, shared, front: None, wait, buffer: BytesMut::new(), has_ended: false }
    }

    fn poll_front(&mut self, front: Turn, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let mut waited = match front {
            Turn::Waited(waited) => waited,
            Turn::New(mut waiting) => match try_outcome(&mut waiting.outcome) {
                Some(outcome) => return Poll::Ready(Some(outcome)),
                None => (self.wait)(waiting),
            },
        };
        let polled = waited.as_mut().poll(cx);
        if polled.is_pending() {
            self.front = Some(Turn::Waited(waited));
        }
        polled
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
                    self.write(outcome.map_err(Fault::from));
                }
                continue;
            }
            match std::task::ready!(self.lines_rx.poll_recv(cx)) {
                Some(Line::Waiting(waiting)) => self.front = Some(Turn::New(waiting)),
                Some(Line::Done(outcome)) => self.write(outcome.map_err(Fault::from)),
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

    use super::*;

    fn lines() -> (mpsc::Sender<Line>, Lines) {
        let (lines_tx, lines_rx) = mpsc::channel(8);
        let shared = Arc::new(Shared {
            is_over: CancellationToken::new(),
            n_written: AtomicU64::new(0),
            progress: Notify::new(),
        });
        let wait: Wait = Box::new(|w: Waiting| {
            Box::pin(async move {
                match tokio::time::timeout_at(w.deadline.into(), w.outcome).await {
                    Ok(Ok(outcome)) => Some(outcome),
                    Ok(Err(_)) | Err(_) => Some(Err(w.unknown)),
                }
            })
        });
        (lines_tx, Lines::new(lines_rx, shared, wait))
    }

    fn waiting(outcome: oneshot::Receiver<Outcome>, within: Duration) -> Line {
        let unknown = ProposeError::Timeout { height: 1, hash: Bytes::new(), term: None, index: None };
        Line::Waiting(Waiting { outcome, deadline: Instant::now() + within, unknown })
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
        let (first_tx, first) = oneshot::channel();
        let (second_tx, second) = oneshot::channel();
        lines_tx.send(waiting(first, LONG)).await.unwrap();
        lines_tx.send(waiting(second, LONG)).await.unwrap();
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
        let (_outcome_tx, outcome) = oneshot::channel();
        lines_tx.send(waiting(outcome, Duration::ZERO)).await.unwrap();
        let piece = lines.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&piece).unwrap();
        assert!(text.contains(r#""code":-32035"#) && text.contains(r#""kind":"unknown""#), "{text}");
        assert!(lines.shared.is_over.is_cancelled());
    }
}
