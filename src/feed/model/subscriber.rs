//! One subscriber of a schedule: what it is handed over, held against the log.

use futures::future::BoxFuture;

use crate::feed::Subscription;
use crate::feed::model::Log;
use crate::feed::turns::Turns;
use crate::types::feed::{EndReason, FeedItem, OnFull, Repair, StartAt, SubscribeError};
use crate::types::{Height, LogIndex};

pub(super) type Beginning = BoxFuture<'static, Result<Handed, SubscribeError>>;
pub(super) type Nexting = BoxFuture<'static, (Handed, Option<FeedItem>)>;

pub(super) enum Reader {
    Gone,
    Beginning(Beginning),
    Idle(Handed),
    Nexting(Nexting),
}

/// How it is handed over.
pub(super) enum Handed {
    OneByOne(Subscription),
    InTurns(Turns),
}

impl Handed {
    pub(super) fn position(&self) -> Option<LogIndex> {
        match self {
            Self::OneByOne(subscription) => subscription.position(),
            Self::InTurns(turns) => turns.position(),
        }
    }

    pub(super) async fn next(&mut self) -> Option<FeedItem> {
        match self {
            Self::OneByOne(subscription) => subscription.next().await,
            Self::InTurns(turns) => match turns.more() {
                None => {
                    turns.end_turn();
                    turns.first().await
                }
                item => item,
            },
        }
    }
}

/// A subscriber, and what it makes of what it is handed over.
pub(super) struct Subscriber {
    pub(super) name: String,
    pub(super) reader: Reader,
    pub(super) start: StartAt,
    pub(super) on_full: OnFull,
    /// Everything up to it is settled.
    pub(super) pos: LogIndex,
    pub(super) n_caught_up: usize,
    pub(super) n_applied: u64,
    pub(super) n_replayed: u64,
    pub(super) n_gaps: u64,
    pub(super) dropped: u64,
    pub(super) has_ended: bool,
    /// And was told that nothing follows.
    pub(super) has_read_its_end: bool,
    pub(super) said: Vec<String>,
}

impl Subscriber {
    fn is_wanted(&self, height: Height) -> bool {
        match self.start {
            StartAt::Height(h) => h <= height,
            StartAt::Live | StartAt::Index(_) => true,
        }
    }

    /// The first block it wants in a part of the log.
    pub(super) fn wanted(&self, log: &Log, from: LogIndex, to: LogIndex) -> Option<LogIndex> {
        if to < from {
            return None;
        }
        log.blocks.range(from..=to).find(|(_, height)| self.is_wanted(**height)).map(|(index, _)| *index)
    }

    pub(super) fn begun(&mut self, log: &Log, position: Option<LogIndex>) {
        self.pos = match self.start {
            StartAt::Live => position.expect("live begins at a place"),
            StartAt::Height(_) => 0,
            StartAt::Index(index) => index.saturating_sub(1),
        };
        assert!(self.start != StartAt::Live || self.pos <= log.applied.index);
    }

    pub(super) fn refused(&mut self, log: &Log, error: SubscribeError, is_stopped: bool) {
        match error {
            SubscribeError::Pruned { .. } => {
                let oldest = log.kept().next().expect("the head is kept");
                let is_below = match self.start {
                    StartAt::Height(h) => h < oldest.1,
                    StartAt::Index(i) => i < oldest.0,
                    StartAt::Live => false,
                };
                assert!(is_below && log.has_pruned(), "{}: {:?} refused", self.name, self.start);
            }
            SubscribeError::ShuttingDown => assert!(is_stopped),
            other => panic!("{other}"),
        }
    }

    /// Nothing that it wants lies between what it has and a place.
    fn assert_no_hole(&self, log: &Log, to: LogIndex) {
        let hole = self.wanted(log, self.pos + 1, to.saturating_sub(1));
        assert_eq!(
            hole, None,
            "{} {:?} was not given it before {to}: {:#?}",
            self.name, self.start, self.said
        );
    }

    /// True: there may be more.
    pub(super) fn take(&mut self, log: &Log, item: Option<FeedItem>) -> bool {
        let Some(item) = item else {
            assert!(self.has_ended, "{}: ends without an end", self.name);
            self.has_read_its_end = true;
            return false;
        };
        self.said.push(match &item {
            FeedItem::Applied(a) => format!("{}{}", a.index, if a.replayed { "r" } else { "" }),
            other => format!("{other:?}"),
        });
        assert!(!self.has_ended, "{}: {item:?} after the end", self.name);
        match item {
            FeedItem::Applied(applied) => {
                assert!(self.is_wanted(applied.block.height), "{}: below its beginning", self.name);
                assert!(self.pos < applied.index, "{}: twice: {:#?}", self.name, self.said);
                assert_eq!(log.blocks.get(&applied.index), Some(&applied.block.height));
                self.assert_no_hole(log, applied.index);
                self.pos = applied.index;
                self.n_applied += 1;
                self.n_replayed += u64::from(applied.replayed);
            }
            FeedItem::Gap(gap) => {
                assert!(gap.from_index <= gap.to_index);
                assert!(
                    self.pos < gap.from_index || matches!(self.start, StartAt::Height(_)),
                    "{} {:?}: a gap behind {}: {:#?}",
                    self.name,
                    self.start,
                    self.pos,
                    self.said
                );
                self.assert_no_hole(log, gap.from_index);
                self.n_gaps += 1;
                self.dropped += gap.dropped;
                if let Repair::Pruned { .. } = gap.repair {
                    assert!(gap.to_index < log.floor, "{}: {gap:?} is not pruned", self.name);
                    self.pos = gap.to_index;
                }
            }
            FeedItem::CaughtUp(caught_up) => {
                self.n_caught_up += 1;
                assert_eq!(self.n_caught_up, 1, "{}: caught up twice: {:#?}", self.name, self.said);
                self.assert_no_hole(log, caught_up.index + 1);
                assert!(self.pos <= caught_up.index);
                self.pos = caught_up.index;
            }
            FeedItem::End(end) => {
                assert!(end.reason == EndReason::ShuttingDown || self.on_full == OnFull::Close);
                let has_begun = !matches!(self.start, StartAt::Height(_)) || 0 < self.pos;
                if has_begun {
                    assert_eq!(end.last_index, Some(self.pos), "{}: {:#?}", self.name, self.said);
                }
                self.has_ended = true;
            }
        }
        true
    }
}
