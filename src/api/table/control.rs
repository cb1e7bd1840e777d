//! Rows of what steers a node and of what it recorded.

use crate::api::error::Code;
use crate::api::records;
use crate::api::records::{AuditPage, HistoryJson, VerdictJson};
use crate::api::table::{Method, schema};

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
];
