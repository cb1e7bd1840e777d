//! `GET /v1/applied`: the feed as server-sent events.
//!
//! A browser that meets any status but 200 never comes back, and sees neither status nor body. So only what
//! the caller must change gets one; everything else is a stream that says why it ends. No blank line stands
//! anywhere but behind an event, for some readers take it for an empty one.

use std::{borrow::Cow, collections::HashSet, fmt::Write, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Query,
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, Version, header, request},
};
use bytes::Bytes;
use tokio::time::Instant;

use crate::api::error::{Code, Fault};
use crate::api::feed::ItemJson;
use crate::api::http::plain_fault;
use crate::api::metrics::Rejected;
use crate::api::socket::Connection;
use crate::api::{Api, args, feed, handlers};
use crate::feed::Channel;
use crate::feed::hub::Request;
use crate::feed::room::Charge;
use crate::feed::turns::Turns;
use crate::types::LogIndex;
use crate::types::feed::{EndReason, FeedItem, OnFull, StartAt, SubscribeError};

pub(crate) const PATH: &str = "/v1/applied";
/// Firefox gives a stream up that is silent for 5 s after any change of its machine's network.
const COMMENT_EVERY: Duration = Duration::from_secs(4);
/// When a reader comes back, and by how much that is spread, so that not all come back at once.
const RETRY_MS: u64 = 2_000;
const RETRY_SPREAD_MS: u64 = 500;
/// After a stop: a restart takes about a second.
const RETRY_STOPPED_MS: u64 = 5_000;
/// Bytes of an event above which an item comes without its content: aiohttp's reader takes 512 KiB.
const ITEM_BYTES: u64 = 384 << 10;
/// Events that are there go out together. By eye: some dozens of them.
const PIECE_BYTES: usize = 64 << 10;

/// Why a feed ends before it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Goodbye {
    NotReady,
    ShuttingDown,
    /// Names the bound that was met.
    Overloaded(Cow<'static, str>),
}

impl Goodbye {
    /// Of a request that was turned away; `None`: its sender must change something.
    pub(crate) fn of(reason: Rejected, fault: &Fault) -> Option<Self> {
        match reason {
            Rejected::ShuttingDown => Some(Self::ShuttingDown),
            Rejected::Connections | Rejected::RateLimit => Some(Self::Overloaded(fault.message.clone())),
            Rejected::Host
            | Rejected::Origin
            | Rejected::MediaType
            | Rejected::BodyTooLarge
            | Rejected::BodyTimeout
            | Rejected::BodyBudget
            | Rejected::Malformed
            | Rejected::WithoutId
            | Rejected::BatchTooLarge
            | Rejected::Upgrade
            | Rejected::NoRoute => None,
        }
    }
}

/// What is asked for.
struct Asked {
    request: Request,
    max_bytes: u64,
}

pub(crate) async fn applied(
    api: &Arc<Api>,
    connection: Arc<Connection>,
    head: &request::Parts,
) -> Response<Body> {
    let Asked { request, max_bytes } = match read(&head.uri, &head.headers) {
        Ok(asked) => asked,
        Err(fault) => return plain_fault(&fault),
    };
    let now = api.parts.leadership.now();
    if now.is_stopping || api.stop.is_cancelled() {
        return goodbye(head.version, Goodbye::ShuttingDown);
    }
    if !now.is_caught_up {
        return goodbye(head.version, Goodbye::NotReady);
    }
    if head.method == Method::HEAD {
        return answer(head.version, Body::empty());
    }
    match api.parts.feed.subscribe(request).await {
        Ok(subscription) => {
            let outlet = api.parts.feed.outlet(move || connection.end());
            let turns = Turns::new(subscription, outlet);
            let events = Events { turns, max_bytes, last_id: None, head: Some(retry(spread())) };
            let pieces = futures::stream::unfold(Some(events), |events| async {
                let (piece, events) = events?.next().await;
                Some((Ok::<_, std::convert::Infallible>(piece), events))
            });
            answer(head.version, Body::from_stream(pieces))
        }
        Err(SubscribeError::ShuttingDown) => goodbye(head.version, Goodbye::ShuttingDown),
        Err(error @ SubscribeError::TooMany) => {
            goodbye(head.version, Goodbye::Overloaded(error.to_string().into()))
        }
        Err(SubscribeError::Storage) => goodbye(head.version, Goodbye::NotReady),
        Err(error @ (SubscribeError::Pruned { .. } | SubscribeError::Buffer)) => {
            plain_fault(&Fault::from(error))
        }
    }
}

