//! Strangers at the port between nodes: garbage, frames without end, silence.
//!
//! Attacks safety 24, 25 and 27 (bounded frames, a versioned envelope, votes that wait for nobody) and
//! design 4 (identity before anything else). After each the cluster goes on in the same term.

use std::{collections::BTreeSet, time::Duration};

use serde_json::Value;

use crate::support::{block::Block, cluster::Cluster, config::Settings, http::Connection, stream::fill};

/// A stranger that is not closed within this is kept waiting: no fault, if it costs nothing.
const PATIENCE: Duration = Duration::from_millis(300);

/// What a first frame may look like to a careless reader: a big-endian length and a payload.
fn frame(length: u32, payload: &[u8]) -> Vec<u8> {
    [length.to_be_bytes().as_slice(), payload].concat()
}

#[test]
fn strangers_at_the_peer_port_cost_nothing() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    let leader = cluster.leader();
    let api = cluster.node(leader).api.clone();
    let term = cluster.node(leader).status().expect("it answers")["term"].clone();
    let noise: Vec<u8> = (0..1_u32 << 16).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("one byte", vec![0]),
        ("noise", noise.clone()),
        ("zeros", vec![0; 4_096]),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("a frame of 4 GiB", frame(u32::MAX, &noise)),
        ("a frame just over 2 GiB", frame(0x8000_0001, &noise)),
        ("a frame of 64 MiB", frame(64 << 20, &noise)),
        ("an empty frame", frame(0, &[])),
        ("a frame shorter than an envelope", frame(3, &[1, 1, 1])),
        ("half a frame", frame(1_000, &noise[..10])),
        ("an unknown version", frame(10, &[0xff, 1, 0, 0, 0, 0, 0, 0, 0, 1])),
        ("an unknown kind", frame(10, &[1, 0xff, 0, 0, 0, 0, 0, 0, 0, 1])),
        ("an empty hello", frame(10, &[1, 1, 0, 0, 0, 0, 0, 0, 0, 1])),
        ("a hello that is noise", frame(200, &[&[1, 1, 0, 0, 0, 0, 0, 0, 0, 1], &noise[..190]].concat())),
    ];
    let mut height = 0;
    // They stay open to the end: silence must hold nothing up either.
    let mut open: Vec<Connection> = Vec::new();
    for (what, bytes) in cases {
        for node in &cluster.nodes {
            let mut conn = Connection::open(&node.peer).expect("the port is open");
            // A node that closes at the first wrong byte does not take the rest.
            let _ = conn.send(&bytes);
            let (said, _) = conn.drain(PATIENCE);
            assert!(said.len() < 4_096, "{what} is answered with {} bytes", said.len());
            open.push(conn);
        }
        height += 1;
        fill(&api, &[Block::new(height, what)]);
        for status in cluster.settled() {
            assert_eq!(status["term"], term, "{what} cost an election");
        }
    }
    assert_eq!(cluster.leader(), leader);
    cluster.end();
}

#[test]
fn many_silent_connections_at_the_peer_port_keep_no_node_out() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    cluster.allow_deaths();
    let mut silent = Vec::new();
    for node in &cluster.nodes {
        for _ in 0..200 {
            // A node that closes early or refuses more is within its rights.
            if let Ok(mut conn) = Connection::open(&node.peer)
                && conn.send(&[0, 0]).is_ok()
            {
                silent.push(conn);
            }
        }
    }
    assert!(!silent.is_empty());
    // A node that has to dial all the others anew still gets through.
    cluster.node_mut(follower).kill();
    cluster.node_mut(follower).start();
    let leader = cluster.leader();
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "through")]);
    let heads: BTreeSet<String> = cluster.settled().iter().map(|s| s["head"]["hash"].to_string()).collect();
    assert_eq!(heads.len(), 1);
    assert_ne!(heads.first().map(String::as_str), Some(Value::Null.to_string().as_str()));
    cluster.end();
}
