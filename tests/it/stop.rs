//! Every stop is graceful when it can be.
//!
//! | test | attacks |
//! | --- | --- |
//! | every_node_stops_in_time_… | promise 6; safety 33: a clean stop loses nothing |
//! | a_stop_under_load_answers_what_is_in_flight | promises 1 and 6; safety 20 |
//! | a_second_signal_ends_a_stop_at_once | promise 6 |
//! | a_start_that_hangs_… | promise 6: a disk that answers nothing |
//! | a_killed_node_says_so_after_the_restart | promise 7: `LAST_EXIT` |
//! | when_the_last_block_was_applied_… | promise 7: a chain that stands still is told of after a restart too |
//! | what_must_not_stop_a_node | design 11: SIGHUP, SIGPIPE, a closed stdout |

use std::{fs, sync::Arc, time::Duration};

use anyhow::ensure;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::Signal,
};

use crate::support::{
    bench::number,
    block::{Block, Way},
    checker,
    cluster::Cluster,
    config::Settings,
    exposition::Scrape,
    http::Connection,
    node::Node,
    stream::{Stream, fill},
    wait::{SOON, wait_for},
    writer::{History, Writer},
};

/// shutdown_timeout + resign_timeout + 1 s, at the defaults.
const STOP_BOUND: Duration = Duration::from_millis(5 * 200 + 3_000 + 1_000);

#[test]
fn every_node_stops_in_time_and_loses_nothing() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let blocks: Vec<Block> = (1..=100).map(|h| Block::new(h, "kept")).collect();
    fill(&cluster.node(leader).api.clone(), &blocks);
    // The leader last: it stops with nobody to hand over to.
    let mut order = cluster.others(leader);
    order.push(leader);
    for id in order {
        // Open connections hold no stop up: a half request, a feed, a stream that waits for more.
        let api = cluster.node(id).api.clone();
        let mut half = Connection::open(&api).expect("it answers");
        half.send(format!("POST / HTTP/1.1\r\nHost: {api}\r\nContent-Length: 9\r\n\r\n").as_bytes())
            .expect("it reads");
        let mut feed = Connection::open(&api).expect("it answers");
        feed.send(format!("GET /v1/applied?fromHeight=1 HTTP/1.1\r\nHost: {api}\r\n\r\n").as_bytes())
            .expect("it reads");
        let _stream = Stream::open(&api, None).expect("it answers");
        let (exit, took) = cluster.node_mut(id).stop(STOP_BOUND + Duration::from_secs(5));
        assert_eq!(exit.code(), Some(0), "node {id}");
        assert!(took <= STOP_BOUND, "node {id} took {took:?} to stop, the bound is {STOP_BOUND:?}");
    }
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.leader();
    for status in cluster.settled() {
        assert_eq!(status["head"]["height"], 100);
    }
    for node in &cluster.nodes {
        assert_last_exit(node, "clean");
    }
    cluster.end();
}

#[test]
fn a_stop_under_load_answers_what_is_in_flight() {
    let mut all = Settings::new();
    all.insert("state.history_blocks".into(), toml::Value::Integer(10_000_000));
    let mut cluster = Cluster::three(all);
    cluster.allow_deaths();
    let history = Arc::new(History::default());
    let writers = [("a", Way::Protobuf), ("b", Way::JsonRpc)]
        .map(|(name, way)| Writer::start(name, way, cluster.endpoints(), history.clone()));
    // A long run asks for 50.
    for _ in 0..number("BLOCKRAFT_STOPS", 5) {
        let enough = history.n_acknowledged() + 20;
        wait_for("blocks are acknowledged", SOON, || {
            ensure!(enough <= history.n_acknowledged(), "{}", history.n_acknowledged());
            Ok(())
        });
        let leader = cluster.leader();
        let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
        let (exit, took) = cluster.node_mut(leader).stop(STOP_BOUND + Duration::from_secs(5));
        assert_eq!(exit.code(), Some(0));
        assert!(took <= STOP_BOUND, "{took:?} to stop");
        let new = cluster.leader_above(term);
        assert_ne!(new, leader, "somebody else leads");
        cluster.node_mut(leader).start();
        cluster.leader();
    }
    drop(writers);
    checker::check(&mut cluster, &history);
    cluster.end();
}

