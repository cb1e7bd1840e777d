//! Moving leadership, pausing a node, and what an executor asks and reports.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use bytes::Bytes;

use crate::api::args::{Args, Patience};
use crate::api::error::{Code, Fault};
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::status::{RoleJson, ms};
use crate::api::wire::BlockRefJson;
use crate::api::{Api, Parts};
use crate::consensus::{HandoverAsk, HandoverRefusal, Role};
use crate::leadership::executor::{Claim, Report, Verdict};
use crate::leadership::handover::{Asked, By, Done, Outcome, Refused};
use crate::leadership::policy::Intent;
use crate::leadership::target;
use crate::leadership::task::operation_id;
use crate::types::block::BlockRef;
use crate::types::error::ProposeError;
use crate::types::proto::{FitnessGrade, LeadershipCause};
use crate::types::{Height, NodeId, Term};

/// Characters of a reason: it is kept, and shown to people.
const REASON_CHARS_MAX: usize = 256;
/// Bytes of a block's hash.
const HASH_BYTES_MAX: usize = 64;

/// How a hand-over ended.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Handover")]
pub(crate) struct HandoverJson {
    operation_id: String,
    from: NodeId,
    /// Who was asked to take over; null where nobody was.
    to: Option<NodeId>,
    old_term: Term,
    new_term: Term,
    elapsed_ms: u64,
    /// Who is heard to lead.
    leader_id: Option<NodeId>,
    outcome: OutcomeJson,
    /// Of a dry run: whom it would choose, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    would: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HandoverOutcome")]
enum OutcomeJson {
    Transferred,
    /// Another node took over than the one that was asked.
    OtherLeads,
    /// It may still happen.
    TimedOut,
    /// Of a resignation: this node does not lead, there is nothing to do.
    NotLeader,
    /// Of a resignation: nobody can take over, this node leads on.
    NoTarget,
    /// Nothing was done.
    DryRun,
}

impl From<Done> for HandoverJson {
    fn from(done: Done) -> Self {
        Self {
            operation_id: done.operation_id,
            from: done.from,
            to: Some(done.to),
            old_term: done.old_term,
            new_term: done.new_term,
            elapsed_ms: ms(done.elapsed),
            leader_id: done.leader_id,
            outcome: match done.outcome {
                Outcome::Transferred => OutcomeJson::Transferred,
                Outcome::OtherLeads => OutcomeJson::OtherLeads,
                Outcome::TimedOut => OutcomeJson::TimedOut,
            },
            would: None,
        }
    }
}

/// Whether a node was asked not to lead while another can.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Paused")]
pub(crate) struct PausedJson {
    paused: bool,
    role: RoleJson,
}

/// Whether a candidacy, or the hand-over that was asked for instead, began.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ElectionStarted")]
pub(crate) struct ElectionJson {
    term: Term,
    started: bool,
}

/// How an executor's block stands to the agreed ones.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[schemars(rename = "Verdict")]
pub(crate) enum VerdictJson {
    /// It is the head.
    InSync,
    /// It is ours, and so many blocks follow.
    Behind { by: u64 },
    /// Above the head; null: there is none yet.
    Ahead { by: u64, head: Option<BlockRefJson> },
    /// Above the head, and its block at the head's height is the head.
    AheadOfStaleState { by: u64, head: Option<BlockRefJson> },
    /// Another block than ours stands at this height.
    Forked { height_differs: Height },
    /// Before the kept history.
    Unknown { oldest_height: Option<Height> },
}

impl From<Verdict> for VerdictJson {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::InSync => Self::InSync,
            Verdict::Behind { by } => Self::Behind { by },
            Verdict::Ahead { by, head } => Self::Ahead { by, head: head.map(Into::into) },
            Verdict::AheadOfStaleState { by, head } => {
                Self::AheadOfStaleState { by, head: Some(head.into()) }
            }
            Verdict::Forked { height_differs } => Self::Forked { height_differs },
            Verdict::Unknown { oldest_height } => Self::Unknown { oldest_height },
        }
    }
}

/// What an executor learns when it reports.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExecutorAnswer")]
pub(crate) struct ExecutorJson {
    verdict: &'static str,
    lag: u64,
    ready: bool,
    /// Goes with every proposal of the producer; null unless ready.
    fence: Option<u64>,
    head: Option<BlockRefJson>,
}

/// As the contract writes verdicts.
fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::InSync => "inSync",
        Verdict::Behind { .. } => "behind",
        Verdict::Ahead { .. } => "ahead",
        Verdict::AheadOfStaleState { .. } => "aheadOfStaleState",
        Verdict::Forked { .. } => "forked",
        Verdict::Unknown { .. } => "unknown",
    }
}

