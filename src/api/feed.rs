//! The feed of applied blocks as JSON: what a subscriber asks for, and the items it is sent.

use std::borrow::Cow;
use std::sync::Arc;

use futures::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::Api;
use crate::api::args::{Args, Decode, Param};
use crate::api::error::{Code, Fault};
use crate::api::sessions::Session;
use crate::api::subscriptions::{Address, Items};
use crate::api::wire::{BlockHead, BlockJson};
use crate::feed::Channel;
use crate::feed::hub::Request;
use crate::feed::room::Charge;
use crate::feed::turns::Turns;
use crate::types::feed::{
    Applied, BUFFER_MAX, CaughtUp, End, EndReason, FeedItem, Gap, OnFull, Repair, StartAt,
};
use crate::types::{Height, LogIndex, Term};

/// Bytes of a message above which an item comes without its content. Half of the WebSocket clients end the
/// connection at 1 MiB.
const ITEM_BYTES_WS: u64 = 1_000_000;

pub(crate) const PARAMS: &[Param] = &[
    Param::optional::<u64>("fromHeight", "Begin with the first block at or above it."),
    Param::optional::<u64>("fromIndex", "Begin with the first block at or behind it. Excludes fromHeight."),
    Param::optional::<u64>("buffer", "Blocks that may wait, 1 to 10000; default feed.buffer."),
    Param::optional::<OnFull>("onFull", "What becomes of a subscriber whose buffer is full; default drop."),
    Param::optional::<u64>(
        "maxItemBytes",
        "An item whose message is larger comes without header and data; 0: every item is whole. \
         Default 1000000.",
    ),
    Param::optional::<String>("name", "One of feed.watched gets metrics of its own."),
];

/// An applied block as an item.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AppliedItem")]
pub(crate) struct AppliedJson {
    block: BlockContent,
    term: Term,
    index: LogIndex,
    /// Read from the store, not handed over as it was applied.
    replayed: bool,
    /// The message would be above maxItemBytes: the block is without header and data.
    #[serde(skip_serializing_if = "Option::is_none")]
    truncated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum BlockContent {
    Whole(BlockJson),
    Head(BlockHead),
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Gap")]
pub(crate) struct GapJson {
    from_index: LogIndex,
    to_index: LogIndex,
    /// Blocks that a full buffer cost.
    dropped: u64,
    repair: RepairJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_height: Option<Height>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Repair")]
enum RepairJson {
    /// The missed blocks follow.
    Replay,
    /// They are forgotten: the oldest block that is kept follows.
    Pruned,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "CaughtUp")]
pub(crate) struct CaughtUpJson {
    height: Option<Height>,
    index: LogIndex,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "End")]
pub(crate) struct EndJson {
    code: i32,
    message: Cow<'static, str>,
    reason: &'static str,
    /// A subscription from the index behind it misses nothing.
    last_index: Option<LogIndex>,
}

impl EndJson {
    /// Of a subscription that the node's stop ends.
    pub(crate) fn shutting_down(last_index: u64) -> Self {
        Self {
            code: Code::Unavailable.number(),
            message: "the node is stopping".into(),
            reason: "shuttingDown",
            last_index: Some(last_index),
        }
    }
}

/// One item of the feed.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "FeedItem")]
pub(crate) enum ItemJson {
    Applied(AppliedJson),
    Gap {
        gap: GapJson,
    },
    CaughtUp {
        #[serde(rename = "caughtUp")]
        caught_up: CaughtUpJson,
    },
    End {
        end: EndJson,
    },
}

impl ItemJson {
    /// `is_whole`: with header and data.
    fn of_block(applied: Applied, is_whole: bool) -> Self {
        let block = match is_whole {
            true => BlockContent::Whole(applied.block.into()),
            false => BlockContent::Head((&applied.block).into()),
        };
        Self::Applied(AppliedJson {
            block,
            term: applied.term,
            index: applied.index,
            replayed: applied.replayed,
            truncated: (!is_whole).then_some(true),
            traceparent: applied.trace.map(|trace| trace.to_string()),
        })
    }

