//! Readers of the feed while the cluster changes under them.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_start_from_the_first_block_… | promise 5: no hole and no double at the join; `FEED_RUNS` says how often |
//! | readers_on_every_node_… | promise 5 through changes of leader: what was never committed is never handed over |
//! | what_a_snapshot_skips_… | promise 5: forgotten before it was applied here, so told and left out |
//! | a_reader_goes_on_behind_… | promises 5 and 6: a position is worth something after a restart |

use std::{collections::BTreeMap, sync::Arc, thread};

use anyhow::ensure;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    account::{Account, last_block},
    block::{Block, Way},
    cluster::Cluster,
    config::{Settings, patient, settings},
    feed::{Events, WebSocket},
    stream::fill,
    wait::{LATER, SOON, pause, wait_for},
    writer::{History, Writer},
};

/// Runs of the start from the first block. A hundred of them: `make feed-runs`.
const RUNS: usize = 5;
/// Between two tries to subscribe again.
const AGAIN: std::time::Duration = std::time::Duration::from_millis(20);

fn blocks(range: std::ops::RangeInclusive<u64>) -> Vec<Block> {
    range.map(|h| Block::new(h, "feed")).collect()
}

fn keep_all() -> Settings {
    settings([("state.history_blocks", 1_000_000.into())])
}

#[test]
fn a_start_from_the_first_block_while_blocks_arrive_has_no_hole() {
    let runs = std::env::var("FEED_RUNS").ok().map_or(RUNS, |n| n.parse().expect("FEED_RUNS is a number"));
    for run in 0..runs {
        let mut cluster = Cluster::three(patient());
        let leader = cluster.leader();
        let leader_api = cluster.node(leader).api.clone();
        let top = 2_000;
        let filling = thread::spawn(move || fill(&leader_api, &blocks(1..=top)));
        let readers: Vec<_> = (0..12)
            .map(|i| {
                let api = cluster.nodes[i % 3].api.clone();
                let buffer = 1 + i * 20;
                let read = if i % 4 == 3 { from_first_by_events } else { from_first_by_socket };
                thread::spawn(move || read(&api, buffer, top))
            })
            .collect();
        filling.join().expect("every block is accepted");
        for (i, reader) in readers.into_iter().enumerate() {
            let account =
                reader.join().unwrap_or_else(|_| panic!("run {run}, reader {i}: a hole or a double"));
            assert_eq!(account.heights(), (1..=top).collect::<Vec<_>>(), "run {run}, reader {i}");
            assert!(account.n_caught_up <= 1, "run {run}, reader {i} caught up {}×", account.n_caught_up);
        }
        cluster.end();
    }
}

fn from_first_by_socket(api: &str, buffer: usize, top: u64) -> Account {
    let mut socket = WebSocket::open(api, None);
    socket.subscribe("block_subscribeApplied", &json!({"fromHeight": 1, "buffer": buffer}));
    let mut account = Account::default();
    while account.blocks.last().is_none_or(|b| b.height < top) {
        account.take(&socket.item());
    }
    account
}

fn from_first_by_events(api: &str, buffer: usize, top: u64) -> Account {
    let mut events = Events::subscribe(api, &format!("/v1/applied?fromHeight=1&buffer={buffer}"));
    let mut account = Account::default();
    while account.blocks.last().is_none_or(|b| b.height < top) {
        account.take(&events.next().expect("the stream goes on").data);
    }
    account
}

/// The ready leader of a later term, where one node may stand still.
#[track_caller]
fn leader_among(cluster: &Cluster, ids: &[NodeId], term: u64) -> NodeId {
    wait_for("another node leads", SOON, || {
        for id in ids {
            let status = cluster.node(*id).status()?;
            if status["ready"] == true && Some(term) < status["term"].as_u64() {
                return Ok(*id);
            }
        }
        anyhow::bail!("none of {ids:?}")
    })
}

/// Ends the chain with the block that readers wait for; what the cluster holds.
#[track_caller]
fn end_chain(cluster: &mut Cluster) -> BTreeMap<u64, (u64, u64)> {
    let leader = cluster.leader();
    cluster.settled();
    let head = cluster.node(leader).status().expect("it answers")["head"].clone();
    let last = last_block(&head);
    last.propose(&mut cluster.node(leader).connect(), Way::Protobuf, None).acknowledged();
    cluster.settled();
    let rows = cluster.node(leader).range(1, last.height).expect("it answers");
    let place = |v: &Value| v.as_u64().expect("a number");
    rows.iter().map(|r| (place(&r["block"]["height"]), (place(&r["term"]), place(&r["index"])))).collect()
}

#[test]
fn readers_on_every_node_go_on_through_changes_of_leader() {
    let mut cluster = Cluster::three(keep_all());
    cluster.allow_deaths();
    cluster.leader();
    let history = Arc::<History>::default();
    let writer = Writer::start("feed", Way::Protobuf, cluster.endpoints(), history.clone());
    let mut readers = Vec::new();
    for node in &cluster.nodes {
        let (api, id) = (node.api.clone(), node.id);
        readers.push((id, thread::spawn(move || by_socket(&api))));
        let api = node.api.clone();
        readers.push((id, thread::spawn(move || by_events(&api))));
    }
    for _ in 0..3 {
        let n = history.n_acknowledged();
        wait_for("blocks are acknowledged", LATER, || {
            ensure!(n + 50 < history.n_acknowledged());
            Ok(())
        });
        let leader = cluster.leader();
        let term = cluster.node(leader).status().expect("it answers")["term"].as_u64().expect("a term");
        let others = cluster.others(leader);
        // Its readers' connections live on, and so do those entries of it that nobody else has.
        cluster.node(leader).signal(Signal::STOP);
        leader_among(&cluster, &others, term);
        cluster.node(leader).signal(Signal::CONT);
        cluster.leader_above(term);
    }
    drop(writer);
    let held = end_chain(&mut cluster);
    for (id, reader) in readers {
        let account = reader.join().unwrap_or_else(|_| panic!("a reader of node {id} met what must not be"));
        let seen: BTreeMap<_, _> = account.blocks.iter().map(|b| (b.height, (b.term, b.index))).collect();
        assert_eq!(seen, held, "a reader of node {id}");
        let terms: std::collections::BTreeSet<_> = account.blocks.iter().map(|b| b.term).collect();
        assert!(3 < terms.len(), "a reader of node {id} saw the terms {terms:?}");
    }
    cluster.end();
}