#[test]
fn a_second_signal_ends_a_stop_at_once() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    cluster.allow("a second signal");
    let leader = cluster.leader();
    let others = cluster.others(leader);
    // Nobody answers, so the first signal has to wait for its bounds.
    others.iter().for_each(|id| cluster.node(*id).signal(Signal::STOP));
    let mut conn = cluster.node(leader).connect();
    let body = Block::new(1, "in flight").to_protobuf();
    let head = format!(
        "POST /v1/blocks HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
        cluster.node(leader).api,
        body.len()
    );
    conn.send(&[head.as_bytes(), &body].concat()).expect("it reads");
    cluster.node(leader).signal(Signal::TERM);
    cluster.node(leader).wait_line(&["SIGTERM"]);
    let node = cluster.node_mut(leader);
    if node.exit().is_none() {
        let (_, took) = node.stop(SOON);
        assert!(took < Duration::from_millis(1_500), "{took:?} after the second signal");
    }
    others.iter().for_each(|id| cluster.node(*id).signal(Signal::CONT));
    cluster.node_mut(leader).kill();
    cluster.node_mut(leader).start();
    cluster.leader();
    cluster.end();
}

#[test]
fn a_start_that_hangs_is_ended_by_a_second_signal() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.allow("a second signal");
    let node = cluster.node_mut(1);
    // Whoever reads a pipe that nobody writes waits for ever: it stands for a disk that hangs.
    fs::create_dir_all(&node.data_dir).expect("writable");
    mknodat(CWD, node.data_dir.join("IDENTITY"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .expect("writable");
    node.start();
    let caught = format!("/proc/{}/status", node.pid());
    wait_for("it minds signals", SOON, || {
        let status = fs::read_to_string(&caught)?;
        let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:")).unwrap_or_default();
        ensure!(u64::from_str_radix(mask.trim(), 16)? & (1 << (Signal::TERM.as_raw() - 1)) != 0, "{mask}");
        Ok(())
    });
    node.signal(Signal::TERM);
    node.wait_line(&["stopping as soon as the node has started"]);
    assert!(node.is_running(), "one signal waits for the start");
    let (exit, took) = node.stop(SOON);
    assert_eq!(exit.code(), Some(1), "nothing was closed in order");
    assert!(took < Duration::from_millis(1_500), "{took:?} after the second signal");
}

/// The cause in `blockraft_node_last_exit`, alone at 1.
#[track_caller]
fn assert_last_exit(node: &Node, cause: &str) {
    let text = node.get("/metrics", &[]).expect("it answers").text();
    let scrape = Scrape::parse(&text);
    let name = "blockraft_node_last_exit";
    assert_eq!(scrape.get(name, &[("cause", cause)]), Some(1.0), "node {} last ended {cause}", node.id);
    assert_eq!(scrape.get(name, &[]), Some(1.0), "one cause alone");
}

#[test]
fn a_killed_node_says_so_after_the_restart() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    assert_last_exit(cluster.node(1), "first");
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.leader();
    assert_last_exit(cluster.node(1), "killed");
    let status = cluster.node(1).status().expect("it answers");
    assert!(status["lastExit"].to_string().contains("killed"), "lastExit: {}", status["lastExit"]);
    cluster.node_mut(1).stop(SOON);
    cluster.node_mut(1).start();
    cluster.leader();
    assert_last_exit(cluster.node(1), "clean");
    let starts = cluster.node(1).get("/metrics", &[]).expect("it answers").text();
    assert_eq!(Scrape::parse(&starts).get("blockraft_node_starts_total", &[]), Some(3.0));
    cluster.end();
}

/// Else nobody would be told of a chain that stands still once all nodes were started again.
#[test]
fn when_the_last_block_was_applied_outlives_a_restart() {
    let mut cluster = Cluster::new(1, Settings::new());
    let leader = cluster.start();
    fill(&cluster.node(leader).api.clone(), &[Block::new(1, "last")]);
    let applied_at = |cluster: &Cluster| {
        let name = "blockraft_block_applied_timestamp_seconds";
        cluster.node(leader).counted(name, &[])
    };
    let first = applied_at(&cluster);
    for is_killed in [false, true] {
        match is_killed {
            true => cluster.node_mut(leader).kill(),
            false => drop(cluster.node_mut(leader).stop(SOON)),
        }
        cluster.node_mut(leader).start();
        cluster.leader();
        let again = applied_at(&cluster);
        // When it was proposed, by the same clock.
        assert!(first - 60.0 < again && again <= first, "{first}, then {again}");
    }
    cluster.end();
}

#[test]
fn what_must_not_stop_a_node() {
    let mut cluster = Cluster::three(Settings::new());
    let leader = cluster.leader();
    let term = cluster.node(leader).status().expect("it answers")["term"].clone();
    for node in &cluster.nodes {
        for signal in [Signal::HUP, Signal::PIPE] {
            node.signal(signal);
        }
    }
    // Each answers after it has seen both: the line is written by the one that came first.
    for node in &cluster.nodes {
        node.wait_line(&["SIGHUP"]);
    }
    let blocks: Vec<Block> = (1..=20).map(|h| Block::new(h, "on")).collect();
    fill(&cluster.node(leader).api.clone(), &blocks);
    for status in cluster.settled() {
        assert_eq!(status["term"], term, "no election was cost");
    }
    cluster.end();
}
