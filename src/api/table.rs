//! The JSON-RPC methods: one row each.
//!
//! Registration, the decoding of parameters, metric labels, `rpc_methods`, the OpenRPC document and the
//! examples all follow from these rows, in here, [`control`] and [`snapshots`]. A new method is a row and a function.

pub(crate) mod control;
pub(crate) mod leading;
pub(crate) mod snapshots;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::api::args::{Args, Consistency, Param, Patience};
use crate::api::cluster::ClusterJson;
use crate::api::error::Code;
use crate::api::feed::ItemJson;
use crate::api::handlers::{Answer, Call};
use crate::api::logging::LogFilterJson;
use crate::api::settings::Patch;
use crate::api::status::StatusJson;
use crate::api::timeline::TimelineJson;
use crate::api::wire::{
    Acknowledged, BlockAt, BlockPage, HeadAt, Leader, MembersJson, MethodNames, ProvenanceJson, SettingsJson,
};
use crate::api::{handlers, logging, openrpc, subscriptions, timeline};
use crate::types::block::Block;

/// One method.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// Another name for the same.
    pub(crate) alias: Option<&'static str>,
    pub(crate) says: &'static str,
    /// Refused with `notLeader` everywhere else.
    pub(crate) is_leader_only: bool,
    /// Recorded before it acts and with its outcome; see [`crate::api::control`].
    pub(crate) audited: bool,
    /// Takes an operation id, by which it is made once.
    pub(crate) once: bool,
    pub(crate) params: &'static [Param],
    pub(crate) result: fn(&mut SchemaGenerator) -> Schema,
    /// Beside the standard ones.
    pub(crate) errors: &'static [Code],
    /// Parameters by name, and the result they may have, as JSON. An empty result: it is taken from
    /// the table itself.
    pub(crate) example: (&'static str, &'static str),
    pub(crate) run: for<'a> fn(&'a Call, Args<'a>) -> Answer<'a>,
}

impl Method {
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        [self.name].into_iter().chain(self.alias)
    }
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// Every code a proposal can end with, beside the standard ones.
const PROPOSAL: &[Code] = &[
    Code::NotLeader,
    Code::NoLeader,
    Code::Fenced,
    Code::Refused,
    Code::Overloaded,
    Code::Unknown,
    Code::Storage,
    Code::Unavailable,
];
const LOCAL: &[Code] = &[Code::Overloaded, Code::Unavailable];
const LINEARIZABLE: &[Code] = &[Code::NoLeader, Code::Overloaded, Code::Storage, Code::Unavailable];
const BY_HEIGHT: &[Code] = &[Code::NotFound, Code::Overloaded, Code::Storage, Code::Unavailable];
const BY_LEADER: &[Code] = &[
    Code::NotLeader,
    Code::NoLeader,
    Code::Overloaded,
    Code::Unknown,
    Code::Precondition,
    Code::Unavailable,
];

const SUBSCRIBE: &[Code] = &[Code::NotFound, Code::Overloaded, Code::Storage, Code::Unavailable];

/// An id; and the items that it names are in the document too.
fn subscription_schema(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<ItemJson>();
    schemars::json_schema!({
        "type": "string",
        "description": "The subscription's id; its items are #/components/schemas/FeedItem."
    })
}

const HEIGHT: Param = Param::required::<u64>("height", "The block's height.");

/// The method that proposes.
pub(crate) const PROPOSE: &str = "block_propose";

