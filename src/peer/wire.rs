//! Frames: how messages lie on a connection, and how they are read and written.
//!
//! [`Reader`] and [`Outbox`] each own one half of a connection. Both are polled, keep their state
//! between polls, and give up on a half that stopped moving. Know nothing of what is said.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};
use tokio_util::{
    codec::{Decoder, LengthDelimitedCodec},
    io::poll_read_buf,
};

use crate::types::proto::{self, FrameKind};

/// The only version there is.
pub(super) const VERSION: u8 = 1;

/// version, kind, id.
pub(super) const HEAD_BYTES: usize = 1 + 1 + 8;

const LENGTH_BYTES: usize = 4;

/// Bound of a frame until both sides know each other: no message of a handshake comes near.
pub(super) const HELLO_BYTES_MAX: usize = 4 << 10;

/// One read takes at least so much from the socket: many small frames cost one call.
const READ_BYTES: usize = 64 << 10;

/// A payload from here on is sent from where it lies; below, copying is cheaper than a segment.
const SEGMENT_BYTES_MIN: usize = 16 << 10;

/// Segments given to one write.
const SLICES_MAX: usize = 64;

/// A received frame. The payload is a slice of what was read.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) id: u64,
    pub(super) payload: Bytes,
}

impl Frame {
    /// `None`: a kind this node does not know.
    pub(super) fn kind(&self) -> Option<FrameKind> {
        FrameKind::try_from(i32::from(self.kind)).ok().filter(|kind| *kind != FrameKind::Unknown)
    }

    /// `bytes` fields of the message are slices of the payload.
    pub(super) fn decode<M: Message + Default>(self) -> Result<M, WireError> {
        M::decode(self.payload).map_err(|e| WireError::Malformed(e.to_string()))
    }
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("connection failed: {0}")]
    Io(io::Error),
    #[error("no byte moved for {0:?}")]
    Stalled(Duration),
    #[error("a frame exceeds {0} bytes")]
    TooLarge(usize),
    #[error("frame version {0} is not known here")]
    Version(u8),
    #[error("malformed: {0}")]
    Malformed(String),
    #[error("corrupt: {0}")]
    Corrupt(String),
}

