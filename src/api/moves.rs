//! Moving leadership, and pausing a node.

use std::{
    io,
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::args::{Args, Patience};
use crate::api::control::DRY_RUN;
use crate::api::error::{Code, Fault};
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::status::{RoleJson, ms};
use crate::api::{Api, Parts};
use crate::consensus::{HandoverAsk, HandoverRefusal, PeerError, Role};
use crate::leadership;
use crate::leadership::handover::{Asked, By, Done, Outcome, Refused};
use crate::leadership::policy::Intent;
use crate::leadership::target;
use crate::leadership::task::operation_id;
use crate::types::error::ProposeError;
use crate::types::proto::{FitnessGrade, LeadershipCause};
use crate::types::{NodeId, Term};

/// Characters of a reason: it is kept, and shown to people.
const REASON_CHARS_MAX: usize = 256;

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

/// A refusal, with the version of the membership it was made under.
fn refused(parts: &Parts, refusal: impl Into<Fault>) -> Fault {
    let mut fault = refusal.into();
    if fault.code == Code::Precondition {
        fault.data.version = Some(parts.consensus.status().members.version);
    }
    fault
}

pub(super) fn reason(args: &Args<'_>) -> Result<Option<String>, Fault> {
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

/// Between two looks for a leadership that is on its way.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What a call with the caller's id made before, here in another life or on another node: the new leader's first
/// command carries the id, so it is in the log (design 5, "Once"). A client that sends its calls in flight again
/// after a change of leader would else move leadership once more.
async fn made_before(call: &Call, to: Option<NodeId>, within: Duration) -> Option<HandoverJson> {
    let operation_id = call.operation_id.clone()?;
    let leadership = &call.api.parts.leadership;
    let began = Instant::now();
    let (made, before) = loop {
        if let Some(found) = leadership.handed_over_by(&operation_id) {
            break found;
        }
        let under_way = leadership.heard_of(&operation_id)?;
        if within <= began.elapsed() {
            call.note_unknown();
            return Some(HandoverJson {
                operation_id,
                from: under_way.from_node_id,
                to,
                old_term: under_way.from_term,
                new_term: leadership.now().term,
                elapsed_ms: ms(began.elapsed()),
                leader_id: leadership.now().leader_id,
                outcome: OutcomeJson::TimedOut,
                would: None,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let is_meant = to.is_none_or(|to| to == made.node_id);
    Some(HandoverJson {
        operation_id,
        from: before.as_ref().map_or(made.node_id, |before| before.node_id),
        to: Some(to.unwrap_or(made.node_id)),
        old_term: before.map_or(made.pos.term, |before| before.pos.term),
        new_term: made.pos.term,
        elapsed_ms: ms(began.elapsed()),
        leader_id: leadership.now().leader_id,
        outcome: if is_meant { OutcomeJson::Transferred } else { OutcomeJson::OtherLeads },
        would: None,
    })
}

pub(crate) fn transfer<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let to: Option<NodeId> = args.get("to")?;
        let within = within(&call.api, &args)?;
        let is_forced = args.get::<bool>("force")? == Some(true);
        let accepts = if is_forced { FitnessGrade::Unable } else { FitnessGrade::Fit };
        let leadership = &call.api.parts.leadership;
        let operation_id = operation_of(call);
        if args.get::<bool>(DRY_RUN)? == Some(true) {
            return dry_run(call, to, accepts, operation_id);
        }
        if let Some(made) = made_before(call, to, within).await {
            return Ok(to_raw(&made));
        }
        let asked = Asked {
            to,
            within,
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
        let (within, reason) = (within(&call.api, &args)?, reason(&args)?);
        if let Some(made) = made_before(call, None, within).await {
            return Ok(to_raw(&made));
        }
        let asked = Asked {
            to: None,
            within,
            accepts: FitnessGrade::Fit,
            cause: LeadershipCause::Resign,
            operation_id: operation_of(call),
            reason,
            by: By::Call,
            intent: Intent::HandOver,
        };
        let operation_id = asked.operation_id.clone();
        let outcome = match call.api.parts.leadership.hand_over(asked).await {
            Ok(done) => return Ok(handed_over(call, done)),
            Err(Refused::NotLeader { .. }) => OutcomeJson::NotLeader,
            Err(Refused::NoTarget(_) | Refused::Changing) => OutcomeJson::NoTarget,
            // Another hand-over is under way: this one's wish may still come true.
            Err(Refused::Busy(_)) => {
                call.note_unknown();
                OutcomeJson::TimedOut
            }
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
        if let Some(id) = &call.operation_id
            && parts.leadership.handed_over_by(id).is_some()
        {
            return answer(true);
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
                if let Some(why) = parts.leadership.barred(Instant::now()) {
                    return Err(refused(parts, Refused::NotFit(raft.node_id(), why.into())));
                }
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
        // It may have been heard: what was lost may be the answer.
        Err(error @ (PeerError::Unreachable { .. } | PeerError::TimedOut { .. })) => {
            return Err(Fault::unknown(format!("whether node {leader_id} hands over is not known: {error}")));
        }
        Err(error) => HandoverRefusal { reason: "unreachable".into(), message: error.to_string() },
    };
    Err(refused(parts, refusal))
}

/// Waits for what a hung disk may hold up: it is carried to its end whoever waits, so that what the disk has in the
/// end is what this node goes by.
async fn saved(
    leadership: &leadership::handle::Handle,
    saving: impl Future<Output = io::Result<()>> + Send + 'static,
) -> Result<(), Fault> {
    let patience = leadership.config().resign_timeout;
    match tokio::time::timeout(patience, tokio::spawn(saving)).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(_))) => Err(ProposeError::Storage.into()),
        Ok(Err(_)) | Err(_) => Err(Fault::unknown("it is not saved yet: the disk hangs or is full")),
    }
}

pub(crate) fn pause<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let reason = reason(&args)?;
        let leadership = &call.api.parts.leadership;
        let (saving, why) = (leadership.clone(), reason.clone());
        saved(leadership, async move { saving.set_paused(why).await }).await?;
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
        let saving = leadership.clone();
        saved(leadership, async move { saving.resume(reason).await }).await?;
        Ok(to_raw(&PausedJson { paused: false, role: leadership.now().role.into() }))
    })
}