const METHODS: &[Method] = &[
    Method {
        name: "raft_status",
        alias: None,
        says: "This node's whole view of itself: role, positions, lease, head, membership.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<StatusJson>,
        errors: LOCAL,
        example: ("{}", EXAMPLE_STATUS),
        run: handlers::raft_status,
    },
    Method {
        name: "raft_cluster",
        alias: None,
        says: "Every member's raft_status, asked by this node over the peer port.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<ClusterJson>,
        errors: LOCAL,
        example: (
            "{}",
            r#"{"nodes":[{"nodeId":3,"name":"node-3","apiAddr":"127.0.0.1:7403","reachable":false,"ageMs":5210}]}"#,
        ),
        run: handlers::raft_cluster,
    },
    Method {
        name: "raft_leader",
        alias: None,
        says: "Who leads. Fence, readiness and lease are null where another node leads.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[Param::optional::<bool>("verify", "Ask a quorum whether this leader still leads.")],
        result: schema::<Leader>,
        errors: LOCAL,
        example: (
            r#"{"verify":true}"#,
            r#"{"leaderId":1,"leaderApi":"127.0.0.1:7401","term":7,"fence":7,"isSelf":true,"ready":true,"verified":true,"leaseRemainingMs":160}"#,
        ),
        run: handlers::raft_leader,
    },
    Method {
        name: "raft_members",
        alias: None,
        says: "The members with their names and addresses.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<MembersJson>,
        errors: LOCAL,
        example: (
            "{}",
            r#"{"version":1,"voters":[{"nodeId":1,"name":"node-1","peerAddr":"127.0.0.1:7501","apiAddr":"127.0.0.1:7401"}],"learners":[],"joint":false}"#,
        ),
        run: handlers::raft_members,
    },
    Method {
        name: "raft_settings",
        alias: None,
        says: "The settings of the cluster in force, as flat TOML keys, and the log index that set them.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<SettingsJson>,
        errors: LOCAL,
        example: ("{}", EXAMPLE_SETTINGS),
        run: handlers::raft_settings,
    },
    Method {
        name: "raft_configure",
        alias: None,
        says: "Changes settings of the cluster, for every node at once.",
        is_leader_only: true,
        audited: true,
        once: false,
        params: &[
            Param::required::<Patch>("set", "The settings to change, by TOML key."),
            Param::optional::<u64>("expectedIndex", "Refuse when the settings in force have another index."),
        ],
        result: schema::<SettingsJson>,
        errors: BY_LEADER,
        example: (r#"{"set":{"chain.block_interval":"1s"},"expectedIndex":4}"#, EXAMPLE_SETTINGS),
        run: handlers::raft_configure,
    },
    Method {
        name: PROPOSE,
        alias: None,
        says: "Proposes a block; answers once it is committed and applied here. The same block again is a success.",
        is_leader_only: true,
        audited: false,
        once: false,
        params: &[
            Param::required::<Block>("block", "The block."),
            Param::optional::<u64>(
                "fence",
                "Refuse in any other term. Without one: the fence held on arrival.",
            ),
            Param::optional::<Patience>(
                "timeoutMs",
                "How long to wait, 1 to 30000; default api.propose_timeout.",
            ),
        ],
        result: schema::<Acknowledged>,
        errors: PROPOSAL,
        example: (
            r#"{"block":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000","header":"0x01","data":"0x0203"}}"#,
            r#"{"height":1,"hash":"0xa1","term":7,"index":12,"duplicate":false,"traceId":"4bf92f3577b34da6a3ce929d0e0e4736"}"#,
        ),
        run: handlers::block_propose,
    },
    Method {
        name: "block_head",
        alias: None,
        says: "The highest block, without header and data; null before the first one.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[Param::optional::<Consistency>("consistency", "Default local.")],
        result: schema::<Option<HeadAt>>,
        errors: LINEARIZABLE,
        example: (
            r#"{"consistency":"linearizable"}"#,
            r#"{"block":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000","lastSubmittedDaHeaderHeight":0,"lastSubmittedDaDataHeight":0},"term":7,"index":12}"#,
        ),
        run: handlers::block_head,
    },
    Method {
        name: "block_get",
        alias: None,
        says: "The block at a height.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[HEIGHT],
        result: schema::<BlockAt>,
        errors: BY_HEIGHT,
        example: (r#"{"height":1}"#, EXAMPLE_BLOCK),
        run: handlers::block_get,
    },
    Method {
        name: "block_range",
        alias: None,
        says: "Blocks from a height on: at least one, none above the head, at most maxBytes of JSON.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[
            Param::required::<u64>("fromHeight", "The first height."),
            Param::optional::<u64>("limit", "1 to 1000, default 100."),
            Param::optional::<u64>("maxBytes", "Default 8 MiB over HTTP, 1000000 over WebSocket."),
        ],
        result: schema::<BlockPage>,
        errors: BY_HEIGHT,
        example: (r#"{"fromHeight":1,"limit":10}"#, r#"{"blocks":[],"nextHeight":11}"#),
        run: handlers::block_range,
    },
    Method {
        name: "block_provenance",
        alias: None,
        says: "Who proposed the block at a height, when, and where it stands in the log.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[HEIGHT],
        result: schema::<ProvenanceJson>,
        errors: BY_HEIGHT,
        example: (
            r#"{"height":1}"#,
            r#"{"height":1,"hash":"0xa1","term":7,"index":12,"proposerId":1,"proposedAt":1700000000100,"appliedAt":1700000000101,"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","headerBytes":1,"dataBytes":2}"#,
        ),
        run: handlers::block_provenance,
    },
    Method {
        name: "block_subscribeApplied",
        alias: None,
        says: "Applied blocks, in log order, as block_applied; from a place in the history or from now on. What a \
               slow reader misses is told as a gap and follows. WebSocket only.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: subscriptions::TOPICS[0].params,
        result: subscription_schema,
        errors: SUBSCRIBE,
        example: (r#"{"fromHeight":1}"#, EXAMPLE_SUBSCRIPTION),
        run: subscriptions::refuse,
    },
    Method {
        name: "block_unsubscribeApplied",
        alias: None,
        says: "Ends a subscription of this connection, whichever method made it; false: there is none.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: subscriptions::UNSUBSCRIBE_PARAMS,
        result: schema::<bool>,
        errors: LOCAL,
        example: (EXAMPLE_UNSUBSCRIBE, "true"),
        run: subscriptions::unsubscribe,
    },
    Method {
        name: subscriptions::SUBSCRIBE,
        alias: None,
        says: "Subscribes to a topic; its items come as raft_subscription. WebSocket only.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: subscriptions::SUBSCRIBE_PARAMS,
        result: subscription_schema,
        errors: SUBSCRIBE,
        example: (r#"{"topic":"applied","options":{"fromHeight":1}}"#, EXAMPLE_SUBSCRIPTION),
        run: subscriptions::refuse,
    },
    Method {
        name: subscriptions::UNSUBSCRIBE,
        alias: None,
        says: "Ends a subscription of this connection, whichever method made it; false: there is none.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: subscriptions::UNSUBSCRIBE_PARAMS,
        result: schema::<bool>,
        errors: LOCAL,
        example: (EXAMPLE_UNSUBSCRIBE, "true"),
        run: subscriptions::unsubscribe,
    },
    Method {
        name: "block_timeline",
        alias: None,
        says: "Where the time of the block at a height went, on every node that remembers it.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[HEIGHT],
        result: schema::<TimelineJson>,
        errors: BY_HEIGHT,
        example: (
            r#"{"height":1}"#,
            r#"{"height":1,"term":7,"index":12,"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","nodes":[{"nodeId":1,"role":"leader","clockOffsetUs":0,"stages":[{"stage":"queue","startUs":1700000000100000,"durationUs":40},{"stage":"replicate","peerId":2,"startUs":1700000000100050,"durationUs":310}]}]}"#,
        ),
        run: timeline::block_timeline,
    },
    Method {
        name: "node_setLogFilter",
        alias: None,
        says: "Changes which lines this node logs, for good or for a while.",
        is_leader_only: false,
        audited: true,
        once: false,
        params: &[
            Param::required::<String>("filter", "As telemetry.log_filter."),
            Param::optional::<u64>("forMs", "After it the last filter without a time holds again."),
        ],
        result: schema::<LogFilterJson>,
        errors: LOCAL,
        example: (
            r#"{"filter":"info,blockraft::leadership=debug","forMs":600000}"#,
            r#"{"filter":"info,blockraft::leadership=debug","previous":"info","untilMs":1700000600000}"#,
        ),
        run: logging::set_filter,
    },
    Method {
        name: "rpc.discover",
        alias: Some("rpc_discover"),
        says: "This document.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: openrpc::document_schema,
        errors: &[],
        example: ("{}", r#"{"openrpc":"1.3.2"}"#),
        run: openrpc::discover,
    },
    Method {
        name: "rpc_methods",
        alias: None,
        says: "The names of all methods, sorted.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<MethodNames>,
        errors: &[],
        example: ("{}", ""),
        run: openrpc::methods,
    },
];

const EXAMPLE_SUBSCRIPTION: &str = r#""Q3l9dNwq2kXvB7aT""#;
const EXAMPLE_UNSUBSCRIBE: &str = r#"{"subscription":"Q3l9dNwq2kXvB7aT"}"#;

const EXAMPLE_STATUS: &str = r#"{"clusterId":"demo","nodeId":1,"name":"node-1","version":"0.1.0","role":"leader","term":7,"leaderId":1,"fence":7,"ready":true,"paused":false,"blockers":[],"lastLogIndex":12,"committedIndex":12,"clusterCommittedIndex":12,"appliedIndex":12,"snapshotIndex":0,"purgedIndex":0,"applyLag":0,"compactionLag":12,"lease":{"valid":true,"remainingMs":160,"quorumAckAgeMs":15},"head":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000"},"membership":{"version":1,"voters":[1,2,3],"learners":[],"joint":false},"peers":[{"nodeId":2,"matchedIndex":12,"lag":0,"lastAckAgeMs":15,"reachable":true}],"settingsDiffer":false,"addressDiffers":false,"uptimeMs":60000}"#;

const EXAMPLE_SETTINGS: &str = r#"{"settings":{"chain.continuity":"strict","chain.timestamps":"strict","chain.require_fence":false,"chain.max_block_bytes":15728640,"chain.max_ahead":"15s","chain.first_height":null,"chain.block_interval":"0s","state.history_blocks":10000,"state.history_bytes":8589934592},"index":4}"#;

const EXAMPLE_BLOCK: &str = r#"{"block":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000","header":"0x01","data":"0x0203","lastSubmittedDaHeaderHeight":0,"lastSubmittedDaDataHeight":0},"term":7,"index":12}"#;

/// All rows.
pub(crate) fn methods() -> impl Iterator<Item = &'static Method> {
    METHODS.iter().chain(control::METHODS).chain(leading::METHODS).chain(snapshots::METHODS)
}

/// Names of the rows that are recorded.
pub(crate) fn audited() -> Vec<&'static str> {
    methods().filter(|m| m.audited).map(|m| m.name).collect()
}

/// The method of a name or an alias.
pub(crate) fn find(name: &str) -> Option<&'static Method> {
    methods().find(|m| m.name == name || m.alias == Some(name))
}

/// All names, aliases too, sorted.
pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = methods().flat_map(|m| m.names()).collect();
    names.sort_unstable();
    names
}
