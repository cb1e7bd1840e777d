//! Handing leadership over: one tracked operation, whatever asked for it.
//!
//! Always in the order of design 11 (safety rule 13): the fence is withdrawn, what is in flight is answered, a
//! target is chosen and asked, and only then raft is told. Up to there the fence comes back; from there on raft
//! takes no entries in this term, so the operation goes on until another term is seen, though whoever asked may
//! be told earlier what is known.

use std::time::Duration;

use serde_json::json;
use tokio::{sync::oneshot, time::Instant};

use crate::audit::chain::{self, Act, Ended, HANDOVER, Started};
use crate::consensus::{Handover, Status};
use crate::leadership::handle::Handle;
use crate::leadership::handover::find::{ask_around, find, someone, willing};
use crate::leadership::policy::Intent;
use crate::leadership::record::word;
use crate::telemetry::names;
use crate::telemetry::trace::{Clock, Span, int, text};
use crate::types::proto::{FitnessGrade, LeadershipCause};
use crate::types::{NodeId, Term};

mod find;

/// Between two looks while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// A voter that just started says that it is caught up a second later at the earliest (design 11).
const CATCHES_UP_WITHIN: Duration = Duration::from_millis(1_500);
/// After raft was told the target is asked again so long at most: by then somebody was elected, or there is no
/// quorum to elect anybody.
const ASK_FOR: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// `None`: the fittest voter.
    pub(crate) to: Option<NodeId>,
    /// After it whoever asked is told what is known.
    pub(crate) within: Duration,
    /// The worst fitness that is accepted of the target.
    pub(crate) accepts: FitnessGrade,
    pub(crate) cause: LeadershipCause,
    pub(crate) operation_id: String,
    /// Why, in the words of whoever asked.
    pub(crate) reason: Option<String>,
    /// By whom: what a call of the API asked for is recorded there.
    pub(crate) by: By,
    /// What this node does afterwards.
    pub(crate) intent: Intent,
}

/// Who asks for a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// A call of this node's API.
    Call,
    /// This node, or another one in its own name.
    Node,
}

/// An operation on its way to the leadership task.
pub(crate) struct Request {
    pub(crate) asked: Asked,
    /// Taken when it is used. `None`: this node asks for it itself.
    answer: Option<oneshot::Sender<Result<Done, Refused>>>,
    /// Told the term once raft was told.
    told: Option<oneshot::Sender<Term>>,
    /// It was counted, and whoever asked was answered.
    has_ended: bool,
}

impl Request {
    pub(super) fn new(asked: Asked, answer: Option<oneshot::Sender<Result<Done, Refused>>>) -> Self {
        Self { asked, answer, told: None, has_ended: false }
    }

    pub(super) fn tells(self, told: oneshot::Sender<Term>) -> Self {
        Self { told: Some(told), ..self }
    }

    /// Whoever asked for it still waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.answer.as_ref().is_none_or(|answer| !answer.is_closed())
    }

    /// Not carried out, for another one is under way.
    pub(super) fn busy(self, running: String) {
        if let Some(answer) = self.answer {
            // Whoever asked may have gone.
            let _ = answer.send(Err(Refused::Busy(running)));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Transferred,
    /// Another node took over than the one that was asked.
    OtherLeads,
    /// It may still happen.
    TimedOut,
}

impl Outcome {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Transferred => "transferred",
            Self::OtherLeads => "other_leads",
            Self::TimedOut => "timed_out",
        }
    }
}

/// How a hand-over ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) operation_id: String,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) old_term: Term,
    pub(crate) new_term: Term,
    /// Who is heard to lead.
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) elapsed: Duration,
    pub(crate) outcome: Outcome,
}

impl Done {
    /// The term of who leads, where it is known.
    fn later_term(&self) -> Option<Term> {
        (self.old_term < self.new_term).then_some(self.new_term)
    }
}

