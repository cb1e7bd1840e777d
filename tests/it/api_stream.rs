//! The ordered fast path under bad input: what was whole is answered, nothing else happens.
//!
//! Attacks promises 1 and 2, and design 6: blocks enter in the order sent, after the first refusal none
//! is taken, those handed to raft are still answered.

use std::{
    io::Read,
    net::{Shutdown, TcpStream},
};

use serde_json::Value;

use crate::support::{
    block::{Answer, Block, put_varint},
    cluster::Cluster,
    config::Settings,
    exposition::Scrape,
    http::{Connection, Response},
    rpc::RpcError,
    stream::{Stream, fill, put_framed},
};

#[track_caller]
fn open(cluster: &mut Cluster, fence: Option<u64>) -> Stream {
    let leader = cluster.leader();
    Stream::open(&cluster.node(leader).api, fence).expect("it answers")
}

/// The whole answer, which must end: acknowledged blocks, then at most one error.
#[track_caller]
fn rest(stream: &mut Stream) -> (usize, Option<RpcError>) {
    // A node that refuses may close while bytes are still on their way to it.
    let mut n = 0;
    while let Ok(Some(answer)) = stream.next() {
        match answer {
            Answer::Acknowledged { .. } => n += 1,
            Answer::Refused { error: Some(error), .. } => return (n, Some(error)),
            other => panic!("line {n}: {other:?}"),
        }
    }
    (n, None)
}

/// The head stands at a height on every node, and the next block goes through.
#[track_caller]
fn goes_on(cluster: &mut Cluster, height: u64, after: &str) {
    let leader = cluster.leader();
    assert_eq!(cluster.height(leader), height, "the head after {after}");
    fill(&cluster.node(leader).api.clone(), &[Block::new(height + 1, "good")]);
}

#[test]
fn a_stream_that_stops_in_the_middle_of_a_block_keeps_what_was_whole() {
    let mut cluster = Cluster::three(Settings::new());
    let mut height = 0;
    for (what, is_ended) in [("an end", true), ("a cut connection", false)] {
        let mut stream = open(&mut cluster, None);
        let whole: Vec<Block> = (1..=3).map(|i| Block::new(height + i, "whole")).collect();
        stream.send(&whole).expect("it reads");
        let mut half = Vec::new();
        put_framed(&mut half, &Block::new(height + 4, "half"));
        stream.send_raw(&half[..half.len() / 2]).expect("it reads");
        for block in &whole {
            let answer = stream.next().expect("it answers").expect("a line for each");
            assert!(matches!(answer, Answer::Acknowledged { .. }), "block {}: {answer:?}", block.height);
        }
        if is_ended {
            stream.end().expect("it reads");
            let (n, error) = rest(&mut stream);
            assert_eq!(n, 0, "half a block is acknowledged");
            assert!(error.is_none_or(|e| e.code == -32602), "{what} inside a block");
        }
        drop(stream);
        height += 3;
        goes_on(&mut cluster, height, what);
        height += 1;
    }
    cluster.end();
}

#[test]
fn what_is_no_block_ends_the_stream_with_an_error() {
    let mut cluster = Cluster::three(Settings::new());
    let mut height = 0;
    let varint = |n: u64| {
        let mut out = Vec::new();
        put_varint(&mut out, n);
        out
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a length of nothing", vec![0]),
        ("a length past every bound", varint(1 << 40)),
        ("a length that does not end", vec![0xff; 12]),
        ("a length of 2^64 - 1", varint(u64::MAX)),
        ("bytes that are no block", [varint(4), vec![0xff; 4]].concat()),
        ("text", b"{\"height\":1}\n".to_vec()),
    ];
    for (what, bytes) in cases {
        let mut stream = open(&mut cluster, None);
        stream.send(&[Block::new(height + 1, what)]).expect("it reads");
        let first = stream.next().expect("it answers");
        assert!(matches!(first, Some(Answer::Acknowledged { .. })), "{what}: {first:?}");
        stream.send_raw(&bytes).expect("it reads");
        // Nothing behind it is taken, though it would be the next block; a closed stream takes nothing.
        let _ = stream.send(&[Block::new(height + 2, "behind")]);
        let _ = stream.end();
        let (n, error) = rest(&mut stream);
        assert_eq!(n, 0, "{what}: a block behind it is acknowledged");
        let code = error.as_ref().map(|e| e.code);
        assert_eq!(code, Some(-32602), "{what}: {error:?}");
        goes_on(&mut cluster, height + 1, what);
        height += 2;
    }
    cluster.end();
}