/// The half that is read.
pub(super) struct Reader<R> {
    io: R,
    codec: LengthDelimitedCodec,
    frame_bytes_max: usize,
    buf: BytesMut,
    /// A frame has begun and is not complete.
    is_partial: bool,
    stall: Stall,
    bytes: prometheus::IntCounter,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R, frame_bytes_max: usize, stall_timeout: Duration) -> Self {
        Self {
            io,
            codec: codec(frame_bytes_max),
            frame_bytes_max,
            buf: BytesMut::new(),
            is_partial: false,
            stall: Stall::new(stall_timeout),
            bytes: uncounted(),
        }
    }

    pub(super) fn admit(&mut self, frame_bytes_max: usize, bytes: prometheus::IntCounter) {
        self.codec.set_max_frame_length(frame_bytes_max);
        self.frame_bytes_max = frame_bytes_max;
        bytes.inc_by(self.bytes.get());
        self.bytes = bytes;
    }

    /// Safe to drop: nothing that was read is lost.
    pub(super) async fn next(&mut self) -> Result<Frame, WireError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`WireError::Closed`] only between two frames.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, WireError>> {
        loop {
            if let Some(frame) = self.decode()? {
                return Poll::Ready(Ok(frame));
            }
            self.make_room();
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.buf) {
                Poll::Ready(Ok(0)) if !self.is_partial => return Poll::Ready(Err(WireError::Closed)),
                Poll::Ready(Ok(0)) => {
                    let cut = io::Error::new(io::ErrorKind::UnexpectedEof, "closed within a frame");
                    return Poll::Ready(Err(WireError::Io(cut)));
                }
                Poll::Ready(Ok(n)) => {
                    self.bytes.inc_by(n as u64);
                    self.stall.moved();
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(WireError::Io(e))),
                Poll::Pending if self.is_partial => return self.stall.poll(cx).map(Err),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The codec makes room for a whole frame as soon as it knows its length: growing the buffer then
    /// would only copy what is there of it.
    fn make_room(&mut self) {
        let room = self.buf.capacity() - self.buf.len();
        if room == 0 || (room < READ_BYTES / 4 && self.buf.len() < READ_BYTES) {
            self.buf.reserve(READ_BYTES);
        }
    }

    fn decode(&mut self) -> Result<Option<Frame>, WireError> {
        let unread = self.buf.len();
        let Some(body) = self.codec.decode(&mut self.buf).map_err(|e| self.reading_error(e))? else {
            // The codec takes the length out of the buffer as soon as it is there.
            self.is_partial |= 0 < unread;
            return Ok(None);
        };
        self.is_partial = false;
        let mut body = body.freeze();
        if body.len() < HEAD_BYTES {
            return Err(WireError::Malformed(format!("a frame of {} bytes has no head", body.len())));
        }
        let version = body.get_u8();
        if version != VERSION {
            return Err(WireError::Version(version));
        }
        let kind = body.get_u8();
        let id = body.get_u64();
        Ok(Some(Frame { kind, id, payload: body }))
    }

    fn reading_error(&self, error: io::Error) -> WireError {
        match error.kind() {
            io::ErrorKind::InvalidData => WireError::TooLarge(self.frame_bytes_max),
            _ => WireError::Io(error),
        }
    }
}

/// The half that is written: frames queued here leave together.
pub(super) struct Outbox<W> {
    io: W,
    segments: VecDeque<Bytes>,
    /// Follows the segments.
    tail: BytesMut,
    queued_bytes: usize,
    stall: Stall,
    bytes: prometheus::IntCounter,
    /// Counts the same from some moment on.
    also: Option<prometheus::IntCounter>,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(super) fn new(io: W, stall_timeout: Duration) -> Self {
        Self {
            io,
            segments: VecDeque::new(),
            tail: BytesMut::new(),
            queued_bytes: 0,
            stall: Stall::new(stall_timeout),
            bytes: uncounted(),
            also: None,
        }
    }

    pub(super) fn admit(&mut self, bytes: prometheus::IntCounter) {
        bytes.inc_by(self.bytes.get());
        self.bytes = bytes;
    }

    /// What is written from here on is counted there too.
    pub(super) fn count_also(&mut self, bytes: prometheus::IntCounter) {
        self.also = Some(bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued_bytes == 0
    }

    pub(super) fn put<M: Message>(&mut self, kind: FrameKind, id: u64, message: &M) {
        let payload_bytes = message.encoded_len();
        message.encode_raw(self.frame(kind, id, payload_bytes, payload_bytes).tail());
    }

    pub(super) fn put_empty(&mut self, kind: FrameKind, id: u64) {
        self.frame(kind, id, 0, 0);
    }

    pub(super) fn put_encoded(&mut self, kind: FrameKind, id: u64, payload: &Bytes) {
        self.frame(kind, id, payload.len(), inline_bytes(payload)).put_bytes(payload);
    }

    /// Begins a frame whose payload has exactly `payload_bytes`, which the caller writes; of these
    /// about `inline_bytes` are copied.
    pub(super) fn frame(
        &mut self,
        kind: FrameKind,
        id: u64,
        payload_bytes: usize,
        inline_bytes: usize,
    ) -> FrameWriter<'_, W> {
        if self.is_empty() {
            self.stall.moved();
        }
        let body_bytes = HEAD_BYTES + payload_bytes;
        self.queued_bytes += LENGTH_BYTES + body_bytes;
        self.tail.reserve(LENGTH_BYTES + HEAD_BYTES + inline_bytes);
        self.tail.put_u32(u32::try_from(body_bytes).expect("frames are bounded far below 4 GiB"));
        self.tail.put_u8(VERSION);
        self.tail.put_u8(kind as u8);
        self.tail.put_u64(id);
        FrameWriter { outbox: self }
    }

    /// Safe to drop: what was not written stays queued.
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while !self.is_empty() {
            if self.segments.is_empty() {
                self.segments.push_back(self.tail.split().freeze());
            } else if !self.tail.is_empty() {
                let tail = self.tail.split().freeze();
                self.segments.push_back(tail);
            }
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let n_slices = self.segments.len().min(SLICES_MAX);
            for (slice, segment) in slices.iter_mut().zip(&self.segments) {
                *slice = IoSlice::new(segment);
            }
            match Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..n_slices]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(WireError::Closed)),
                Poll::Ready(Ok(n)) => self.wrote(n),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(WireError::Io(e))),
                Poll::Pending => return self.stall.poll(cx).map(Err),
            }
        }
        // A socket holds nothing back: flushing it is for wrappers that do.
        Poll::Ready(ready!(Pin::new(&mut self.io).poll_flush(cx)).map_err(WireError::Io))
    }

    fn wrote(&mut self, n: usize) {
        self.bytes.inc_by(n as u64);
        if let Some(also) = &self.also {
            also.inc_by(n as u64);
        }
        self.queued_bytes -= n;
        self.stall.moved();
        let mut left = n;
        while 0 < left {
            let first = self.segments.front_mut().expect("no more is written than was queued");
            if first.len() <= left {
                left -= first.len();
                self.segments.pop_front();
            } else {
                first.advance(left);
                left = 0;
            }
        }
    }
}

/// Writes the payload of one frame.
pub(super) struct FrameWriter<'a, W> {
    outbox: &'a mut Outbox<W>,
}

impl<'a, W> FrameWriter<'a, W> {
    pub(super) fn tail(self) -> &'a mut BytesMut {
        &mut self.outbox.tail
    }

    pub(super) fn inline(&mut self) -> &mut BytesMut {
        &mut self.outbox.tail
    }

    /// A large one is not copied.
    pub(super) fn put_bytes(&mut self, bytes: &Bytes) {
        if 0 < inline_bytes(bytes) || bytes.is_empty() {
            self.outbox.tail.extend_from_slice(bytes);
            return;
        }
        let before = self.outbox.tail.split().freeze();
        self.outbox.segments.push_back(before);
        self.outbox.segments.push_back(bytes.clone());
    }
}

/// How many of these bytes are copied when they are sent.
pub(super) fn inline_bytes(bytes: &Bytes) -> usize {
    if bytes.len() < SEGMENT_BYTES_MIN { bytes.len() } else { 0 }
}

/// Tells when a half did not move for too long.
struct Stall {
    after: Duration,
    moved_at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    fn new(after: Duration) -> Self {
        Self { after, moved_at: Instant::now(), timer: None }
    }

    fn moved(&mut self) {
        self.moved_at = Instant::now();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<WireError> {
        let deadline = self.moved_at + self.after;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // Moving the timer only when it fires keeps a busy connection from touching it.
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(WireError::Stalled(self.after));
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// One message that takes the place of an answer.
pub(super) fn error(code: proto::ErrorCode, reason: impl Into<String>) -> proto::Error {
    proto::Error { code: code as i32, reason: reason.into(), version: 0 }
}

fn codec(frame_bytes_max: usize) -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_type::<u32>().max_frame_length(frame_bytes_max).new_codec()
}

/// Counts until the connection is admitted and belongs to somebody.
pub(super) fn uncounted() -> prometheus::IntCounter {
    prometheus::IntCounter::new("uncounted", "Never registered.").expect("the name is valid")
}
