//! The record of control operations: who asked this node for what, and how it ended.
//!
//! A call has two records, `started` before it acts and its outcome after. Each carries the hash of the one
//! before, so that none can be changed, left out or put in between without [`Chain::verify`] finding it:
//! `hash = blake3(prevHash, JSON)`, the JSON as it is answered, without its last two fields. What is dropped
//! leaves a checkpoint, the newest record is named a second time. This finds damage and careless hands; who
//! can write the data folder can write a whole new chain.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::audit::journal::{Entry, Journal, Page, Spec};
use crate::audit::metrics::Metrics;
use crate::audit::unix_ms;
use crate::store;
use crate::store::local::Record;
use crate::types::{LogIndex, NodeId, Term};

/// A hand-over that nobody asked this node for, as an action.
pub(crate) const HANDOVER: &str = "handover";
/// A recover that made this folder the cluster, as an action.
pub(crate) const RECOVER: &str = "recover";
/// Records that found no room while the disk was full, as an action.
pub(crate) const LOST: &str = "lost";

/// Longest text of parameters that is recorded. By eye: many times what any audited method needs.
const PARAMS_BYTES_MAX: usize = 4 << 10;
/// A call does not wait longer for its first record. By eye: many times a sync; a hand-over that waits for
/// a hung disk would keep a leader that can do nothing else.
const DURABLE_WITHIN: Duration = Duration::from_millis(500);
/// Problems that a verification tells of.
const PROBLEMS_MAX: usize = 100;
const HASH_BYTES: usize = 32;

const HEAD: &[u8] = b"audit-head";
const CHECKPOINT: &[u8] = b"audit-checkpoint";
const SPEC: Spec = Spec { prefix: b"audit/", kept: 100_000, beside };

type Hash = [u8; HASH_BYTES];

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    Started,
    Ok,
    /// It did not happen.
    Refused,
    /// It may have happened.
    Unknown,
}

impl Outcome {
    pub(crate) const ALL: [Self; 4] = [Self::Started, Self::Ok, Self::Refused, Self::Unknown];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// What is asked of this node.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    /// Name of the caller's token; `-` without one.
    pub(crate) who: String,
    /// Role of the caller's token; `-` without one.
    pub(crate) role: String,
    /// `host:port`; `-` for what this node does by itself.
    pub(crate) remote_addr: String,
    /// One of the closed set that the metric knows.
    pub(crate) method: &'static str,
    /// A JSON object.
    pub(crate) params: Box<RawValue>,
    pub(crate) operation_id: Option<String>,
    pub(crate) trace_id: Option<[u8; 16]>,
}

impl Act {
    /// What this node does by itself; `params` is a JSON object.
    pub(crate) fn own(method: &'static str, params: &serde_json::Value) -> Self {
        let params = RawValue::from_string(params.to_string()).expect("a value is JSON");
        let none = || "-".to_owned();
        Self {
            who: none(),
            role: none(),
            remote_addr: none(),
            method,
            params,
            operation_id: None,
            trace_id: None,
        }
    }
}

/// How an operation ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<String>,
    pub(crate) term: Term,
    pub(crate) index: Option<LogIndex>,
}

/// A record but for its hashes, in the order in which it is answered.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    id: u64,
    at: u64,
    node_id: NodeId,
    who: &'a str,
    role: &'a str,
    remote_addr: &'a str,
    method: &'a str,
    params: &'a RawValue,
    operation_id: Option<&'a str>,
    outcome: Outcome,
    /// Of the record that the call began with.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    term: Term,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<LogIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

/// A stored record: both hashes, then the JSON.
fn encode(prev: Hash, json: &[u8]) -> Bytes {
    [&prev[..], &hash_of(&prev, json), json].concat().into()
}

fn hash_of(prev: &Hash, json: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prev);
    hasher.update(json);
    hasher.finalize().into()
}

/// `prevHash`, `hash`, JSON.
fn decode(value: &[u8]) -> Option<(Hash, Hash, &[u8])> {
    let (prev, rest) = value.split_first_chunk()?;
    let (hash, json) = rest.split_first_chunk()?;
    Some((*prev, *hash, json))
}

/// The end of the chain, and where it begins once something was dropped.
fn beside(newest: &Entry, dropped: Option<&Entry>) -> Vec<Record> {
    let mark = |key: &[u8], entry: &Entry| {
        let hash = decode(&entry.value).map_or([0; HASH_BYTES], |(_, hash, _)| hash);
        let mark = [&entry.id.to_be_bytes()[..], &hash].concat();
        (key.to_vec(), Some(Bytes::from(mark)))
    };
    let dropped = dropped.map(|entry| mark(CHECKPOINT, entry));
    [mark(HEAD, newest)].into_iter().chain(dropped).collect()
}

