//! `api/` is what a node serves, and what is on disk and on the wire never changes its meaning.
//!
//! | test | attacks |
//! | --- | --- |
//! | the_openrpc_document_… | design 5: one document in three places |
//! | every_example_of_the_document_runs | design 5: an example that a test executes |
//! | no_protobuf_field_… | safety 27: a rolling upgrade must work |

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::support::{
    block::Block, cluster::Cluster, config::Settings, node::Node, rpc::CallError, stream::fill,
};

/// Calls that move the cluster or judge the executor: their examples are run by nobody.
const MOVING: &[&str] = &[
    "executor_report",
    "raft_addLearner",
    "raft_configure",
    "raft_demote",
    "raft_pause",
    "raft_promote",
    "raft_removeMember",
    "raft_resign",
    "raft_transferLeader",
    "raft_triggerElection",
    "raft_updateMember",
];
/// Beginnings of names that are kept free for a conductor surface.
const FREE: &[&str] = &["conductor_", "health_", "rpc_modules", "optimism_", "admin_", "eth_", "miner_"];
/// Errors that say the call was not understood.
const MALFORMED: std::ops::RangeInclusive<i64> = -32700..=-32600;

fn api_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("api")
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_SPEC").is_some()
}

/// A node alone with blocks, which answers everything.
fn node_with_blocks() -> Cluster {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    let blocks: Vec<Block> = (1..=30).map(|h| Block::new(h, "example")).collect();
    fill(&cluster.node(1).api.clone(), &blocks);
    cluster
}

/// Without what differs from build to build and from node to node.
fn normal(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(root) = document.as_object_mut() {
        root.remove("servers");
        if let Some(info) = root.get_mut("info").and_then(Value::as_object_mut) {
            info.remove("version");
        }
    }
    document
}

#[track_caller]
fn call(node: &Node, method: &str, params: &Value) -> Value {
    node.call(method, params).unwrap_or_else(|e| panic!("{method}: {e}"))
}

#[test]
fn the_openrpc_document_is_what_is_served() {
    let cluster = node_with_blocks();
    let node = cluster.node(1);
    let served = call(node, "rpc.discover", &Value::Null);
    assert_eq!(served, call(node, "rpc_discover", &Value::Null), "the alias");
    let plain = node.get("/openrpc.json", &[]).expect("it answers");
    assert_eq!((plain.status, plain.json()), (200, Some(served.clone())), "GET /openrpc.json");
    let path = api_dir().join("openrpc.json");
    if is_update() {
        let text = serde_json::to_string_pretty(&served).expect("JSON is written");
        fs::write(&path, text + "\n").expect("writable");
    }
    let written: Value =
        fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let by_name = |document: &Value| -> BTreeMap<String, Value> {
        let methods = document["methods"].as_array().cloned().unwrap_or_default();
        methods.into_iter().map(|m| (m["name"].as_str().unwrap_or_default().to_owned(), m)).collect()
    };
    let (written_methods, served_methods) = (by_name(&written), by_name(&served));
    for (name, method) in &served_methods {
        assert_eq!(
            written_methods.get(name),
            Some(method),
            "{name} in api/openrpc.json; UPDATE_SPEC=1 writes it"
        );
    }
    assert_eq!(normal(&written), normal(&served), "api/openrpc.json; UPDATE_SPEC=1 writes it");
    let named = call(node, "rpc_methods", &Value::Null)["methods"].clone();
    let named: Vec<String> = serde_json::from_value(named).expect("a list of names");
    assert!(named.is_sorted(), "rpc_methods is sorted: {named:?}");
    for name in served_methods.keys() {
        assert!(name.starts_with("rpc") || named.contains(name), "rpc_methods lacks {name}");
        assert!(!FREE.iter().any(|free| name.starts_with(free)), "{name} is kept free");
    }
    cluster.end();
}

#[test]
fn every_example_of_the_document_runs() {
    let cluster = node_with_blocks();
    let node = cluster.node(1);
    let document = call(node, "rpc.discover", &Value::Null);
    let mut n_run = 0;
    for method in document["methods"].as_array().expect("methods is a list") {
        let name = method["name"].as_str().expect("a method has a name");
        let params = method["params"].as_array().unwrap_or_else(|| panic!("{name} has no list of params"));
        let is_described = |p: &Value| p.get("schema").is_some() || p.get("$ref").is_some();
        assert!(params.iter().all(is_described), "{name}: a parameter without a schema");
        assert!(method["result"]["schema"].is_object(), "{name} has no schema of its result");
        let examples = method["examples"].as_array().cloned().unwrap_or_default();
        if name.starts_with("rpc") && examples.is_empty() {
            continue;
        }
        assert!(!examples.is_empty(), "{name} has no example");
        assert!(name.starts_with("rpc") || method["errors"].is_array(), "{name} names no errors");
        if MOVING.contains(&name) || name.contains("ubscribe") {
            continue;
        }
        for example in &examples {
            run_example(node, name, params, example);
            n_run += 1;
        }
    }
    assert!(8 <= n_run, "only {n_run} examples were run");
    cluster.end();
}

