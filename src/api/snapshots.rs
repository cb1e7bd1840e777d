//! `snapshot_*` and `GET /v1/snapshots/{id}`: the snapshots of this node, as an operator steers them.

use std::{sync::Arc, time::Duration, time::Instant};

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use schemars::JsonSchema;
use serde::Serialize;

use crate::api::args::Args;
use crate::api::error::Fault;
use crate::api::handlers::{Answer, Call, to_raw};
use crate::api::http::{Front, plain_fault};
use crate::api::status::{MembershipJson, ms};
use crate::api::wire::Hex;
use crate::api::{Api, Parts, turns};
use crate::audit::history::{Event, Kind};
use crate::store::snapshot::{export::Export, members_in, progress::Progress, size_of};
use crate::types::proto::{SnapshotFile, SnapshotManifest};
use crate::types::{Height, LogIndex, Term};

/// Exports at once: each holds a snapshot alive and reads the disk as fast as its reader takes it. By eye.
pub(crate) const EXPORTS_MAX: usize = 4;
/// Raft may decline a snapshot that is asked for while it takes one over: asked for again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// The wait of a caller that finds all exports taken. By eye.
const EXPORT_RETRY_MS: u64 = 1_000;

/// A snapshot that was asked for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotCreated {
    id: String,
    last_index: LogIndex,
    last_term: Term,
    /// Of the head; 0 before the first block.
    height: Height,
    size_bytes: u64,
    elapsed_ms: u64,
}

/// `wait:false`: it will have this id.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotBuilding {
    id: String,
    building: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "SnapshotAnswer")]
pub(crate) enum SnapshotAnswer {
    Created(SnapshotCreated),
    Building(SnapshotBuilding),
}

/// Where a snapshot came from.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) enum SnapshotSource {
    Local,
    Received,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Snapshot")]
pub(crate) struct SnapshotJson {
    id: String,
    /// Unix milliseconds.
    created_at: u64,
    last_index: LogIndex,
    last_term: Term,
    /// Of the head; 0 before the first block.
    height: Height,
    size_bytes: u64,
    source: SnapshotSource,
}

/// Newest first.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Snapshots")]
pub(crate) struct SnapshotsJson {
    snapshots: Vec<SnapshotJson>,
}

/// A snapshot and what is in it.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotDescription {
    #[serde(flatten)]
    entry: SnapshotJson,
    cluster_id: String,
    membership: MembershipJson,
    state_hash: Hex,
    format_version: u32,
    files: Vec<SnapshotFileJson>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "SnapshotFile")]
struct SnapshotFileJson {
    name: String,
    size_bytes: u64,
    /// blake3.
    checksum: Hex,
}

/// Whether a snapshot is what its manifest says.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SnapshotVerdict {
    ok: bool,
    problems: Vec<SnapshotProblem>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct SnapshotProblem {
    file: String,
    what: String,
}

/// The policy, and where the log stands.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotStatus {
    threshold: u64,
    threshold_bytes: u64,
    trailing_logs: u64,
    retain: u64,
    min_interval_ms: u64,
    grace_entries: u64,
    last_log_index: LogIndex,
    snapshot_index: LogIndex,
    purged_index: LogIndex,
    /// Entries applied since the snapshot: what a restart replays.
    compaction_lag: u64,
    log_entries: u64,
    log_bytes: u64,
    building: bool,
    /// Why the last build failed; absent once one succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

/// Where the log begins now: everything up to it is gone.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Purged {
    purged_index: LogIndex,
}

impl From<&SnapshotManifest> for SnapshotJson {
    fn from(m: &SnapshotManifest) -> Self {
        let last = m.last_log_id.unwrap_or_default();
        Self {
            id: m.id.clone(),
            created_at: m.created_at_ms,
            last_index: last.index,
            last_term: last.term,
            height: m.height,
            size_bytes: size_of(m),
            source: if m.received { SnapshotSource::Received } else { SnapshotSource::Local },
        }
    }
}