fn by_socket(api: &str) -> Account {
    let mut socket = WebSocket::open(api, None);
    socket.subscribe("block_subscribeApplied", &json!({"fromHeight": 1}));
    let mut account = Account::default();
    while !account.has_last {
        account.take(&socket.item());
    }
    account
}

fn by_events(api: &str) -> Account {
    let mut events = Events::subscribe(api, "/v1/applied?fromHeight=1");
    let mut account = Account::default();
    while !account.has_last {
        account.take(&events.next().expect("the stream goes on").data);
    }
    account
}

#[test]
fn what_a_snapshot_skips_and_nobody_keeps_is_told_and_left_out() {
    let mut cluster = Cluster::three(settings([
        ("state.history_blocks", 100.into()),
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
    let api = cluster.node(follower).api.clone();
    let mut socket = WebSocket::open(&api, None);
    socket.subscribe("block_subscribeApplied", &json!({}));
    let mut events = Events::open(&api, "/v1/applied", None);
    let mut accounts = [Account::default(), Account::default()];
    accounts[0].take(&socket.item());
    accounts[1].take(&events.next().expect("the stream goes on").data);
    cluster.node(follower).signal(Signal::STOP);
    fill(&leader_api, &blocks(11..=800));
    wait_for("the log before is purged", SOON, || {
        let status = cluster.node(leader).status()?;
        ensure!(700 < status["purgedIndex"].as_u64().unwrap_or(0), "{}", status["purgedIndex"]);
        Ok(())
    });
    cluster.node(follower).signal(Signal::CONT);
    let is_over = |account: &Account| account.blocks.last().is_some_and(|b| b.height == 800);
    while !is_over(&accounts[0]) {
        accounts[0].take(&socket.item());
    }
    while !is_over(&accounts[1]) {
        let event = events.next().expect("the stream goes on");
        accounts[1].take(&event.data);
        assert_eq!(event.id, accounts[1].position.map(|p| p.to_string()), "{event:?}");
    }
    for account in accounts {
        let kept: Vec<u64> = account.heights().into_iter().filter(|h| 701 <= *h).collect();
        assert_eq!(kept, (701..=800).collect::<Vec<_>>());
        // What was on its way to it as it stood still may have come before, an older snapshot too.
        assert!(!account.pruned.is_empty(), "a gap was told");
        for (from, oldest) in &account.pruned {
            assert!(from < oldest && *oldest <= 701, "{:?}", account.pruned);
        }
        assert_eq!(account.n_caught_up, 1);
    }
    cluster.end();
}

#[test]
fn a_reader_goes_on_behind_what_it_has_when_its_node_restarts() {
    let mut cluster = Cluster::three(keep_all());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let history = Arc::<History>::default();
    let writer = Writer::start("feed", Way::JsonRpc, cluster.endpoints(), history.clone());
    let api = cluster.node(follower).api.clone();
    let reader = thread::spawn(move || over_restarts(&api));
    for round in 0..4 {
        let n = history.n_acknowledged();
        wait_for("blocks are acknowledged", LATER, || {
            ensure!(n + 30 < history.n_acknowledged());
            Ok(())
        });
        if round % 2 == 0 {
            let (exit, _) = cluster.node_mut(follower).stop(SOON);
            assert_eq!(exit.code(), Some(0));
        } else {
            cluster.node_mut(follower).kill();
        }
        cluster.node_mut(follower).start();
        cluster.leader();
    }
    drop(writer);
    let held = end_chain(&mut cluster);
    let (account, n_connections, n_goodbyes) = reader.join().expect("no hole and no double");
    let seen: BTreeMap<_, _> = account.blocks.iter().map(|b| (b.height, (b.term, b.index))).collect();
    assert_eq!(seen, held);
    assert!(4 < n_connections, "{n_connections} connections");
    assert!(2 <= n_goodbyes, "two stops are told, {n_goodbyes} were");
    cluster.end();
}

/// Comes back with its position each time; what it has at the end, how often it connected, and how often
/// it was told goodbye.
fn over_restarts(api: &str) -> (Account, usize, usize) {
    let mut account = Account::default();
    let (mut n_connections, mut n_goodbyes) = (0, 0);
    while !account.has_last {
        let mut socket = wait_for("the node lets it subscribe again", LATER, || {
            let mut socket = WebSocket::try_open(api, None)?;
            let params = match account.position {
                Some(position) => json!({"fromIndex": position + 1}),
                None => json!({"fromHeight": 1}),
            };
            let answer = socket.try_call("block_subscribeApplied", &params)?;
            ensure!(answer["result"].is_string(), "{answer}");
            Ok(socket)
        });
        n_connections += 1;
        // Every connection catches up once.
        account.n_caught_up = 0;
        while !account.has_last {
            let Ok(item) = socket.next_item() else { break };
            account.take(&item);
            if let Some(reason) = account.end.take() {
                assert_eq!(reason, "shuttingDown");
                n_goodbyes += 1;
                break;
            }
        }
        pause(AGAIN);
    }
    (account, n_connections, n_goodbyes)
}
