//! Rows of snapshots and of what of the log stands behind them.

use crate::api::args::Param;
use crate::api::control::OPERATION_ID;
use crate::api::error::Code;
use crate::api::snapshots;
use crate::api::snapshots::{
    Purged, SnapshotAnswer, SnapshotDescription, SnapshotStatus, SnapshotVerdict, SnapshotsJson,
};
use crate::api::table::{LOCAL, Method, schema};

const EXAMPLE_CREATED: &str =
    r#"{"id":"19a1f3c2b40-1","lastIndex":1700,"lastTerm":7,"height":1690,"sizeBytes":865075,"elapsedMs":12}"#;

const EXAMPLE_SNAPSHOTS: &str = r#"{"snapshots":[{"id":"19a1f3c2b40-1","createdAt":1761000000000,"lastIndex":1700,"lastTerm":7,"height":1690,"sizeBytes":865075,"source":"local"}]}"#;

const EXAMPLE_BY_ID: &str = r#"{"id":"19a1f3c2b40-1"}"#;

const EXAMPLE_DESCRIPTION: &str = r#"{"id":"19a1f3c2b40-1","createdAt":1761000000000,"lastIndex":1700,"lastTerm":7,"height":1690,"sizeBytes":865075,"source":"local","clusterId":"demo","membership":{"version":1,"voters":[1,2,3],"learners":[],"joint":false},"stateHash":"0x5f0c","formatVersion":1,"files":[{"name":"000012.sst","sizeBytes":865075,"checksum":"0x9c4e"}]}"#;

const EXAMPLE_SNAPSHOT_STATUS: &str = r#"{"threshold":500,"thresholdBytes":67108864,"trailingLogs":200,"retain":3,"minIntervalMs":200,"graceEntries":50000,"lastLogIndex":1720,"snapshotIndex":1700,"purgedIndex":1500,"compactionLag":20,"logEntries":220,"logBytes":140800,"building":false}"#;

const SNAPSHOT_ID: Param = Param::required::<String>("id", "As snapshot_list names it.");

const SNAPSHOT: &[Code] = &[Code::Overloaded, Code::Storage, Code::Unavailable];

const BY_ID: &[Code] = &[Code::NotFound, Code::Overloaded, Code::Storage, Code::Unavailable];

pub(crate) const METHODS: &[Method] = &[
    Method {
        name: "snapshot_create",
        alias: None,
        says: "Makes a snapshot of this node's state now, whatever the policy says. Joins one that is being built; \
               with nothing new since the newest one it answers that one.",
        is_leader_only: false,
        audited: true,
        once: true,
        params: &[
            Param::optional::<bool>("wait", "Answer once it is there (default), or at once with its id."),
            OPERATION_ID,
        ],
        result: schema::<SnapshotAnswer>,
        errors: SNAPSHOT,
        example: ("{}", EXAMPLE_CREATED),
        run: snapshots::create,
    },
    Method {
        name: "snapshot_list",
        alias: None,
        says: "The snapshots that this node keeps, newest first.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<SnapshotsJson>,
        errors: LOCAL,
        example: ("{}", EXAMPLE_SNAPSHOTS),
        run: snapshots::list,
    },
    Method {
        name: "snapshot_describe",
        alias: None,
        says: "A snapshot and its files, with their checksums.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[SNAPSHOT_ID],
        result: schema::<SnapshotDescription>,
        errors: BY_ID,
        example: (EXAMPLE_BY_ID, EXAMPLE_DESCRIPTION),
        run: snapshots::describe,
    },
    Method {
        name: "snapshot_verify",
        alias: None,
        says: "Compares every file of a snapshot with its checksum, restores it into a scratch folder and compares \
               that with its manifest.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[SNAPSHOT_ID],
        result: schema::<SnapshotVerdict>,
        errors: BY_ID,
        example: (EXAMPLE_BY_ID, r#"{"ok":true,"problems":[]}"#),
        run: snapshots::verify,
    },
    Method {
        name: "snapshot_status",
        alias: None,
        says: "The policy of snapshots and purges, and where this node's log stands.",
        is_leader_only: false,
        audited: false,
        once: false,
        params: &[],
        result: schema::<SnapshotStatus>,
        errors: LOCAL,
        example: ("{}", EXAMPLE_SNAPSHOT_STATUS),
        run: snapshots::status,
    },
    Method {
        name: "snapshot_purgeLog",
        alias: None,
        says: "Purges this node's log up to an index, never beyond its newest snapshot. Answers where it begins then.",
        is_leader_only: false,
        audited: true,
        once: false,
        params: &[Param::optional::<u64>("uptoIndex", "Default: as far as the newest snapshot reaches.")],
        result: schema::<Purged>,
        errors: LOCAL,
        example: ("{}", r#"{"purgedIndex":1500}"#),
        run: snapshots::purge_log,
    },
];