/// A stream of one event.
pub(crate) fn goodbye(version: Version, why: Goodbye) -> Response<Body> {
    let (ms, code, reason, message) = match why {
        Goodbye::NotReady => (RETRY_MS, Code::Unavailable, "notReady", "the node is not caught up".into()),
        Goodbye::ShuttingDown => {
            (RETRY_STOPPED_MS, Code::Unavailable, "shuttingDown", "the node is stopping".into())
        }
        Goodbye::Overloaded(message) => (RETRY_MS, Code::Overloaded, "overloaded", message),
    };
    let mut text = retry(ms);
    text += &event("end", None, &ItemJson::of_refusal(code, reason, message));
    answer(version, Body::from(text))
}

fn answer(version: Version, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::OK;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // HTTP/2 knows no such header: there the stream ends, not the connection.
    if version <= Version::HTTP_11 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn spread() -> u64 {
    rand::random_range(RETRY_MS - RETRY_SPREAD_MS..=RETRY_MS + RETRY_SPREAD_MS)
}

fn retry(ms: u64) -> String {
    format!("retry: {ms}\n")
}

/// One event with its blank line. An id is the reader's position from there on.
fn event(name: &str, id: Option<LogIndex>, item: &ItemJson) -> String {
    let data = handlers::to_raw(item);
    let mut text = String::with_capacity(data.get().len() + 64);
    let _ = writeln!(text, "event: {name}");
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}");
    }
    text.push_str("data: ");
    text.push_str(data.get());
    text.push_str("\n\n");
    text
}

/// One reader's stream.
struct Events {
    turns: Turns,
    max_bytes: u64,
    last_id: Option<LogIndex>,
    /// What the stream begins with.
    head: Option<String>,
}

impl Events {
    /// What goes out next, and the rest; there is none behind the end.
    async fn next(mut self) -> (Bytes, Option<Self>) {
        let mut piece = self.head.take().unwrap_or_default();
        let silent_until = Instant::now() + COMMENT_EVERY;
        let Ok(first) = tokio::time::timeout_at(silent_until, self.turns.first()).await else {
            piece.push_str(":\n");
            return (piece.into(), Some(self));
        };
        let mut next = first;
        while let Some(item) = next {
            let is_end = matches!(item, FeedItem::End(_));
            piece += &self.write(item);
            if is_end {
                return (piece.into(), None);
            }
            if PIECE_BYTES <= piece.len() {
                return (Piece::new(piece, self.turns.charge()), Some(self));
            }
            next = self.turns.more();
        }
        (Piece::new(piece, self.turns.end_turn()), Some(self))
    }

    fn write(&mut self, item: FeedItem) -> String {
        let name = match &item {
            FeedItem::Applied(_) => "block",
            FeedItem::Gap(_) => "gap",
            FeedItem::CaughtUp(_) => "caughtUp",
            FeedItem::End(_) => "end",
        };
        let is_stop = matches!(&item, FeedItem::End(end) if end.reason == EndReason::ShuttingDown);
        // A gap whose blocks follow does not move it: who breaks off among them would lose the rest.
        self.last_id = self.turns.position();
        let id = self.last_id;
        let text = feed::write(item, self.max_bytes, |item| event(name, id, item), String::len);
        match is_stop {
            true => retry(RETRY_STOPPED_MS) + &text,
            false => text,
        }
    }
}

/// A part of the stream, with the room it takes until the connection has written it.
struct Piece {
    text: String,
    _charge: Option<Arc<Charge>>,
}