#[test]
fn the_first_refusal_ends_the_stream_and_nothing_before_it_is_lost() {
    let mut cluster = Cluster::three(Settings::new());
    let mut height = 0;
    for (reason, wrong) in [("conflict", 0), ("gap", 7)] {
        let mut stream = open(&mut cluster, None);
        let good: Vec<Block> = (1..=50).map(|i| Block::new(height + i, "good")).collect();
        stream.send(&good).expect("it reads");
        stream.send(&[Block::new(height + 50 + wrong, "wrong")]).expect("it reads");
        // A closed stream takes nothing more.
        let _ = stream.send(&[Block::new(height + 51, "behind")]);
        let _ = stream.end();
        let (n, error) = rest(&mut stream);
        let error = error.expect("the wrong block is refused");
        assert_eq!((n, error.code, error.reason()), (50, -32033, reason));
        goes_on(&mut cluster, height + 50, reason);
        height += 51;
    }
    let leader = cluster.leader();
    let fence = cluster.node(leader).status().expect("it answers")["fence"].as_u64().expect("a fence");
    let mut stream = open(&mut cluster, Some(fence + 1));
    stream.send(&[Block::new(height + 1, "fenced")]).expect("it reads");
    let (n, error) = rest(&mut stream);
    assert_eq!((n, error.map(|e| e.code)), (0, Some(-32032)), "another fence");
    goes_on(&mut cluster, height, "another fence");
    cluster.end();
}

fn one_node() -> (Cluster, String) {
    let mut cluster = Cluster::new(1, Settings::new());
    let leader = cluster.start();
    let addr = cluster.node(leader).api.clone();
    (cluster, addr)
}

/// A request's head, and a block as one chunk of its body.
fn head(addr: &str, more: &str) -> Vec<u8> {
    format!(
        "POST /v1/blocks/stream HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/x-protobuf\r\n{more}\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes()
}

fn chunk(block: &Block) -> Vec<u8> {
    let mut framed = Vec::new();
    put_framed(&mut framed, block);
    [format!("{:x}\r\n", framed.len()).as_bytes(), &framed, b"\r\n"].concat()
}

fn lines(answer: &Response) -> Vec<Value> {
    answer.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_body_that_breaks_its_framing_ends_with_an_error() {
    let (mut cluster, addr) = one_node();
    let counted = || {
        let text = Connection::open(&addr).and_then(|mut c| c.request("GET", "/metrics", &[], b""));
        let text = text.expect("it answers").text();
        Scrape::parse(&text).get("blockraft_rpc_rejected_total", &[("reason", "malformed")]).unwrap_or(0.0)
    };
    let before = counted();
    let mut conn = Connection::open(&addr).expect("it listens");
    let bytes = [head(&addr, ""), chunk(&Block::new(1, "whole")), b"no length\r\n".to_vec()].concat();
    conn.send(&bytes).expect("it reads");
    let answer = conn.response(false).expect("it answers");
    let lines = lines(&answer);
    assert_eq!((answer.status, lines.len(), &lines[0]["height"]), (200, 2, &1.into()), "{lines:?}");
    assert_eq!(lines[1]["error"]["code"], -32600, "{lines:?}");
    assert_eq!(counted() - before, 1.0);
    goes_on(&mut cluster, 1, "a chunk without a length");
    cluster.end();
}

#[test]
fn a_body_that_breaks_off_ends_with_an_error_where_somebody_reads() {
    let (mut cluster, addr) = one_node();
    let stream = TcpStream::connect(&addr).expect("it listens");
    let mut conn = Connection::over(&addr, stream.try_clone().expect("a descriptor is left"));
    conn.send(&[head(&addr, ""), chunk(&Block::new(1, "whole"))].concat()).expect("it reads");
    stream.shutdown(Shutdown::Write).expect("it is open");
    let lines = lines(&conn.response(false).expect("it answers"));
    assert_eq!((lines.len(), &lines[0]["height"]), (2, &1.into()), "{lines:?}");
    assert_eq!(lines[1]["error"]["code"], -32600, "{lines:?}");
    goes_on(&mut cluster, 1, "a body without an end");
    cluster.end();
}

#[test]
fn who_expects_to_be_told_is_told_to_go_on() {
    let (mut cluster, addr) = one_node();
    let mut stream = TcpStream::connect(&addr).expect("it listens");
    let mut conn = Connection::over(&addr, stream.try_clone().expect("a descriptor is left"));
    conn.send(&head(&addr, "Expect: 100-continue\r\n")).expect("it reads");
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut told = vec![0; go_on.len()];
    stream.read_exact(&mut told).expect("it answers");
    assert_eq!(told.escape_ascii().to_string(), go_on.escape_ascii().to_string());
    conn.send(&[chunk(&Block::new(1, "told")), b"0\r\n\r\n".to_vec()].concat()).expect("it reads");
    let answer = conn.response(false).expect("it answers");
    let lines = lines(&answer);
    assert_eq!((answer.status, lines.len(), &lines[0]["height"]), (200, 1, &1.into()), "{lines:?}");
    goes_on(&mut cluster, 1, "a client that was told to go on");
    cluster.end();
}
