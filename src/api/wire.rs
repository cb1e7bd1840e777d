//! The JSON shapes of the contract: what answers consist of, and how bytes and integers are written.
//!
//! Field names are camelCase. Bytes are `0x` hex in lower case, a block's timestamp is decimal text, all
//! other integers are numbers. The schemas of the OpenRPC document come from these types.

use std::borrow::Cow;

use bytes::Bytes;
use hex_simd::AsOut;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use crate::types::block::{Block, BlockRef, Provenance, StoredBlock};
use crate::types::error::Accepted;
use crate::types::member::{Member, Members};
use crate::types::{Height, LogIndex, NodeId, Term};

/// Bytes, written as `0x` and two lower-case hex digits each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) Bytes);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 + 2 * self.0.len());
        text.push_str("0x");
        hex_simd::encode_append(&self.0, &mut text, hex_simd::AsciiCase::Lower);
        s.serialize_str(&text)
    }
}

impl JsonSchema for Hex {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^0x([0-9a-fA-F]{2})*$",
            "description": "Bytes as 0x and hex digits; lower case in answers."
        })
    }
}

/// Nanoseconds since the epoch: above 2^53, so always decimal text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nanos(pub(crate) u64);

impl Serialize for Nanos {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&self.0)
    }
}

impl JsonSchema for Nanos {
    fn schema_name() -> Cow<'static, str> {
        "Nanoseconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "Nanoseconds since the epoch, as decimal text."
        })
    }
}

/// 16 bytes, as W3C writes them: 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId(pub(crate) [u8; 16]);

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut digits = [0u8; 32];
        let text =
            hex_simd::encode_as_str(&self.0, digits.as_mut_slice().as_out(), hex_simd::AsciiCase::Lower);
        s.serialize_str(text)
    }
}

impl JsonSchema for TraceId {
    fn schema_name() -> Cow<'static, str> {
        "TraceId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9a-f]{32}$",
            "description": "W3C trace id."
        })
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "BlockRef")]
pub(crate) struct BlockRefJson {
    height: Height,
    hash: Hex,
    timestamp: Nanos,
}

impl From<BlockRef> for BlockRefJson {
    fn from(b: BlockRef) -> Self {
        Self { height: b.height, hash: Hex(b.hash), timestamp: Nanos(b.timestamp) }
    }
}

/// A block as a sequencer handed it over.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Block")]
pub(crate) struct BlockJson {
    height: Height,
    hash: Hex,
    timestamp: Nanos,
    header: Hex,
    data: Hex,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_hash: Option<Hex>,
    last_submitted_da_header_height: Height,
    last_submitted_da_data_height: Height,
}

impl From<Block> for BlockJson {
    fn from(b: Block) -> Self {
        Self {
            height: b.height,
            hash: Hex(b.hash),
            timestamp: Nanos(b.timestamp),
            header: Hex(b.header),
            data: Hex(b.data),
            parent_hash: b.parent_hash.map(Hex),
            last_submitted_da_header_height: b.last_submitted_da_header_height,
            last_submitted_da_data_height: b.last_submitted_da_data_height,
        }
    }
}

/// A block and its place in the log.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BlockAt {
    block: BlockJson,
    term: Term,
    index: LogIndex,
}

impl From<StoredBlock> for BlockAt {
    fn from(b: StoredBlock) -> Self {
        Self { block: b.block.into(), term: b.term, index: b.index }
    }
}

/// A block without its content.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockHead {
    height: Height,
    hash: Hex,
    timestamp: Nanos,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_hash: Option<Hex>,
    last_submitted_da_header_height: Height,
    last_submitted_da_data_height: Height,
}

/// The head and its place in the log.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct HeadAt {
    block: BlockHead,
    term: Term,
    pub(crate) index: LogIndex,
}

impl From<&Block> for BlockHead {
    fn from(b: &Block) -> Self {
        // Copies of the short fields: a slice would keep the content alive.
        let short = |bytes: &Bytes| Hex(Bytes::copy_from_slice(bytes));
        Self {
            height: b.height,
            hash: short(&b.hash),
            timestamp: Nanos(b.timestamp),
            parent_hash: b.parent_hash.as_ref().map(short),
            last_submitted_da_header_height: b.last_submitted_da_header_height,
            last_submitted_da_data_height: b.last_submitted_da_data_height,
        }
    }
}