impl Piece {
    #[expect(clippy::new_ret_no_self, reason = "it is made to be held by the bytes")]
    fn new(text: String, charge: Option<Arc<Charge>>) -> Bytes {
        Bytes::from_owner(Self { text, _charge: charge })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// Everything but the place a reader comes back to is in the URL, which it keeps.
fn read(uri: &Uri, headers: &HeaderMap) -> Result<Asked, Fault> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Fault::param("query", "the query cannot be decoded"))?;
    let (mut from_height, mut from_index, mut buffer, mut max_bytes) = (None, None, None, None);
    let (mut name, mut on_full) = (None, OnFull::default());
    let mut seen = HashSet::new();
    for (key, value) in pairs {
        if !seen.insert(key.clone()) {
            let key = args::short(&key);
            return Err(Fault::param(key.clone(), format!("{key} is given twice")));
        }
        let integer = || {
            let why = format!("{key} is not a decimal or 0x integer below 2^64");
            args::integer(&value).filter(|_| !value.is_empty()).ok_or_else(|| Fault::param(key.clone(), why))
        };
        match key.as_str() {
            "fromHeight" => from_height = Some(integer()?),
            "fromIndex" => from_index = Some(integer()?),
            "buffer" => buffer = Some(integer()?),
            "maxItemBytes" => max_bytes = Some(integer()?),
            "name" => name = Some(value),
            "onFull" => {
                on_full = match value.as_str() {
                    "drop" => OnFull::Drop,
                    "close" => OnFull::Close,
                    _ => return Err(Fault::param("onFull", "onFull is neither drop nor close")),
                }
            }
            _ => return Err(Fault::param(args::short(&key), "unknown parameter")),
        }
    }
    let start = feed::start(from_height, from_index)?;
    let last_id = last_event_id(headers)?;
    let request = Request {
        start: last_id.map_or(start, |last| StartAt::Index(last.saturating_add(1))),
        buffer: feed::buffer(buffer)?,
        on_full,
        channel: Channel::ServerSentEvents,
        name,
        may_be_pruned: last_id.is_some(),
    };
    Ok(Asked { request, max_bytes: max_bytes.unwrap_or(ITEM_BYTES) })
}

/// The id of the last event a reader saw; an empty one is none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<LogIndex>, Fault> {
    const NAME: &str = "Last-Event-ID";
    let Some(value) = headers.get(NAME) else { return Ok(None) };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    let index = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    index.map(Some).ok_or_else(|| Fault::param(NAME, "Last-Event-ID is not an id of this feed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, last_id: Option<&str>) -> Result<Asked, Fault> {
        let mut headers = HeaderMap::new();
        if let Some(last_id) = last_id {
            headers.insert("last-event-id", last_id.parse().unwrap());
        }
        read(&uri.parse().unwrap(), &headers)
    }

    fn start(uri: &str, last_id: Option<&str>) -> (StartAt, bool) {
        let asked = asked(uri, last_id).unwrap();
        (asked.request.start, asked.request.may_be_pruned)
    }

    #[test]
    fn the_last_id_beats_the_query() {
        assert_eq!(start(PATH, None), (StartAt::Live, false));
        assert_eq!(start("/v1/applied?fromHeight=7", None), (StartAt::Height(7), false));
        assert_eq!(start("/v1/applied?fromIndex=0x7", Some(" ")), (StartAt::Index(7), false));
        assert_eq!(start("/v1/applied?fromHeight=7", Some("41")), (StartAt::Index(42), true));
        assert_eq!(start(PATH, Some("18446744073709551615")), (StartAt::Index(u64::MAX), true));
    }

    #[test]
    fn what_the_caller_must_change_is_named() {
        for (uri, last_id, param) in [
            ("/v1/applied?fromHeight=1&fromIndex=1", None, "fromIndex"),
            ("/v1/applied?fromHeight=1&fromIndex=1", Some("4"), "fromIndex"),
            ("/v1/applied?fromHeight=", None, "fromHeight"),
            ("/v1/applied?fromHeight=-1", None, "fromHeight"),
            ("/v1/applied?fromheight=1", None, "fromheight"),
            ("/v1/applied?buffer=0", None, "buffer"),
            ("/v1/applied?buffer=10001", None, "buffer"),
            ("/v1/applied?onFull=wait", None, "onFull"),
            ("/v1/applied?fromHeight=1&fromHeight=2", None, "fromHeight"),
            ("/v1/applied", Some("1.5"), "Last-Event-ID"),
            ("/v1/applied", Some("+1"), "Last-Event-ID"),
        ] {
            let fault = asked(uri, last_id).err().unwrap();
            assert_eq!(fault.data.param.as_deref(), Some(param), "{uri} {last_id:?}");
            assert_eq!(fault.status(), StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn an_event_ends_with_its_only_blank_line() {
        let item = ItemJson::of_refusal(Code::Unavailable, "notReady", "m".into());
        assert_eq!(
            event("end", Some(7), &item),
            "event: end\nid: 7\ndata: {\"end\":{\"code\":-32040,\"message\":\"m\",\"reason\":\"notReady\",\"lastIndex\":null}}\n\n"
        );
        assert!(!event("end", None, &item).contains("id:"));
    }
}
