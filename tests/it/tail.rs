//! `ctl tail` as part of a pipeline.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_tail_that_nobody_reads_… | promise 5 at the reader's end: a blocked stdout costs no memory and no block |
//! | a_tail_ends_quietly_… | design 10: a command whose reader goes away ends quietly |

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, ChildStdout, Stdio},
};

use anyhow::{anyhow, ensure};
use serde_json::Value;

use crate::support::{
    account::Account,
    bench::rss_mib,
    block::Block,
    cluster::Cluster,
    config::settings,
    exposition::Scrape,
    node::{binary, spawn_mortal},
    stream::fill,
    wait::{LATER, SOON, wait_for},
};

/// What a tail may hold while nobody reads: itself, and what one turn of its runtime reads.
const RSS_MAX_MIB: u64 = 128;

fn tail(cluster: &Cluster) -> (Child, BufReader<ChildStdout>) {
    let mut command = binary();
    command
        .args(["ctl", "tail", "--json", "--from-height", "1", "--endpoints", &cluster.nodes[0].api])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn_mortal(command);
    let stdout = child.stdout.take().expect("piped");
    (child, BufReader::new(stdout))
}

fn take_line(stdout: &mut BufReader<ChildStdout>, account: &mut Account) {
    let mut line = String::new();
    assert_ne!(stdout.read_line(&mut line).expect("it can be read"), 0, "the tail ended");
    account.take(&serde_json::from_str::<Value>(&line).expect("JSON"));
}

#[test]
fn a_tail_that_nobody_reads_for_a_while_grows_little_and_loses_nothing() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    let api = cluster.nodes[0].api.clone();
    let (mut child, mut stdout) = tail(&cluster);
    // It has begun: what follows is more than all buffers on the way hold.
    fill(&api, &[Block::new(1, "tail")]);
    let mut account = Account::default();
    while account.blocks.is_empty() {
        take_line(&mut stdout, &mut account);
    }
    let top = 1_000;
    let more: Vec<Block> = (2..=top).map(|h| Block::sized(h, "tail", 32 << 10)).collect();
    fill(&api, &more);
    wait_for("the node notices that nobody reads", SOON, || {
        let scrape = Scrape::parse(&cluster.nodes[0].get("/metrics", &[])?.text());
        let dropped = scrape.get("blockraft_raft_apply_messages_dropped_total", &[("subscriber", "ws")]);
        ensure!(dropped.is_some_and(|n| 0.0 < n), "{dropped:?}");
        Ok(())
    });
    let rss = rss_mib(child.id()).expect("it runs");
    assert!(rss <= RSS_MAX_MIB, "{rss} MiB");
    while account.blocks.last().is_none_or(|b| b.height < top) {
        take_line(&mut stdout, &mut account);
    }
    assert_eq!(account.heights(), (1..=top).collect::<Vec<_>>());
    assert!(0 < account.n_gaps, "what was dropped is told");
    child.kill().expect("it runs");
    child.wait().expect("a child can be waited for");
    cluster.end();
}

#[test]
fn a_tail_ends_quietly_once_its_reader_is_gone() {
    let mut cluster = Cluster::new(1, settings([]));
    cluster.start();
    let blocks: Vec<Block> = (1..=50).map(|h| Block::new(h, "tail")).collect();
    fill(&cluster.nodes[0].api, &blocks);
    // In the middle of a write, and with nothing left to write.
    for n_lines in [2, 51] {
        let (mut child, mut stdout) = tail(&cluster);
        let mut account = Account::default();
        (0..n_lines).for_each(|_| take_line(&mut stdout, &mut account));
        drop(stdout);
        let exit = wait_for("the tail ends", LATER, || child.try_wait()?.ok_or_else(|| anyhow!("it runs")));
        assert_eq!(exit.code(), Some(0));
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("it can be read");
        assert_eq!(said, "", "quietly");
    }
    cluster.end();
}
