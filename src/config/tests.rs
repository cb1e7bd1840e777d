use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf, time::Duration};

use super::*;
use crate::types::setting::{Fallback, Kind, Value};

/// The least that a node needs.
const LEAST: &str = "[cluster]\nid = \"check\"\n[node]\nid = 1\ndata_dir = \"/tmp/n1\"\n";

struct Given {
    sources: Sources,
    // Removed with its file at the end of the test.
    _dir: tempfile::TempDir,
}

fn given(toml: &str, env: &[(&str, &str)], set: &[&str]) -> Given {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("n1.toml");
    std::fs::write(&path, toml).expect("the file is written");
    let env = env.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
    let set = set.iter().map(|s| (*s).to_owned()).collect();
    Given { sources: Sources { file: Some(path), env, set, ..Sources::default() }, _dir: dir }
}

fn good(toml: &str, env: &[(&str, &str)], set: &[&str]) -> Loaded {
    match load(&given(toml, env, set).sources) {
        Ok(loaded) => loaded,
        Err(complaints) => panic!("{complaints}"),
    }
}

/// The message, without the folder of the file.
fn bad(toml: &str, env: &[(&str, &str)], set: &[&str]) -> String {
    let given = given(toml, env, set);
    let dir =
        given.sources.file.as_ref().and_then(|f| f.parent()).expect("there is a file").display().to_string();
    load(&given.sources).expect_err("the settings are wrong").to_string().replace(&format!("{dir}/"), "")
}

/// `LEAST` with dotted keys before it.
fn with(lines: &str) -> String {
    format!("{lines}\n{LEAST}")
}

#[test]
fn defaults_are_those_of_the_table() {
    let s = good(LEAST, &[], &[]).settings;
    assert_eq!(s.raft.heartbeat_interval, Duration::from_millis(50));
    assert_eq!(s.raft.heartbeat_timeout, Duration::from_millis(350));
    assert_eq!(s.raft.leader_lease_timeout, Duration::from_millis(175));
    assert_eq!(s.raft.shutdown_timeout, Duration::from_secs(1));
    assert_eq!(s.executor.sync_timeout, Duration::from_secs(1));
    assert_eq!(s.node.name, "node-1");
    assert_eq!((s.peer.listen.port(), s.peer.advertise.as_str()), (7500, "127.0.0.1:7500"));
    assert_eq!((s.api.listen.port(), s.api.advertise.as_str()), (7400, "127.0.0.1:7400"));
    assert_eq!(s.metrics.listen, None);
    assert_eq!(s.settings, ClusterSettings::default());
    assert_eq!((s.api.max_body, s.store.min_free), (32 << 20, 256 << 20));
    assert_eq!(s.telemetry.log, LogConfig::new("auto", "info"));
}

#[test]
fn every_key_of_the_table_has_a_sound_default_and_a_sentence() {
    let mut names: Vec<_> = keys::all().map(|k| k.name).collect();
    for key in keys::all() {
        assert!(key.doc.ends_with('.') && key.name.split_once('.').is_some(), "{}", key.name);
        let examples = match key.fallback {
            _ if matches!(key.kind, Kind::Reserved) => continue,
            Fallback::Value(toml) => toml,
            Fallback::Required { example }
            | Fallback::Absent { example, .. }
            | Fallback::Derived { example, .. } => example,
        };
        let value = key.read(&layers::parse(examples)).unwrap_or_else(|rule| panic!("{}: {rule}", key.name));
        assert_eq!(value.to_toml(), examples, "{} is not written as it is shown", key.name);
    }
    let n = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n, "a key stands there twice");
}

