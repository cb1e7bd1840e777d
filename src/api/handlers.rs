//! What the methods do, in the words of the parts they ask. No JSON-RPC and no HTTP here but for errors.

use std::{net::SocketAddr, sync::Arc, sync::Mutex, time::Instant};

use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::args::{Args, Consistency, Patience};
use crate::api::control::Noted;
use crate::api::error::Fault;
use crate::api::sessions::Session;
use crate::api::settings::Patch;
use crate::api::status::ms;
use crate::api::trace::Parent;
use crate::api::wire::{Acknowledged, BlockAt, HeadAt, Leader, MembersJson, ProvenanceJson, SettingsJson};
use crate::api::{Api, Parts, cluster, status, turns};
use crate::consensus::handle::ConfigureError;
use crate::instants::proposal::{Door, Traced};
use crate::proposals::{Permit, Proposal};
use crate::store::{ReadError, Reader};
use crate::types::block::Block;
use crate::types::error::Accepted;
use crate::types::settings::keys::to_json;
use crate::types::{Height, LogIndex, Term};

/// Header and data above it are read and encoded on a blocking thread. By eye: a tenth of a millisecond.
const LARGE_BYTES: u64 = 256 << 10;
/// Blocks of a page.
const LIMIT_DEFAULT: u64 = 100;
const LIMIT_MAX: u64 = 1_000;
/// Bytes of a page's JSON where the caller names none.
const PAGE_BYTES_HTTP: u64 = 8 << 20;
/// WebSocket clients end the connection at a limit of their own: 1 MiB is the lowest met.
const PAGE_BYTES_WS: u64 = 1_000_000;
/// What the JSON-RPC answer has around a page, its id included.
const PAGE_ENVELOPE_BYTES: u64 = 4 << 10;

/// How a call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Http,
    WebSocket,
}

/// One call and who makes it.
pub(crate) struct Call {
    pub(crate) api: Arc<Api>,
    pub(crate) transport: Transport,
    /// The caller's WebSocket.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) parent: Option<Parent>,
    /// Of a call that has a span.
    pub(crate) trace: Option<Arc<Traced>>,
    pub(crate) remote: Option<SocketAddr>,
    /// Of a call whose row is `once`.
    pub(crate) operation_id: Option<String>,
    /// A lock, held for a copy: the handler has the call by reference.
    pub(crate) noted: Mutex<Noted>,
}

impl Call {
    /// Where in the log the call ended, for its record.
    pub(crate) fn note(&self, term: Option<Term>, index: Option<LogIndex>) {
        *self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) =
            Noted { term, index, ..Noted::default() };
    }

    /// It may still happen, though the call has a result.
    pub(crate) fn note_unknown(&self) {
        self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_unknown = true;
    }

    pub(crate) fn noted(&self) -> Noted {
        *self.noted.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

pub(crate) type Answer<'a> = BoxFuture<'a, Result<Box<RawValue>, Fault>>;

pub(crate) fn to_raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("an answer has string keys and finite numbers")
}

pub(crate) fn raft_status<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move { Ok(to_raw(&status::of(&call.api.parts))) })
}

pub(crate) fn raft_cluster<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move { Ok(to_raw(&cluster::view(&call.api).await)) })
}

pub(crate) fn raft_leader<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let parts = &call.api.parts;
        if args.get::<bool>("verify")? != Some(true) {
            return Ok(to_raw(&leader(parts)));
        }
        let before = leader(parts);
        let is_confirmed = before.leader_id.is_some() && parts.consensus.verify_leader().await;
        let mut after = leader(parts);
        // What was confirmed is the leader of before: another one since is not.
        after.verified = is_confirmed && (before.leader_id, before.term) == (after.leader_id, after.term);
        Ok(to_raw(&after))
    })
}

