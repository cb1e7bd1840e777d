//! What an executor asks, and what it reports of itself.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::args::Args;
use crate::api::error::Fault;
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::moves::reason;
use crate::api::wire::BlockRefJson;
use crate::leadership::executor::{Claim, Report, Verdict};
use crate::types::Height;
use crate::types::block::BlockRef;

/// Bytes of a block's hash.
const HASH_BYTES_MAX: usize = 64;

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
