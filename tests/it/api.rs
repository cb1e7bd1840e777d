//! Input that no honest client sends: each gets its right error, and the cluster goes on.
//!
//! Attacks promise 2 (never silent), design 5 (what is refused, with which code and which HTTP status) and
//! safety 20 (a refusal did not happen). After every case one more block is acknowledged, and at the end
//! all nodes hold exactly those blocks.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::{
    NodeId,
    block::{Answer, Block, Way},
    checker,
    cluster::Cluster,
    config::Settings,
    exposition::Scrape,
    http::{Connection, Response},
    rpc::{RpcError, post, result_of},
    stream::Stream,
    writer::{Attempt, History},
};

/// `api.max_body` by default.
const MAX_BODY: usize = 32 << 20;
/// `chain.max_block_bytes` by default.
const MAX_BLOCK: usize = 15 << 20;

/// A cluster that must go on, and what it acknowledged so far.
struct Story {
    cluster: Cluster,
    leader: NodeId,
    history: Arc<History>,
}

impl Story {
    fn begin() -> Self {
        let mut cluster = Cluster::three(Settings::new());
        let leader = cluster.leader();
        let mut story = Self { cluster, leader, history: Arc::default() };
        story.goes_on("the beginning");
        story
    }

    /// One more block is acknowledged, by the same leader in the same term.
    #[track_caller]
    fn goes_on(&mut self, after: &str) {
        let status = self.cluster.node(self.leader).status().unwrap_or_else(|e| panic!("after {after}: {e}"));
        let fence = status["fence"].as_u64().unwrap_or_else(|| panic!("after {after}: no fence in {status}"));
        let height = status["head"]["height"].as_u64().unwrap_or(0) + 1;
        let block = Block::new(height, "good");
        let answer = block.propose(&mut self.connect(), Way::Protobuf, Some(fence));
        assert!(matches!(answer, Answer::Acknowledged { .. }), "after {after}: {answer:?}");
        let (node, hash) = (self.leader, block.hash_hex());
        self.history.add(Attempt { height, hash, node, fence, answer });
    }

    #[track_caller]
    fn connect(&self) -> Connection {
        self.cluster.node(self.leader).connect()
    }

    #[track_caller]
    fn post(&self, body: &[u8]) -> Response {
        post(&mut self.connect(), body).expect("bad input is answered")
    }

    /// The error of a body that is one call.
    #[track_caller]
    fn error(&self, body: &[u8]) -> RpcError {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        match result_of(&self.post(body)) {
            Ok(result) => panic!("{shown} is answered with {result}"),
            Err(e) => e.rpc(),
        }
    }

    #[track_caller]
    fn end(mut self) {
        let heights = checker::check(&mut self.cluster, &self.history);
        assert_eq!(heights, self.history.n_acknowledged(), "blocks nobody was told of");
        self.cluster.end();
    }
}

fn call(method: &str, params: &Value) -> Vec<u8> {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string().into_bytes()
}

