//! What a node says to a client that meets one of its limits, and to one behind a proxy.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_refusal_names_the_limit_… | design 5: 429 for the rate alone, the rest 200; the message says which setting |
//! | an_upgrade_over_a_bound_… | design 5: a failed upgrade is no 200 |
//! | a_batch_runs_to_its_end_… | design 5: -32011 comes after the calls ran |
//! | who_asks_is_… | a proxy's `X-Forwarded-For` and its kin are never believed |
//! | what_is_no_call_costs_… | `api.rate_limit` binds every request, also one that no method ever sees |
//! | a_socket_that_reads_no_… | answers nobody reads are bounded: requests behind them are left with the kernel |
//! | a_socket_whose_upgrade_… | behind `proxy_pass` alone: 426 that says what the proxy lacks |
//! | what_streams_… | proxies hold nothing back: `X-Accel-Buffering` on the feed and the ordered stream |

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    bench::rss_mib,
    block::Block,
    cluster::Cluster,
    config::settings,
    http::{Connection, Response, request},
    stream::fill,
    wait::{SOON, wait_for},
};

/// A second. Above what starting a cluster asks, below what this machine can.
const RATE: i64 = 100;
const CALL: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"raft_status"}"#;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MEDIA: (&str, &str) = ("content-type", "application/json");

fn post(addr: &str, more: &[(&str, &str)]) -> Response {
    let headers: Vec<_> = [MEDIA].into_iter().chain(more.iter().copied()).collect();
    request(addr, "POST", "/", &headers, CALL).expect("it answers")
}

/// Keeps as many connections open as `api.max_connections_per_address` of 8 lets in, and those that came before they had
/// closed: the next one is one too many.
fn hold_all(addr: &str) -> Vec<Connection> {
    (0..16).map(|_| Connection::open(addr).expect("it listens")).collect()
}

fn message(answer: &Response) -> String {
    answer.json().map_or_else(|| answer.text(), |a| a["error"]["message"].to_string())
}

/// Asks until the node has had enough: what its bucket holds, and what the time that passes adds.
fn refused(addr: &str, headers: &[(&str, &str)]) -> Response {
    let found = (0..5_000).map(|_| post(addr, headers)).find(|a| a.status != 200);
    found.expect("more was asked than the rate allows")
}