impl From<StoredBlock> for HeadAt {
    fn from(b: StoredBlock) -> Self {
        Self { block: (&b.block).into(), term: b.term, index: b.index }
    }
}

/// Blocks with rising heights.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BlockPage {
    blocks: Vec<BlockAt>,
    /// Present if and only if more follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_height: Option<Height>,
}

/// An acknowledged block: committed, and applied on the node that answers.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Acknowledged {
    height: Height,
    hash: Hex,
    term: Term,
    index: LogIndex,
    /// The same block was there already; term and index are the first one's.
    duplicate: bool,
    trace_id: Option<TraceId>,
}

impl From<Accepted> for Acknowledged {
    fn from(a: Accepted) -> Self {
        Self {
            height: a.height,
            hash: Hex(a.hash),
            term: a.term,
            index: a.index,
            duplicate: a.duplicate,
            trace_id: a.trace_id.map(TraceId),
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Provenance")]
pub(crate) struct ProvenanceJson {
    height: Height,
    hash: Hex,
    term: Term,
    index: LogIndex,
    proposer_id: NodeId,
    /// Unix milliseconds by the proposer's clock.
    proposed_at: u64,
    /// Unix milliseconds by this node's clock; null for a block that came by snapshot.
    applied_at: Option<u64>,
    trace_id: Option<TraceId>,
    header_bytes: u64,
    data_bytes: u64,
}

impl From<Provenance> for ProvenanceJson {
    fn from(p: Provenance) -> Self {
        Self {
            height: p.height,
            hash: Hex(p.hash),
            term: p.term,
            index: p.index,
            proposer_id: p.proposer_id,
            proposed_at: p.proposed_at_ms,
            applied_at: p.applied_at_ms,
            trace_id: p.trace_id.map(TraceId),
            header_bytes: p.header_bytes,
            data_bytes: p.data_bytes,
        }
    }
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Member")]
pub(crate) struct MemberJson {
    node_id: NodeId,
    name: String,
    peer_addr: String,
    api_addr: Option<String>,
}

impl From<&Member> for MemberJson {
    fn from(m: &Member) -> Self {
        Self {
            node_id: m.node_id,
            name: m.name.clone(),
            peer_addr: m.peer_addr.clone(),
            api_addr: api_addr_of(m),
        }
    }
}

/// A member may have been added without an API address.
pub(crate) fn api_addr_of(member: &Member) -> Option<String> {
    (!member.api_addr.is_empty()).then(|| member.api_addr.clone())
}

#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Members")]
pub(crate) struct MembersJson {
    /// Log index of the membership.
    version: LogIndex,
    voters: Vec<MemberJson>,
    learners: Vec<MemberJson>,
    joint: bool,
}

impl From<&Members> for MembersJson {
    fn from(m: &Members) -> Self {
        let named = |ids: &std::collections::BTreeSet<NodeId>| {
            ids.iter().filter_map(|id| m.nodes.get(id)).map(Into::into).collect()
        };
        Self { version: m.version, voters: named(&m.voters), learners: named(&m.learners), joint: m.joint }
    }
}

/// Who leads, as this node knows it. Fence, readiness and lease are null where another node leads.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Leader {
    pub(crate) leader_id: Option<NodeId>,
    pub(crate) leader_api: Option<String>,
    pub(crate) term: Term,
    pub(crate) fence: Option<u64>,
    pub(crate) is_self: bool,
    pub(crate) ready: Option<bool>,
    /// A quorum confirmed this leader just now; false when it was not asked.
    pub(crate) verified: bool,
    pub(crate) lease_remaining_ms: Option<u64>,
}

/// The settings of the cluster as flat TOML keys, and the log index that set them.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SettingsJson {
    pub(crate) settings: serde_json::Map<String, serde_json::Value>,
    pub(crate) index: LogIndex,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MethodNames {
    pub(crate) methods: Vec<&'static str>,
}

#[cfg(test)]
mod tests;