pub(crate) fn leader(parts: &Parts) -> Leader {
    let now = parts.leadership.now();
    let is_self = now.leader_id == Some(parts.node.node_id);
    Leader {
        leader_id: now.leader_id,
        leader_api: now.leader_api,
        term: now.term,
        fence: now.fence.filter(|_| is_self),
        is_self,
        ready: is_self.then_some(now.ready),
        verified: false,
        lease_remaining_ms: is_self.then(|| ms(now.lease_remaining)),
    }
}

pub(crate) fn raft_members<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move { Ok(to_raw(&MembersJson::from(&call.api.parts.consensus.status().members))) })
}

pub(crate) fn raft_settings<'a>(call: &'a Call, _: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let view = call.api.parts.reader.view();
        let settings = to_json(&view.settings.settings);
        Ok(to_raw(&SettingsJson { settings, index: view.settings.index }))
    })
}

pub(crate) fn raft_configure<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let patch: Patch = args.need("set")?;
        let expected: Option<LogIndex> = args.get("expectedIndex")?;
        configure(call, &patch, expected).await
    })
}

async fn configure(call: &Call, patch: &Patch, expected: Option<LogIndex>) -> Result<Box<RawValue>, Fault> {
    let api = &call.api;
    let until = Instant::now() + api.parts.proposals.patience();
    loop {
        // Where nobody asked, its settings may be old ones, and its words about them wrong.
        api.parts.consensus.may_configure()?;
        let base = api.parts.reader.view().settings.clone();
        if let Some(version) = expected
            && version != base.index
        {
            return Err(ConfigureError::VersionMismatch { version: base.index }.into());
        }
        let mut settings = base.settings;
        patch.apply(&mut settings, api.config.max_body)?;
        match api.parts.consensus.configure(settings, Some(base.index), until).await {
            Ok(now) => {
                call.note(None, Some(now.index));
                let settings = to_json(&now.settings);
                return Ok(to_raw(&SettingsJson { settings, index: now.index }));
            }
            // Without an index the caller wants its change on top of whatever holds.
            Err(ConfigureError::VersionMismatch { .. }) if expected.is_none() && Instant::now() < until => {}
            Err(e) => return Err(e.into()),
        }
    }
}

pub(crate) fn block_propose<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let received = Instant::now();
        let block: Block = args.need("block")?;
        let fence: Option<u64> = args.get("fence")?;
        let timeout: Option<Patience> = args.get("timeoutMs")?;
        let permit = call.api.parts.proposals.admit(block.payload_bytes())?;
        let begun = || call.api.parts.instants.begin(call.parent, Door::Call);
        let trace = Some(call.trace.clone().unwrap_or_else(begun));
        let proposal = Proposal { block, fence, timeout: timeout.map(|t| t.0), trace, received };
        let accepted = propose(&call.api, proposal, permit).await?;
        Ok(to_raw(&Acknowledged::from(accepted)))
    })
}

/// Proposes in a task of its own: a client that goes away does not cancel what is on its way.
pub(crate) async fn propose(api: &Api, proposal: Proposal, permit: Permit) -> Result<Accepted, Fault> {
    let proposals = api.parts.proposals.clone();
    let task = api.tasks.spawn(async move { proposals.propose(proposal, permit).await });
    match task.await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Fault::internal("the proposal broke off: it may have happened")),
    }
}

/// The head as it was read last: it is asked for often, and its content is not.
///
/// A lock, held for a copy.
#[derive(Default)]
pub(crate) struct HeadCache(Mutex<Option<HeadAt>>);

pub(crate) fn block_head<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        if args.get::<Consistency>("consistency")? == Some(Consistency::Linearizable) {
            call.api.parts.consensus.linearizable().await?;
        }
        Ok(to_raw(&head(&call.api).await?))
    })
}