/// Why there was no hand-over. Raft was not told, and the fence is back if it was there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("this node does not lead")]
    NotLeader { leader_id: Option<NodeId>, leader_api: Option<String> },
    #[error("node {0} is no member of the cluster")]
    NotMember(NodeId),
    #[error("node {0} is a learner, only a voter can lead")]
    NotVoter(NodeId),
    #[error("node {0} did not acknowledge anything within raft.heartbeat_timeout: {1}")]
    Unreachable(NodeId, String),
    #[error("node {0} is not caught up: {1}")]
    NotCaughtUp(NodeId, String),
    #[error("node {0} is not fit to lead: {1}")]
    NotFit(NodeId, String),
    #[error("no other voter can take over: {0}")]
    NoTarget(String),
    #[error("another hand-over is under way: operation {0}")]
    Busy(String),
    #[error("a change of the membership is under way")]
    Changing,
    #[error("raft has stopped")]
    Stopped,
}

impl Refused {
    /// As the JSON-RPC errors name it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotLeader { leader_id: Some(_), .. } => "notLeader",
            Self::NotLeader { leader_id: None, .. } => "noLeader",
            Self::NotMember(_) => "notMember",
            Self::NotVoter(_) => "notVoter",
            Self::Unreachable(..) => "unreachable",
            Self::NotCaughtUp(..) => "notCaughtUp",
            Self::NotFit(..) => "notFit",
            Self::NoTarget(_) => "noTarget",
            Self::Busy(_) | Self::Changing => "changeInProgress",
            Self::Stopped => "shuttingDown",
        }
    }
}

pub(super) fn leading(handle: &Handle) -> Result<Status, Refused> {
    let status = handle.raft().status();
    if handle.raft().is_leader() {
        return Ok(status);
    }
    let leader_id = status.leader_id;
    let leader_api = leader_id.and_then(|id| handle.raft().api_addr(&status, id));
    Err(Refused::NotLeader { leader_id, leader_api })
}

/// Carries one request out, from the first look to the term after it.
pub(super) async fn run(handle: Handle, mut request: Request) {
    let began = Instant::now();
    let asked = request.asked.clone();
    // Not waited for: a hung disk is one of the reasons to hand over.
    let recorded = (asked.by == By::Node).then(|| record(&handle, &asked));
    let result = drive(&handle, &mut request, began).await;
    handle.restore_intent();
    handle.memory().handover = None;
    match &result {
        Ok(done) => tracing::info!(
            operation_id = done.operation_id,
            from = done.from,
            to = done.to,
            term = done.later_term(),
            outcome = done.outcome.label(),
            cause = word(asked.cause),
            "leadership was handed over"
        ),
        Err(refused) => tracing::info!(
            operation_id = asked.operation_id,
            reason = refused.reason(),
            error = %refused,
            "leadership was not handed over"
        ),
    }
    if let Some(recorded) = recorded {
        recorded.end(&ended(&handle, &result));
    }
    tell(&handle, &mut request, began, result);
}

fn record(handle: &Handle, asked: &Asked) -> Started {
    let params = json!({ "cause": word(asked.cause), "to": asked.to, "reason": asked.reason });
    let act = Act { operation_id: Some(asked.operation_id.clone()), ..Act::own(HANDOVER, &params) };
    handle.chain().started(act, handle.raft().status().term)
}

fn ended(handle: &Handle, result: &Result<Done, Refused>) -> Ended {
    let (outcome, reason) = match result {
        Ok(Done { outcome: Outcome::TimedOut, .. }) => (chain::Outcome::Unknown, Some("timedOut".into())),
        Ok(_) => (chain::Outcome::Ok, None),
        Err(refused) => (chain::Outcome::Refused, Some(refused.reason().to_owned())),
    };
    Ended { outcome, reason, term: handle.raft().status().term, index: None }
}

/// The first answer is the one that counts; what is learned later is in the log.
fn tell(handle: &Handle, request: &mut Request, began: Instant, result: Result<Done, Refused>) {
    if std::mem::replace(&mut request.has_ended, true) {
        return;
    }
    let asked = &request.asked;
    let outcome = result.as_ref().map_or("refused", |done| done.outcome.label());
    handle.operations().ended(asked.cause, outcome, began.elapsed(), result.is_ok());
    handle.tracer().record(span(handle, asked, began, outcome, result.as_ref().ok()));
    if let Some(answer) = request.answer.take() {
        // Whoever asked may have gone: the operation did not.
        let _ = answer.send(result);
    }
}

