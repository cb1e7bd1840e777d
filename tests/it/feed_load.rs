//! The feed under an open loop, with and without readers that stand still.
//!
//! | test | attacks |
//! | --- | --- |
//! | readers_that_stand_still_cost_… | promise 5: nobody else is slowed or loses, memory is bounded, every drop is told and repaired |
//!
//! Ten readers on three nodes, three of which read nothing until the load is over. Phases with and without
//! these three take turns on one cluster, so that their figures may be held against each other; no figure
//! is asserted but memory. `make feed-load` is the long run, with the figures printed.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::ensure;
use serde_json::{Value, json};

use crate::support::{
    NodeId,
    account::{Account, last_block},
    bench::{bench, number, rss_mib},
    block::{Answer, Way},
    cluster::Cluster,
    config::{patient, settings},
    exposition::Scrape,
    feed::{Events, Message, WebSocket, event_item, socket_item},
    wait::{LATER, SOON, wait_for},
};

/// Of those that read, on which node: the leader first.
const READERS: [usize; 7] = [0, 0, 0, 1, 1, 2, 2];
const STALLED: [usize; 3] = [0, 0, 1];
const LABELS: [&str; 2] = ["reader", "stalled"];
/// The counters that must equal what the readers saw.
const COUNTERS: [&str; 4] =
    ["messages_total", "messages_replayed_total", "messages_dropped_total", "gaps_total"];
/// What a phase with stalled readers may take beside one without, in MiB: their one shared buffer of 32
/// MiB, and as much again for what the allocator keeps.
const RSS_MORE_MAX_MIB: u64 = 64;

/// What is offered; each a variable of its own.
struct Plan {
    rounds: u64,
    seconds: u64,
    rate: u64,
    bytes: u64,
}

impl Plan {
    fn from_env() -> Self {
        // By default as little as fills every buffer between a node and a reader that stands still.
        Self {
            rounds: number("FEED_LOAD_ROUNDS", 1),
            seconds: number("FEED_LOAD_SECONDS", 4),
            rate: number("FEED_LOAD_RATE", 300),
            bytes: number("FEED_LOAD_BYTES", 16 << 10),
        }
    }
}

/// A reader's own connection.
enum Feed {
    Socket(WebSocket),
    Events(Events),
}

impl Feed {
    /// Begins ahead of the head. One that will stand still has a small buffer of its own.
    fn open(api: &str, at: usize, from_height: u64, name: &str) -> Self {
        let is_stalled = name == "stalled";
        if at % 3 == 1 {
            let path = format!("/v1/applied?fromHeight={from_height}&name={name}");
            return Self::Events(Events::open_with(api, &path, None, is_stalled.then_some(4_096)));
        }
        let mut socket = WebSocket::open(api, is_stalled.then_some(4_096));
        let params = json!({"fromHeight": from_height, "name": name});
        socket.subscribe("block_subscribeApplied", &params);
        Self::Socket(socket)
    }

    /// Up to the last block.
    fn read(mut self) -> Result<(Account, Self), Message> {
        let mut account = Account::default();
        while !account.has_last {
            match &mut self {
                Self::Socket(socket) => account.take_text(&socket.text()?, socket_item),
                Self::Events(events) => account.take_text(&events.text().ok_or(Message::Gone)?, event_item),
            }
        }
        Ok((account, self))
    }
}

/// What one phase came to.
struct Phase {
    is_stalled: bool,
    /// As `bench --json` says.
    bench: Value,
    /// Of each node, once a second, in MiB.
    rss: Vec<Vec<u64>>,
    /// Of the stalled.
    n_gaps: u64,
    dropped: u64,
}

impl Phase {
    fn rss_max(&self) -> u64 {
        self.rss.iter().flatten().copied().max().unwrap_or(0)
    }
}