/// A refusal, with the version of the membership it was made under.
fn refused(parts: &Parts, refusal: impl Into<Fault>) -> Fault {
    let mut fault = refusal.into();
    if fault.code == Code::Precondition {
        fault.data.version = Some(parts.consensus.status().members.version);
    }
    fault
}

pub(crate) fn reason(args: &Args<'_>) -> Result<Option<String>, Fault> {
    let reason: Option<String> = args.get("reason")?;
    if reason.as_ref().is_some_and(|r| REASON_CHARS_MAX < r.chars().count()) {
        return Err(Fault::param("reason", "reason is longer than 256 characters"));
    }
    Ok(reason)
}

/// The caller's name for the operation, or one of its own.
fn operation_of(call: &Call) -> String {
    call.operation_id.clone().unwrap_or_else(operation_id)
}

fn within(api: &Api, args: &Args<'_>) -> Result<Duration, Fault> {
    let asked: Option<Patience> = args.get("timeoutMs")?;
    Ok(asked.map_or(api.parts.leadership.config().resign_timeout, |p| p.0))
}

pub(crate) fn transfer<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let to: Option<NodeId> = args.get("to")?;
        let is_forced = args.get::<bool>("force")? == Some(true);
        let accepts = if is_forced { FitnessGrade::Unable } else { FitnessGrade::Fit };
        let leadership = &call.api.parts.leadership;
        let operation_id = operation_of(call);
        if args.get::<bool>("dryRun")? == Some(true) {
            return dry_run(call, to, accepts, operation_id);
        }
        let asked = Asked {
            to,
            within: within(&call.api, &args)?,
            accepts,
            cause: LeadershipCause::Transfer,
            operation_id,
            reason: None,
            by: By::Call,
            intent: Intent::HandOver,
        };
        let done = leadership.hand_over(asked).await.map_err(|e| refused(&call.api.parts, e))?;
        Ok(handed_over(call, done))
    })
}

/// The answer; whoever reads the audit learns the same.
fn handed_over(call: &Call, done: Done) -> Box<RawValue> {
    call.note(Some(done.new_term), None);
    if done.outcome == Outcome::TimedOut {
        call.note_unknown();
    }
    to_raw(&HandoverJson::from(done))
}

fn dry_run(
    call: &Call,
    to: Option<NodeId>,
    accepts: FitnessGrade,
    operation_id: String,
) -> Result<Box<RawValue>, Fault> {
    let leadership = &call.api.parts.leadership;
    let (chosen, status) =
        target::preview(leadership, to, accepts).map_err(|e| refused(&call.api.parts, e))?;
    let peer = status.peers.iter().flatten().find(|p| p.node_id == chosen);
    let would = match peer {
        Some(peer) => format!(
            "node {chosen}: {}fit, {} entries behind, acknowledged {} ms ago",
            if to.is_some() { "" } else { "the fittest voter; " },
            peer.lag,
            peer.ack_age.map_or(0, ms),
        ),
        None => format!("node {chosen} leads already"),
    };
    Ok(to_raw(&HandoverJson {
        operation_id,
        from: call.api.parts.node.node_id,
        to: Some(chosen),
        old_term: status.term,
        new_term: status.term,
        elapsed_ms: 0,
        leader_id: status.leader_id,
        outcome: OutcomeJson::DryRun,
        would: Some(would),
    }))
}

pub(crate) fn resign<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let asked = Asked {
            to: None,
            within: within(&call.api, &args)?,
            accepts: FitnessGrade::Fit,
            cause: LeadershipCause::Resign,
            operation_id: operation_of(call),
            reason: reason(&args)?,
            by: By::Call,
            intent: Intent::HandOver,
        };
        let operation_id = asked.operation_id.clone();
        let outcome = match call.api.parts.leadership.hand_over(asked).await {
            Ok(done) => return Ok(handed_over(call, done)),
            Err(Refused::NotLeader { .. }) => OutcomeJson::NotLeader,
            Err(Refused::NoTarget(_)) => OutcomeJson::NoTarget,
            Err(e) => return Err(refused(&call.api.parts, e)),
        };
        let now = call.api.parts.leadership.now();
        Ok(to_raw(&HandoverJson {
            operation_id,
            from: call.api.parts.node.node_id,
            to: None,
            old_term: now.term,
            new_term: now.term,
            elapsed_ms: 0,
            leader_id: now.leader_id,
            outcome,
            would: None,
        }))
    })
}