#[test]
fn the_commented_file_is_a_file_of_the_defaults() {
    let text = show::commented_toml();
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with(['#', '['])), "{text}");
    let optional = ["first_height", "otlp_endpoint", "listen = \"0.0.0.0:7600\""];
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !optional.iter().any(|o| rest.starts_with(o)) => rest,
        _ => line,
    });
    let plain = good(&lines.collect::<Vec<_>>().join("\n"), &[], &[]).settings;
    let least = LEAST.replace("check", "my-rollup").replace("/tmp/n1", "/var/lib/blockraft");
    assert_eq!(plain, good(&least, &[], &[]).settings);
    for key in keys::all() {
        assert!(text.contains(key.name.split_once('.').expect("a table").1), "{}", key.name);
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_places() {
    let toml = "snapshot.treshold = 5\nraft.election_timeout = \"100ms\"\nsnapshot.retain = 0\n\
                [api]\nlisten = \"0.0.0.0:7400\"\n[node]\nid = 1\ndata_dir = \"/tmp/n1\"\n";
    assert_eq!(
        bad(toml, &[("BLOCKRAFT_PEER__ADVERTISE", "0.0.0.0:7500")], &["feed.buffer=0"]),
        r#"8 problems in the settings:
  snapshot.treshold = 5
      there is no such key; the nearest is snapshot.threshold
      from n1.toml:1
  cluster.id
      is not set, and is required (1 to 64 of a-z0-9-): in the file, by BLOCKRAFT_CLUSTER__ID, or by --set cluster.id="my-rollup"
  snapshot.retain = 0
      an integer, at least 1
      from n1.toml:3
  feed.buffer = 0
      an integer, 1 to 10000
      from --set feed.buffer=0
  raft.election_timeout = "100ms"
      must be at least raft.heartbeat_timeout (350ms)
      from n1.toml:2
  peer.advertise = "0.0.0.0:7500"
      nobody can reach an unspecified address: set peer.advertise to a host:port that others reach this node at
      from environment variable BLOCKRAFT_PEER__ADVERTISE
  api.listen = "0.0.0.0:7400"
      off loopback it needs api.tls and tokens (not available in this version), or api.insecure = true
      from n1.toml:5
  api.advertise = "0.0.0.0:7400"
      nobody can reach an unspecified address: set api.advertise to a host:port that others reach this node at
      from the default"#
    );
}

#[test]
fn each_rule_has_its_edge() {
    let ok = "api.insecure = true\napi.listen = \"0.0.0.0:7400\"\napi.advertise = \"n1:7400\"";
    for lines in [
        "raft.heartbeat_interval = \"100ms\"\nraft.heartbeat_timeout = \"401ms\"\nraft.leader_lease_timeout = \"200500us\"",
        "raft.election_timeout = \"350ms\"",
        "api.max_body = \"30784KiB\"",
        "raft.heartbeat_interval = \"5ms\"",
        "node.name = \"alpha-1\"",
        "node.id = 9007199254740991",
        "api.propose_timeout = \"30s\"",
        "api.reorder_wait = \"0s\"",
        "api.reorder_wait = \"30s\"",
        "telemetry.sample_ratio = 0",
        "feed.watched = [\"exec-1\"]",
        "chain.first_height = 0",
        ok,
    ] {
        let rest =
            if lines.starts_with("node.id") { LEAST.replace("id = 1\n", "") } else { LEAST.to_owned() };
        good(&dotted(lines, &rest), &[], &[]);
    }
    for (lines, word) in [
        (
            "raft.heartbeat_interval = \"100ms\"\nraft.heartbeat_timeout = \"400ms\"",
            "more than 4 × raft.heartbeat_interval",
        ),
        ("raft.leader_lease_timeout = \"176ms\"", "at most 0.5 × raft.heartbeat_timeout"),
        ("raft.election_timeout = \"349ms\"", "at least raft.heartbeat_timeout"),
        ("api.max_body = \"30783KiB\"", "so at least 30784KiB"),
        ("raft.heartbeat_interval = \"4ms\"", "at least 5ms"),
        ("raft.heartbeat_interval = \"150 parsecs\"", "a number with its unit"),
        ("raft.send_timeout = 200", "a duration such as"),
        ("node.name = \"Node 1\"", "1 to 63 of a-z0-9-"),
        ("node.id = 0", "an integer, at least 1"),
        ("node.id = 9007199254740992", "at most 9007199254740991"),
        ("cluster.id = \"A\"", "1 to 64 of a-z0-9-"),
        ("api.propose_timeout = \"31s\"", "1ms to 30s"),
        ("api.reorder_wait = \"31s\"", "at most 30s"),
        ("telemetry.sample_ratio = 1.1", "a number from 0 to 1"),
        ("telemetry.log_filter = \"a=b=c\"", "a filter such as"),
        ("telemetry.otlp_endpoint = \"collector:4317\"", "http://host:port"),
        ("chain.continuity = \"loose\"", "\"strict\" or \"monotonic\""),
        ("chain.max_ahead = \"1500us\"", "whole milliseconds"),
        ("feed.watched = [\"ws\"]", "not ws, sse or internal"),
        ("feed.watched = [\"a\", \"a\"]", "stands there twice"),
        ("api.tls.cert = \"/a.pem\"", "not available in this version"),
        ("auth.tokens_file = \"/a\"", "not available in this version"),
        ("api.listen = \"10.0.0.1:7400\"", "api.insecure = true"),
        ("api.listen = \"127.0.0.1:7500\"", "peer.listen already listens there"),
        ("api.advertise = \"127.0.0.1:0\"", "host:port"),
        ("api.listen = \"127.0.0.1:0\"", "nobody can reach port 0"),
        ("raft = 5", "raft is a table of settings"),
        (
            "cluster.peers = [{id=1, peer=\"n1:1\", api=\"n1:2\"}, {id=1, peer=\"n2:1\", api=\"n2:2\"}]",
            "id 1 stands there twice",
        ),
        (
            "cluster.peers = [{id=2, peer=\"n1:1\", api=\"n1:2\", name=\"node-1\"}]",
            "node 2 has this node's name",
        ),
        ("cluster.peers = [{id=2, peer=\"0.0.0.0:1\", api=\"n1:2\"}]", "unspecified"),
        ("cluster.peers = [{id=2, peer=\"n1:1\", api=\"n1:1\"}]", "two ports"),
        (
            "cluster.peers = [{id=2, peer=\"n1:1\", api=\"n1:2\"}, {id=3, peer=\"n1:1\", api=\"n1:3\"}]",
            "stands there twice",
        ),
        ("cluster.peers = [{id=2, per=\"n1:1\", api=\"n1:1\"}]", "the nearest is \"peer\""),
        ("cluster.peers = [{id=2, peer=\"n1:1\"}]", "entry 1: api is missing"),
    ] {
        let said = bad(&dotted(lines, LEAST), &[], &[]);
        assert!(said.contains(word), "{lines}: {said}");
    }
}

/// Adds dotted lines to a file, in the place of the same keys.
fn dotted(lines: &str, rest: &str) -> String {
    let mut rest = rest.to_owned();
    let mut tables = String::new();
    for line in lines.lines() {
        for (key, own, table) in [
            ("node.id", "id = 1\n", "[node]\n"),
            ("cluster.id", "id = \"check\"\n", "[cluster]\n"),
            ("node.name", "", "[node]\n"),
        ] {
            if let Some(value) = line.strip_prefix(&format!("{key} = ")) {
                let name = key.split_once('.').expect("a table").1;
                rest = rest.replace(own, "").replace(table, &format!("{table}{name} = {value}\n"));
            }
        }
        if line.starts_with("cluster.peers") {
            rest = rest.replace("[cluster]\n", &format!("[cluster]\n{}\n", &line["cluster.".len()..]));
        } else if !line.starts_with("node.") && !line.starts_with("cluster.") {
            tables.push_str(line);
            tables.push('\n');
        }
    }
    tables + &rest
}

#[test]
fn environment_beats_file_and_flags_beat_both() {
    let env = [
        ("BLOCKRAFT_RAFT__ELECTION_TIMEOUT", "2s"),
        ("BLOCKRAFT_SNAPSHOT__RETAIN", "7"),
        ("BLOCKRAFT_NODE__NAME", "\"quoted\""),
        ("BLOCKRAFT_CLUSTER__ID", "123"),
        ("BLOCKRAFT_API__MAX_BODY", "64MiB"),
        ("BLOCKRAFT_CLUSTER__PEERS", "[{id=1,peer=\"n1:7500\",api=\"n1:7400\"}]"),
        ("BLOCKRAFT_PORT", "tcp://10.0.0.1:7400"),
        ("BLOCKRAFT_API_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("BLOCKRAFT_CONFIG", "elsewhere.toml"),
        ("OTHER_RAFT__ELECTION_TIMEOUT", "9s"),
    ];
    let loaded = good(&with("raft.election_timeout = \"3s\""), &env, &["raft.election_timeout = 4s"]);
    let s = &loaded.settings;
    assert_eq!(s.raft.election_timeout, Duration::from_secs(4));
    assert_eq!((s.snapshot.retain, s.node.name.as_str(), s.cluster.id.as_str()), (7, "quoted", "123"));
    assert_eq!((s.api.max_body, s.cluster.peers.len()), (64 << 20, 1));
    let shown = loaded.show();
    for line in [
        "raft.election_timeout = \"4s\"",
        "# --set raft.election_timeout = 4s",
        "# environment variable BLOCKRAFT_SNAPSHOT__RETAIN",
        "raft.shutdown_timeout = \"1s\"",
        "# default: 5 × raft.send_timeout",
        "n1.toml:5",
    ] {
        assert!(shown.contains(line), "{line} is not in\n{shown}");
    }
}

#[test]
fn a_name_with_single_underscores_is_told_the_right_one() {
    let said =
        bad(LEAST, &[("BLOCKRAFT_RAFT_ELECTION_TIMEOUT", "1s"), ("BLOCKRAFT_SNAPSHOT__TRESHOLD", "5")], &[]);
    assert!(said.contains("BLOCKRAFT_RAFT__ELECTION_TIMEOUT"), "{said}");
    assert!(said.contains("snapshot.treshold") && said.contains("nearest is snapshot.threshold"), "{said}");
}

#[test]
fn what_is_no_utf8_is_told_and_never_panics() {
    let odd = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let mut given = given(LEAST, &[], &[]);
    given.sources.env = vec![(odd(b"BLOCKRAFT_\xff__A"), odd(b"x")), (odd(b"\xff"), odd(b"\xff"))];
    load(&given.sources).expect("what is no setting is ignored");
    given.sources.env.push((odd(b"BLOCKRAFT_NODE__NAME"), odd(b"\xff")));
    let said = load(&given.sources).expect_err("a setting that is no UTF-8").to_string();
    assert!(said.contains("must be UTF-8") && said.contains("BLOCKRAFT_NODE__NAME"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_named_alone() {
    let sources = Sources { file: Some(PathBuf::from("/no/such/n1.toml")), ..Sources::default() };
    let said = load(&sources).expect_err("there is no file").to_string();
    assert!(said.contains("/no/such/n1.toml") && said.contains("1 problem "), "{said}");
    let said = bad("this is = not [toml", &[], &[]);
    assert!(said.contains("n1.toml:1") && !said.contains("is not set"), "{said}");
    let said = bad(&with("raft.send_timeout = \"1s\"\nraft.send_timeout = \"2s\""), &[], &[]);
    assert!(said.contains("n1.toml:2") && said.contains("duplicate"), "{said}");
    assert!(bad(LEAST, &[], &["raft"]).contains("must be table.key=value"));
}

#[test]
fn warnings_name_what_is_unwise() {
    let peers = "[{id=1,peer=\"n1:7500\",api=\"n1:7400\"},{id=2,peer=\"n2:7500\",api=\"n2:7400\"}]";
    let loaded = good(
        &with(
            "raft.shutdown_timeout = \"28s\"\nraft.leader_lease_timeout = \"90ms\"\nchain.max_ahead = \"1s\"",
        ),
        &[("BLOCKRAFT_CLUSTER__PEERS", peers)],
        &[],
    );
    let limits = warnings::Limits { memory: Some(256 << 20), files: Some(1024) };
    let said = warnings::find(&loaded, limits).join("\n");
    for word in [
        "256 MiB",
        "1024 files",
        "names 2 nodes",
        "peer.advertise is 127.0.0.1:7500",
        "a stop may take 32s",
        "ends the lease",
        "chain.max_ahead differ",
    ] {
        assert!(said.contains(word), "{word} is not in\n{said}");
    }
    let quiet = warnings::find(&good(LEAST, &[], &[]), warnings::Limits::default());
    assert_eq!(quiet, Vec::<String>::new());
}

#[test]
fn values_are_shown_as_toml() {
    assert_eq!(Value::Ratio(1.0).to_toml(), "1.0");
    assert_eq!(Value::List(vec!["a\"b".into()]).to_toml(), r#"['a"b']"#);
}
