//! Rows of what moves leadership, pauses a node, and serves an executor.

use bytes::Bytes;
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::api::args::{Param, Patience};
use crate::api::control::{DRY_RUN, OPERATION_ID};
use crate::api::error::Code;
use crate::api::executors::{ExecutorJson, VerdictJson};
use crate::api::leaderships::NoticeJson;
use crate::api::moves::{ElectionJson, HandoverJson, PausedJson};
use crate::api::table::{
    BY_LEADER, EXAMPLE_SUBSCRIPTION, EXAMPLE_UNSUBSCRIBE, LOCAL, Method, SUBSCRIBE, schema,
};
use crate::api::{executors, moves, subscriptions};

const RESIGN: &[Code] = &[Code::NoLeader, Code::Overloaded, Code::Precondition, Code::Unavailable];
const ELECTION: &[Code] =
    &[Code::NoLeader, Code::Overloaded, Code::Unknown, Code::Precondition, Code::Unavailable];
const PAUSES: &[Code] = &[Code::Overloaded, Code::Storage, Code::Unavailable, Code::Unknown];
const EXECUTOR: &[Code] = &[Code::Overloaded, Code::Storage, Code::Unavailable];

/// An id; and the items that it names are in the document too.
fn leaderships_schema(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<NoticeJson>();
    json_schema!({
        "type": "string",
        "description": "The subscription's id; its items are #/components/schemas/LeadershipNotice."
    })
}

const EXAMPLE_HANDOVER: &str = r#"{"operationId":"8c1f0a6e2b7d4935","from":1,"to":2,"oldTerm":7,"newTerm":8,"elapsedMs":12,"leaderId":2,"outcome":"transferred"}"#;

pub(crate) const METHODS: &[Method] = &[
    Method {
        name: "raft_transferLeader",
        alias: None,
        says: "Hands leadership to a voter and returns when it leads. Without `to`: to the fittest one.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: &[
            Param::optional::<u64>("to", "The node that shall lead."),
            Param::optional::<Patience>(
                "timeoutMs",
                "How long to wait, 1 to 30000; default raft.resign_timeout. After it the transfer may still happen.",
            ),
            Param::optional::<bool>("force", "Also to a node that is not fit."),
            Param::optional::<bool>(DRY_RUN, "Say whom it would choose, and do nothing."),
            OPERATION_ID,
        ],
        result: schema::<HandoverJson>,
        errors: BY_LEADER,
        example: (r#"{"to":2,"timeoutMs":3000}"#, EXAMPLE_HANDOVER),
        run: moves::transfer,
    },
    Method {
        name: "raft_resign",
        alias: None,
        says: "Has this node give leadership to the fittest voter. Nothing to do and nobody to give it to are outcomes.",
        is_leader_only: false,
        audited: true,
        once: true,
        params: &[
            Param::optional::<String>("reason", "For the record; at most 256 characters."),
            Param::optional::<Patience>(
                "timeoutMs",
                "How long to wait, 1 to 30000; default raft.resign_timeout.",
            ),
            OPERATION_ID,
        ],
        result: schema::<HandoverJson>,
        errors: RESIGN,
        example: (
            r#"{"reason":"maintenance"}"#,
            r#"{"operationId":"8c1f0a6e2b7d4935","from":1,"to":2,"oldTerm":7,"newTerm":8,"elapsedMs":12,"leaderId":2,"outcome":"transferred"}"#,
        ),
        run: moves::resign,
    },
    Method {
        name: "raft_triggerElection",
        alias: None,
        says: "Has this node stand for election where nobody leads; with force it asks the leader to hand over to it.",
        is_leader_only: false,
        audited: true,
        once: true,
        params: &[
            Param::optional::<bool>("force", "Ask the leader that is heard to hand over to this node."),
            OPERATION_ID,
        ],
        result: schema::<ElectionJson>,
        errors: ELECTION,
        example: ("{}", r#"{"term":7,"started":false}"#),
        run: moves::trigger_election,
    },
    Method {
        name: "raft_pause",
        alias: None,
        says: "Keeps this node from leading while another can, also after a restart; a leader hands over first.",
        is_leader_only: false,
        audited: true,
        once: false,
        params: &[Param::optional::<String>("reason", "For the record; at most 256 characters.")],
        result: schema::<PausedJson>,
        errors: PAUSES,
        example: (r#"{"reason":"patching"}"#, r#"{"paused":true,"role":"follower"}"#),
        run: moves::pause,
    },
    Method {
        name: "raft_resume",
        alias: None,
        says: "Takes a pause back.",
        is_leader_only: false,
        audited: true,
        once: false,
        params: &[Param::optional::<String>("reason", "For the record; at most 256 characters.")],
        result: schema::<PausedJson>,
        errors: PAUSES,
        example: ("{}", r#"{"paused":false,"role":"follower"}"#),
        run: moves::resume,
    },
    Method {
        name: "raft_subscribeLeadership",
        alias: None,
        says: "The leadership in force, and every one from then on, as raft_leadership; from any id. WebSocket only.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: subscriptions::TOPICS[1].params,
        result: leaderships_schema,
        errors: SUBSCRIBE,
        example: (r#"{"fromId":1}"#, EXAMPLE_SUBSCRIPTION),
        run: subscriptions::refuse,
    },
    Method {
        name: "raft_unsubscribeLeadership",
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
        name: "block_reconcile",
        alias: None,
        says: "How an executor's block stands to the agreed ones; asked when it starts.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[
            Param::required::<u64>("height", "The executor's height; 0 before any block."),
            Param::required::<Bytes>("hash", "Its block's hash; 0x for height 0."),
            Param::optional::<Bytes>("hashAtHead", "Where it is ahead: its own hash at our head's height."),
        ],
        result: schema::<VerdictJson>,
        errors: EXECUTOR,
        example: (r#"{"height":0,"hash":"0x"}"#, r#"{"verdict":"behind","by":1}"#),
        run: executors::reconcile,
    },
    Method {
        name: "executor_report",
        alias: None,
        says: "The executor beside this node says how far it is, and learns the fence in the same call.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[
            Param::required::<u64>("height", "The executor's height; 0 before any block."),
            Param::required::<Bytes>("hash", "Its block's hash; 0x for height 0."),
            Param::optional::<bool>("healthy", "Default true."),
            Param::optional::<bool>("active", "Whether it produces blocks."),
            Param::optional::<String>("reason", "Why it is not healthy; at most 256 characters."),
        ],
        result: schema::<ExecutorJson>,
        errors: EXECUTOR,
        example: (
            r#"{"height":0,"hash":"0x","healthy":true}"#,
            r#"{"verdict":"behind","lag":1,"ready":true,"fence":7,"head":{"height":1,"hash":"0xa1","timestamp":"1700000000000000000"}}"#,
        ),
        run: executors::report,
    },
];
