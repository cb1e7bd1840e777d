//! A command that is ended by a signal takes down what it put up.
//!
//! | test | attacks |
//! | --- | --- |
//! | a_bench_on_nodes_of_its_own_… | SIGINT, SIGTERM and SIGHUP at any time: no process and no folder is left |
//! | a_bench_that_is_cut_short_… | what was due after the interrupt is not owed |
//! | ctrl_z_gives_the_terminal_back | the shell is not left on the other screen without a cursor |

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{anyhow, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    cluster::Cluster,
    config::Settings,
    node::{binary, spawn_mortal},
    wait::{SOON, wait_for},
};

/// With its temporary folders below `dir`.
fn bench(dir: &Path, words: &str) -> Child {
    let mut command = binary();
    command.args(["bench", "--json"]).args(words.split_whitespace()).env("TMPDIR", dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    spawn_mortal(command)
}

fn end(mut child: Child, signal: Signal) -> Output {
    kill_process(Pid::from_child(&child), signal).expect("it runs");
    wait_for("it ends", SOON, || child.try_wait()?.ok_or_else(|| anyhow!("it runs")));
    child.wait_with_output().expect("it can be read")
}

/// The folders there, and the nodes' settings in them.
fn wait_for_nodes(dir: &Path) {
    wait_for("a node has its log", SOON, || {
        let entry = fs::read_dir(dir)?.flatten().next().ok_or_else(|| anyhow!("no folder"))?;
        ensure!(entry.path().join("n1.log").exists(), "no log");
        Ok(())
    });
}

#[test]
fn a_bench_on_nodes_of_its_own_leaves_nothing_behind() {
    for (signal, words) in [
        (Signal::INT, "--nodes 3 --duration 60s"),
        (Signal::TERM, "--nodes 3 --duration 60s"),
        (Signal::HUP, "--nodes 3 --duration 60s"),
        (Signal::TERM, "--nodes 3 --failover 50"),
    ] {
        let dir = tempfile::tempdir().expect("writable");
        let child = bench(dir.path(), words);
        wait_for_nodes(dir.path());
        let output = end(child, signal);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{signal:?} {words}: {said}");
        let left: Vec<_> = fs::read_dir(dir.path()).expect("readable").flatten().collect();
        assert!(left.is_empty(), "{signal:?} {words} left {left:?}");
    }
}

#[test]
fn a_bench_that_is_cut_short_owes_nothing_that_was_due_later() {
    let dir = tempfile::tempdir().expect("writable");
    let mut child = bench(dir.path(), "--nodes 1 --rate 50 --warmup 0s --duration 60s");
    // It says each second how it goes.
    let mut stderr = child.stderr.take().expect("piped");
    let mut seen = String::new();
    while !seen.contains("  2 s ") {
        let mut piece = [0; 256];
        let n = stderr.read(&mut piece).expect("it can be read");
        assert_ne!(n, 0, "it ended: {seen}");
        seen += &String::from_utf8_lossy(&piece[..n]);
    }
    let output = end(child, Signal::TERM);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(0), "{found}");
    let planned = found["planned"].as_u64().expect("a number");
    assert!((90..300).contains(&planned), "{found}");
    assert!(found["achieved"].as_f64().is_some_and(|part| 0.9 < part), "{found}");
}

/// What a terminal is told to show the other screen, and its own.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

#[test]
fn ctrl_z_gives_the_terminal_back() {
    let mut cluster = Cluster::new(1, Settings::new());
    cluster.start();
    // `script` gives it a terminal.
    let program = binary();
    let line = format!(
        "exec {} ctl watch --endpoints {}",
        program.get_program().to_string_lossy(),
        cluster.node(1).api
    );
    let mut command = Command::new("script");
    command.args(["-qfec", &line, "/dev/null"]).env_remove("BLOCKRAFT_ENDPOINTS");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut script = spawn_mortal(command);
    let mut stdout = script.stdout.take().expect("piped");
    let (pieces, shown) = mpsc::channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = stdout.read(&mut piece) {
            if pieces.send(String::from_utf8_lossy(&piece[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let mut wait_shown = |what: &str| {
        wait_for(&format!("{what:?} is shown"), SOON, || {
            seen.extend(shown.try_iter());
            let at = seen.find(what).ok_or_else(|| anyhow!("{seen:?}"))?;
            seen.drain(..at + what.len());
            Ok(())
        });
    };
    wait_shown(ENTER);
    wait_shown("blockraft ctl watch");
    let id = script.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("it runs");
    let watch = Pid::from_raw(children.trim().parse().expect("one child")).expect("a pid");
    kill_process(watch, Signal::TSTP).expect("it runs");
    wait_for("it stands still", SOON, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", watch.as_raw_nonzero()))?;
        ensure!(stat.contains(") T "), "{stat}");
        Ok(())
    });
    // `script` stands still with it, before it passes on what it was told last.
    let (done, is_done) = mpsc::channel::<()>();
    let both = [Pid::from_child(&script), watch];
    let go_on = thread::spawn(move || {
        while is_done.recv_timeout(Duration::from_millis(50)) == Err(mpsc::RecvTimeoutError::Timeout) {
            both.iter().for_each(|pid| {
                // It may be gone.
                let _ = kill_process(*pid, Signal::CONT);
            });
        }
    });
    wait_shown(LEAVE);
    wait_shown(ENTER);
    wait_shown("blockraft ctl watch");
    drop(done);
    go_on.join().expect("it ends");
    kill_process(watch, Signal::INT).expect("it runs");
    wait_shown(LEAVE);
    wait_for("it ends", SOON, || script.try_wait()?.ok_or_else(|| anyhow!("it runs")));
    cluster.end();
}
