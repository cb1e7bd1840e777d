//! The feed of applied blocks: never loses silently, wherever a reader begins and however slow it is.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_reader_that_stands_still_… | promise 5: drops told, counted, repaired; the others whole |
//! | a_reader_that_comes_back_… | design 6: `Last-Event-ID`, over a change of leader |
//! | a_snapshot_in_the_middle_… | promise 5: entries that were never applied one by one |
//! | a_stop_is_told_… | promise 6: the end, then close 1000 |
//! | what_needs_a_socket_… | design 5: HTTP, batches, ids of the connection |

use std::thread;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    block::Block,
    cluster::Cluster,
    config::{Settings, settings},
    exposition::Scrape,
    feed::{Events, Message, WebSocket},
    stream::{fill, fill_patiently},
    wait::{SOON, wait_for},
};

fn blocks(range: std::ops::RangeInclusive<u64>) -> Vec<Block> {
    range.map(|h| Block::new(h, "feed")).collect()
}

fn height(item: &Value) -> Option<u64> {
    item["block"]["height"].as_u64()
}

#[track_caller]
fn counted(cluster: &Cluster, id: u64, name: &str, subscriber: &str) -> u64 {
    let text = cluster.node(id).get("/metrics", &[]).expect("it answers").text();
    let name = format!("blockraft_raft_apply_{name}");
    Scrape::parse(&text).get(&name, &[("subscriber", subscriber)]).expect("it is there from the start") as u64
}

#[test]
fn a_reader_that_stands_still_is_told_its_gaps_and_gets_every_block() {
    let watched = toml::Value::Array(vec!["exec".into()]);
    let mut cluster = Cluster::three(settings([("feed.watched", watched)]));
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let api = cluster.node(follower).api.clone();
    let mut slow = WebSocket::open(&api, Some(4_096));
    slow.subscribe("block_subscribeApplied", &json!({"buffer": 4, "name": "exec", "maxItemBytes": 0}));
    let mut quick = WebSocket::open(&api, None);
    quick.subscribe("block_subscribeApplied", &json!({"buffer": 10_000}));
    // As much as no socket's buffers hold.
    let top = 400;
    let large: Vec<Block> = (1..=top).map(|h| Block::sized(h, "feed", 32 << 10)).collect();
    let mut heights = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| fill_patiently(&mut cluster, &large));
        while heights.last() != Some(&top) {
            let item = quick.item();
            assert!(item.get("gap").is_none(), "a quick reader misses nothing: {item}");
            heights.extend(height(&item));
        }
    });
    assert_eq!(heights, (1..=top).collect::<Vec<_>>());

    let (mut heights, mut told, mut n_gaps, mut n_caught_up) = (Vec::new(), 0, 0, 0);
    while heights.last() != Some(&top) {
        let item = slow.item();
        heights.extend(height(&item));
        if let Some(gap) = item.get("gap") {
            assert_eq!(gap["repair"], "replay");
            told += gap["dropped"].as_u64().expect("a number");
            n_gaps += 1;
        }
        n_caught_up += u64::from(item.get("caughtUp").is_some());
    }
    assert_eq!(heights, (1..=top).collect::<Vec<_>>(), "each once, in order");
    assert!(0 < n_gaps && n_caught_up == 1, "{n_gaps} gaps, {n_caught_up} times caught up");
    assert_eq!(counted(&cluster, follower, "messages_dropped_total", "exec"), told);
    assert_eq!(counted(&cluster, follower, "gaps_total", "exec"), n_gaps);
    assert_eq!(counted(&cluster, follower, "messages_total", "exec"), top);
    assert!(told <= counted(&cluster, follower, "messages_replayed_total", "exec"));
    wait_for("the gap is repaired", SOON, || {
        anyhow::ensure!(counted(&cluster, follower, "subscriber_gap_entries", "exec") == 0);
        Ok(())
    });
    cluster.end();
}

#[test]
fn a_reader_that_comes_back_misses_nothing() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let (mut seen, mut last_id) = (Vec::new(), None::<String>);
    let mut top = 0;
    for round in 0..10 {
        let leader = cluster.leader();
        fill(&cluster.node(leader).api.clone(), &blocks(top + 1..=top + 30));
        top += 30;
        // Another node each time: one that has applied less waits, and repeats nothing.
        let api = cluster.nodes[round % 3].api.clone();
        wait_for("the node serves the feed again", SOON, || {
            let mut events = Events::open(&api, "/v1/applied?fromHeight=1", last_id.as_deref());
            assert_eq!(events.status, 200);
            // Breaks off in the middle, but for the last round.
            let upto = if round == 9 { top } else { top - 7 };
            while seen.last() != Some(&upto) {
                let event = events.next().ok_or_else(|| anyhow::anyhow!("the stream is over"))?;
                if event.name == "end" {
                    anyhow::bail!("{}", event.data);
                }
                assert_ne!(event.name, "gap", "{event:?}");
                last_id = event.id.clone();
                if event.name == "block" {
                    assert_eq!(event.id.as_deref(), Some(event.data["index"].to_string().as_str()));
                    seen.extend(height(&event.data));
                }
            }
            Ok(())
        });
        if round % 4 == 3 {
            let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
            cluster.node_mut(leader).kill();
            cluster.leader_above(term);
            cluster.node_mut(leader).start();
        }
    }
    assert_eq!(seen, (1..=top).collect::<Vec<_>>(), "each once, in order");
    cluster.end();
}

