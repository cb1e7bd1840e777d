//! Rows of what steers a node and of what it recorded.

use crate::api::error::Code;
use crate::api::membership::ChangedJson;
use crate::api::records::{AuditPage, HistoryJson, VerdictJson};
use crate::api::table::{BY_LEADER, Method, schema};
use crate::api::wire::MembersJson;
use crate::api::{membership, records};

const RECORDS: &[Code] = &[Code::Overloaded, Code::Storage, Code::Unavailable];

pub(crate) const METHODS: &[Method] = &[
    Method {
        name: "raft_history",
        alias: None,
        says: "What happened here: leaderships, membership, snapshots, pauses, starts and stops.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: records::HISTORY_PARAMS,
        result: schema::<HistoryJson>,
        errors: RECORDS,
        example: (
            r#"{"limit":2}"#,
            r#"{"events":[{"id":1,"at":1700000000000,"kind":"lifecycle","term":0,"cause":"start","detail":{"lastExit":"first"}},{"id":2,"at":1700000000350,"kind":"leadership","term":1,"index":2,"leaderId":1,"cause":"election","detail":{}}]}"#,
        ),
        run: records::raft_history,
    },
    Method {
        name: "audit_list",
        alias: None,
        says: "What this node was asked to do, by whom, and how it ended; hash-chained.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: records::AUDIT_PARAMS,
        result: schema::<AuditPage>,
        errors: RECORDS,
        example: (
            r#"{"limit":1}"#,
            r#"{"records":[{"id":1,"at":1700000000000,"nodeId":1,"who":"-","role":"-","remoteAddr":"127.0.0.1:50412","method":"node_setLogFilter","params":{"filter":"info"},"operationId":null,"outcome":"started","term":7,"prevHash":"0x00","hash":"0xa1"}],"nextId":2}"#,
        ),
        run: records::audit_list,
    },
    Method {
        name: "audit_verify",
        alias: None,
        says: "Looks at every record of the chain: changed, missing or swapped ones are named.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<VerdictJson>,
        errors: RECORDS,
        example: ("{}", r#"{"ok":true,"checked":12,"problems":[]}"#),
        run: records::audit_verify,
    },
    Method {
        name: "raft_addLearner",
        alias: None,
        says: "Adds a learner: it follows, and is counted in no quorum. Dialled first: cluster and node id must be right.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: membership::ADD_PARAMS,
        result: schema::<MembersJson>,
        errors: BY_LEADER,
        example: (
            r#"{"nodeId":4,"peerAddr":"127.0.0.1:7504","apiAddr":"127.0.0.1:7404","expectedVersion":1}"#,
            EXAMPLE_MEMBERS,
        ),
        run: membership::add_learner,
    },
    Method {
        name: "raft_promote",
        alias: None,
        says: "Makes a learner that has caught up a voter.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: membership::VOTE_PARAMS,
        result: schema::<ChangedJson>,
        errors: BY_LEADER,
        example: (r#"{"nodeId":4,"expectedVersion":14}"#, EXAMPLE_MEMBERS),
        run: membership::promote,
    },
    Method {
        name: "raft_demote",
        alias: None,
        says: "Makes a voter a learner. The leader itself hands over behind it.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: membership::VOTE_PARAMS,
        result: schema::<ChangedJson>,
        errors: BY_LEADER,
        example: (r#"{"nodeId":4,"expectedVersion":16}"#, EXAMPLE_MEMBERS),
        run: membership::demote,
    },
    Method {
        name: "raft_removeMember",
        alias: None,
        says: "Removes a node from the cluster. The leader itself hands over behind it.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: membership::VOTE_PARAMS,
        result: schema::<ChangedJson>,
        errors: BY_LEADER,
        example: (r#"{"nodeId":4,"expectedVersion":18}"#, EXAMPLE_MEMBERS),
        run: membership::remove,
    },
    Method {
        name: "raft_updateMember",
        alias: None,
        says: "Gives a member another address or name; answers once it is reached there.",
        is_leader_only: true,
        audited: true,
        once: true,
        params: membership::UPDATE_PARAMS,
        result: schema::<MembersJson>,
        errors: BY_LEADER,
        example: (r#"{"nodeId":2,"peerAddr":"127.0.0.1:7512"}"#, EXAMPLE_MEMBERS),
        run: membership::update,
    },
];

const EXAMPLE_MEMBERS: &str = r#"{"version":16,"voters":[{"nodeId":1,"name":"node-1","peerAddr":"127.0.0.1:7501","apiAddr":"127.0.0.1:7401"}],"learners":[{"nodeId":4,"name":"node-4","peerAddr":"127.0.0.1:7504","apiAddr":"127.0.0.1:7404"}],"joint":false}"#;
