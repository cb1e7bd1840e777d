//! Refusals of hand-overs, as callers are told them.

use crate::api::error::{Code, Fault, RETRY_LATER_MS};
use crate::consensus::HandoverRefusal;
use crate::leadership::handover::Refused;
use crate::types::error::ProposeError;

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        let message = refused.to_string();
        match refused {
            Refused::NotLeader { leader_id: Some(leader_id), leader_api } => {
                ProposeError::NotLeader { leader_id, leader_api }.into()
            }
            Refused::NotLeader { leader_id: None, .. } => {
                ProposeError::NoLeader { retry_after_ms: RETRY_LATER_MS }.into()
            }
            Refused::Stopped => Self::shutting_down(),
            refused @ (Refused::NotMember(_)
            | Refused::NotVoter(_)
            | Refused::Unreachable(..)
            | Refused::NotCaughtUp(..)
            | Refused::NotFit(..)
            | Refused::NoTarget(_)
            | Refused::Busy(_)
            | Refused::Changing) => Self::refused(Code::Precondition, refused.reason(), message),
        }
    }
}

/// What a leader refuses of a node that wants to lead in its place.
const REASONS: [&str; 7] =
    ["notMember", "notVoter", "unreachable", "notCaughtUp", "notFit", "noTarget", "changeInProgress"];

impl From<HandoverRefusal> for Fault {
    fn from(refusal: HandoverRefusal) -> Self {
        match REASONS.iter().find(|reason| **reason == refusal.reason) {
            Some(reason) => Self::refused(Code::Precondition, reason, refusal.message),
            // It leads no more, or stops: there is no leader to ask by now.
            None => ProposeError::NoLeader { retry_after_ms: RETRY_LATER_MS }.into(),
        }
    }
}
