//! Leaderships as a subscription: every one of them, from any id.

use futures::future::BoxFuture;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::api::args::{Args, Param};
use crate::api::error::{Code, Fault};
use crate::api::feed::EndJson;
use crate::api::sessions::Session;
use crate::api::subscriptions::{Address, Items};
use crate::leadership::{Handle, numbers::Forgotten, numbers::Led, record::word};
use crate::types::{NodeId, Term};

pub(crate) const PARAMS: &[Param] = &[Param::optional::<u64>(
    "fromId",
    "Begin with the leadership of this id; without it with the newest one.",
)];

/// One leadership, as this node applied it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "LeadershipItem")]
pub(crate) struct LeadershipJson {
    /// From 1, without a hole, on this node.
    id: u64,
    /// Unix milliseconds by the clock of the node that leads.
    at: u64,
    term: Term,
    leader_id: NodeId,
    is_self: bool,
    /// On the node that leads, and while it is ready, alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<u64>,
    /// Whether the producer may act; null where another node led.
    ready: Option<bool>,
    cause: &'static str,
}

/// One item of the subscription.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "LeadershipNotice")]
pub(crate) enum NoticeJson {
    Leadership(LeadershipJson),
    End { end: EndJson },
}

/// What a leadership is to a subscriber at the moment it is told.
fn item(handle: &Handle, id: u64, leadership: &Led) -> LeadershipJson {
    let is_self = leadership.node_id == handle.raft().node_id();
    let now = is_self.then(|| handle.now()).filter(|now| now.term == leadership.pos.term);
    let fence = now.and_then(|now| now.fence);
    LeadershipJson {
        id,
        at: leadership.started_at_ms,
        term: leadership.pos.term,
        leader_id: leadership.node_id,
        is_self,
        fence,
        ready: is_self.then_some(fence.is_some()),
        cause: word(leadership.cause),
    }
}

pub(crate) fn open<'a>(
    api: &'a Api,
    args: Args<'a>,
    _: &'a Session,
) -> BoxFuture<'a, Result<Box<dyn Items>, Fault>> {
    Box::pin(async move {
        let from: Option<u64> = args.get("fromId")?;
        if from == Some(0) {
            return Err(Fault::param("fromId", "fromId is not at least 1"));
        }
        let handle = api.parts.leadership.clone();
        // Watched from before it is read: what comes between is seen by both.
        let mut newest = handle.watch_leaderships();
        newest.borrow_and_update();
        let waiting: VecDeque<_> = handle.leaderships(from)?.into();
        let next_id = waiting.front().map_or(from.unwrap_or(1), |(id, _)| *id);
        Ok(
            Box::new(Leaderships {
                handle,
                newest,
                waiting,
                next_id,
                stop: api.stop.clone(),
                is_ended: false,
            }) as Box<dyn Items>,
        )
    })
}

struct Leaderships {
    handle: Handle,
    newest: watch::Receiver<u64>,
    /// Read and not sent yet.
    waiting: VecDeque<(u64, Led)>,
    /// The id of the next item.
    next_id: u64,
    stop: CancellationToken,
    is_ended: bool,
}

impl Leaderships {
    async fn next_one(&mut self) -> Option<NoticeJson> {
        loop {
            if let Some((id, leadership)) = self.waiting.pop_front() {
                self.next_id = id + 1;
                return Some(NoticeJson::Leadership(item(&self.handle, id, &leadership)));
            }
            if self.is_ended {
                return None;
            }
            tokio::select! {
                biased;
                changed = self.newest.changed() => {
                    self.is_ended = changed.is_err();
                    match self.handle.leaderships(Some(self.next_id)) {
                        Ok(more) => self.waiting = more.into(),
                        // More were led than are kept since the last look: from the oldest on.
                        Err(Forgotten { oldest }) => self.next_id = oldest,
                    }
                }
                () = self.stop.cancelled() => {
                    self.is_ended = true;
                    return Some(NoticeJson::End { end: EndJson::shutting_down(self.next_id - 1) });
                }
            }
        }
    }
}

impl Items for Leaderships {
    fn next<'a>(&'a mut self, address: &'a Address) -> BoxFuture<'a, Option<Box<RawValue>>> {
        Box::pin(async move {
            let item = self.next_one().await?;
            Some(address.notification(&item))
        })
    }
}

impl From<Forgotten> for Fault {
    fn from(forgotten: Forgotten) -> Self {
        let mut fault = Self::new(Code::NotFound, forgotten.to_string());
        fault.data.kind = Some(crate::api::error::Kind::Refused);
        fault.data.reason = Some("pruned");
        fault
    }
}