fn read_mark(local: &store::Local, key: &[u8]) -> io::Result<Option<(u64, Hash)>> {
    let Some(mark) = local.get(key)? else { return Ok(None) };
    let mark = mark.split_first_chunk().and_then(|(id, hash)| {
        let hash: Hash = hash.try_into().ok()?;
        Some((u64::from_be_bytes(*id), hash))
    });
    Ok(mark)
}

/// A place where the chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) id: u64,
    pub(crate) what: String,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    pub(crate) checked: u64,
    /// The first hundred.
    pub(crate) problems: Vec<Problem>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Chain {
    shared: Arc<Shared>,
}

struct Shared {
    journal: Journal,
    local: store::Local,
    health: store::Health,
    node_id: NodeId,
    metrics: Metrics,
}

impl Chain {
    /// Blocking. Where the newest record is missing the chain goes on behind its hash, and
    /// [`Chain::verify`] tells of the hole.
    pub(super) fn open(
        local: store::Local,
        health: store::Health,
        node_id: NodeId,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let floor = read_mark(&local, HEAD)?.map(|(id, hash)| {
            let value = [&[0; HASH_BYTES][..], &hash].concat().into();
            Entry { id, value }
        });
        let journal = Journal::open(local.clone(), SPEC, floor)?;
        Ok(Self { shared: Arc::new(Shared { journal, local, health, node_id, metrics }) })
    }

    /// Records that an operation begins, without waiting. Who must not act before that is durable awaits
    /// [`Started::durable`].
    pub(crate) fn started(&self, act: Act, term: Term) -> Started {
        let ended = Ended { outcome: Outcome::Started, reason: None, term, index: None };
        let act = Act { params: bounded(act.params), ..act };
        let id = self.append(&act, &ended, None);
        Started { chain: self.clone(), act, term, id, is_over: false }
    }

    fn append(&self, act: &Act, ended: &Ended, started_id: Option<u64>) -> Option<u64> {
        if let Some(lost) = self.shared.journal.take_lost() {
            let act = Act::own(LOST, &serde_json::json!({ "records": lost }));
            let ended = Ended { outcome: Outcome::Unknown, reason: None, term: ended.term, index: None };
            self.write(&act, &ended, None);
        }
        self.write(act, ended, started_id)
    }

    fn write(&self, act: &Act, ended: &Ended, started_id: Option<u64>) -> Option<u64> {
        let at = unix_ms();
        let make = |id, last: Option<&Bytes>| {
            let body = Body {
                id,
                at,
                node_id: self.shared.node_id,
                who: &act.who,
                role: &act.role,
                remote_addr: &act.remote_addr,
                method: act.method,
                params: &act.params,
                operation_id: act.operation_id.as_deref(),
                outcome: ended.outcome,
                started_id,
                reason: ended.reason.as_deref(),
                term: ended.term,
                index: ended.index,
                trace_id: act.trace_id.map(|id| hex_simd::encode_to_string(id, hex_simd::AsciiCase::Lower)),
            };
            let json = serde_json::to_vec(&body).expect("a record has string keys and finite numbers");
            let prev = last.and_then(|l| decode(l)).map_or([0; HASH_BYTES], |(_, hash, _)| hash);
            encode(prev, &json)
        };
        self.shared.metrics.count(act.method, ended.outcome);
        self.shared.journal.append(make).ok()
    }

    /// At most `limit` records from an id on, without one the newest; each as JSON text.
    pub(crate) async fn page(
        &self,
        from: Option<u64>,
        limit: usize,
    ) -> io::Result<(Vec<String>, Option<u64>)> {
        let Page { entries, next } = self.shared.journal.page(from, limit).await?;
        let texts = entries.iter().map(|e| {
            to_json(&e.value).ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("record {} is damaged", e.id))
            })
        });
        Ok((texts.collect::<io::Result<_>>()?, next))
    }

    /// Looks at every record that is kept.
    pub(crate) async fn verify(&self) -> io::Result<Verdict> {
        // The end first and the beginning last: what is added or dropped meanwhile is not missing.
        self.flush_within(DURABLE_WITHIN).await;
        let head = self.mark(HEAD).await?;
        let mut check = Check::default();
        self.shared.journal.each_chunk(|entries| entries.iter().for_each(|e| check.on(e))).await?;
        Ok(check.end(self.mark(CHECKPOINT).await?, head))
    }

    async fn mark(&self, key: &'static [u8]) -> io::Result<Option<(u64, Hash)>> {
        let local = self.shared.local.clone();
        tokio::task::spawn_blocking(move || read_mark(&local, key)).await.map_err(io::Error::other)?
    }

    async fn flush_within(&self, within: Duration) {
        let _ = tokio::time::timeout(within, self.shared.journal.flush()).await;
    }

    pub(super) async fn run(&self) {
        self.shared.journal.run().await;
    }

    pub(super) async fn flush(&self) {
        self.shared.journal.flush().await;
    }
}

