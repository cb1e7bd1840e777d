//! Events of this node, for people: leaderships, membership, snapshots, pauses, starts and stops.
//!
//! Recording never waits. An event that was recorded less than some milliseconds before a `kill -9` may be
//! missing; leaderships are recorded again from the applied state.

use std::{borrow::Cow, io};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::audit::journal::{Entry, Journal, Page, Spec};
use crate::audit::unix_ms;
use crate::types::{LogIndex, NodeId, Term};

const SPEC: Spec = Spec { prefix: b"history/", kept: 10_000, beside: |_, _| Vec::new() };

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Kind {
    Leadership,
    Membership,
    Snapshot,
    Pause,
    Lifecycle,
}

/// An event to be recorded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// Unix milliseconds; `None`: now.
    pub(crate) at: Option<u64>,
    pub(crate) term: Term,
    pub(crate) index: Option<LogIndex>,
    pub(crate) leader_id: Option<NodeId>,
    /// One camelCase word of a closed set of the kind's.
    pub(crate) cause: Cow<'static, str>,
    pub(crate) operation_id: Option<String>,
    pub(crate) duration_ms: Option<u64>,
    /// Small: a few fields of the kind's own.
    pub(crate) detail: Map<String, Value>,
}

impl Event {
    pub(crate) fn new(kind: Kind, term: Term, cause: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            at: None,
            term,
            index: None,
            leader_id: None,
            cause: cause.into(),
            operation_id: None,
            duration_ms: None,
            detail: Map::new(),
        }
    }

    /// The event with one more field of its detail.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.detail.insert(name.to_owned(), value.into());
        self
    }
}

/// An event as it is kept and answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HistoryEvent")]
pub(crate) struct EventJson {
    /// Rises from 1 on each node.
    pub(crate) id: u64,
    /// Unix milliseconds.
    pub(crate) at: u64,
    pub(crate) kind: Kind,
    pub(crate) term: Term,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<LogIndex>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) cause: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) duration_ms: Option<u64>,
    pub(crate) detail: Map<String, Value>,
}

impl EventJson {
    pub(crate) fn parse(entry: &Entry) -> Option<Self> {
        serde_json::from_slice(&entry.value).ok()
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct History {
    journal: Journal,
}

impl History {
    /// Blocking.
    pub(super) fn open(local: crate::store::Local) -> io::Result<Self> {
        Ok(Self { journal: Journal::open(local, SPEC, None)? })
    }

    /// Records an event without waiting for anything. Its id; `None`: too many wait for a full disk, and it
    /// is counted in an event of its own once there is room.
    pub(crate) fn record(&self, event: Event) -> Option<u64> {
        if let Some(lost) = self.journal.take_lost() {
            let term = event.term;
            self.append(Event::new(Kind::Lifecycle, term, "eventsLost").with("events", lost));
        }
        self.append(event)
    }

    fn append(&self, event: Event) -> Option<u64> {
        let at = event.at.unwrap_or_else(unix_ms);
        let make = |id, _: Option<&Bytes>| {
            let json = EventJson {
                id,
                at,
                kind: event.kind,
                term: event.term,
                index: event.index,
                leader_id: event.leader_id,
                cause: event.cause.into_owned(),
                operation_id: event.operation_id,
                duration_ms: event.duration_ms,
                detail: event.detail,
            };
            serde_json::to_vec(&json).expect("an event has string keys and finite numbers").into()
        };
        self.journal.append(make).ok()
    }

    /// At most `limit` events from an id on, without one the newest; only those of an operation, if one is
    /// named. Values are the JSON of [`EventJson`].
    pub(crate) async fn page(
        &self,
        from: Option<u64>,
        limit: usize,
        operation_id: Option<&str>,
    ) -> io::Result<Page> {
        let Some(operation_id) = operation_id else { return self.journal.page(from, limit).await };
        let is_of = |entry: &Entry| {
            EventJson::parse(entry).is_some_and(|e| e.operation_id.as_deref() == Some(operation_id))
        };
        self.journal.search(from, limit, is_of).await
    }

    /// The term of the newest leadership that is recorded; 0: none is.
    pub(crate) async fn last_leadership(&self) -> Term {
        // By eye: hundreds of other events between two leaderships are rare.
        const BACK: u64 = 256;
        let (oldest, last) = self.journal.ends();
        let mut upto = last;
        while oldest <= upto && 0 < upto {
            let from = upto.saturating_sub(BACK - 1).max(oldest);
            let entries = self.journal.read(from, upto).await.unwrap_or_default();
            let events = entries.iter().rev().filter_map(EventJson::parse);
            if let Some(event) = events.into_iter().find(|e| e.kind == Kind::Leadership) {
                return event.term;
            }
            upto = from - 1;
        }
        0
    }

    pub(super) async fn run(&self) {
        self.journal.run().await;
    }

    pub(super) async fn flush(&self) {
        self.journal.flush().await;
    }
}
