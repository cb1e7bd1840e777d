//! The ordered fast path under bad input: what was whole is answered, nothing else happens.
//!
//! Attacks promises 1 and 2, and design 6: blocks enter in the order sent, after the first refusal none
//! is taken, those handed to raft are still answered.

use crate::support::{
    block::{Answer, Block, put_varint},
    cluster::Cluster,
    config::Settings,
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
