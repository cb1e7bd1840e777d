//! Reading a request's body: bounded in bytes and in time.

use std::{
    error::Error as _,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, Request, header};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest silence between two pieces of a body.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Longest time for a whole body. By eye: 32 MiB over a slow line of 10 Mbit/s.
const WHOLE_MAX: Duration = Duration::from_secs(30);
/// Bodies up to this size cost nothing of the budget: as much as a connection's own buffer holds.
const FREE_BYTES: u64 = 64 << 10;
/// What one permit of the budget stands for.
pub(crate) const BUDGET_UNIT: u64 = 64 << 10;
/// What is read and thrown away of a body that nobody wants, so that the answer is not lost in a reset.
const DISCARD_BYTES_MAX: usize = 1 << 20;
const DISCARD_FOR: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body is over the limit")]
    TooLarge,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("too many large bodies are being read")]
    NoRoom,
    #[error("the connection broke")]
    Broken,
}

/// Why there is no next piece of a body that is a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body is not framed as its Transfer-Encoding says")]
    Malformed,
    /// Most often nobody is there to be told.
    #[error("the body broke off before its end")]
    Broken,
}

/// The length that the request states.
pub(crate) fn stated_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Room in the budget, growing with what is read where the length is not stated.
struct Room {
    /// None: the caller has made room by itself.
    budget: Option<Arc<Semaphore>>,
    bytes: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn grow_to(&mut self, bytes: u64) -> Result<(), BodyError> {
        let Some(budget) = &self.budget else { return Ok(()) };
        if bytes <= self.bytes {
            return Ok(());
        }
        let units =
            u32::try_from((bytes - self.bytes).div_ceil(BUDGET_UNIT)).map_err(|_| BodyError::TooLarge)?;
        let more = budget.clone().try_acquire_many_owned(units).map_err(|_| BodyError::NoRoom)?;
        self.bytes += u64::from(units) * BUDGET_UNIT;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// Reads all of it, and gives the room it takes beside it. One chunk is handed on as it is; more are put
/// together in one copy.
pub(crate) async fn read(
    mut body: Incoming,
    stated: Option<u64>,
    limit: u64,
    budget: Option<&Arc<Semaphore>>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), BodyError> {
    let mut room = Room { budget: budget.cloned(), bytes: FREE_BYTES, permit: None };
    let whole = async {
        if let Some(bytes) = stated {
            if limit < bytes {
                return Err(BodyError::TooLarge);
            }
            room.grow_to(bytes)?;
        }
        tokio::time::timeout(WHOLE_MAX, gather(&mut body, stated, limit, &mut room))
            .await
            .unwrap_or(Err(BodyError::TooSlow))
    }
    .await;
    match whole {
        Ok(bytes) => Ok((bytes, room.permit)),
        Err(e) => {
            drain(body);
            Err(e)
        }
    }
}

async fn gather(
    body: &mut Incoming,
    stated: Option<u64>,
    limit: u64,
    room: &mut Room,
) -> Result<Bytes, BodyError> {
    let Some(first) = next(body).await? else { return Ok(Bytes::new()) };
    let mut bytes = first.len() as u64;
    if body.is_end_stream() || stated == Some(bytes) {
        return if limit < bytes { Err(BodyError::TooLarge) } else { Ok(first) };
    }
    let mut all = BytesMut::with_capacity(stated.unwrap_or(0).max(bytes) as usize);
    all.extend_from_slice(&first);
    drop(first);
    while let Some(chunk) = next(body).await? {
        bytes += chunk.len() as u64;
        if limit < bytes {
            return Err(BodyError::TooLarge);
        }
        room.grow_to(bytes)?;
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

async fn next(body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
    let next = tokio::time::timeout(SILENCE_MAX, data(body)).await.map_err(|_| BodyError::TooSlow)?;
    next.map_err(|_| BodyError::Broken)
}

/// The next piece of a body that is a stream. While a part of it has begun, at `since`, and is not whole, that
/// is bounded as a body is that has a single part; between two parts it may be silent as it likes.
pub(crate) async fn next_of_stream(
    body: &mut Incoming,
    since: Option<Instant>,
) -> Result<Option<Bytes>, StreamError> {
    let next = match since {
        None => data(body).await,
        Some(since) => {
            let until = (since + WHOLE_MAX).min(Instant::now() + SILENCE_MAX);
            let next = tokio::time::timeout_at(until.into(), data(body)).await;
            next.map_err(|_| StreamError::TooSlow)?
        }
    };
    next.map_err(|e| {
        let cause = e.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        match cause {
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => StreamError::Malformed,
            Some(_) | None => StreamError::Broken,
        }
    })
}

async fn data(body: &mut Incoming) -> hyper::Result<Option<Bytes>> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(e)) => return Err(e),
            // Trailers are of no interest.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Lets a refused request's body run into nothing for a moment: a socket that is closed with unread bytes
/// is reset, and the reset can overtake the answer.
pub(crate) fn discard(headers: &HeaderMap, body: Incoming) {
    // Who expects to be told before it sends is told no by the answer.
    if !headers.contains_key(header::EXPECT) {
        drain(body);
    }
}

/// Whether all of a body that is discarded is read, so that its connection can go on.
pub(crate) fn is_drained(headers: &HeaderMap) -> bool {
    let is_short = stated_length(headers).is_some_and(|bytes| bytes <= DISCARD_BYTES_MAX as u64);
    is_short && !headers.contains_key(header::EXPECT)
}

/// As [`discard`], of a whole request.
pub(crate) fn refuse(request: Request<Incoming>) {
    let (head, body) = request.into_parts();
    discard(&head.headers, body);
}

/// As [`discard`], of a body whose sending has begun.
pub(crate) fn drain(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DISCARD_FOR, async move {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if DISCARD_BYTES_MAX < seen {
                break;
            }
        }
    }));
}
