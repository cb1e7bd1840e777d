//! One node: building the parts, running their tasks, stopping them in order.
//!
//! [`Node`] is the public library, for a sequencer in Rust that embeds the node. The binary runs the
//! same thing by `run::run`.

mod addresses;
mod agreement;
mod answers;
mod build;
mod configs;
mod doubts;
pub(crate) mod founders;
mod leading;
mod members;
mod observe;
mod parts;
mod ports;
mod recorded;
mod remembered;
pub(crate) mod run;
mod stop;
pub(crate) mod tasks;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use crate::config::{self, layers::Sources};
use crate::feed::{self, Channel, hub::Request};
use crate::leadership::handover::{Asked, By, Done, Outcome, Refused};
use crate::leadership::policy::Intent;
use crate::leadership::task::operation_id;
use crate::node::build::Running;
use crate::proposals::handle::Proposal;
use crate::types::{
    NodeId, Term,
    block::{Block, BlockRef},
    error::{Accepted, ProposeError},
    feed::{FeedItem, OnFull, StartAt, SubscribeError},
    proto::{FitnessGrade, LeadershipCause},
};

/// Settings of a node, as its TOML file says them.
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) settings: config::Settings,
}

impl Options {
    /// Settings out of a TOML file alone: neither environment nor flags are looked at.
    pub fn from_file(path: &Path) -> Result<Self, StartError> {
        Self::load(&Sources { file: Some(path.to_owned()), ..Sources::default() })
    }

    /// Settings out of TOML text.
    pub fn from_toml(text: &str) -> Result<Self, StartError> {
        Self::load(&Sources { text: Some(text.to_owned()), ..Sources::default() })
    }

    fn load(sources: &Sources) -> Result<Self, StartError> {
        let loaded =
            config::load(sources).map_err(|e| StartError { exit_code: 2, message: e.to_string() })?;
        Ok(Self { settings: loaded.settings })
    }
}

/// Why a node did not start. Nothing was changed but what the message says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// 1: try again later. 2: the settings are wrong. 4: the data folder refuses; a restart does
    /// not help.
    pub exit_code: u8,
    pub message: String,
}

/// Who leads, and whether the producer beside this node may act. True at the moment it was asked
/// for: ask again before building, signing and publishing a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    pub term: Term,
    /// The leader this node hears.
    pub leader_id: Option<NodeId>,
    pub leader_api: Option<String>,
    /// This node leads and holds the fence: its producer may act.
    pub ready: bool,
    /// Goes with every proposal of the producer; `None` unless ready.
    pub fence: Option<u64>,
    /// For how long no other node can have been elected against this one. A hand-over does not wait for its end: only what
    /// was agreed on counts, and a producer that acts by the time alone may find another one before it.
    pub lease_remaining: Duration,
}

/// How a resignation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resignation {
    /// This node did not lead.
    NotLeader,
    Transferred {
        to: NodeId,
    },
    /// Another node than the chosen one took over.
    OtherLeads {
        leader_id: NodeId,
    },
    /// No voter holds all entries and was heard of lately; this node leads on.
    NoTarget,
    /// Another hand-over of this node is under way: ask who leads when it is over.
    UnderWay,
    /// It may still happen.
    TimedOut,
}

impl From<Result<Done, Refused>> for Resignation {
    fn from(ended: Result<Done, Refused>) -> Self {
        match ended {
            Ok(done) => match (done.outcome, done.leader_id) {
                (Outcome::Transferred, _) => Self::Transferred { to: done.to },
                (Outcome::OtherLeads, Some(leader_id)) => Self::OtherLeads { leader_id },
                (Outcome::OtherLeads, None) | (Outcome::TimedOut, _) => Self::TimedOut,
            },
            Err(Refused::NotLeader { .. } | Refused::Stopped) => Self::NotLeader,
            Err(Refused::Busy(_)) => Self::UnderWay,
            // This node leads on.
            Err(Refused::Changing) => Self::NoTarget,
            Err(
                Refused::NotMember(_)
                | Refused::NotVoter(_)
                | Refused::Unreachable(..)
                | Refused::NotCaughtUp(..)
                | Refused::NotFit(..)
                | Refused::NoTarget(_),
            ) => Self::NoTarget,
        }
    }
}

/// The blocks that this node applies, in log order, and the gaps between them. Dropped, it ends.
pub struct Subscription(feed::Subscription);