async fn head(api: &Api) -> Result<Option<HeadAt>, Fault> {
    loop {
        let view = api.parts.reader.view();
        let Some(head) = &view.head else { return Ok(None) };
        let cached = api.head.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        if let Some(cached) = cached.filter(|c| c.index == view.head_pos.index) {
            return Ok(Some(cached));
        }
        match read_block(api, head.height, HeadAt::from).await {
            Ok(read) => {
                *api.head.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(read.clone());
                return Ok(Some(read));
            }
            // It was the head a moment ago, and is pruned: there is another one.
            Err(_) if api.parts.reader.view().head.as_ref() != Some(head) => {}
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn block_get<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move { get(&call.api, args.need("height")?).await })
}

pub(crate) async fn get(api: &Api, height: Height) -> Result<Box<RawValue>, Fault> {
    read_block(api, height, |block| to_raw(&BlockAt::from(block))).await
}

/// Reads a block and makes something of it, on a blocking thread when it is large.
pub(crate) async fn read_block<T: Send + 'static>(
    api: &Api,
    height: Height,
    make: impl FnOnce(crate::types::block::StoredBlock) -> T + Send + 'static,
) -> Result<T, Fault> {
    let size = api.parts.reader.provenance(height)?;
    if size.header_bytes + size.data_bytes <= LARGE_BYTES {
        return Ok(make(api.parts.reader.block(height)?));
    }
    Ok(read_large(api, move |reader| reader.block(height).map(make)).await??)
}

/// A read that moves much: on a blocking thread, a few at once.
async fn read_large<T: Send + 'static>(
    api: &Api,
    read: impl FnOnce(&Reader) -> T + Send + 'static,
) -> Result<T, Fault> {
    let reader = api.parts.reader.clone();
    turns::run(&api.large_reads, move || read(&reader), "the read broke off").await
}

pub(crate) fn block_range<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let from: Height = args.need("fromHeight")?;
        let limit = args.get::<u64>("limit")?.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(Fault::param("limit", "limit is not from 1 to 1000"));
        }
        let bytes_default = match call.transport {
            Transport::Http => PAGE_BYTES_HTTP,
            Transport::WebSocket => PAGE_BYTES_WS,
        };
        let asked = args.get::<u64>("maxBytes")?.unwrap_or(bytes_default);
        if asked == 0 {
            return Err(Fault::param("maxBytes", "maxBytes is not at least 1"));
        }
        let max_bytes = asked.min(call.api.config.max_body.saturating_sub(PAGE_ENVELOPE_BYTES));
        let page =
            read_large(&call.api, move |reader| page(reader, from, limit as usize, max_bytes)).await??;
        Ok(RawValue::from_string(page).expect("a page is put together from JSON"))
    })
}

/// At least one block where there is any, else at most `max_bytes` of JSON.
fn page(reader: &Reader, from: Height, limit: usize, max_bytes: u64) -> Result<String, ReadError> {
    // Hex doubles every byte, so no more than half of the bytes can fit.
    let read = match reader.range(from, limit, max_bytes / 2) {
        // The chain begins above: from its first block on.
        Err(ReadError::NotFound { oldest: Some(first) }) if from < first => {
            reader.range(first, limit, max_bytes / 2)
        }
        read => read,
    }?;
    let mut json = String::from(r#"{"blocks":["#);
    let mut next_height = read.next_height;
    for (i, block) in read.blocks.into_iter().enumerate() {
        let height = block.block.height;
        let block = to_raw(&BlockAt::from(block));
        let full = json.len() + 1 + block.get().len() + r#"],"nextHeight":9007199254740991}"#.len();
        if 0 < i && max_bytes < full as u64 {
            next_height = Some(height);
            break;
        }
        if 0 < i {
            json.push(',');
        }
        json.push_str(block.get());
    }
    json.push(']');
    if let Some(next) = next_height {
        json.push_str(&format!(r#","nextHeight":{next}"#));
    }
    json.push('}');
    Ok(json)
}

pub(crate) fn block_provenance<'a>(call: &'a Call, args: Args<'a>) -> Answer<'a> {
    Box::pin(async move {
        let provenance = call.api.parts.reader.provenance(args.need("height")?)?;
        Ok(to_raw(&ProvenanceJson::from(provenance)))
    })
}
