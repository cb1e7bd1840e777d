//! What a node says to a client that meets one of its limits, and to one behind a proxy.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_refusal_names_the_limit_… | design 5: 429 for the rate alone, the rest 200; the message says which setting |
//! | who_asks_is_… | a proxy's `X-Forwarded-For` and its kin are never believed |
//! | a_socket_whose_upgrade_… | behind `proxy_pass` alone: 426 that says what the proxy lacks |
//! | what_streams_… | proxies hold nothing back: `X-Accel-Buffering` on the feed and the ordered stream |

use std::net::TcpStream;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    cluster::Cluster,
    config::settings,
    http::{Connection, Response, request},
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
    // Kept open, and as many as may be: the next one is one too many.
    let _held: Vec<Connection> = (0..8).map(|_| Connection::open(&addr).expect("it listens")).collect();
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