#[test]
fn what_is_no_request_is_refused() {
    let mut story = Story::begin();
    let deep = "[".repeat(100_000);
    let deep_param = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"block_get","params":[{}1{}]}}"#,
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let cases: &[(&str, &[u8], i64, u16)] = &[
        ("an empty body", b"", -32700, 400),
        ("blanks", b" \n\t ", -32700, 400),
        ("a word", b"hello", -32700, 400),
        ("a number", b"7", -32700, 400),
        ("bytes", b"\x00\xff\xfe", -32700, 400),
        ("half an object", br#"{"jsonrpc":"2.0","id":1,"method":"#, -32700, 200),
        ("no JSON in braces", b"{jsonrpc: 2.0}", -32700, 200),
        ("a trailing comma", br#"{"jsonrpc":"2.0","id":1,"method":"raft_status",}"#, -32700, 200),
        ("deep nesting", deep.as_bytes(), -32700, 200),
        ("an empty object", b"{}", -32600, 200),
        ("an empty batch", b"[]", -32600, 200),
        ("a method that is a number", br#"{"jsonrpc":"2.0","id":1,"method":5}"#, -32600, 200),
        ("no method", br#"{"jsonrpc":"2.0","id":1}"#, -32600, 200),
        ("an id that is an object", br#"{"jsonrpc":"2.0","id":{},"method":"raft_status"}"#, -32600, 200),
        ("an id that is a fraction", br#"{"jsonrpc":"2.0","id":1.5,"method":"raft_status"}"#, -32600, 200),
        ("a negative id", br#"{"jsonrpc":"2.0","id":-1,"method":"raft_status"}"#, -32600, 200),
        ("an id given twice", br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"raft_status"}"#, -32600, 200),
        ("an unknown method", br#"{"jsonrpc":"2.0","id":1,"method":"block_destroy"}"#, -32601, 200),
        (
            "params that are a number",
            br#"{"jsonrpc":"2.0","id":1,"method":"raft_status","params":7}"#,
            -32602,
            200,
        ),
        (
            "a parameter too much",
            br#"{"jsonrpc":"2.0","id":1,"method":"raft_status","params":[1]}"#,
            -32602,
            200,
        ),
        (
            "an unknown name",
            br#"{"jsonrpc":"2.0","id":1,"method":"block_get","params":{"hight":1}}"#,
            -32602,
            200,
        ),
        ("nothing for what is required", br#"{"jsonrpc":"2.0","id":1,"method":"block_get"}"#, -32602, 200),
    ];
    for (what, body, code, http) in cases {
        let error = story.error(body);
        assert_eq!((error.code, error.http), (*code, *http), "{what}: {error}");
        if *code == -32602 {
            assert!(error.data["param"].is_string(), "{what} names no parameter: {}", error.data);
        }
        story.goes_on(what);
    }
    // A parameter nested so deep is refused one way or the other; the stack is not its measure.
    let error = story.error(deep_param.as_bytes());
    assert!([-32700, -32602].contains(&error.code), "a parameter nested deep: {error}");
    story.goes_on("a parameter nested deep");
    story.end();
}

#[test]
fn a_batch_is_bounded_and_each_member_judged_alone() {
    let mut story = Story::begin();
    let status = json!({"jsonrpc": "2.0", "id": 1, "method": "raft_status"});
    let huge = Value::Array(vec![status.clone(); 101]).to_string();
    let answer = story.post(huge.as_bytes());
    let error = match answer.json() {
        Some(Value::Array(rows)) => RpcError::from_json(&rows[0]["error"], answer.status),
        Some(one) => RpcError::from_json(&one["error"], answer.status),
        None => panic!("no JSON: {}", answer.text()),
    };
    assert!((-32011..=-32001).contains(&error.code), "101 calls in a batch: {error}");
    story.goes_on("a batch over the bound");
    // 10 000 calls in 400 KiB.
    let answer = story.post(Value::Array(vec![json!({"id": 1}); 10_000]).to_string().as_bytes());
    assert!(answer.json().is_some() && answer.body.len() < 100_000, "{} bytes", answer.body.len());
    story.goes_on("a batch far over the bound");
    let mixed = json!([7, {"jsonrpc": "2.0", "id": 2, "method": "nope"}, {"jsonrpc": "2.0", "id": {}, "method": "raft_status"},
        {"jsonrpc": "2.0", "id": 3, "method": "raft_leader"}]);
    let answer = story.post(mixed.to_string().as_bytes()).json().expect("JSON");
    let rows = answer.as_array().expect("a batch is answered by a batch");
    let mut codes: Vec<i64> = rows.iter().filter_map(|row| row["error"]["code"].as_i64()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [-32601, -32600, -32600], "{rows:?}");
    assert!(rows.iter().any(|row| row["id"] == 3 && row["result"].is_object()), "{rows:?}");
    story.goes_on("a batch of all sorts");
    story.end();
}

/// A good block's parameters, with one field changed.
fn changed(field: &str, value: Value) -> Value {
    let mut block = Block::new(1_000_000, "bad").to_json();
    block[field] = value;
    json!({"block": block})
}

#[test]
fn a_malformed_block_is_refused_with_the_name_of_the_field() {
    let mut story = Story::begin();
    let over: u64 = 1 << 53;
    let cases: Vec<(&str, &str, Value)> = vec![
        ("an odd number of digits", "hash", json!("0xabc")),
        ("no hexadecimal", "hash", json!("0xzz")),
        ("no 0x", "hash", json!("abcd")),
        ("an empty hash", "hash", json!("0x")),
        ("an empty text", "hash", json!("")),
        ("a hash of 65 bytes", "hash", json!(format!("0x{}", "ab".repeat(65)))),
        ("a hash that is a number", "hash", json!(5)),
        ("a hash that is null", "hash", Value::Null),
        ("a parent hash of 65 bytes", "parentHash", json!(format!("0x{}", "ab".repeat(65)))),
        ("an empty parent hash", "parentHash", json!("0x")),
        ("odd data", "data", json!("0xabc")),
        ("data that is a list", "data", json!([1, 2])),
        ("a header that is no hexadecimal", "header", json!("0x  ")),
        ("a height past 2^53", "height", json!(over)),
        ("a height past 2^53 as text", "height", json!(over.to_string())),
        ("a height past 2^53 in hexadecimal", "height", json!("0x20000000000000")),
        ("a height past 2^64", "height", json!("18446744073709551616")),
        ("a negative height", "height", json!(-1)),
        ("a negative height as text", "height", json!("-1")),
        ("a height with a fraction", "height", json!(1.5)),
        ("a height that is a word", "height", json!("two")),
        ("a height that is empty text", "height", json!("")),
        ("a height that is true", "height", json!(true)),
        ("a height that is a list", "height", json!([1])),
        ("a timestamp past 2^53 as a number", "timestamp", json!(over)),
        ("a negative timestamp", "timestamp", json!(-5)),
        ("a timestamp past 2^64", "timestamp", json!("18446744073709551616")),
        ("a DA height past 2^53", "lastSubmittedDaHeaderHeight", json!(over.to_string())),
        ("a negative DA height", "lastSubmittedDaDataHeight", json!(-1)),
        ("an unknown field", "colour", json!("red")),
    ];
    for (what, field, value) in cases {
        let error = story.error(&call("block_propose", &changed(field, value)));
        assert_eq!(error.code, -32602, "{what}: {error}");
        let param = error.data["param"].as_str().unwrap_or_default();
        assert!(param.contains(field), "{what}: data.param is {param:?}, not {field}");
        story.goes_on(what);
    }
    for (what, params) in [
        ("no block", json!({})),
        ("a block that is null", json!({"block": null})),
        ("a block that is text", json!({"block": "0x00"})),
        (
            "a block without a height",
            json!({"block": {"hash": "0xab", "timestamp": "1", "header": "0x", "data": "0x"}}),
        ),
        ("a fence that is text", json!({"block": Block::new(1_000_000, "bad").to_json(), "fence": "no"})),
        ("a negative fence", json!({"block": Block::new(1_000_000, "bad").to_json(), "fence": -1})),
        (
            "a time limit over the bound",
            json!({"block": Block::new(1_000_000, "bad").to_json(), "timeoutMs": 31_000}),
        ),
        ("an unknown parameter", json!({"block": Block::new(1_000_000, "bad").to_json(), "fenec": 1})),
        ("a position too many", json!([Block::new(1_000_000, "bad").to_json(), null, null, 1])),
    ] {
        let error = story.error(&call("block_propose", &params));
        assert_eq!(error.code, -32602, "{what}: {error}");
        assert!(error.data["param"].is_string(), "{what}: {}", error.data);
        story.goes_on(what);
    }
    story.end();
}

#[test]
fn a_malformed_protobuf_block_is_refused() {
    let mut story = Story::begin();
    let good = Block::new(1_000_000, "bad");
    let mut empty_hash = good.clone();
    empty_hash.hash.clear();
    let mut long_hash = good.clone();
    long_hash.hash = vec![1; 65];
    let mut high = good.clone();
    high.height = 1 << 53;
    let bytes = good.to_protobuf();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("bytes", vec![0xff; 64]),
        ("half a block", bytes[..bytes.len() / 2].to_vec()),
        ("a group that never ends", vec![0x0b; 10_000]),
        ("a field longer than the message", vec![0x22, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("an empty hash", empty_hash.to_protobuf()),
        ("a hash of 65 bytes", long_hash.to_protobuf()),
        ("a height past 2^53", high.to_protobuf()),
    ];
    let content = ("Content-Type", "application/x-protobuf");
    for (what, body) in cases {
        let response = story.connect().request("POST", "/v1/blocks", &[content], &body).expect("it answers");
        let error = RpcError::from_json(&response.json().unwrap_or_default()["error"], response.status);
        assert_eq!((error.code, error.http), (-32602, 400), "{what}: {error}");
        story.goes_on(what);
    }
    for (what, header) in [
        ("a fence that is a word", ("Blockraft-Fence", "none")),
        ("a negative fence", ("Blockraft-Fence", "-1")),
        ("a time limit without a unit", ("Blockraft-Timeout", "800")),
        ("a time limit that is a word", ("Blockraft-Timeout", "soon")),
    ] {
        let response =
            story.connect().request("POST", "/v1/blocks", &[content, header], &bytes).expect("it answers");
        assert_eq!(response.status, 400, "{what}: {}", response.text());
        story.goes_on(what);
    }
    story.end();
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let mut story = Story::begin();
    for path in ["/", "/v1/blocks"] {
        let kind = if path == "/" { "application/json" } else { "application/x-protobuf" };
        let mut conn = story.connect();
        // Announced, and never sent: the answer must not wait for it.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            story.cluster.node(story.leader).api,
            MAX_BODY + 1
        );
        conn.send(head.as_bytes()).expect("it reads");
        let response = conn.response(false).expect("it answers");
        assert_eq!(response.status, 413, "a body over the bound to {path}: {}", response.text());
        story.goes_on("a body over the bound");
    }
    // Without an announced length the bound holds all the same.
    let mut conn = story.connect();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        story.cluster.node(story.leader).api
    );
    conn.send(head.as_bytes()).expect("it reads");
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..=MAX_BODY >> 20 {
        // It may answer and close before all is sent.
        if conn.send(&chunk).is_err() {
            break;
        }
    }
    if let Ok(response) = conn.response(false) {
        assert_eq!(response.status, 413, "chunks over the bound: {}", response.text());
    }
    story.goes_on("chunks over the bound");
    // Over chain.max_block_bytes by one byte, and not.
    let status = story.cluster.node(story.leader).status().expect("it answers");
    let height = status["head"]["height"].as_u64().expect("a head") + 1;
    let header_bytes = Block::new(height, "large").header.len();
    for way in [Way::Protobuf, Way::JsonRpc] {
        let over = Block::sized(height, "large", MAX_BLOCK + 1 - header_bytes);
        let answer = over.propose(&mut story.connect(), way, None);
        let error = answer.refused();
        assert_eq!((error.code, error.reason()), (-32602, "tooLarge"), "{way:?}");
        // Inside a batch a call has no status of its own, so JSON-RPC may say it in the error alone.
        assert!(error.http == 413 || (error.http == 200 && way == Way::JsonRpc), "{way:?}: {error}");
        story.goes_on("a block over the bound");
    }
    story.end();
}

/// Where the answer as a whole is no error, or has none of the codes.
#[test]
fn a_refusal_inside_an_answer_is_counted() {
    let mut story = Story::begin();
    let api = story.cluster.node(story.leader).api.clone();
    let counted = |story: &Story, reason: &str| {
        let text = story.cluster.node(story.leader).get("/metrics", &[]).expect("it answers").text();
        Scrape::parse(&text).get("blockraft_rpc_rejected_total", &[("reason", reason)]).unwrap_or(0.0)
    };
    let [malformed, too_large, no_route] =
        ["malformed", "body_too_large", "no_route"].map(|reason| counted(&story, reason));
    // A message of two bytes that is no block; one that says it is longer than any may be.
    for body in [&[2, 0xff, 0xff][..], &[0xff, 0xff, 0xff, 0xff, 0x0f][..]] {
        let mut stream = Stream::open(&api, None).expect("it takes a stream");
        stream.send_raw(body).expect("it reads");
        stream.end().expect("it reads");
        assert!(matches!(stream.next(), Ok(Some(Answer::Refused { .. }))), "{body:?}");
        assert_eq!(stream.status, Some(200));
    }
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "raft_status"});
    let answers = story
        .post(json!([call, 7, {"jsonrpc": "2.0", "id": -1, "method": "raft_status"}]).to_string().as_bytes());
    let answers = answers.json().expect("JSON");
    let errors: Vec<_> =
        answers.as_array().into_iter().flatten().map(|a| a["error"]["code"].clone()).collect();
    assert_eq!(errors, [Value::Null, json!(-32600), json!(-32600)], "{answers}");
    assert!(answers[2]["error"]["message"].to_string().contains("0 to 2^64 - 1"), "{answers}");
    let response = story.connect().request("PUT", "/", &[], b"").expect("it answers");
    assert_eq!(response.status, 405);
    assert_eq!(counted(&story, "malformed") - malformed, 3.0);
    assert_eq!(counted(&story, "body_too_large") - too_large, 1.0);
    assert_eq!(counted(&story, "no_route") - no_route, 1.0);
    story.goes_on("what was refused inside an answer");
    story.end();
}

#[test]
fn what_a_library_would_let_through_is_refused() {
    let mut story = Story::begin();
    let api = story.cluster.node(story.leader).api.clone();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"raft_status"}"#;
    let length = body.len();
    let json = "Content-Type: application/json";
    let cases: Vec<(&str, String, &[u16])> = vec![
        ("no Host", format!("POST / HTTP/1.1\r\n{json}\r\nContent-Length: {length}\r\n\r\n{body}"), &[400]),
        (
            "a foreign Host",
            format!(
                "POST / HTTP/1.1\r\nHost: evil.example\r\n{json}\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
            &[403],
        ),
        (
            "a foreign Origin",
            format!(
                "POST / HTTP/1.1\r\nHost: {api}\r\nOrigin: http://evil.example\r\n{json}\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
            &[403],
        ),
        (
            "another media type",
            format!(
                "POST / HTTP/1.1\r\nHost: {api}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
            &[415],
        ),
        (
            "no media type",
            format!("POST / HTTP/1.1\r\nHost: {api}\r\nContent-Length: {length}\r\n\r\n{body}"),
            &[415],
        ),
        (
            "a failed upgrade",
            format!("GET / HTTP/1.1\r\nHost: {api}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            &[400, 426],
        ),
        ("another method", format!("DELETE / HTTP/1.1\r\nHost: {api}\r\n\r\n"), &[404, 405]),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), &[400]),
    ];
    for (what, request, statuses) in cases {
        let mut conn = story.connect();
        conn.send(request.as_bytes()).expect("it reads");
        match conn.response(false) {
            Ok(response) => {
                assert!(
                    statuses.contains(&response.status),
                    "{what}: {} {}",
                    response.status,
                    response.text()
                );
            }
            // What is no HTTP may be closed without a word.
            Err(e) => assert_eq!(what, "no HTTP", "{e}"),
        }
        story.goes_on(what);
    }
    // Without an id: not executed, not answered.
    let block = Block::new(1_000_000, "no id").to_json();
    let silent = json!({"jsonrpc": "2.0", "method": "block_propose", "params": {"block": block}});
    for body in [silent.to_string(), json!([silent]).to_string()] {
        let response = story.post(body.as_bytes());
        assert_eq!((response.status, response.body.len()), (204, 0), "{body}");
        assert!(response.header("blockraft-hint").is_some(), "a hint says why nothing happened");
    }
    story.goes_on("calls without an id");
    story.end();
}

#[test]
fn half_a_request_and_silence_hold_nothing_up() {
    let mut story = Story::begin();
    let api = story.cluster.node(story.leader).api.clone();
    let mut silent: Vec<Connection> = Vec::new();
    for request in [
        String::new(),
        "P".into(),
        "POST / HTTP/1.1\r\nHost:".into(),
        format!(
            "POST / HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
        ),
        format!(
            "POST /v1/blocks HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\n\x08"
        ),
        format!(
            "POST /v1/blocks/stream HTTP/1.1\r\nHost: {api}\r\nContent-Type: application/x-protobuf\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"
        ),
    ] {
        for _ in 0..20 {
            let mut conn = story.connect();
            conn.send(request.as_bytes()).expect("it reads");
            silent.push(conn);
        }
        story.goes_on("half a request");
    }
    // They are all still open, and the probes answer beside them.
    for path in ["/livez", "/readyz", "/metrics"] {
        let response = story.cluster.node(story.leader).get(path, &[]).expect("it answers");
        assert_eq!(response.status, 200, "{path} beside {} silent connections", silent.len());
    }
    drop(silent);
    story.goes_on("connections that were dropped half way");
    story.end();
}