impl SnapshotCreated {
    fn new(m: &SnapshotManifest, began: Instant) -> Self {
        let last = m.last_log_id.unwrap_or_default();
        Self {
            id: m.id.clone(),
            last_index: last.index,
            last_term: last.term,
            height: m.height,
            size_bytes: size_of(m),
            elapsed_ms: ms(began.elapsed()),
        }
    }
}

fn unknown(id: &str) -> Fault {
    Fault::not_found(format!("this node has no snapshot {id:?}"))
}

pub(crate) fn create<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let wait = args.get::<bool>("wait")?.unwrap_or(true);
        let (began, parts) = (Instant::now(), &call.api.parts);
        let applied = parts.reader.view().applied;
        if applied.term == 0 {
            return Err(Fault::not_ready("nothing was applied yet: there is no state to snapshot"));
        }
        if parts.snapshots.newest_index() == applied.index
            && let Some(newest) = parts.snapshots.newest()
        {
            return Ok(to_raw(&SnapshotAnswer::Created(SnapshotCreated::new(&newest, began))));
        }
        let id = parts.snapshots.reserve();
        // A task of its own: the build goes on when the caller goes away.
        let built = call.api.tasks.spawn(build(Arc::clone(parts), id.clone(), call.operation_id.clone()));
        if !wait {
            return Ok(to_raw(&SnapshotAnswer::Building(SnapshotBuilding { id, building: true })));
        }
        let manifest = built.await.map_err(|_| Fault::internal("the snapshot's task broke off"))??;
        Ok(to_raw(&SnapshotAnswer::Created(SnapshotCreated::new(&manifest, began))))
    })
}

/// Asks for the snapshot that was promised under this id until it is there or failed.
async fn build(
    parts: Arc<Parts>,
    id: String,
    operation_id: Option<String>,
) -> Result<SnapshotManifest, Fault> {
    let mut progress = parts.snapshots.progress();
    parts.consensus.ask_snapshot();
    loop {
        if let Some(manifest) = parts.snapshots.describe(&id) {
            let index = manifest.last_log_id.unwrap_or_default().index;
            // What is answered agrees with what the status says next.
            parts.consensus.snapshot_taken_over(index).await;
            let event = Event::new(Kind::Snapshot, parts.consensus.status().term, "asked");
            parts.audit.history.record(Event { index: Some(index), operation_id, ..event.with("id", id) });
            return Ok(manifest);
        }
        let now = progress.borrow_and_update().clone();
        if let Some((_, why)) = now.failed.as_ref().filter(|(failed, _)| *failed == id) {
            return Err(Fault::storage(format!("no snapshot was built: {why}")));
        }
        if tokio::time::timeout(ASK_AGAIN, progress.changed()).await.is_err() && !is_building(&now, &id) {
            parts.consensus.ask_snapshot();
        }
    }
}

fn is_building(progress: &Progress, id: &str) -> bool {
    progress.building.as_deref() == Some(id)
}

pub(crate) fn list<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let snapshots = call.api.parts.snapshots.list().iter().map(SnapshotJson::from).collect();
        Ok(to_raw(&SnapshotsJson { snapshots }))
    })
}

pub(crate) fn describe<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let id: String = args.need("id")?;
        let m = call.api.parts.snapshots.describe(&id).ok_or_else(|| unknown(&id))?;
        let file = |f: &SnapshotFile| SnapshotFileJson {
            name: f.name.clone(),
            size_bytes: f.size_bytes,
            checksum: Hex(f.checksum.clone()),
        };
        Ok(to_raw(&SnapshotDescription {
            entry: SnapshotJson::from(&m),
            cluster_id: m.cluster_id.clone(),
            membership: MembershipJson::from(&members_in(&m)),
            state_hash: Hex(m.state_hash.clone()),
            format_version: m.format_version,
            files: m.files.iter().map(file).collect(),
        }))
    })
}

pub(crate) fn verify<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let id: String = args.need("id")?;
        let snapshots = call.api.parts.snapshots.clone();
        let asked = id.clone();
        // One at a time: each reads a whole history.
        let check = move || snapshots.verify(&asked);
        let verified = turns::run(&call.api.verifying, check, "the check broke off").await?;
        let problems = verified
            .map_err(|e| {
                Fault::storage(format!("the snapshot cannot be restored into a scratch folder: {e}"))
            })?
            .ok_or_else(|| unknown(&id))?;
        let problems: Vec<_> =
            problems.into_iter().map(|p| SnapshotProblem { file: p.file, what: p.what }).collect();
        Ok(to_raw(&SnapshotVerdict { ok: problems.is_empty(), problems }))
    })
}