#[test]
fn readers_that_stand_still_cost_the_others_nothing_and_get_every_block() {
    let plan = Plan::from_env();
    let watched = toml::Value::Array(LABELS.map(Into::into).to_vec());
    let mut all = patient();
    all.extend(settings([
        ("feed.watched", watched),
        // Every block of a phase must still be there when it is over.
        ("state.history_blocks", 1_000_000.into()),
    ]));
    let mut cluster = Cluster::three(all);
    // Who has not caught up turns readers away.
    cluster.settled();
    let mut phases = Vec::new();
    // What a node takes anyway, it takes before the first comparison.
    phase(&mut cluster, &Plan { seconds: 2, ..plan }, false);
    for round in 0..plan.rounds {
        // Neither is always the first.
        for is_stalled in [round % 2 == 1, round % 2 == 0] {
            phases.push(phase(&mut cluster, &plan, is_stalled));
        }
    }
    report(&phases);
    let max = |is_stalled| phases.iter().filter(|p| p.is_stalled == is_stalled).map(Phase::rss_max).max();
    let (with, without) = (max(true).expect("a phase"), max(false).expect("a phase"));
    assert!(with <= without + RSS_MORE_MAX_MIB, "{with} MiB with stalled readers, {without} without");
    cluster.end();
}

fn phase(cluster: &mut Cluster, plan: &Plan, is_stalled: bool) -> Phase {
    let leader = cluster.leader();
    let mut nodes = vec![leader];
    nodes.extend(cluster.others(leader));
    let before = counters(cluster);
    let from_height = cluster.height(leader) + 1;
    let open = |at: &[usize], name: &'static str| -> Vec<(NodeId, Feed)> {
        let one = |(i, n): (usize, &usize)| {
            let id = nodes[*n];
            (id, Feed::open(&cluster.node(id).api, i, from_height, name))
        };
        at.iter().enumerate().map(one).collect()
    };
    let stalled = if is_stalled { open(&STALLED, "stalled") } else { Vec::new() };
    let readers: Vec<_> = open(&READERS, "reader")
        .into_iter()
        .map(|(id, feed)| (id, thread::spawn(move || feed.read())))
        .collect();
    let rss = Rss::watch(nodes.iter().map(|id| cluster.node(*id).pid()).collect());
    let bench = bench(
        cluster,
        &[
            ("--rate", plan.rate.to_string()),
            ("--size", plan.bytes.to_string()),
            ("--duration", format!("{}s", plan.seconds)),
        ],
    );
    let rss = rss.end();
    cluster.settled_within(LATER);
    // On a busy machine the load gives blocks up that are applied all the same, behind the head that is seen.
    let last = wait_for("the last block is taken", LATER, || {
        let leader = cluster.leader();
        let last = last_block(&cluster.node(leader).status()?["head"]);
        match last.propose(&mut cluster.node(leader).connect(), Way::Protobuf, None) {
            Answer::Refused { why, .. } => anyhow::bail!("{why}"),
            answer => answer.acknowledged(),
        };
        Ok(last)
    });

    let whole: Vec<u64> = (from_height..=last.height).collect();
    let mut saw: BTreeMap<(NodeId, &str), Vec<Account>> = BTreeMap::new();
    let mut feeds = Vec::new();
    for (i, (id, reader)) in readers.into_iter().enumerate() {
        let read = reader.join().unwrap_or_else(|_| panic!("reader {i}: a hole or a double"));
        let (account, feed) = read.unwrap_or_else(|end| panic!("reader {i} was cut off: {end:?}"));
        assert_eq!(account.heights(), whole, "reader {i}");
        saw.entry((id, "reader")).or_default().push(account);
        feeds.push(feed);
    }
    let (mut n_gaps, mut dropped) = (0, 0);
    for (i, (id, feed)) in stalled.into_iter().enumerate() {
        let gap = counters(cluster)[&(id, "stalled", "subscriber_gap_entries")];
        assert!(0 < gap, "stalled reader {i} of node {id} misses nothing: too little was offered");
        let (account, feed) = feed.read().unwrap_or_else(|end| panic!("stalled reader {i}: {end:?}"));
        assert_eq!(account.heights(), whole, "stalled reader {i}");
        assert!(0 < account.n_gaps && 0 < account.dropped, "stalled reader {i} was told of no gap");
        assert!(account.dropped <= account.n_replayed, "stalled reader {i}: {} replayed", account.n_replayed);
        (n_gaps, dropped) = (n_gaps + account.n_gaps, dropped + account.dropped);
        saw.entry((id, "stalled")).or_default().push(account);
        feeds.push(feed);
    }
    check_counters(cluster, &before, &saw);
    drop(feeds);
    wait_for("nobody is counted that is gone", SOON, || {
        let now = counters(cluster);
        ensure!(now.iter().all(|((_, _, name), n)| *name != "subscribers" || *n == 0), "{now:?}");
        Ok(())
    });
    Phase { is_stalled, bench, rss, n_gaps, dropped }
}

