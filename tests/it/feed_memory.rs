//! What readers that stand still may cost a node: a bound in bytes, however many they are.
//!
//! | test | attacks |
//! | --- | --- |
//! | hundreds_that_stand_still_… | promise 5 and issue 12: memory is bounded by bytes, and who reads is served |
//! | who_comes_when_all_room_… | those that hold room too long lose it to others |

use anyhow::ensure;
use serde_json::json;

use crate::support::{
    account::Account,
    bench::rss_mib,
    block::{Block, Way},
    cluster::Cluster,
    config::Settings,
    exposition::Scrape,
    feed::{Events, WebSocket, socket_item},
    stream::fill,
    wait::{SOON, wait_for},
};

/// Of a block; a message has twice as much.
const BLOCK_BYTES: usize = 2 << 20;
const BLOCKS: u64 = 20;
const SOCKETS: usize = 30;
const SUBSCRIPTIONS: usize = 16;
const STREAMS: usize = 6;
/// Twice the room there is, in MiB: for what the allocator keeps, and the blocks that are applied meanwhile. Every
/// subscription's own block would be a thousand.
const RSS_MORE_MAX_MIB: u64 = 128;

fn blocks(heights: std::ops::RangeInclusive<u64>) -> Vec<Block> {
    heights.map(|height| Block::sized(height, "memory", BLOCK_BYTES)).collect()
}

/// A node with a history.
fn node() -> (Cluster, u64) {
    let mut cluster = Cluster::new(1, Settings::new());
    let leader = cluster.start();
    fill(&cluster.node(leader).api.clone(), &blocks(1..=BLOCKS));
    (cluster, leader)
}

/// Asks for whole blocks from the first one on, and reads nothing.
fn stand_still(api: &str, subscriptions: usize) -> WebSocket {
    let mut socket = WebSocket::open(api, Some(4_096));
    for _ in 0..subscriptions {
        socket.ask("block_subscribeApplied", &json!({"fromHeight": 1, "maxItemBytes": 0}));
    }
    socket
}

fn reader(api: &str) -> WebSocket {
    let mut socket = WebSocket::open(api, None);
    socket.subscribe("block_subscribeApplied", &json!({"fromHeight": 1, "maxItemBytes": 0}));
    socket
}

/// Up to a height.
#[track_caller]
fn read(socket: &mut WebSocket, account: &mut Account, upto: u64) {
    while account.blocks.last().map(|b| b.height) != Some(upto) {
        match socket.waiting_item() {
            Some(item) => account.take(&item),
            None => account.take_text(&socket.text().expect("it is not cut off"), socket_item),
        }
    }
}

#[test]
fn hundreds_that_stand_still_hold_no_more_than_there_is_room_for() {
    let (cluster, id) = node();
    let (api, pid) = (cluster.node(id).api.clone(), cluster.node(id).pid());
    let mut account = Account::default();
    let mut quick = reader(&api);
    read(&mut quick, &mut account, BLOCKS);
    let before = rss_mib(pid).expect("it runs");

    let sockets: Vec<_> = (0..SOCKETS).map(|_| stand_still(&api, SUBSCRIPTIONS)).collect();
    let path = "/v1/applied?fromHeight=1&maxItemBytes=0";
    let streams: Vec<_> = (0..STREAMS).map(|_| Events::open_with(&api, path, None, Some(4_096))).collect();
    let subscribers = || {
        let scrape = Scrape::parse(&cluster.node(id).get("/metrics", &[]).expect("it answers").text());
        let of = |name| scrape.get("blockraft_raft_apply_subscribers", &[("subscriber", name)]);
        (of("ws").expect("a series") + of("sse").expect("a series")) as usize
    };
    // The first of them may have been cut off by then.
    wait_for("they have subscribed", SOON, || {
        ensure!(SOCKETS * SUBSCRIPTIONS / 2 < subscribers());
        Ok(())
    });
    let mut most = 0;
    for block in blocks(BLOCKS + 1..=2 * BLOCKS) {
        block.propose(&mut cluster.node(id).connect(), Way::Protobuf, None).acknowledged();
        read(&mut quick, &mut account, block.height);
        most = most.max(rss_mib(pid).expect("it runs"));
    }
    assert_eq!(account.heights(), (1..=2 * BLOCKS).collect::<Vec<_>>(), "each once, in order");
    assert!(most <= before + RSS_MORE_MAX_MIB, "{most} MiB with readers that stand still, {before} without");
    drop((sockets, streams));
    wait_for("nobody is counted that is gone", SOON, || {
        ensure!(subscribers() == 1);
        Ok(())
    });
    cluster.end();
}

#[test]
fn who_comes_when_all_room_is_held_gets_it_from_those_that_do_not_read() {
    let (cluster, id) = node();
    let api = cluster.node(id).api.clone();
    // More than have room: five of these blocks.
    const STANDING: usize = 7;
    let mut sockets: Vec<_> = (0..STANDING).map(|_| stand_still(&api, 1)).collect();
    // Who comes before them meets no lack of room. The first of them may have been cut off by then.
    wait_for("they have subscribed", SOON, || {
        let node = cluster.node(id);
        let there = node.counted("blockraft_raft_apply_subscribers", &[("subscriber", "ws")]);
        let gone = node.counted("blockraft_ws_sessions_closed_total", &[("reason", "write_timeout")]);
        ensure!(STANDING as f64 <= there + gone, "{there} are there, {gone} were cut off");
        Ok(())
    });
    let mut account = Account::default();
    read(&mut reader(&api), &mut account, BLOCKS);
    assert_eq!(account.heights(), (1..=BLOCKS).collect::<Vec<_>>());
    let scrape = Scrape::parse(&cluster.node(id).get("/metrics", &[]).expect("it answers").text());
    let cut_off = scrape.get("blockraft_ws_sessions_closed_total", &[("reason", "write_timeout")]);
    assert!(0.0 < cut_off.expect("a series"), "somebody had to make room");
    sockets.clear();
    cluster.end();
}