impl Subscription {
    /// The next item; `None` behind the end. Safe to drop: no item is lost.
    pub async fn next(&mut self) -> Option<FeedItem> {
        self.0.next().await
    }

    pub fn into_stream(self) -> impl futures::Stream<Item = FeedItem> + Send {
        futures::stream::unfold(self, |mut this| async {
            let item = this.next().await?;
            Some((item, this))
        })
    }
}

/// A running node.
///
/// Dropped without [`Node::stop`]: its tasks are aborted as by a crash, which loses nothing that
/// was acknowledged; the folder is closed a moment later.
pub struct Node {
    running: Running,
}

impl Node {
    /// Opens the data folder, joins or founds the cluster, and serves its API and peer ports.
    /// Needs a multi-threaded tokio runtime.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let running = build::start(options.settings, build::Process::embedded()).await?;
        Ok(Self { running })
    }

    /// Who leads now, by the clock; never cached.
    pub fn leadership(&self) -> Leadership {
        let now = self.running.leadership.now();
        Leadership {
            term: now.term,
            leader_id: now.leader_id,
            leader_api: now.leader_api,
            ready: now.ready,
            fence: now.fence,
            lease_remaining: now.lease_remaining,
        }
    }

    /// Proposes a block and waits until a quorum stored it and this node applied it.
    ///
    /// With a `fence` other than the one in force it is refused. Proposing the same block again is
    /// always safe. Dropping the future leaves the outcome unknown.
    pub async fn propose(&self, block: Block, fence: Option<u64>) -> Result<Accepted, ProposeError> {
        let proposals = self.running.proposals.clone();
        let permit = proposals.admit(block.payload_bytes())?;
        let proposal = Proposal { block, fence, timeout: None, trace: None, received: Instant::now() };
        proposals.propose(proposal, permit).await
    }

    /// The highest block applied on this node.
    pub fn head(&self) -> Option<BlockRef> {
        self.running.reader.view().head.clone()
    }

    /// Follows the blocks that are applied on this node, leader or not.
    ///
    /// `buffer` blocks may wait to be taken, 1 to 10 000; `None`: `feed.buffer`. What does not fit is told
    /// as a gap, and follows out of the kept history. Consensus never waits for a subscriber.
    pub async fn subscribe(
        &self,
        from: StartAt,
        buffer: Option<usize>,
        on_full: OnFull,
    ) -> Result<Subscription, SubscribeError> {
        let request = Request {
            start: from,
            buffer,
            on_full,
            channel: Channel::Internal,
            name: None,
            may_be_pruned: false,
        };
        self.running.feed.subscribe(request).await.map(Subscription)
    }

    /// Hands leadership to the best placed voter. This node goes on running and may lead again.
    pub async fn resign(&self) -> Resignation {
        let asked = Asked {
            to: None,
            within: self.running.settings.raft.resign_timeout,
            accepts: FitnessGrade::Fit,
            cause: LeadershipCause::Resign,
            operation_id: operation_id(),
            reason: None,
            by: By::Node,
            intent: Intent::HandOver,
        };
        let ended = self.running.leadership.hand_over(asked).await;
        if let Err(refused) = &ended {
            tracing::info!(%refused, "this node did not resign");
        }
        ended.into()
    }

    /// Completes when the node cannot go on, with the reason; a node that is well never does.
    pub async fn failed(&mut self) -> StartError {
        self.running.failed().await
    }

    /// Resigns, answers what is in flight, flushes and closes everything, each step bounded: it returns within
    /// `raft.shutdown_timeout`, `raft.resign_timeout` and a second. Where the disk hangs it returns then with the folder
    /// still open, which loses nothing that was acknowledged.
    pub async fn stop(self) {
        let within = stop::within(&self.running.settings);
        if tokio::time::timeout(within, stop::stop(self.running)).await.is_err() {
            tracing::error!(?within, "the stop did not end: the disk hangs or is too slow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_under_way_is_not_told_as_nobody_to_take_over() {
        let refused = |refused| Resignation::from(Err(refused));
        assert_eq!(refused(Refused::Busy("op".into())), Resignation::UnderWay);
        assert_eq!(refused(Refused::NoTarget("none".into())), Resignation::NoTarget);
        assert_eq!(refused(Refused::Stopped), Resignation::NotLeader);
    }
}