/// Of every node, label and name.
fn counters(cluster: &Cluster) -> BTreeMap<(NodeId, &'static str, &'static str), u64> {
    let mut all = BTreeMap::new();
    for node in &cluster.nodes {
        let scrape = Scrape::parse(&node.get("/metrics", &[]).expect("it answers").text());
        for label in LABELS {
            for name in COUNTERS.into_iter().chain(["subscribers", "subscriber_gap_entries"]) {
                let series = format!("blockraft_raft_apply_{name}");
                let value =
                    scrape.get(&series, &[("subscriber", label)]).expect("it is there from the start");
                all.insert((node.id, label, name), value as u64);
            }
        }
    }
    all
}

/// What rose is what the readers of a node and label saw.
#[track_caller]
fn check_counters(
    cluster: &Cluster,
    before: &BTreeMap<(NodeId, &'static str, &'static str), u64>,
    saw: &BTreeMap<(NodeId, &str), Vec<Account>>,
) {
    let now = counters(cluster);
    for node in &cluster.nodes {
        for label in LABELS {
            let accounts = saw.get(&(node.id, label)).map_or(&[][..], Vec::as_slice);
            for name in COUNTERS {
                let of = |a: &Account| match name {
                    "messages_total" => a.blocks.len() as u64,
                    "messages_replayed_total" => a.n_replayed,
                    "messages_dropped_total" => a.dropped,
                    _ => a.n_gaps,
                };
                let key = (node.id, label, name);
                let want: u64 = accounts.iter().map(of).sum();
                assert_eq!(now[&key] - before[&key], want, "{name} of {label} on node {}", node.id);
            }
        }
    }
}

/// Looks at the memory of processes once a second.
struct Rss {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Vec<Vec<u64>>>,
}

impl Rss {
    fn watch(pids: Vec<u32>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::spawn(move || {
            let mut seen = vec![Vec::new(); pids.len()];
            loop {
                for (pid, seen) in pids.iter().zip(&mut seen) {
                    seen.push(rss_mib(*pid).expect("it runs"));
                }
                if stopped.recv_timeout(Duration::from_secs(1)) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return seen;
                }
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> Vec<Vec<u64>> {
        drop(self.stop);
        self.thread.join().expect("it only looks")
    }
}

/// The figures of all phases, for `benches/README.md`.
fn report(phases: &[Phase]) {
    let mut out = String::from(
        "| readers that stand still | blocks/s | achieved | refused | p50 ms | p99 ms | max ms | gaps | dropped | RSS MiB, leader and followers, over time |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for p in phases {
        let ms = |name: &str| p.bench["latencyUs"][name].as_f64().unwrap_or(0.0) / 1e3;
        let rss: Vec<String> = p.rss.iter().map(|of| thinned(of)).collect();
        let _ = writeln!(
            out,
            "| {} | {:.0} | {:.1} % | {} | {:.2} | {:.2} | {:.1} | {} | {} | {} |",
            if p.is_stalled { "3 of 10" } else { "0 of 7" },
            p.bench["blocksPerSecond"].as_f64().unwrap_or(0.0),
            100.0 * p.bench["achieved"].as_f64().unwrap_or(0.0),
            p.bench["refused"],
            ms("p50"),
            ms("p99"),
            ms("max"),
            p.n_gaps,
            p.dropped,
            rss.join("; ")
        );
    }
    #[expect(clippy::print_stdout, reason = "the figures are what a long run is for")]
    {
        println!("{out}");
    }
}

/// Six of them, the last one included.
fn thinned(values: &[u64]) -> String {
    let step = values.len().div_ceil(6).max(1);
    let shown = values.iter().rev().step_by(step).map(u64::to_string).collect::<Vec<_>>();
    shown.into_iter().rev().collect::<Vec<_>>().join(" ")
}
