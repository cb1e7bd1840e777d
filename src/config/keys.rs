//! The table of all settings. Parsing, `check --show` and `config` read nothing else.

use std::time::Duration;

use crate::config::address::{is_listen, is_origin};
use crate::telemetry::log::Config as LogConfig;
use crate::types::address::{is_host_and_port, is_name};
use crate::types::member::is_node_name;
use crate::types::setting::{Fallback, INTEGER_MAX, Key, Kind};
use crate::types::{member, settings};

/// All tables' keys, in the order they are shown.
pub(crate) fn all() -> impl Iterator<Item = &'static Key> {
    const CLUSTER: &[Key] = &settings::keys::KEYS;
    [IDENTITY, PEER, API, RAFT, CLUSTER, PARTS, TELEMETRY].into_iter().flatten()
}

pub(crate) fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name)
}

const MS: Duration = Duration::from_millis(1);
const ADDRESS: &str = "host:port, an IPv6 address in brackets, no scheme, no unspecified address";
const LISTEN: &str = "IP:port, an IPv6 address in brackets";
const FIVE_SENDS: Fallback = Fallback::Derived { from: "5 × raft.send_timeout", example: r#""1s""# };
const OFF: Fallback = Fallback::Absent { shown: "off", example: r#""""# };

const fn key(
    name: &'static str,
    kind: Kind,
    fallback: Fallback,
    rule: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, fallback, rule, doc }
}

const fn value(toml: &'static str) -> Fallback {
    Fallback::Value(toml)
}

const IDENTITY: &[Key] = &[
    key(
        "cluster.id",
        Kind::Text(is_cluster_id),
        Fallback::Required { example: r#""my-rollup""# },
        "1 to 64 of a-z0-9-",
        "The cluster this node belongs to; nodes of another one are refused.",
    ),
    key(
        "cluster.peers",
        Kind::Members,
        value("[]"),
        "ids, names and addresses each once",
        "The founding members, this node included or not; the same on all of them; used at the first start alone. Empty: wait to be added. A one-node cluster lists itself.",
    ),
    key(
        "node.id",
        Kind::Integer { min: 1, max: INTEGER_MAX },
        Fallback::Required { example: "1" },
        "",
        "This node's number, never used for another one.",
    ),
    key(
        "node.name",
        Kind::Text(is_node_name),
        Fallback::Derived { from: "node-<id>", example: r#""node-1""# },
        "1 to 63 of a-z0-9-, unique in the cluster",
        "This node's name in the membership, in ctl and in metrics.",
    ),
    key(
        "node.data_dir",
        Kind::Text(is_path),
        Fallback::Required { example: r#""/var/lib/blockraft""# },
        "a path",
        "The folder of log, state and snapshots; created with mode 0700.",
    ),
];

const PEER: &[Key] = &[
    key(
        "peer.listen",
        Kind::Text(is_listen),
        value(r#""127.0.0.1:7500""#),
        LISTEN,
        "Where the other nodes reach this one. Off loopback it needs peer.tls, or peer.insecure = true.",
    ),
    key(
        "peer.advertise",
        Kind::Text(is_host_and_port),
        Fallback::Derived { from: "peer.listen", example: r#""127.0.0.1:7500""# },
        ADDRESS,
        "The address that the other nodes are told.",
    ),
    key("peer.insecure", Kind::Bool, value("false"), "", "Whether peers may speak off loopback without TLS."),
    key("peer.tls.cert", Kind::Reserved, OFF, "", "Certificate shown to peers."),
    key("peer.tls.key", Kind::Reserved, OFF, "", "Its key."),
    key("peer.tls.ca", Kind::Reserved, OFF, "", "Who signs peers' certificates."),
];

const API: &[Key] = &[
    key(
        "api.listen",
        Kind::Text(is_listen),
        value(r#""127.0.0.1:7400""#),
        LISTEN,
        "Where tools and the sequencer reach this node. Off loopback it needs api.tls and tokens, or api.insecure = true.",
    ),
    key(
        "api.advertise",
        Kind::Text(is_host_and_port),
        Fallback::Derived { from: "api.listen", example: r#""127.0.0.1:7400""# },
        ADDRESS,
        "The address that tools are told.",
    ),
    key(
        "api.insecure",
        Kind::Bool,
        value("false"),
        "",
        "Whether the API may be reached off loopback without TLS and tokens.",
    ),
    key("api.tls.cert", Kind::Reserved, OFF, "", "Certificate shown to clients."),
    key("api.tls.key", Kind::Reserved, OFF, "", "Its key."),
    key("api.tls.client_ca", Kind::Reserved, OFF, "", "Who signs clients' certificates."),
    key(
        "api.propose_timeout",
        Kind::Duration { min: MS, max: Duration::from_secs(30) },
        value(r#""2s""#),
        "",
        "How long a proposal is waited for; then its outcome is unknown.",
    ),
    key(
        "api.max_in_flight",
        Kind::integer_from(1),
        value("4096"),
        "",
        "Proposals in flight; beyond: overloaded.",
    ),
    key(
        "api.max_in_flight_bytes",
        Kind::Size { min: 1 },
        value(r#""256MiB""#),
        "",
        "Bytes of proposals in flight; beyond: overloaded.",
    ),
    key(
        "api.reorder_window",
        Kind::integer_from(0),
        value("1024"),
        "",
        "How far above the next height a proposal may wait for its predecessors.",
    ),
    key(
        "api.reorder_wait",
        Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(30) },
        value(r#""50ms""#),
        "",
        "How long it waits.",
    ),
    key(
        "api.max_body",
        Kind::Size { min: 1 },
        value(r#""32MiB""#),
        "at least 2 × chain.max_block_bytes + 64KiB",
        "Greatest request; answers may be as large.",
    ),
    key("api.max_batch", Kind::integer_from(1), value("100"), "", "Calls in one JSON-RPC batch."),
    key("api.max_connections", Kind::integer_from(1), value("1000"), "", "Connections at once."),
    key(
        "api.max_connections_per_address",
        Kind::integer_from(0),
        value("250"),
        "0: no bound",
        "Connections at once from one address.",
    ),
    key(
        "api.rate_limit",
        Kind::integer_from(0),
        value("0"),
        "0: off",
        "Requests a second from one address; beyond: HTTP 429.",
    ),
    key(
        "api.allowed_hosts",
        Kind::List(is_name),
        value("[]"),
        "names without a port",
        "Host names answered beside localhost, any IP address, and this node's and the members' API hosts; others get HTTP 403.",
    ),
    key(
        "api.allowed_origins",
        Kind::List(is_origin),
        value("[]"),
        "scheme://host[:port] each",
        "Origins of web pages that may call; others get HTTP 403.",
    ),
    key("auth.tokens_file", Kind::Reserved, OFF, "", "Who may do what."),
    key(
        "metrics.listen",
        Kind::Text(is_listen),
        Fallback::Absent { shown: "off", example: r#""0.0.0.0:7600""# },
        LISTEN,
        "A second port for /metrics and the probes alone.",
    ),
];

const RAFT: &[Key] = &[
    key(
        "raft.heartbeat_interval",
        Kind::duration_from(Duration::from_millis(5)),
        value(r#""50ms""#),
        "",
        "Time between a leader's heartbeats; above one round trip and one sync of the log.",
    ),
    key(
        "raft.heartbeat_timeout",
        Kind::duration_from(MS),
        value(r#""350ms""#),
        "more than 4 × raft.heartbeat_interval",
        "A follower's patience is drawn from it to 1.5 × it.",
    ),
    key(
        "raft.election_timeout",
        Kind::duration_from(MS),
        value(r#""1s""#),
        "at least raft.heartbeat_timeout",
        "Upper bound of one candidacy, and of a transfer before it is tried again.",
    ),
    key(
        "raft.leader_lease_timeout",
        Kind::duration_from(MS),
        value(r#""175ms""#),
        "at most 0.5 × raft.heartbeat_timeout",
        "How long a leader may act after a quorum's last acknowledgement.",
    ),
    key(
        "raft.send_timeout",
        Kind::duration_from(MS),
        value(r#""200ms""#),
        "",
        "Base of the bounded waits for a peer.",
    ),
    key(
        "raft.shutdown_timeout",
        Kind::duration_from(MS),
        FIVE_SENDS,
        "",
        "How long a stop waits for what is in flight.",
    ),
    key(
        "raft.resign_timeout",
        Kind::duration_from(MS),
        value(r#""3s""#),
        "",
        "How long a hand-over may take.",
    ),
    key(
        "leadership.stall_after",
        Kind::duration_from(MS),
        value(r#""5s""#),
        "",
        "A leader whose oldest proposal waits longer is unable, and so is a node whose sync takes longer.",
    ),
    key(
        "leadership.last_resort_after",
        Kind::duration_from(MS),
        value(r#""5s""#),
        "",
        "Without a leader so long, an unfit node stands too.",
    ),
    key(
        "leadership.handover_budget",
        Kind::integer_from(1),
        value("4"),
        "",
        "Hand-overs for unfitness within leadership.handover_window.",
    ),
    key(
        "leadership.handover_window",
        Kind::duration_from(MS),
        value(r#""1m""#),
        "",
        "The window of leadership.handover_budget.",
    ),
    key(
        "snapshot.threshold",
        Kind::integer_from(1),
        value("500"),
        "",
        "Entries committed since the last snapshot that make one due.",
    ),
    key(
        "snapshot.trailing_logs",
        Kind::integer_from(1),
        value("200"),
        "",
        "Entries kept behind the newest snapshot, for followers a little behind.",
    ),
    key("snapshot.retain", Kind::integer_from(1), value("3"), "", "Snapshots kept."),
    key(
        "snapshot.grace_entries",
        Kind::integer_from(1),
        value("50000"),
        "",
        "How far the purge is held back for a follower that is just catching up; also at most 256MiB.",
    ),
    key(
        "snapshot.threshold_bytes",
        Kind::Size { min: 1 },
        value(r#""64MiB""#),
        "",
        "Bytes of log since the last snapshot that make one due.",
    ),
    key(
        "snapshot.min_interval",
        Kind::duration_from(MS),
        value(r#""200ms""#),
        "",
        "Least time between the starts of two snapshots.",
    ),
];

const PARTS: &[Key] = &[
    key(
        "store.min_free",
        Kind::Size { min: 0 },
        value(r#""256MiB""#),
        "",
        "Free disk space below which proposals are refused.",
    ),
    key(
        "feed.buffer",
        Kind::Integer { min: 1, max: 10_000 },
        value("100"),
        "",
        "Applied blocks queued for each subscriber before they are dropped, counted and replayed.",
    ),
    key(
        "feed.watched",
        Kind::List(is_subscriber),
        value("[]"),
        "each 1 to 64 of A-Za-z0-9._-, not ws, sse or internal; at most 100",
        "Names given at subscribe whose drops raise an alert.",
    ),
    key(
        "executor.required",
        Kind::Bool,
        value("false"),
        "",
        "Whether a node whose executor never reported is unfit to lead.",
    ),
    key(
        "executor.max_lag",
        Kind::integer_from(0),
        value("1"),
        "",
        "Blocks the executor may be behind on a node that leads.",
    ),
    key(
        "executor.sync_timeout",
        Kind::duration_from(MS),
        FIVE_SENDS,
        "",
        "How long a leader's executor may lag, be unhealthy or silent before it hands over.",
    ),
    key(
        "executor.report_timeout",
        Kind::duration_from(MS),
        value(r#""3s""#),
        "",
        "Silence after a first report that counts as unhealthy.",
    ),
];

const TELEMETRY: &[Key] = &[
    key(
        "telemetry.otlp_endpoint",
        Kind::Text(is_endpoint),
        Fallback::Absent { shown: "off", example: r#""http://127.0.0.1:4317""# },
        "http://host:port or https://host:port",
        "Where traces are sent. OTEL_EXPORTER_OTLP_ENDPOINT wins.",
    ),
    key(
        "telemetry.otlp_protocol",
        Kind::Choice(&["grpc", "http"]),
        value(r#""grpc""#),
        "",
        "How they are sent. OTEL_EXPORTER_OTLP_PROTOCOL wins.",
    ),
    key(
        "telemetry.sample_ratio",
        Kind::Ratio,
        value("1.0"),
        "",
        "Share of the blocks that are traced. OTEL_TRACES_SAMPLER wins.",
    ),
    key(
        "telemetry.traces_per_second",
        Kind::integer_from(0),
        value("500"),
        "",
        "Blocks a second that get a whole tree of spans; above, one span a batch.",
    ),
    key(
        "telemetry.log_format",
        Kind::Choice(&["auto", "human", "json"]),
        value(r#""auto""#),
        "",
        "auto: human on a terminal, else json.",
    ),
    key(
        "telemetry.log_filter",
        Kind::Text(is_log_filter),
        value(r#""info""#),
        r#"a filter such as "info" or "info,blockraft::audit=debug""#,
        "Which log lines are written; can be changed while running by node_setLogFilter.",
    ),
];

fn is_cluster_id(text: &str) -> bool {
    member::is_word(text, 64)
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn is_subscriber(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !["ws", "sse", "internal"].contains(&text)
}

fn is_endpoint(text: &str) -> bool {
    text.strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(' '))
}

fn is_log_filter(text: &str) -> bool {
    LogConfig::is_filter(text)
}