fn span(handle: &Handle, asked: &Asked, began: Instant, outcome: &'static str, done: Option<&Done>) -> Span {
    let clock = Clock::now();
    let mut span =
        Span::own(names::span::HANDOVER, clock.at(began.into_std()), clock.at(std::time::Instant::now()));
    span.attributes.extend([
        int(names::NODE_ID, handle.raft().node_id()),
        text(names::OUTCOME, outcome),
        text(names::CAUSE, word(asked.cause)),
        text(names::OPERATION_ID, asked.operation_id.clone()),
    ]);
    span.attributes.extend(asked.reason.clone().map(|reason| text(names::REASON, reason)));
    if let Some(done) = done {
        span.attributes.extend([int(names::TERM, done.old_term), int(names::PEER_ID, done.to)]);
        span.attributes.extend(done.later_term().map(|term| int(names::NEW_TERM, term)));
    }
    span
}

async fn drive(handle: &Handle, request: &mut Request, began: Instant) -> Result<Done, Refused> {
    let asked = request.asked.clone();
    let raft = handle.raft();
    let (own_id, deadline) = (raft.node_id(), began + asked.within);
    let status = leading(handle)?;
    let term = status.term;
    let mut done = Done {
        operation_id: asked.operation_id.clone(),
        from: own_id,
        to: own_id,
        old_term: term,
        new_term: term,
        leader_id: Some(own_id),
        elapsed: Duration::ZERO,
        outcome: Outcome::Transferred,
    };
    if asked.to == Some(own_id) {
        return Ok(done);
    }
    let mut handover = Handover {
        from_term: term,
        from_node_id: own_id,
        cause: asked.cause,
        operation_id: asked.operation_id.clone(),
        accepts: asked.accepts,
    };
    // Whom nobody can take over from keeps the fence: nothing is withdrawn for nothing.
    someone(handle, &asked, began).await?;
    willing(handle, &asked, &handover).await?;
    // What is stuck has waited for `leadership.stall_after` already: its outcome is unknown either way, and nobody
    // produces until another leads.
    let is_stuck =
        handle.judged(&leading(handle)?, |verdict, _, _| verdict.unfit.iter().any(|check| check.is_stuck()));
    // Whoever is chosen keeps its vote until it leads. A change that is stuck too is not waited for.
    let until = if is_stuck { Instant::now() } else { began + asked.within / 2 };
    let turn = tokio::time::timeout_at(until, raft.turn().lock_owned()).await;
    let _turn = turn.map_err(|_| Refused::Changing)?;
    handle.set_intent(asked.intent);
    let patience =
        if is_stuck { Duration::ZERO } else { handle.config().shutdown_timeout.min(asked.within / 2) };
    if tokio::time::timeout(patience, handle.drained()).await.is_err() {
        tracing::warn!(?patience, "proposals are unanswered at a hand-over");
    }
    let find_until = deadline.min(Instant::now() + handle.config().election_timeout);
    let Some(to) = find(handle, term, &asked, &handover, find_until).await? else {
        // Somebody else was elected meanwhile.
        return Ok(finish(handle, &asked, began, done).await);
    };
    done.to = to;
    handle.memory().given_up_term = Some(term);
    tell_raft(handle, to, &handover).await?;
    if let Some(told) = request.told.take() {
        // Whoever asked may have gone.
        let _ = told.send(term);
    }
    let give_up = Instant::now() + ASK_FOR.max(asked.within);
    loop {
        let is_leaving = asked.cause == LeadershipCause::Removed;
        // An election takes less.
        let patience =
            if is_leaving { raft.config().heartbeat_timeout } else { handle.config().election_timeout };
        let ask_again = Instant::now() + patience;
        if let Some(leader_id) = successor(handle, term, ask_again, deadline, || {
            let late = Done {
                outcome: Outcome::TimedOut,
                elapsed: began.elapsed(),
                leader_id: None,
                ..done.clone()
            };
            tell(handle, request, began, Ok(late));
        })
        .await
        {
            done.leader_id = Some(leader_id);
            return Ok(finish(handle, &asked, began, done).await);
        }
        // Who was removed meanwhile hears of no later term.
        let is_removed = raft.removal().get().is_some();
        if is_removed && let Some(leader_id) = who_leads(handle, to, deadline).await {
            let outcome = if leader_id == to { Outcome::Transferred } else { Outcome::OtherLeads };
            // In which term it does not say.
            return Ok(Done { outcome, leader_id: Some(leader_id), elapsed: began.elapsed(), ..done });
        }
        if is_removed || give_up < Instant::now() {
            return Ok(Done { outcome: Outcome::TimedOut, leader_id: None, ..done });
        }
        // Raft ends no transfer by itself: the same again, or another one if that is gone.
        handover.accepts = handover.accepts.max(FitnessGrade::Unwilling);
        let again = ask_around(handle, to, &handover).await;
        tracing::info!(term, to = again, "nobody took over in time; asking again");
        if tell_raft(handle, again, &handover).await.is_err() {
            // It stops, and may have been heard before.
            return Ok(Done { outcome: Outcome::TimedOut, leader_id: None, ..done });
        }
    }
}