/// By name and, where the names are a beginning of the list, by position.
#[track_caller]
fn run_example(node: &Node, name: &str, params: &[Value], example: &Value) {
    let given = example["params"].as_array().cloned().unwrap_or_default();
    let by_name: Map<String, Value> = given
        .iter()
        .map(|p| (p["name"].as_str().expect("a parameter has a name").to_owned(), p["value"].clone()))
        .collect();
    let mut forms = vec![Value::Object(by_name)];
    if given.iter().zip(params).all(|(a, b)| a["name"] == b["name"]) {
        forms.push(given.iter().map(|p| p["value"].clone()).collect());
    }
    for form in forms {
        let want = &example["result"]["value"];
        match node.call(name, &form) {
            Ok(result) => {
                if let (Some(want), Some(got)) = (want.as_object(), result.as_object()) {
                    let is_alike = want.is_empty() || want.keys().any(|key| got.contains_key(key));
                    assert!(is_alike, "{name} {form}: {want:?} is shown, {got:?} came");
                }
            }
            // What an example names may not be here; that it is understood is what counts.
            Err(CallError::Rpc(e)) => assert!(!MALFORMED.contains(&e.code), "{name} {form}: {e}"),
            Err(CallError::Failed(e)) => panic!("{name} {form}: {e}"),
        }
    }
}

#[test]
fn no_params_are_the_same_in_every_form() {
    let cluster = node_with_blocks();
    for method in ["raft_leader", "block_head", "rpc_methods", "raft_members"] {
        let absent = call(cluster.node(1), method, &Value::Null);
        for params in [json!([]), json!({}), json!([null])] {
            assert!(call(cluster.node(1), method, &params).is_object(), "{method} {params}: {absent}");
        }
        let null = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": null}).to_string();
        let response = crate::support::rpc::post(&mut cluster.node(1).connect(), null.as_bytes());
        let result = crate::support::rpc::result_of(&response.expect("it answers"));
        assert!(result.is_ok(), "{method} with params null: {result:?}");
    }
    cluster.end();
}

/// `message.field = number label type`, and `enum.VALUE = number`, of everything under `api/proto`.
fn fields() -> BTreeMap<String, String> {
    let root = api_dir().join("proto");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let set = protox::compile(&files, [&root]).expect("the contract compiles");
    let mut out = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            let name = format!("{}.{}", file.package(), message.name());
            assert!(
                message.nested_type.is_empty() && message.enum_type.is_empty(),
                "{name} has types inside"
            );
            for field in &message.field {
                let label = match field.label() {
                    _ if field.proto3_optional() => "optional ",
                    label if label.as_str_name() == "LABEL_REPEATED" => "repeated ",
                    _ => "",
                };
                let kind = match field.type_name().trim_start_matches('.') {
                    "" => field.r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase(),
                    named => named.to_owned(),
                };
                out.insert(format!("{name}.{}", field.name()), format!("{} {label}{kind}", field.number()));
            }
        }
        for kind in &file.enum_type {
            for value in &kind.value {
                let name = format!("{}.{}.{}", file.package(), kind.name(), value.name());
                out.insert(name, value.number().to_string());
            }
        }
    }
    out
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
}

#[test]
fn no_protobuf_field_is_removed_renumbered_or_retyped() {
    let path = api_dir().join("proto/fields.txt");
    let now = fields();
    let written = fs::read_to_string(&path).unwrap_or_default();
    let locked: BTreeMap<&str, &str> = written.lines().filter_map(|line| line.split_once(" = ")).collect();
    for (name, want) in &locked {
        let got = now.get(*name).map(String::as_str);
        assert_eq!(got, Some(*want), "{name} is locked: stored and sent bytes mean that field by it");
    }
    if is_update() {
        let text: String = now.iter().map(|(name, kind)| format!("{name} = {kind}\n")).collect();
        fs::write(&path, text).expect("writable");
        return;
    }
    let new: Vec<&String> = now.keys().filter(|name| !locked.contains_key(name.as_str())).collect();
    assert!(new.is_empty(), "not locked yet: {new:?}; UPDATE_SPEC=1 adds them to api/proto/fields.txt");
}