pub(crate) fn status<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move { Ok(to_raw(&status_of(&call.api.parts))) })
}

fn status_of(parts: &Parts) -> SnapshotStatus {
    let at = parts.consensus.status().positions;
    let (log, progress) = (parts.reader.log_stats(), parts.snapshots.progress().borrow().clone());
    let policy = &parts.compaction;
    SnapshotStatus {
        threshold: policy.threshold,
        threshold_bytes: policy.threshold_bytes,
        trailing_logs: policy.trailing_logs,
        retain: parts.snapshots.retain() as u64,
        min_interval_ms: ms(policy.min_interval),
        grace_entries: policy.grace_entries,
        last_log_index: at.last,
        snapshot_index: at.snapshot,
        purged_index: at.purged,
        compaction_lag: at.compaction_lag(),
        log_entries: log.entries,
        log_bytes: log.bytes,
        building: progress.building.is_some(),
        last_error: progress.failed.map(|(_, why)| why),
    }
}

pub(crate) fn purge_log<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let upto: LogIndex = args.get("uptoIndex")?.unwrap_or(LogIndex::MAX);
        let raft = call.api.parts.consensus.clone();
        // A task of its own: it is done, or waits, whoever goes away.
        let purged = call.api.tasks.spawn(async move { raft.purge(upto).await }).await;
        let purged = purged.map_err(|_| Fault::internal("the purge broke off"))?;
        let purged_index = purged.map_err(|_| Fault::shutting_down())?;
        Ok(to_raw(&Purged { purged_index }))
    })
}

/// `GET /v1/snapshots/{id}`.
pub(crate) async fn export(front: &Front, id: &str) -> Response<Body> {
    match open(&front.api, id).await {
        Ok(answer) => answer,
        Err(fault) => plain_fault(&fault),
    }
}

async fn open(api: &Arc<Api>, id: &str) -> Result<Response<Body>, Fault> {
    let turn = Arc::clone(&api.exports)
        .try_acquire_owned()
        .map_err(|_| Fault::overloaded("too many snapshots are being sent", EXPORT_RETRY_MS))?;
    let (snapshots, asked) = (api.parts.snapshots.clone(), id.to_owned());
    // The turn goes along: the work ends by itself, whoever goes away.
    let opened = tokio::task::spawn_blocking(move || (snapshots.export(&asked), turn)).await;
    let (opened, turn) = opened.map_err(|_| Fault::internal("the export broke off"))?;
    let export = opened
        .map_err(|e| Fault::storage(format!("snapshot {id} cannot be read: {e}")))?
        .ok_or_else(|| unknown(id))?;
    let size = export.size_bytes;
    let name = format!("attachment; filename=\"{id}.tar\"");
    let mut answer = Response::new(Body::from_stream(chunks(export, turn)));
    *answer.status_mut() = StatusCode::OK;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    // An id that names a snapshot of ours is plain ASCII.
    if let Ok(name) = HeaderValue::from_str(&name) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
    Ok(answer)
}

/// Read on blocking threads, a piece whenever the reader took the one before. An error cuts the answer
/// off before its announced length.
fn chunks(
    export: Export,
    turn: tokio::sync::OwnedSemaphorePermit,
) -> impl futures::Stream<Item = std::io::Result<bytes::Bytes>> {
    futures::stream::try_unfold((export, turn), |(mut export, turn)| async move {
        let read =
            tokio::task::spawn_blocking(move || export.next().map(|chunk| (chunk, export, turn))).await;
        let (chunk, export, turn) =
            read.map_err(std::io::Error::other).and_then(|read| read).inspect_err(|e| {
                tracing::warn!(error = %e, "an export is cut off: the snapshot cannot be read");
            })?;
        Ok(chunk.map(|chunk| (chunk, (export, turn))))
    })
}