#[test]
fn a_snapshot_in_the_middle_is_a_gap_that_follows() {
    // Nothing is held back for a follower that stands still.
    let mut cluster = Cluster::three(settings([
        ("snapshot.threshold", 50.into()),
        ("snapshot.trailing_logs", 5.into()),
        ("snapshot.grace_entries", 1.into()),
    ]));
    cluster.allow_deaths();
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let leader_api = cluster.node(leader).api.clone();
    fill(&leader_api, &blocks(1..=10));
    cluster.settled();
    let mut socket = WebSocket::open(&cluster.node(follower).api, None);
    socket.subscribe("block_subscribeApplied", &json!({}));
    assert_eq!(socket.item()["caughtUp"]["height"], 10);
    cluster.node(follower).signal(Signal::STOP);
    fill(&leader_api, &blocks(11..=800));
    wait_for("the log before is purged", SOON, || {
        let status = cluster.node(leader).status()?;
        anyhow::ensure!(700 < status["purgedIndex"].as_u64().unwrap_or(0), "{}", status["purgedIndex"]);
        Ok(())
    });
    cluster.node(follower).signal(Signal::CONT);
    let (mut heights, mut n_gaps) = (Vec::new(), 0);
    while heights.last() != Some(&800) {
        let item = socket.item();
        heights.extend(height(&item));
        if let Some(gap) = item.get("gap") {
            assert_eq!(gap["repair"], "replay", "{gap}");
            n_gaps += 1;
        }
    }
    assert_eq!(heights, (11..=800).collect::<Vec<_>>());
    assert!(0 < n_gaps, "a snapshot came in between");
    cluster.end();
}

#[test]
fn a_stop_is_told_before_the_socket_closes_with_1000() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    fill(&cluster.node(leader).api.clone(), &blocks(1..=5));
    cluster.settled();
    let follower = cluster.others(leader)[0];
    let api = cluster.node(follower).api.clone();
    let mut socket = WebSocket::open(&api, None);
    socket.subscribe("block_subscribeApplied", &json!({"fromHeight": 1}));
    let mut events = Events::open(&api, "/v1/applied?fromHeight=1", None);
    let (mut last_index, mut last_id) = (Value::Null, None);
    for _ in 0..6 {
        let item = socket.item();
        last_index = item.get("index").unwrap_or(&item["caughtUp"]["index"]).clone();
        last_id = events.next().expect("it goes on").id;
    }
    cluster.node(follower).signal(Signal::TERM);
    let end = socket.item();
    assert_eq!((&end["end"]["reason"], &end["end"]["lastIndex"]), (&json!("shuttingDown"), &last_index));
    assert_eq!(socket.message(), Message::Closed(1_000));
    let end = events.next().expect("an end");
    assert_eq!((end.name.as_str(), &end.data["end"]["reason"]), ("end", &json!("shuttingDown")));
    assert_eq!(end.id, last_id, "who comes back goes on from there");
    assert_eq!(events.next(), None);
    assert_eq!(cluster.node_mut(follower).wait_exit(SOON).code(), Some(0));
    cluster.node_mut(follower).start();
    cluster.leader();
    cluster.end();
}

#[test]
fn what_needs_a_socket_is_refused_elsewhere_and_ids_are_the_connections() {
    let mut cluster = Cluster::new(1, settings([("state.history_blocks", 20.into())]));
    cluster.start();
    let api = cluster.node(1).api.clone();
    fill(&api, &blocks(1..=50));
    for method in ["block_subscribeApplied", "block_unsubscribeApplied", "raft_subscribe", "raft_unsubscribe"]
    {
        let error = cluster.node(1).call(method, &json!(["applied"])).expect_err(method).rpc();
        assert_eq!(error.code, -32600, "{method} over HTTP");
    }
    let mut socket = WebSocket::open(&api, None);
    let batch = json!([{"jsonrpc": "2.0", "id": 7, "method": "block_subscribeApplied"}]);
    let answers = socket.raw_call(&batch, Value::is_array);
    assert_eq!(answers.as_array().map(Vec::len), Some(1), "answered once");
    assert_eq!(answers[0]["error"]["code"], -32600);
    for (params, code, what) in [
        (json!({"fromHeight": 40, "fromIndex": 40}), -32602, "fromIndex"),
        (json!({"buffer": 0}), -32602, "buffer"),
        (json!({"onFull": "wait"}), -32602, "onFull"),
        (json!({"since": 1}), -32602, "since"),
    ] {
        let error = socket.call("block_subscribeApplied", &params)["error"].clone();
        assert_eq!((&error["code"], &error["data"]["param"]), (&json!(code), &json!(what)), "{params}");
    }
    let pruned = socket.call("block_subscribeApplied", &json!({"fromHeight": 1}))["error"].clone();
    assert_eq!(
        (&pruned["code"], &pruned["data"]["reason"], &pruned["data"]["oldestHeight"]),
        (&json!(-32037), &json!("pruned"), &json!(31))
    );
    // Whichever method made it, either ends it; another connection's id is nobody's.
    for (subscribe, params, unsubscribe) in [
        ("block_subscribeApplied", json!({}), "raft_unsubscribe"),
        ("raft_subscribe", json!(["applied", {"fromHeight": 45}]), "block_unsubscribeApplied"),
    ] {
        let id = socket.subscribe(subscribe, &params);
        let mut other = WebSocket::open(&api, None);
        assert_eq!(other.call(unsubscribe, &json!([id]))["result"], false);
        assert_eq!(socket.call(unsubscribe, &json!([id]))["result"], true);
        assert_eq!(socket.call(unsubscribe, &json!([id]))["result"], false);
    }
    let unknown = socket.call("raft_subscribe", &json!(["nonsense"]))["error"].clone();
    assert_eq!(unknown["data"]["param"], "topic");
    cluster.end();
}