async fn tell_raft(handle: &Handle, to: NodeId, handover: &Handover) -> Result<(), Refused> {
    let raft = handle.raft();
    raft.peers().announce_handover(handover.clone());
    tracing::info!(term = handover.from_term, to, "handing leadership over");
    raft.core().transfer_leader(to).await.map_err(|_| Refused::Stopped)
}

/// Waits for a leader of a later term; `late` is called once the deadline has passed.
async fn successor(
    handle: &Handle,
    term: Term,
    until: Instant,
    deadline: Instant,
    mut late: impl FnMut(),
) -> Option<NodeId> {
    loop {
        let status = handle.raft().status();
        if term < status.term
            && let Some(leader_id) = status.leader_id
        {
            return Some(leader_id);
        }
        let now = Instant::now();
        if deadline <= now {
            late();
        }
        // With a later term there is nothing to ask again: somebody is being elected. Who was removed does not hear whom.
        let is_removed = handle.raft().removal().get().is_some();
        if until <= now && (status.term == term || !status.is_running || is_removed) {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Who leads by its own word, with a quorum behind it; the one that was asked to take over is asked first.
async fn who_leads(handle: &Handle, to: NodeId, until: Instant) -> Option<NodeId> {
    let raft = handle.raft();
    let patience = raft.config().heartbeat_timeout;
    loop {
        let others = raft.status().members.voters.into_iter().filter(|id| ![to, raft.node_id()].contains(id));
        for node_id in std::iter::once(to).chain(others) {
            if raft.peers().read_index(node_id, patience).await.is_ok() {
                return Some(node_id);
            }
        }
        if until <= Instant::now() {
            return None;
        }
        tokio::time::sleep(patience / 4).await;
    }
}

/// What became of a hand-over whose task ended with the node, in the term in which it was asked for: behind the word to raft
/// its outcome is unknown.
pub(super) fn ended_with(
    handle: &Handle,
    (term, operation_id): (Term, String),
    elapsed: Duration,
) -> Result<Done, Refused> {
    if handle.memory().given_up_term.is_none_or(|given_up| given_up < term) {
        return Err(Refused::Stopped);
    }
    let raft = handle.raft();
    Ok(Done {
        operation_id,
        from: raft.node_id(),
        to: raft.node_id(),
        old_term: term,
        new_term: raft.status().term,
        leader_id: None,
        elapsed,
        outcome: Outcome::TimedOut,
    })
}

/// Another term began: says who leads in it.
async fn finish(handle: &Handle, asked: &Asked, began: Instant, mut done: Done) -> Done {
    let deadline = began + asked.within;
    let mut status = handle.raft().status();
    while (status.leader_id.is_none() || status.term <= done.old_term) && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
        status = handle.raft().status();
    }
    done.leader_id = status.leader_id;
    done.new_term = status.term;
    if let Some(wanted) = asked.to {
        done.to = wanted;
    } else if done.to == done.from {
        done.to = status.leader_id.unwrap_or(done.from);
    }
    done.outcome = match status.leader_id {
        Some(leader) if leader == done.to => Outcome::Transferred,
        Some(_) => Outcome::OtherLeads,
        None => Outcome::TimedOut,
    };
    done.elapsed = began.elapsed();
    done
}
