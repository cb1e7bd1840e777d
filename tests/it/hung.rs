//! Commands beside a node that hangs, or that was wiped: the others know enough.
//!
//! | test | attacks |
//! | --- | --- |
//! | ctl_asks_past_a_node_that_was_wiped | the members and the leader are those that any endpoint knows |
//! | bench_goes_on_… | a leader that hangs costs an outage, not the rest of the run |
//! | a_tail_goes_on_… | a subscription to a node that hangs is opened at another one |
//! | a_node_that_stood_still_… | safety 15: the last resort is for who hears nobody, not for who could not hear |

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{anyhow, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    NodeId,
    block::Block,
    cluster::Cluster,
    config::{Settings, settings},
    node::{binary, spawn_mortal},
    stream::fill,
    wait::{LATER, SOON, pause, wait_for},
};

/// The endpoints of all nodes, one of them first.
fn endpoints(cluster: &Cluster, first: NodeId) -> String {
    let mut apis: Vec<&str> = cluster.nodes.iter().map(|n| n.api.as_str()).collect();
    apis.swap(0, first as usize - 1);
    apis.join(",")
}

fn command(cluster: &Cluster, first: NodeId, words: &str) -> Command {
    let mut command = binary();
    command.args(words.split_whitespace()).args(["--endpoints", &endpoints(cluster, first)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn answer(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn ctl_asks_past_a_node_that_was_wiped() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_strangers();
    cluster.allow("incarnation");
    let leader = cluster.leader();
    let wiped = cluster.others(leader)[0];
    cluster.node_mut(wiped).stop(SOON);
    cluster.node_mut(wiped).wipe();
    cluster.node_mut(wiped).start();
    cluster.node(wiped).wait_line(&["incarnation"]);
    let run = |words: &str| command(&cluster, wiped, words).output().expect("it runs");
    assert_eq!(answer(&run("ctl leader --json"))["leaderId"], leader);
    assert_eq!(answer(&run("ctl status --all --json"))["nodes"].as_array().map(Vec::len), Some(3));
    let history = answer(&run("ctl history --all --json"));
    let events = history["events"].as_array().expect("a list");
    assert!(events.iter().any(|e| e["nodeId"] == leader), "the leader was not asked: {history}");
    // Once more with the one alone: it knows nobody.
    let output = binary()
        .args(["ctl", "members", "demote", "1", "--yes", "--endpoints", &cluster.node(wiped).api])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("no leader is known to {}", cluster.node(wiped).api)), "{said}");
}

/// Waits until blocks are being added.
fn wait_for_load(cluster: &Cluster, leader: NodeId) {
    let before = cluster.height(leader);
    wait_for("the load has begun", SOON, || {
        ensure!(before + 10 < cluster.height(leader), "no block yet");
        Ok(())
    });
}

fn wait_exit(mut child: Child) -> Output {
    wait_for("it ends", LATER, || child.try_wait()?.ok_or_else(|| anyhow!("it runs")));
    child.wait_with_output().expect("it can be read")
}

#[test]
fn bench_goes_on_when_its_leader_hangs() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    for path in ["stream", "http"] {
        let leader = cluster.leader();
        let words = format!("bench --rate 50 --duration 15s --warmup 0s --yes --json --path {path}");
        let child = spawn_mortal(command(&cluster, leader, &words));
        wait_for_load(&cluster, leader);
        cluster.node(leader).signal(Signal::STOP);
        let found = answer(&wait_exit(child));
        cluster.node(leader).signal(Signal::CONT);
        let gap = found["longestGapMs"].as_u64().expect("a number");
        assert!((3_000..10_000).contains(&gap), "{path}: {found}");
        assert_eq!(found["achieved"], 1.0, "{path}: nothing is lost for it: {found}");
        cluster.settled();
    }
}

#[test]
fn a_tail_goes_on_at_another_node_when_its_own_hangs() {
    let mut cluster = Cluster::three(Settings::new());
    cluster.allow_deaths();
    let leader = cluster.leader();
    let hung = cluster.others(leader)[0];
    let mut child = spawn_mortal(command(&cluster, hung, "ctl tail --json --from-height 1"));
    let stdout = child.stdout.take().expect("piped");
    let stderr = child.stderr.take().expect("piped");
    let notes = thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).next());
    let (items, taken) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if items.send(serde_json::from_str::<Value>(&line).expect("JSON")).is_err() {
                return;
            }
        }
    });
    let until_block = |height: u64| {
        wait_for(&format!("the tail has block {height}"), LATER, || {
            let item = taken.try_recv()?;
            ensure!(item["block"]["height"] == height, "{item}");
            Ok(())
        });
    };
    let leader_api = cluster.node(leader).api.clone();
    fill(&leader_api, &[Block::new(1, "tail")]);
    until_block(1);
    cluster.node(hung).signal(Signal::STOP);
    fill(&leader_api, &[Block::new(2, "tail")]);
    until_block(2);
    let note = notes.join().expect("it can be read").expect("a line");
    assert!(note.starts_with(&format!("# lost {}", cluster.node(hung).api)), "{note}");
    cluster.node(hung).signal(Signal::CONT);
    child.kill().expect("it runs");
    child.wait().expect("a child can be waited for");
    cluster.end();
}

/// Its patience was over while it stood still: nobody was silent but itself.
#[test]
fn a_node_that_stood_still_says_nothing_of_the_others() {
    let mut cluster = Cluster::new(3, settings([("leadership.last_resort_after", "1s".into())]));
    cluster.allow_deaths();
    let leader = cluster.start();
    cluster.settled();
    let id = cluster.others(leader)[0];
    for height in 1..=4 {
        cluster.node(id).signal(Signal::STOP);
        fill(&cluster.node(leader).api, &[Block::new(height, "meanwhile")]);
        pause(Duration::from_millis(1_500));
        cluster.node(id).signal(Signal::CONT);
        wait_for("it follows again", SOON, || {
            let status = cluster.node(id).status()?;
            ensure!(status["leaderId"] == leader, "{status}");
            Ok(())
        });
    }
    // A warning of it ends the test.
    cluster.end();
}