#[test]
fn a_refusal_names_the_limit_that_was_met() {
    let limits = [("api.rate_limit", RATE.into()), ("api.max_connections_per_address", 8.into())];
    let mut cluster = Cluster::new(1, settings(limits));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    let answer = refused(&addr, &[]);
    assert_eq!((answer.status, message(&answer).contains("api.rate_limit")), (429, true), "{answer:?}");
    assert!(answer.header("retry-after").is_some_and(|secs| secs != "0"), "{answer:?}");
    assert_eq!(answer.json().expect("JSON")["error"]["data"]["reason"], json!("overloaded"));
    let _held = hold_all(&addr);
    // The rate comes first, and lets one through every ten milliseconds.
    let answer = wait_for("one that the rate lets through", SOON, || {
        let answer = post(&addr, &[]);
        ensure!(answer.status != 429, "{answer:?}");
        Ok(answer)
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(message(&answer).contains("api.max_connections_per_address"), "{answer:?}");
    cluster.end();
}

#[test]
fn an_upgrade_over_a_bound_is_no_success() {
    let mut cluster = Cluster::new(1, settings([("api.max_connections_per_address", 8.into())]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    let _held = hold_all(&addr);
    let upgrade = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    let answer = request(&addr, "GET", "/", &upgrade, b"").expect("it answers");
    assert_eq!(answer.status, 429, "{answer:?}");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    cluster.end();
}

#[test]
fn a_batch_runs_to_its_end_whatever_its_answers_come_to() {
    let bounds = [("api.max_body", "1MiB".into()), ("chain.max_block_bytes", "400KiB".into())];
    let mut cluster = Cluster::new(1, settings(bounds));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    fill(&addr, &[Block::sized(1, "large", 300 << 10)]);
    let get = json!({"jsonrpc": "2.0", "id": 1, "method": "block_get", "params": {"height": 1}});
    let act = json!({"jsonrpc": "2.0", "id": 2, "method": "raft_pause"});
    let batch = json!([get, get, get, act]).to_string();
    let answer = request(&addr, "POST", "/", &[MEDIA], batch.as_bytes()).expect("it answers");
    let error = answer.json().expect("JSON")["error"].clone();
    assert_eq!(error["code"], -32011, "{}", answer.text());
    assert_eq!(cluster.node(1).status().expect("it answers")["paused"], true);
    cluster.end();
}

#[test]
fn what_is_no_call_costs_a_request_as_well() {
    let mut cluster = Cluster::new(1, settings([("api.rate_limit", RATE.into())]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    let without_id: &[u8] = br#"{"jsonrpc":"2.0","method":"raft_status"}"#;
    for (method, body) in [("POST", without_id), ("POST", b"{]"), ("POST", b"[]"), ("PUT", b"")] {
        let ask = || request(&addr, method, "/", &[MEDIA], body).expect("it answers").status;
        let statuses: Vec<u16> = (0..5_000).map(|_| ask()).take_while(|status| *status != 429).collect();
        assert!(statuses.len() < 5_000, "{method} of {}", body.escape_ascii());
    }
    cluster.end();
}

/// A call of some size with a large answer, as a frame that is masked with zeros.
fn asked(id: &str, method: &str) -> Vec<u8> {
    let padding = " ".repeat(60 << 10);
    let call = format!(r#"{{"jsonrpc":"2.0","id":"{id}","method":"{method}"{padding}}}"#);
    let length = u16::try_from(call.len()).expect("less than 64 KiB").to_be_bytes();
    [&[0x81, 0x80 | 126], &length[..], &[0; 4], call.as_bytes()].concat()
}

/// Reads until the answer with an id came.
fn read_until(mut stream: TcpStream, id: &str) -> bool {
    let mark = format!(r#""id":"{id}""#).into_bytes();
    let (mut tail, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        tail.extend_from_slice(&chunk[..n]);
        if tail.windows(mark.len()).any(|w| w == mark) {
            return true;
        }
        tail.drain(..tail.len().saturating_sub(mark.len()));
    }
    false
}

/// What one send may wait. By eye: a node that reads takes it within milliseconds.
const SEND_FOR: Duration = Duration::from_secs(3);
/// 120 MiB of requests: many times what the kernel's buffers and the calls under way may hold.
const ASKED_MAX: usize = 128 << 4;

/// A WebSocket of which nothing is read by itself.
#[track_caller]
fn upgraded(addr: &str) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("it listens");
    let mut conn = Connection::over(addr, stream.try_clone().expect("a descriptor is left"));
    let upgrade = format!(
        "GET / HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    conn.send(upgrade.as_bytes()).expect("it reads");
    assert_eq!(conn.head().expect("it answers").status, 101);
    stream
}

/// Large answers are made as they are taken, and not all of them ahead.
#[test]
fn a_socket_that_reads_no_large_answers_gets_few_of_them_made() {
    const ASKED: usize = 64;
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    fill(&addr, &[Block::sized(1, "large", 4 << 20)]);
    let pid = cluster.node(1).pid();
    let before = rss_mib(pid).expect("it runs");
    let mut stream = upgraded(&addr);
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"block_get","params":{"height":1}}"#;
    let length = u8::try_from(call.len()).expect("a short frame");
    let frame = [&[0x81, 0x80 | length], &[0; 4][..], call.as_bytes()].concat();
    for _ in 0..ASKED {
        stream.write_all(&frame).expect("it reads");
    }
    // Large reads take turns in order: once this one is answered, whatever was let in before had its turn.
    cluster.node(1).call("block_get", &json!({"height": 1})).expect("it is there");
    let more = rss_mib(pid).expect("it runs").saturating_sub(before);
    // Each has 8 MiB.
    assert!(more < 256, "{more} MiB more");
    drop(stream);
    cluster.end();
}

#[test]
fn a_socket_that_reads_no_answers_is_not_read_on() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    let mut stream = upgraded(&addr);
    stream.set_write_timeout(Some(SEND_FOR)).expect("it is open");
    let frame = asked("first", "rpc.discover");
    // What is left of the frame that the node does not take.
    let left = (0..ASKED_MAX).find_map(|_| {
        let mut left = &frame[..];
        while !left.is_empty() {
            match stream.write(left) {
                Ok(n) => left = &left[n..],
                Err(e) => {
                    let is_full = matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    assert!(is_full, "{e}");
                    return Some(left);
                }
            }
        }
        None
    });
    let left = left.expect("the node reads on though none of its answers is read");
    // Who reads is read again.
    let reader = stream.try_clone().expect("a descriptor is left");
    let reading = thread::spawn(move || read_until(reader, "last"));
    stream.set_write_timeout(None).expect("it is open");
    stream.write_all(left).expect("it reads again");
    stream.write_all(&asked("last", "raft_status")).expect("it reads again");
    assert!(reading.join().expect("it does not panic"), "the last call is answered");
    cluster.end();
}

#[test]
fn who_asks_is_who_is_connected_whatever_a_header_says() {
    let mut cluster = Cluster::new(1, settings([("api.rate_limit", RATE.into())]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    refused(&addr, &[]);
    // Each of these would be another address with a bucket of its own.
    for name in ["x-forwarded-for", "x-real-ip", "forwarded", "true-client-ip", "cf-connecting-ip"] {
        let value = if name == "forwarded" { "for=198.51.100.7" } else { "198.51.100.7" };
        assert_eq!(refused(&addr, &[(name, value)]).status, 429, "{name}");
    }
    // Nor is a host that only a proxy names one that is allowed, or a way round the one that is not.
    let stream = TcpStream::connect(&addr).expect("it listens");
    let answer = Connection::over("evil.example", stream).request(
        "POST",
        "/",
        &[MEDIA, ("x-forwarded-host", "localhost")],
        CALL,
    );
    let answer = answer.expect("it answers");
    assert_eq!((answer.status, message(&answer).contains("api.allowed_hosts")), (403, true), "{answer:?}");
    cluster.end();
}

#[test]
fn a_socket_whose_upgrade_a_proxy_took_away_is_told_so() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    // As nginx passes it on that was given `proxy_pass` alone.
    let headers = [("Connection", "close"), ("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Version", "13")];
    let answer = request(&cluster.node(1).api, "GET", "/", &headers, b"").expect("it answers");
    assert_eq!((answer.status, answer.text().contains("proxy")), (426, true), "{answer:?}");
    cluster.end();
}

#[test]
fn what_streams_is_passed_on_by_proxies_as_it_comes() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    let addr = cluster.node(1).api.clone();
    let head = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let mut conn = Connection::open(&addr).expect("it listens");
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\n");
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        conn.send(format!("{text}\r\n").as_bytes()).expect("it reads");
        conn.head().expect("it answers")
    };
    let stream = [("content-type", "application/x-protobuf"), ("transfer-encoding", "chunked")];
    for answer in [head("GET", "/v1/applied", &[]), head("POST", "/v1/blocks/stream", &stream)] {
        assert_eq!((answer.status, answer.header("x-accel-buffering")), (200, Some("no")), "{answer:?}");
    }
    assert_eq!(cluster.node(1).call("block_head", &Value::Null).ok(), Some(Value::Null));
    cluster.end();
}