pub(crate) fn trigger_election<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let is_forced = args.get::<bool>("force")? == Some(true);
        let parts = &call.api.parts;
        let raft = &parts.consensus;
        let status = raft.status();
        let answer = |started| Ok(to_raw(&ElectionJson { term: raft.status().term, started }));
        if status.role == Role::Leader {
            return answer(false);
        }
        if !status.members.voters.contains(&raft.node_id()) {
            return Err(refused(parts, Refused::NotVoter(raft.node_id())));
        }
        let is_heard = raft.heard_age().is_some_and(|age| age < raft.config().heartbeat_timeout);
        match status.leader_id.filter(|_| is_heard) {
            // The others' leases would refuse every candidacy.
            Some(_) if !is_forced => answer(false),
            Some(leader_id) => {
                ask_leader(parts, leader_id, operation_of(call)).await?;
                answer(true)
            }
            None => {
                let fitness = parts.leadership.fitness_to_stand();
                if let Err(why) = fitness
                    && !is_forced
                {
                    return Err(refused(parts, Refused::NotFit(raft.node_id(), why)));
                }
                parts.leadership.stand("request").await.map_err(|_| Fault::shutting_down())?;
                answer(true)
            }
        }
    })
}

/// An unasked candidacy never wins against the others' leases: the leader is asked instead.
async fn ask_leader(parts: &Parts, leader_id: NodeId, operation_id: String) -> Result<(), Fault> {
    let within = parts.leadership.config().resign_timeout;
    let ask = HandoverAsk { to: parts.node.node_id, operation_id, within };
    let patience = within + parts.consensus.send_timeout();
    let refusal = match parts.consensus.peers().ask_handover(leader_id, ask, patience).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(refusal)) => refusal,
        Err(error) => HandoverRefusal { reason: "unreachable".into(), message: error.to_string() },
    };
    Err(refused(parts, refusal))
}

pub(crate) fn pause<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let reason = reason(&args)?;
        let leadership = &call.api.parts.leadership;
        let patience = leadership.config().resign_timeout;
        let saved = tokio::time::timeout(patience, leadership.set_paused(reason.clone())).await;
        if !matches!(saved, Ok(Ok(()))) {
            return Err(ProposeError::Storage.into());
        }
        if leadership.raft().is_leader() {
            let asked = Asked {
                to: None,
                within: leadership.config().resign_timeout,
                accepts: FitnessGrade::Fit,
                cause: LeadershipCause::Pause,
                operation_id: operation_id(),
                reason,
                by: By::Call,
                intent: Intent::HandOver,
            };
            // With no fit peer it goes on with its fence; as soon as there is one it hands over by itself.
            if let Err(error) = leadership.hand_over(asked).await {
                tracing::info!(%error, "a paused leader goes on");
            }
        }
        Ok(to_raw(&PausedJson { paused: true, role: leadership.now().role.into() }))
    })
}

pub(crate) fn resume<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let reason = reason(&args)?;
        let leadership = &call.api.parts.leadership;
        let patience = leadership.config().resign_timeout;
        let saved = tokio::time::timeout(patience, leadership.resume(reason)).await;
        if !matches!(saved, Ok(Ok(()))) {
            return Err(ProposeError::Storage.into());
        }
        Ok(to_raw(&PausedJson { paused: false, role: leadership.now().role.into() }))
    })
}

/// A block's place as an executor names it: height 0 has no hash, every other one has.
fn claim(args: &Args<'_>, hash_at_head: Option<Bytes>) -> Result<Claim, Fault> {
    let height: Height = args.need("height")?;
    let hash: Bytes = args.need("hash")?;
    let is_well = match height {
        0 => hash.len() <= HASH_BYTES_MAX,
        _ => (1..=HASH_BYTES_MAX).contains(&hash.len()),
    };
    if !is_well {
        return Err(Fault::param("hash", "hash has not 1 to 64 bytes; none is for height 0 alone"));
    }
    if hash_at_head.as_ref().is_some_and(|h| !(1..=HASH_BYTES_MAX).contains(&h.len())) {
        return Err(Fault::param("hashAtHead", "hashAtHead has not 1 to 64 bytes"));
    }
    Ok(Claim { height, hash, hash_at_head })
}

pub(crate) fn reconcile<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let claim = claim(&args, args.get("hashAtHead")?)?;
        let verdict = call.api.parts.leadership.reconcile(&claim)?;
        Ok(to_raw(&VerdictJson::from(verdict)))
    })
}

pub(crate) fn report<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let claim = claim(&args, None)?;
        let parts = &call.api.parts;
        let verdict = parts.leadership.reconcile(&claim)?;
        let head: Option<BlockRef> = parts.reader.view().head.clone();
        let lag = head.as_ref().map_or(0, |h| h.height.saturating_sub(claim.height));
        let name = verdict_name(&verdict);
        parts.leadership.report(Report {
            height: claim.height,
            is_healthy: args.get::<bool>("healthy")?.unwrap_or(true),
            is_active: args.get("active")?,
            reason: reason(&args)?,
            verdict,
            lag,
        });
        let now = parts.leadership.now();
        let answer = ExecutorJson {
            verdict: name,
            lag,
            ready: now.ready,
            fence: now.fence,
            head: head.map(Into::into),
        };
        Ok(to_raw(&answer))
    })
}