/// An operation under way. Dropped, it ended in a way that nobody told.
pub(crate) struct Started {
    chain: Chain,
    act: Act,
    term: Term,
    /// `None`: there was no room for it.
    id: Option<u64>,
    is_over: bool,
}

impl Started {
    /// Returns when the record is durable, or need not be waited for: the disk is full or hangs, and nothing
    /// an operator does about that may wait for it. It is written when the disk takes it.
    pub(crate) async fn durable(&self) {
        let Some(id) = self.id else { return };
        if self.chain.shared.health.is_full() {
            return;
        }
        let durable = self.chain.shared.journal.durable(id);
        if tokio::time::timeout(DURABLE_WITHIN, durable).await.is_err() {
            tracing::warn!(method = self.act.method, "an operation begins before its record is durable");
        }
    }

    /// Records how it ended, without waiting.
    pub(crate) fn end(mut self, ended: &Ended) {
        self.is_over = true;
        self.chain.append(&self.act, ended, self.id);
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let reason = Some("broke off".to_owned());
        let ended = Ended { outcome: Outcome::Unknown, reason, term: self.term, index: None };
        self.chain.append(&self.act, &ended, self.id);
    }
}

/// Parameters of a bounded size: what is longer is told by its length.
fn bounded(params: Box<RawValue>) -> Box<RawValue> {
    let bytes = params.get().len();
    if bytes <= PARAMS_BYTES_MAX {
        return params;
    }
    RawValue::from_string(format!(r#"{{"tooLong":{bytes}}}"#)).expect("it is JSON")
}

/// A stored record as it is answered.
fn to_json(value: &[u8]) -> Option<String> {
    let (prev, hash, json) = decode(value)?;
    let fields = std::str::from_utf8(json).ok()?.strip_suffix('}')?;
    let hex = |hash: Hash| hex_simd::encode_to_string(hash, hex_simd::AsciiCase::Lower);
    Some(format!(r#"{fields},"prevHash":"0x{}","hash":"0x{}"}}"#, hex(prev), hex(hash)))
}

/// A verification under way: where the chain stands.
#[derive(Default)]
struct Check {
    verdict: Verdict,
    /// The first record that was met, and the hash it names.
    first: Option<(u64, Option<Hash>)>,
    /// Id of the record that was met last.
    last: Option<u64>,
    /// Its hash; `None`: it is not known.
    prev: Option<Hash>,
}

impl Check {
    fn problem(&mut self, id: u64, what: impl Into<String>) {
        if self.verdict.problems.len() < PROBLEMS_MAX {
            self.verdict.problems.push(Problem { id, what: what.into() });
        }
    }

    fn missing(&mut self, from: u64, upto: u64) {
        self.problem(from, format!("records {from} to {upto} are missing"));
    }

    fn on(&mut self, entry: &Entry) {
        let id = entry.id;
        self.verdict.checked += 1;
        let decoded = decode(&entry.value);
        self.first.get_or_insert((id, decoded.map(|(prev, ..)| prev)));
        if let Some(last) = self.last.replace(id)
            && last + 1 != id
        {
            self.missing(last + 1, id - 1);
            self.prev = None;
        }
        let Some((prev, hash, json)) = decoded else {
            self.problem(id, "it is too short to be a record");
            self.prev = None;
            return;
        };
        if self.prev.is_some_and(|expected| expected != prev) {
            self.problem(id, "it does not follow the record before");
        }
        if hash_of(&prev, json) != hash {
            self.problem(id, "its content is not what its hash says");
        }
        if serde_json::from_slice::<Named>(json).ok().map(|n| n.id) != Some(id) {
            self.problem(id, "its content does not have its id");
        }
        self.prev = Some(hash);
    }

    /// `checkpoint` is the newest record that was dropped, `head` the newest that was written before the look.
    fn end(mut self, checkpoint: Option<(u64, Hash)>, head: Option<(u64, Hash)>) -> Verdict {
        let (dropped, before) = checkpoint.unwrap_or((0, [0; HASH_BYTES]));
        if let Some((first, prev)) = self.first {
            if dropped + 1 < first {
                self.missing(dropped + 1, first - 1);
            } else if dropped + 1 == first && prev.is_some_and(|p| p != before) {
                self.problem(first, "it does not follow what was dropped before it");
            }
        }
        let last = self.last.unwrap_or(dropped);
        match head {
            Some((id, _)) if last < id => self.missing(last + 1, id),
            Some((id, hash)) if last == id && self.prev.is_some_and(|p| p != hash) => {
                self.problem(id, "it is not the record that the chain ended with");
            }
            Some(_) | None => {}
        }
        self.verdict
    }
}

#[derive(serde::Deserialize)]
struct Named {
    id: u64,
}