    /// The last item of a feed that was refused before it began.
    pub(crate) fn of_refusal(code: Code, reason: &'static str, message: Cow<'static, str>) -> Self {
        Self::End { end: EndJson { code: code.number(), message, reason, last_index: None } }
    }
}

impl From<Gap> for ItemJson {
    fn from(gap: Gap) -> Self {
        let Gap { from_index, to_index, dropped, repair } = gap;
        let (repair, oldest_height) = match repair {
            Repair::Replay => (RepairJson::Replay, None),
            Repair::Pruned { oldest_height } => (RepairJson::Pruned, Some(oldest_height)),
        };
        Self::Gap { gap: GapJson { from_index, to_index, dropped, repair, oldest_height } }
    }
}

impl From<CaughtUp> for ItemJson {
    fn from(CaughtUp { height, index }: CaughtUp) -> Self {
        Self::CaughtUp { caught_up: CaughtUpJson { height, index } }
    }
}

impl From<End> for ItemJson {
    fn from(End { reason, last_index }: End) -> Self {
        let (code, reason, message) = match reason {
            EndReason::ShuttingDown => (Code::Unavailable, "shuttingDown", "the node is stopping"),
            EndReason::Slow => (Code::Overloaded, "slow", "the buffer was full"),
            EndReason::Storage => (Code::Storage, "storage", "the store cannot be read"),
        };
        Self::End { end: EndJson { code: code.number(), message: message.into(), reason, last_index } }
    }
}

/// Writes an item; one whose message is above `max_bytes` without its content, unless that is 0. `write`
/// makes the whole message.
pub(crate) fn write<T>(
    item: FeedItem,
    max_bytes: u64,
    write: impl Fn(&ItemJson) -> T,
    length: impl Fn(&T) -> usize,
) -> T {
    let applied = match item {
        FeedItem::Applied(applied) => applied,
        FeedItem::Gap(gap) => return write(&gap.into()),
        FeedItem::CaughtUp(caught_up) => return write(&caught_up.into()),
        FeedItem::End(end) => return write(&end.into()),
    };
    let is_above = |bytes: u64| max_bytes != 0 && max_bytes < bytes;
    // In hex alone.
    if is_above(2 * applied.block.payload_bytes()) {
        return write(&ItemJson::of_block(applied, false));
    }
    let message = write(&ItemJson::of_block(applied.clone(), true));
    match is_above(length(&message) as u64) {
        true => write(&ItemJson::of_block(applied, false)),
        false => message,
    }
}

/// Where a subscription begins; at most one of both is given.
pub(crate) fn start(from_height: Option<u64>, from_index: Option<u64>) -> Result<StartAt, Fault> {
    match (from_height, from_index) {
        (None, None) => Ok(StartAt::Live),
        (Some(height), None) => Ok(StartAt::Height(height)),
        (None, Some(index)) => Ok(StartAt::Index(index)),
        (Some(_), Some(_)) => Err(Fault::param("fromIndex", "fromHeight and fromIndex exclude each other")),
    }
}

pub(crate) fn buffer(asked: Option<u64>) -> Result<Option<usize>, Fault> {
    let wrong = || Fault::param("buffer", format!("buffer is not from 1 to {BUFFER_MAX}"));
    let within = |n: u64| usize::try_from(n).ok().filter(|n| (1..=BUFFER_MAX).contains(n));
    asked.map(|n| within(n).ok_or_else(wrong)).transpose()
}

/// A subscription over WebSocket.
pub(crate) fn open<'a>(
    api: &'a Api,
    args: Args<'a>,
    session: &'a Session,
) -> BoxFuture<'a, Result<Box<dyn Items>, Fault>> {
    Box::pin(async move {
        let request = Request {
            start: start(args.get("fromHeight")?, args.get("fromIndex")?)?,
            buffer: buffer(args.get("buffer")?)?,
            on_full: args.get("onFull")?.unwrap_or_default(),
            channel: Channel::WebSocket,
            name: args.get("name")?,
            may_be_pruned: false,
        };
        let max_bytes = args.get("maxItemBytes")?.unwrap_or(ITEM_BYTES_WS);
        let subscription = api.parts.feed.subscribe(request).await?;
        let turns = Turns::new(subscription, session.outlet.clone());
        Ok(Box::new(Notifications { turns, max_bytes }) as Box<dyn Items>)
    })
}

struct Notifications {
    turns: Turns,
    max_bytes: u64,
}

impl Notifications {
    fn write(&self, item: FeedItem, address: &Address) -> Box<RawValue> {
        write(item, self.max_bytes, |item| address.notification(item), |raw| raw.get().len())
    }
}

impl Items for Notifications {
    fn next<'a>(&'a mut self, address: &'a Address) -> BoxFuture<'a, Option<Box<RawValue>>> {
        Box::pin(async move {
            let item = self.turns.first().await?;
            Some(self.write(item, address))
        })
    }

    fn more(&mut self, address: &Address) -> Option<Box<RawValue>> {
        let item = self.turns.more()?;
        Some(self.write(item, address))
    }

    fn is_in_turn(&self) -> bool {
        self.turns.charge().is_some()
    }

    fn end_turn(&mut self) -> Option<Arc<Charge>> {
        self.turns.end_turn()
    }
}

impl Decode for OnFull {
    fn decode(raw: &RawValue, name: &str) -> Result<Self, Fault> {
        match raw.get() {
            r#""drop""# => Ok(Self::Drop),
            r#""close""# => Ok(Self::Close),
            _ => Err(Fault::param(name, format!("{name} is neither \"drop\" nor \"close\""))),
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "enum": ["drop", "close"] })
    }
}

#[cfg(test)]
mod tests;
